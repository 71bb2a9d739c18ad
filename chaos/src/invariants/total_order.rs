//! I2: per room, sequence and message are one-to-one over acknowledgements, readers and replicas, and
//! every replica and every reader has a slice without a gap. Where a room's retention drops entries, each
//! replica has exactly what is from the one floor on, and a reader misses only what he was told is gone.

use std::collections::{BTreeMap, BTreeSet};

use unibus_proto::id::RoomId;

use crate::history::{Entry, History};
use crate::invariants::Violation;

const INVARIANT: &str = "I2 one total order per room";

fn broken(what: String) -> Result<(), Violation> {
    Err(Violation { invariant: INVARIANT, what })
}

/// The order of one room, as far as anybody told.
#[derive(Default)]
struct Order {
    bodies: BTreeMap<u64, (u64, String)>,
    sequences: BTreeMap<u64, (u64, String)>,
    ids: BTreeMap<u64, (crate::history::EntryId, String)>,
}

impl Order {
    fn add(&mut self, room: RoomId, sequence: u64, body: u64, who: &str) -> Result<(), Violation> {
        let (known, by) = self.bodies.entry(sequence).or_insert_with(|| (body, who.to_string()));
        if *known != body {
            return broken(format!("room {room}, sequence {sequence}: {by} has {known:016x}, {who} has {body:016x}"));
        }
        let (known, by) = self.sequences.entry(body).or_insert_with(|| (sequence, who.to_string()));
        if *known != sequence {
            return broken(format!(
                "room {room}, message {body:016x}: {by} has it as sequence {known}, {who} as {sequence}"
            ));
        }
        Ok(())
    }

    fn add_entry(&mut self, room: RoomId, entry: &Entry, who: &str) -> Result<(), Violation> {
        self.add(room, entry.sequence, entry.body, who)?;
        let (known, by) = self.ids.entry(entry.sequence).or_insert_with(|| (entry.id, who.to_string()));
        if *known != entry.id {
            let Entry { sequence, id, .. } = entry;
            return broken(format!("room {room}, sequence {sequence}: {by} has id {known:?}, {who} has {id:?}"));
        }
        Ok(())
    }
}

fn gap_free(room: RoomId, entries: &[Entry], who: &str, moved: impl Fn(u64) -> bool) -> Result<(), Violation> {
    for pair in entries.windows(2) {
        let (before, after) = (pair[0].sequence, pair[1].sequence);
        if after != before + 1 && !(after > before && moved(after)) {
            return broken(format!("room {room}: {who} has sequence {after} right after {before}"));
        }
    }
    Ok(())
}

/// Whether a replica keeps more or less than the others.
fn begins_at_the_floor(history: &History) -> Result<(), Violation> {
    for ((node, room), entries) in &history.scans {
        let (floor, own) = (history.floor(*room), history.floors.get(&(*node, *room)).copied().unwrap_or(0));
        let first = entries.first().map_or(own, |entry| entry.sequence);
        if own != floor || first != floor {
            return broken(format!("room {room}: replica n{node} begins at {first}, its floor is {own} of {floor}"));
        }
    }
    Ok(())
}

/// Whether an order forks or has a gap.
pub fn check(history: &History) -> Result<(), Violation> {
    let mut orders: BTreeMap<RoomId, Order> = BTreeMap::new();
    for (publish, _, sequence) in history.acked().filter(|(_, _, sequence)| *sequence > 0) {
        orders.entry(publish.room).or_default().add(publish.room, sequence, publish.body, "an acknowledgement")?;
    }
    let nobody = BTreeSet::new();
    let replicas =
        history.scans.iter().map(|((node, room), entries)| (format!("replica n{node}"), *room, entries, &nobody));
    let readers = history.readers.iter().flat_map(|reader| {
        reader.rooms.iter().map(|(room, entries)| (format!("reader {}", reader.name), *room, entries, &reader.moved))
    });
    begins_at_the_floor(history)?;
    for (who, room, entries, moved) in replicas.chain(readers) {
        let floor = history.floor(room);
        gap_free(room, entries, &who, |to| to <= floor && moved.contains(&(room, to)))?;
        let order = orders.entry(room).or_default();
        entries.iter().try_for_each(|entry| order.add_entry(room, entry, &who))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Outcome;
    use crate::history::testing::{NODES, PRODUCER, ROOM, honest, retained};

    #[test]
    fn catches_a_replica_in_another_order() {
        let mut history = honest();
        let entries = history.scans.get_mut(&(NODES[1], ROOM)).unwrap();
        let body = entries[3].body;
        entries[3].body = std::mem::replace(&mut entries[4].body, body);
        assert!(check(&history).unwrap_err().what.contains("sequence 3"));
    }

    #[test]
    fn catches_an_id_that_differs_between_replicas() {
        let mut history = honest();
        history.scans.get_mut(&(NODES[1], ROOM)).unwrap()[3].id = crate::history::EntryId::Message(PRODUCER, 77);
        assert!(check(&history).is_err());
    }

    #[test]
    fn catches_a_gap_at_a_reader() {
        let mut history = honest();
        history.readers[1].rooms.get_mut(&ROOM).unwrap().remove(2);
        assert!(check(&history).unwrap_err().what.contains("r2"));
    }

    #[test]
    fn a_reader_misses_only_what_he_was_told_is_gone() {
        let mut history = retained(6);
        assert_eq!(check(&history), Ok(()));
        history.readers[0].rooms.get_mut(&ROOM).unwrap().retain(|entry| !(2..6).contains(&entry.sequence));
        assert!(check(&history).is_err(), "a silent gap below the floor");
        history.readers[0].moved.insert((ROOM, 6));
        assert_eq!(check(&history), Ok(()));
        history.readers[0].rooms.get_mut(&ROOM).unwrap().retain(|entry| entry.sequence != 6);
        history.readers[0].moved.insert((ROOM, 7));
        assert!(check(&history).is_err(), "a gap above the floor");
    }

    #[test]
    fn catches_a_replica_that_keeps_more_or_less_than_the_others() {
        let mut history = retained(6);
        history.scans.get_mut(&(NODES[1], ROOM)).unwrap().remove(0);
        assert!(check(&history).unwrap_err().what.contains("n2"));
        let mut history = retained(6);
        history.floors.insert((NODES[1], ROOM), 5);
        assert!(check(&history).is_err());
    }

    #[test]
    fn catches_a_message_stored_twice() {
        let mut history = honest();
        history.scans.values_mut().for_each(|entries| {
            let mut again = entries[10];
            again.sequence = 11;
            entries.push(again);
        });
        assert!(check(&history).unwrap_err().what.contains("sequence 11") || check(&history).is_err());
    }

    #[test]
    fn catches_an_acknowledgement_with_a_wrong_place() {
        let mut history = honest();
        history.publishes[2].outcome = Outcome::Acked { at: 350, sequence: 4 };
        assert!(check(&history).is_err());
    }
}
