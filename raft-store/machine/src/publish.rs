//! Publishing: each message of a batch is answered, in this order of checks (ARCHITECTURE section 5):
//! a number that was decided gets its first answer; then the sender must still have access; then the number
//! must be the next one; then its size is checked; then it takes a sequence.
//!
//! A producer belongs to the device that opened it. Another device, of the same user or of another one, is
//! never given its answers: without access it hears `ROOM_NOT_FOUND`, with access `ID_REUSED`. Refusals that
//! `apply` decides for the next number of a producer (no access, bad size) use the number up and are given
//! again. Refusals with no producer to remember them in (no such room, an ephemeral one, unknown producer, quota) have no
//! effect at all.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{DeviceId, Handle, ProducerId, RoomId};
use unibus_proto::limits::{
    BATCH_MESSAGES_MAX, BODY_BYTES_MAX, HEADER_NAME_BYTES_MAX, HEADER_VALUE_BYTES_MAX, HEADERS_BYTES_MAX, HEADERS_MAX,
};
use unibus_proto::log::{GroupOutcome, PublishBatch, PublishGroup, PublishReply};
use unibus_proto::row::{MemberRow, RoomRow};
use unibus_proto::v1::publish_outcome::Outcome;
use unibus_proto::v1::{Header, OutgoingMessage, PublishOutcome, Reject, RoomRole, Stored};

use crate::answers::Known;
use crate::fields::{invalid, parse, reject, require, room_not_found};
use crate::key::Key;
use crate::mutants;
use crate::producer::{self, Producer};
use crate::retention;
use crate::room::is_ephemeral;
use crate::rows::{self, Rows};
use crate::step::{Answer, Step};
use crate::timeline::{Appender, Sender};

pub(crate) fn batch<R: Rows>(step: &mut Step<'_, R>, batch: PublishBatch) -> Result<Answer, Reject> {
    let mut groups = vec![GroupOutcome::default(); batch.groups.len()];
    let mut loaded = Loaded::default();
    for (at, group) in in_order(batch.groups) {
        groups[at] = GroupOutcome { outcomes: publish(step, &mut loaded, group) };
    }
    loaded.flush(step);
    Ok(Answer::Publish(PublishReply { groups }))
}

/// The rows of a batch: read once, written once, however many groups share them.
#[derive(Default)]
struct Loaded {
    rooms: BTreeMap<RoomId, Room>,
    denied: BTreeMap<(RoomId, Handle), Option<Reject>>,
    producers: BTreeMap<(RoomId, ProducerId), Producer>,
}

struct Room {
    row: RoomRow,
    is_changed: bool,
}

impl Loaded {
    fn flush<R: Rows>(self, step: &mut Step<'_, R>) {
        let mut work = retention::Work::default();
        for (id, mut room) in self.rooms.into_iter().filter(|(_, room)| room.is_changed) {
            retention::enforce(step, (id, &mut room.row), &mut work);
            rows::put(step.rows, &Key::Room(id), &room.row);
        }
        work.finish(step);
        for producer in self.producers.into_values() {
            producer.flush(step);
        }
    }
}

/// The groups with their places, in the order in which they take sequences.
fn in_order(groups: Vec<PublishGroup>) -> Vec<(usize, PublishGroup)> {
    let mut groups: Vec<_> = groups.into_iter().enumerate().collect();
    if mutants::is(mutants::HASH_ORDER_IN_APPLY) {
        use std::hash::{BuildHasher, RandomState};
        let state = RandomState::new();
        groups.sort_by_key(|(at, _)| state.hash_one(at));
    }
    groups
}

fn publish<R: Rows>(step: &mut Step<'_, R>, loaded: &mut Loaded, group: PublishGroup) -> Vec<PublishOutcome> {
    let (first_number, count) = (group.first_number, group.messages.len() as u32);
    match Publishing::open(step, loaded, &group) {
        Ok(publishing) => publishing.run(step, first_number, group.messages),
        Err(reject) => vec![PublishOutcome { first_number, count, outcome: Some(Outcome::Reject(reject)) }],
    }
}

/// One group under way.
struct Publishing<'a> {
    ids: Ids,
    room: &'a mut Room,
    /// Why the sender may not publish.
    denied: Option<Reject>,
    producer: &'a mut Producer,
    sender: Sender,
    appender: Appender,
    outcomes: Vec<PublishOutcome>,
}

struct Ids {
    room: RoomId,
    user: Handle,
    device: DeviceId,
    producer: ProducerId,
}

impl Ids {
    fn of(group: &PublishGroup) -> Result<Self, Reject> {
        let count = group.messages.len();
        require((1..=BATCH_MESSAGES_MAX).contains(&count), || {
            invalid(format!("messages: found {count}, expected 1 to {BATCH_MESSAGES_MAX}"))
        })?;
        let in_range = group.first_number > 0 && group.first_number.checked_add(count as u64).is_some();
        require(in_range, || invalid(format!("first number: found {}, expected 1 or more", group.first_number)))?;
        Ok(Self {
            room: RoomId::from_bytes(&group.room_id).map_err(invalid)?,
            user: parse(&group.user)?,
            device: DeviceId::from_bytes(&group.device_id).map_err(invalid)?,
            producer: ProducerId::from_bytes(&group.producer_id).map_err(invalid)?,
        })
    }
}

impl<'a> Publishing<'a> {
    fn open<R: Rows>(step: &mut Step<'_, R>, loaded: &'a mut Loaded, group: &PublishGroup) -> Result<Self, Reject> {
        let ids = Ids::of(group)?;
        let room = match loaded.rooms.entry(ids.room) {
            Entry::Occupied(room) => room.into_mut(),
            Entry::Vacant(place) => {
                let row = rows::get(step.rows, &Key::Room(ids.room)).ok_or_else(|| room_not_found(ids.room))?;
                place.insert(Room { row, is_changed: false })
            }
        };
        let denied = loaded.denied.entry((ids.room, ids.user.clone()));
        let denied = denied.or_insert_with(|| access(step.rows, &ids).err()).clone();
        require(!is_ephemeral(&room.row), || denied.clone().unwrap_or_else(|| not_stored(&ids)))?;
        let producer = match loaded.producers.entry((ids.room, ids.producer)) {
            Entry::Occupied(producer) => producer.into_mut(),
            Entry::Vacant(place) => place.insert(load_or_open(step, &ids, group, denied.as_ref())?),
        };
        check_owner(producer, &ids, denied.as_ref())?;
        let sender = Sender::new(ids.user.as_str(), &group.device_id, &group.producer_id);
        let appender = Appender::for_messages(&sender, &group.messages);
        Ok(Self { ids, room, denied, producer, sender, appender, outcomes: Vec::new() })
    }

    fn run<R: Rows>(
        mut self,
        step: &mut Step<'_, R>,
        first_number: u64,
        messages: Vec<OutgoingMessage>,
    ) -> Vec<PublishOutcome> {
        for (number, message) in (first_number..).zip(messages) {
            let outcome = self.decide(step, number, message);
            push(&mut self.outcomes, number, outcome);
        }
        if !self.appender.is_empty() {
            self.room.is_changed = true;
            self.appender.finish(step, self.ids.room, &mut self.room.row);
        }
        self.outcomes
    }

    fn decide<R: Rows>(&mut self, step: &Step<'_, R>, number: u64, message: OutgoingMessage) -> Outcome {
        let digest = producer::digest(&message);
        if let Some(known) = self.producer.known(step.rows, number, digest) {
            return self.first_answer(number, known, &message);
        }
        let next = self.producer.next();
        if number != next {
            return Outcome::Reject(self.denied.clone().unwrap_or_else(|| out_of_order(number, next)));
        }
        if let Some(reject) = self.denied.clone().or_else(|| bad_size(&message)) {
            self.producer.refused(step.rows, &reject.code, digest);
            return Outcome::Reject(reject);
        }
        let sequence = self.appender.push_message(&mut self.room.row, step.now(), &self.sender, number, message);
        self.producer.stored(step.rows, sequence, digest);
        Outcome::Stored(Stored { first_sequence: sequence.0 })
    }

    fn first_answer(&self, number: u64, known: Known, message: &OutgoingMessage) -> Outcome {
        match known {
            Known::Stored(sequence) => Outcome::Duplicate(Stored { first_sequence: sequence.0 }),
            Known::Forgotten => Outcome::Duplicate(Stored { first_sequence: 0 }),
            Known::Refused(code) => Outcome::Reject(refused(&code, &self.ids, message)),
            Known::Reused => Outcome::Reject(reject(
                ErrorCode::IdReused,
                format!(
                    "number {number} of producer {} was decided for another message; never give a number twice",
                    self.ids.producer
                ),
            )),
        }
    }
}

/// Nodes deliver what is for an ephemeral room; one that proposes it does not know such rooms.
fn not_stored(ids: &Ids) -> Reject {
    let message = format!("room {} is ephemeral and stores no messages; upgrade the node that proposed them", ids.room);
    reject(ErrorCode::VersionSkew, message)
}

/// Whether the sender may publish at this place in the log.
fn access<R: Rows>(rows: &R, ids: &Ids) -> Result<(), Reject> {
    let member = rows::get::<MemberRow>(rows, &Key::Member(ids.room, ids.user.as_str()));
    match member.map(|member| member.role()) {
        Some(RoomRole::Member | RoomRole::Admin) => Ok(()),
        Some(RoomRole::Reader) => Err(readers_only_read(ids)),
        Some(RoomRole::Unspecified) | None => Err(room_not_found(ids.room)),
    }
}

fn check_owner(producer: &Producer, ids: &Ids, denied: Option<&Reject>) -> Result<(), Reject> {
    require(producer.belongs_to(ids.user.as_str(), ids.device), || {
        denied.cloned().unwrap_or_else(|| {
            let message = format!("producer {} belongs to another device; open a producer of your own", ids.producer);
            reject(ErrorCode::IdReused, message)
        })
    })
}

/// The producer, or a new one that number 1 opens.
fn load_or_open<R: Rows>(
    step: &mut Step<'_, R>,
    ids: &Ids,
    group: &PublishGroup,
    denied: Option<&Reject>,
) -> Result<Producer, Reject> {
    if let Some(row) = rows::get(step.rows, &Key::Producer(ids.room, ids.producer)) {
        return Ok(Producer::new(ids.room, ids.producer, row));
    }
    let of = (ids.room, ids.user.as_str(), ids.producer);
    producer::check_open(step, of, group.first_number, group.opened_ms)
        .map_err(|reject| denied.cloned().unwrap_or(reject))?;
    Ok(producer::open(step, (ids.room, ids.producer), (ids.user.as_str(), ids.device), group.opened_ms))
}

/// The refusal with this code as it was given first: its text depends on nothing that may have changed.
fn refused(code: &str, ids: &Ids, message: &OutgoingMessage) -> Reject {
    let before = || Reject { code: code.into(), message: "refused before".into(), ..Reject::default() };
    match code.parse() {
        Ok(ErrorCode::RoomNotFound) => room_not_found(ids.room),
        Ok(ErrorCode::Forbidden) => readers_only_read(ids),
        Ok(ErrorCode::Invalid) => bad_size(message).unwrap_or_else(before),
        _ => before(),
    }
}

fn readers_only_read(ids: &Ids) -> Reject {
    let Ids { room, user, .. } = ids;
    let message = format!("{user} is a reader of room {room} and may not publish; ask an admin of the room");
    reject(ErrorCode::Forbidden, message)
}

fn out_of_order(number: u64, next: u64) -> Reject {
    let message = format!("number {number} is not the next one; resend from number {next}");
    Reject { expected: next, ..reject(ErrorCode::OutOfOrder, message) }
}

/// What is wrong with the sizes of a message, with what was found and what is allowed. It depends on the
/// message alone, so that a retry is told the same.
pub fn bad_size(message: &OutgoingMessage) -> Option<Reject> {
    let headers = &message.headers;
    let bytes = headers.iter().map(|header| header.name.len() + header.value.len()).sum();
    let too_many = |what: &str, found: usize, most: usize| {
        (found > most)
            .then(|| invalid(format!("message: found {found} {what}, at most {most} are allowed; make it smaller")))
    };
    too_many("bytes of body", message.body.len(), BODY_BYTES_MAX)
        .or_else(|| too_many("headers", headers.len(), HEADERS_MAX))
        .or_else(|| headers.iter().enumerate().find_map(|(at, header)| bad_header(at, header)))
        .or_else(|| too_many("bytes of headers", bytes, HEADERS_BYTES_MAX))
}

fn bad_header(at: usize, header: &Header) -> Option<Reject> {
    let (name, value) = (header.name.len(), header.value.len());
    let wrong = if name == 0 {
        "its name is empty, expected 1 byte or more".into()
    } else if name > HEADER_NAME_BYTES_MAX {
        format!("found {name} bytes of name, at most {HEADER_NAME_BYTES_MAX} are allowed")
    } else if value > HEADER_VALUE_BYTES_MAX {
        format!("found {value} bytes of value, at most {HEADER_VALUE_BYTES_MAX} are allowed")
    } else if header.name.chars().any(char::is_control) {
        "its name has control characters, expected none".into()
    } else {
        return None;
    };
    Some(invalid(format!("message: header {}: {wrong}", at + 1)))
}

/// Adds the outcome of a message; equal ones of consecutive messages become one.
fn push(outcomes: &mut Vec<PublishOutcome>, number: u64, outcome: Outcome) {
    if let Some(last) = outcomes.last_mut() {
        let follows = |first: &Stored, this: &Stored| match first.first_sequence {
            0 => this.first_sequence == 0,
            first => first + u64::from(last.count) == this.first_sequence,
        };
        let joins = match (&last.outcome, &outcome) {
            (Some(Outcome::Stored(first)), Outcome::Stored(this)) => follows(first, this),
            (Some(Outcome::Duplicate(first)), Outcome::Duplicate(this)) => follows(first, this),
            (Some(Outcome::Reject(first)), Outcome::Reject(this)) => is_same_reject(first, this),
            _ => false,
        };
        if joins {
            last.count += 1;
            return;
        }
    }
    outcomes.push(PublishOutcome { first_number: number, count: 1, outcome: Some(outcome) });
}

/// The text of numbers that are not the next one may name the first message only.
fn is_same_reject(first: &Reject, this: &Reject) -> bool {
    let is_next = first.expected == 0;
    first.code == this.code && first.expected == this.expected && !(is_next && first.message != this.message)
}
