//! What came of disks that filled up.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::invariants::Violation;
use crate::real::stage::Compared;

/// What came of a disk, or two, that filled up.
#[derive(Clone, Debug, Default)]
pub struct Act {
    /// Which.
    pub name: &'static str,
    /// The nodes.
    pub nodes: Vec<String>,
    /// Until the last of them said so on `/readyz`.
    pub said_after: Duration,
    /// Until they led nothing; where there is nobody to lead in their place it is not waited for.
    pub stepped_down_after: Option<Duration>,
    /// Writes through full nodes: how many, and the longest time until an answer.
    pub answers: (usize, Duration),
    /// Of those, how many were refused because of the disk.
    pub refused: usize,
    /// What a refusal says.
    pub says: String,
    /// Entries read meanwhile.
    pub read: usize,
    /// From when there was space until all are ready and take writes.
    pub recovered_after: Duration,
    /// The longest time without an acknowledgement.
    pub gap: Duration,
    /// What the load had acknowledged.
    pub acked: usize,
    /// What was compared afterwards.
    pub compared: Compared,
}

impl Act {
    fn proves_nothing(&self) -> bool {
        self.acked == 0 || self.answers.0 == 0 || self.compared.is_nothing()
    }
}

/// What it came to.
#[derive(Debug, Default)]
pub struct FullReport {
    /// One after another.
    pub acts: Vec<Act>,
    /// What is broken, and in which.
    pub violations: Vec<(&'static str, Violation)>,
    /// Where images and logs of a broken run are.
    pub kept: Option<PathBuf>,
}

impl FullReport {
    /// 0 pass, 1 a promise is broken, 2 nothing was tried, or nothing was compared.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self { violations, .. } if !violations.is_empty() => 1,
            Self { acts, .. } if acts.is_empty() || acts.iter().any(Act::proves_nothing) => 2,
            _ => 0,
        }
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let acts = self.acts.iter().map(|act| {
            json!({
                "act": act.name,
                "nodes": act.nodes,
                "said_after_ms": act.said_after.as_millis(),
                "stepped_down_after_ms": act.stepped_down_after.map(|after| after.as_millis()),
                "writes_through_them": act.answers.0,
                "longest_answer_ms": act.answers.1.as_millis(),
                "refused": act.refused,
                "says": act.says,
                "read": act.read,
                "recovered_after_ms": act.recovered_after.as_millis(),
                "longest_without_acknowledgement_ms": act.gap.as_millis(),
                "acknowledged": act.acked,
                "read_back": act.compared.read,
                "state_hashes_compared": act.compared.hashes,
            })
        });
        let violations = self
            .violations
            .iter()
            .map(|(act, violation)| json!({ "act": act, "invariant": violation.invariant, "what": violation.what }));
        json!({
            "schema": "unibus.chaos.v1.disk-full",
            "exit_code": self.exit_code(),
            "acts": acts.collect::<Vec<_>>(),
            "violations": violations.collect::<Vec<_>>(),
            "kept": self.kept,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_tried_or_compared_nothing_proves_nothing() {
        let compared = Compared { read: 1, hashes: 1 };
        let act = Act { acked: 1, answers: (1, Duration::ZERO), compared, ..Act::default() };
        let of = |act: Act| FullReport { acts: vec![act], ..FullReport::default() }.exit_code();
        assert_eq!(of(act.clone()), 0);
        assert_eq!(of(Act { acked: 0, ..act.clone() }), 2);
        assert_eq!(of(Act { compared: Compared::default(), ..act.clone() }), 2);
        assert_eq!(FullReport::default().exit_code(), 2);
        let violations = vec![("act", Violation { invariant: "I1", what: "lost".into() })];
        let report = FullReport { acts: vec![act], violations, kept: None };
        assert_eq!((report.exit_code(), report.to_json()["violations"][0]["act"].as_str()), (1, Some("act")));
    }
}
