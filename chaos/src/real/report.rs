//! What a run came to, for people and for programs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::invariants::Violation;
use crate::real::power::PowerConfig;
use crate::real::stage::Compared;

/// What rounds of power cuts came to.
#[derive(Debug)]
pub struct PowerReport {
    /// The seed.
    pub seed: u64,
    /// Rounds that were run.
    pub rounds: u64,
    /// A start may take so long.
    pub start_max: Duration,
    /// Faults, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Publishes acknowledged.
    pub acked: u64,
    /// Publishes whose outcome nobody knows.
    pub unknown: u64,
    /// Publishes that did not happen.
    pub refused: u64,
    /// What was compared at the end of rounds.
    pub compared: Compared,
    /// How long each start took.
    pub starts: Vec<Duration>,
    /// The longest time without an acknowledgement, of each round.
    pub gaps: Vec<Duration>,
    /// Sealed segments that are byte-equal on all nodes: files and bytes.
    pub segments: (usize, u64),
    /// What is broken, and in which round.
    pub violations: Vec<(u64, Violation)>,
    /// Where images and logs of a broken run are.
    pub kept: Option<PathBuf>,
}

impl PowerReport {
    /// Nothing yet.
    pub fn new(config: &PowerConfig) -> Self {
        Self {
            seed: config.seed,
            rounds: 0,
            start_max: config.start_max,
            faults: BTreeMap::new(),
            acked: 0,
            unknown: 0,
            refused: 0,
            compared: Compared::default(),
            starts: Vec::new(),
            gaps: Vec::new(),
            segments: (0, 0),
            violations: Vec::new(),
            kept: None,
        }
    }

    /// 0 pass, 1 a promise is broken, 2 the run proves nothing.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self { violations, .. } if !violations.is_empty() => 1,
            // What was not tried is not a pass.
            Self { acked: 0, .. } | Self { segments: (0, _), .. } => 2,
            Self { compared, .. } if compared.is_nothing() => 2,
            _ => 0,
        }
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let [p50, max] = millis(&self.starts);
        let [gap_p50, gap_max] = millis(&self.gaps);
        json!({
            "schema": "unibus.chaos.v1.power",
            "verdict": self.verdict(),
            "seed": self.seed,
            "rounds": self.rounds,
            "faults": self.faults,
            "acknowledged": self.acked,
            "unknown": self.unknown,
            "refused": self.refused,
            "read": self.compared.read,
            "starts": { "count": self.starts.len(), "p50_ms": p50, "max_ms": max },
            "longest_without_acknowledgement": { "p50_ms": gap_p50, "max_ms": gap_max },
            "state_hashes_compared": self.compared.hashes,
            "sealed_segments_equal": { "files": self.segments.0, "bytes": self.segments.1 },
            "violations": self.violations.iter().map(|(round, violation)| json!({
                "round": round + 1, "invariant": violation.invariant, "what": violation.what,
            })).collect::<Vec<_>>(),
            "kept": self.kept,
        })
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let [p50, max] = millis(&self.starts);
        let [gap_p50, gap_max] = millis(&self.gaps);
        let faults: Vec<_> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let mut text = format!(
            "power seed {:#x} {}: {} rounds ({}), {} acknowledged, {} unknown, {} refused, {} read back, {} starts p50 \
             {p50} ms max {max} ms, longest without an acknowledgement p50 {gap_p50} ms max {gap_max} ms, {} state hashes and {} sealed segments ({} bytes) equal",
            self.seed,
            self.verdict(),
            self.rounds,
            faults.join(", "),
            self.acked,
            self.unknown,
            self.refused,
            self.compared.read,
            self.starts.len(),
            self.compared.hashes,
            self.segments.0,
            self.segments.1,
        );
        for (round, violation) in &self.violations {
            text += &format!("\n  broken in round {}: {violation}", round + 1);
        }
        if let Some(kept) = &self.kept {
            text += &format!("\n  images and logs: {}", kept.display());
        }
        text
    }

    fn verdict(&self) -> &'static str {
        ["passed", "FAILED", "unknown: too little happened"][usize::from(self.exit_code())]
    }
}

/// The middle one and the longest, in milliseconds.
fn millis(durations: &[Duration]) -> [u128; 2] {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let at = |index: usize| sorted.get(index).map_or(0, Duration::as_millis);
    [at(sorted.len() / 2), at(sorted.len().saturating_sub(1))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_tried_is_no_pass() {
        let config = crate::real::args::Power::for_tests().config();
        let empty = PowerReport::new(&config);
        assert_eq!((empty.exit_code(), empty.to_json()["verdict"].as_str()), (2, Some("unknown: too little happened")));
        let compared = Compared { read: 1, hashes: 1 };
        let tried = || PowerReport { acked: 1, compared, segments: (1, 1), ..PowerReport::new(&config) };
        assert_eq!(tried().exit_code(), 0);
        assert_eq!(PowerReport { compared: Compared { hashes: 0, ..compared }, ..tried() }.exit_code(), 2);
        let broken = vec![(0, Violation { invariant: "I1", what: "lost".into() })];
        assert_eq!(PowerReport { violations: broken, ..tried() }.exit_code(), 1);
    }

    #[test]
    fn durations_are_summed_up() {
        assert_eq!(millis(&[3, 1, 2].map(Duration::from_secs)), [2_000, 3_000]);
        assert_eq!(millis(&[]), [0, 0]);
    }
}
