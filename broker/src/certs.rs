//! Certificate authorities and certificates of a planned cluster, and what a peer's certificate says.
//!
//! A peer certificate carries exactly one URI, `unibus://<cluster id>/node/<id>`, which both sides of a
//! peer connection compare with what they expect, and one DNS name made of the same two, so that the
//! standard verifier already refuses another node.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use unibus_proto::id::{ClusterId, NodeId};
use x509_parser::extensions::GeneralName;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// A cluster's authorities outlive its hosts.
const AUTHORITY_LIFETIME: Duration = DAY.saturating_mul(3650);
/// Two years: certificates are not renewed live yet, and `check-config` refuses an expired one by name.
const LEAF_LIFETIME: Duration = DAY.saturating_mul(730);
/// Hosts whose clocks are behind accept a fresh certificate.
const BACKDATED: Duration = Duration::from_secs(3600);

/// A certificate that could not be made or understood.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// Making it failed.
    #[error("certificate for {what}: {cause}")]
    Make {
        /// For whom.
        what: String,
        /// Why.
        cause: rcgen::Error,
    },
    /// It is not the certificate of the authority.
    #[error("authority certificate: found {found}, expected {expected}")]
    NotTheAuthority {
        /// Which authority.
        expected: String,
        /// What it is.
        found: String,
    },
    /// It does not name a node of the cluster.
    #[error("peer certificate: {found}, expected exactly one URI unibus://<cluster id>/node/<id>")]
    NotAPeer {
        /// What it says.
        found: String,
    },
}

/// A certificate with its key, both in PEM.
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// The private key (PKCS #8).
    pub key_pem: zeroize::Zeroizing<String>,
}

/// How long a certificate is valid; tests make expired ones.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// From.
    pub not_before: SystemTime,
    /// Until.
    pub not_after: SystemTime,
}

impl Validity {
    /// From `now` for the usual lifetime of a leaf.
    pub fn leaf(now: SystemTime) -> Self {
        Self { not_before: now - BACKDATED, not_after: now + LEAF_LIFETIME }
    }

    fn authority(now: SystemTime) -> Self {
        Self { not_before: now - BACKDATED, not_after: now + AUTHORITY_LIFETIME }
    }

    fn apply(self, params: &mut CertificateParams) {
        let epoch = date_time_ymd(1970, 1, 1);
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        params.not_before = epoch + since(self.not_before);
        params.not_after = epoch + since(self.not_after);
    }
}

/// A certificate authority of one cluster, for one purpose.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
}

impl Authority {
    /// Mints an authority; `purpose` is part of its name ("peer" or "client").
    pub fn mint(cluster: ClusterId, purpose: &str, now: SystemTime) -> Result<Self, CertError> {
        let mut params = Self::params(cluster, purpose);
        Validity::authority(now).apply(&mut params);
        let make = || {
            let key = KeyPair::generate()?;
            let cert_pem = params.self_signed(&key)?.pem();
            Ok(Self { issuer: Issuer::new(params, key), cert_pem })
        };
        make().map_err(|cause| CertError::Make { what: Self::name(cluster, purpose), cause })
    }

    /// The authority that was minted for the same cluster and purpose, from what [`issued`](Self::issued) gave.
    pub fn from_pem(cluster: ClusterId, purpose: &str, cert_pem: String, key_pem: &str) -> Result<Self, CertError> {
        let name = Self::name(cluster, purpose);
        let wrong = |found: &str| CertError::NotTheAuthority { expected: name.clone(), found: found.into() };
        let key = KeyPair::from_pem(key_pem).map_err(|cause| CertError::Make { what: name.clone(), cause })?;
        let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|_| wrong("no certificate in PEM"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&cert).map_err(|_| wrong("it cannot be parsed"))?;
        let subject = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        if subject != Some(name.as_str()) {
            return Err(wrong(subject.unwrap_or("no name")));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(wrong("a certificate of another key"));
        }
        Ok(Self { issuer: Issuer::new(Self::params(cluster, purpose), key), cert_pem })
    }

    fn name(cluster: ClusterId, purpose: &str) -> String {
        format!("unibus {purpose} CA {cluster}")
    }

    fn params(cluster: ClusterId, purpose: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&Self::name(cluster, purpose));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    /// The authority's certificate.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The authority's certificate and key.
    pub fn issued(&self) -> Issued {
        Issued { cert_pem: self.cert_pem.clone(), key_pem: self.issuer.key().serialize_pem().into() }
    }

    /// A certificate for a node's peer port, for both directions.
    pub fn issue_peer(&self, cluster: ClusterId, node: NodeId, validity: Validity) -> Result<Issued, CertError> {
        let names = [(Some(peer_server_name(cluster, node)), None), (None, Some(peer_uri(cluster, node)))];
        let san = names.into_iter().flat_map(|(dns, uri)| {
            [dns.map(|name| name.try_into().map(SanType::DnsName)), uri.map(|name| name.try_into().map(SanType::URI))]
        });
        let usages = [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(&format!("node {node} of {cluster}"), san.flatten().collect(), &usages, validity)
    }

    /// A certificate for a server that is reached under `names` (DNS names or IP addresses).
    pub fn issue_server(&self, names: &[String], validity: Validity) -> Result<Issued, CertError> {
        let san = names.iter().map(|name| match name.parse::<IpAddr>() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => name.as_str().try_into().map(SanType::DnsName),
        });
        let what = names.first().map_or("server", String::as_str);
        self.issue(what, san.collect(), &[ExtendedKeyUsagePurpose::ServerAuth], validity)
    }

    fn issue(
        &self,
        what: &str,
        names: Result<Vec<SanType>, rcgen::Error>,
        usages: &[ExtendedKeyUsagePurpose],
        validity: Validity,
    ) -> Result<Issued, CertError> {
        let make = || {
            let mut params = CertificateParams::default();
            params.distinguished_name = common_name(what);
            params.subject_alt_names = names?;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = usages.to_vec();
            params.use_authority_key_identifier_extension = true;
            validity.apply(&mut params);
            let key = KeyPair::generate()?;
            let cert = params.signed_by(&key, &self.issuer)?;
            Ok(Issued { cert_pem: cert.pem(), key_pem: key.serialize_pem().into() })
        };
        make().map_err(|cause| CertError::Make { what: what.into(), cause })
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// What a peer certificate stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerName {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// The URI in a node's peer certificate.
pub fn peer_uri(cluster: ClusterId, node: NodeId) -> String {
    format!("unibus://{cluster}/node/{node}")
}

/// The DNS name in a node's peer certificate, and the server name that its peers ask for.
pub fn peer_server_name(cluster: ClusterId, node: NodeId) -> String {
    format!("node-{node}.{cluster}.unibus")
}

/// Whom a peer certificate stands for. Anything but exactly one well-formed URI is refused.
pub fn peer_name(certificate: &CertificateDer<'_>) -> Result<PeerName, CertError> {
    let not_a_peer = |found: &str| CertError::NotAPeer { found: found.into() };
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| not_a_peer("it cannot be parsed"))?;
    let names = parsed.subject_alternative_name().map_err(|_| not_a_peer("its names cannot be parsed"))?;
    let names = names.ok_or_else(|| not_a_peer("no alternative names"))?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next().ok_or_else(|| not_a_peer("no URI"))?;
    if uris.next().is_some() {
        return Err(not_a_peer("several URIs"));
    }
    parse_peer_uri(uri).ok_or_else(|| not_a_peer(&format!("URI {uri:?}")))
}

fn parse_peer_uri(uri: &str) -> Option<PeerName> {
    let (cluster, node) = uri.strip_prefix("unibus://")?.split_once("/node/")?;
    let name = PeerName { cluster: cluster.parse().ok()?, node: NodeId(node.parse().ok()?) };
    // Exactly the form that we write: no upper case, no leading zeros, no plus sign, no node 0.
    (name.node.0 > 0 && uri == peer_uri(name.cluster, name.node)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([0xab; 16]);

    #[test]
    fn a_peer_certificate_names_its_node() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let authority = Authority::mint(CLUSTER, "peer", now).expect("minted");
        let issued = authority.issue_peer(CLUSTER, NodeId(7), Validity::leaf(now)).expect("issued");
        let cert = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).expect("PEM");
        assert_eq!(peer_name(&cert).expect("a peer"), PeerName { cluster: CLUSTER, node: NodeId(7) });
        let server = authority.issue_server(&["localhost".into(), "127.0.0.1".into()], Validity::leaf(now));
        let cert = CertificateDer::from_pem_slice(server.expect("issued").cert_pem.as_bytes()).expect("PEM");
        assert!(peer_name(&cert).expect_err("no URI").to_string().contains("no URI"));
    }

    #[test]
    fn an_authority_that_was_read_again_issues_as_before() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let minted = Authority::mint(CLUSTER, "peer", now).expect("minted");
        let Issued { cert_pem, key_pem } = minted.issued();
        let read = Authority::from_pem(CLUSTER, "peer", cert_pem.clone(), &key_pem).expect("read");
        let issued = read.issue_peer(CLUSTER, NodeId(7), Validity::leaf(now)).expect("issued");
        let (leaf, ca) = [&issued.cert_pem, &cert_pem].map(|pem| CertificateDer::from_pem_slice(pem.as_bytes())).into();
        let (leaf, ca) = (leaf.expect("PEM"), ca.expect("PEM"));
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).expect("parsed");
        let (_, ca) = x509_parser::parse_x509_certificate(&ca).expect("parsed");
        assert_eq!(leaf.issuer(), ca.subject());
        let other = Authority::mint(CLUSTER, "peer", now).expect("minted").issued();
        assert!(Authority::from_pem(CLUSTER, "peer", other.cert_pem, &key_pem).is_err(), "another key");
        assert!(Authority::from_pem(CLUSTER, "client", cert_pem, &key_pem).is_err(), "another purpose");
    }

    #[test]
    fn only_the_written_form_of_the_uri_is_read() {
        let good = peer_uri(CLUSTER, NodeId(12));
        assert_eq!(parse_peer_uri(&good), Some(PeerName { cluster: CLUSTER, node: NodeId(12) }));
        for bad in [
            good.to_uppercase(),
            good.replace("/12", "/012"),
            good.replace("/12", "/+12"),
            good.replace("/12", "/0"),
            good.replace("/12", ""),
            format!("{good}/"),
            format!("{good}\0"),
            good.replace("unibus:", "spiffe:"),
        ] {
            assert_eq!(parse_peer_uri(&bad), None, "{bad}");
        }
    }
}
