//! The table of every row: its key, its value, and which groups have it. Ordinals are durable: a number
//! is never given to another kind.
//!
//! | ordinal | key | value | group |
//! |---|---|---|---|
//! | 1 | Group | `GroupRow`: log time, room count, open segment | every |
//! | 2 | Cluster | `ClusterRow` | meta |
//! | 3 | Node: node id | `NodeRow` | meta |
//! | 4 | User: handle | `UserRow` | meta |
//! | 5 | Directory: room id | `DirectoryRow` | meta |
//! | 6 | Subject: subject | `SubjectRow`: the room | meta |
//! | 7 | Request: request id | `RequestRow`: the remembered answer | meta |
//! | 8 | RequestExpiry: time, request id | empty | meta |
//! | 9 | PendingRoom: room id | empty: in the directory, not yet active | meta |
//! | 16 | Room: room id | `RoomRow` | shard |
//! | 17 | Member: room id, handle | `MemberRow` | shard |
//! | 18 | Roster: room id, height | `RosterRow` | shard |
//! | 19 | Producer: room id, producer id | `ProducerRow` | shard |
//! | 20 | ProducerCount: room id, handle | `ProducerCountRow` | shard |
//! | 21 | ProducerExpiry: time, room id, producer id | empty: one per producer, not later than it expires | shard |
//! | 22 | DeviceList: handle | `DeviceListRow` | shard |
//! | 23 | Device: handle, 0, device id | `DeviceRow` | shard |
//! | 24 | Segment: segment id | `SegmentRow`: a complete segment that is not dropped | shard |
//! | 25 | Answers: room id, producer id, page | `AnswersRow`: 64 numbers each; page 0 has the oldest | shard |
//! | 26 | Span: room id, first sequence | `SpanRow`: a part of a timeline, not the oldest, not the newest | shard |
//! | 27 | RetentionDue: time, room id | empty: at most one per room, not later than an entry expires | shard |
//!
//! Numbers are big-endian, so that byte order is their order. A name stands last in its key, or before a
//! zero byte, which no name contains.

use unibus_proto::id::{DeviceId, NodeId, ProducerId, RequestId, RoomId};

/// The key of a row; see the table in the [module documentation](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key<'a> {
    /// What the group knows of itself.
    Group,
    /// The cluster.
    Cluster,
    /// A node.
    Node(NodeId),
    /// A user by handle.
    User(&'a str),
    /// A room of the directory.
    Directory(RoomId),
    /// The room of a subject.
    Subject(&'a str),
    /// The remembered answer to a request.
    Request(RequestId),
    /// When a remembered answer is forgotten.
    RequestExpiry(u64, RequestId),
    /// A room of the directory that its shard has not confirmed.
    PendingRoom(RoomId),
    /// A room.
    Room(RoomId),
    /// A member of a room.
    Member(RoomId, &'a str),
    /// A roster event by height.
    Roster(RoomId, u64),
    /// A producer of a room.
    Producer(RoomId, ProducerId),
    /// How many live producers a user has in a room.
    ProducerCount(RoomId, &'a str),
    /// When a producer is looked at next: it is retired, or was used since and moves on.
    ProducerExpiry(u64, RoomId, ProducerId),
    /// A user's key and newest device list.
    DeviceList(&'a str),
    /// The bundle of a live device.
    Device(&'a str, DeviceId),
    /// A sealed segment.
    Segment(u64),
    /// A page of a producer's answers.
    Answers(RoomId, ProducerId, u64),
    /// A complete span of a timeline.
    Span(RoomId, u64),
    /// When retention looks at a room next.
    RetentionDue(u64, RoomId),
}

/// The first byte of each kind of key.
pub mod ordinal {
    #![allow(missing_docs)]
    pub const GROUP: u8 = 1;
    pub const CLUSTER: u8 = 2;
    pub const NODE: u8 = 3;
    pub const USER: u8 = 4;
    pub const DIRECTORY: u8 = 5;
    pub const SUBJECT: u8 = 6;
    pub const REQUEST: u8 = 7;
    pub const REQUEST_EXPIRY: u8 = 8;
    pub const PENDING_ROOM: u8 = 9;
    pub const ROOM: u8 = 16;
    pub const MEMBER: u8 = 17;
    pub const ROSTER: u8 = 18;
    pub const PRODUCER: u8 = 19;
    pub const PRODUCER_COUNT: u8 = 20;
    pub const PRODUCER_EXPIRY: u8 = 21;
    pub const DEVICE_LIST: u8 = 22;
    pub const DEVICE: u8 = 23;
    pub const SEGMENT: u8 = 24;
    pub const ANSWERS: u8 = 25;
    pub const SPAN: u8 = 26;
    pub const RETENTION_DUE: u8 = 27;
}

impl<'a> Key<'a> {
    /// The key's first byte.
    pub fn ordinal(&self) -> u8 {
        match self {
            Self::Group => ordinal::GROUP,
            Self::Cluster => ordinal::CLUSTER,
            Self::Node(_) => ordinal::NODE,
            Self::User(_) => ordinal::USER,
            Self::Directory(_) => ordinal::DIRECTORY,
            Self::Subject(_) => ordinal::SUBJECT,
            Self::Request(_) => ordinal::REQUEST,
            Self::RequestExpiry(..) => ordinal::REQUEST_EXPIRY,
            Self::PendingRoom(_) => ordinal::PENDING_ROOM,
            Self::Room(_) => ordinal::ROOM,
            Self::Member(..) => ordinal::MEMBER,
            Self::Roster(..) => ordinal::ROSTER,
            Self::Producer(..) => ordinal::PRODUCER,
            Self::ProducerCount(..) => ordinal::PRODUCER_COUNT,
            Self::ProducerExpiry(..) => ordinal::PRODUCER_EXPIRY,
            Self::DeviceList(_) => ordinal::DEVICE_LIST,
            Self::Device(..) => ordinal::DEVICE,
            Self::Segment(_) => ordinal::SEGMENT,
            Self::Answers(..) => ordinal::ANSWERS,
            Self::Span(..) => ordinal::SPAN,
            Self::RetentionDue(..) => ordinal::RETENTION_DUE,
        }
    }

    /// The bytes of the key.
    pub fn encode(&self) -> Vec<u8> {
        let number = u64::to_be_bytes;
        let head = &[self.ordinal()][..];
        match *self {
            Self::Group | Self::Cluster => head.to_vec(),
            Self::Node(node) => [head, &number(node.0)].concat(),
            Self::User(name) | Self::Subject(name) | Self::DeviceList(name) => [head, name.as_bytes()].concat(),
            Self::Directory(room) | Self::PendingRoom(room) | Self::Room(room) => [head, &room.0].concat(),
            Self::Request(request) => [head, &request.0].concat(),
            Self::RequestExpiry(at, request) => [head, &number(at), &request.0].concat(),
            Self::Member(room, name) | Self::ProducerCount(room, name) => [head, &room.0, name.as_bytes()].concat(),
            Self::Roster(room, at) | Self::Span(room, at) => [head, &room.0, &number(at)].concat(),
            Self::Producer(room, producer) => [head, &room.0, &producer.0].concat(),
            Self::ProducerExpiry(at, room, producer) => [head, &number(at), &room.0, &producer.0].concat(),
            Self::Device(name, device) => [head, name.as_bytes(), &[0], &device.0].concat(),
            Self::Segment(segment) => [head, &number(segment)].concat(),
            Self::Answers(room, producer, page) => [head, &room.0, &producer.0, &number(page)].concat(),
            Self::RetentionDue(at, room) => [head, &number(at), &room.0].concat(),
        }
    }

    /// The key that has these bytes.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (&ordinal, rest) = bytes.split_first()?;
        let mut rest = Parser(rest);
        let key = match ordinal {
            ordinal::GROUP => Self::Group,
            ordinal::CLUSTER => Self::Cluster,
            ordinal::NODE => Self::Node(NodeId(rest.number()?)),
            ordinal::USER => Self::User(rest.name()?),
            ordinal::DIRECTORY => Self::Directory(RoomId(rest.array()?)),
            ordinal::SUBJECT => Self::Subject(rest.name()?),
            ordinal::REQUEST => Self::Request(RequestId(rest.array()?)),
            ordinal::REQUEST_EXPIRY => Self::RequestExpiry(rest.number()?, RequestId(rest.array()?)),
            ordinal::PENDING_ROOM => Self::PendingRoom(RoomId(rest.array()?)),
            ordinal::ROOM => Self::Room(RoomId(rest.array()?)),
            ordinal::MEMBER => Self::Member(RoomId(rest.array()?), rest.name()?),
            ordinal::ROSTER => Self::Roster(RoomId(rest.array()?), rest.number()?),
            ordinal::PRODUCER => Self::Producer(RoomId(rest.array()?), ProducerId(rest.array()?)),
            ordinal::PRODUCER_COUNT => Self::ProducerCount(RoomId(rest.array()?), rest.name()?),
            ordinal::PRODUCER_EXPIRY => {
                Self::ProducerExpiry(rest.number()?, RoomId(rest.array()?), ProducerId(rest.array()?))
            }
            ordinal::DEVICE_LIST => Self::DeviceList(rest.name()?),
            ordinal::DEVICE => Self::Device(rest.name()?, DeviceId(rest.array()?)),
            ordinal::SEGMENT => Self::Segment(rest.number()?),
            ordinal::ANSWERS => Self::Answers(RoomId(rest.array()?), ProducerId(rest.array()?), rest.number()?),
            ordinal::SPAN => Self::Span(RoomId(rest.array()?), rest.number()?),
            ordinal::RETENTION_DUE => Self::RetentionDue(rest.number()?, RoomId(rest.array()?)),
            _ => return None,
        };
        rest.0.is_empty().then_some(key)
    }
}

struct Parser<'a>(&'a [u8]);

impl<'a> Parser<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn name(&mut self) -> Option<&'a str> {
        let (name, rest) = match self.0.iter().position(|&byte| byte == 0) {
            Some(end) => (&self.0[..end], &self.0[end + 1..]),
            None => (self.0, &[][..]),
        };
        self.0 = rest;
        std::str::from_utf8(name).ok()
    }
}

/// The keys that start with `prefix`, as the bounds of a scan.
pub fn range_of(prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut to = prefix.to_vec();
    while let Some(last) = to.pop() {
        if last < u8::MAX {
            to.push(last + 1);
            break;
        }
    }
    (prefix.to_vec(), to)
}

/// The keys of a kind.
pub fn range_of_kind(ordinal: u8) -> (Vec<u8>, Vec<u8>) {
    range_of(&[ordinal])
}

/// The keys of a producer's answers.
pub fn range_of_answers(room: RoomId, producer: ProducerId) -> (Vec<u8>, Vec<u8>) {
    range_of(&[&[ordinal::ANSWERS], &room.0[..], &producer.0].concat())
}

/// The keys of a room's complete spans, without the oldest one.
pub fn range_of_spans(room: RoomId) -> (Vec<u8>, Vec<u8>) {
    range_of(&[&[ordinal::SPAN], &room.0[..]].concat())
}

/// The keys of a user's live devices.
pub fn range_of_devices(user: &str) -> (Vec<u8>, Vec<u8>) {
    range_of(&[&[ordinal::DEVICE], user.as_bytes(), &[0]].concat())
}

/// The smallest key above `key`.
pub fn after(key: &Key<'_>) -> Vec<u8> {
    let mut key = key.encode();
    key.push(0);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: RoomId = RoomId([0xab; 16]);
    const PRODUCER: ProducerId = ProducerId([0xcd; 8]);

    fn one_of_each() -> Vec<(Key<'static>, u8)> {
        let (request, device) = (RequestId([3; 16]), DeviceId([4; 16]));
        vec![
            (Key::Group, 1),
            (Key::Cluster, 2),
            (Key::Node(NodeId(7)), 3),
            (Key::User("alice"), 4),
            (Key::Directory(ROOM), 5),
            (Key::Subject("a.b"), 6),
            (Key::Request(request), 7),
            (Key::RequestExpiry(9, request), 8),
            (Key::PendingRoom(ROOM), 9),
            (Key::Room(ROOM), 16),
            (Key::Member(ROOM, "alice"), 17),
            (Key::Roster(ROOM, 1), 18),
            (Key::Producer(ROOM, PRODUCER), 19),
            (Key::ProducerCount(ROOM, "alice"), 20),
            (Key::ProducerExpiry(5, ROOM, PRODUCER), 21),
            (Key::DeviceList("alice"), 22),
            (Key::Device("alice", device), 23),
            (Key::Segment(2), 24),
            (Key::Answers(ROOM, PRODUCER, 3), 25),
            (Key::Span(ROOM, 4), 26),
            (Key::RetentionDue(5, ROOM), 27),
        ]
    }

    #[test]
    fn ordinals_are_pinned_and_keys_parse_back() {
        for (key, ordinal) in one_of_each() {
            assert_eq!(key.encode()[0], ordinal, "{key:?}");
            assert_eq!(Key::parse(&key.encode()), Some(key));
        }
    }

    #[test]
    fn other_bytes_are_no_key() {
        for (key, _) in one_of_each() {
            let bytes = key.encode();
            assert_eq!(Key::parse(&[&bytes[..], &[0, 1]].concat()), None, "{key:?}");
        }
        assert_eq!(Key::parse(&[]), None);
        assert_eq!(Key::parse(&[0]), None);
        assert_eq!(Key::parse(&[ordinal::NODE, 1]), None);
    }

    #[test]
    fn a_range_ends_at_the_next_prefix() {
        assert_eq!(range_of(&[1, 255]), (vec![1, 255], vec![2]));
        assert_eq!(range_of_kind(5), (vec![5], vec![6]));
    }
}
