//! Doing deeds to nodes, and what comes of it: how long starts take, what logs say that nothing explains,
//! who ended without being asked to.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::invariants::Violation;
use crate::real::fault::{Deed, Timed};
use crate::real::floor::{Floor, RealNode};
use crate::real::inspect::Watcher;
use crate::real::process;

/// A node that is not ready after so long never will be.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// What a node's process is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Runs,
    Stands,
    Down,
}

/// What is going on with one node.
struct Slot {
    state: State,
    without_power: bool,
    began: Instant,
    starting: Option<JoinHandle<Result<Instant, String>>>,
}

/// The nodes while things are done to them.
pub struct Doing {
    slots: Vec<Slot>,
    quorum_since: Instant,
    /// How long each start took that nobody cut short: from its beginning, or from the quorum's.
    pub starts: Vec<Duration>,
    /// What is broken.
    pub violations: Vec<Violation>,
}

impl Doing {
    /// All of `nodes` nodes run.
    pub fn new(nodes: usize) -> Self {
        let now = Instant::now();
        let slot = || Slot { state: State::Runs, without_power: false, began: now, starting: None };
        Self {
            slots: (0..nodes).map(|_| slot()).collect(),
            quorum_since: now,
            starts: Vec::new(),
            violations: Vec::new(),
        }
    }

    /// Does what `deeds` says, each at its time.
    pub async fn play(&mut self, deeds: &[Timed], floor: &mut Floor, watchers: &[Watcher]) -> Result<(), String> {
        let began = Instant::now();
        for timed in deeds {
            let at = began + Duration::from_millis(timed.at_ms);
            tokio::time::sleep_until(at.into()).await;
            self.act(timed.node, timed.deed, floor, &watchers[timed.node]).await?;
        }
        Ok(())
    }

    /// Does one thing to node number `at`.
    pub async fn act(&mut self, at: usize, deed: Deed, floor: &mut Floor, watcher: &Watcher) -> Result<(), String> {
        let node = &mut floor.nodes[at];
        match deed {
            Deed::CutPower => {
                self.look_at(at, node);
                node.disk.cut_power()?;
                self.slots[at].without_power = true;
            }
            Deed::Kill => {
                self.look_at(at, node);
                node.process.kill().await;
                self.gave_up(at);
            }
            Deed::Start => self.start(at, node, watcher).await?,
            Deed::Pause => {
                node.process.pause();
                self.slots[at].state = State::Stands;
            }
            Deed::Resume => {
                node.process.resume();
                self.slots[at].state = State::Runs;
                self.note_quorum(at);
            }
        }
        Ok(())
    }

    async fn start(&mut self, at: usize, node: &mut RealNode, watcher: &Watcher) -> Result<(), String> {
        if std::mem::take(&mut self.slots[at].without_power) {
            node.restore().await?;
            // What it said while its disk had no power is the power cut's.
            self.judge_lines(node, Excused::Errors);
        }
        node.process.start()?;
        watcher.lives(node.process.life());
        let slot = &mut self.slots[at];
        slot.state = State::Runs;
        slot.began = Instant::now();
        slot.starting = Some(tokio::spawn(node.process.wait_ready(READY_PATIENCE)));
        self.note_quorum(at);
        Ok(())
    }

    /// Node `at` runs again: it may be the one that makes a majority.
    fn note_quorum(&mut self, at: usize) {
        let others = (0..self.slots.len()).filter(|other| *other != at && self.slots[*other].state == State::Runs);
        let (others, majority) = (others.count(), self.slots.len() / 2 + 1);
        if others < majority {
            self.quorum_since = Instant::now();
        }
    }

    /// Waits until every node is ready.
    pub async fn all_ready(&mut self, floor: &mut Floor) {
        for (at, node) in floor.nodes.iter_mut().enumerate() {
            let Some(starting) = self.slots[at].starting.take() else { continue };
            match starting.await {
                Ok(Ok(ready)) => {
                    let from = self.slots[at].began.max(self.quorum_since);
                    self.starts.push(ready.saturating_duration_since(from));
                }
                Ok(Err(why)) => {
                    let log = process::last_lines(&node.process.log_path(), 5);
                    self.broken("a node starts", format!("{}: {why}; its log ends with:\n{log}", node.name));
                }
                Err(error) => self.broken("a node starts", format!("{}: {error}", node.name)),
            }
        }
    }

    /// Looks at every node that runs.
    pub fn look_at_all(&mut self, floor: &mut Floor) {
        for (at, node) in floor.nodes.iter_mut().enumerate() {
            self.look_at(at, node);
        }
    }

    fn look_at(&mut self, at: usize, node: &mut RealNode) {
        let explained = self.slots[at].without_power;
        if self.slots[at].state != State::Down
            && !explained
            && let Some(how) = node.process.ended_by_itself()
        {
            let log = process::last_lines(&node.process.log_path(), 5);
            self.broken("no unrequested exit", format!("{} ended, {how}; its log ends with:\n{log}", node.name));
        }
        self.judge_lines(node, if explained { Excused::Errors } else { Excused::Nothing });
    }

    fn judge_lines(&mut self, node: &mut RealNode, excused: Excused) {
        for line in node.process.new_log_lines() {
            if let Some(invariant) = judge_line(&line, excused) {
                self.broken(invariant, format!("{}: {line}", node.name));
            }
        }
    }

    /// Node `at` ended by itself over damage that was done to it: of what it said, only a panic of another than
    /// sled is not explained by that.
    pub fn explained(&mut self, at: usize, node: &mut RealNode) {
        self.judge_lines(node, Excused::Errors);
        self.gave_up(at);
    }

    /// A node has opened what was damaged: what sled said about that is explained.
    pub fn opened_damaged(&mut self, node: &mut RealNode) {
        self.judge_lines(node, Excused::OfSled);
    }

    fn gave_up(&mut self, at: usize) {
        self.slots[at].state = State::Down;
        if let Some(starting) = self.slots[at].starting.take() {
            starting.abort();
        }
    }

    /// Notes that a promise is broken.
    pub fn broken(&mut self, invariant: &'static str, what: String) {
        self.violations.push(Violation { invariant, what });
    }
}

/// What was done to a node explains some of what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excused {
    Nothing,
    /// Errors that sled logs itself.
    OfSled,
    /// All errors, and that sled panics, which ends the process.
    Errors,
}

/// What a line of a node's log breaks.
fn judge_line(line: &str, excused: Excused) -> Option<&'static str> {
    if line.contains(" ERROR ") {
        // The hook that ends the process reports a panic once more in such a line, without the thread.
        let is_excused = match excused {
            Excused::Nothing => false,
            Excused::OfSled => line.contains(" ERROR sled::"),
            Excused::Errors => true,
        };
        return (!is_excused).then_some("no unexplained error");
    }
    // By the thread, or by the file.
    let of_sled = || line.contains("thread 'sled-") || line.contains("/sled-");
    (line.contains("panicked at") && !(excused == Excused::Errors && of_sled())).then_some("no panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_explains_a_panic_of_sled_and_no_other() {
        let of_sled = [
            "thread 'sled-io-3' (77) panicked at library/core/src/slice/index.rs:1:2:",
            "thread 'unibus-tree-open' (77) panicked at /x/sled-0.34.7/src/pagecache/mod.rs:1:2:",
            "2026-11-20T15:00:00.1Z ERROR unibus_node::telemetry: panicked at library/core/src/slice/index.rs:1:2:",
        ];
        assert_eq!(of_sled.map(|line| judge_line(line, Excused::Errors)), [None; 3]);
        assert!(of_sled.iter().all(|line| judge_line(line, Excused::Nothing).is_some()));
        for thread in ["tokio-runtime-worker", "unibus-tree-open"] {
            let other = format!("thread '{thread}' (78) panicked at raft-store/src/state.rs:1:2:");
            for excused in [Excused::Nothing, Excused::OfSled, Excused::Errors] {
                assert_eq!(judge_line(&other, excused), Some("no panic"));
            }
        }
        assert_eq!(judge_line("2026-11-20T15:00:00.1Z  INFO unibus_node: ready", Excused::Nothing), None);
    }

    #[test]
    fn a_damaged_tree_explains_an_error_of_sled_and_no_other() {
        let of_sled = "2026-11-20T15:00:00.1Z ERROR sled::config: failed to parse persisted config line: use_co";
        let other = "2026-11-20T15:00:00.1Z ERROR unibus_raft_store::faults: fatal: this node must stop";
        let broken = Some("no unexplained error");
        assert_eq!([of_sled, other].map(|line| judge_line(line, Excused::OfSled)), [None, broken]);
        assert_eq!([of_sled, other].map(|line| judge_line(line, Excused::Nothing)), [broken; 2]);
    }
}
