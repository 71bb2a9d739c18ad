//! [`SimClock`]: the wall clock of a simulated node, with an error of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use openraft_rt::Instant;
use unibus_raft_store::env::Clock;

use crate::sim::timer::SimInstant;

/// Where wall time stands when virtual time begins: 2026-01-01.
const START_MS: i64 = 1_767_225_600_000;

/// Virtual time plus an error.
#[derive(Clone, Debug, Default)]
pub struct SimClock {
    error_ms: Arc<AtomicI64>,
}

impl SimClock {
    /// A clock that is wrong by `error_ms`.
    pub fn new(error_ms: i64) -> Self {
        Self { error_ms: Arc::new(AtomicI64::new(error_ms)) }
    }

    /// Moves the clock.
    pub fn set_error(&self, error_ms: i64) {
        self.error_ms.store(error_ms, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        let virtual_ms = (SimInstant::now().nanos() / 1_000_000) as i64;
        (START_MS + virtual_ms + self.error_ms.load(Ordering::Relaxed)).max(0) as u64
    }
}
