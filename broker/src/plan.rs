//! From a list of hosts to a cluster: `unibus-node plan`, and the first half of `unibus-node dev`.
//!
//! A plan is minted once: cluster id, node ids, two authorities, and a folder per node with all that
//! its host needs (`folder.rs`). The folder of the authorities stays with the operator; with it, a node
//! can be added later (`extend.rs`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use prost::Message;
use serde::Deserialize;
use unibus_proto::id::{ClusterId, NodeId};
use unibus_proto::limits::{NODES_MAX, SHARDS_DEFAULT, SHARDS_MAX};
use unibus_proto::log::{ClusterInit, PlannedNode};
use unibus_proto::signed::sha256;
use unibus_raft_store::env::Rng;

use crate::certs::{Authority, CertError};
use crate::config;

mod extend;
mod folder;

use extend::Ledger;
pub use extend::{add_host, extend, is_plan};
use folder::NewNode;
pub(crate) use folder::{create_dir, write_file};

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
    /// The folder of the authorities is not whole.
    #[error("read {}: {cause}; the plan's own `ca` folder is needed to add a node", path.display())]
    Ledger {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
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

impl Host {
    /// A host with the default ports.
    pub fn new(name: &str, host: &str) -> Self {
        Self {
            name: name.into(),
            host: host.into(),
            peer_port: PEER_PORT,
            client_port: CLIENT_PORT,
            admin_port: ADMIN_PORT,
            data_dir: default_data_dir(),
        }
    }

    fn check(&self) -> Result<(), PlanError> {
        let invalid = |what: &str, found: &str, expected: &str| {
            Err(PlanError::Invalid { what: what.into(), found: format!("{found:?}"), expected: expected.into() })
        };
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let has_letter = self.name.chars().any(|c| c.is_ascii_lowercase());
        if !has_letter || self.name.len() > 32 || !self.name.chars().all(word) || self.name == "ca" {
            return invalid("node.name", &self.name, "1 to 32 of a-z 0-9 -, with a letter, other than \"ca\"");
        }
        if self.host.is_empty() || self.host.contains(['/', ' ', '*']) {
            return invalid("node.host", &self.host, "a DNS name or an IP address");
        }
        Ok(())
    }
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
            host.check()?;
            if !names.insert(&host.name) {
                return invalid("node.name", format!("{:?} twice", host.name), "a name of its own for each node");
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
    Ledger::of(&plan, &cluster.node).save(out)?;
    for ((host, node), key) in cluster.node.iter().zip(&plan.nodes).zip(&keys) {
        NewNode { plan: &plan, host, node, key, join: false }.write(out, &authorities, now, tuning)?;
    }
    Ok(plan)
}

fn mint(cluster: &ClusterFile, rng: &impl Rng) -> (Plan, Vec<SigningKey>) {
    let mut id = [0; 16];
    rng.fill(&mut id);
    let minted = cluster.node.iter().zip(1..).map(|(host, id)| mint_node(host, NodeId(id), rng));
    let (nodes, keys) = minted.unzip();
    (Plan { cluster: ClusterId(id), shards: cluster.shards, nodes }, keys)
}

fn mint_node(host: &Host, id: NodeId, rng: &impl Rng) -> (PlanNode, SigningKey) {
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    rng.fill(&mut *seed);
    let key = SigningKey::from_bytes(&seed);
    let node = PlanNode {
        id,
        name: host.name.clone(),
        peer_address: config::join_address(&host.host, host.peer_port),
        client_address: config::join_address(&host.host, host.client_port),
        sign_key: key.verifying_key().to_bytes(),
    };
    (node, key)
}

/// Reads `cluster.toml`.
pub fn read_cluster_file(path: &Path) -> Result<ClusterFile, config::ConfigError> {
    let text = fs::read_to_string(path).map_err(|cause| config::ConfigError::Read { path: path.into(), cause })?;
    config::parse(&text, path, config::CLUSTER_KEYS, &[])
}
