//! Disks fill up under load, and get space again: of one node, of another, and of two of three at once. Writes go
//! where there is space or are refused in time, reads go on, nothing acknowledged is lost, nobody is restarted.

mod report;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use unibus_client::{Client, ClientEvent, Error, ErrorCode, Publisher};
use unibus_proto::id::{GroupId, RoomId};
use unibus_proto::subject::SubjectFilter;

use crate::invariants::Violation;
use crate::real::floor::FloorConfig;
use crate::real::gap;
use crate::real::load::{Load, LoadConfig, create_rooms};
use crate::real::reading::NodeReader;
use crate::real::stage::Stage;
pub use report::{Act, FullReport};

const ROOMS: u64 = 8;
/// Rooms of the probes, which no reader of the load sees.
const PROBE_ROOMS: u64 = 6;
const PROBES: &str = "probe";
const POLL: Duration = Duration::from_millis(20);
const PROBE_PATIENCE: Duration = Duration::from_secs(6);
/// Whatever else is waited for happens within this time, or never.
const PATIENCE: Duration = Duration::from_secs(60);
const SHARD: GroupId = GroupId(1);

/// What the scenario is.
#[derive(Clone, Debug)]
pub struct FullConfig {
    /// Decides the load.
    pub seed: u64,
    /// Load before a disk fills up, and while it is full.
    pub load_for: Duration,
    /// What is published.
    pub load: LoadConfig,
    /// A node says that its disk is full within this time.
    pub say_max: Duration,
    /// It leads nothing within this time.
    pub step_down_max: Duration,
    /// A client is answered within this time, whatever the answer.
    pub answer_max: Duration,
    /// With space again all is as before within this time.
    pub recover_max: Duration,
    /// The nodes.
    pub floor: FloorConfig,
}

/// Runs it.
pub async fn run(config: &FullConfig) -> Result<FullReport, String> {
    let mut stage = Stage::set(&config.floor, ROOMS).await?;
    let mut report = FullReport::default();
    let ran = play(config, &mut stage, &mut report).await;
    report.kept = stage.strike(ran, !report.violations.is_empty())?;
    Ok(report)
}

async fn play(config: &FullConfig, stage: &mut Stage, report: &mut FullReport) -> Result<(), String> {
    let mut scene = Scene::set(config, stage).await?;
    // Counted from the leader on.
    let acts: [(&'static str, &[usize]); 3] =
        [("a follower of a shard", &[1]), ("the leader of a shard", &[0]), ("two of three", &[0, 1])];
    for (name, who) in acts {
        let leader = scene.leader(stage).await?;
        let full: Vec<usize> = who.iter().map(|at| (leader + at) % 3).collect();
        let (act, broken) = scene.act(name, &full, stage).await?;
        eprintln!(
            "{name} ({}): said after {:.2} s, stepped down after {:?}, {} writes answered within {:.2} s, {} refused, \
             recovered after {:.2} s, longest gap {:.2} s, {} acknowledged{}",
            act.nodes.join(", "),
            act.said_after.as_secs_f64(),
            act.stepped_down_after,
            act.answers.0,
            act.answers.1.as_secs_f64(),
            act.refused,
            act.recovered_after.as_secs_f64(),
            act.gap.as_secs_f64(),
            act.acked,
            if broken.is_empty() { "" } else { " BROKEN" },
        );
        report.acts.push(act);
        report.violations.extend(broken.into_iter().map(|violation| (name, violation)));
        if !report.violations.is_empty() {
            break;
        }
    }
    Ok(())
}

/// What the acts are played with.
struct Scene<'a> {
    config: &'a FullConfig,
    load: Load,
    /// One for each node, pinned to it.
    clients: Vec<Client>,
    rooms: Vec<RoomId>,
    /// Publishers of each client, opened while all was well: opening asks for the newest state of the room, which
    /// a node that takes no entries does not have.
    publishers: Vec<VecDeque<Publisher>>,
    /// Reads from the start, as clients do.
    reader: NodeReader,
    probes: usize,
}

/// A write through one node, and what became of it.
struct Answer {
    took: Duration,
    result: Result<(), Error>,
}

impl<'a> Scene<'a> {
    async fn set(config: &'a FullConfig, stage: &Stage) -> Result<Self, String> {
        let mut clients = Vec::new();
        let filter: SubjectFilter = format!("{PROBES}.>").parse().map_err(|error| format!("filter: {error}"))?;
        for node in &stage.floor.nodes {
            clients.push(stage.floor.client(Some(node)).await?);
        }
        let reader = NodeReader::of_any(stage.floor.client(None).await?, &filter);
        let rooms = create_rooms(&clients[0], PROBES, PROBE_ROOMS).await?;
        Ok(Self {
            config,
            load: stage.load(&config.load, config.seed),
            clients,
            rooms,
            publishers: Vec::new(),
            reader,
            probes: 0,
        })
    }

    /// The node that leads a shard.
    async fn leader(&self, stage: &Stage) -> Result<usize, String> {
        let began = Instant::now();
        loop {
            for (at, watcher) in stage.watchers.iter().enumerate() {
                let statuses = watcher.statuses(&stage.recorder).await;
                if statuses.iter().any(|status| status.group == SHARD && status.leads) {
                    return Ok(at);
                }
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("no node leads {SHARD} after {PATIENCE:?}"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn act(
        &mut self,
        name: &'static str,
        full: &[usize],
        stage: &mut Stage,
    ) -> Result<(Act, Vec<Violation>), String> {
        let nodes = full.iter().map(|at| stage.floor.nodes[*at].name.clone()).collect();
        let mut act = Act { name, nodes, ..Act::default() };
        let mut broken = Vec::new();
        self.open_publishers().await?;
        let from = stage.recorder.now_nanos();
        self.load.start();
        tokio::time::sleep(self.config.load_for).await;
        let began = Instant::now();
        for at in full {
            tokio::task::block_in_place(|| stage.floor.nodes[*at].disk.fill(0))?;
        }
        self.meanwhile(full, began, stage, &mut act, &mut broken).await;
        for at in full {
            tokio::task::block_in_place(|| stage.floor.nodes[*at].disk.free())?;
        }
        self.recover(stage, &mut act, &mut broken).await;
        let to = stage.recorder.now_nanos();
        stage.settle(&mut self.load).await;
        act.gap = gap::longest(&stage.recorder.history(), from, to);
        if full.len() == 1 {
            broken.extend(gap::judge(act.gap).err());
        }
        act.acked = stage.recorder.history().acked().count();
        broken.extend(stage.take_broken());
        if broken.is_empty() {
            match stage.compare().await {
                Ok(compared) => act.compared = compared,
                Err(violations) => broken = violations,
            }
        }
        drop(std::mem::take(&mut *stage.recorder.history()));
        Ok((act, broken))
    }

    /// While the disks are full.
    async fn meanwhile(
        &mut self,
        full: &[usize],
        began: Instant,
        stage: &Stage,
        act: &mut Act,
        broken: &mut Vec<Violation>,
    ) {
        for at in full {
            if let Some(what) = said(stage, *at, began).await {
                broken.push(Violation { invariant: "a full disk is told", what });
            }
        }
        act.said_after = began.elapsed();
        late("a full disk is told", act.said_after, self.config.say_max, broken);
        let quorum = 2 * full.len() < stage.floor.nodes.len();
        if quorum {
            let after = led_nothing(stage, full[0], began).await;
            late("a full leader steps down", after, self.config.step_down_max, broken);
            act.stepped_down_after = Some(after);
        }
        let until = Instant::now() + self.config.load_for;
        while Instant::now() < until {
            for at in full {
                if self.publishers[*at].is_empty() {
                    return self.read_on(act, broken).await;
                }
                let answer = self.probe(*at).await;
                act.answers = (act.answers.0 + 1, act.answers.1.max(answer.took));
                late("a write is answered in time", answer.took, self.config.answer_max, broken);
                match answer.result {
                    Ok(()) if quorum => {}
                    Err(error) if !quorum && tells(&error) => {
                        act.refused += 1;
                        act.says = error.to_string();
                    }
                    Ok(()) => broken.push(Violation {
                        invariant: "P1",
                        what: "a write was acknowledged while two of three nodes had no space".into(),
                    }),
                    Err(error) => broken.push(Violation {
                        invariant: "a write through a full node is stored elsewhere, or refused with the reason",
                        what: error.to_string(),
                    }),
                }
            }
        }
        self.read_on(act, broken).await;
    }

    async fn read_on(&self, act: &mut Act, broken: &mut Vec<Violation>) {
        match self.reader.read_all().await {
            Ok(rooms) => act.read = rooms.values().map(Vec::len).sum(),
            Err(what) => broken.push(Violation { invariant: "reading goes on", what }),
        }
    }

    /// With space again: until all are ready and every node takes a write.
    async fn recover(&mut self, stage: &Stage, act: &mut Act, broken: &mut Vec<Violation>) {
        let began = Instant::now();
        for node in &stage.floor.nodes {
            while let Some(why) = node.process.not_ready().await {
                if began.elapsed() > PATIENCE {
                    let what = format!("{} is not ready {PATIENCE:?} after it had space again: {why}", node.name);
                    return broken.push(Violation { invariant: "nodes recover by themselves", what });
                }
                tokio::time::sleep(POLL).await;
            }
        }
        for at in 0..self.clients.len() {
            while let Err(error) = self.probe(at).await.result {
                if began.elapsed() > PATIENCE {
                    let what = format!("no write {PATIENCE:?} after there was space again: {error}");
                    return broken.push(Violation { invariant: "nodes recover by themselves", what });
                }
            }
        }
        act.recovered_after = began.elapsed();
        late("nodes recover by themselves", act.recovered_after, self.config.recover_max, broken);
    }

    async fn open_publishers(&mut self) -> Result<(), String> {
        self.publishers.clear();
        for client in &self.clients {
            let open = self.rooms.iter().map(|room| client.publisher(*room).patience(PROBE_PATIENCE).open());
            let opened = futures::future::try_join_all(open).await.map_err(|error| format!("open: {error}"))?;
            self.publishers.push(opened.into());
        }
        Ok(())
    }

    /// Publishes through one node only.
    async fn probe(&mut self, at: usize) -> Answer {
        self.probes += 1;
        let client = &self.clients[at];
        let room = self.rooms[self.probes % self.rooms.len()];
        let opened = self.publishers[at].pop_front();
        let (began, mut events) = (Instant::now(), client.events());
        let publish = async {
            let publisher = match opened {
                Some(publisher) => publisher,
                None => client.publisher(room).patience(PROBE_PATIENCE).open().await?,
            };
            let sent = publisher.send(format!("probe {}", self.probes)).await;
            sent.map(|_| publisher)
        };
        // The SDK goes on trying: what it is told first is the answer.
        let told = async {
            while let Some(event) = events.recv().await {
                match event {
                    ClientEvent::Retrying { why, .. } if tells(&why) => return why,
                    _ => {}
                }
            }
            std::future::pending().await
        };
        let result = tokio::select! {
            biased;
            published = publish => published,
            why = told => Err(why),
        };
        // One that was refused goes on trying: it is dropped.
        let result = result.map(|publisher| self.publishers[at].push_back(publisher));
        Answer { took: began.elapsed(), result }
    }
}

/// Whether an error tells that a disk is full: refused for it, or unknown because of it.
fn tells(error: &Error) -> bool {
    error.code == ErrorCode::DiskFull || error.message.contains("disks are full")
}

fn late(invariant: &'static str, took: Duration, max: Duration, broken: &mut Vec<Violation>) {
    if took > max {
        let what = format!("it took {:.2} s, expected at most {max:?}", took.as_secs_f64());
        broken.push(Violation { invariant, what });
    }
}

/// Waits until a node says on `/readyz` that its disk is full; what it says instead.
async fn said(stage: &Stage, at: usize, began: Instant) -> Option<String> {
    let node = &stage.floor.nodes[at];
    loop {
        let said = node.process.not_ready().await.unwrap_or_else(|| "ready".into());
        if said.contains("takes no new messages") && said.contains("free space there") {
            return None;
        }
        if began.elapsed() > PATIENCE {
            return Some(format!("{} says {said:?} on a full disk", node.name));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// When a node led nothing.
async fn led_nothing(stage: &Stage, at: usize, began: Instant) -> Duration {
    loop {
        let statuses = stage.watchers[at].statuses(&stage.recorder).await;
        if (!statuses.is_empty() && statuses.iter().all(|status| !status.leads)) || began.elapsed() > PATIENCE {
            return began.elapsed();
        }
        tokio::time::sleep(POLL).await;
    }
}
