//! Who on this node waits for what is committed elsewhere. Leaders tell a node at once how far they have
//! committed while somebody does, and else with the next entries.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts subscriptions and reads behind a barrier; shared by all groups of a node.
#[derive(Clone, Debug, Default)]
pub struct Waits(Arc<AtomicUsize>);

/// One that waits, until it is dropped.
#[derive(Debug)]
pub struct Waiter(Waits);

impl Waits {
    /// Somebody waits from here on.
    pub fn enter(&self) -> Waiter {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waiter(self.clone())
    }

    /// Whether anybody does.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
