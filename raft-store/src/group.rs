//! The handle of one group that everybody above sees: propose, read barrier, local reads, status.
//! openraft ends here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::ServerState;
use openraft::errors::{
    ClientWriteError, ForwardReason, ForwardToLeader, InitializeError, LinearizableReadError, RaftError,
};
use tokio::sync::{Semaphore, mpsc};
use unibus_machine::StoredDelivery;
use unibus_proto::id::{DirectoryId, GroupId, NodeId, RoomId};
use unibus_proto::log;
use unibus_proto::position::Sequence;

use crate::env::{Env, Instant, WatchReceiver, timeout};
use crate::error::StoreError;
use crate::replica::{AppliedEntry, GroupMachine, LogSynced, Replica};
use crate::segment::{SegmentEntry, TimelineError};
use crate::space::Space;
use crate::state::StateMachine;
use crate::tables::StateHash;
use crate::types::{Member, Proposal, Raft, TypeConfig};
use crate::waits::{Waiter, Waits};
use crate::wal::GroupLog;
use crate::watched::WatchReceiverOf;

/// Applied entries that the one subscriber may be behind before `apply` waits for it.
const EVENTS_MAX: usize = 1024;
/// A voter that lags further behind is not handed the leadership: it would have to catch up first.
const TRANSFER_LAG_MAX: u64 = 64;

/// A committed and applied proposal.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// Its log index.
    pub index: u64,
    /// The machine's answer.
    pub reply: log::Reply,
}

/// Why a proposal or a read barrier failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead the group (or not surely any more). Certainly nothing was appended.
    #[error("this node does not lead the group; the leader is {leader:?}")]
    NotLeader {
        /// Who does, if known and not in doubt.
        leader: Option<NodeId>,
    },
    /// The answer was lost: it may or may not be committed.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The group has stopped on this node: it may or may not be committed, and the process must exit.
    #[error("the group has stopped: {0}")]
    Fault(String),
}

/// An index was not applied in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("index {wanted} is not applied in time: this node is at {applied}")]
pub struct NotApplied {
    /// What was waited for.
    pub wanted: u64,
    /// What is applied.
    pub applied: u64,
}

/// What a node is in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Orders the log.
    Leader,
    /// Votes and follows.
    Follower,
    /// Wants to lead.
    Candidate,
    /// Follows without a vote.
    Learner,
    /// Stopped.
    Stopped,
}

/// A group as this node sees it. Indexes are 0 when there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// What this node is in it.
    pub role: Role,
    /// Term.
    pub term: u64,
    /// The leader, if known.
    pub leader: Option<NodeId>,
    /// Last entry of this node's log.
    pub last_index: u64,
    /// Known to be committed.
    pub committed_index: u64,
    /// Applied here.
    pub applied_index: u64,
    /// No longer in the log.
    pub purged_index: u64,
    /// Last entry in the newest snapshot.
    pub snapshot_index: u64,
    /// Last entry in the tables on disk.
    pub checkpoint_index: u64,
    /// Voters, ascending.
    pub voters: Vec<NodeId>,
    /// On the leader: up to where each other member's log is known to agree.
    pub matched: BTreeMap<NodeId, u64>,
    /// State hash at the newest multiple of 256 that was applied, with that index.
    pub state_hash: (u64, [u8; 32]),
    /// Sealed segments that scrubbing found damaged here. What is read from them is checked, and not served.
    pub damaged_segments: Vec<u64>,
}

/// The handle of a group; cheap to clone.
pub struct Group<E: Env>(pub(crate) Arc<Inner<E>>);

pub(crate) struct Inner<E: Env> {
    pub id: GroupId,
    pub node: NodeId,
    pub raft: Raft<E, StateMachine<E>>,
    pub replica: Arc<Replica<E>>,
    pub synced: LogSynced,
    pub log: GroupLog<E>,
    /// Snapshots are never built in two groups at once.
    pub build: Arc<Semaphore>,
    pub space: Arc<Space<E>>,
    pub waits: Waits,
    pub heartbeat: Duration,
}

impl<E: Env> Clone for Group<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Env> Group<E> {
    /// The group.
    pub fn id(&self) -> GroupId {
        self.0.id
    }

    /// Forms the group with these voters. Does nothing in a group that is formed already.
    pub async fn initialize(&self, members: BTreeMap<NodeId, Member>) -> Result<(), StoreError> {
        match self.0.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(StoreError::Raft { group: self.id(), why: format!("initialize: {error}") }),
        }
    }

    /// Whether the group has a first membership on this node.
    pub fn is_initialized(&self) -> bool {
        self.members().next().is_some()
    }

    /// The members of the newest membership that this node knows, with their directories.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, DirectoryId)> {
        let membership = self.0.raft.server_metrics().borrow_watched().membership_config.clone();
        let members: Vec<_> = membership.nodes().map(|(id, member)| (*id, member.directory)).collect();
        members.into_iter()
    }

    /// Proposes an encoded [`log::Proposal`]; returns when it is committed and applied here.
    pub async fn propose(&self, proposal: Bytes) -> Result<Committed, ProposeError> {
        match self.0.raft.client_write(Proposal(proposal)).await {
            Ok(written) => Ok(Committed { index: written.log_id.index, reply: written.data.0 }),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
            Err(RaftError::APIError(lost)) => Err(ProposeError::Unknown(lost.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(ProposeError::Fault(fatal.to_string())),
        }
    }

    /// The index that a linearizable read must wait for; a quorum confirmed that this node leads.
    pub async fn read_index(&self) -> Result<u64, ProposeError> {
        match self.0.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(read.log_id().index),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ProposeError::NotLeader { leader: None })
            }
            Err(RaftError::Fatal(fatal)) => Err(ProposeError::Fault(fatal.to_string())),
        }
    }

    /// Somebody here will wait for what is committed, until the guard is dropped: the leader tells it at once.
    pub fn await_commits(&self) -> Waiter {
        self.0.waits.enter()
    }

    /// Waits until `index` is applied here.
    pub async fn wait_applied(&self, index: u64, patience: Duration) -> Result<(), NotApplied> {
        let mut applied = self.0.replica.applied();
        let now = *applied.borrow_watched();
        if now >= index {
            return Ok(());
        }
        let _waiter = self.await_commits();
        let reached = timeout::<E, _>(patience, applied.wait_until_ge(&index)).await;
        let not_applied = || NotApplied { wanted: index, applied: self.applied_index() };
        reached.and_then(Result::ok).map(drop).ok_or_else(not_applied)
    }

    /// The index that was applied last.
    pub fn applied_index(&self) -> u64 {
        *self.0.replica.applied().borrow_watched()
    }

    /// Reads the machine locally. Keep it short: `apply` waits meanwhile.
    pub fn view<T>(&self, read: impl FnOnce(&GroupMachine) -> T) -> T {
        self.0.replica.view(read)
    }

    /// Everything that is applied from here on, for one consumer; `apply` waits when it is behind. A
    /// later call takes over.
    pub fn subscribe_events(&self) -> mpsc::Receiver<Arc<AppliedEntry>> {
        self.0.replica.subscribe(EVENTS_MAX)
    }

    /// The deliveries of a room from a sequence on: at most `count_max` and `bytes_max` bytes, but one
    /// if there is one. Empty just beyond the head. What is below the room's floor is not served, also
    /// while its segment is still here.
    pub async fn read_timeline(
        &self,
        room: RoomId,
        from: Sequence,
        bytes_max: usize,
        count_max: usize,
    ) -> Result<Vec<StoredDelivery>, TimelineError> {
        let head = self.check_range(room, from)?;
        if from == head.next() {
            return Ok(Vec::new());
        }
        let read = self.0.replica.segments.read(room, from, bytes_max, count_max).await;
        // The floor may have risen meanwhile: then it says why, better than a file that is gone.
        read.or_else(|error| self.check_range(room, from).and(Err(error)))
    }

    /// The head of a room that has `from` on its timeline, or just beyond it.
    fn check_range(&self, room: RoomId, from: Sequence) -> Result<Sequence, TimelineError> {
        let row = self.view(|machine| machine.room(room)).ok_or(TimelineError::NotFound)?;
        let (floor, head) = (Sequence(row.floor), Sequence(row.next_sequence.saturating_sub(1)));
        if (floor..=head.next()).contains(&from) { Ok(head) } else { Err(TimelineError::OutOfRange { floor, head }) }
    }

    /// Length and hash of a sealed segment, for proposing `SegmentSealed`.
    pub fn sealed_segment(&self, segment: u64) -> Option<SegmentEntry> {
        self.0.replica.segments.sealed(segment)
    }

    /// The group as this node sees it.
    pub fn status(&self) -> GroupStatus {
        let metrics = self.0.raft.metrics().borrow_watched().clone();
        let (hashed, hash) = self.0.replica.hash_at_interval();
        let index = |id: Option<crate::types::LogId>| id.map_or(0, |id| id.index);
        let replication = metrics.replication.iter().flatten();
        GroupStatus {
            group: self.id(),
            role: role(metrics.state),
            term: metrics.current_term,
            leader: metrics.current_leader,
            last_index: metrics.last_log_index.unwrap_or(0),
            committed_index: index(metrics.cluster_committed.max(metrics.local_committed)),
            applied_index: self.applied_index(),
            purged_index: index(metrics.purged),
            snapshot_index: index(metrics.snapshot),
            checkpoint_index: self.0.replica.checkpoint_index(),
            voters: metrics.membership_config.voter_ids().collect(),
            matched: replication.map(|(id, matched)| (*id, index(*matched))).collect(),
            state_hash: (hashed, hash.0),
            damaged_segments: self.0.replica.segments.damaged(),
        }
    }

    /// The leader, if this node knows one.
    pub fn leader(&self) -> Option<NodeId> {
        self.0.raft.server_metrics().borrow_watched().current_leader
    }

    /// Whether this node leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.0.node)
    }

    /// Follows leader, term and membership.
    pub fn watch(&self) -> StatusWatch<E> {
        StatusWatch(self.0.raft.server_metrics())
    }

    /// The state hash as of now, with the index that it belongs to.
    pub fn state_hash_now(&self) -> (u64, StateHash) {
        self.0.replica.hash_now()
    }

    /// The space that the node has left.
    pub fn space(&self) -> &Space<E> {
        &self.0.space
    }

    /// How long the disk has been busy with one write of the log.
    pub fn disk_waits(&self) -> Duration {
        self.0.log.disk_waits()
    }

    /// Hands the leadership to `to`, if nothing speaks against it: openraft itself would try for ever.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), String> {
        self.check_transfer(to)?;
        self.0.raft.trigger().transfer_leader(to).await.map_err(|e| e.to_string())
    }

    fn check_transfer(&self, to: NodeId) -> Result<(), String> {
        let metrics = self.0.raft.metrics().borrow_watched().clone();
        let refused = |why: String| Err(format!("hand over {} to node {to}: {why}", self.id()));
        if metrics.state != ServerState::Leader || metrics.current_leader != Some(self.0.node) {
            return refused("this node does not lead it".into());
        }
        if to == self.0.node || !metrics.membership_config.voter_ids().any(|voter| voter == to) {
            return refused("it is not another voter".into());
        }
        if metrics.membership_config != metrics.committed_membership_config {
            return refused("a membership change is under way".into());
        }
        let matched = metrics.replication.as_ref().and_then(|matched| *matched.get(&to)?).map(|id| id.index);
        if matched.unwrap_or(0) + TRANSFER_LAG_MAX < metrics.last_log_index.unwrap_or(0) {
            return refused(format!("its log is at {matched:?}, the end is {:?}", metrics.last_log_index));
        }
        let heard = metrics.heartbeat.as_ref().and_then(|heard| *heard.get(&to)?);
        match heard.map(|heard| heard.elapsed()) {
            Some(age) if age <= 2 * self.0.heartbeat => Ok(()),
            age => refused(format!("it was heard {age:?} ago, expected within two heartbeats")),
        }
    }

    /// Builds a snapshot of what is applied, and purges the log below the older of the two kept.
    /// Answers the index of its last entry.
    pub async fn snapshot(&self) -> Result<u64, StoreError> {
        let stopped = |why: String| StoreError::Raft { group: self.id(), why };
        let _one = self.0.build.acquire().await.map_err(|_| stopped("the store is shut down".into()))?;
        let built = self.0.replica.build_snapshot(&self.0.synced).await?;
        self.0.raft.trigger().snapshot().await.map_err(|e| stopped(e.to_string()))?;
        if let Some(bound) = self.0.replica.snapshots.purge_bound() {
            self.0.raft.trigger().purge_log(bound).await.map_err(|e| stopped(e.to_string()))?;
        }
        Ok(built.index().unwrap_or(0))
    }
}

/// Follows leader, term and membership of a group.
pub struct StatusWatch<E: Env>(WatchReceiverOf<E, openraft::metrics::RaftServerMetrics<TypeConfig<E>>>);

impl<E: Env> StatusWatch<E> {
    /// Waits for a change; false when the group was stopped.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }

    /// The leader as of now.
    pub fn leader(&self) -> Option<NodeId> {
        self.0.borrow_watched().current_leader
    }
}

fn not_leader<E: Env>(forward: &ForwardToLeader<TypeConfig<E>>) -> ProposeError {
    ProposeError::NotLeader { leader: not_leader_of(forward) }
}

/// Who leads, as far as a refusal tells.
pub(crate) fn not_leader_of<E: Env>(forward: &ForwardToLeader<TypeConfig<E>>) -> Option<NodeId> {
    match forward.reason {
        ForwardReason::NotLeader => forward.leader_id,
        // It is this node, which is not sure of it, or it is about to be another one.
        ForwardReason::LeaseExpired | ForwardReason::LeadershipTransfer => None,
    }
}

fn role(state: ServerState) -> Role {
    match state {
        ServerState::Leader => Role::Leader,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner => Role::Learner,
        ServerState::Shutdown => Role::Stopped,
    }
}
