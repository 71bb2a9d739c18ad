//! I1: every acknowledged publish is on every replica at the end, and was given to every reader that
//! read the whole timeline; except what the room's retention has dropped since, below its floor.

use std::collections::BTreeMap;

use crate::history::{Entry, History};
use crate::invariants::Violation;

const INVARIANT: &str = "I1 no acknowledged publish is lost";

type BySequence = BTreeMap<u64, u64>;

fn index(entries: &[Entry]) -> (BySequence, BySequence) {
    let by_sequence = entries.iter().map(|entry| (entry.sequence, entry.body)).collect();
    let by_body = entries.iter().map(|entry| (entry.body, entry.sequence)).collect();
    (by_sequence, by_body)
}

/// Whether an acknowledged publish is lost.
pub fn check(history: &History) -> Result<(), Violation> {
    let replicas = history.scans.iter().map(|((node, room), entries)| (format!("n{node}"), *room, index(entries)));
    let complete = history.readers.iter().filter(|reader| reader.complete);
    let readers = complete
        .flat_map(|reader| reader.rooms.iter().map(|(room, entries)| (reader.name.clone(), *room, index(entries))));
    let holders: Vec<_> = replicas.chain(readers).collect();
    for (publish, at, sequence) in history.acked() {
        let floor = history.floor(publish.room);
        if sequence < floor {
            // Whether what is missing was below the floor for those who miss it is judged by I2.
            continue;
        }
        for (holder, _, (by_sequence, by_body)) in holders.iter().filter(|(_, room, _)| *room == publish.room) {
            let found = if sequence == 0 {
                by_body.contains_key(&publish.body)
            } else {
                by_sequence.get(&sequence) == Some(&publish.body)
            };
            if !found {
                let what = format!(
                    "message {:016x} of room {} was acknowledged at {at} ns as sequence {sequence}; {holder} has {:?} \
                     there, and the message at {:?}",
                    publish.body,
                    publish.room,
                    by_sequence.get(&sequence).map(|body| format!("{body:016x}")),
                    by_body.get(&publish.body),
                );
                return Err(Violation { invariant: INVARIANT, what });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::{NODES, ROOM, honest, retained};

    #[test]
    fn catches_a_replica_that_lost_the_last_message() {
        let mut history = honest();
        history.scans.get_mut(&(NODES[2], ROOM)).unwrap().pop();
        assert!(check(&history).unwrap_err().what.contains("n3"));
    }

    #[test]
    fn what_is_below_the_floor_may_be_gone_and_nothing_else() {
        let mut history = retained(6);
        assert_eq!(check(&history), Ok(()));
        history.scans.values_mut().for_each(|entries| entries.retain(|entry| entry.sequence != 6));
        assert!(check(&history).unwrap_err().what.contains("sequence 6"));
    }

    #[test]
    fn catches_another_message_in_its_place_everywhere() {
        let mut history = honest();
        history.scans.values_mut().for_each(|entries| entries[5].body = 1);
        assert!(check(&history).is_err());
    }

    #[test]
    fn catches_a_message_that_no_complete_reader_was_given() {
        let mut history = honest();
        history.readers[0].rooms.get_mut(&ROOM).unwrap().remove(7);
        assert!(check(&history).unwrap_err().what.contains("r1"));
    }
}
