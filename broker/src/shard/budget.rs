//! How much may wait on a node for its entry (P12). Publishes and commands have a budget each, so that no
//! publisher delays a revocation.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use unibus_proto::code::ErrorCode;
use unibus_proto::limits::{COMMAND_BYTES_IN_FLIGHT_MAX, IN_FLIGHT_BYTES_MAX};

use crate::service::Failure;

/// The hint when the budget is used up: about one round to the disks of a majority.
const OVERLOADED_HINT: Duration = Duration::from_millis(100);

/// Bytes in flight on the node.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    what: &'static str,
    most: usize,
    used: Arc<AtomicUsize>,
}

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Reserved(Budget, usize);

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.used.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl Budget {
    /// That of messages.
    pub(super) fn of_publishes() -> Self {
        Self { what: "publish", most: IN_FLIGHT_BYTES_MAX, used: Arc::default() }
    }

    /// That of everything else that is proposed.
    pub(super) fn of_commands() -> Self {
        Self { what: "propose", most: COMMAND_BYTES_IN_FLIGHT_MAX, used: Arc::default() }
    }

    /// Takes a part of it.
    pub(super) fn reserve(&self, bytes: usize) -> Result<Reserved, Failure> {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let reserved = Reserved(self.clone(), bytes);
        if before + bytes <= self.most {
            return Ok(reserved);
        }
        let message = format!(
            "{}: {before} bytes are in flight on this node, at most {} are allowed; wait, or use another node",
            self.what, self.most
        );
        Err(Failure::new(ErrorCode::Overloaded, message).after(OVERLOADED_HINT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p12_a_budget_refuses_beyond_its_bound_and_recovers() {
        for budget in [Budget::of_publishes(), Budget::of_commands()] {
            let most = budget.reserve(budget.most).expect("it is empty");
            let refused = budget.reserve(1).expect_err("it is used up");
            assert_eq!(refused.code, ErrorCode::Overloaded);
            assert!(refused.retry_after.is_some() && refused.message.contains(budget.what), "{refused:?}");
            drop(most);
            budget.reserve(1).expect("it was given back");
        }
    }
}
