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
            self.judge_lines(node, false);
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
        self.judge_lines(node, !explained);
    }

    fn judge_lines(&mut self, node: &mut RealNode, errors_too: bool) {
        for line in node.process.new_log_lines() {
            // sled panics when its disk fails, and the panic ends the process: without power that is right.
            let of_sled = !errors_too && line.contains("/sled-");
            if line.contains("panicked at") && !of_sled {
                self.broken("no panic", format!("{}: {line}", node.name));
            } else if errors_too && line.contains(" ERROR ") {
                self.broken("no unexplained error", format!("{}: {line}", node.name));
            }
        }
    }

    /// Node `at` ended by itself, and that is all right.
    pub fn gave_up(&mut self, at: usize) {
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
