//! What a subscription delivers.

use std::sync::Arc;

use bytes::Bytes;
use unibus_proto::id::{DeviceId, ProducerId, RoomId};
use unibus_proto::position::Sequence;
use unibus_proto::v1::{Header, RosterEntry, RosterEvent};

/// An element of a subscription.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "messages are the common case")]
pub enum Item {
    /// A message.
    Message(Received),
    /// A change of a room's roster; it has a place on the timeline like a message.
    Roster(RosterChange),
    /// All history up to the moment of subscribing has been delivered. Comes once.
    CaughtUp,
}

/// A message that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// The room.
    pub room_id: RoomId,
    /// Its subject.
    pub subject: Arc<str>,
    /// Its place on the room's timeline; 0 in an ephemeral room.
    pub sequence: Sequence,
    /// The room is ephemeral: nobody stores the message.
    pub ephemeral: bool,
    /// Log time, milliseconds since the Unix epoch; of an ephemeral message a node's wall clock.
    pub time_ms: u64,
    /// Handle of the user who published it.
    pub user: Arc<str>,
    /// His device.
    pub device: DeviceId,
    /// The producer that numbered it.
    pub producer: ProducerId,
    /// Its number.
    pub number: u64,
    /// Clear headers.
    pub headers: Vec<Header>,
    /// The body.
    pub body: Bytes,
}

/// A roster event that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct RosterChange {
    /// The room.
    pub room_id: RoomId,
    /// Its subject.
    pub subject: Arc<str>,
    /// Its place on the room's timeline.
    pub sequence: Sequence,
    /// Log time, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The signed event with its proof; nothing is verified.
    pub entry: RosterEntry,
    /// The event, decoded; `None` when it cannot be.
    pub event: Option<RosterEvent>,
}
