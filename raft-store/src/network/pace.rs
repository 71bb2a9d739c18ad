//! How fast snapshots are sent: everything that a node sends in bulk shares one budget.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::env::{Env, InstantOf, now, sleep};

/// A budget of bytes per second.
pub struct Pace<E: Env> {
    bytes_per_second: u64,
    /// When what was sent so far is paid for.
    paid: Mutex<Option<InstantOf<E>>>,
}

impl<E: Env> Pace<E> {
    /// At most so many bytes per second.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid: Mutex::new(None) }
    }

    /// Waits until `bytes` may be sent. What was not used is not saved up.
    pub async fn wait(&self, bytes: u64) {
        let cost = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / self.bytes_per_second);
        let wait = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let now = now::<E>();
            let begin = paid.filter(|paid| *paid > now).unwrap_or(now);
            *paid = Some(begin + cost);
            begin - now
        };
        if wait > Duration::ZERO {
            sleep::<E>(wait).await;
        }
    }
}
