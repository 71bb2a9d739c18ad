//! Commands of a group that come at the same time share a log entry, as publishes do: alone, a command
//! leaves at once; under load, what waits leaves together. So making many rooms costs few entries.
//!
//! What still passes when disks run full ([`space::is_little`]) has a lane of its own: in one entry with what
//! is refused, a revocation would be refused with it, and behind it, it would wait for its refusal.

use std::collections::VecDeque;
use std::time::Duration;

use prost::Message;
use tokio::sync::{mpsc, oneshot};
use unibus_proto::code::ErrorCode;
use unibus_proto::id::GroupId;
use unibus_proto::limits::{COMMANDS_PER_ENTRY_MAX, ENTRY_BYTES_TARGET, PROPOSE_PATIENCE};
use unibus_proto::log::{CommandBatch, Proposal, Reply, proposal::Command, reply};
use unibus_raft_store::Committed;
use unibus_raft_store::env::{Env, InstantOf, now};

use super::budget::Reserved;
use super::propose::ANSWER_RESERVE;
use super::{Shards, entries, space};
use crate::service::Failure;

/// Entries of a lane that one group has on the way from this node before commands wait for each other.
const IN_FLIGHT_MAX: usize = 4;
/// Commands whose deadlines are farther apart share no entry: it has the earliest one.
const DEADLINES_APART_MAX: Duration = Duration::from_millis(200);
/// What a waiting command costs beside its bytes.
const OVERHEAD_BYTES: usize = 512;

/// A command that waits for its entry.
pub(super) struct Waiting<E: Env> {
    proposal: Proposal,
    bytes: usize,
    /// When its caller must know what became of it.
    deadline: InstantOf<E>,
    answer: oneshot::Sender<Result<Committed, Failure>>,
    _reserved: Reserved,
}

/// The entrance to a group's commands. The queue is bounded by the node's budget for commands, which is not
/// the one for publishes: a revocation does not wait for a publisher.
pub(super) struct Commands<E: Env> {
    little: mpsc::UnboundedSender<Waiting<E>>,
    other: mpsc::UnboundedSender<Waiting<E>>,
}

impl<E: Env> Commands<E> {
    /// The entrance and what the drivers of its lanes read.
    pub(super) fn new() -> (Self, [mpsc::UnboundedReceiver<Waiting<E>>; 2]) {
        let ((little, littles), (other, others)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        (Self { little, other }, [littles, others])
    }

    fn lane(&self, command: &Command) -> &mpsc::UnboundedSender<Waiting<E>> {
        if space::is_little(command) { &self.little } else { &self.other }
    }
}

impl<E: Env> Shards<E> {
    /// Gets a command committed, in an entry of its own or with others.
    pub(super) async fn submit(&self, group: GroupId, command: Command) -> Result<Committed, Failure> {
        let lane = self.slot(group)?.commands.lane(&command);
        let proposal = Proposal { at_ms: 0, command: Some(command) };
        let bytes = proposal.encoded_len();
        let _reserved = self.inner.command_budget.reserve(bytes + OVERHEAD_BYTES)?;
        let deadline = now::<E>() + (PROPOSE_PATIENCE - ANSWER_RESERVE);
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { proposal, bytes, deadline, answer, _reserved };
        let stopping = || Failure::new(ErrorCode::Draining, "propose: this node is stopping; use another one");
        lane.send(waiting).map_err(|_| stopping())?;
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }
}

/// Takes the next entry's commands off the queue: as many as fit, at least one.
fn next_entry<E: Env>(queue: &mut VecDeque<Waiting<E>>) -> Vec<Waiting<E>> {
    let (mut bytes, mut entry) = (0, Vec::<Waiting<E>>::new());
    while let Some(next) = queue.front() {
        bytes += next.bytes;
        let fits = bytes <= ENTRY_BYTES_TARGET && entry.len() < COMMANDS_PER_ENTRY_MAX;
        let is_close = |first: &Waiting<E>| next.deadline <= first.deadline + DEADLINES_APART_MAX;
        if entry.first().is_some_and(|first| !fits || !is_close(first)) {
            break;
        }
        entry.extend(queue.pop_front());
    }
    entry
}

/// Proposes the commands of one lane of a group, for ever.
pub(super) async fn drive<E: Env>(shards: Shards<E>, group: GroupId, waiting: mpsc::UnboundedReceiver<Waiting<E>>) {
    let take = |queue: &mut VecDeque<Waiting<E>>, in_flight| {
        // Whoever asked has gone: certainly nothing was proposed for him.
        queue.retain(|waiting| !waiting.answer.is_closed());
        let may_leave = !queue.is_empty() && in_flight < IN_FLIGHT_MAX;
        may_leave.then(|| propose(shards.clone(), group, next_entry(queue)))
    };
    entries::drive(waiting, take).await;
}

async fn propose<E: Env>(shards: Shards<E>, group: GroupId, entry: Vec<Waiting<E>>) {
    let Some(deadline) = entry.iter().map(|waiting| waiting.deadline).min() else { return };
    let (mut commands, answers): (Vec<_>, Vec<_>) =
        entry.into_iter().map(|waiting| (waiting.proposal, (waiting.answer, waiting._reserved))).unzip();
    let proposal = match commands.len() {
        1 => commands.remove(0),
        _ => Proposal { at_ms: 0, command: Some(Command::CommandBatch(CommandBatch { commands })) },
    };
    let results = match shards.propose_until(group, proposal.encode_to_vec().into(), deadline).await {
        Ok(committed) => split(group, committed, answers.len()),
        Err(failure) => vec![Err(failure); answers.len()],
    };
    for ((answer, _), result) in answers.into_iter().zip(results) {
        drop(answer.send(result));
    }
}

/// What became of each command of an entry.
fn split(group: GroupId, committed: Committed, commands: usize) -> Vec<Result<Committed, Failure>> {
    let index = committed.index;
    match committed.reply.reply {
        Some(reply::Reply::CommandBatch(batch)) if batch.replies.len() == commands => {
            batch.replies.into_iter().map(|reply| Ok(Committed { index, reply })).collect()
        }
        reply if commands == 1 => vec![Ok(Committed { index, reply: Reply { at_ms: committed.reply.at_ms, reply } })],
        Some(reply::Reply::Rejected(reject)) => vec![Err(reject.into()); commands],
        _ => {
            let message = format!("group {group}: the reply of entry {index} does not match its {commands} commands");
            vec![Err(Failure::new(ErrorCode::Internal, message)); commands]
        }
    }
}

#[cfg(test)]
mod tests {
    use unibus_proto::log::{CommandBatchReply, Done};
    use unibus_proto::v1::Reject;
    use unibus_raft_store::testing::TestEnv;

    use super::*;
    use crate::shard::budget::Budget;

    fn committed(reply: reply::Reply) -> Committed {
        Committed { index: 7, reply: Reply { at_ms: 9, reply: Some(reply) } }
    }

    #[test]
    fn a_command_that_has_little_time_left_takes_none_from_another() {
        let began = now::<TestEnv>();
        let waiting = |left_ms: u64| {
            let deadline = began + Duration::from_millis(left_ms);
            let _reserved = Budget::of_commands().reserve(1).expect("an empty budget");
            let (answer, _) = oneshot::channel();
            Waiting::<TestEnv> { proposal: Proposal::default(), bytes: 1, deadline, answer, _reserved }
        };
        let mut queue: VecDeque<_> = [10, 60, 1_800, 1_850].map(waiting).into();
        assert_eq!(next_entry(&mut queue).len(), 2, "those came together");
        assert_eq!(next_entry(&mut queue).len(), 2, "these have their own time");
        assert!(next_entry(&mut queue).is_empty());
    }

    #[test]
    fn each_command_gets_its_own_reply() {
        let done = || Reply { at_ms: 9, reply: Some(reply::Reply::Done(Done {})) };
        let reject = Reject::new(ErrorCode::Forbidden, "no");
        let refused = Reply { at_ms: 9, reply: Some(reply::Reply::Rejected(reject.clone())) };
        let both = reply::Reply::CommandBatch(CommandBatchReply { replies: vec![done(), refused.clone()] });
        let results = split(GroupId(1), committed(both.clone()), 2);
        assert_eq!(results[0].as_ref().expect("done").reply, done());
        assert_eq!(results[1].as_ref().expect("its own reply").reply, refused, "one refusal stops no other");
        assert!(split(GroupId(1), committed(both), 3).iter().all(Result::is_err));
        let alone = split(GroupId(1), committed(reply::Reply::Done(Done {})), 1);
        assert_eq!(alone[0].as_ref().expect("done").index, 7);
        let all = split(GroupId(1), committed(reply::Reply::Rejected(reject)), 2);
        assert_eq!(all[1].as_ref().expect_err("the entry was refused").code, ErrorCode::Forbidden);
    }
}
