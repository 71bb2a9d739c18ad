//! I10: replicas that applied the log up to the same index have the same state hash, and at the end
//! the same timelines; sealed segments, and snapshots at the same index, have the same bytes.

use std::collections::BTreeMap;

use crate::history::History;
use crate::invariants::Violation;

const INVARIANT: &str = "I10 replicas agree";

/// Whether two replicas differ.
pub fn check(history: &History) -> Result<(), Violation> {
    let mut hashes = BTreeMap::new();
    for status in &history.statuses {
        let Some((index, hash)) = status.state_hash else { continue };
        let (known, by) = hashes.entry((status.group, index)).or_insert((hash, status.node));
        if *known != hash {
            let what = format!(
                "group {}: n{by} and n{} have different states at index {index} ({:02x?}.. and {:02x?}..)",
                status.group,
                status.node,
                &known[..4],
                &hash[..4],
            );
            return Err(Violation { invariant: INVARIANT, what });
        }
    }
    let mut timelines = BTreeMap::new();
    for ((node, room), entries) in &history.scans {
        let (known, by) = timelines.entry(room).or_insert((entries, node));
        if *known != entries {
            let differ = known.iter().zip(entries).find(|(a, b)| a != b);
            let what = format!(
                "room {room}: n{by} has {} entries, n{node} has {}, first difference {differ:?}",
                known.len(),
                entries.len()
            );
            return Err(Violation { invariant: INVARIANT, what });
        }
    }
    for ((group, file), copies) in &history.files {
        if let Some(pair) = copies.windows(2).find(|pair| pair[0].1 != pair[1].1) {
            let [(one, _), (other, _)] = [pair[0], pair[1]];
            let what = format!("group {group}: {file:?} has other bytes on n{one} than on n{other}");
            return Err(Violation { invariant: INVARIANT, what });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::{NODES, ROOM, honest, status};

    #[test]
    fn catches_another_state_at_the_same_index() {
        let mut history = honest();
        let mut lie = status(3, 40, 2, false, 5);
        lie.state_hash = Some((5, [0xee; 32]));
        history.statuses.push(lie);
        assert!(check(&history).unwrap_err().what.contains("index 5"));
    }

    #[test]
    fn catches_a_file_with_other_bytes() {
        let mut history = honest();
        history.files.values_mut().next().unwrap()[1].1 = [0xee; 32];
        assert!(check(&history).unwrap_err().what.contains("Segment(0)"));
    }

    #[test]
    fn catches_a_longer_timeline() {
        let mut history = honest();
        history.scans.get_mut(&(NODES[0], ROOM)).unwrap().pop();
        assert!(check(&history).is_err());
    }
}
