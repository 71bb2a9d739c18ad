//! Configuration: `node.toml`, then `UNIBUS_NODE_*` of the environment, then flags; the last one rules.
//! A key that nobody knows is an error that names the nearest one.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use unibus_proto::id::{ClusterId, NodeId};
use unibus_proto::limits::SHARDS_MAX;

use crate::plan::{Plan, PlanNode};
use crate::tls;

mod effective;
mod keys;
mod store;

pub use store::StoreSection;

pub use effective::effective;
pub use keys::{CLUSTER_KEYS, ENV_PREFIX, NODE_KEYS, Override, env_overrides, parse};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It is no TOML, or a value has the wrong type.
    #[error("{}: {cause}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        cause: String,
    },
    /// A key or variable that nobody knows.
    #[error("{place}: unknown key {key:?}{suggestion}")]
    UnknownKey {
        /// File, or "environment".
        place: String,
        /// The key.
        key: String,
        /// "; did you mean ...?" or nothing.
        suggestion: String,
    },
    /// A value that cannot be.
    #[error("{key}: found {found}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// What it says.
        found: String,
        /// What it may say.
        expected: String,
    },
}

/// `node.toml`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFile {
    /// This node.
    pub node_id: u64,
    /// Its name.
    pub name: String,
    /// The cluster is there already, and is asked to take this node in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub join: bool,
    /// Its data; relative to the file.
    pub data_dir: PathBuf,
    /// Log filter, e.g. "info" or "unibus_broker=debug".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// "text" or "json".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<String>,
    /// Where it listens.
    pub listen: Listen,
    /// Its keys and certificates.
    #[serde(default)]
    pub tls: TlsFiles,
    /// Raft's timing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing: Option<TimingSection>,
    /// The peer network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicSection>,
    /// Sizes of the store.
    #[serde(default, skip_serializing_if = "StoreSection::is_default")]
    pub store: StoreSection,
    /// What all nodes agree on.
    pub cluster: ClusterSection,
}

/// Listening addresses.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// QUIC (UDP).
    pub peer: String,
    /// gRPC (TCP).
    pub client: String,
    /// Health and metrics (TCP, loopback only).
    pub admin: String,
}

/// Key and certificate files; relative to `node.toml`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct TlsFiles {
    pub peer_cert: PathBuf,
    pub peer_key: PathBuf,
    pub peer_ca: PathBuf,
    pub client_cert: PathBuf,
    pub client_key: PathBuf,
    pub client_ca: PathBuf,
    pub sign_key: PathBuf,
}

impl Default for TlsFiles {
    fn default() -> Self {
        Self {
            peer_cert: "peer.crt".into(),
            peer_key: "peer.key".into(),
            peer_ca: "peer-ca.crt".into(),
            client_cert: "client.crt".into(),
            client_key: "client.key".into(),
            client_ca: "client-ca.crt".into(),
            sign_key: "sign.key".into(),
        }
    }
}

/// Raft's timing.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TimingSection {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub election_min_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub election_max_ms: Option<u64>,
}

/// The peer network.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct QuicSection {
    /// Bytes of the first datagrams, 1200 to 65000; set it only where the path is known to carry them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_mtu: Option<u16>,
}

/// What all nodes agree on: written by `unibus-node plan`, the same in each folder.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSection {
    /// The cluster's id.
    pub id: String,
    /// Shard groups.
    pub shards: u32,
    /// The nodes.
    pub node: Vec<NodeSection>,
}

/// A node of the plan.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct NodeSection {
    pub id: u64,
    pub name: String,
    pub peer: String,
    pub client: String,
    pub sign_key: String,
}

impl From<&PlanNode> for NodeSection {
    fn from(node: &PlanNode) -> Self {
        Self {
            id: node.id.0,
            name: node.name.clone(),
            peer: node.peer_address.clone(),
            client: node.client_address.clone(),
            sign_key: hex::encode(node.sign_key),
        }
    }
}

/// Reads `node.toml` with what stands over it.
pub fn load(path: &Path, overrides: &[Override]) -> Result<NodeFile, ConfigError> {
    let text = fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.into(), cause })?;
    parse(&text, path, NODE_KEYS, overrides)
}

/// `host:port`, with brackets around an IPv6 address.
pub fn join_address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl NodeFile {
    /// As TOML, with a first line that says what it is.
    pub fn to_toml(&self) -> String {
        let body = toml::to_string(self).expect("plain tables of strings and numbers");
        format!("# unibus node {} ({}). Written by `unibus-node plan`.\n{body}", self.node_id, self.name)
    }

    /// The plan in it.
    pub fn plan(&self) -> Result<Plan, ConfigError> {
        let value = |key: &str, found: String, expected: &str| ConfigError::Value {
            key: key.into(),
            found,
            expected: expected.into(),
        };
        let cluster: ClusterId = self
            .cluster
            .id
            .parse()
            .map_err(|_| value("cluster.id", format!("{:?}", self.cluster.id), "32 hexadecimal digits"))?;
        let mut nodes = Vec::new();
        for node in &self.cluster.node {
            nodes.push(plan_node(node)?);
        }
        nodes.sort_by_key(|node| node.id);
        if nodes.first().is_none_or(|node| node.id.0 == 0) || nodes.windows(2).any(|pair| pair[0].id == pair[1].id) {
            return Err(value("cluster.node.id", "0, none or one twice".into(), "a number above 0 for each node"));
        }
        if !(1..=SHARDS_MAX).contains(&self.cluster.shards) {
            return Err(value("cluster.shards", self.cluster.shards.to_string(), &format!("1 to {SHARDS_MAX}")));
        }
        if !nodes.iter().any(|node| node.id.0 == self.node_id) {
            return Err(value("node_id", self.node_id.to_string(), "a node of [[cluster.node]]"));
        }
        Ok(Plan { cluster, shards: self.cluster.shards, nodes })
    }

    /// A listening address.
    pub fn listen_address(&self, key: &str) -> Result<SocketAddr, ConfigError> {
        let text = match key {
            "listen.peer" => &self.listen.peer,
            "listen.client" => &self.listen.client,
            _ => &self.listen.admin,
        };
        text.parse().map_err(|_| ConfigError::Value {
            key: key.into(),
            found: format!("{text:?}"),
            expected: "address:port, e.g. 0.0.0.0:7401".into(),
        })
    }

    /// Raft's timing, checked.
    pub fn timing(&self) -> Result<Option<[Duration; 3]>, ConfigError> {
        let Some(timing) = &self.timing else { return Ok(None) };
        let heartbeat = timing.heartbeat_ms.unwrap_or(100);
        let min = timing.election_min_ms.unwrap_or(3 * heartbeat);
        let max = timing.election_max_ms.unwrap_or(2 * min);
        if heartbeat == 0 || min < 2 * heartbeat || max <= min {
            return Err(ConfigError::Value {
                key: "timing".into(),
                found: format!("heartbeat {heartbeat} ms, election {min} to {max} ms"),
                expected: "election_min_ms at least twice heartbeat_ms, and election_max_ms above it".into(),
            });
        }
        Ok(Some([heartbeat, min, max].map(Duration::from_millis)))
    }
}

/// A node of the plan.
pub fn plan_node(node: &NodeSection) -> Result<PlanNode, ConfigError> {
    let mut sign_key = [0; 32];
    hex::decode_to_slice(&node.sign_key, &mut sign_key).map_err(|_| ConfigError::Value {
        key: "cluster.node.sign_key".into(),
        found: format!("{:?}", node.sign_key),
        expected: "64 hexadecimal digits".into(),
    })?;
    Ok(PlanNode {
        id: NodeId(node.id),
        name: node.name.clone(),
        peer_address: node.peer.clone(),
        client_address: node.client.clone(),
        sign_key,
    })
}

/// Reads a node's signing key.
pub fn read_sign_key(path: &Path) -> Result<SigningKey, tls::TlsError> {
    let text = tls::read_private(path)?;
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    hex::decode_to_slice(text.trim_ascii_end(), &mut *seed).map_err(|_| tls::TlsError::Pem {
        path: path.into(),
        expected: "64 hexadecimal digits, not a certificate or key",
        cause: "they are not there".into(),
    })?;
    Ok(SigningKey::from_bytes(&seed))
}
