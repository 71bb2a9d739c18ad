//! Random publishes, policies, ticks and seals against a model that keeps every entry: nothing falls out that
//! the policy keeps, what it does not keep falls out, and a segment is dropped exactly when nobody can read
//! an entry of it.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Log, PLAIN, Person, publish, room_id};
use proptest::prelude::*;
use unibus_machine::{Applied, Entry, Event, Machine, MemoryRows};
use unibus_proto::id::RoomId;
use unibus_proto::log::proposal::Command;
use unibus_proto::log::{PublishGroup, SegmentSealed, Tick};
use unibus_proto::v1::{OutgoingMessage, RoomPolicy, RoomRetention, RosterOp};

const ROOMS: [&str; 2] = ["a.b", "c.d"];
const SEGMENT_BYTES: u64 = 3_000;
/// A span may be so much larger than its segment: by one batch.
const SPAN_BYTES: u64 = SEGMENT_BYTES + 5 * 700;
const DAY_MS: u64 = 24 * 3_600_000;

#[derive(Clone, Debug)]
enum Op {
    Publish { room: usize, count: usize, size: usize },
    Policy { room: usize, retention: RoomRetention },
    Pass { minutes: u64 },
    Seal,
}

fn op() -> impl Strategy<Value = Op> {
    let bound = |values: &'static [u64]| prop::sample::select(values);
    let retention = (bound(&[0, 0, 60_000, 7_200_000]), bound(&[0, 0, 1, 2_000, 9_000]), bound(&[0, 0, 1, 3, 40]));
    let retention = retention.prop_map(|(max_age_ms, max_bytes, max_messages)| RoomRetention {
        max_age_ms,
        max_bytes,
        max_messages,
    });
    prop_oneof![
        8 => (0..2_usize, 1..6_usize, 0..400_usize).prop_map(|(room, count, size)| Op::Publish { room, count, size }),
        1 => (0..2_usize, retention).prop_map(|(room, retention)| Op::Policy { room, retention }),
        2 => (0..200_u64).prop_map(|minutes| Op::Pass { minutes }),
        1 => Just(Op::Seal),
    ]
}

/// An entry as the model keeps it.
struct Kept {
    sequence: u64,
    at_ms: u64,
    bytes: u64,
    segment: u64,
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<RoomId, Vec<Kept>>,
    floors: BTreeMap<RoomId, u64>,
    complete: BTreeSet<u64>,
    sealed: BTreeSet<u64>,
    dropped: BTreeSet<u64>,
}

struct Run {
    log: Log,
    alice: Person,
    numbers: [u64; 2],
    model: Model,
}

impl Run {
    fn new() -> Self {
        let mut log = Log::shard();
        log.machine = log.machine.with_segment_bytes(SEGMENT_BYTES);
        let mut run = Self { log, alice: Person::new("alice"), numbers: [1, 1], model: Model::default() };
        for subject in ROOMS {
            run.apply(run.alice.create(subject));
        }
        run
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Publish { room, count, size } => {
                let body = vec![b'x'; size].into();
                let messages = vec![OutgoingMessage { headers: vec![], body }; count];
                let group = self.alice.group(ROOMS[room], ["p", "q"][room], self.numbers[room], &[]);
                self.numbers[room] += count as u64;
                self.apply(publish(vec![PublishGroup { messages, opened_ms: self.log.at_ms, ..group }]));
            }
            Op::Policy { room, retention } => {
                let policy = RoomPolicy { retention: Some(retention), ..PLAIN };
                let command = self.log.roster_command(&self.alice, ROOMS[room], |event| {
                    event.set_op(RosterOp::Policy);
                    event.policy = Some(policy);
                });
                self.apply(command);
            }
            Op::Pass { minutes } => {
                self.log.at_ms += minutes * 60_000;
                self.apply(Command::Tick(Tick {}));
            }
            Op::Seal => self.seal(),
        }
    }

    fn seal(&mut self) {
        for (segment, is_sealed) in self.log.machine.complete_segments(0, 100) {
            if !is_sealed {
                let hash = vec![segment as u8; 32].into();
                self.apply(Command::SegmentSealed(SegmentSealed { segment, length: 9, hash }));
            }
        }
    }

    fn apply(&mut self, command: Command) -> Applied {
        let is_tick = matches!(command, Command::Tick(_));
        let applied = self.log.apply(command);
        for event in &applied.events {
            self.model.take(event);
        }
        for subject in ROOMS {
            self.model.judge(&self.log, room_id(subject), is_tick);
        }
        self.model.judge_segments();
        applied
    }
}

impl Model {
    fn take(&mut self, event: &Event) {
        match event {
            Event::Appended { segment, room, deliveries } => {
                let kept = deliveries.iter().map(|delivery| Kept {
                    sequence: delivery.sequence.0,
                    at_ms: delivery.at_ms,
                    bytes: delivery.bytes.len() as u64,
                    segment: *segment,
                });
                self.entries.entry(*room).or_default().extend(kept);
            }
            Event::SegmentCut { segment } => assert!(self.complete.insert(*segment)),
            Event::SegmentSealed { segment, .. } => assert!(self.sealed.insert(*segment)),
            Event::SegmentDropped { segment } => assert!(self.dropped.insert(*segment), "{segment} is dropped twice"),
            _ => {}
        }
    }

    /// The floor is where the rules allow it, give or take the size of a span.
    fn judge(&mut self, log: &Log, room: RoomId, is_tick: bool) {
        let Some(row) = log.machine.room(room) else { return };
        let (now_ms, entries) = (log.machine.log_time(), &self.entries[&room]);
        let before = self.floors.insert(room, row.floor).unwrap_or(0);
        assert!(row.floor >= before, "the floor fell from {before} to {}", row.floor);
        let policy = row.policy.and_then(|policy| policy.retention).unwrap_or_default();
        let bytes_from = |floor: u64| -> u64 {
            entries.iter().filter(|entry| entry.sequence >= floor).map(|entry| entry.bytes).sum()
        };
        let (kept, kept_bytes) = (row.next_sequence - row.floor, bytes_from(row.floor));
        if row.floor > before {
            let last = &entries[row.floor as usize - 1];
            let by_age = policy.max_age_ms > 0 && last.at_ms + policy.max_age_ms <= now_ms;
            let by_count = policy.max_messages > 0 && kept >= policy.max_messages;
            let by_bytes = policy.max_bytes > 0 && kept_bytes + SPAN_BYTES >= policy.max_bytes && kept >= 1;
            assert!(by_age || by_count || by_bytes, "{policy:?} does not drop sequence {}", last.sequence);
        }
        assert!(policy.max_messages == 0 || kept <= policy.max_messages, "{kept} kept under {policy:?}");
        let is_small = kept <= 1 || kept_bytes <= policy.max_bytes + SPAN_BYTES;
        assert!(policy.max_bytes == 0 || is_small, "{kept_bytes} bytes kept under {policy:?}");
        if is_tick && policy.max_age_ms > 0 {
            let oldest = entries.get(row.floor as usize).map_or(u64::MAX, |entry| entry.at_ms);
            assert!(oldest.saturating_add(policy.max_age_ms + DAY_MS) > now_ms, "kept since {oldest} at {now_ms}");
        }
    }

    fn judge_segments(&self) {
        let mut live = BTreeSet::new();
        for (room, entries) in &self.entries {
            live.extend(entries.iter().filter(|entry| entry.sequence >= self.floors[room]).map(|entry| entry.segment));
        }
        let gone: BTreeSet<u64> = self.sealed.difference(&live).copied().collect();
        assert_eq!(self.dropped, gone, "dropped are exactly the sealed segments without an entry to read");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_timeline_keeps_what_its_policy_says(ops in prop::collection::vec(op(), 1..60)) {
        let mut run = Run::new();
        ops.iter().for_each(|op| run.step(op));
    }

    /// A snapshot at any entry, and the log after it, make the same rows and events as the whole log.
    #[test]
    fn a_snapshot_and_the_rest_of_the_log_make_the_same(ops in prop::collection::vec(op(), 1..40), at: prop::sample::Index) {
        let mut run = Run::new();
        ops.iter().for_each(|op| run.step(op));
        let entries = run.log.entries.clone();
        let cut = at.index(entries.len());
        let machine = |rows: MemoryRows| Machine::new(common::SHARD, common::CLUSTER, rows).with_segment_bytes(SEGMENT_BYTES);
        let mut replica = machine(MemoryRows::default());
        for (index, proposal) in (1..).zip(entries) {
            if index == cut as u64 + 1 {
                replica = machine(replica.rows().clone());
            }
            replica.apply(Entry { group: common::SHARD, index, term: 1 }, proposal);
        }
        prop_assert!(replica.rows() == run.log.machine.rows(), "rows differ");
    }
}
