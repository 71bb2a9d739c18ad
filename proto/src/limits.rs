//! Every bound of the system (ARCHITECTURE section 13), with their relations asserted.

use std::time::Duration;

/// Bytes of a message body.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Bytes of a message's headers, names and values together.
pub const HEADERS_BYTES_MAX: usize = 16 << 10;
/// Headers of a message.
pub const HEADERS_MAX: usize = 64;
/// Bytes of a header's name.
pub const HEADER_NAME_BYTES_MAX: usize = 128;
/// Bytes of a header's value.
pub const HEADER_VALUE_BYTES_MAX: usize = 4 << 10;
/// Bytes of a publish request.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Messages of a publish request.
pub const BATCH_MESSAGES_MAX: usize = 256;
/// A publish request is full when its messages reach so many bytes.
pub const REQUEST_BYTES_TARGET: usize = 256 << 10;
/// Messages of a log entry: what an entry costs beside them, on each node, is that of some forty of them.
pub const ENTRY_MESSAGES_MAX: usize = 1_024;
/// A log entry is closed when its messages reach so many bytes.
pub const ENTRY_BYTES_TARGET: usize = 1 << 20;
/// Commands of a log entry.
pub const COMMANDS_PER_ENTRY_MAX: usize = 256;
/// Bytes of a gRPC message.
pub const DECODE_BYTES_MAX: usize = BATCH_BYTES_MAX + (64 << 10);
/// Bytes of a frame between nodes: an append of several entries.
pub const PEER_FRAME_BYTES_MAX: usize = 16 << 20;
/// Bytes of a subject or filter.
pub const SUBJECT_BYTES_MAX: usize = 255;
/// Tokens of a subject or filter.
pub const SUBJECT_TOKENS_MAX: usize = 16;
/// Bytes of a handle.
pub const HANDLE_BYTES_MAX: usize = 64;
/// Members of a room.
pub const ROOM_MEMBERS_MAX: u32 = 10_000;
/// Rooms of a cluster.
pub const ROOMS_MAX: u64 = 1_000_000;
/// Devices of a user's list.
pub const DEVICES_MAX: usize = 100;
/// Ended devices that a user's list names: it names every one that ever ended.
pub const ENDED_DEVICES_MAX: usize = 4_096;
/// Bytes of a signed roster event with its proof.
pub const ROSTER_ENTRY_BYTES_MAX: usize = 16 << 10;
/// Bytes of a signed device bundle; it is part of every roster event's proof.
pub const DEVICE_BUNDLE_BYTES_MAX: usize = 4 << 10;
/// Bytes of a signed device list.
pub const DEVICE_LIST_BYTES_MAX: usize = 256 << 10;
/// Subscriptions of a node.
pub const SUBSCRIPTIONS_MAX: usize = 10_000;
/// Bytes queued for a subscriber before it goes back to reading from disk.
pub const SUBSCRIBER_QUEUE_BYTES_MAX: usize = 4 << 20;
/// Bytes of ephemeral messages queued for another node before the oldest are dropped.
pub const EPHEMERAL_QUEUE_BYTES_MAX: usize = 4 << 20;
/// Ephemeral rooms that the subscribers of a node listen to.
pub const EPHEMERAL_ROOMS_PER_NODE_MAX: usize = 100_000;
/// A node serves the ephemeral rooms of a shard while it was confirmed within this time that it has applied
/// what was committed: an election is shorter, and no caller waits longer for a leader.
pub const LEASE: Duration = Duration::from_secs(2);
/// Unresolved messages of a producer, and how many of its answers are kept at least.
pub const PRODUCER_WINDOW: u64 = 1_024;
/// Live producers of a user in a room.
pub const PRODUCERS_PER_USER_MAX: u32 = 64;
/// A producer is opened within this time of its opening stamp, and forgotten so long after its last use.
pub const PRODUCER_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Remembered answers to mutations are kept so long.
pub const REQUEST_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Bytes of proposals in flight on a node.
pub const IN_FLIGHT_BYTES_MAX: usize = 256 << 20;
/// Bytes of everything else that is in flight on a node: changes of users, rooms, members, nodes.
pub const COMMAND_BYTES_IN_FLIGHT_MAX: usize = 32 << 20;
/// Log entries of one shard in flight from one node before a batch waits.
pub const BATCHES_IN_FLIGHT: usize = 2;
/// Connections of one user.
pub const CONNECTIONS_PER_USER_MAX: usize = 64;
/// Connections of a node.
pub const CONNECTIONS_MAX: usize = 2_000;
/// The longest life of a token.
pub const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(15 * 60);
/// A challenge must be answered within this time.
pub const CHALLENGE_LIFETIME: Duration = Duration::from_secs(60);
/// Challenges of a node that are not answered yet.
pub const CHALLENGES_MAX: usize = 10_000;
/// Items of a page, at most and when nothing is asked for.
pub const PAGE_MAX: u32 = 1_000;
/// Items of a page when nothing is asked for.
pub const PAGE_DEFAULT: u32 = 100;
/// A segment is sealed when it has so many bytes.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Shard groups of a new cluster.
pub const SHARDS_DEFAULT: u32 = 8;
/// Shard groups of a cluster, at most.
pub const SHARDS_MAX: u32 = 64;
/// Nodes of a cluster: each of them votes in every group.
pub const NODES_MAX: usize = 5;
/// Log time may be ahead of the median of the voters' clocks by so much.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(1);
/// Without a quorum the caller learns why within this time.
pub const PROPOSE_PATIENCE: Duration = Duration::from_secs(2);

const _: () = {
    assert!(BODY_BYTES_MAX + HEADERS_BYTES_MAX < BATCH_BYTES_MAX);
    assert!(REQUEST_BYTES_TARGET <= ENTRY_BYTES_TARGET && ENTRY_BYTES_TARGET <= BATCH_BYTES_MAX);
    assert!(BATCH_MESSAGES_MAX <= ENTRY_MESSAGES_MAX);
    assert!(BATCH_BYTES_MAX < DECODE_BYTES_MAX);
    assert!(DECODE_BYTES_MAX + ENTRY_BYTES_TARGET < PEER_FRAME_BYTES_MAX);
    assert!(SUBSCRIBER_QUEUE_BYTES_MAX >= 2 * (BODY_BYTES_MAX + HEADERS_BYTES_MAX));
    assert!(EPHEMERAL_QUEUE_BYTES_MAX >= 2 * (BODY_BYTES_MAX + HEADERS_BYTES_MAX));
    assert!(BATCH_MESSAGES_MAX as u64 <= PRODUCER_WINDOW);
    assert!(PAGE_DEFAULT <= PAGE_MAX);
    assert!(DEVICE_BUNDLE_BYTES_MAX < ROSTER_ENTRY_BYTES_MAX);
    assert!(32 * DEVICES_MAX + 20 * ENDED_DEVICES_MAX < DEVICE_LIST_BYTES_MAX);
};
