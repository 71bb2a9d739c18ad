//! From a configuration file to everything that a node starts with. `run` and `check-config` share it,
//! so that what the check passes also starts.
#![allow(clippy::disallowed_methods)] // Production only: sockets, names, the date.

use std::fs;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ed25519_dalek::SigningKey;
use rustls_pki_types::CertificateDer;
use unibus_proto::id::NodeId;
use unibus_proto::v1::ConfigValue;
use unibus_raft_store::StoreConfig;

use crate::certs::{self, PeerName};
use crate::config::{self, NodeFile};
use crate::plan::Plan;
use crate::telemetry::LogFormat;
use crate::tls::{self, Material};

/// Everything that a node starts with.
pub struct Resolved {
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// What all nodes agree on.
    pub plan: Plan,
    /// The cluster is there already, and is asked to take this node in.
    pub join: bool,
    /// Its data.
    pub data_dir: PathBuf,
    /// QUIC listener.
    pub listen_peer: SocketAddr,
    /// gRPC listener.
    pub listen_client: SocketAddr,
    /// Health and metrics.
    pub listen_admin: SocketAddr,
    /// For the peer port.
    pub peer_tls: Material,
    /// For the client port.
    pub client_tls: rustls::ServerConfig,
    /// Countersigns tokens.
    pub sign_key: SigningKey,
    /// Heartbeat, least and greatest election timeout, where they differ from the defaults.
    pub timing: Option<[std::time::Duration; 3]>,
    /// Bytes of the first datagrams.
    pub initial_mtu: Option<u16>,
    /// What the store is opened with; directory and timing follow.
    pub store: StoreConfig,
    /// When each certificate expires, in seconds since the Unix epoch.
    pub certificates_expire: Vec<(&'static str, i64)>,
    /// Every key of the configuration with its origin, for those who ask the node; left to the caller.
    pub effective: Vec<ConfigValue>,
}

/// Loads and checks everything that `file` names, which lies at `path`. All problems are found at once.
pub fn resolve(path: &Path, file: &NodeFile) -> Result<Resolved, Vec<String>> {
    let mut problems = Problems::default();
    let base = path.parent().unwrap_or(Path::new("."));
    let at = |name: &Path| base.join(name);
    let plan = problems.take(file.plan());
    let [listen_peer, listen_client, listen_admin] =
        ["listen.peer", "listen.client", "listen.admin"].map(|key| problems.take(file.listen_address(key)));
    if let Some(address) = listen_admin.filter(|address| !address.ip().is_loopback()) {
        problems.add(format!("listen.admin: found {address}, expected a loopback address: it has no access control"));
    }
    let timing = problems.take(file.timing());
    let store = problems.take(file.store.config());
    problems.take(log_format(file));
    let tls = &file.tls;
    let peer_tls = problems.take(Material::load(&at(&tls.peer_cert), &at(&tls.peer_key), &at(&tls.peer_ca)));
    let client = problems.take(Material::load(&at(&tls.client_cert), &at(&tls.client_key), &at(&tls.client_ca)));
    let sign_key = problems.take(config::read_sign_key(&at(&tls.sign_key)));
    let client_tls = client.as_ref().and_then(|material| problems.take(tls::client_server(material)));
    problems.take(check_private_dir(&at(&file.data_dir)));
    let mut certificates_expire = Vec::new();
    if let Some(material) = &peer_tls {
        problems.take(tls::peer_server(material).map(drop));
        certificates_expire.extend(problems.check_dates("tls.peer_cert", &material.chain).map(|at| ("peer", at)));
        if let Some(plan) = &plan {
            problems.take(check_peer_name(plan, file.node_id, material));
        }
    }
    if let Some(material) = &client {
        certificates_expire.extend(problems.check_dates("tls.client_cert", &material.chain).map(|at| ("client", at)));
    }
    if let (Some(plan), Some(key)) = (&plan, &sign_key) {
        problems.take(check_sign_key(plan, file.node_id, key));
    }
    let resolved = || {
        Some(Resolved {
            node: NodeId(file.node_id),
            name: file.name.clone(),
            plan: plan?,
            join: file.join,
            data_dir: at(&file.data_dir),
            listen_peer: listen_peer?,
            listen_client: listen_client?,
            listen_admin: listen_admin?,
            peer_tls: peer_tls?,
            client_tls: client_tls?,
            sign_key: sign_key?,
            timing: timing?,
            initial_mtu: file.quic.as_ref().and_then(|quic| quic.initial_mtu),
            store: store?,
            certificates_expire,
            effective: Vec::new(),
        })
    };
    if problems.0.is_empty() { resolved().ok_or(problems.0) } else { Err(problems.0) }
}

/// What to do about an address that cannot be listened on.
pub(crate) fn bind_remedy(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrNotAvailable => {
            "this host does not have that address: is this folder for another host?"
        }
        std::io::ErrorKind::PermissionDenied => "choose a port above 1023, or allow this user the low ones",
        _ => "stop what listens there (this node?), or choose another port",
    }
}

/// What else `check-config` looks at: names and ports. A node starts without its peers' names, and its
/// ports are taken while it runs.
pub fn check_surroundings(resolved: &Resolved) -> Vec<String> {
    let mut problems = Problems::default();
    for node in &resolved.plan.nodes {
        for address in [&node.peer_address, &node.client_address] {
            let found = address.to_socket_addrs().map(|mut addresses| addresses.next());
            match found {
                Ok(Some(_)) => {}
                Ok(None) => problems.add(format!("node {} at {address}: the name has no address", node.name)),
                Err(error) => problems.add(format!("node {} at {address}: {error}; check DNS or hosts", node.name)),
            }
        }
    }
    let taken = |what: &str, address: SocketAddr, error: std::io::Error| {
        format!("{what} {address}: {error}; {}", bind_remedy(&error))
    };
    if let Err(error) = UdpSocket::bind(resolved.listen_peer) {
        problems.add(taken("listen.peer (UDP)", resolved.listen_peer, error));
    }
    for (what, address) in [("listen.client", resolved.listen_client), ("listen.admin", resolved.listen_admin)] {
        if let Err(error) = TcpListener::bind(address) {
            problems.add(taken(what, address, error));
        }
    }
    problems.0
}

/// How the file wants logs to look.
pub fn log_format(file: &NodeFile) -> Result<LogFormat, String> {
    match file.log_format.as_deref() {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => Err(format!("log_format: found {other:?}, expected \"text\" or \"json\"")),
    }
}

fn check_peer_name(plan: &Plan, node: u64, material: &Material) -> Result<(), String> {
    let found = certs::peer_name(&material.chain[0]).map_err(|error| format!("tls.peer_cert: {error}"))?;
    let expected = PeerName { cluster: plan.cluster, node: NodeId(node) };
    if found == expected {
        return Ok(());
    }
    Err(format!(
        "tls.peer_cert: found node {} of cluster {}, expected node {node} of cluster {}; copy this node's own folder",
        found.node, found.cluster, plan.cluster
    ))
}

/// The directory holds messages and the local socket: nobody else may look into it. A missing one is made
/// with the right mode.
fn check_private_dir(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => Err(format!("data_dir: {} is no directory", path.display())),
        Ok(found) if found.permissions().mode() & 0o077 != 0 => {
            let mode = found.permissions().mode() & 0o777;
            Err(format!(
                "data_dir: mode of {path} is {mode:o}, expected 700 or stricter, it holds messages: run chmod 700 {path}",
                path = path.display()
            ))
        }
        _ => Ok(()),
    }
}

fn check_sign_key(plan: &Plan, node: u64, key: &SigningKey) -> Result<(), String> {
    let planned = plan.node(NodeId(node)).map(|node| node.sign_key);
    if planned == Some(key.verifying_key().to_bytes()) {
        return Ok(());
    }
    Err("tls.sign_key: it does not belong to cluster.node.sign_key of this node; copy this node's own folder".into())
}

#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: String) {
        self.0.push(problem);
    }

    fn take<T, E: std::fmt::Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(error.to_string())).ok()
    }

    /// When the leaf expires.
    fn check_dates(&mut self, key: &str, chain: &[CertificateDer<'_>]) -> Option<i64> {
        let Some(Ok((_, leaf))) = chain.first().map(|leaf| x509_parser::parse_x509_certificate(leaf)) else {
            self.add(format!("{key}: the certificate cannot be parsed"));
            return None;
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (from, to) = (leaf.validity().not_before, leaf.validity().not_after);
        if from.timestamp() > now.cast_signed() || to.timestamp() < now.cast_signed() {
            self.add(format!("{key}: valid from {from} to {to}, which is not now; renew it, or set the clock"));
        }
        Some(to.timestamp())
    }
}
