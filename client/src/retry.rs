//! Pauses between attempts: growing, with jitter, never below what the node asked for.

use std::time::Duration;

use crate::Error;
use crate::platform::{Platform, random};

/// The first pause: the next node is tried almost at once.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// An election takes about half a second; waiting longer than that would waste the time after it.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// The pauses of one call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after a failure: half of it fixed, half of it random.
    pub fn next<P: Platform>(&mut self, platform: &P, error: &Error) -> Duration {
        let ceiling = PAUSE_MAX.min(PAUSE_MIN * 2u32.pow(self.failures.min(8)));
        self.failures += 1;
        let random = u32::from_le_bytes(random(platform));
        let jittered = ceiling / 2 + ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0);
        jittered.max(error.retry_after.unwrap_or_default())
    }

    /// Something worked: the next failure is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}
