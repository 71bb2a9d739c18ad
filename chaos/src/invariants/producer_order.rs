//! P3: the messages of one producer stand in the order of their numbers, on every replica and for every
//! reader.

use std::collections::BTreeMap;

use unibus_proto::id::RoomId;

use crate::history::{Entry, EntryId, History};
use crate::invariants::Violation;

const INVARIANT: &str = "P3 a producer's messages keep their order";

fn check_timeline(room: RoomId, entries: &[Entry], who: &str) -> Result<(), Violation> {
    let mut last = BTreeMap::new();
    for entry in entries {
        let EntryId::Message(producer, number) = entry.id else { continue };
        if let Some(before) = last.insert(producer, number)
            && number <= before
        {
            let sequence = entry.sequence;
            let what =
                format!("room {room}: {who} has message {number} of {producer} as sequence {sequence}, after {before}");
            return Err(Violation { invariant: INVARIANT, what });
        }
    }
    Ok(())
}

/// Whether a producer's later message stands before an earlier one.
pub fn check(history: &History) -> Result<(), Violation> {
    for ((node, room), entries) in &history.scans {
        check_timeline(*room, entries, &format!("replica n{node}"))?;
    }
    for reader in &history.readers {
        for (room, entries) in &reader.rooms {
            check_timeline(*room, entries, &format!("reader {}", reader.name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::{NODES, PRODUCER, ROOM, honest};

    #[test]
    fn an_overtaken_message_is_caught() {
        let mut history = honest();
        let timeline = history.scans.get_mut(&(NODES[0], ROOM)).unwrap();
        timeline[3].id = EntryId::Message(PRODUCER, 4);
        timeline[4].id = EntryId::Message(PRODUCER, 3);
        let found = check(&history).unwrap_err();
        assert_eq!(found.invariant, INVARIANT);
        assert!(found.what.contains("message 3"), "{found}");
    }
}
