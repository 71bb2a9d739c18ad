//! What was sent, acknowledged and received by a check: pure, so that the verdict itself is tested.

use std::collections::BTreeMap;
use std::time::Duration;

/// The fate of one message.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    sent: Option<Duration>,
    acked: bool,
    received: u32,
}

/// The messages of one run, by number. Settled ones are forgotten, so a long run stays small.
#[derive(Debug, Default)]
pub struct Ledger {
    open: BTreeMap<u64, Fate>,
    /// All numbers below are settled: sent, acknowledged and received.
    settled_below: u64,
    last_received: Option<u64>,
    counts: Counts,
    last_ack: Duration,
}

/// What became of the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Handed to the SDK.
    pub sent: u64,
    /// Acknowledged.
    pub acked: u64,
    /// Refused or given up: not stored, or nobody knows.
    pub failed: u64,
    /// Received at least once.
    pub received: u64,
    /// Received again.
    pub duplicates: u64,
    /// Received after a later one.
    pub out_of_order: u64,
    /// Longest time without an acknowledgement while one was due.
    pub longest_gap: Duration,
    /// Slowest message from send to receipt.
    pub slowest: Duration,
}

impl Ledger {
    /// Message `number` goes out.
    pub fn sent(&mut self, number: u64, now: Duration) {
        // A gap is measured only while something waits: an idle time is none.
        if self.counts.sent == self.counts.acked + self.counts.failed {
            self.last_ack = now;
        }
        self.counts.sent += 1;
        self.open.entry(number).or_default().sent = Some(now);
    }

    /// Message `number` is stored.
    pub fn acked(&mut self, number: u64, now: Duration) {
        self.answered(now);
        self.counts.acked += 1;
        self.open.entry(number).or_default().acked = true;
        self.settle();
    }

    /// Message `number` was given up.
    pub fn failed(&mut self, _number: u64) {
        self.counts.failed += 1;
    }

    /// Message `number` came back. Returns how long it took, the first time.
    pub fn received(&mut self, number: u64, now: Duration) -> Option<Duration> {
        if number < self.settled_below {
            self.counts.duplicates += 1;
            return None;
        }
        let fate = self.open.entry(number).or_default();
        fate.received += 1;
        if fate.received > 1 {
            self.counts.duplicates += 1;
            return None;
        }
        let took = fate.sent.map(|sent| now.saturating_sub(sent));
        self.counts.received += 1;
        self.counts.out_of_order += u64::from(self.last_received.is_some_and(|last| number < last));
        self.last_received = self.last_received.max(Some(number));
        self.counts.slowest = self.counts.slowest.max(took.unwrap_or_default());
        self.settle();
        took
    }

    /// Time goes on without an acknowledgement.
    pub fn tick(&mut self, now: Duration) {
        if self.counts.sent > self.counts.acked + self.counts.failed {
            self.counts.longest_gap = self.counts.longest_gap.max(now.saturating_sub(self.last_ack));
        }
    }

    /// The counts.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Acknowledged but not received: once the stream has ended, these are lost.
    pub fn missing(&self) -> Vec<u64> {
        self.open.iter().filter(|(_, fate)| fate.acked && fate.received == 0).map(|(&number, _)| number).collect()
    }

    fn answered(&mut self, now: Duration) {
        self.tick(now);
        self.last_ack = now;
    }

    fn settle(&mut self) {
        while let Some(first) = self.open.first_entry() {
            let done = first.get().acked && first.get().received > 0;
            if !done || *first.key() != self.settled_below {
                return;
            }
            first.remove();
            self.settled_below += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn run(count: u64) -> Ledger {
        let mut ledger = Ledger::default();
        for number in 0..count {
            ledger.sent(number, ms(number * 10));
            ledger.acked(number, ms(number * 10 + 2));
            assert_eq!(ledger.received(number, ms(number * 10 + 3)), Some(ms(3)));
        }
        ledger
    }

    #[test]
    fn clean_run_keeps_nothing() {
        let ledger = run(100);
        let counts = ledger.counts();
        assert_eq!((counts.sent, counts.acked, counts.received), (100, 100, 100));
        assert_eq!((counts.duplicates, counts.out_of_order), (0, 0));
        assert_eq!((counts.longest_gap, counts.slowest), (ms(2), ms(3)));
        assert!(ledger.open.is_empty() && ledger.missing().is_empty());
    }

    #[test]
    fn duplicates_are_seen_also_of_settled_messages() {
        let mut ledger = run(3);
        ledger.received(0, ms(100));
        ledger.sent(3, ms(100));
        ledger.received(3, ms(101));
        ledger.received(3, ms(102));
        assert_eq!(ledger.counts().duplicates, 2);
        assert_eq!(ledger.counts().received, 4);
    }

    #[test]
    fn lost_is_acknowledged_and_never_received() {
        let mut ledger = run(3);
        for number in 3..6 {
            ledger.sent(number, ms(100));
        }
        ledger.acked(3, ms(101));
        ledger.acked(4, ms(101));
        ledger.failed(5);
        ledger.received(4, ms(102));
        assert_eq!(ledger.missing(), [3]);
        ledger.received(3, ms(103));
        assert_eq!(ledger.counts().out_of_order, 1);
        assert!(ledger.missing().is_empty());
    }

    #[test]
    fn gap_counts_only_while_something_waits() {
        let mut ledger = run(1);
        ledger.sent(1, ms(60_000));
        ledger.tick(ms(61_000));
        ledger.acked(1, ms(61_500));
        ledger.tick(ms(90_000));
        assert_eq!(ledger.counts().longest_gap, ms(1_500));
    }
}
