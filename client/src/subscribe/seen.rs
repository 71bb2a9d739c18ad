//! What was received of ephemeral rooms lately, so that a change of node delivers nothing twice: the node
//! before may have been faster than the one now. Pure.

use std::collections::{BTreeSet, VecDeque};

use unibus_proto::id::{ProducerId, RoomId};

use super::item::Received;

/// Messages that are remembered: what two nodes may be apart.
const KEPT: usize = 1_024;

/// Taken once by one node: number and time do not change on the way.
type Key = (RoomId, ProducerId, u64, u64);

/// The last messages of ephemeral rooms.
#[derive(Default)]
pub(super) struct Seen {
    recent: VecDeque<Key>,
    /// Those that the nodes before delivered.
    before: BTreeSet<Key>,
}

impl Seen {
    /// Another node delivers from now on.
    pub fn change_node(&mut self) {
        self.before = self.recent.iter().copied().collect();
    }

    /// Takes note of a message; whether a node before has delivered it.
    pub fn is_repeated(&mut self, message: &Received) -> bool {
        let key = (message.room_id, message.producer, message.number, message.time_ms);
        if self.before.contains(&key) {
            return true;
        }
        if self.recent.len() == KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(key);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u64) -> Received {
        Received {
            room_id: RoomId([1; 16]),
            subject: "live.cpu".into(),
            sequence: Default::default(),
            ephemeral: true,
            time_ms: 5,
            user: "alice".into(),
            device: Default::default(),
            producer: ProducerId([2; 8]),
            number,
            headers: vec![],
            body: Default::default(),
        }
    }

    #[test]
    fn only_what_another_node_has_delivered_is_repeated() {
        let mut seen = Seen::default();
        assert!(!seen.is_repeated(&message(1)));
        assert!(!seen.is_repeated(&message(1)), "one node delivers nothing twice: it was sent twice");
        seen.change_node();
        assert!(seen.is_repeated(&message(1)));
        assert!(!seen.is_repeated(&message(2)));
        seen.change_node();
        assert!(seen.is_repeated(&message(2)) && seen.is_repeated(&message(1)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut seen = Seen::default();
        assert!((0..3 * KEPT as u64).all(|number| !seen.is_repeated(&message(number))));
        seen.change_node();
        assert_eq!((seen.recent.len(), seen.before.len()), (KEPT, KEPT));
    }
}
