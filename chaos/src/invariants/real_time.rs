//! I3: a publish that was acknowledged before another began has the smaller sequence.

use std::collections::BTreeMap;

use crate::history::History;
use crate::invariants::Violation;

const INVARIANT: &str = "I3 the order respects real time";

/// Whether a later publish stands before an earlier one: one sweep per room in ascending order of
/// sequence, remembering the latest beginning seen so far.
pub fn check(history: &History) -> Result<(), Violation> {
    let mut rooms: BTreeMap<_, Vec<(u64, u64, u64)>> = BTreeMap::new();
    for (publish, at, sequence) in history.acked().filter(|(_, _, sequence)| *sequence > 0) {
        rooms.entry(publish.room).or_default().push((sequence, publish.began, at));
    }
    for (room, mut acked) in rooms {
        acked.sort_unstable();
        let mut latest = (0, 0);
        for (sequence, began, at) in acked {
            if at < latest.0 {
                let (later, before) = latest;
                let what = format!(
                    "room {room}: sequence {sequence} was acknowledged at {at} ns, before sequence {before} was begun \
                     at {later} ns"
                );
                return Err(Violation { invariant: INVARIANT, what });
            }
            latest = latest.max((began, sequence));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Outcome;
    use crate::history::testing::honest;

    #[test]
    fn catches_a_late_message_before_an_early_one() {
        let mut history = honest();
        let swap = |history: &mut History, index: usize, sequence| {
            let Outcome::Acked { at, .. } = history.publishes[index].outcome else { unreachable!() };
            history.publishes[index].outcome = Outcome::Acked { at, sequence };
        };
        swap(&mut history, 1, 9);
        swap(&mut history, 8, 2);
        assert!(check(&history).is_err());
    }

    #[test]
    fn concurrent_publishes_may_stand_in_any_order() {
        let mut history = honest();
        for (publish, sequence) in history.publishes.iter_mut().zip((1..=10).rev()) {
            publish.began = 0;
            publish.outcome = Outcome::Acked { at: 5_000, sequence };
        }
        assert_eq!(check(&history), Ok(()));
    }
}
