//! I11: a leadership ends with its life; within one life of a node, term and applied index never go
//! back. That logs agree is judged through the state hashes (I10).
//!
//! Leaders here are ordered by (term, node), so two nodes may lead in one term, one after the other;
//! what must not be is that a restarted node leads on in a term that it led before, without an election.
//! The reported commit index is ordered by leader first and may go back in number under a new one.

use std::collections::BTreeMap;

use unibus_proto::id::{GroupId, NodeId};

use crate::history::{History, Status};
use crate::invariants::Violation;

const INVARIANT: &str = "I11 Raft is safe";

fn broken(what: String) -> Result<(), Violation> {
    Err(Violation { invariant: INVARIANT, what })
}

fn check_election(lives: &mut BTreeMap<(GroupId, u64, NodeId), u64>, status: &Status) -> Result<(), Violation> {
    if !status.leads {
        return Ok(());
    }
    let Status { group, term, node, life, .. } = status;
    match *lives.entry((*group, *term, *node)).or_insert(*life) {
        led if led == *life => Ok(()),
        led => {
            broken(format!("group {group}: n{node} led term {term} in life {led} and leads it again in life {life}"))
        }
    }
}

fn check_monotonic(before: &Status, after: &Status) -> Result<(), Violation> {
    let pairs = [("term", before.term, after.term), ("applied index", before.applied, after.applied)];
    for (what, old, new) in pairs {
        if new < old {
            let Status { node, life, group, at, .. } = after;
            return broken(format!(
                "n{node} (life {life}), group {group}: {what} went from {old} to {new} before {at} ns"
            ));
        }
    }
    Ok(())
}

/// Whether Raft's safety is broken.
pub fn check(history: &History) -> Result<(), Violation> {
    let mut lives = BTreeMap::new();
    let mut last: BTreeMap<_, &Status> = BTreeMap::new();
    for status in &history.statuses {
        check_election(&mut lives, status)?;
        // Over a restart all of them may go back: a status tells what the node believed, not what was on disk.
        if let Some(before) = last.insert((status.node, status.group), status)
            && before.life == status.life
        {
            check_monotonic(before, status)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::{honest, status};

    #[test]
    fn catches_a_leadership_that_outlives_its_process() {
        let mut history = honest();
        history.statuses.push(Status { life: 1, ..status(2, 40, 2, true, 10) });
        assert!(check(&history).unwrap_err().what.contains("n2 led term 2 in life 0"));
    }

    #[test]
    fn catches_an_applied_index_that_goes_back() {
        let mut history = honest();
        history.statuses.push(status(2, 40, 2, true, 9));
        assert!(check(&history).unwrap_err().what.contains("index went from 10 to 9"));
    }

    #[test]
    fn indices_may_go_back_over_a_restart() {
        let mut history = honest();
        history.statuses.push(Status { life: 1, ..status(2, 40, 2, false, 3) });
        assert_eq!(check(&history), Ok(()));
    }

    #[test]
    fn catches_a_term_that_goes_back() {
        let mut history = honest();
        history.statuses.push(status(2, 40, 1, false, 10));
        assert!(check(&history).unwrap_err().what.contains("term went from 2 to 1"));
    }
}
