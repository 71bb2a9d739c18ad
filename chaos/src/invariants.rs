//! The promises, one file each, judged over one history.

pub mod acked_durable;
pub mod ephemeral;
pub mod monotonic_reads;
pub mod no_phantom;
pub mod producer_order;
pub mod raft_safety;
pub mod real_time;
pub mod replicas_agree;
pub mod total_order;

use std::fmt;

use crate::history::History;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which, e.g. "I1 no acknowledged publish is lost".
    pub invariant: &'static str,
    /// What was found, and what should have been.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// A checker.
pub type Check = fn(&History) -> Result<(), Violation>;

/// Every checker.
pub const ALL: [Check; 9] = [
    acked_durable::check,
    total_order::check,
    real_time::check,
    no_phantom::check,
    producer_order::check,
    monotonic_reads::check,
    replicas_agree::check,
    raft_safety::check,
    ephemeral::check,
];

/// Everything that the history breaks.
pub fn check(history: &History) -> Vec<Violation> {
    ALL.iter().filter_map(|check| check(history).err()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::honest;

    #[test]
    fn an_honest_history_passes_every_checker() {
        assert_eq!(check(&honest()), []);
    }

    #[test]
    fn an_empty_history_passes_every_checker() {
        assert_eq!(check(&History::default()), []);
    }
}
