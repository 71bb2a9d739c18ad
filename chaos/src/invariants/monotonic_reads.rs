//! I5: a subscriber never goes back and never sees an entry twice, over all its reconnects; who asks for the
//! start gets it, or what the room's retention left of it.

use crate::history::History;
use crate::invariants::Violation;

const INVARIANT: &str = "I5 reads are monotonic";

/// Whether a reader was taken back.
pub fn check(history: &History) -> Result<(), Violation> {
    for reader in &history.readers {
        for (room, entries) in &reader.rooms {
            if reader.complete
                && let Some(first) = entries.first()
                && first.sequence > history.floor(*room)
            {
                let what = format!(
                    "room {room}: reader {} asked for the timeline from its start and got sequence {} first",
                    reader.name, first.sequence
                );
                return Err(Violation { invariant: INVARIANT, what });
            }
            for pair in entries.windows(2) {
                let (before, after) = (pair[0].sequence, pair[1].sequence);
                if after <= before {
                    let what = format!("room {room}: reader {} got sequence {after} after {before}", reader.name);
                    return Err(Violation { invariant: INVARIANT, what });
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::{ROOM, entry, honest};

    #[test]
    fn catches_a_redelivery_after_a_reconnect() {
        let mut history = honest();
        history.readers[0].rooms.get_mut(&ROOM).unwrap().push(entry(10));
        assert!(check(&history).unwrap_err().what.contains("sequence 10 after 10"));
    }

    #[test]
    fn catches_a_start_that_is_not_the_start() {
        let mut history = honest();
        history.readers[0].rooms.get_mut(&ROOM).unwrap().remove(0);
        assert!(check(&history).unwrap_err().what.contains("got sequence 1 first"));
    }
}
