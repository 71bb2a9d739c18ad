//! The command lines of what runs real processes; their comments are the manual.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::real::away::AwayConfig;
use crate::real::fault::Chances;
use crate::real::floor::FloorConfig;
use crate::real::full::FullConfig;
use crate::real::load::{LoadConfig, MIXED};
use crate::real::power::PowerConfig;
use crate::real::tree::TreeConfig;

/// Parses a seed, decimal or 0x...
pub fn parse_seed(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("{text:?} is no seed: {error}"))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("found {text:?}, expected a number with a unit, such as 500ms, 3s or 2m");
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?);
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        _ => return Err(wrong()),
    };
    Ok(unit * number.parse::<u32>().map_err(|_| wrong())?)
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    let fraction = text.parse().ok().filter(|fraction| (0.0..=1.0).contains(fraction));
    fraction.ok_or_else(|| format!("found {text:?}, expected a number from 0 to 1"))
}

/// Nodes and disks.
#[derive(Args, Clone, Debug)]
pub struct Nodes {
    /// The `unibus-node` to run; else the one beside this program.
    #[arg(long, value_name = "FILE")]
    pub node_binary: Option<PathBuf>,
    /// Where the images of the nodes' disks are made; else the directory for temporary files.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Size of each disk in MiB; the images are sparse.
    #[arg(long, default_value_t = 2048)]
    pub disk_mib: u64,
    /// Shard groups.
    #[arg(long, default_value_t = 3)]
    pub shards: u32,
    /// A checkpoint of a group's tables after so many KiB of its log.
    #[arg(long, default_value_t = 128)]
    pub checkpoint_log_kib: u64,
    /// A snapshot after so many KiB of a group's log.
    #[arg(long, default_value_t = 512)]
    pub snapshot_log_kib: u64,
    /// A segment is sealed at so many KiB.
    #[arg(long, default_value_t = 256)]
    pub segment_kib: u64,
    /// Files of the write-ahead log have so many KiB.
    #[arg(long, default_value_t = 1024)]
    pub wal_file_kib: u64,
}

impl Nodes {
    /// The floor of three nodes that this describes.
    pub fn floor(&self) -> FloorConfig {
        let beside = || std::env::current_exe().unwrap_or_default().with_file_name("unibus-node");
        FloorConfig {
            binary: self.node_binary.clone().unwrap_or_else(beside),
            dir: self.dir.clone().unwrap_or_else(std::env::temp_dir),
            nodes: 3,
            shards: self.shards,
            disk_bytes: self.disk_mib << 20,
            settings: format!(
                "\n[store]\nwal_file_bytes = {}\ncheckpoint_log_bytes = {}\nsnapshot_log_bytes = {}\nsegment_bytes = {}\n",
                self.wal_file_kib << 10,
                self.checkpoint_log_kib << 10,
                self.snapshot_log_kib << 10,
                self.segment_kib << 10
            ),
        }
    }
}

/// Rounds of power cuts under load: real nodes, each on a loop file system that is shut down at a random
/// moment. After each round nothing acknowledged may be lost, and all nodes must hold the same.
///
/// Needs root and loop devices; without them it is SKIPPED with exit code 2. A seed decides faults and load,
/// but not how processes are scheduled.
#[derive(Args, Clone, Debug)]
pub struct Power {
    /// How many power cuts.
    #[arg(long, default_value_t = 10)]
    pub rounds: u64,
    /// This share of them hits all nodes at once, the others one.
    #[arg(long, default_value = "0.3", value_parser = parse_fraction)]
    pub all_fraction: f64,
    /// This share of the cuts of one node comes with a kill or a pause of another.
    #[arg(long, default_value = "0.4", value_parser = parse_fraction)]
    pub beside_fraction: f64,
    /// Decides faults and load (decimal or 0x...).
    #[arg(long, value_parser = parse_seed, default_value = "1")]
    pub seed: u64,
    /// Load of each round.
    #[arg(long, value_parser = parse_duration, default_value = "3s")]
    pub for_each: Duration,
    /// A start may take so long, from exec to /readyz, or from when a majority runs.
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    pub start_max: Duration,
    /// Publishers at a time; half of them wait for each answer.
    #[arg(long, default_value_t = 8)]
    pub writers: u64,
    /// Messages per second of all together, at most.
    #[arg(long, default_value_t = 1_500)]
    pub rate: u64,
    /// Bytes of the largest body; most are small.
    #[arg(long, default_value_t = 16_384)]
    pub body_max: u64,
    /// Prints the result as JSON.
    #[arg(long)]
    pub json: bool,
    /// The nodes.
    #[command(flatten)]
    pub nodes: Nodes,
}

impl Power {
    /// What this asks for.
    pub fn config(&self) -> PowerConfig {
        let per_million = |fraction: f64| (fraction * 1e6) as u32;
        let floor = self.nodes.floor();
        PowerConfig {
            seed: self.seed,
            rounds: self.rounds,
            chances: Chances {
                nodes: floor.nodes as usize,
                all_per_million: per_million(self.all_fraction),
                beside_per_million: per_million(self.beside_fraction),
                load_ms: self.for_each.as_millis() as u64,
            },
            start_max: self.start_max,
            load: LoadConfig { writers: self.writers, rate: self.rate, body_bytes_max: self.body_max, depths: MIXED },
            floor,
        }
    }
}

/// Scripted scenarios on the same floor.
#[derive(Subcommand, Clone, Debug)]
pub enum Real {
    /// A follower is away while others purge what it lacks, and is killed while it catches up by snapshot.
    Away(Away),
    /// A node's tables are deleted, cut, flipped and replaced by an older copy between its lives.
    Tree(Tree),
    /// Disks fill up under load and get space again: of one node, of another, of two of three.
    DiskFull(DiskFull),
}

/// The follower that was away.
#[derive(Args, Clone, Debug)]
pub struct Away {
    /// MiB that are published while it is away.
    #[arg(long, default_value_t = 512)]
    pub log_mib: u64,
    /// It does not come back: its disk is lost, and a new node takes its place with an empty one.
    #[arg(long)]
    pub replace: bool,
    /// How often it is killed while it catches up.
    #[arg(long, default_value_t = 3)]
    pub kills: u32,
    /// How long publishing is measured before.
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    pub base_for: Duration,
    /// Messages per second that are measured.
    #[arg(long, default_value_t = 400)]
    pub rate: u64,
    /// While it catches up, p99 may be so many times that of before.
    #[arg(long, default_value_t = 2.0)]
    pub p99_factor: f64,
    /// Decides the load (decimal or 0x...).
    #[arg(long, value_parser = parse_seed, default_value = "1")]
    pub seed: u64,
    /// The nodes.
    #[command(flatten)]
    pub nodes: Nodes,
}

impl Away {
    /// What this asks for.
    pub fn config(&self) -> AwayConfig {
        AwayConfig {
            seed: self.seed,
            log_bytes: self.log_mib << 20,
            replace: self.replace,
            kills: self.kills,
            base_for: self.base_for,
            rate: self.rate,
            p99_factor_max: self.p99_factor,
            floor: self.nodes.floor(),
        }
    }
}

/// The damaged tables.
#[derive(Args, Clone, Debug)]
pub struct Tree {
    /// Directories of tables begin so, within a group's directory.
    #[arg(long, default_value = "tree-")]
    pub tree: String,
    /// What the node's log has to say.
    #[arg(long, default_value = "tables are discarded")]
    pub said: String,
    /// Load before each damage.
    #[arg(long, value_parser = parse_duration, default_value = "4s")]
    pub for_each: Duration,
    /// Decides load and damage (decimal or 0x...).
    #[arg(long, value_parser = parse_seed, default_value = "1")]
    pub seed: u64,
    /// The nodes.
    #[command(flatten)]
    pub nodes: Nodes,
}

impl Tree {
    /// What this asks for.
    pub fn config(&self) -> TreeConfig {
        TreeConfig {
            seed: self.seed,
            prefix: self.tree.clone(),
            said: self.said.clone(),
            load_for: self.for_each,
            load: LoadConfig { writers: 8, rate: 1_500, body_bytes_max: 16_384, depths: MIXED },
            floor: self.nodes.floor(),
        }
    }
}

/// The full disks.
#[derive(Args, Clone, Debug)]
pub struct DiskFull {
    /// Load before a disk fills up, and while it is full.
    #[arg(long, value_parser = parse_duration, default_value = "4s")]
    pub for_each: Duration,
    /// A node says that its disk is full within this time, by `/readyz`.
    #[arg(long, value_parser = parse_duration, default_value = "1s")]
    pub say_max: Duration,
    /// It leads nothing within this time.
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    pub step_down_max: Duration,
    /// A client is answered within this time: stored, or why not.
    #[arg(long, value_parser = parse_duration, default_value = "2s")]
    pub answer_max: Duration,
    /// With space again all is as before within this time.
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    pub recover_max: Duration,
    /// Nodes take no new messages with less free than so many MiB.
    #[arg(long, default_value_t = 96)]
    pub disk_low_mib: u64,
    /// And no entries of other leaders with less than so many.
    #[arg(long, default_value_t = 32)]
    pub disk_reserve_mib: u64,
    /// Messages per second of all together, at most.
    #[arg(long, default_value_t = 500)]
    pub rate: u64,
    /// Decides the load (decimal or 0x...).
    #[arg(long, value_parser = parse_seed, default_value = "1")]
    pub seed: u64,
    /// The nodes.
    #[command(flatten)]
    pub nodes: Nodes,
}

impl DiskFull {
    /// What this asks for.
    pub fn config(&self) -> FullConfig {
        let mut floor = self.nodes.floor();
        let (low, reserve) = (self.disk_low_mib << 20, self.disk_reserve_mib << 20);
        floor.settings += &format!("disk_low_bytes = {low}\ndisk_reserve_bytes = {reserve}\n");
        FullConfig {
            seed: self.seed,
            load_for: self.for_each,
            load: LoadConfig { writers: 8, rate: self.rate, body_bytes_max: 16_384, depths: MIXED },
            say_max: self.say_max,
            step_down_max: self.step_down_max,
            answer_max: self.answer_max,
            recover_max: self.recover_max,
            floor,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{FromArgMatches, Parser};

    use super::*;

    impl Power {
        pub(crate) fn for_tests() -> Self {
            let command = Self::augment_args(clap::Command::new("power"));
            Self::from_arg_matches(&command.get_matches_from(["power"])).unwrap()
        }
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        power: Power,
    }

    #[test]
    fn values_are_read_and_nonsense_is_refused() {
        let read = |arguments: &[&str]| Line::try_parse_from([&["power"], arguments].concat()).map(|line| line.power);
        let power = read(&["--for-each", "500ms", "--all-fraction", "0.25", "--seed", "0x1f"]).unwrap();
        assert_eq!((power.for_each, power.all_fraction, power.seed), (Duration::from_millis(500), 0.25, 31));
        assert!(read(&["--for-each", "3"]).is_err());
        assert!(read(&["--all-fraction", "30"]).is_err());
        assert!(power.config().floor.settings.contains("segment_bytes = 262144\n"));
    }
}
