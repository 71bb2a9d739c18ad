//! Rounds of power cuts under load: in each one or all nodes lose power at a random moment, come back, and
//! are compared with each other and with what clients were told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use unibus_proto::id::NodeId;
use unibus_proto::subject::SubjectFilter;

use crate::history::{History, Outcome};
use crate::invariants::{self, Violation};
use crate::real::deeds::Doing;
use crate::real::fault::{Chances, RoundPlan};
use crate::real::floor::{Floor, FloorConfig};
use crate::real::inspect::{SegmentCheck, Watcher, converge};
use crate::real::load::{Load, LoadConfig, create_rooms};
use crate::real::reading::NodeReader;
use crate::real::report::PowerReport;
use crate::record::Recorder;

const ROOMS: u64 = 8;
const PREFIX: &str = "power";
/// Clients that share the writers.
const CLIENTS: usize = 2;
const FORM_PATIENCE: Duration = Duration::from_secs(60);

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
    let mut floor = Floor::build(&config.floor).await?;
    let ran = Rounds::prepare(config, &mut floor).await;
    let ran = match ran {
        Ok(rounds) => rounds.all(config, &mut floor).await,
        Err(why) => Err(why),
    };
    let broken = ran.as_ref().map_or(true, |report| !report.violations.is_empty());
    let kept = if broken { Some(floor.keep()) } else { None };
    match ran {
        Ok(report) => Ok(PowerReport { kept, ..report }),
        Err(why) => Err(format!("{why}; images and logs are in {}", kept.unwrap_or_default().display())),
    }
}

struct Rounds {
    recorder: Recorder,
    load: Load,
    doing: Doing,
    watchers: Vec<Watcher>,
    readers: Vec<NodeReader>,
    segments: SegmentCheck,
    /// Publishes and statuses of all rounds so far.
    whole: History,
    report: PowerReport,
}

impl Rounds {
    async fn prepare(config: &PowerConfig, floor: &mut Floor) -> Result<Self, String> {
        floor.form(&config.floor.binary, FORM_PATIENCE).await?;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(floor.client(None).await?);
        }
        let rooms = create_rooms(&clients[0], PREFIX, ROOMS).await?;
        let filter: SubjectFilter = format!("{PREFIX}.>").parse().map_err(|error| format!("filter: {error}"))?;
        let (mut watchers, mut readers) = (Vec::new(), Vec::new());
        for node in &floor.nodes {
            let watcher = Watcher::new(node.id, &node.name, floor.client(Some(node)).await?);
            watcher.lives(node.process.life());
            watchers.push(watcher);
            readers.push(NodeReader::new(node.id, &node.name, floor.client(Some(node)).await?, &filter));
        }
        let recorder = Recorder::of_processes();
        Ok(Self {
            load: Load::new(&config.load, config.seed, &clients, &rooms, &recorder),
            recorder,
            doing: Doing::new(floor.nodes.len()),
            watchers,
            readers,
            segments: SegmentCheck::default(),
            whole: History::default(),
            report: PowerReport::new(config),
        })
    }

    async fn all(mut self, config: &PowerConfig, floor: &mut Floor) -> Result<PowerReport, String> {
        for number in 0..config.rounds {
            let plan = RoundPlan::draw(config.seed, number, &config.chances);
            let began = Instant::now();
            let (starts, acked) = (self.doing.starts.len(), self.report.acked);
            let broken = self.round(&plan, config, floor).await?;
            plan.kinds.iter().for_each(|kind| *self.report.faults.entry(kind).or_default() += 1);
            self.report.rounds += 1;
            eprintln!(
                "round {:>3}: {:<32} {:>6} acknowledged, starts {}, {:.1} s{}",
                number + 1,
                plan.name,
                self.report.acked - acked,
                seconds(&self.doing.starts[starts..]),
                began.elapsed().as_secs_f64(),
                if broken.is_empty() { "" } else { " BROKEN" },
            );
            if !broken.is_empty() {
                broken.iter().for_each(|violation| eprintln!("  broken: {violation}"));
                self.report.violations = broken.into_iter().map(|violation| (number, violation)).collect();
                return Ok(self.finish());
            }
        }
        let last = config.rounds;
        let broken = self.end(floor).await?;
        self.report.violations = broken.into_iter().map(|violation| (last, violation)).collect();
        Ok(self.finish())
    }

    fn finish(mut self) -> PowerReport {
        self.report.starts = self.doing.starts;
        self.report.segments = (self.segments.files(), self.segments.bytes);
        self.report
    }

    /// One round; answers what is broken.
    async fn round(
        &mut self,
        plan: &RoundPlan,
        config: &PowerConfig,
        floor: &mut Floor,
    ) -> Result<Vec<Violation>, String> {
        let end = Instant::now() + Duration::from_millis(config.chances.load_ms);
        let sampling: Vec<_> = self.watchers.iter().map(|watcher| watcher.sample(&self.recorder)).collect();
        self.load.start();
        let starts = self.doing.starts.len();
        self.doing.play(&plan.deeds, floor, &self.watchers).await?;
        tokio::time::sleep_until(end.into()).await;
        self.doing.all_ready(floor).await;
        let settled = self.load.stop().await;
        drop(sampling);
        self.doing.look_at_all(floor);
        let mut broken = std::mem::take(&mut self.doing.violations);
        broken.extend(settled.err().map(|what| Violation { invariant: "I14 liveness", what }));
        broken.extend(self.load.take_refused().into_iter().map(|what| Violation { invariant: "P11", what }));
        for took in self.doing.starts[starts..].iter().filter(|took| **took > config.start_max) {
            let what = format!("a start took {:.2} s, expected at most {:?}", took.as_secs_f64(), config.start_max);
            broken.push(Violation { invariant: "starts are quick", what });
        }
        if broken.is_empty() {
            broken = self.compare(floor).await;
        }
        self.add_up();
        Ok(broken)
    }

    /// With no load and all nodes up: is everything there, and the same everywhere?
    async fn compare(&mut self, floor: &Floor) -> Vec<Violation> {
        match converge(&self.watchers, &self.recorder).await {
            Ok(comparable) => self.report.hashes += comparable as u64,
            Err(violation) => return vec![violation],
        }
        for reader in &mut self.readers {
            match reader.read_new().await {
                Ok(rooms) => {
                    self.report.read += rooms.values().map(|entries| entries.len() as u64).sum::<u64>();
                    let scans = rooms.into_iter().map(|(room, entries)| ((reader.node(), room), entries));
                    self.recorder.history().scans.extend(scans);
                }
                Err(what) => return vec![Violation { invariant: "replicas can be read", what }],
            }
        }
        let mut broken = invariants::check(&self.recorder.history());
        broken.extend(self.segments.compare(&data_dirs(floor), false).await.err());
        broken
    }

    /// The round becomes part of the whole.
    fn add_up(&mut self) {
        let round = std::mem::take(&mut *self.recorder.history());
        let count = |wanted: fn(&Outcome) -> bool| round.publishes.iter().filter(|p| wanted(&p.outcome)).count() as u64;
        self.report.acked += count(|outcome| matches!(outcome, Outcome::Acked { .. }));
        self.report.unknown += count(|outcome| matches!(outcome, Outcome::Unknown));
        self.report.refused += count(|outcome| matches!(outcome, Outcome::Refused));
        self.whole.publishes.extend(round.publishes);
        self.whole.statuses.extend(round.statuses);
    }

    /// Everything of all rounds once more, from the start, and all files with the nodes at rest.
    async fn end(&mut self, floor: &mut Floor) -> Result<Vec<Violation>, String> {
        for reader in &self.readers {
            let rooms = match reader.read_all().await {
                Ok(rooms) => rooms,
                Err(what) => return Ok(vec![Violation { invariant: "replicas can be read", what }]),
            };
            self.whole.scans.extend(rooms.into_iter().map(|(room, entries)| ((reader.node(), room), entries)));
        }
        let mut broken = invariants::check(&self.whole);
        floor.stop().await?;
        broken.extend(self.segments.compare(&data_dirs(floor), true).await.err());
        self.report.acked_by_room = by_room(&self.whole);
        Ok(broken)
    }
}

fn by_room(history: &History) -> Vec<usize> {
    let mut rooms: BTreeMap<_, usize> = BTreeMap::new();
    history.acked().for_each(|(publish, ..)| *rooms.entry(publish.room).or_default() += 1);
    rooms.into_values().collect()
}

fn data_dirs(floor: &Floor) -> Vec<(NodeId, PathBuf)> {
    floor.nodes.iter().map(|node| (node.id, node.data_dir())).collect()
}

fn seconds(starts: &[Duration]) -> String {
    let starts: Vec<_> = starts.iter().map(|took| format!("{:.2}", took.as_secs_f64())).collect();
    if starts.is_empty() { "none".into() } else { format!("{} s", starts.join(" ")) }
}
