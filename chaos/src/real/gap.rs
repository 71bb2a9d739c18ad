//! P11: publishing goes on. How long nothing was acknowledged, and whether that is too long. Pure.

use std::time::Duration;

use crate::history::History;
use crate::invariants::Violation;

/// When one node dies, publishing goes on within this time.
const GAP_MAX: Duration = Duration::from_secs(3);

/// The longest time without an acknowledgement from `from` to `to`, both included: a load that had stopped
/// getting answers at the end has a gap up to there.
pub fn longest(history: &History, from: u64, to: u64) -> Duration {
    let mut acked: Vec<u64> = history.acked().map(|(_, at, _)| at).filter(|at| (from..to).contains(at)).collect();
    acked.extend([from, to]);
    acked.sort_unstable();
    let gaps = acked.windows(2).map(|pair| pair[1] - pair[0]);
    Duration::from_nanos(gaps.max().unwrap_or_default())
}

/// Whether publishing stood for longer than the failure of one node may make it.
pub fn judge(longest: Duration) -> Result<(), Violation> {
    if longest <= GAP_MAX {
        return Ok(());
    }
    let what = format!("nothing was acknowledged for {:.2} s, expected at most {GAP_MAX:?}", longest.as_secs_f64());
    Err(Violation { invariant: "P11 publishing goes on", what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Outcome;
    use crate::history::testing::publish;

    const SECOND: u64 = 1_000_000_000;

    /// 100 a second for 60 s, none of them acknowledged in `hole`.
    fn history(hole: std::ops::Range<u64>) -> History {
        let times = (1..6_000).map(|number| number * SECOND / 100).filter(|at| !hole.contains(at));
        let publishes = times.zip(1..).map(|(at, sequence)| {
            let outcome = Outcome::Acked { at, sequence };
            crate::history::Publish { outcome, ..publish(sequence) }
        });
        History { publishes: publishes.collect(), ..History::default() }
    }

    #[test]
    fn a_hole_of_five_seconds_breaks_p11_wherever_it_is() {
        for begin in [0, 30, 55] {
            let longest = longest(&history(begin * SECOND..(begin + 5) * SECOND), 0, 60 * SECOND);
            assert!(longest >= Duration::from_secs(5), "from {begin} s: {longest:?}");
            assert!(judge(longest).unwrap_err().what.contains("5.0"), "from {begin} s");
        }
    }

    #[test]
    fn a_hole_of_two_seconds_does_not_and_nothing_at_all_does() {
        assert_eq!(judge(longest(&history(10 * SECOND..12 * SECOND), 0, 60 * SECOND)), Ok(()));
        assert!(judge(longest(&History::default(), 0, 60 * SECOND)).is_err());
    }
}
