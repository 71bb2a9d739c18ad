//! What a node hands to its service.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use unibus_proto::log::PlannedNode;
use unibus_raft_store::env::Env;
use unibus_raft_store::{Identity, Store};

use crate::members::Members;

/// Everything that a [`Service`](super::Service) is made of.
pub struct ServiceParts<E: Env> {
    /// Clock, randomness, tasks, network.
    pub env: E,
    /// All groups of this node, opened.
    pub store: Store<E>,
    /// The cluster, this node and its directory.
    pub identity: Identity,
    /// The nodes as planned, this one included: whom to talk to, and what `GetTopology` answers until
    /// the registry in meta is there.
    pub nodes: Vec<PlannedNode>,
    /// Countersigns tokens; its public half stands in the registry.
    pub sign_key: SigningKey,
    /// Version of the program, for `GetStatus`.
    pub version: String,
    /// Who belongs to the cluster.
    pub members: Arc<Members<E>>,
    /// What only the node itself knows.
    pub vitals: Arc<dyn Vitals>,
}

/// What the service tells about its node but does not own.
pub trait Vitals: Send + Sync + 'static {
    /// Bytes of the data directory.
    fn disk_used_bytes(&self) -> u64;
    /// Bytes that can still be written there.
    fn disk_free_bytes(&self) -> u64;
    /// Duration of the last fsync of the log, in microseconds.
    fn last_fsync_us(&self) -> u64;
    /// Why the node is not ready; empty when it is.
    fn not_ready(&self) -> Vec<String>;
}

/// [`Vitals`] of a node that knows nothing of its disk: tests and simulations.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoVitals;

impl Vitals for NoVitals {
    fn disk_used_bytes(&self) -> u64 {
        0
    }
    fn disk_free_bytes(&self) -> u64 {
        0
    }
    fn last_fsync_us(&self) -> u64 {
        0
    }
    fn not_ready(&self) -> Vec<String> {
        Vec::new()
    }
}
