//! What was measured, and how two measurements are put together.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::exit::{Failure, Result};

/// Longer latencies are counted as this; the publisher gives up long before.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Three digits: finer than the noise of any machine.
const DIGITS: u8 = 3;
/// What is shown of a distribution.
pub const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// What one task, or all, measured.
pub struct Measured {
    /// Microseconds.
    pub latency: Histogram<u64>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Messages before the measurement.
    pub warmup: u64,
    /// Nodes that vote, of which a majority has fsynced.
    pub voters: u32,
    /// Why it ended early.
    pub failure: Option<Failure>,
}

impl Measured {
    /// Nothing yet.
    pub fn new() -> Result<Self> {
        let latency = Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS)
            .map_err(|error| Failure::local(format!("bench: {error}")))?;
        Ok(Self { latency, first: None, last: None, warmup: 0, voters: 0, failure: None })
    }

    /// One message, due (or sent) and done. Those of the warm-up are not measured.
    pub fn record(&mut self, due: Instant, done: Instant, measure_from: Instant) {
        if due < measure_from {
            self.warmup += 1;
            return;
        }
        self.latency.saturating_record(done.saturating_duration_since(due).as_micros() as u64);
        self.first = Some(self.first.map_or(due, |first| first.min(due)));
        self.last = self.last.max(Some(done));
    }

    /// Keeps the first failure.
    pub fn fail(&mut self, failure: Failure) {
        self.failure = self.failure.take().or(Some(failure));
    }

    /// Puts another measurement to this one.
    pub fn add(&mut self, other: Self) {
        // Equal bounds: adding cannot fail.
        self.latency += other.latency;
        self.first = [self.first, other.first].into_iter().flatten().min();
        self.last = self.last.max(other.last);
        self.warmup += other.warmup;
        self.voters = self.voters.max(other.voters);
        self.failure = self.failure.take().or(other.failure);
    }

    /// From the first to the last.
    pub fn took(&self) -> Duration {
        self.first.zip(self.last).map_or(Duration::ZERO, |(first, last)| last - first)
    }

    /// Messages per second.
    pub fn per_second(&self) -> f64 {
        self.latency.len() as f64 / self.took().as_secs_f64().max(1e-6)
    }

    /// The distribution, in microseconds.
    pub fn latency_json(&self) -> Value {
        let mut latency = json!({
            "min": if self.latency.is_empty() { 0 } else { self.latency.min() },
            "mean": self.latency.mean() as u64,
            "max": self.latency.max(),
        });
        for (name, quantile) in QUANTILES {
            latency[name.replace('.', "_")] = self.latency.value_at_quantile(quantile).into();
        }
        latency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_is_not_measured_and_tasks_add_up() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let measured = |from: u64| {
            let mut measured = Measured::new().unwrap();
            measured.record(start, start + ms(900), start + ms(10));
            for n in 0..100 {
                measured.record(start + ms(from + n), start + ms(from + n + 2), start + ms(10));
            }
            measured
        };
        let mut total = measured(10);
        total.add(measured(910));
        assert_eq!((total.latency.len(), total.warmup), (200, 2));
        assert_eq!(total.took(), ms(1_001));
        assert_eq!(total.per_second() as u64, 199);
        assert_eq!(total.latency_json()["p50"].as_u64().map(|us| us / 100), Some(20));
        assert!(total.latency_json()["p99_9"].is_u64());
        assert_eq!(Measured::new().unwrap().latency_json()["min"], 0, "nothing measured is no panic");
    }
}
