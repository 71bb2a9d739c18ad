//! The rules: what a cluster answers, without any replication.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use unibus_client::ErrorCode;
use unibus_client::proto::id::RoomId;
use unibus_client::proto::v1::publish_outcome::Outcome;
use unibus_client::proto::v1::{
    Accepted, Delivery, Failure, OutgoingMessage, PublishOutcome, PublishRequest, PublishResponse, Reject, Room,
    RosterEntry, Signed, Stored, StoredMessage, delivery,
};

/// What happens to one publish request.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The stream breaks, nothing is stored.
    BreakBefore,
    /// It is stored, but the stream breaks before the answer.
    BreakAfter,
    /// It is stored, but no answer ever comes.
    HangAfter,
    /// The request fails with this code; with `true` it was stored all the same.
    Fail(ErrorCode, bool),
    /// The stream ends with this status.
    End(ErrorCode),
}

/// What happens to one subscription.
#[derive(Clone, Debug, PartialEq)]
pub enum SubscribeFault {
    /// It breaks after so many batches.
    BreakAfter(usize),
    /// After so many batches it says nothing more, not even a heartbeat.
    SilentAfter(usize),
    /// It leaves out the entry with this sequence.
    Skip(u64),
    /// It sends this many entries before the wanted one again.
    Repeat(u64),
}

#[derive(Default)]
pub struct Node {
    pub down: bool,
    /// Takes connections and never answers.
    pub deaf: bool,
    /// Takes so long to answer a sign-in.
    pub sign_in_takes: std::time::Duration,
    /// Says after this time that no group has a leader.
    pub leaderless_after: Option<std::time::Duration>,
    /// Does not take tokens until it is asked so often.
    pub refuse_tokens: u32,
    pub publish_faults: VecDeque<Fault>,
    pub subscribe_faults: VecDeque<SubscribeFault>,
    pub call_faults: VecDeque<(ErrorCode, u64)>,
    /// Shows only so many entries of a room, like a follower that lags.
    pub shows: Option<u64>,
    /// First numbers of the publish requests that came.
    pub requests: Vec<(u64, usize)>,
    pub subscriptions: u32,
    /// Kills the streams that were opened before it was raised.
    pub boot: u64,
}

#[derive(Default)]
pub struct Producer {
    pub last: u64,
    answers: BTreeMap<u64, (u64, Bytes)>,
}

pub struct RoomState {
    pub room: Room,
    pub timeline: Vec<Delivery>,
    pub producers: BTreeMap<Bytes, Producer>,
    pub roster: Vec<RosterEntry>,
}

impl RoomState {
    pub fn messages(&self) -> impl Iterator<Item = &StoredMessage> {
        self.timeline.iter().filter_map(|delivery| match &delivery.entry {
            Some(delivery::Entry::Message(message)) => Some(message),
            _ => None,
        })
    }

    pub fn head(&self) -> u64 {
        self.timeline.len() as u64 - 1
    }

    fn append(&mut self, message: StoredMessage) -> u64 {
        let sequence = self.timeline.len() as u64;
        self.timeline.push(Delivery { sequence, time_ms: sequence, entry: Some(delivery::Entry::Message(message)) });
        sequence
    }
}

#[derive(Default)]
pub struct State {
    pub nodes: BTreeMap<u64, Node>,
    pub rooms: BTreeMap<RoomId, RoomState>,
    pub leader: u64,
    pub nonces: BTreeMap<Bytes, u64>,
    pub nonce_count: u64,
    pub device_list: Option<(Signed, Vec<Signed>)>,
    pub sign_ins: u32,
    /// Publish requests on a stream whose token had ended.
    pub expired_requests: u32,
    pub token_lifetime_ms: u64,
    /// A seed: faults strike at random.
    pub chaos: Option<u64>,
    /// Refuses messages with this body, under their number.
    pub refuse_body: Option<Bytes>,
    /// Roster changes that are stored, but whose answer is lost.
    pub lose_append_answers: u32,
}

impl State {
    pub fn new() -> Self {
        let nodes = (1..=3).map(|id| (id, Node::default())).collect();
        Self { nodes, leader: 1, token_lifetime_ms: 900_000, ..Self::default() }
    }

    pub fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    pub fn kill(&mut self, id: u64) {
        let node = self.node(id);
        node.down = true;
        node.boot += 1;
    }

    pub fn add_room(&mut self, id: RoomId, subject: &str) {
        let room = Room {
            room_id: id.to_bytes(),
            subject: subject.into(),
            shard: 1,
            roster_hash: Bytes::from_static(&[1; 32]),
            ..Room::default()
        };
        let creation =
            Delivery { sequence: 0, time_ms: 0, entry: Some(delivery::Entry::Roster(RosterEntry::default())) };
        let state = RoomState { room, timeline: vec![creation], producers: BTreeMap::new(), roster: Vec::new() };
        self.rooms.insert(id, state);
    }

    /// Stores messages as if another client had published them.
    pub fn store(&mut self, id: RoomId, bodies: impl IntoIterator<Item = String>) {
        let room = self.rooms.get_mut(&id).unwrap();
        for body in bodies {
            room.append(stored(&PublishRequest::default(), 1, &OutgoingMessage { body: body.into(), headers: vec![] }));
        }
    }

    pub fn room(&self, id: RoomId) -> Room {
        let state = &self.rooms[&id];
        Room { head: state.head(), leader: self.leader, ..state.room.clone() }
    }

    fn roll(&mut self) -> Option<u64> {
        let state = self.chaos.as_mut()?;
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        Some(*state)
    }

    /// What strikes the next publish request.
    pub fn next_fault(&mut self, node: u64) -> Option<Fault> {
        if let Some(fault) = self.node(node).publish_faults.pop_front() {
            return Some(fault);
        }
        let roll = self.roll()?;
        self.leader = if roll % 29 == 0 { 1 + roll / 29 % 3 } else { self.leader };
        match roll % 100 {
            0..5 => Some(Fault::BreakBefore),
            5..10 => Some(Fault::BreakAfter),
            10..12 => Some(Fault::HangAfter),
            12..16 => Some(Fault::Fail(ErrorCode::NoLeader, false)),
            16..20 => Some(Fault::Fail(ErrorCode::Overloaded, false)),
            20..24 => Some(Fault::Fail(ErrorCode::OutcomeUnknown, true)),
            24..28 => Some(Fault::Fail(ErrorCode::OutcomeUnknown, false)),
            28 => Some(Fault::End(ErrorCode::Unauthenticated)),
            _ => None,
        }
    }

    /// The rules of section 5.
    pub fn apply(&mut self, request: &PublishRequest) -> PublishResponse {
        let id = RoomId::from_bytes(&request.room_id).unwrap();
        let (leader, refuse) = (self.leader, self.refuse_body.clone());
        let room = self.rooms.get_mut(&id).unwrap();
        let mut outcomes = Vec::new();
        for (number, message) in (request.first_number..).zip(&request.messages) {
            let outcome = match room.room.policy {
                Some(policy) if !policy.persist => {
                    room.append(stored(request, number, message));
                    Outcome::Accepted(Accepted { nodes: 2 })
                }
                _ => publish_one(room, request, number, message, refuse.as_ref()),
            };
            outcomes.push(PublishOutcome { first_number: number, count: 1, outcome: Some(outcome) });
        }
        PublishResponse { request: request.request, outcomes, time_ms: 5, leader, voters: 3, failure: None }
    }
}

fn publish_one(
    room: &mut RoomState,
    request: &PublishRequest,
    number: u64,
    message: &OutgoingMessage,
    refuse: Option<&Bytes>,
) -> Outcome {
    let reject = |code, expected| Outcome::Reject(Reject { expected, ..Reject::new(code, "refused") });
    let fresh = !room.producers.contains_key(&request.producer_id);
    if fresh && number != 1 {
        return reject(ErrorCode::UnknownProducer, 0);
    }
    let producer = room.producers.entry(request.producer_id.clone()).or_default();
    if let Some((sequence, body)) = producer.answers.get(&number) {
        return match *body == message.body {
            true if *sequence == u64::MAX => reject(ErrorCode::Forbidden, 0),
            true => Outcome::Duplicate(Stored { first_sequence: *sequence }),
            false => reject(ErrorCode::IdReused, 0),
        };
    }
    if number != producer.last + 1 {
        return reject(ErrorCode::OutOfOrder, producer.last + 1);
    }
    producer.last = number;
    if refuse == Some(&message.body) {
        producer.answers.insert(number, (u64::MAX, message.body.clone()));
        return reject(ErrorCode::Forbidden, 0);
    }
    let sequence = room.timeline.len() as u64;
    producer.answers.insert(number, (sequence, message.body.clone()));
    room.append(stored(request, number, message));
    Outcome::Stored(Stored { first_sequence: sequence })
}

fn stored(request: &PublishRequest, number: u64, message: &OutgoingMessage) -> StoredMessage {
    StoredMessage {
        user: "alice".into(),
        device_id: Bytes::from_static(&[3; 16]),
        producer_id: if request.producer_id.is_empty() {
            Bytes::from_static(&[0; 8])
        } else {
            request.producer_id.clone()
        },
        number,
        headers: message.headers.clone(),
        body: message.body.clone(),
    }
}

pub fn failure(request: u64, code: ErrorCode) -> PublishResponse {
    let failure = Failure {
        code: code.as_str().into(),
        message: "failed on demand".into(),
        outcome: code.outcome().as_str().into(),
        retry_after_ms: 0,
    };
    PublishResponse { request, failure: Some(failure), ..PublishResponse::default() }
}
