//! I4: what is delivered was published with these bytes, and once: each message has one place, each
//! message id one message, and nothing that was refused is there.

use std::collections::BTreeMap;

use unibus_proto::id::RoomId;

use crate::history::{Entry, EntryId, History, Outcome};
use crate::invariants::Violation;

const INVARIANT: &str = "I4 no phantom and no duplicate";

fn broken(what: String) -> Result<(), Violation> {
    Err(Violation { invariant: INVARIANT, what })
}

type Attempts = BTreeMap<(RoomId, u64), Outcome>;

fn check_timeline(room: RoomId, entries: &[Entry], who: &str, attempts: &Attempts) -> Result<(), Violation> {
    let mut places: BTreeMap<EntryId, u64> = BTreeMap::new();
    let mut bodies: BTreeMap<u64, u64> = BTreeMap::new();
    for entry in entries {
        let Entry { sequence, id, body } = *entry;
        if let Some(other) = places.insert(id, sequence) {
            return broken(format!("room {room}: {who} has {id:?} as sequence {other} and {sequence}"));
        }
        if let EntryId::Roster(_) = id {
            continue;
        }
        if let Some(other) = bodies.insert(body, sequence) {
            return broken(format!("room {room}: {who} has message {body:016x} as sequence {other} and {sequence}"));
        }
        match attempts.get(&(room, body)) {
            None => return broken(format!("room {room}: {who} has message {body:016x}, which nobody published")),
            Some(Outcome::Refused) => {
                return broken(format!(
                    "room {room}: {who} has message {body:016x} as sequence {sequence}, though its client was told that \
                     it did not happen"
                ));
            }
            Some(Outcome::Unknown | Outcome::Acked { .. }) => {}
        }
    }
    Ok(())
}

/// Whether anything is on a timeline that should not be.
pub fn check(history: &History) -> Result<(), Violation> {
    let attempts: Attempts =
        history.publishes.iter().map(|publish| ((publish.room, publish.body), publish.outcome)).collect();
    for ((node, room), entries) in &history.scans {
        check_timeline(*room, entries, &format!("replica n{node}"), &attempts)?;
    }
    for reader in &history.readers {
        for (room, entries) in &reader.rooms {
            check_timeline(*room, entries, &format!("reader {}", reader.name), &attempts)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::{ROOM, entry, honest};

    #[test]
    fn catches_a_message_that_nobody_published() {
        let mut history = honest();
        history.scans.values_mut().for_each(|entries| entries.push(entry(11)));
        assert!(check(&history).unwrap_err().what.contains("nobody published"));
    }

    #[test]
    fn catches_altered_bytes() {
        let mut history = honest();
        history.readers[1].rooms.get_mut(&ROOM).unwrap()[1].body ^= 1;
        assert!(check(&history).unwrap_err().what.contains("r2"));
    }

    #[test]
    fn catches_a_duplicate_under_another_id() {
        let mut history = honest();
        let again = Entry { body: 1_003, ..entry(11) };
        history.scans.values_mut().for_each(|entries| entries.push(again));
        assert!(check(&history).unwrap_err().what.contains("sequence 3 and 11"));
    }

    #[test]
    fn catches_a_refused_message_that_was_stored() {
        let mut history = honest();
        history.publishes[4].outcome = Outcome::Refused;
        assert!(check(&history).unwrap_err().what.contains("did not happen"));
    }
}
