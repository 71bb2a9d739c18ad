//! The tables' directory of one node is deleted, cut, flipped or replaced by an older copy between two of its
//! lives: it has to notice, say so, rebuild, and hold what the others hold.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::invariants::Violation;
use crate::real::fault::Deed;
use crate::real::floor::FloorConfig;
use crate::real::load::{Load, LoadConfig};
use crate::real::stage::{Compared, Stage};
use crate::sim::random::Random;

const ROOMS: u64 = 8;
/// The node whose tables are damaged.
const VICTIM: usize = 1;
/// One byte of so many is flipped: flips in unused pages alone would prove nothing.
const FLIP_EVERY: u64 = 4096;
/// Opening a damaged tree may end the process, which is started again as `systemd` would.
const STARTS_MAX: u32 = 3;
const READY_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// What is done to the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Deleted,
    Cut,
    Flipped,
    Older,
}

impl Damage {
    fn name(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Cut => "cut",
            Self::Flipped => "flipped",
            Self::Older => "replaced by an older copy",
        }
    }
}

/// What the scenario is.
#[derive(Clone, Debug)]
pub struct TreeConfig {
    /// Decides load and damage.
    pub seed: u64,
    /// Directories of tables begin so, within a group's directory.
    pub prefix: String,
    /// What the log of the node has to say.
    pub said: String,
    /// Load before each damage.
    pub load_for: Duration,
    /// What is published.
    pub load: LoadConfig,
    /// The nodes.
    pub floor: FloorConfig,
}

/// What it came to.
#[derive(Debug, Default)]
pub struct TreeReport {
    /// Each damage: how many trees it hit, how often the log said so, how many starts it took.
    pub damages: Vec<(&'static str, usize, usize, u32)>,
    /// What was compared after the damages.
    pub compared: Compared,
    /// What is broken, and after which damage.
    pub violations: Vec<(&'static str, Violation)>,
    /// Where images and logs of a broken run are.
    pub kept: Option<PathBuf>,
}

impl TreeReport {
    /// 0 pass, 1 a promise is broken, 2 there were no tables to damage, or nothing was compared.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self { violations, .. } if !violations.is_empty() => 1,
            Self { damages, .. } if damages.is_empty() || damages.iter().any(|(_, hit, ..)| *hit == 0) => 2,
            Self { compared, .. } if compared.is_nothing() => 2,
            _ => 0,
        }
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let damages = self.damages.iter().map(|(damage, trees, said, starts)| {
            json!({ "damage": damage, "trees": trees, "said_in_log": said, "starts": starts })
        });
        let violations = self.violations.iter().map(
            |(damage, violation)| json!({ "damage": damage, "invariant": violation.invariant, "what": violation.what }),
        );
        json!({
            "schema": "unibus.chaos.v1.tree",
            "exit_code": self.exit_code(),
            "damages": damages.collect::<Vec<_>>(),
            "read": self.compared.read,
            "state_hashes_compared": self.compared.hashes,
            "violations": violations.collect::<Vec<_>>(),
            "kept": self.kept,
        })
    }
}

/// Runs it.
pub async fn run(config: &TreeConfig) -> Result<TreeReport, String> {
    let mut stage = Stage::set(&config.floor, ROOMS).await?;
    let mut load = stage.load(&config.load, config.seed);
    let mut report = TreeReport::default();
    let mut ran = Ok(());
    for damage in [Damage::Deleted, Damage::Cut, Damage::Flipped, Damage::Older] {
        ran = one(damage, config, &mut stage, &mut load, &mut report).await;
        if ran.is_err() || !report.violations.is_empty() {
            break;
        }
    }
    report.kept = stage.strike(ran, !report.violations.is_empty())?;
    Ok(report)
}

async fn one(
    damage: Damage,
    config: &TreeConfig,
    stage: &mut Stage,
    load: &mut Load,
    report: &mut TreeReport,
) -> Result<(), String> {
    publish(stage, load, config.load_for).await;
    stage.act(VICTIM, Deed::Kill).await?;
    let groups = stage.floor.nodes[VICTIM].data_dir().join("groups");
    let failed = |error: io::Error| format!("{} {}: {error}", damage.name(), groups.display());
    let copies = tempfile::tempdir_in(&config.floor.dir).map_err(failed)?;
    if damage == Damage::Older {
        copy_all(&trees(&groups, &config.prefix).map_err(failed)?, copies.path()).map_err(failed)?;
        start(stage).await?;
        publish(stage, load, config.load_for).await;
        stage.act(VICTIM, Deed::Kill).await?;
    }
    let hit = trees(&groups, &config.prefix).map_err(failed)?;
    let mut random = Random::stream(config.seed, damage.name(), 0);
    for (at, tree) in hit.iter().enumerate() {
        inflict(damage, tree, &copies.path().join(at.to_string()), &mut random).map_err(failed)?;
    }
    let log = stage.floor.nodes[VICTIM].process.log_path();
    let before = fs::read_to_string(&log).map_err(failed)?.len();
    let starts = start(stage).await?;
    publish(stage, load, config.load_for / 2).await;
    let said = fs::read_to_string(&log).map_err(failed)?[before..].matches(&config.said).count();
    eprintln!("tables {}: {} trees, said {said} times, {starts} starts", damage.name(), hit.len());
    report.damages.push((damage.name(), hit.len(), said, starts));
    let mut broken = stage.take_broken();
    if said == 0 && !hit.is_empty() {
        let what = format!("{} of {} trees; its log does not say {:?}", damage.name(), hit.len(), config.said);
        broken.push(Violation { invariant: "damaged tables are noticed", what });
    }
    if broken.is_empty() {
        match stage.compare().await {
            Ok(compared) => report.compared += compared,
            Err(violations) => broken = violations,
        }
    }
    report.violations.extend(broken.into_iter().map(|violation| (damage.name(), violation)));
    Ok(())
}

async fn publish(stage: &mut Stage, load: &mut Load, for_so_long: Duration) {
    load.start();
    tokio::time::sleep(for_so_long).await;
    stage.all_ready().await;
    stage.settle(load).await;
}

/// Starts the victim until it stays; answers how often that was.
async fn start(stage: &mut Stage) -> Result<u32, String> {
    for starts in 1..=STARTS_MAX {
        stage.act(VICTIM, Deed::Start).await?;
        let node = &mut stage.floor.nodes[VICTIM];
        let ready = node.process.wait_ready(READY_PATIENCE);
        let ended = async {
            while node.process.ended_by_itself().is_none() {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::select! {
            biased;
            _ = ready => {
                stage.doing.opened_damaged(node);
                return Ok(starts);
            }
            () = ended => stage.doing.explained(VICTIM, node),
        }
    }
    Ok(STARTS_MAX)
}

/// The directories of tables.
fn trees(groups: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for group in children(groups)? {
        let level = children(&group)?;
        let below = level.iter().filter(|path| path.is_dir()).filter_map(|path| children(path).ok()).flatten();
        let all = level.iter().cloned().chain(below);
        found.extend(all.filter(|path| path.is_dir() && name(path).starts_with(prefix)));
    }
    found.sort_unstable();
    Ok(found)
}

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn inflict(damage: Damage, tree: &Path, older: &Path, random: &mut Random) -> io::Result<()> {
    match damage {
        Damage::Deleted => fs::remove_dir_all(tree),
        Damage::Cut => files(tree)?.into_iter().try_for_each(|file| {
            let file = OpenOptions::new().write(true).open(file)?;
            file.set_len(file.metadata()?.len() / 2)
        }),
        Damage::Flipped => files(tree)?.iter().try_for_each(|file| flip(file, random)),
        Damage::Older if older.exists() => {
            fs::remove_dir_all(tree)?;
            copy(older, tree)
        }
        Damage::Older => Ok(()),
    }
}

fn flip(path: &Path, random: &mut Random) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    for page in (0..length).step_by(FLIP_EVERY as usize) {
        let at = page + random.below(FLIP_EVERY.min(length - page));
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ (1 << random.below(8))], at)?;
    }
    Ok(())
}

fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in children(dir)? {
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    found.sort_unstable();
    Ok(found)
}

fn copy_all(trees: &[PathBuf], to: &Path) -> io::Result<()> {
    trees.iter().enumerate().try_for_each(|(at, tree)| copy(tree, &to.join(at.to_string())))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for path in children(from)? {
        let to = to.join(name(&path));
        if path.is_dir() {
            copy(&path, &to)?;
        } else {
            fs::copy(&path, &to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_compared_nothing_proves_nothing() {
        let report = |compared| TreeReport { damages: vec![("cut", 1, 1, 1)], compared, ..TreeReport::default() };
        assert_eq!(report(Compared { read: 1, hashes: 1 }).exit_code(), 0);
        assert_eq!(report(Compared { read: 1, hashes: 0 }).exit_code(), 2);
        assert_eq!(report(Compared { read: 0, hashes: 1 }).exit_code(), 2);
    }

    #[test]
    fn each_damage_changes_the_tree() {
        for damage in [Damage::Deleted, Damage::Cut, Damage::Flipped, Damage::Older] {
            let dir = tempfile::tempdir().unwrap();
            let tree = dir.path().join("groups/1/tables/tree-1");
            fs::create_dir_all(tree.join("blobs")).unwrap();
            fs::write(tree.join("db"), vec![7; 10_000]).unwrap();
            let found = trees(&dir.path().join("groups"), "tree-").unwrap();
            assert_eq!(found, std::slice::from_ref(&tree));
            let older = dir.path().join("0");
            copy_all(&found, dir.path()).unwrap();
            fs::write(older.join("db"), "older").unwrap();
            inflict(damage, &tree, &older, &mut Random::stream(1, "damage", 0)).unwrap();
            let now = fs::read(tree.join("db")).unwrap_or_default();
            match damage {
                Damage::Deleted => assert!(!tree.exists()),
                Damage::Cut => assert_eq!(now, vec![7; 5_000]),
                Damage::Flipped => assert_eq!(now.iter().filter(|byte| **byte != 7).count(), 3),
                Damage::Older => assert_eq!(now, b"older"),
            }
        }
    }
}
