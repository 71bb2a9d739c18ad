//! Getting a command committed: here when this node leads the group, else forwarded once to the leader.
//!
//! What was certainly not appended is tried again until [`PROPOSE_PATIENCE`] is over; then the caller
//! learns why. What may have been appended is `OutcomeUnknown`, and is never tried again here.

use std::time::Duration;

use bytes::Bytes;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::limits::PROPOSE_PATIENCE;
use unibus_proto::log::{proposal::Command, reply::Reply};
use unibus_proto::peer::{NodeError, Propose, Proposed, node_request::Request, node_response::Response};
use unibus_raft_store::env::{Env, Instant, InstantOf, now, sleep, timeout};
use unibus_raft_store::{Committed, ProposeError};

use super::space::FULL_HINT;
use super::{Shards, clock};
use crate::peer::link::LinkError;
use crate::service::Failure;

/// Between two attempts: an election takes some 300 ms.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Kept back from the patience, so that the answer itself arrives within it.
pub(super) const ANSWER_RESERVE: Duration = Duration::from_millis(150);
/// A leader that hands its office over answers what it had proposed as soon as its successor has committed it.
const MOVED_GRACE: Duration = Duration::from_millis(100);
/// A leader whose disk is full is about to hand over, if there is somebody else: an election, with the time to
/// learn of it.
const FULL_PATIENCE: Duration = Duration::from_millis(700);
/// How long a hint to wait is given when there is no leader.
const NO_LEADER_HINT: Duration = Duration::from_millis(300);

/// What became of one attempt.
enum Attempt {
    Done(Committed),
    /// Certainly not appended; the leader, if it is known.
    Again(Option<NodeId>),
    /// Certainly not appended: the leader has no space. It may be about to hand over.
    Full(Failure),
    Failed(Failure),
}

impl<E: Env> Shards<E> {
    /// Gets a command committed and applied by the leader; a reject is a failure.
    pub async fn propose(&self, group: GroupId, command: Command) -> Result<(u64, Reply), Failure> {
        let Committed { index, reply, .. } = self.submit(group, command).await?;
        match reply.reply {
            Some(Reply::Rejected(reject)) => Err(reject.into()),
            Some(reply) => Ok((index, reply)),
            None => Err(Failure::new(ErrorCode::Internal, format!("group {group}: entry {index} has no reply"))),
        }
    }

    /// The same, and waits until this node has applied it too, so that it can be read here.
    pub async fn propose_and_see(&self, group: GroupId, command: Command) -> Result<(u64, Reply), Failure> {
        let _waiter = self.group(group)?.await_commits();
        let (index, reply) = self.propose(group, command).await?;
        self.wait_applied(group, index, PROPOSE_PATIENCE).await?;
        Ok((index, reply))
    }

    /// Waits until this node has applied `index` of the group.
    pub async fn wait_applied(&self, group: GroupId, index: u64, patience: Duration) -> Result<(), Failure> {
        let replica = self.group(group)?;
        replica.wait_applied(index, patience).await.map_err(|_| {
            let applied = replica.status().applied_index;
            Failure::new(
                ErrorCode::OutcomeUnknown,
                format!(
                    "group {group}: node {} has applied entry {applied}, expected {index} within {:.1} s; \
                     it is behind: ask again, or ask another node",
                    self.node(),
                    patience.as_secs_f64()
                ),
            )
        })
    }

    /// Gets an encoded proposal (without a time) committed.
    pub(super) async fn propose_encoded(&self, group: GroupId, proposal: Bytes) -> Result<Committed, Failure> {
        self.propose_until(group, proposal, now::<E>() + (PROPOSE_PATIENCE - ANSWER_RESERVE)).await
    }

    /// The same, with a deadline for what is certainly not appended.
    pub(super) async fn propose_until(
        &self,
        group: GroupId,
        proposal: Bytes,
        deadline: InstantOf<E>,
    ) -> Result<Committed, Failure> {
        let (mut hint, mut full_since) = (None, None);
        // Why there is no space, as it was found last: with a leader or without one, that is the reason.
        let mut full = None;
        loop {
            let left = deadline.saturating_duration_since(now::<E>());
            if left.is_zero() {
                return Err(full.unwrap_or_else(|| self.no_leader(group)));
            }
            match self.attempt(group, &proposal, hint.take(), left).await {
                Attempt::Done(committed) => return Ok(committed),
                Attempt::Failed(failure) => return Err(failure),
                Attempt::Again(leader) => hint = leader,
                Attempt::Full(failure) if full_since.get_or_insert_with(now::<E>).elapsed() >= FULL_PATIENCE => {
                    return Err(failure);
                }
                Attempt::Full(failure) => full = Some(failure),
            }
            sleep::<E>(RETRY_PAUSE.min(left)).await;
        }
    }

    async fn attempt(&self, group: GroupId, proposal: &Bytes, hint: Option<NodeId>, left: Duration) -> Attempt {
        let leader = match self.group(group) {
            Ok(replica) => hint.or_else(|| replica.leader()),
            Err(failure) => return Attempt::Failed(failure),
        };
        match leader {
            None => Attempt::Again(None),
            Some(leader) if leader == self.node() => self.attempt_here(group, proposal, left).await,
            Some(leader) => self.forward(leader, group, proposal, left).await,
        }
    }

    async fn attempt_here(&self, group: GroupId, proposal: &Bytes, left: Duration) -> Attempt {
        let stamped = match self.stamp(group) {
            Ok(at_ms) => clock::stamped(at_ms, &proposal[..]),
            Err(failure) => return Attempt::Failed(failure),
        };
        let Ok(replica) = self.group(group) else { return Attempt::Again(None) };
        if let Err(failure) = self.check_space(replica, proposal) {
            return Attempt::Full(failure);
        }
        match timeout::<E, _>(left, replica.propose(stamped)).await {
            Some(Ok(committed)) => Attempt::Done(committed),
            Some(Err(ProposeError::NotLeader { leader })) => Attempt::Again(leader),
            Some(Err(ProposeError::Unknown(why))) => Attempt::Failed(self.unknown(group, &why)),
            Some(Err(ProposeError::Fault(why))) => {
                Attempt::Failed(Failure::new(ErrorCode::Internal, format!("propose to group {group}: {why}")))
            }
            None => Attempt::Failed(self.unknown(group, "not committed in time")),
        }
    }

    async fn forward(&self, leader: NodeId, group: GroupId, proposal: &Bytes, left: Duration) -> Attempt {
        let request = Request::Propose(Propose { group: group.0, proposal: proposal.clone() });
        self.inner.counters.forwarded();
        match self.ask_leader(group, leader, request, left).await {
            Ok(Response::Proposed(Proposed { index, reply: Some(reply) })) => Attempt::Done(Committed { index, reply }),
            Ok(Response::Error(error)) => self.refused(leader, group, error),
            Ok(_) => Attempt::Failed(self.unknown(group, &format!("node {leader} gave an answer to another question"))),
            Err(LinkError::NotSent(why)) => {
                tracing::debug!(%group, %leader, why, "proposal not forwarded");
                Attempt::Again(None)
            }
            Err(LinkError::Lost(why)) => Attempt::Failed(self.unknown(group, &why)),
        }
    }

    /// Asks the leader of a group, as long as this node takes it for the leader.
    pub(crate) async fn ask_leader(
        &self,
        group: GroupId,
        leader: NodeId,
        request: Request,
        patience: Duration,
    ) -> Result<Response, LinkError> {
        let no_link = || LinkError::NotSent(format!("node {leader} is not a peer"));
        let link = self.peers().link(leader).ok_or_else(no_link)?;
        tokio::select! {
            biased;
            answered = link.request::<E>(request, patience) => answered,
            () = async {
                self.leadership_moves(group, leader).await;
                sleep::<E>(MOVED_GRACE).await;
            } => {
                Err(LinkError::Lost(format!("node {leader} lost the leadership before it answered")))
            }
        }
    }

    /// Resolves when this node no longer takes `leader` for the group's leader: a leader that died does
    /// not answer, and the election that replaces it is over long before the patience is.
    async fn leadership_moves(&self, group: GroupId, leader: NodeId) {
        let Ok(replica) = self.group(group) else { return };
        let mut watch = replica.watch();
        // A hint may be ahead of what this node knows: only the end of what it knew counts.
        let mut known = watch.leader() == Some(leader);
        loop {
            if !watch.changed().await {
                return std::future::pending().await;
            }
            match watch.leader() == Some(leader) {
                true => known = true,
                false if known => return,
                false => {}
            }
        }
    }

    fn refused(&self, leader: NodeId, group: GroupId, error: NodeError) -> Attempt {
        match error.code.parse() {
            Ok(ErrorCode::NotLeader) => Attempt::Again((error.leader != 0).then_some(NodeId(error.leader))),
            Ok(ErrorCode::DiskFull) => Attempt::Full(Failure::new(ErrorCode::DiskFull, error.message).after(FULL_HINT)),
            Ok(code) => Attempt::Failed(Failure::new(code, format!("node {leader}: {}", error.message))),
            Err(()) => Attempt::Failed(self.unknown(group, &format!("node {leader}: {}", error.message))),
        }
    }

    /// Carries out a proposal that a peer forwarded; never forwards it again.
    pub(crate) async fn serve_propose(&self, Propose { group, proposal }: Propose) -> Response {
        match self.attempt_here(GroupId(group), &proposal, PROPOSE_PATIENCE).await {
            Attempt::Done(Committed { index, reply, .. }) => Response::Proposed(Proposed { index, reply: Some(reply) }),
            Attempt::Again(leader) => not_leader(leader, self.node()),
            Attempt::Full(failure) | Attempt::Failed(failure) => node_error(&failure),
        }
    }

    /// Why a group has no leader, as far as this node can tell.
    pub fn no_leader(&self, group: GroupId) -> Failure {
        let cause = self.quorum_cause(group);
        Failure::new(
            ErrorCode::NoLeader,
            format!("group {group}: no leader within {PROPOSE_PATIENCE:?}: {cause}; nothing was proposed"),
        )
        .after(NO_LEADER_HINT)
    }

    fn unknown(&self, group: GroupId, why: &str) -> Failure {
        let cause = self.quorum_cause(group);
        Failure::new(ErrorCode::OutcomeUnknown, format!("propose to group {group}: {why} ({cause})"))
    }

    pub(crate) fn quorum_cause(&self, group: GroupId) -> String {
        let Ok(replica) = self.group(group) else { return "unknown group".into() };
        let voters = replica.status().voters;
        let (all, needed) = (voters.len(), voters.len() / 2 + 1);
        let up = voters.iter().filter(|&&voter| voter == self.node() || self.peers().is_reachable(voter)).count();
        let lost: Vec<String> = voters
            .iter()
            .filter(|&&voter| voter != self.node() && !self.peers().is_reachable(voter))
            .map(NodeId::to_string)
            .collect();
        match (all, lost.is_empty()) {
            (0, _) => "this node has not heard of the group's voters yet".into(),
            (_, true) if self.full_voters(group).is_some() => {
                format!("disks are full: {}", self.full_voters(group).unwrap_or_default())
            }
            (_, true) => format!("all {all} voters are reachable from node {}, an election is under way", self.node()),
            (_, false) => format!(
                "{up} of {all} voters are reachable from node {}, {needed} are needed; start node {}",
                self.node(),
                lost.join(", ")
            ),
        }
    }
}

/// The answer of a node that does not lead the group.
pub(crate) fn not_leader(leader: Option<NodeId>, node: NodeId) -> Response {
    Response::Error(NodeError {
        code: ErrorCode::NotLeader.as_str().into(),
        message: format!("node {node} does not lead the group"),
        leader: leader.map_or(0, |leader| leader.0),
    })
}

/// A failure as one node tells another.
pub(crate) fn node_error(failure: &Failure) -> Response {
    Response::Error(NodeError { code: failure.code.as_str().into(), message: failure.message.clone(), leader: 0 })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use ed25519_dalek::SigningKey;
    use prost::Message;
    use unibus_proto::id::ClusterId;
    use unibus_proto::log::{Proposal, UserAdd};
    use unibus_raft_store::StoreConfig;
    use unibus_raft_store::space::SpaceLevel;
    use unibus_raft_store::testing::{FREE_BYTES_FILE, TestEnv};

    use super::*;
    use crate::node::{Node, NodeConfig};
    use crate::plan::{Plan, PlanNode};

    async fn alone(dir: &Path) -> Node<TestEnv> {
        let key = SigningKey::from_bytes(&[1; 32]);
        let (peer_address, client_address) = ("peer:1".into(), "client:1".into());
        let sign_key = key.verifying_key().to_bytes();
        let node = PlanNode { id: NodeId(1), name: "n1".into(), peer_address, client_address, sign_key };
        let plan = Plan { cluster: ClusterId([7; 16]), shards: 1, nodes: vec![node] };
        let mut store = StoreConfig::default();
        store.wal.file_bytes = 4 << 20;
        let version = "test".into();
        let config = NodeConfig { node: NodeId(1), plan, join: false, data_dir: dir.into(), store, version };
        Box::pin(Node::start(TestEnv::new(1), config, key)).await.unwrap()
    }

    async fn until(what: &str, is_so: impl Fn() -> bool + Sync) {
        let so = async {
            while !is_so() {
                sleep::<TestEnv>(RETRY_PAUSE).await;
            }
        };
        timeout::<TestEnv, _>(Duration::from_secs(20), so).await.expect(what);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn p5_the_reason_of_a_full_disk_is_told_when_time_runs_out() {
        let dir = tempfile::tempdir().unwrap();
        let node = alone(dir.path()).await;
        until("the node forms a cluster", || node.not_ready().is_empty()).await;
        let shards = node.service().shards().clone();
        fs::write(dir.path().join(FREE_BYTES_FILE), (256_u64 << 20).to_string()).unwrap();
        until("there is little space", || shards.meta().space().level() == SpaceLevel::Low).await;
        let proposal = Proposal { at_ms: 0, command: Some(Command::UserAdd(UserAdd::default())) };
        let proposal: Bytes = proposal.encode_to_vec().into();
        // Before the leader is given up: no other one is likely to be found.
        let deadline = now::<TestEnv>() + FULL_PATIENCE / 4;
        let failure = shards.propose_until(GroupId::META, proposal, deadline).await.expect_err("there is no space");
        assert_eq!(failure.code, ErrorCode::DiskFull, "{failure}");
        assert!(
            failure.message.contains("256 MiB free") && failure.message.contains("nothing was stored"),
            "{failure}"
        );
        node.shutdown().await;
    }
}
