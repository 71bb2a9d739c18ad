//! Sends at a steady rate: message n is due at start + n / rate, so a pause is caught up and the rate
//! holds over the whole run.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// A steady rate.
pub struct Pace {
    started: Instant,
    per_second: NonZeroU32,
    sent: u64,
}

impl Pace {
    /// Starts now.
    pub fn new(per_second: NonZeroU32) -> Self {
        Self { started: Instant::now(), per_second, sent: 0 }
    }

    /// Waits until the next message is due.
    pub async fn next(&mut self) {
        let due = self.started + due_after(self.sent, self.per_second);
        self.sent += 1;
        // A timer has a millisecond of its own; messages that are due within it go at once.
        if due > Instant::now() + Duration::from_millis(1) {
            tokio::time::sleep_until(due.into()).await;
        }
    }
}

/// When message `sent` is due after the start.
pub fn due_after(sent: u64, per_second: NonZeroU32) -> Duration {
    let rate = u64::from(per_second.get());
    Duration::from_secs(sent / rate) + Duration::from_nanos(sent % rate * 1_000_000_000 / rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_times_do_not_drift() {
        let rate = NonZeroU32::new(1500).unwrap();
        assert_eq!(due_after(0, rate), Duration::ZERO);
        assert_eq!(due_after(1500, rate), Duration::from_secs(1));
        assert_eq!(due_after(15_000_750, rate), Duration::from_millis(10_000_500));
        let rate = NonZeroU32::new(3).unwrap();
        assert_eq!(due_after(3_000_000, rate), Duration::from_secs(1_000_000));
    }
}
