//! Which shard a room or a user belongs to: rendezvous hashing, pure.
//!
//! A room's shard is recorded in the directory when the room is reserved, and the record rules. A
//! user's shard follows from the handle and the number of shards, which never changes.

use unibus_proto::id::{GroupId, Handle, RoomId};
use unibus_proto::signed::sha256;

/// The shard of a new room.
pub fn of_room(room: RoomId, shards: u32) -> GroupId {
    highest(b"room\0", &room.0, shards)
}

/// The shard of a user's devices.
pub fn of_user(user: &Handle, shards: u32) -> GroupId {
    highest(b"user\0", user.as_str().as_bytes(), shards)
}

fn highest(kind: &[u8], key: &[u8], shards: u32) -> GroupId {
    let weight = |shard: &u32| sha256(&[kind, &shard.to_le_bytes(), key].concat());
    GroupId((1..=shards).max_by_key(weight).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms() -> impl Iterator<Item = RoomId> {
        (0..4_000u32).map(|n| RoomId(sha256(&n.to_le_bytes())[..16].try_into().expect("16 bytes")))
    }

    #[test]
    fn spreads_rooms_evenly() {
        let mut counts = [0u32; 8];
        rooms().for_each(|room| counts[of_room(room, 8).0 as usize - 1] += 1);
        assert!(counts.iter().all(|count| (400..600).contains(count)), "{counts:?}");
    }

    #[test]
    fn another_shard_takes_rooms_only_to_itself() {
        for room in rooms() {
            let (before, after) = (of_room(room, 8), of_room(room, 9));
            assert!(after == before || after == GroupId(9));
        }
    }

    #[test]
    fn a_users_shard_is_pinned() {
        let alice: Handle = "alice".parse().expect("a handle");
        assert_eq!(of_user(&alice, 1), GroupId(1));
        assert_eq!(of_user(&alice, 8), of_user(&alice, 8));
    }
}
