//! Publishes of a shard are put together into log entries.
//!
//! A batch leaves at once while fewer than [`BATCHES_IN_FLIGHT`] of its shard are in flight; else when
//! one returns, or when it is full. There is no timer: under light load nothing waits, under heavy load
//! the entries grow. One task per shard proposes, so that batches enter the log in their order.

use std::collections::VecDeque;
use std::future::Future;

use prost::Message;
use tokio::sync::{mpsc, oneshot};
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::limits::{BATCHES_IN_FLIGHT, ENTRY_BYTES_TARGET, ENTRY_MESSAGES_MAX};
use unibus_proto::log::{self, PublishBatch, PublishGroup, proposal::Command, reply::Reply};
use unibus_proto::v1::PublishOutcome;
use unibus_raft_store::Group;
use unibus_raft_store::env::Env;

use super::budget::Reserved;
use super::{Shards, entries};
use crate::service::Failure;

/// What a waiting publish costs beside its bytes.
const OVERHEAD_BYTES: usize = 512;

/// What became of a group of messages.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Covers each message once, in order.
    pub outcomes: Vec<PublishOutcome>,
    /// Log time of the entry.
    pub at_ms: u64,
    /// Who leads the shard now.
    pub leader: Option<NodeId>,
    /// Nodes of the shard that vote.
    pub voters: u32,
}

/// A group of messages that waits for its entry.
pub(super) struct Waiting {
    group: PublishGroup,
    bytes: usize,
    answer: oneshot::Sender<Result<Published, Failure>>,
    _reserved: Reserved,
}

/// The entrance to a shard's batches.
pub(super) struct Batcher(mpsc::UnboundedSender<Waiting>);

impl Batcher {
    /// The entrance and what its driver reads. The queue is bounded by the node's budget of bytes.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Waiting>) {
        let (tx, rx) = mpsc::unbounded_channel();
        (Self(tx), rx)
    }
}

impl<E: Env> Shards<E> {
    /// Queues messages of a producer at once, in the order of the calls; the returned future waits for
    /// what became of them.
    pub fn publish(
        &self,
        shard: GroupId,
        group: PublishGroup,
    ) -> Result<impl Future<Output = Result<Published, Failure>> + Send + 'static + use<E>, Failure> {
        let bytes = group.encoded_len();
        let _reserved = self.inner.budget.reserve(bytes + OVERHEAD_BYTES)?;
        let (answer, answered) = oneshot::channel();
        let stopping = || Failure::new(ErrorCode::Draining, "publish: this node is stopping; use another one");
        self.slot(shard)?.batcher.0.send(Waiting { group, bytes, answer, _reserved }).map_err(|_| stopping())?;
        Ok(async move { answered.await.unwrap_or_else(|_| Err(stopping())) })
    }
}

/// Takes the next batch off the queue: as much as fits, at least one group.
fn next_batch(queue: &mut VecDeque<Waiting>) -> Vec<Waiting> {
    let (mut bytes, mut messages, mut batch) = (0, 0, Vec::new());
    while let Some(next) = queue.front() {
        bytes += next.bytes;
        messages += next.group.messages.len();
        if !batch.is_empty() && (bytes > ENTRY_BYTES_TARGET || messages > ENTRY_MESSAGES_MAX) {
            break;
        }
        batch.extend(queue.pop_front());
    }
    batch
}

/// Whether the queue fills a batch.
fn is_full(queue: &VecDeque<Waiting>) -> bool {
    let (mut bytes, mut messages) = (0, 0);
    queue.iter().any(|waiting| {
        bytes += waiting.bytes;
        messages += waiting.group.messages.len();
        bytes >= ENTRY_BYTES_TARGET || messages >= ENTRY_MESSAGES_MAX
    })
}

/// Proposes the batches of one shard, for ever.
pub(super) async fn drive<E: Env>(shards: Shards<E>, shard: GroupId, waiting: mpsc::UnboundedReceiver<Waiting>) {
    let propose = |batch| propose(shards.clone(), shard, batch);
    run(waiting, propose).await;
}

async fn run<F: Future<Output = ()>>(
    waiting: mpsc::UnboundedReceiver<Waiting>,
    mut propose: impl FnMut(Vec<Waiting>) -> F,
) {
    let take = |queue: &mut VecDeque<Waiting>, in_flight| {
        (in_flight < BATCHES_IN_FLIGHT || is_full(queue)).then(|| propose(next_batch(queue)))
    };
    entries::drive(waiting, take).await;
}

async fn propose<E: Env>(shards: Shards<E>, shard: GroupId, batch: Vec<Waiting>) {
    let (groups, answers): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|waiting| (waiting.group, (waiting.answer, waiting._reserved))).unzip();
    let command = Command::PublishBatch(PublishBatch { groups });
    let proposal = log::Proposal { at_ms: 0, command: Some(command) }.encode_to_vec();
    let results = match shards.propose_encoded(shard, proposal.into()).await {
        Ok(committed) => {
            // Once per entry: asking Raft for each publish would cost more than the rest of the answer.
            let status = shards.group(shard).map(Group::status);
            let (leader, voters) = status.map_or((None, 0), |status| (status.leader, status.voters.len() as u32));
            split(committed.reply, leader, voters, answers.len())
        }
        Err(failure) => vec![Err(failure); answers.len()],
    };
    for ((answer, _), result) in answers.into_iter().zip(results) {
        drop(answer.send(result));
    }
}

/// The reply to a batch, group by group.
fn split(reply: log::Reply, leader: Option<NodeId>, voters: u32, groups: usize) -> Vec<Result<Published, Failure>> {
    let at_ms = reply.at_ms;
    match reply.reply {
        Some(Reply::Publish(publish)) if publish.groups.len() == groups => {
            let published = |outcomes| Published { outcomes, at_ms, leader, voters };
            publish.groups.into_iter().map(|group| Ok(published(group.outcomes))).collect()
        }
        Some(Reply::Rejected(reject)) => vec![Err(reject.into()); groups],
        _ => vec![Err(Failure::new(ErrorCode::Internal, "publish: the reply does not match the batch")); groups],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use unibus_proto::v1::OutgoingMessage;

    use super::*;
    use crate::shard::budget::Budget;

    fn waiting(messages: usize, body: usize) -> (Waiting, oneshot::Receiver<Result<Published, Failure>>) {
        let message = OutgoingMessage { body: vec![0; body].into(), ..OutgoingMessage::default() };
        let group = PublishGroup { messages: vec![message; messages], ..PublishGroup::default() };
        let (answer, answered) = oneshot::channel();
        let _reserved = Budget::of_publishes().reserve(1).expect("an empty budget");
        (Waiting { bytes: group.encoded_len(), group, answer, _reserved }, answered)
    }

    #[test]
    fn a_batch_takes_what_fits_and_at_least_one_group() {
        let mut queue: VecDeque<_> = (0..5).map(|_| waiting(ENTRY_MESSAGES_MAX * 2 / 5, 1).0).collect();
        assert!(is_full(&queue));
        assert_eq!(next_batch(&mut queue).len(), 2, "a third would be too many messages");
        let mut queue: VecDeque<_> = [waiting(1, ENTRY_BYTES_TARGET + 1).0, waiting(1, 1).0].into();
        assert_eq!(next_batch(&mut queue).len(), 1, "one larger than the target goes alone");
        assert!(!is_full(&queue));
        assert_eq!(next_batch(&mut queue).len(), 1);
        assert!(next_batch(&mut queue).is_empty());
    }

    #[tokio::test]
    async fn a_third_batch_waits_until_one_returns_and_then_takes_all() {
        let (batcher, rx) = Batcher::new();
        let sizes = Mutex::new(Vec::new());
        let (returned, gates): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel::<()>()).unzip();
        let mut gates = gates.into_iter();
        let driving = run(rx, |batch: Vec<Waiting>| {
            sizes.lock().expect("no panic").push(batch.len());
            let gate = gates.next();
            async move { drop(gate.expect("three batches").await) }
        });
        let mut returned = returned.into_iter();
        let story = async {
            for _ in 0..2 {
                assert!(batcher.0.send(waiting(1, 1).0).is_ok(), "the driver runs");
                tokio::task::yield_now().await;
            }
            for _ in 0..5 {
                assert!(batcher.0.send(waiting(1, 1).0).is_ok(), "the driver runs");
                tokio::task::yield_now().await;
            }
            assert_eq!(*sizes.lock().expect("no panic"), [1, 1]);
            drop(returned.next());
            tokio::task::yield_now().await;
            assert_eq!(*sizes.lock().expect("no panic"), [1, 1, 5]);
        };
        tokio::select! { biased; () = story => {}, () = driving => panic!("the driver ended") }
    }

    #[test]
    fn each_waiter_gets_its_own_outcomes() {
        let outcome = |first_number| log::GroupOutcome {
            outcomes: vec![PublishOutcome { first_number, count: 1, outcome: None }],
        };
        let groups = vec![outcome(1), outcome(7)];
        let reply = log::Reply { at_ms: 9, reply: Some(Reply::Publish(log::PublishReply { groups })) };
        let results = split(reply.clone(), Some(NodeId(1)), 3, 2);
        assert_eq!(results[1].as_ref().expect("published").outcomes[0].first_number, 7);
        assert!(split(reply, None, 3, 3).iter().all(Result::is_err));
    }
}
