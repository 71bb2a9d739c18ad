//! TLS as every port uses it: 1.3 only, ring only, no early data, no resumption.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The application protocol of the peer port.
pub const PEER_ALPN: &[u8] = b"unibus-peer/1";
/// Only ever 1.3.
const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A private key that others may read.
    #[error("private key {}: mode is {mode:o}, expected 600 or stricter: run chmod 600 on it", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not what it should be.
    #[error("{}: expected {expected} in PEM: {cause}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was expected.
        expected: &'static str,
        /// Why not.
        cause: String,
    },
    /// The parts do not make a configuration.
    #[error("TLS configuration of the {port} port: {cause}: check that certificate and key belong together")]
    Config {
        /// Which port.
        port: &'static str,
        /// Why.
        cause: String,
    },
}

/// A certificate chain, its key, and the authority that the other side must come from.
pub struct Material {
    /// The chain, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    /// The authority.
    pub ca: CertificateDer<'static>,
}

impl Material {
    /// Loads the three files.
    pub fn load(cert: &Path, key: &Path, ca: &Path) -> Result<Self, TlsError> {
        Ok(Self { chain: load_chain(cert)?, key: load_key(key)?, ca: load_chain(ca)?.swap_remove(0) })
    }
}

impl Material {
    /// Another copy, for another port or runtime.
    pub fn share(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key(), ca: self.ca.clone() }
    }
}

/// Reads a file that must not be readable by others.
pub fn read_private(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, TlsError> {
    let read = |cause| TlsError::Read { path: path.into(), cause };
    let mode = fs::metadata(path).map_err(read)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(TlsError::Mode { path: path.into(), mode });
    }
    fs::read(path).map(Into::into).map_err(read)
}

/// Loads certificates, at least one.
pub fn load_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = fs::read(path).map_err(|cause| TlsError::Read { path: path.into(), cause })?;
    let pem = |cause: String| TlsError::Pem { path: path.into(), expected: "a certificate", cause };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let chain = chain.map_err(|error| pem(error.to_string()))?;
    if chain.is_empty() { Err(pem("none found".into())) } else { Ok(chain) }
}

/// Loads a private key.
pub fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read_private(path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| TlsError::Pem {
        path: path.into(),
        expected: "a private key",
        cause: error.to_string(),
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca: &CertificateDer<'static>, port: &'static str) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).map_err(|error| TlsError::Config { port, cause: error.to_string() })?;
    Ok(Arc::new(roots))
}

/// For accepting peers: a certificate of the peer authority is required.
pub fn peer_server(material: &Material) -> Result<ServerConfig, TlsError> {
    let wrong = |cause: String| TlsError::Config { port: "peer", cause };
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&material.ca, "peer")?, provider())
        .build()
        .map_err(|error| wrong(error.to_string()))?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|error| wrong(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(material.chain.clone(), material.key.clone_key())
        .map_err(|error| wrong(error.to_string()))?;
    Ok(without_resumption(config, PEER_ALPN))
}

/// For connecting to peers.
pub fn peer_client(material: &Material) -> Result<ClientConfig, TlsError> {
    let wrong = |cause: rustls::Error| TlsError::Config { port: "peer", cause: cause.to_string() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(wrong)?
        .with_root_certificates(roots(&material.ca, "peer")?)
        .with_client_auth_cert(material.chain.clone(), material.key.clone_key())
        .map_err(wrong)?;
    config.alpn_protocols = vec![PEER_ALPN.into()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// For clients over gRPC: they know us by our certificate, we know them by their sign-in.
pub fn client_server(material: &Material) -> Result<ServerConfig, TlsError> {
    let wrong = |cause: rustls::Error| TlsError::Config { port: "client", cause: cause.to_string() };
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(wrong)?
        .with_no_client_auth()
        .with_single_cert(material.chain.clone(), material.key.clone_key())
        .map_err(wrong)?;
    Ok(without_resumption(config, b"h2"))
}

fn without_resumption(mut config: ServerConfig, alpn: &[u8]) -> ServerConfig {
    config.alpn_protocols = vec![alpn.into()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config
}
