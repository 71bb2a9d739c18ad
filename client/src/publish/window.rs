//! The unresolved messages of a producer: what to send next, and what an answer means. Pure.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use unibus_proto::code::{Outcome, Retry};
use unibus_proto::limits::{BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, REQUEST_BYTES_TARGET};
use unibus_proto::position::Sequence;
use unibus_proto::v1::publish_outcome::Outcome as Became;
use unibus_proto::v1::{OutgoingMessage, PublishResponse, Reject};

use super::Ack;
use crate::{Error, ErrorCode};

/// A message that takes a place in the window.
pub(super) struct Push {
    pub message: OutgoingMessage,
    pub size: usize,
    pub done: oneshot::Sender<Result<Ack, Error>>,
    /// Its share of the window's count and bytes, given back when it is resolved.
    pub permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

struct Slot {
    push: Push,
    attempts: u32,
    /// An attempt had no answer: it may have been stored.
    doubtful: bool,
    result: Option<Result<Ack, Error>>,
}

/// A request on its way.
struct Sent {
    first: u64,
    count: u64,
    /// The first message without an answer when it was sent: all before it were decided earlier in the log.
    open: u64,
    /// Its messages are sent again: only a final answer for them still counts.
    stale: bool,
}

/// Consecutive messages to send.
pub(super) struct Batch {
    pub first: u64,
    pub messages: Vec<OutgoingMessage>,
    /// How many of them were sent before.
    pub resent: usize,
}

/// What to do after an answer.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Go on.
    Go,
    /// Send again from where the window now stands.
    Resend(Error),
    /// Wait, choose a node, and send again.
    Retry(Error),
    /// The producer is forgotten and nothing is in doubt: go on as another one.
    Reopen,
    /// Nothing more can be sent.
    Fatal(Error),
}

/// The unresolved messages of a producer, numbered without a gap.
pub(super) struct Window {
    /// Number of the first slot.
    first: u64,
    /// Number of the next message to send.
    next: u64,
    slots: VecDeque<Slot>,
    sent: BTreeMap<u64, Sent>,
}

impl Window {
    pub fn new() -> Self {
        Self { first: 1, next: 1, slots: VecDeque::new(), sent: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Number of the first message without an answer.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Number that the next message pushed will have.
    pub fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// Requests on their way that still matter.
    pub fn in_flight(&self) -> usize {
        self.sent.values().filter(|sent| !sent.stale).count()
    }

    pub fn push(&mut self, push: Push) {
        self.slots.push_back(Slot { push, attempts: 0, doubtful: false, result: None });
    }

    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// How many messages the next request would carry, and whether it would be full.
    fn next_extent(&self) -> (u64, u64, bool) {
        let waiting = |number: &u64| self.slots[(number - self.first) as usize].result.is_none();
        let start = (self.next..self.end()).find(waiting).unwrap_or(self.end());
        let (mut end, mut bytes) = (start, 0);
        while end < self.end() && waiting(&end) {
            let size = self.slots[(end - self.first) as usize].push.size;
            let full = (end - start) as usize == BATCH_MESSAGES_MAX;
            if full || (end > start && (bytes >= REQUEST_BYTES_TARGET || bytes + size > BATCH_BYTES_MAX)) {
                return (start, end, true);
            }
            bytes += size;
            end += 1;
        }
        (start, end, bytes >= REQUEST_BYTES_TARGET || (end - start) as usize == BATCH_MESSAGES_MAX)
    }

    /// The next request, if there is one; with `only_full`, only when it is full.
    pub fn batch(&mut self, only_full: bool) -> Option<Batch> {
        let (start, end, full) = self.next_extent();
        if start == end || (only_full && !full) {
            return None;
        }
        let range = (start - self.first) as usize..(end - self.first) as usize;
        let (mut messages, mut resent) = (Vec::with_capacity(range.len()), 0);
        for slot in self.slots.range_mut(range) {
            resent += usize::from(slot.attempts > 0);
            slot.attempts += 1;
            messages.push(slot.push.message.clone());
        }
        self.next = end;
        Some(Batch { first: start, messages, resent })
    }

    /// The batch is on its way under this tag.
    pub fn note_sent(&mut self, tag: u64, batch_first: u64, count: usize) {
        let open = self.first_open();
        self.sent.insert(tag, Sent { first: batch_first, count: count as u64, open, stale: false });
    }

    /// Everything without an answer is sent again, in order. Answers that still come count if they are final.
    pub fn rewind(&mut self) {
        self.next = self.first;
        self.sent.values_mut().for_each(|sent| sent.stale = true);
    }

    /// No answer to what was sent will come any more.
    pub fn lose_connection(&mut self) {
        self.rewind();
        for sent in std::mem::take(&mut self.sent).into_values() {
            self.doubt(&sent);
        }
    }

    fn doubt(&mut self, sent: &Sent) {
        for number in sent.first..sent.first + sent.count {
            if let Some(slot) = self.slot(number) {
                slot.doubtful = true;
            }
        }
    }

    /// Takes an answer.
    pub fn answer(&mut self, tag: u64, response: &PublishResponse) -> Verdict {
        let Some(sent) = self.sent.remove(&tag) else { return Verdict::Go };
        if let Some(failure) = &response.failure {
            let error = Error::from_failure(failure, response.leader);
            if error.outcome == Outcome::Unknown {
                self.doubt(&sent);
            }
            return if sent.stale { Verdict::Go } else { self.fail(error) };
        }
        let mut verdict = Verdict::Go;
        for became in &response.outcomes {
            let numbers = became.first_number..became.first_number.saturating_add(u64::from(became.count));
            let numbers = numbers.start.max(sent.first)..numbers.end.min(sent.first + sent.count);
            let ack = |number: u64, first: u64, duplicate| Ack {
                sequence: Sequence(if first == 0 { 0 } else { first + (number - became.first_number) }),
                duplicate,
                time_ms: response.time_ms,
                voters: response.voters,
                sent_to: None,
            };
            match &became.outcome {
                Some(Became::Stored(stored)) => {
                    numbers.for_each(|number| self.settle(number, Ok(ack(number, stored.first_sequence, false))));
                }
                Some(Became::Duplicate(stored)) => {
                    numbers.for_each(|number| self.settle(number, Ok(ack(number, stored.first_sequence, true))));
                }
                Some(Became::Reject(reject)) if !sent.stale && verdict == Verdict::Go => {
                    verdict = self.reject(&sent, numbers, reject);
                }
                Some(Became::Reject(reject)) if uses_number(reject.error_code()) => {
                    numbers.for_each(|number| self.settle(number, Err(Error::from_reject(reject))));
                }
                // An answer that fits no stored room leaves the message without one.
                Some(Became::Reject(_) | Became::Accepted(_)) | None => {}
            }
        }
        self.resolve();
        if verdict == Verdict::Go && !sent.stale && self.unanswered(&sent) {
            self.rewind();
            return Verdict::Retry(Error::lost("publish: the node's answer leaves messages out"));
        }
        verdict
    }

    fn unanswered(&mut self, sent: &Sent) -> bool {
        (sent.first..sent.first + sent.count).any(|number| self.slot(number).is_some_and(|slot| slot.result.is_none()))
    }

    fn reject(&mut self, sent: &Sent, numbers: std::ops::Range<u64>, reject: &Reject) -> Verdict {
        let error = Error::from_reject(reject);
        match error.code {
            // What was answered before this was sent stands earlier in the log: it cannot be missing there.
            ErrorCode::OutOfOrder if reject.expected < sent.open => {
                let message = format!(
                    "publish: the room expects number {} of the producer although {} was answered; open a new producer",
                    reject.expected,
                    sent.open - 1
                );
                Verdict::Fatal(Error { message, ..error })
            }
            // A later request overtook an earlier one on its way into the log.
            ErrorCode::OutOfOrder => {
                self.rewind();
                Verdict::Resend(error)
            }
            // The same at the start: the request that opens the producer was overtaken.
            ErrorCode::UnknownProducer if sent.open == 1 && sent.first > 1 => {
                self.rewind();
                Verdict::Resend(error)
            }
            ErrorCode::UnknownProducer if self.can_reopen() => Verdict::Reopen,
            ErrorCode::UnknownProducer => Verdict::Fatal(error),
            _ => {
                numbers.for_each(|number| self.settle(number, Err(error.clone())));
                Verdict::Go
            }
        }
    }

    fn fail(&mut self, error: Error) -> Verdict {
        let again = matches!(error.code, ErrorCode::Unauthenticated | ErrorCode::OutOfOrder);
        if error.is_transient() || again {
            self.rewind();
            return Verdict::Retry(error);
        }
        if error.code == ErrorCode::UnknownProducer && self.can_reopen() {
            return Verdict::Reopen;
        }
        Verdict::Fatal(error)
    }

    /// Number of the first message whose answer is not known, resolved or not.
    fn first_open(&self) -> u64 {
        self.first + self.slots.iter().take_while(|slot| slot.result.is_some()).count() as u64
    }

    /// Whether no message can have been stored under its number: each attempt was refused, or will be, as
    /// only number 1 opens a producer.
    fn can_reopen(&self) -> bool {
        self.first_open() > 1 && self.slots.iter().all(|slot| !slot.doubtful && slot.result.is_none())
    }

    /// The unresolved messages become the first ones of a new producer.
    pub fn reopen(&mut self) {
        (self.first, self.next) = (1, 1);
        self.sent.clear();
        self.slots.iter_mut().for_each(|slot| slot.attempts = 0);
    }

    fn settle(&mut self, number: u64, result: Result<Ack, Error>) {
        if let Some(slot) = self.slot(number) {
            slot.result.get_or_insert(result);
        }
    }

    /// Answers what has an answer, in order.
    fn resolve(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.result.is_some()) {
            let Some(Slot { push, result: Some(result), .. }) = self.slots.pop_front() else { return };
            self.first += 1;
            // Nobody waits for the answer when the receipt was dropped.
            let _ = push.done.send(result);
            drop(push.permits);
        }
        self.next = self.next.max(self.first);
    }

    /// Answers everything with `error`; what has an attempt without an answer may have been stored.
    pub fn fail_all(&mut self, error: &Error) {
        self.lose_connection();
        for slot in &mut self.slots {
            let outcome = if slot.doubtful { Outcome::Unknown } else { Outcome::None };
            slot.result.get_or_insert_with(|| Err(Error { outcome, ..error.clone() }));
        }
        self.resolve();
    }
}

/// A refusal that `apply` remembers under the message's number.
fn uses_number(code: ErrorCode) -> bool {
    code.retry() == Retry::Never
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
