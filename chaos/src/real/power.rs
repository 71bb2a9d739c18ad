//! Rounds of power cuts under load: in each one or all nodes lose power at a random moment, come back, and
//! are compared with each other and with what clients were told.

use std::time::{Duration, Instant};

use crate::history::{History, Outcome};
use crate::invariants::{self, Violation};
use crate::real::fault::{Chances, RoundPlan};
use crate::real::floor::FloorConfig;
use crate::real::load::{Load, LoadConfig};
use crate::real::report::PowerReport;
use crate::real::stage::Stage;

const ROOMS: u64 = 8;

/// What a run of rounds is.
#[derive(Clone, Debug)]
pub struct PowerConfig {
    /// Decides faults and load.
    pub seed: u64,
    /// How many rounds.
    pub rounds: u64,
    /// How faults are drawn.
    pub chances: Chances,
    /// A start may take so long.
    pub start_max: Duration,
    /// What is published.
    pub load: LoadConfig,
    /// The nodes.
    pub floor: FloorConfig,
}

/// Runs all rounds. An error is the harness's own; what is broken is in the report.
pub async fn run(config: &PowerConfig) -> Result<PowerReport, String> {
    let stage = Stage::set(&config.floor, ROOMS).await?;
    let load = stage.load(&config.load, config.seed);
    let mut rounds = Rounds { stage, load, whole: History::default(), report: PowerReport::new(config) };
    let ran = rounds.all(config).await;
    let Rounds { stage, mut report, .. } = rounds;
    report.starts = stage.doing.starts.clone();
    report.segments = (stage.segments.files(), stage.segments.bytes);
    report.kept = stage.strike(ran.is_err() || !report.violations.is_empty());
    match ran {
        Ok(()) => Ok(report),
        Err(why) => Err(format!("{why}; images and logs are in {}", report.kept.unwrap_or_default().display())),
    }
}

struct Rounds {
    stage: Stage,
    load: Load,
    /// Publishes and statuses of all rounds so far.
    whole: History,
    report: PowerReport,
}

impl Rounds {
    /// Stops at the first round that breaks something.
    async fn all(&mut self, config: &PowerConfig) -> Result<(), String> {
        for number in 0..config.rounds {
            let plan = RoundPlan::draw(config.seed, number, &config.chances);
            let (began, acked, starts) = (Instant::now(), self.report.acked, self.stage.doing.starts.len());
            let broken = self.round(&plan, config).await?;
            plan.kinds.iter().for_each(|kind| *self.report.faults.entry(kind).or_default() += 1);
            self.report.rounds += 1;
            eprintln!(
                "round {:>3}: {:<36} {:>6} acknowledged, starts {}, {:.1} s{}",
                number + 1,
                plan.name,
                self.report.acked - acked,
                seconds(&self.stage.doing.starts[starts..]),
                began.elapsed().as_secs_f64(),
                if broken.is_empty() { "" } else { " BROKEN" },
            );
            if !broken.is_empty() {
                self.report.violations = broken.into_iter().map(|violation| (number, violation)).collect();
                return Ok(());
            }
        }
        let broken = self.end().await?;
        self.report.violations = broken.into_iter().map(|violation| (config.rounds, violation)).collect();
        Ok(())
    }

    /// One round; answers what is broken.
    async fn round(&mut self, plan: &RoundPlan, config: &PowerConfig) -> Result<Vec<Violation>, String> {
        let stage = &mut self.stage;
        let end = Instant::now() + Duration::from_millis(config.chances.load_ms);
        let sampling: Vec<_> = stage.watchers.iter().map(|watcher| watcher.sample(&stage.recorder)).collect();
        let starts = stage.doing.starts.len();
        self.load.start();
        stage.play(&plan.deeds).await?;
        tokio::time::sleep_until(end.into()).await;
        stage.all_ready().await;
        stage.settle(&mut self.load).await;
        drop(sampling);
        let mut broken = stage.take_broken();
        for took in stage.doing.starts[starts..].iter().filter(|took| **took > config.start_max) {
            let what = format!("a start took {:.2} s, expected at most {:?}", took.as_secs_f64(), config.start_max);
            broken.push(Violation { invariant: "starts are quick", what });
        }
        if broken.is_empty() {
            match stage.compare().await {
                Ok(compared) => {
                    self.report.read += compared.read;
                    self.report.hashes += compared.hashes;
                }
                Err(violations) => broken = violations,
            }
        }
        self.add_up();
        Ok(broken)
    }

    /// The round becomes part of the whole.
    fn add_up(&mut self) {
        let round = std::mem::take(&mut *self.stage.recorder.history());
        let count = |wanted: fn(&Outcome) -> bool| round.publishes.iter().filter(|p| wanted(&p.outcome)).count() as u64;
        self.report.acked += count(|outcome| matches!(outcome, Outcome::Acked { .. }));
        self.report.unknown += count(|outcome| matches!(outcome, Outcome::Unknown));
        self.report.refused += count(|outcome| matches!(outcome, Outcome::Refused));
        self.report.gaps.push(longest_gap(&round));
        self.whole.publishes.extend(round.publishes);
        self.whole.statuses.extend(round.statuses);
    }

    /// Everything of all rounds once more, from the start, and all files with the nodes at rest.
    async fn end(&mut self) -> Result<Vec<Violation>, String> {
        for reader in &self.stage.readers {
            let rooms = match reader.read_all().await {
                Ok(rooms) => rooms,
                Err(what) => return Ok(vec![Violation { invariant: "replicas can be read", what }]),
            };
            self.whole.scans.extend(rooms.into_iter().map(|(room, entries)| ((reader.node(), room), entries)));
        }
        let mut broken = invariants::check(&self.whole);
        self.stage.floor.stop().await?;
        broken.extend(self.stage.compare_segments(true).await.err());
        Ok(broken)
    }
}

/// The longest time without an acknowledgement.
pub(crate) fn longest_gap(round: &History) -> Duration {
    let mut acked: Vec<u64> = round.acked().map(|(_, at, _)| at).collect();
    acked.sort_unstable();
    let gaps = acked.windows(2).map(|pair| pair[1] - pair[0]);
    Duration::from_nanos(gaps.max().unwrap_or_default())
}

fn seconds(starts: &[Duration]) -> String {
    let starts: Vec<_> = starts.iter().map(|took| format!("{:.2}", took.as_secs_f64())).collect();
    if starts.is_empty() { "none".into() } else { format!("{} s", starts.join(" ")) }
}
