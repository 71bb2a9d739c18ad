//! A follower is away while so much is published that the others have purged what it lacks. It comes back, or
//! another one takes its place on an empty disk, and is killed some times while it catches up by snapshot;
//! publishing must not suffer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use unibus_proto::id::GroupId;
use unibus_proto::v1::NodeState;

use crate::invariants::Violation;
use crate::real::fault::Deed;
use crate::real::floor::FloorConfig;
use crate::real::gap;
use crate::real::load::{Load, LoadConfig, ONE_AT_A_TIME, PIPELINED};
use crate::real::stage::{Compared, Stage};

const ROOMS: u64 = 12;
/// The node that is away.
const AWAY: usize = 2;
/// Of the messages that are due before, so many have to be acknowledged.
const KEPT_UP: f64 = 0.95;
/// Until each writer has a publisher in each room: opening one is no publish.
const WARM_UP: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);
/// Entries behind that publishing makes at any time.
const LEVEL: u64 = 200;
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(600);
/// Until a node that was started is known to ask for being taken in.
const TAKEN_IN_PATIENCE: Duration = Duration::from_secs(30);
const DOWN: Duration = Duration::from_millis(300);
/// Below the limit of a message.
const BULK_BODY_BYTES_MAX: u64 = 960 << 10;

/// What the scenario is.
#[derive(Clone, Debug)]
pub struct AwayConfig {
    /// Decides the load.
    pub seed: u64,
    /// Bytes that are published while the node is away.
    pub log_bytes: u64,
    /// Whether a new node takes its place.
    pub replace: bool,
    /// How often the node is killed while it catches up.
    pub kills: u32,
    /// How long publishing is measured before.
    pub base_for: Duration,
    /// Messages per second that are measured.
    pub rate: u64,
    /// While the node catches up, p99 may be so many times that of before.
    pub p99_factor_max: f64,
    /// The nodes.
    pub floor: FloorConfig,
}

/// Latency of publishes, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// How many.
    pub count: usize,
    /// Half of them took at most this.
    pub p50_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Latency {
    fn of(mut micros: Vec<u64>) -> Self {
        micros.sort_unstable();
        let at = |share: usize| micros.get((micros.len() * share / 100).min(micros.len().saturating_sub(1)));
        let [p50_us, p99_us, max_us] = [50, 99, 100].map(|share| at(share).copied().unwrap_or_default());
        Self { count: micros.len(), p50_us, p99_us, max_us }
    }

    fn to_json(self) -> Value {
        json!({ "count": self.count, "p50_us": self.p50_us, "p99_us": self.p99_us, "max_us": self.max_us })
    }
}

/// What it came to.
#[derive(Debug, Default)]
pub struct AwayReport {
    /// Bytes that were published while the node was away.
    pub log_bytes: u64,
    /// Groups whose log no longer reached back to what the node had.
    pub groups_by_snapshot: usize,
    /// Bytes that the node had received when it was killed, each time.
    pub received_at_kills: Vec<u64>,
    /// From the node's first start until it was level.
    pub caught_up_after: Duration,
    /// Publishing before.
    pub before: Latency,
    /// Whether so much was published before as was asked for: else all that is measured is the load's own queue.
    pub kept_up: bool,
    /// Publishing while it caught up.
    pub during: Latency,
    /// The longest time without an acknowledgement while it caught up.
    pub gap: Duration,
    /// What was compared at the end.
    pub compared: Compared,
    /// What is broken.
    pub violations: Vec<Violation>,
    /// Where images and logs of a broken run are.
    pub kept: Option<PathBuf>,
}

impl AwayReport {
    /// 0 pass, 1 a promise is broken, 2 no snapshot was needed, or nothing was measured or compared.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self { violations, .. } if !violations.is_empty() => 1,
            Self { groups_by_snapshot: 0, .. } | Self { during: Latency { count: 0, .. }, .. } => 2,
            Self { compared, kept_up, .. } if compared.is_nothing() || !kept_up => 2,
            _ => 0,
        }
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let violations = self.violations.iter();
        json!({
            "schema": "unibus.chaos.v1.away",
            "exit_code": self.exit_code(),
            "log_bytes": self.log_bytes,
            "groups_by_snapshot": self.groups_by_snapshot,
            "received_at_kills_bytes": self.received_at_kills,
            "caught_up_after_ms": self.caught_up_after.as_millis(),
            "publish_before": self.before.to_json(),
            "kept_up_before": self.kept_up,
            "publish_during": self.during.to_json(),
            "longest_without_acknowledgement_ms": self.gap.as_millis(),
            "read": self.compared.read,
            "state_hashes_compared": self.compared.hashes,
            "violations": violations.map(|v| json!({ "invariant": v.invariant, "what": v.what })).collect::<Vec<_>>(),
            "kept": self.kept,
        })
    }
}

/// Runs it.
pub async fn run(config: &AwayConfig) -> Result<AwayReport, String> {
    let mut stage = Stage::set(&config.floor, ROOMS).await?;
    let mut report = AwayReport::default();
    let ran = play(config, &mut stage, &mut report).await;
    report.kept = stage.strike(ran, !report.violations.is_empty())?;
    Ok(report)
}

async fn play(config: &AwayConfig, stage: &mut Stage, report: &mut AwayReport) -> Result<(), String> {
    let probe = LoadConfig { writers: 4, rate: config.rate, body_bytes_max: 1024, depths: ONE_AT_A_TIME };
    let mut probe = stage.load(&probe, config.seed).on_schedule();
    probe.start();
    tokio::time::sleep(WARM_UP).await;
    let from = stage.recorder.now_nanos();
    tokio::time::sleep(config.base_for).await;
    let to = stage.recorder.now_nanos();
    stage.settle(&mut probe).await;
    report.before = latency(stage, from, to);
    let wanted = config.rate as f64 * config.base_for.as_secs_f64();
    report.kept_up = report.before.count as f64 >= KEPT_UP * wanted;
    eprintln!("before: {:?} of {wanted:.0}", report.before);
    let last = last_indices(stage).await;
    stage.act(AWAY, Deed::Kill).await?;
    fill(config, stage, report).await?;
    let replaced = if config.replace { Some(stage.floor.mint_instead_of(AWAY).await?) } else { None };
    // A new node has nothing.
    let last = if config.replace { last.into_keys().map(|group| (group, 0)).collect() } else { last };
    report.groups_by_snapshot = needs_snapshot(stage, &last).await;
    eprintln!("{} bytes published; {} groups need a snapshot", report.log_bytes, report.groups_by_snapshot);
    come_back(config, stage, &mut probe, replaced, report).await?;
    report.violations = stage.take_broken();
    let allowed = report.before.p99_us as f64 * config.p99_factor_max;
    report.violations.extend(gap::judge(report.gap).err());
    if report.during.p99_us as f64 > allowed {
        let what = format!("p99 {} us, expected at most {allowed:.0} us", report.during.p99_us);
        report.violations.push(Violation { invariant: "publishing goes on meanwhile", what });
    }
    match stage.compare().await {
        Ok(compared) => report.compared = compared,
        Err(broken) => report.violations.extend(broken),
    }
    Ok(())
}

/// Publishes until the timelines have grown by what was asked for.
async fn fill(config: &AwayConfig, stage: &mut Stage, report: &mut AwayReport) -> Result<(), String> {
    let bulk = LoadConfig { writers: 8, rate: 1 << 20, body_bytes_max: BULK_BODY_BYTES_MAX, depths: PIPELINED };
    let mut bulk = stage.load(&bulk, config.seed + 1);
    let groups = stage.floor.nodes[0].data_dir().join("groups");
    let before = bytes_in(&groups);
    bulk.start();
    let began = Instant::now();
    while report.log_bytes < config.log_bytes {
        tokio::time::sleep(10 * POLL).await;
        report.log_bytes = bytes_in(&groups).saturating_sub(before);
        if began.elapsed() > CATCH_UP_PATIENCE {
            return Err(format!(
                "{} of {} bytes published in {CATCH_UP_PATIENCE:?}",
                report.log_bytes, config.log_bytes
            ));
        }
    }
    stage.settle(&mut bulk).await;
    Ok(())
}

async fn come_back(
    config: &AwayConfig,
    stage: &mut Stage,
    probe: &mut Load,
    replaced: Option<String>,
    report: &mut AwayReport,
) -> Result<(), String> {
    let groups = stage.floor.nodes[AWAY].data_dir().join("groups");
    let had = bytes_in(&groups);
    probe.start();
    tokio::time::sleep(WARM_UP).await;
    let (began, from) = (Instant::now(), stage.recorder.now_nanos());
    stage.act(AWAY, Deed::Start).await?;
    if let Some(old) = &replaced {
        take_in(stage, old).await?;
    }
    for kill in 1..=config.kills {
        let wanted = report.log_bytes * u64::from(kill) / u64::from(config.kills + 1);
        while bytes_in(&groups).saturating_sub(had) < wanted && began.elapsed() < CATCH_UP_PATIENCE {
            tokio::time::sleep(POLL).await;
        }
        stage.act(AWAY, Deed::Kill).await?;
        report.received_at_kills.push(bytes_in(&groups).saturating_sub(had));
        eprintln!("killed with {} bytes received", bytes_in(&groups).saturating_sub(had));
        tokio::time::sleep(DOWN).await;
        stage.act(AWAY, Deed::Start).await?;
    }
    if let Some(old) = &replaced {
        has_left(stage, old, began).await?;
        stage.watch_again(AWAY).await?;
    }
    while !is_level(stage).await {
        if began.elapsed() > CATCH_UP_PATIENCE {
            stage.doing.broken("I14 liveness", format!("not level {CATCH_UP_PATIENCE:?} after its first start"));
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    report.caught_up_after = began.elapsed();
    let to = stage.recorder.now_nanos();
    stage.all_ready().await;
    // What has no answer yet at `to` belongs to what is measured.
    stage.settle(probe).await;
    report.during = latency(stage, from, to);
    report.gap = gap::longest(&stage.recorder.history(), from, to);
    eprintln!("caught up after {:?}: {:?}, gap {:?}", report.caught_up_after, report.during, report.gap);
    eprintln!(
        "slow moments, since the node started: {}",
        slow_moments(stage, from, to, report.during.p99_us).join(", ")
    );
    Ok(())
}

/// Has the cluster take in the new node, which it must have heard of, in place of the old one.
async fn take_in(stage: &Stage, old: &str) -> Result<(), String> {
    let (new, began) = (&stage.floor.nodes[AWAY].name, Instant::now());
    while let Err(error) = stage.client().replace_node(old, new).await {
        if began.elapsed() > TAKEN_IN_PATIENCE {
            return Err(format!("replace {old} with {new}: {error}"));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Waits until the new node votes in every group and the old one has left them.
async fn has_left(stage: &Stage, old: &str, began: Instant) -> Result<(), String> {
    let new = &stage.floor.nodes[AWAY].name;
    while began.elapsed() < CATCH_UP_PATIENCE {
        if let Ok(all) = stage.client().list_nodes().await {
            let find = |name: &str| all.nodes.iter().find(|node| node.name == name);
            let votes = find(new).is_some_and(|node| node.groups_moved == node.groups && node.groups > 0);
            if votes && find(old).is_none_or(|node| node.state() == NodeState::Removed) {
                return Ok(());
            }
        }
        tokio::time::sleep(POLL).await;
    }
    Err(format!("{new} has not taken the place of {old} within {CATCH_UP_PATIENCE:?}"))
}

/// When publishes began that took longer than `above_us`: those of the same tenth of a second together.
fn slow_moments(stage: &Stage, from: u64, to: u64, above_us: u64) -> Vec<String> {
    let history = stage.recorder.history();
    let mut moments: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
    for (publish, at, _) in history.acked().filter(|(publish, ..)| (from..to).contains(&publish.began)) {
        let took_ms = (at - publish.began) / 1_000_000;
        if took_ms * 1_000 >= above_us {
            let (count, longest) = moments.entry((publish.began - from) / 100_000_000).or_default();
            (*count, *longest) = (*count + 1, took_ms.max(*longest));
        }
    }
    let told = moments
        .into_iter()
        .map(|(tenth, (count, longest))| format!("{:.1} s: {count} of up to {longest} ms", tenth as f64 / 10.0));
    told.collect()
}

fn latency(stage: &Stage, from: u64, to: u64) -> Latency {
    let history = stage.recorder.history();
    let acked = history.acked().filter(|(publish, ..)| (from..to).contains(&publish.began));
    Latency::of(acked.map(|(publish, at, _)| (at - publish.began) / 1_000).collect())
}

/// The last log index of each group at the node that goes away.
async fn last_indices(stage: &Stage) -> BTreeMap<GroupId, u64> {
    let statuses = stage.watchers[AWAY].statuses(&stage.recorder).await;
    statuses.into_iter().map(|status| (status.group, status.applied)).collect()
}

async fn needs_snapshot(stage: &Stage, last: &BTreeMap<GroupId, u64>) -> usize {
    let purged = stage.watchers[0].purged().await;
    last.iter().filter(|(group, last)| purged.get(group).is_some_and(|purged| purged > *last)).count()
}

async fn is_level(stage: &Stage) -> bool {
    let (here, there) =
        (stage.watchers[AWAY].statuses(&stage.recorder).await, stage.watchers[0].statuses(&stage.recorder).await);
    let applied: BTreeMap<_, _> = here.iter().map(|status| (status.group, status.applied)).collect();
    let level = |group: &GroupId, index: u64| applied.get(group).is_some_and(|applied| applied + LEVEL >= index);
    !there.is_empty() && there.iter().all(|status| level(&status.group, status.applied))
}

/// Bytes of the files under `dir`; what vanishes meanwhile does not count.
fn bytes_in(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_in(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_latencies() {
        let latency = Latency::of((1..=1_000).rev().collect());
        assert_eq!(latency, Latency { count: 1_000, p50_us: 501, p99_us: 991, max_us: 1_000 });
        assert_eq!(Latency::of(Vec::new()), Latency::default());
    }

    #[test]
    fn a_run_without_a_snapshot_or_a_comparison_proves_nothing() {
        let (during, compared) = (Latency { count: 1, ..Latency::default() }, Compared { read: 1, hashes: 1 });
        let tried = || AwayReport { during, compared, groups_by_snapshot: 1, kept_up: true, ..AwayReport::default() };
        assert_eq!(tried().exit_code(), 0);
        assert_eq!(AwayReport { kept_up: false, ..tried() }.exit_code(), 2);
        assert_eq!(AwayReport { groups_by_snapshot: 0, ..tried() }.exit_code(), 2);
        assert_eq!(AwayReport { compared: Compared { hashes: 0, ..compared }, ..tried() }.exit_code(), 2);
    }
}
