//! From a list of hosts to a cluster: `unibus-node plan`, and the first half of `unibus-node dev`.
//!
//! A plan is minted once: cluster id, node ids, two authorities, and a folder per node with all that
//! its host needs. The folder of the authorities stays with the operator.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use prost::Message;
use serde::Deserialize;
use unibus_proto::id::{ClusterId, NodeId};
use unibus_proto::limits::{SHARDS_DEFAULT, SHARDS_MAX};
use unibus_proto::log::{ClusterInit, PlannedNode};
use unibus_proto::signed::sha256;
use unibus_raft_store::env::Rng;

use crate::certs::{Authority, CertError, Validity};
use crate::config::{self, ClusterSection, Listen, NodeFile, NodeSection, TlsFiles};

/// Voters of a group; more nodes would have to be learners.
const NODES_MAX: usize = 5;
const PEER_PORT: u16 = 7401;
const CLIENT_PORT: u16 = 7400;
const ADMIN_PORT: u16 = 7402;

/// What all nodes of a cluster agree on before it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The cluster's id.
    pub cluster: ClusterId,
    /// Shard groups.
    pub shards: u32,
    /// The nodes, by id.
    pub nodes: Vec<PlanNode>,
}

/// A node of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanNode {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// host:port of its QUIC listener.
    pub peer_address: String,
    /// host:port of its gRPC listener.
    pub client_address: String,
    /// Public half of its token countersigning key.
    pub sign_key: [u8; 32],
}

impl Plan {
    /// SHA-256 of the plan: nodes with different plans never form a cluster.
    pub fn hash(&self) -> [u8; 32] {
        let init =
            ClusterInit { cluster_id: self.cluster.to_bytes(), shards: self.shards, nodes: self.planned_nodes() };
        sha256(&init.encode_to_vec())
    }

    /// The nodes as the registry stores them; the directories are not known yet.
    pub fn planned_nodes(&self) -> Vec<PlannedNode> {
        let planned = |node: &PlanNode| PlannedNode {
            node_id: node.id.0,
            name: node.name.clone(),
            peer_address: node.peer_address.clone(),
            client_address: node.client_address.clone(),
            sign_key: Bytes::copy_from_slice(&node.sign_key),
            directory_id: Bytes::new(),
        };
        self.nodes.iter().map(planned).collect()
    }

    /// The node that initializes: the one with the lowest id.
    pub fn initializer(&self) -> NodeId {
        self.nodes.iter().map(|node| node.id).min().unwrap_or_default()
    }

    /// A node by id.
    pub fn node(&self, id: NodeId) -> Option<&PlanNode> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// Raft groups: meta and the shards.
    pub fn groups(&self) -> u32 {
        self.shards + 1
    }
}

/// `cluster.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    /// Shard groups, fixed for the cluster's life.
    #[serde(default = "default_shards")]
    pub shards: u32,
    /// The hosts.
    pub node: Vec<Host>,
}

/// A host of `cluster.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Short unique name, e.g. "n1".
    pub name: String,
    /// DNS name or IP address under which peers and clients reach it.
    pub host: String,
    /// UDP port of the QUIC listener.
    #[serde(default = "default_peer_port")]
    pub peer_port: u16,
    /// TCP port of the gRPC listener.
    #[serde(default = "default_client_port")]
    pub client_port: u16,
    /// TCP port of the admin listener, on loopback.
    #[serde(default = "default_admin_port")]
    pub admin_port: u16,
    /// Where it keeps its data; relative paths are relative to its configuration file.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
}

fn default_shards() -> u32 {
    SHARDS_DEFAULT
}
fn default_peer_port() -> u16 {
    PEER_PORT
}
fn default_client_port() -> u16 {
    CLIENT_PORT
}
fn default_admin_port() -> u16 {
    ADMIN_PORT
}
fn default_data_dir() -> PathBuf {
    "/var/lib/unibus".into()
}

/// Why a plan was not made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// `cluster.toml` says something that cannot be.
    #[error("{what}: found {found}, expected {expected}")]
    Invalid {
        /// Which key.
        what: String,
        /// What it says.
        found: String,
        /// What it may say.
        expected: String,
    },
    /// The output exists: a plan is never overwritten, its keys may be in use.
    #[error("{} exists already and is never overwritten: name another directory with --out, or remove it", .0.display())]
    OutputExists(PathBuf),
    /// A file could not be written.
    #[error("write {}: {cause}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] CertError),
}

impl ClusterFile {
    /// Checks everything that `cluster.toml` can get wrong.
    pub fn check(&self) -> Result<(), PlanError> {
        let invalid = |what: &str, found: String, expected: &str| {
            Err(PlanError::Invalid { what: what.into(), found, expected: expected.into() })
        };
        if !(1..=SHARDS_MAX).contains(&self.shards) {
            return invalid("shards", self.shards.to_string(), &format!("1 to {SHARDS_MAX}"));
        }
        if self.node.is_empty() || self.node.len() > NODES_MAX {
            return invalid("[[node]]", format!("{} nodes", self.node.len()), &format!("1 to {NODES_MAX}"));
        }
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for host in &self.node {
            let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if host.name.is_empty() || host.name.len() > 32 || !host.name.chars().all(word) || host.name == "ca" {
                return invalid("node.name", format!("{:?}", host.name), "1 to 32 of a-z 0-9 -, other than \"ca\"");
            }
            if !names.insert(&host.name) {
                return invalid("node.name", format!("{:?} twice", host.name), "a name of its own for each node");
            }
            if host.host.is_empty() || host.host.contains(['/', ' ', '*']) {
                return invalid("node.host", format!("{:?}", host.host), "a DNS name or an IP address");
            }
            if !addresses.insert((&host.host, host.peer_port)) {
                let found = format!("{}:{} twice", host.host, host.peer_port);
                return invalid("node.host and node.peer_port", found, "an address of its own for each node");
            }
        }
        Ok(())
    }

    /// What is allowed but hardly wanted.
    pub fn warnings(&self) -> Vec<String> {
        let survives = self.node.len().saturating_sub(1) / 2;
        match self.node.len() {
            1 => vec!["one node: when it is lost, everything is lost; three survive the loss of any one".into()],
            even if even % 2 == 0 => {
                vec![format!("{even} nodes survive the loss of {survives}, no more than {} do", even - 1)]
            }
            _ => Vec::new(),
        }
    }
}

/// How a plan's nodes differ from the defaults: `dev` sets these.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// Largest datagram that the path is known to carry.
    pub initial_mtu: Option<u16>,
}

/// Mints a plan and writes it to `out`, which must not exist.
pub fn write(cluster: &ClusterFile, out: &Path, rng: &impl Rng, tuning: &Tuning) -> Result<Plan, PlanError> {
    cluster.check()?;
    if out.symlink_metadata().is_ok() {
        return Err(PlanError::OutputExists(out.into()));
    }
    let (plan, keys) = mint(cluster, rng);
    #[allow(clippy::disallowed_methods)] // A tool for operators; simulations do not mint certificates.
    let now = SystemTime::now();
    let authorities = [Authority::mint(plan.cluster, "peer", now)?, Authority::mint(plan.cluster, "client", now)?];
    create_dir(out)?;
    let ca = out.join("ca");
    create_dir(&ca)?;
    for (authority, name) in authorities.iter().zip(["peer-ca", "client-ca"]) {
        let issued = authority.issued();
        write_file(&ca.join(format!("{name}.crt")), issued.cert_pem.as_bytes())?;
        write_file(&ca.join(format!("{name}.key")), issued.key_pem.as_bytes())?;
    }
    for ((host, node), key) in cluster.node.iter().zip(&plan.nodes).zip(&keys) {
        let folder = out.join(&host.name);
        create_dir(&folder)?;
        write_node(&folder, &plan, host, node, &authorities, now)?;
        write_file(&folder.join("sign.key"), format!("{}\n", hex::encode(key.as_bytes())).as_bytes())?;
        let file = node_file(&plan, host, node, tuning);
        write_file(&folder.join("node.toml"), file.to_toml().as_bytes())?;
        write_file(&folder.join("unibus-node.service"), unit(&host.name, &host.data_dir).as_bytes())?;
    }
    Ok(plan)
}

fn mint(cluster: &ClusterFile, rng: &impl Rng) -> (Plan, Vec<SigningKey>) {
    let mut id = [0; 16];
    rng.fill(&mut id);
    let keys: Vec<SigningKey> = cluster
        .node
        .iter()
        .map(|_| {
            let mut seed = zeroize::Zeroizing::new([0; 32]);
            rng.fill(&mut *seed);
            SigningKey::from_bytes(&seed)
        })
        .collect();
    let node = |((host, key), id): ((&Host, &SigningKey), u64)| PlanNode {
        id: NodeId(id),
        name: host.name.clone(),
        peer_address: config::join_address(&host.host, host.peer_port),
        client_address: config::join_address(&host.host, host.client_port),
        sign_key: key.verifying_key().to_bytes(),
    };
    let nodes = cluster.node.iter().zip(&keys).zip(1..).map(node).collect();
    (Plan { cluster: ClusterId(id), shards: cluster.shards, nodes }, keys)
}

fn write_node(
    folder: &Path,
    plan: &Plan,
    host: &Host,
    node: &PlanNode,
    [peer_ca, client_ca]: &[Authority; 2],
    now: SystemTime,
) -> Result<(), PlanError> {
    let peer = peer_ca.issue_peer(plan.cluster, node.id, Validity::leaf(now))?;
    let mut names = vec![host.host.clone()];
    if is_loopback(&host.host) {
        names.extend(["localhost", "127.0.0.1", "::1"].map(String::from).into_iter().filter(|name| *name != host.host));
    }
    let client = client_ca.issue_server(&names, Validity::leaf(now))?;
    let files = [
        ("peer.crt", peer.cert_pem.as_bytes()),
        ("peer.key", peer.key_pem.as_bytes()),
        ("peer-ca.crt", peer_ca.issued().cert_pem.as_bytes()),
        ("client.crt", client.cert_pem.as_bytes()),
        ("client.key", client.key_pem.as_bytes()),
        ("client-ca.crt", client_ca.issued().cert_pem.as_bytes()),
    ]
    .map(|(name, bytes)| (folder.join(name), bytes.to_vec()));
    files.iter().try_for_each(|(path, bytes)| write_file(path, bytes))
}

fn node_file(plan: &Plan, host: &Host, node: &PlanNode, tuning: &Tuning) -> NodeFile {
    let any = match host.host.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) if host.host == "localhost" => "127.0.0.1".into(),
        Err(_) => "0.0.0.0".into(),
    };
    NodeFile {
        node_id: node.id.0,
        name: host.name.clone(),
        data_dir: host.data_dir.clone(),
        log: None,
        log_format: None,
        listen: Listen {
            peer: config::join_address(&any, host.peer_port),
            client: config::join_address(&any, host.client_port),
            admin: config::join_address("127.0.0.1", host.admin_port),
        },
        tls: TlsFiles::default(),
        timing: None,
        quic: tuning.initial_mtu.map(|initial_mtu| config::QuicSection { initial_mtu: Some(initial_mtu) }),
        store: config::StoreSection::default(),
        cluster: ClusterSection {
            id: plan.cluster.to_string(),
            shards: plan.shards,
            node: plan.nodes.iter().map(NodeSection::from).collect(),
        },
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn unit(name: &str, data_dir: &Path) -> String {
    format!(
        "# unibus node {name}: copy this folder to /etc/unibus (owner unibus, files 0600), then\n\
         # useradd --system unibus; install -d -m 700 -o unibus {data_dir}\n\
         # systemctl enable --now /etc/unibus/unibus-node.service\n\
         [Unit]\n\
         Description=unibus node {name}\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         User=unibus\n\
         ExecStart=/usr/local/bin/unibus-node run --config /etc/unibus/node.toml\n\
         Restart=always\n\
         RestartSec=2\n\
         # Leaderships are handed over first.\n\
         TimeoutStopSec=30\n\
         UMask=0077\n\
         LimitNOFILE=65536\n\
         LimitCORE=0\n\
         NoNewPrivileges=yes\n\
         ProtectSystem=strict\n\
         ProtectHome=yes\n\
         PrivateTmp=yes\n\
         ReadWritePaths={data_dir}\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        data_dir = Path::new("/etc/unibus").join(data_dir).display()
    )
}

/// Creates a directory that only its owner may enter.
pub(crate) fn create_dir(path: &Path) -> Result<(), PlanError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|cause| PlanError::Write { path: path.into(), cause })
}

/// Writes a new file that only its owner may read.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), PlanError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|cause| PlanError::Write { path: path.into(), cause })
}

/// Reads `cluster.toml`.
pub fn read_cluster_file(path: &Path) -> Result<ClusterFile, config::ConfigError> {
    let text = fs::read_to_string(path).map_err(|cause| config::ConfigError::Read { path: path.into(), cause })?;
    config::parse(&text, path, config::CLUSTER_KEYS, &[])
}
