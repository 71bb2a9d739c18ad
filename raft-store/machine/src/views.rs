//! Reading: what the rest of the node asks the machine. Nothing here changes a row.

use bytes::Bytes;
use prost::Message;
use unibus_proto::id::{DeviceId, GroupId, Handle, NodeId, RoomId};
use unibus_proto::log::PlannedNode;
use unibus_proto::row::{
    ClusterRow, DeviceListRow, DeviceRow, DirectoryRow, GroupRow, MemberRow, NodeRow, RoomRow, RosterRow, SegmentRow,
    SubjectRow, UserRow,
};
use unibus_proto::subject::Subject;
use unibus_proto::v1::{self, NodeState};

use crate::apply::Machine;
use crate::key::{self, Key, ordinal};
use crate::node;
use crate::retention;
use crate::rows::{self, Rows};

/// Decoded rows of a key range, with their keys.
fn scan<R: Rows, M: Message + Default>(rows: &R, range: (Vec<u8>, Vec<u8>), limit: usize) -> Vec<(Bytes, M)> {
    let found = rows.scan(&range.0, &range.1, limit);
    let decode = |(key, value): (Bytes, Bytes)| {
        let row = rows::decode(&key, value);
        (key, row)
    };
    found.into_iter().map(decode).collect()
}

/// A handle that stands in a key: the machine has parsed it before.
fn handle(name: &str) -> Handle {
    name.parse().expect("keys hold valid handles")
}

impl<R: Rows> Machine<R> {
    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Log time of the last entry, milliseconds since the Unix epoch; 0 before the first.
    pub fn log_time(&self) -> u64 {
        self.group_row().at_ms
    }

    /// Rooms of the group: those of the directory in meta, those that it orders in a shard.
    pub fn room_count(&self) -> u64 {
        self.group_row().rooms
    }

    /// What the group knows of itself: time, counts, open segment.
    pub fn group_row(&self) -> GroupRow {
        rows::get(&self.rows, &Key::Group).unwrap_or_default()
    }

    /// The cluster, once it is initialised (meta).
    pub fn cluster(&self) -> Option<ClusterRow> {
        rows::get(&self.rows, &Key::Cluster)
    }

    /// The nodes that are no removed ones, ascending by id (meta).
    pub fn nodes(&self) -> Vec<PlannedNode> {
        let present = |row: &NodeRow| row.state() != NodeState::Removed;
        self.node_rows().into_iter().filter(present).filter_map(|row| row.node).collect()
    }

    /// All nodes with what is wanted of them, removed ones included, ascending by id (meta).
    pub fn node_rows(&self) -> Vec<NodeRow> {
        node::all(&self.rows)
    }

    /// Counts the changes of the registry of nodes (meta).
    pub fn nodes_version(&self) -> u64 {
        self.cluster().map_or(0, |cluster| cluster.nodes_version)
    }

    /// A node that was not removed (meta).
    pub fn node(&self, node: NodeId) -> Option<PlannedNode> {
        let row: NodeRow = rows::get(&self.rows, &Key::Node(node))?;
        (row.state() != NodeState::Removed).then_some(row.node)?
    }

    /// A user (meta).
    pub fn user(&self, user: &Handle) -> Option<v1::User> {
        rows::get::<UserRow>(&self.rows, &Key::User(user.as_str()))?.user
    }

    /// Users in ascending order of handle, after the given one (meta).
    pub fn users(&self, after: Option<&Handle>, limit: usize) -> Vec<v1::User> {
        let (mut from, to) = key::range_of_kind(ordinal::USER);
        if let Some(after) = after {
            from = key::after(&Key::User(after.as_str()));
        }
        scan::<_, UserRow>(&self.rows, (from, to), limit).into_iter().filter_map(|(_, row)| row.user).collect()
    }

    /// The room of a subject (meta).
    pub fn room_of(&self, subject: &Subject) -> Option<RoomId> {
        let row: SubjectRow = rows::get(&self.rows, &Key::Subject(subject.as_str()))?;
        RoomId::from_bytes(&row.room_id).ok()
    }

    /// A room of the directory (meta).
    pub fn directory(&self, room: RoomId) -> Option<DirectoryRow> {
        rows::get(&self.rows, &Key::Directory(room))
    }

    /// Subjects and their rooms in ascending order of subject, after the given one (meta).
    pub fn directory_page(&self, after: Option<&Subject>, limit: usize) -> Vec<(Subject, RoomId)> {
        let (mut from, to) = key::range_of_kind(ordinal::SUBJECT);
        if let Some(after) = after {
            from = key::after(&Key::Subject(after.as_str()));
        }
        let page = scan::<_, SubjectRow>(&self.rows, (from, to), limit);
        page.iter()
            .filter_map(|(key, row)| match Key::parse(key)? {
                Key::Subject(subject) => Some((subject.parse().ok()?, RoomId::from_bytes(&row.room_id).ok()?)),
                _ => None,
            })
            .collect()
    }

    /// Rooms that are reserved and that their shard has not confirmed, by id (meta).
    pub fn pending_rooms(&self, limit: usize) -> Vec<(RoomId, DirectoryRow)> {
        let (from, to) = key::range_of_kind(ordinal::PENDING_ROOM);
        let pending = self.rows.scan(&from, &to, limit);
        pending
            .iter()
            .filter_map(|(key, _)| match Key::parse(key)? {
                Key::PendingRoom(room) => Some((room, self.directory(room)?)),
                _ => None,
            })
            .collect()
    }

    /// A room (shard).
    pub fn room(&self, room: RoomId) -> Option<RoomRow> {
        rows::get(&self.rows, &Key::Room(room))
    }

    /// A member of a room (shard).
    pub fn member(&self, room: RoomId, user: &Handle) -> Option<MemberRow> {
        rows::get(&self.rows, &Key::Member(room, user.as_str()))
    }

    /// Members of a room in ascending order of handle, after the given one (shard).
    pub fn members(&self, room: RoomId, after: Option<&Handle>, limit: usize) -> Vec<(Handle, MemberRow)> {
        let (mut from, to) = key::range_of(&Key::Member(room, "").encode());
        if let Some(after) = after {
            from = key::after(&Key::Member(room, after.as_str()));
        }
        let page = scan::<_, MemberRow>(&self.rows, (from, to), limit);
        page.into_iter()
            .filter_map(|(key, row)| match Key::parse(&key)? {
                Key::Member(_, user) => Some((handle(user), row)),
                _ => None,
            })
            .collect()
    }

    /// Roster events of a room, ascending from a height on (shard).
    pub fn roster(&self, room: RoomId, from_height: u64, limit: usize) -> Vec<v1::RosterEntry> {
        let (_, to) = key::range_of(&[&[ordinal::ROSTER], &room.0[..]].concat());
        let from = Key::Roster(room, from_height).encode();
        scan::<_, RosterRow>(&self.rows, (from, to), limit).into_iter().filter_map(|(_, row)| row.entry).collect()
    }

    /// A user's pinned key and newest device list (shard of the user).
    pub fn devices(&self, user: &Handle) -> Option<DeviceListRow> {
        rows::get(&self.rows, &Key::DeviceList(user.as_str()))
    }

    /// The bundle of a live device (shard of the user).
    pub fn device(&self, user: &Handle, device: DeviceId) -> Option<v1::Signed> {
        rows::get::<DeviceRow>(&self.rows, &Key::Device(user.as_str(), device))?.bundle
    }

    /// The bundles of all live devices of a user, by device id (shard of the user).
    pub fn device_bundles(&self, user: &Handle) -> Vec<v1::Signed> {
        let devices = scan::<_, DeviceRow>(&self.rows, key::range_of_devices(user.as_str()), usize::MAX);
        devices.into_iter().filter_map(|(_, row)| row.bundle).collect()
    }

    /// A segment that the log has sealed and not dropped (shard).
    pub fn sealed_segment(&self, segment: u64) -> Option<SegmentRow> {
        rows::get(&self.rows, &Key::Segment(segment)).filter(retention::is_sealed)
    }

    /// Complete segments from `from` on that are not dropped, with whether the log has sealed them (shard).
    pub fn complete_segments(&self, from: u64, limit: usize) -> Vec<(u64, bool)> {
        let (_, to) = key::range_of_kind(ordinal::SEGMENT);
        let found = scan::<_, SegmentRow>(&self.rows, (Key::Segment(from).encode(), to), limit);
        let of = |(key, row): &(Bytes, SegmentRow)| match Key::parse(key)? {
            Key::Segment(segment) => Some((segment, retention::is_sealed(row))),
            _ => None,
        };
        found.iter().filter_map(of).collect()
    }
}
