//! What was read of each room, and what may come next. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use prost::Message as _;
use unibus_proto::id::{DeviceId, ProducerId, RoomId};
use unibus_proto::position::Sequence;
use unibus_proto::subject::SubjectFilter;
use unibus_proto::v1::{CaughtUp, Delivery, DeliveryBatch, RoomPosition, RosterEvent, SubscribeRequest, delivery};

use super::Start;
use super::item::{Item, Received, RosterChange};
use crate::{Error, ErrorCode};

/// The positions of a subscription.
pub(super) struct Track {
    start: Start,
    next: BTreeMap<RoomId, u64>,
    caught_up: bool,
}

impl Track {
    pub fn new(start: Start, resume: &BTreeMap<RoomId, Sequence>) -> Self {
        let next = resume.iter().map(|(&room, sequence)| (room, sequence.0)).collect();
        Self { start, next, caught_up: false }
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
    pub fn accept(&mut self, batch: DeliveryBatch, queue: &mut VecDeque<Item>) -> Result<(), Error> {
        let room = RoomId::from_bytes(&batch.room_id).map_err(malformed)?;
        let subject: Arc<str> = batch.subject.into();
        for delivery in batch.deliveries {
            let expected = self.next.get(&room).copied().unwrap_or(delivery.sequence);
            if delivery.sequence < expected {
                continue;
            }
            if delivery.sequence > expected {
                let found = delivery.sequence;
                let message = format!("room {room} ({subject}): the node sent sequence {found}, expected {expected}");
                return Err(Error::new(ErrorCode::Corrupt, message));
            }
            self.next.insert(room, delivery.sequence + 1);
            queue.push_back(item(room, &subject, delivery)?);
        }
        Ok(())
    }

    /// History is done. Positions of rooms that delivered nothing are kept for a later connection; those
    /// of other rooms are known better here.
    pub fn catch_up(&mut self, caught_up: CaughtUp, queue: &mut VecDeque<Item>) -> Result<(), Error> {
        for position in caught_up.positions {
            let room = RoomId::from_bytes(&position.room_id).map_err(malformed)?;
            self.next.entry(room).or_insert(position.next_sequence);
        }
        if !self.caught_up {
            self.caught_up = true;
            queue.push_back(Item::CaughtUp);
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

    /// The next sequence of each room, not counting what is still queued.
    pub fn positions(&self, queued: &VecDeque<Item>) -> BTreeMap<RoomId, Sequence> {
        let mut positions: BTreeMap<_, _> = self.next.iter().map(|(&room, &next)| (room, Sequence(next))).collect();
        for item in queued.iter().rev() {
            match item {
                Item::Message(message) => positions.insert(message.room_id, message.sequence),
                Item::Roster(change) => positions.insert(change.room_id, change.sequence),
                Item::CaughtUp => None,
            };
        }
        positions
    }
}

fn malformed(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::VersionSkew, format!("subscription: {error}"))
}

fn item(room_id: RoomId, subject: &Arc<str>, delivery: Delivery) -> Result<Item, Error> {
    let (subject, sequence, time_ms) = (subject.clone(), Sequence(delivery.sequence), delivery.time_ms);
    match delivery.entry {
        Some(delivery::Entry::Message(message)) => Ok(Item::Message(Received {
            room_id,
            subject,
            sequence,
            time_ms,
            user: message.user,
            device: DeviceId::from_bytes(&message.device_id).map_err(malformed)?,
            producer: ProducerId::from_bytes(&message.producer_id).map_err(malformed)?,
            number: message.number,
            headers: message.headers,
            body: message.body,
        })),
        Some(delivery::Entry::Roster(entry)) => {
            let event = entry.event.as_ref().and_then(|event| RosterEvent::decode(event.payload.clone()).ok());
            Ok(Item::Roster(RosterChange { room_id, subject, sequence, time_ms, entry, event }))
        }
        None => Err(malformed(format!("sequence {sequence} holds an entry of an unknown kind; upgrade this client"))),
    }
}
