//! The openraft types of unibus, for any [`Env`].
//!
//! Nothing here is ever serialised by openraft: disk and wire go through [`crate::codec`].

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use openraft::impls::{BoxedErrorSource, InlineBatch, ProgressResponder, leader_id_adv};
use openraft::{OptionalSend, RaftTypeConfig};
use unibus_proto::id::{DirectoryId, NodeId};
use unibus_proto::log;

use crate::env::Env;

/// The openraft configuration of an environment.
pub struct TypeConfig<E>(PhantomData<fn() -> E>);

impl<E> fmt::Debug for TypeConfig<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypeConfig")
    }
}

impl<E> Clone for TypeConfig<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for TypeConfig<E> {}

impl<E> Default for TypeConfig<E> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E> PartialEq for TypeConfig<E> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<E> Eq for TypeConfig<E> {}

impl<E> PartialOrd for TypeConfig<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for TypeConfig<E> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

impl<E: Env> RaftTypeConfig for TypeConfig<E> {
    type D = Proposal;
    type R = Answer;
    type NodeId = NodeId;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = E::Rt;
    type Responder<T>
        = ProgressResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// Term and node of a leader: openraft allows several leaders in one term.
pub type LeaderId = leader_id_adv::LeaderId<u64, NodeId>;
/// A position in a group's log.
pub type LogId = openraft::LogId<LeaderId>;
/// A vote.
pub type Vote = openraft::Vote<LeaderId>;
/// What a log entry carries.
pub type Payload = openraft::EntryPayload<Proposal, NodeId, Member>;
/// A log entry.
pub type Entry = openraft::Entry<LeaderId, Payload>;
/// Voters and learners of a group.
pub type Membership = openraft::Membership<NodeId, Member>;
/// A membership with the position of its entry.
pub type StoredMembership = openraft::StoredMembership<LeaderId, NodeId, Member>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::SnapshotMeta<LeaderId, NodeId, Member>;
/// The handle of a group's Raft, with its state machine.
pub type Raft<E, SM> = openraft::Raft<TypeConfig<E>, SM>;

/// The position `index` in the log, written by the leader `node` of `term`.
pub fn log_id(term: u64, node: NodeId, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: node }, index }
}

/// An encoded [`log::Proposal`]: what a normal entry carries.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proposal of {} bytes", self.0.len())
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What `apply` answered; empty for entries that carry no proposal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer(pub log::Reply);

/// A member of a group: which directory (disk) stands behind its node id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// The uuid that the node minted for its data directory.
    pub directory: DirectoryId,
}
