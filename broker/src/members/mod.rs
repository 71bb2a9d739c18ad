//! Who belongs to the cluster: the registry of nodes as this node knows it, who may open streams, and the
//! one reconciler that makes every group's membership what the registry says (ARCHITECTURE section 9).
//!
//! The registry stands in meta. A node that was away may know an old one, in which the node that now
//! leads meta does not occur; so the nodes tell each other the newest registry that they know, and the
//! newest one rules ([`Members::registry`]).
//!
//! - [`decide`] what the next step of a group is, pure;
//! - [`reconcile`] carries it out, on the leader of meta;
//! - [`join`] a node that is no member yet asks to be taken in;
//! - [`watch`] what each node does with a new registry: whom to talk to, whom to cut off, when to lead nothing.

pub mod decide;
pub mod join;
pub mod reconcile;
pub mod watch;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError, RwLock};

use unibus_proto::id::{DirectoryId, GroupId, NodeId};
use unibus_proto::log::PlannedNode;
use unibus_proto::peer::Registry;
use unibus_proto::peer::stream_open::Purpose;
use unibus_proto::row::NodeRow;
use unibus_proto::v1::NodeState;
use unibus_raft_store::env::Env;
use unibus_raft_store::{Group, Identity, Store};

use join::Askers;

/// What is known of the cluster's nodes.
pub struct Members<E: Env> {
    identity: Identity,
    meta: Group<E>,
    planned: Vec<PlannedNode>,
    /// The newest registry that another node told.
    told: RwLock<Registry>,
    askers: Mutex<Askers<E>>,
    /// Why this node is no member any more.
    removed: RwLock<Option<String>>,
    /// On the leader of meta: what the changes under way wait for.
    moving: RwLock<Vec<String>>,
}

/// What the registry says of who opens a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A member, on its own disk.
    Member,
    /// It must not take part; why, as a stable lower-case word and a text.
    Refused(String),
    /// There is no registry yet.
    Unformed,
}

impl<E: Env> Members<E> {
    /// Of a node that has just been opened. None when the store has no groups.
    pub fn new(identity: Identity, store: &Store<E>, planned: Vec<PlannedNode>) -> Option<Self> {
        Some(Self {
            identity,
            meta: store.group(GroupId::META)?,
            planned,
            told: RwLock::default(),
            askers: Mutex::default(),
            removed: RwLock::default(),
            moving: RwLock::default(),
        })
    }

    /// The newest registry that this node knows; of version 0 while it knows none.
    pub fn registry(&self) -> Registry {
        let told = self.told.read().unwrap_or_else(PoisonError::into_inner);
        let version = self.meta.view(|machine| machine.nodes_version());
        if told.version > version {
            return told.clone();
        }
        drop(told);
        self.meta.view(|machine| Registry { version: machine.nodes_version(), nodes: machine.node_rows() })
    }

    /// Its version, which is cheaper to ask for.
    pub fn version(&self) -> u64 {
        let told = self.told.read().unwrap_or_else(PoisonError::into_inner).version;
        told.max(self.meta.view(|machine| machine.nodes_version()))
    }

    /// Takes note of the registry that a member told.
    pub fn learn(&self, registry: Option<&Registry>) {
        let Some(registry) = registry else { return };
        let mut told = self.told.write().unwrap_or_else(PoisonError::into_inner);
        if registry.version > told.version {
            *told = registry.clone();
        }
    }

    /// What is wanted of a node; none when it is not known.
    pub fn state_of(&self, node: NodeId) -> Option<NodeState> {
        self.registry().nodes.iter().find(|row| id_of(row) == node).map(state)
    }

    /// Whether this node is a member, with this very directory.
    pub fn has_us(&self) -> bool {
        let is_us =
            |row: &NodeRow| id_of(row) == self.identity.node && directory_of(row) == Some(self.identity.directory);
        self.registry().nodes.iter().any(is_us)
    }

    /// The nodes to talk to, with what the plan adds while the registry does not know better.
    pub fn present(&self) -> BTreeMap<NodeId, PlannedNode> {
        let mut present: BTreeMap<_, _> =
            self.planned.iter().map(|node| (NodeId(node.node_id), node.clone())).collect();
        for row in self.registry().nodes {
            match (state(&row), row.node) {
                (NodeState::Removed, Some(node)) => drop(present.remove(&NodeId(node.node_id))),
                (_, Some(node)) => drop(present.insert(NodeId(node.node_id), node)),
                (_, None) => {}
            }
        }
        present
    }

    /// Whether a stream of `peer`, whose data directory is `directory`, may be accepted for `purpose`, as
    /// far as the registry can tell.
    pub fn judge(&self, peer: NodeId, directory: DirectoryId, purpose: &Purpose) -> Standing {
        if matches!(purpose, Purpose::Join(_) | Purpose::Formation(_)) {
            return Standing::Member;
        }
        let registry = self.registry();
        if registry.version == 0 {
            return Standing::Unformed;
        }
        let row = registry.nodes.iter().find(|row| id_of(row) == peer);
        match row {
            None => Standing::Refused(format!("unknown: node {peer} is no member of this cluster")),
            Some(row) if state(row) == NodeState::Removed => {
                Standing::Refused(format!("{REMOVED}{}", removed_text(peer, row)))
            }
            Some(row) if directory_of(row) == Some(directory) => Standing::Member,
            Some(_) => Standing::Refused(format!(
                "directory: node {peer} has {directory}, which is not the disk that the cluster knows of it"
            )),
        }
    }

    /// Why this node is no member any more.
    pub fn removed(&self) -> Option<String> {
        self.removed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the changes under way wait for; told by the leader of meta only.
    pub fn moving(&self) -> Vec<String> {
        self.moving.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_moving(&self, moving: Vec<String>) {
        *self.moving.write().unwrap_or_else(PoisonError::into_inner) = moving;
    }
}

/// The stable word with which a removed node is refused.
const REMOVED: &str = "removed: ";

fn removed_text(node: NodeId, row: &NodeRow) -> String {
    let by = if row.replaced_by == 0 { String::new() } else { format!(", node {} is in its place", row.replaced_by) };
    format!("node {node} was removed from the cluster{by}; its id is never used again")
}

/// The node of a row.
pub fn id_of(row: &NodeRow) -> NodeId {
    NodeId(row.node.as_ref().map_or(0, |node| node.node_id))
}

/// What is wanted of it.
pub fn state(row: &NodeRow) -> NodeState {
    match row.state() {
        NodeState::Unspecified => NodeState::Voter,
        state => state,
    }
}

fn directory_of(row: &NodeRow) -> Option<DirectoryId> {
    DirectoryId::from_bytes(&row.node.as_ref()?.directory_id).ok()
}
