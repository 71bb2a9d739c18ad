//! Which shard a room or a user belongs to, by rendezvous hashing, and which node should lead a group. Pure.
//!
//! A room's shard is recorded in the directory when the room is reserved, and the record rules. A
//! user's shard follows from the handle and the number of shards, which never changes.

use unibus_proto::id::{GroupId, Handle, NodeId, RoomId};
use unibus_proto::signed::sha256;

/// The shard of a new room.
pub fn of_room(room: RoomId, shards: u32) -> GroupId {
    highest(b"room\0", &room.0, shards)
}

/// The shard of a user's devices.
pub fn of_user(user: &Handle, shards: u32) -> GroupId {
    highest(b"user\0", user.as_str().as_bytes(), shards)
}

/// The nodes in the order in which they should lead `group`: the first one that can, does. First places are
/// spread evenly over the groups, second places evenly over the groups of each first one, and so on, so that
/// the groups of a node that fails are spread evenly too. `nodes` must be ascending, the same on all nodes.
pub fn ranking(group: GroupId, nodes: &[NodeId]) -> Vec<NodeId> {
    let (mut left, mut number) = (nodes.to_vec(), group.0 as usize);
    let mut ranking = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let count = left.len();
        ranking.push(left.remove(number % count));
        number /= count;
    }
    ranking
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

    fn leads(groups: u32, nodes: &[u64], down: Option<u64>) -> Vec<usize> {
        let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        let alive = |node: &NodeId| Some(node.0) != down;
        let leader = |group| ranking(GroupId(group), &nodes).into_iter().find(alive);
        nodes.iter().map(|node| (0..groups).filter(|&group| leader(group) == Some(*node)).count()).collect()
    }

    #[test]
    fn leaders_are_spread_evenly_and_those_of_a_dead_node_too() {
        assert_eq!(leads(9, &[1, 2, 3], None), [3, 3, 3]);
        assert_eq!(leads(9, &[1, 2, 3], Some(1)), [0, 5, 4]);
        assert_eq!(leads(9, &[1, 2, 3], Some(3)), [5, 4, 0]);
        assert_eq!(leads(9, &[2, 5, 7, 8, 9], None), [2, 2, 2, 2, 1]);
        assert_eq!(leads(3, &[4], None), [3]);
    }

    #[test]
    fn a_users_shard_is_pinned() {
        let alice: Handle = "alice".parse().expect("a handle");
        assert_eq!(of_user(&alice, 1), GroupId(1));
        assert_eq!(of_user(&alice, 8), of_user(&alice, 8));
    }
}
