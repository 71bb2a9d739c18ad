//! Read barriers: after one, this node has applied everything that was committed before it was asked
//! for. Callers of a group share rounds, so that a crowd costs one.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::limits::PROPOSE_PATIENCE;
use unibus_proto::peer::{NodeError, ReadIndex, ReadIndexed, node_request::Request, node_response::Response};
use unibus_raft_store::ProposeError;
use unibus_raft_store::env::{Env, Instant, now, sleep, spawn, timeout};

use super::Shards;
use super::propose::{node_error, not_leader};
use crate::service::Failure;

/// Between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Kept back from the patience, so that the answer itself arrives within it.
const ANSWER_RESERVE: Duration = Duration::from_millis(100);

type Waiter = oneshot::Sender<Result<(), Failure>>;

/// The rounds of one group. A round serves those who asked before it began.
#[derive(Default)]
pub(super) struct Barrier {
    rounds: Mutex<Rounds>,
}

#[derive(Default)]
struct Rounds {
    running: bool,
    waiting: Vec<Waiter>,
}

impl Barrier {
    /// Adds a caller; true when nobody runs a round and the caller must start one.
    fn join(&self, waiter: Waiter) -> bool {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        rounds.waiting.push(waiter);
        !std::mem::replace(&mut rounds.running, true)
    }

    /// Those whom the next round serves; none when the rounds are over.
    fn take(&self) -> Vec<Waiter> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        rounds.waiting.retain(|waiter| !waiter.is_closed());
        rounds.running = !rounds.waiting.is_empty();
        std::mem::take(&mut rounds.waiting)
    }
}

impl<E: Env> Shards<E> {
    /// Waits until this node has applied all that was committed before the call; `NoLeader` within 2 s
    /// when there is no quorum to confirm it.
    pub async fn barrier(&self, group: GroupId) -> Result<(), Failure> {
        let (done, waiting) = oneshot::channel();
        if self.slot(group)?.barrier.join(done) {
            let shards = self.clone();
            spawn::<E>(async move { shards.run_rounds(group).await });
        }
        match timeout::<E, _>(PROPOSE_PATIENCE - ANSWER_RESERVE / 2, waiting).await {
            Some(Ok(result)) => result,
            _ => Err(self.no_leader(group)),
        }
    }

    /// Barriers of several groups at the same time.
    pub async fn barriers(&self, groups: impl IntoIterator<Item = GroupId>) -> Result<(), Failure> {
        let barriers = groups.into_iter().map(|group| self.barrier(group));
        futures::future::try_join_all(barriers).await.map(drop)
    }

    async fn run_rounds(&self, group: GroupId) {
        let Ok(slot) = self.slot(group) else { return };
        loop {
            let waiters = slot.barrier.take();
            if waiters.is_empty() {
                return;
            }
            let result = self.round(group).await;
            for waiter in waiters {
                drop(waiter.send(result.clone()));
            }
        }
    }

    async fn round(&self, group: GroupId) -> Result<(), Failure> {
        let deadline = now::<E>() + (PROPOSE_PATIENCE - ANSWER_RESERVE);
        let mut hint = None;
        loop {
            let left = deadline.saturating_duration_since(now::<E>());
            if left.is_zero() {
                return Err(self.no_leader(group));
            }
            match timeout::<E, _>(left, self.read_index(group, hint.take(), left)).await {
                Some(Ok(index)) => return self.wait_read(group, index, left).await,
                Some(Err(leader)) => hint = leader,
                None => {}
            }
            sleep::<E>(RETRY_PAUSE.min(left)).await;
        }
    }

    /// Waits until this node can be read at `index`; not for long when it never will before it has space.
    async fn wait_read(&self, group: GroupId, index: u64, left: Duration) -> Result<(), Failure> {
        let patience = if self.starved().is_some() { STARVED_PATIENCE.min(left) } else { left };
        match (self.wait_applied(group, index, patience).await, self.starved()) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(why)) => Err(Failure::new(ErrorCode::Draining, format!("read: {why}"))),
            (Err(failure), None) => Err(behind(failure)),
        }
    }

    /// The index that a read must wait for, or who may know it.
    async fn read_index(&self, group: GroupId, hint: Option<NodeId>, left: Duration) -> Result<u64, Option<NodeId>> {
        let replica = self.group(group).map_err(|_| None)?;
        let leader = hint.or_else(|| replica.leader()).ok_or(None)?;
        if leader == self.node() {
            return replica.read_index().await.map_err(|error| match error {
                ProposeError::NotLeader { leader } => leader.filter(|&leader| leader != self.node()),
                _ => None,
            });
        }
        match self.ask_leader(group, leader, Request::ReadIndex(ReadIndex { group: group.0 }), left).await {
            Ok(Response::ReadIndexed(ReadIndexed { index })) => Ok(index),
            Ok(Response::Error(NodeError { leader, .. })) if leader != 0 => Err(Some(NodeId(leader))),
            _ => Err(None),
        }
    }

    /// Answers a peer that asks for a read index; only a leader can.
    pub(crate) async fn serve_read_index(&self, ReadIndex { group }: ReadIndex) -> Response {
        let replica = match self.group(GroupId(group)) {
            Ok(replica) => replica,
            Err(failure) => return node_error(&failure),
        };
        match timeout::<E, _>(PROPOSE_PATIENCE, replica.read_index()).await {
            Some(Ok(index)) => Response::ReadIndexed(ReadIndexed { index }),
            Some(Err(ProposeError::NotLeader { leader })) => not_leader(leader, self.node()),
            Some(Err(ProposeError::Unknown(why) | ProposeError::Fault(why))) => {
                node_error(&Failure::new(ErrorCode::NoLeader, why))
            }
            None => node_error(&self.no_leader(GroupId(group))),
        }
    }
}

/// A node that takes no entries may still have what is asked for.
const STARVED_PATIENCE: Duration = Duration::from_millis(100);

/// A read that could not be served had no effect.
fn behind(failure: Failure) -> Failure {
    Failure { code: ErrorCode::Overloaded, retry_after: Some(RETRY_PAUSE * 10), ..failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_shares_a_round_and_late_comers_get_the_next() {
        let barrier = Barrier::default();
        let (first, _first) = oneshot::channel();
        let (second, _second) = oneshot::channel();
        let (third, _third) = oneshot::channel();
        assert!(barrier.join(first));
        assert!(!barrier.join(second));
        assert_eq!(barrier.take().len(), 2);
        assert!(!barrier.join(third), "a round is still running");
        assert_eq!(barrier.take().len(), 1);
        assert_eq!(barrier.take().len(), 0);
        let (fourth, _fourth) = oneshot::channel();
        assert!(barrier.join(fourth), "the rounds were over");
    }

    #[test]
    fn callers_who_left_cost_no_round() {
        let barrier = Barrier::default();
        let (gone, _) = oneshot::channel();
        barrier.join(gone);
        assert!(barrier.take().is_empty());
    }
}
