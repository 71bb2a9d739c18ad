//! A run beside an earlier one.

use std::path::Path;

use serde_json::{Value, json};

use crate::exit::{Failure, Result};
use crate::output::{Output, thousands};

/// What is compared: where it stands, whether more is better, whether it decides.
const FIGURES: [(&str, bool, bool); 8] = [
    ("messages_per_second", true, true),
    ("deliveries_per_second", true, true),
    ("rooms_per_second", true, true),
    ("users_per_second", true, true),
    ("latency_us.p50", false, true),
    ("latency_us.p90", false, true),
    ("latency_us.p99", false, true),
    // A single stall of the machine is in these.
    ("latency_us.p99_9", false, false),
];
/// Settings without which figures say nothing about each other.
const SETTINGS: [&str; 9] =
    ["schema", "size_bytes", "publishers", "in_flight", "subscribers", "rooms", "rate_per_second", "users", "parallel"];

/// A figure of both runs.
#[derive(Debug, PartialEq)]
pub struct Compared {
    name: &'static str,
    old: f64,
    new: f64,
    is_worse: bool,
}

/// An earlier run.
pub struct Earlier(Value);

impl Earlier {
    /// What a run printed under `--json`.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |why: String| Failure::usage(format!("--compare {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let value: Value = serde_json::from_str(last)
            .map_err(|error| wrong(format!("{error}; expected what a bench printed under --json")))?;
        Ok(Self(value))
    }

    /// The figures beside those of a run; refused when it was another kind of run.
    pub fn compare(&self, new: &Value, tolerance_percent: u32) -> Result<Vec<Compared>> {
        for setting in SETTINGS {
            let (old, new) = (&self.0[setting], &new[setting]);
            if old != new {
                let message =
                    format!("--compare: {setting}: found {old} in the earlier run, expected {new} as in this one");
                return Err(Failure::usage(message));
            }
        }
        let tolerance = 1.0 + f64::from(tolerance_percent) / 100.0;
        let compared = FIGURES.iter().filter_map(|&(name, more_is_better, decides)| {
            let of = |value: &Value| name.split('.').try_fold(value, |value, key| value.get(key))?.as_f64();
            let (old, new) = (of(&self.0)?, of(new)?);
            let is_worse = if more_is_better { new * tolerance < old } else { new > old * tolerance };
            Some(Compared { name, old, new, is_worse: is_worse && decides })
        });
        Ok(compared.collect())
    }
}

/// Says how the figures changed; an error when one got worse.
pub fn judge(compared: &[Compared], out: Output) -> Result<()> {
    let row = |c: &Compared| {
        let verdict = if c.is_worse { "worse" } else { "" };
        vec![c.name.into(), thousands(c.old as u64), thousands(c.new as u64), ratio(c), verdict.to_owned()]
    };
    if !out.json {
        let rows: Vec<_> = compared.iter().map(row).collect();
        out.table(&["figure", "before", "now", "ratio", ""], &rows)?;
    }
    let worse: Vec<_> = compared.iter().filter(|c| c.is_worse).map(|c| format!("{} {}", c.name, ratio(c))).collect();
    if worse.is_empty() {
        return Ok(());
    }
    let failure = Failure::local(format!("bench: worse than the earlier run: {}", worse.join(", ")));
    Err(Failure { code: "REGRESSION".into(), ..failure })
}

/// The comparison for programs.
pub fn describe(compared: &[Compared]) -> Value {
    let one = |c: &Compared| json!({ "figure": c.name, "before": c.old, "now": c.new, "worse": c.is_worse });
    compared.iter().map(one).collect()
}

fn ratio(compared: &Compared) -> String {
    format!("{:.2}x", compared.new / compared.old.max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rate: u64, p50: u64, p99_9: u64) -> Value {
        json!({ "schema": "s", "size_bytes": 128, "messages_per_second": rate,
                "latency_us": { "p50": p50, "p99_9": p99_9 } })
    }

    fn worse(old: Value, new: Value, tolerance: u32) -> Vec<&'static str> {
        let compared = Earlier(old).compare(&new, tolerance).unwrap();
        compared.into_iter().filter(|c| c.is_worse).map(|c| c.name).collect()
    }

    #[test]
    fn worse_beyond_the_tolerance_is_a_regression() {
        assert_eq!(worse(run(1_000, 100, 5), run(1_000, 100, 5), 0), [""; 0]);
        assert_eq!(worse(run(1_000, 100, 5), run(950, 105, 500), 10), [""; 0], "within it, or not decisive");
        assert_eq!(worse(run(1_000, 100, 5), run(800, 100, 5), 10), ["messages_per_second"]);
        assert_eq!(worse(run(1_000, 100, 5), run(2_000, 120, 5), 10), ["latency_us.p50"]);
        assert_eq!(worse(run(1_000, 100, 5), run(800, 120, 5), 50), [""; 0]);
    }

    #[test]
    fn rooms_and_users_are_compared_at_equal_load() {
        let run = |rooms: u64, users: u64, parallel: u64| json!({ "rooms": 1_000, "parallel": parallel, "rooms_per_second": rooms, "users_per_second": users });
        assert_eq!(worse(run(500, 90, 64), run(490, 95, 64), 10), [""; 0]);
        assert_eq!(worse(run(500, 90, 64), run(400, 50, 64), 10), ["rooms_per_second", "users_per_second"]);
        assert!(Earlier(run(500, 90, 64)).compare(&run(500, 90, 8), 10).is_err());
    }

    #[test]
    fn another_kind_of_run_is_refused() {
        let mut other = run(1, 1, 1);
        other["size_bytes"] = 1_024.into();
        let failure = Earlier(other).compare(&run(1, 1, 1), 10).unwrap_err();
        assert!(failure.message.contains("size_bytes: found 1024"), "{}", failure.message);
    }

    #[test]
    fn the_last_line_of_the_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old.json");
        std::fs::write(&path, format!("{}\n{}\n\n", run(1, 1, 1), run(7, 1, 1))).unwrap();
        assert_eq!(Earlier::read(&path).unwrap().0["messages_per_second"], 7);
        std::fs::write(&path, "8 publishers").unwrap();
        assert_eq!(Earlier::read(&path).err().unwrap().exit, crate::exit::Exit::Usage);
        assert!(Earlier::read(&dir.path().join("none")).is_err());
    }
}
