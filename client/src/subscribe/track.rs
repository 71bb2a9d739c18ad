//! What was read of each room, and what may come next. Pure.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use unibus_proto::delivery::{entry_at, sequence_of};
use unibus_proto::id::RoomId;
use unibus_proto::position::Sequence;
use unibus_proto::subject::SubjectFilter;
use unibus_proto::v1::{CaughtUp, DeliveryBatch, RoomPosition, SubscribeRequest};

use super::Start;
use super::entry::{Run, malformed};
use super::item::Item;
use super::seen::Seen;
use crate::{Error, ErrorCode};

/// What was received and not asked for yet, in order.
pub(super) type Queue = VecDeque<Queued>;

/// An element of the queue.
pub(super) enum Queued {
    /// Entries; at least one.
    Run(Run),
    /// History is done.
    CaughtUp,
}

/// The positions of a subscription.
pub(super) struct Track {
    start: Start,
    next: BTreeMap<RoomId, u64>,
    caught_up: bool,
    /// Who published the last message that was taken.
    user: Arc<str>,
    seen: Seen,
}

impl Track {
    pub fn new(start: Start, resume: &BTreeMap<RoomId, Sequence>) -> Self {
        let next = resume.iter().map(|(&room, sequence)| (room, sequence.0)).collect();
        Self { start, next, caught_up: false, user: Arc::default(), seen: Seen::default() }
    }

    /// What to ask the next node for.
    pub fn request(&self, filter: &SubjectFilter, until_end: bool) -> SubscribeRequest {
        let resume = self.next.iter();
        let position =
            |(room, &next_sequence): (&RoomId, &u64)| RoomPosition { room_id: room.to_bytes(), next_sequence };
        SubscribeRequest {
            filter: filter.as_str().into(),
            // Once history is done, a room without a position is newer than the subscription.
            start: Some(if self.caught_up { Start::Earliest } else { self.start }.wire()),
            resume: resume.map(position).collect(),
            until_end,
        }
    }

    /// Takes entries of a room: those read before are dropped, a gap is an error.
    pub fn accept(&mut self, batch: DeliveryBatch, queue: &mut Queue) -> Result<(), Error> {
        let room = RoomId::from_bytes(&batch.room_id).map_err(malformed)?;
        let subject = batch.subject.clone();
        batch.into_chunks().into_iter().try_for_each(|chunk| self.accept_chunk(room, &subject, chunk, queue))
    }

    fn accept_chunk(&mut self, room: RoomId, subject: &Arc<str>, chunk: Bytes, queue: &mut Queue) -> Result<(), Error> {
        let mut at = 0;
        while at < chunk.len() {
            let (first, end_of_first) = look(&chunk, at)?;
            let expected = self.next.get(&room).copied().unwrap_or(first);
            match first.cmp(&expected) {
                Ordering::Less => at = end_of_first,
                Ordering::Equal => {
                    let (end, next) = consecutive(&chunk, end_of_first, first + 1)?;
                    self.next.insert(room, next);
                    let (subject, chunk) = (subject.clone(), chunk.clone());
                    let run = Run { room, subject, chunk, place: at..end, next: first, ephemeral: false };
                    queue.push_back(Queued::Run(run));
                    at = end;
                }
                Ordering::Greater => {
                    let message =
                        format!("room {room} ({subject}): the node sent sequence {first}, expected {expected}");
                    return Err(Error::new(ErrorCode::Corrupt, message));
                }
            }
        }
        Ok(())
    }

    /// Takes messages of an ephemeral room, which have no place that could be checked.
    pub fn accept_ephemeral(&mut self, batch: DeliveryBatch, queue: &mut Queue) -> Result<(), Error> {
        let room = RoomId::from_bytes(&batch.room_id).map_err(malformed)?;
        let subject = batch.subject.clone();
        for chunk in batch.into_chunks().into_iter().filter(|chunk| !chunk.is_empty()) {
            let (subject, place) = (subject.clone(), 0..chunk.len());
            queue.push_back(Queued::Run(Run { room, subject, chunk, place, next: 0, ephemeral: true }));
        }
        Ok(())
    }

    /// Another node serves the subscription from now on.
    pub fn change_node(&mut self) {
        self.seen.change_node();
    }

    /// History is done. Positions of rooms that delivered nothing are kept for a later connection; those
    /// of other rooms are known better here.
    pub fn catch_up(&mut self, caught_up: CaughtUp, queue: &mut Queue) -> Result<(), Error> {
        for position in caught_up.positions {
            let room = RoomId::from_bytes(&position.room_id).map_err(malformed)?;
            self.next.entry(room).or_insert(position.next_sequence);
        }
        if !self.caught_up {
            self.caught_up = true;
            queue.push_back(Queued::CaughtUp);
        }
        Ok(())
    }

    /// Whether history is done.
    pub fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    /// Whether each room was read up to its end, that included.
    pub fn reached(&self, ends: &BTreeMap<RoomId, u64>) -> bool {
        ends.iter().all(|(room, &end)| self.next.get(room).is_some_and(|&next| next > end))
    }

    /// The next element that was received; one that cannot be read stays where it is.
    pub fn take(&mut self, queue: &mut Queue) -> Option<Result<Item, Error>> {
        loop {
            let item = match queue.front_mut()? {
                Queued::Run(run) => {
                    let item = run.take(&mut self.user);
                    if run.is_empty() {
                        queue.pop_front();
                    }
                    item
                }
                Queued::CaughtUp => {
                    queue.pop_front();
                    Ok(Item::CaughtUp)
                }
            };
            let is_repeated =
                matches!(&item, Ok(Item::Message(message)) if message.ephemeral && self.seen.is_repeated(message));
            if !is_repeated {
                return Some(item);
            }
        }
    }

    /// The next sequence of each room, not counting what is still queued.
    pub fn positions(&self, queue: &Queue) -> BTreeMap<RoomId, Sequence> {
        let mut positions: BTreeMap<_, _> = self.next.iter().map(|(&room, &next)| (room, Sequence(next))).collect();
        for queued in queue.iter().rev() {
            if let Queued::Run(run) = queued
                && !run.ephemeral
            {
                positions.insert(run.room, Sequence(run.next));
            }
        }
        positions
    }
}

/// The sequence of the entry at `at` of a chunk, and where the entry ends.
fn look(chunk: &[u8], at: usize) -> Result<(u64, usize), Error> {
    let entry = entry_at(chunk, at).map_err(malformed)?;
    let end = entry.end;
    Ok((sequence_of(&chunk[entry]).map_err(malformed)?, end))
}

/// Where entries end that follow each other from `at` and `next` on, and what would come next.
fn consecutive(chunk: &[u8], mut at: usize, mut next: u64) -> Result<(usize, u64), Error> {
    while at < chunk.len() {
        let (sequence, end) = look(chunk, at)?;
        if sequence != next {
            break;
        }
        (at, next) = (end, next + 1);
    }
    Ok((at, next))
}
