//! Random command sequences: the invariants hold after each entry, the same log makes the same bytes,
//! timelines have no gaps, and a retry of any earlier publish gets the first answer.

mod common;

use std::collections::BTreeMap;

use common::{Log, Person, message, room_id, short};
use proptest::prelude::*;
use unibus_machine::{Applied, Entry, Event, Machine, MemoryRows};
use unibus_proto::id::RoomId;
use unibus_proto::log::proposal::Command;
use unibus_proto::log::{PublishGroup, Tick, UserAttach};
use unibus_proto::v1::publish_outcome::Outcome;
use unibus_proto::v1::{PublishOutcome, RoomPolicy, RoomRetention, RoomRole, RosterOp};

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const ROOMS: [&str; 2] = ["a.b", "c.d"];
const PRODUCERS: [&str; 2] = ["p", "q"];
const SEGMENT_BYTES: u64 = 5_000;

/// What one step does; the numbers pick users, rooms and producers.
#[derive(Clone, Debug)]
enum Op {
    Create { user: usize, room: usize },
    Roster { actor: usize, room: usize, op: i32, user: usize, role: i32 },
    Publish(Vec<Group>),
    Attach { user: usize, key: usize },
    Tick { hours: u64 },
    Back,
}

/// A group of a batch: `skip` is how far its first number is from the next one.
#[derive(Clone, Debug)]
struct Group {
    user: usize,
    room: usize,
    producer: usize,
    skip: i64,
    count: usize,
    is_too_big: bool,
}

fn group() -> impl Strategy<Value = Group> {
    let skip = prop_oneof![6 => Just(0), 3 => -3..0_i64, 1 => 1..3_i64];
    let too_big = prop::bool::weighted(0.05);
    (0..3_usize, 0..2_usize, 0..2_usize, skip, 1..4_usize, too_big).prop_map(
        |(user, room, producer, skip, count, is_too_big)| Group { user, room, producer, skip, count, is_too_big },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => (0..3_usize, 0..2_usize).prop_map(|(user, room)| Op::Create { user, room }),
        4 => (0..3_usize, 0..2_usize, 0..8_i32, 0..3_usize, 0..4_i32)
            .prop_map(|(actor, room, op, user, role)| Op::Roster { actor, room, op, user, role }),
        8 => prop::collection::vec(group(), 1..4).prop_map(Op::Publish),
        1 => (0..3_usize, 0..3_usize).prop_map(|(user, key)| Op::Attach { user, key }),
        1 => (0..13_u64).prop_map(|hours| Op::Tick { hours }),
        1 => Just(Op::Back),
    ]
}

/// A policy of each kind of retention.
fn keeping(kind: i32) -> RoomPolicy {
    let (max_age_ms, max_bytes, max_messages) = [(0, 0, 0), (0, 0, 5), (0, 2_000, 0), (7_200_000, 0, 0)][kind as usize];
    RoomPolicy { retention: Some(RoomRetention { max_age_ms, max_bytes, max_messages }), ..common::PLAIN }
}

/// Drives a log and remembers what each message was first told.
struct Run {
    log: Log,
    people: Vec<Person>,
    /// The next number of each producer in each room, as its client counts.
    next: BTreeMap<(usize, usize), u64>,
    /// What was published, with what was decided for good.
    decided: Vec<(PublishGroup, Vec<PublishOutcome>)>,
    timelines: BTreeMap<RoomId, u64>,
    applied: Vec<Applied>,
}

impl Run {
    fn new() -> Self {
        let mut log = Log::shard();
        log.machine = log.machine.with_segment_bytes(SEGMENT_BYTES);
        let people = USERS.map(Person::new).to_vec();
        let (next, timelines) = (BTreeMap::new(), BTreeMap::new());
        let mut run = Self { log, people, next, decided: Vec::new(), timelines, applied: Vec::new() };
        run.step(&Op::Create { user: 0, room: 0 });
        run.step(&Op::Roster { actor: 0, room: 0, op: RosterOp::Add as i32, user: 1, role: RoomRole::Member as i32 });
        run
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Create { user, room } => {
                let create = self.people[*user].create(ROOMS[*room]);
                self.apply(create);
            }
            Op::Roster { actor, room, op, user, role } => self.roster(*actor, *room, *op, *user, *role),
            Op::Publish(groups) => self.publish(groups),
            Op::Attach { user, key } => {
                let user_key = self.people[*key].public_key();
                self.apply(Command::UserAttach(UserAttach { handle: USERS[*user].into(), user_key }));
            }
            Op::Tick { hours } => {
                self.log.at_ms += hours * 3_600_000;
                self.apply(Command::Tick(Tick {}));
            }
            Op::Back => self.log.at_ms = self.log.at_ms.saturating_sub(1_000),
        }
    }

    fn roster(&mut self, actor: usize, room: usize, op: i32, user: usize, role: i32) {
        let (actor, user) = (self.people[actor].clone(), self.people[user].clone());
        let command = self.log.roster_command(&actor, ROOMS[room], |event| {
            event.op = op;
            event.role = if matches!(event.op(), RosterOp::Add | RosterOp::Role) { role } else { 0 };
            match event.op() {
                RosterOp::Policy => event.policy = Some(keeping(role)),
                _ => event.subject_user = user.handle.to_string(),
            }
            if event.op() == RosterOp::Add {
                event.subject_key_fingerprint = user.fingerprint();
            }
        });
        self.apply(command);
    }

    fn publish(&mut self, groups: &[Group]) {
        let groups: Vec<_> = groups.iter().map(|group| self.group(group)).collect();
        let applied = self.apply(common::publish(groups.clone()));
        let outcomes = common::outcomes(applied.reply.reply.unwrap());
        for (group, outcomes) in groups.into_iter().zip(outcomes) {
            let told: u32 = outcomes.iter().map(|outcome| outcome.count).sum();
            assert_eq!(told as usize, group.messages.len(), "each message is told once");
            let is_final =
                |outcome: &PublishOutcome| matches!(&outcome.outcome, Some(Outcome::Stored(_) | Outcome::Duplicate(_)));
            if outcomes.iter().all(is_final) {
                self.count(&group);
                self.decided.push((group, outcomes));
            }
        }
    }

    /// Bodies depend on room, producer and number only: a retry has the same bytes.
    fn group(&self, group: &Group) -> PublishGroup {
        let next = *self.next.get(&(group.room, group.producer)).unwrap_or(&1) as i64;
        let first = (next + group.skip).max(1) as u64;
        let body = |number| format!("{} {} {number}", ROOMS[group.room], PRODUCERS[group.producer]);
        let mut messages: Vec<_> = (first..).take(group.count).map(|number| message(&body(number))).collect();
        if group.is_too_big {
            messages.iter_mut().for_each(|message| message.headers[0].name.clear());
        }
        let person = &self.people[group.user];
        PublishGroup {
            messages,
            opened_ms: self.log.at_ms,
            ..person.group(ROOMS[group.room], PRODUCERS[group.producer], first, &[])
        }
    }

    fn count(&mut self, group: &PublishGroup) {
        let at =
            |names: &[&str; 2], id: fn(&str) -> Vec<u8>, found: &[u8]| names.iter().position(|name| id(name) == found);
        let room = at(&ROOMS, |name| room_id(name).0.to_vec(), &group.room_id).unwrap();
        let producer = at(&PRODUCERS, |name| common::producer_id(name).0.to_vec(), &group.producer_id).unwrap();
        let next = self.next.entry((room, producer)).or_insert(1);
        *next = (*next).max(group.first_number + group.messages.len() as u64);
    }

    fn apply(&mut self, command: Command) -> Applied {
        let applied = self.log.apply(command);
        for event in &applied.events {
            if let Event::Appended { room, deliveries, .. } = event {
                let next = self.timelines.entry(*room).or_default();
                for delivery in deliveries {
                    assert_eq!(delivery.sequence.0, *next, "no gap in {room}");
                    assert_eq!(delivery.at_ms, applied.reply.at_ms);
                    *next += 1;
                }
            }
        }
        self.applied.push(applied.clone());
        applied
    }
}

fn replay(log: &Log) -> (MemoryRows, Vec<Applied>) {
    let mut machine =
        Machine::new(common::SHARD, common::CLUSTER, MemoryRows::default()).with_segment_bytes(SEGMENT_BYTES);
    let entries = log.entries.iter().zip(1..);
    let entry = |index| Entry { group: common::SHARD, index, term: 1 };
    let applied = entries.map(|(proposal, index)| machine.apply(entry(index), proposal.clone())).collect();
    (machine.into_rows(), applied)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_log_makes_the_same_bytes(ops in prop::collection::vec(op(), 1..40)) {
        let mut run = Run::new();
        ops.iter().for_each(|op| run.step(op));
        let (rows, applied) = replay(&run.log);
        prop_assert!(&rows == run.log.machine.rows(), "rows differ");
        prop_assert!(applied == run.applied, "replies or events differ");
    }

    #[test]
    fn a_retry_of_any_publish_gets_the_first_answer(ops in prop::collection::vec(op(), 1..40)) {
        let mut run = Run::new();
        // Time stands still: a producer that was retired has no answers left.
        ops.iter().filter(|op| !matches!(op, Op::Tick { .. })).for_each(|op| run.step(op));
        for (group, first) in std::mem::take(&mut run.decided) {
            let before = run.log.machine.rows().clone();
            let again = run.log.publish(group);
            prop_assert_eq!(short(&again), merged(&first));
            prop_assert!(&before == run.log.machine.rows(), "a retry changes nothing");
        }
    }

    /// Whatever bytes the fields hold, a command is answered and the invariants hold.
    #[test]
    fn malformed_fields_are_answered(at in 0..6_usize, bytes in prop::collection::vec(any::<u8>(), 0..40), number: u64) {
        let mut run = Run::new();
        let alice = &run.people[0];
        let mut group = alice.group("a.b", "p", 1, &["x"]);
        match at {
            0 => group.room_id = bytes.into(),
            1 => group.user = String::from_utf8_lossy(&bytes).into(),
            2 => group.device_id = bytes.into(),
            3 => group.producer_id = bytes.into(),
            4 => group.opened_ms = number,
            _ => group.first_number = number,
        }
        run.apply(common::publish(vec![group]));
    }
}

/// First answers as a retry hears them: what was stored is a duplicate, and consecutive places are one.
fn merged(outcomes: &[PublishOutcome]) -> Vec<String> {
    let mut merged: Vec<(u32, u64)> = Vec::new();
    for outcome in outcomes {
        let first = match outcome.outcome.as_ref().unwrap() {
            Outcome::Stored(stored) | Outcome::Duplicate(stored) => stored.first_sequence,
            other => panic!("{other:?} is not kept here"),
        };
        match merged.last_mut() {
            Some((count, start)) if *start + u64::from(*count) == first => *count += outcome.count,
            _ => merged.push((outcome.count, first)),
        }
    }
    merged.into_iter().map(|(count, first)| format!("{count} duplicate of {first}")).collect()
}
