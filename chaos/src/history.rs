//! What was seen from outside: what clients were promised, what readers were given, what each replica
//! holds at the end, and what the replicas said about themselves meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use unibus_proto::id::{GroupId, NodeId, ProducerId, RoomId};

/// What an entry of a timeline is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryId {
    /// A message, by its id.
    Message(ProducerId, u64),
    /// A roster event, by a hash of its payload.
    Roster(u64),
}

/// An entry of a timeline. The workload gives each message a body of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its place.
    pub sequence: u64,
    /// What it is.
    pub id: EntryId,
    /// A hash of the body.
    pub body: u64,
}

/// How a publish ended. Times are nanoseconds of virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody knows: no answer, or one that says so.
    Unknown,
    /// It did not happen.
    Refused,
    /// Stored. Sequence 0 = so long ago that the place is not kept.
    Acked {
        /// When the client heard of it.
        at: u64,
        /// Where it stands.
        sequence: u64,
    },
}

/// A publish, from the client's first call to the SDK's answer, retries included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The room.
    pub room: RoomId,
    /// A hash of the body.
    pub body: u64,
    /// The producer.
    pub producer: ProducerId,
    /// When the client called.
    pub began: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// A subscriber and all it was given, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reader {
    /// E.g. "r2@n1".
    pub name: String,
    /// It began at the start of each timeline and was drained at the end.
    pub complete: bool,
    /// What it was given, by room.
    pub rooms: BTreeMap<RoomId, Vec<Entry>>,
    /// Where it was told to go on, because retention had taken what it asked for.
    pub moved: BTreeSet<(RoomId, u64)>,
}

/// What a node said about one of its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// When.
    pub at: u64,
    /// Which node.
    pub node: NodeId,
    /// Which life of the node.
    pub life: u64,
    /// Which group.
    pub group: GroupId,
    /// Its term.
    pub term: u64,
    /// Whether it led.
    pub leads: bool,
    /// How far it knew the log committed.
    pub committed: u64,
    /// How far it had applied the log.
    pub applied: u64,
    /// Hash of the state at an index.
    pub state_hash: Option<(u64, [u8; 32])>,
}

/// Everything that the judges read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Every publish.
    pub publishes: Vec<Publish>,
    /// Every subscriber.
    pub readers: Vec<Reader>,
    /// What each replica holds after everything was healed and caught up.
    pub scans: BTreeMap<(NodeId, RoomId), Vec<Entry>>,
    /// Where each timeline begins on each replica at the end: the rest fell out by the room's retention.
    pub floors: BTreeMap<(NodeId, RoomId), u64>,
    /// What the replicas said, in order of time.
    pub statuses: Vec<Status>,
    /// Hashes of the files that must be the same everywhere: by group and name, each with the nodes that have
    /// them.
    pub files: BTreeMap<(GroupId, FileName), Vec<HashAt>>,
    /// What happened in the ephemeral room.
    pub ephemeral: Ephemeral,
}

/// What happened in the ephemeral room. Messages are known by a hash of their body, of which each is unique.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ephemeral {
    /// Every message.
    pub sends: Vec<EphemeralSend>,
    /// Every subscription.
    pub listeners: Vec<Listener>,
    /// When the removal of a member was acknowledged.
    pub removed: BTreeMap<String, u64>,
}

/// A message to the ephemeral room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EphemeralSend {
    /// Who sent it.
    pub user: String,
    /// A hash of the body.
    pub body: u64,
    /// When the client called.
    pub began: u64,
    /// How it ended; acknowledged = sent.
    pub outcome: Outcome,
}

/// A subscription to the ephemeral room and all it was given, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// E.g. "bob@n1".
    pub name: String,
    /// Whose.
    pub user: String,
    /// Hashes of bodies.
    pub received: Vec<u64>,
}

/// The hash of a file on a node.
pub type HashAt = (NodeId, [u8; 32]);

/// A file that has the same bytes on every replica that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileName {
    /// The sealed segment of this id.
    Segment(u64),
    /// The manifest of the snapshot at this index, which names its files by their hashes.
    Snapshot(u64),
}

impl History {
    /// The lowest sequence that is kept of a room at the end; the same on each replica, as I2 judges.
    pub fn floor(&self, room: RoomId) -> u64 {
        self.floors.iter().filter(|((_, of), _)| *of == room).map(|(_, floor)| *floor).min().unwrap_or(0)
    }

    /// The publishes that were acknowledged, with time and place.
    pub fn acked(&self) -> impl Iterator<Item = (&Publish, u64, u64)> {
        self.publishes.iter().filter_map(|publish| match publish.outcome {
            Outcome::Acked { at, sequence } => Some((publish, at, sequence)),
            Outcome::Unknown | Outcome::Refused => None,
        })
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub const ROOM: RoomId = RoomId([7; 16]);
    pub const PRODUCER: ProducerId = ProducerId([3; 8]);
    pub const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    pub fn entry(sequence: u64) -> Entry {
        let id = if sequence == 0 { EntryId::Roster(99) } else { EntryId::Message(PRODUCER, sequence) };
        Entry { sequence, id, body: 1_000 + sequence }
    }

    pub fn publish(sequence: u64) -> Publish {
        let began = sequence * 100;
        let outcome = Outcome::Acked { at: began + 50, sequence };
        Publish { room: ROOM, body: 1_000 + sequence, producer: PRODUCER, began, outcome }
    }

    pub fn status(node: u64, at: u64, term: u64, leads: bool, applied: u64) -> Status {
        Status {
            at,
            node: NodeId(node),
            life: 0,
            group: GroupId(1),
            term,
            leads,
            committed: applied,
            applied,
            state_hash: Some((applied, [applied as u8; 32])),
        }
    }

    /// The same when the room keeps what is from `floor` on.
    pub fn retained(floor: u64) -> History {
        let mut history = honest();
        history.scans.values_mut().for_each(|entries| entries.retain(|entry| entry.sequence >= floor));
        history.floors.values_mut().for_each(|known| *known = floor);
        history
    }

    /// Ten messages after the creation, three replicas, a reader from the start and one from the middle.
    pub fn honest() -> History {
        let timeline: Vec<_> = (0..=10).map(entry).collect();
        let reader = |name: &str, complete, from: usize| Reader {
            name: name.into(),
            complete,
            rooms: [(ROOM, timeline[from..].to_vec())].into(),
            ..Reader::default()
        };
        History {
            publishes: (1..=10).map(publish).collect(),
            readers: vec![reader("r1", true, 0), reader("r2", false, 4)],
            scans: NODES.map(|node| ((node, ROOM), timeline.clone())).into(),
            floors: NODES.map(|node| ((node, ROOM), 0)).into(),
            statuses: vec![
                status(1, 10, 1, true, 5),
                status(2, 10, 1, false, 3),
                status(2, 20, 2, true, 5),
                status(1, 20, 1, true, 5),
                status(3, 30, 2, false, 10),
                status(2, 30, 2, true, 10),
            ],
            files: [((GroupId(1), FileName::Segment(0)), NODES.map(|node| (node, [7; 32])).to_vec())].into(),
            ephemeral: Ephemeral::default(),
        }
    }
}
