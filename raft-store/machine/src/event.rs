//! What goes in and what comes out: an [`Entry`] names the place in the log, [`Applied`] says what became
//! of it. Events are past tense: they tell the node what to do with its files and its subscribers.

use bytes::Bytes;
use unibus_proto::id::{GroupId, Handle, RoomId};
use unibus_proto::position::Sequence;
use unibus_proto::subject::Subject;
use unibus_proto::{log, v1};

/// The place of a proposal in the log. Its time is the proposal's `at_ms`; the machine keeps it from going back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The group whose log it is.
    pub group: GroupId,
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
}

/// What became of an entry: the same on every replica.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The answer for who proposed it.
    pub reply: log::Reply,
    /// What happened, in order.
    pub events: Vec<Event>,
}

/// An entry of a room's timeline, encoded once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDelivery {
    /// Its place.
    pub sequence: Sequence,
    /// Log time.
    pub at_ms: u64,
    /// The encoded `v1::Delivery`.
    pub bytes: Bytes,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Consecutive entries of one room; they go to that segment of the shard.
    Appended {
        /// The open segment.
        segment: u64,
        /// The room.
        room: RoomId,
        /// The entries, ascending by sequence.
        deliveries: Vec<StoredDelivery>,
    },
    /// The segment is complete: everything after goes to `segment + 1`.
    SegmentCut {
        /// The complete one.
        segment: u64,
    },
    /// A segment was sealed by the log; compare with your own file.
    SegmentSealed {
        /// Which.
        segment: u64,
        /// Bytes of the file.
        length: u64,
        /// BLAKE3 of the file.
        hash: [u8; 32],
    },
    /// Each entry of a sealed segment is below the floor of its room: nobody reads the file any more.
    SegmentDropped {
        /// Which.
        segment: u64,
    },
    /// A member joined, left or has another role (shard).
    MemberChanged {
        /// Of which room.
        room: RoomId,
        /// Who.
        user: Handle,
        /// The role from here on; none when he is no member any more.
        role: Option<v1::RoomRole>,
    },
    /// A room was created (shard).
    RoomCreated {
        /// Which.
        room: RoomId,
    },
    /// A room was reserved or became active (meta).
    DirectoryChanged {
        /// Which.
        room: RoomId,
        /// Its subject.
        subject: Subject,
        /// The shard that orders it.
        shard: GroupId,
        /// Whether the shard has created it.
        active: bool,
    },
    /// A user was added or changed (meta).
    UserChanged {
        /// Who.
        user: Handle,
    },
    /// A user's key was pinned, or his devices changed (shard).
    DevicesChanged {
        /// Who.
        user: Handle,
    },
}
