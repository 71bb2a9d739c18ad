//! I11: at most one leader per term and group; within one life of a node, term, commit and applied
//! index never go back. That logs agree is judged through the state hashes (I10).

use std::collections::BTreeMap;

use unibus_proto::id::{GroupId, NodeId};

use crate::history::{History, Status};
use crate::invariants::Violation;

const INVARIANT: &str = "I11 Raft is safe";

fn broken(what: String) -> Result<(), Violation> {
    Err(Violation { invariant: INVARIANT, what })
}

fn check_election(leaders: &mut BTreeMap<(GroupId, u64), NodeId>, status: &Status) -> Result<(), Violation> {
    if !status.leads {
        return Ok(());
    }
    let Status { group, term, node, .. } = status;
    match *leaders.entry((*group, *term)).or_insert(*node) {
        leader if leader == *node => Ok(()),
        leader => broken(format!("group {group}, term {term}: n{leader} and n{node} both lead")),
    }
}

fn check_monotonic(before: &Status, after: &Status) -> Result<(), Violation> {
    let pairs = [
        ("term", before.term, after.term),
        ("commit index", before.committed, after.committed),
        ("applied index", before.applied, after.applied),
    ];
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
    let mut leaders = BTreeMap::new();
    let mut last: BTreeMap<_, &Status> = BTreeMap::new();
    for status in &history.statuses {
        check_election(&mut leaders, status)?;
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
    fn catches_two_leaders_of_a_term() {
        let mut history = honest();
        history.statuses.push(status(3, 40, 2, true, 10));
        assert!(check(&history).unwrap_err().what.contains("both lead"));
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
