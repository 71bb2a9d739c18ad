//! A formed cluster with rooms, clients and everything that watches it: what each scenario begins with, and
//! how each one ends.

use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::time::Duration;

use unibus_client::Client;
use unibus_proto::id::{NodeId, RoomId};
use unibus_proto::subject::SubjectFilter;

use crate::invariants::{self, Violation};
use crate::real::agreement;
use crate::real::deeds::Doing;
use crate::real::fault::{Deed, Timed};
use crate::real::floor::{Floor, FloorConfig, RealNode};
use crate::real::inspect::{SegmentCheck, Watcher, converge};
use crate::real::load::{Load, LoadConfig, create_rooms};
use crate::real::reading::{self, NodeReader};
use crate::record::Recorder;

const PREFIX: &str = "chaos";
/// Clients that share the writers.
const CLIENTS: usize = 2;
const FORM_PATIENCE: Duration = Duration::from_secs(60);

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Entries read back, over all nodes.
    pub read: u64,
    /// Groups whose state hashes were compared over all nodes at one index.
    pub hashes: u64,
}

impl Compared {
    /// Whether nothing was: then the run proves nothing.
    pub fn is_nothing(self) -> bool {
        self.read == 0 || self.hashes == 0
    }
}

impl AddAssign for Compared {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.hashes += other.hashes;
    }
}

/// A cluster that serves, and what watches it.
pub struct Stage {
    /// The nodes.
    pub floor: Floor,
    /// The history.
    pub recorder: Recorder,
    /// What is done to the nodes.
    pub doing: Doing,
    /// One for each node.
    pub watchers: Vec<Watcher>,
    /// One for each node.
    pub readers: Vec<NodeReader>,
    /// Compares segment files.
    pub segments: SegmentCheck,
    /// Its rooms.
    pub rooms: Vec<RoomId>,
    clients: Vec<Client>,
}

impl Stage {
    /// Forms a cluster with `rooms` rooms. Where that fails, images and logs are kept.
    pub async fn set(config: &FloorConfig, rooms: u64) -> Result<Self, String> {
        let mut floor = Floor::build(config).await?;
        match Props::of(&mut floor, &config.binary, rooms).await {
            Ok(props) => Ok(Self {
                doing: Doing::new(floor.nodes.len()),
                floor,
                recorder: Recorder::of_processes(),
                watchers: props.watchers,
                readers: props.readers,
                segments: SegmentCheck::default(),
                clients: props.clients,
                rooms: props.rooms,
            }),
            Err(why) => Err(left_behind(&why, floor)),
        }
    }

    /// Writers at rest.
    pub fn load(&self, config: &LoadConfig, seed: u64) -> Load {
        Load::new(config, seed, &self.clients, &self.rooms, &self.recorder)
    }

    /// Does one thing to node number `at`.
    pub async fn act(&mut self, at: usize, deed: Deed) -> Result<(), String> {
        self.doing.act(at, deed, &mut self.floor, &self.watchers[at]).await
    }

    /// A client of the cluster.
    pub fn client(&self) -> &Client {
        &self.clients[0]
    }

    /// Watches and reads node number `at` as it is now: another one took its place.
    pub async fn watch_again(&mut self, at: usize) -> Result<(), String> {
        let node = &self.floor.nodes[at];
        (self.watchers[at], self.readers[at]) = watch(&self.floor, node).await?;
        Ok(())
    }

    /// Does what `deeds` says, each at its time.
    pub async fn play(&mut self, deeds: &[Timed]) -> Result<(), String> {
        self.doing.play(deeds, &mut self.floor, &self.watchers).await
    }

    /// Waits until every node is ready.
    pub async fn all_ready(&mut self) {
        self.doing.all_ready(&mut self.floor).await;
    }

    /// Stops a load; what is broken is kept for [`Self::take_broken`].
    pub async fn settle(&mut self, load: &mut Load) {
        if let Err(what) = load.stop().await {
            self.doing.broken("I14 liveness", what);
        }
        load.take_refused().into_iter().for_each(|what| self.doing.broken("P11", what));
    }

    /// What is broken so far, logs and exits included.
    pub fn take_broken(&mut self) -> Vec<Violation> {
        self.doing.look_at_all(&mut self.floor);
        std::mem::take(&mut self.doing.violations)
    }

    /// With no load and all nodes up: is everything there that is new, and the same everywhere?
    pub async fn compare(&mut self) -> Result<Compared, Vec<Violation>> {
        converge(&self.watchers, &self.recorder).await.map_err(|violation| vec![violation])?;
        let hashes = agreement::ask(&self.clients[0], self.floor.nodes.len()).await?;
        let mut read = 0;
        for reader in &mut self.readers {
            let unread = |what| vec![Violation { invariant: "replicas can be read", what }];
            let begins = reader.positions().clone();
            let rooms = reader.read_new().await.map_err(unread)?;
            read += rooms.values().map(|entries| entries.len() as u64).sum::<u64>();
            // What is before was judged when it was new, and is again at the end.
            reading::note(&mut self.recorder.history(), reader.node(), &begins, rooms, &self.rooms);
        }
        let mut broken = invariants::check(&self.recorder.history());
        broken.extend(self.compare_segments(false).await.err());
        if broken.is_empty() { Ok(Compared { read, hashes }) } else { Err(broken) }
    }

    /// Are sealed segments the same on all nodes? Those that were compared before as well, if `all`.
    pub async fn compare_segments(&mut self, all: bool) -> Result<(), Violation> {
        let dirs: Vec<(NodeId, PathBuf)> = self.floor.nodes.iter().map(|node| (node.id, node.data_dir())).collect();
        self.segments.compare(&dirs, all).await
    }

    /// The end: images and logs are left, and named, only where the run failed or something is broken.
    pub fn strike(self, ran: Result<(), String>, broken: bool) -> Result<Option<PathBuf>, String> {
        match ran {
            Ok(()) => Ok(broken.then(|| self.floor.keep())),
            Err(why) => Err(left_behind(&why, self.floor)),
        }
    }
}

/// A run that failed leaves images and logs, and says where.
fn left_behind(why: &str, floor: Floor) -> String {
    format!("{why}; images and logs are in {}", floor.keep().display())
}

struct Props {
    clients: Vec<Client>,
    rooms: Vec<RoomId>,
    watchers: Vec<Watcher>,
    readers: Vec<NodeReader>,
}

impl Props {
    async fn of(floor: &mut Floor, binary: &Path, rooms: u64) -> Result<Self, String> {
        floor.form(binary, FORM_PATIENCE).await?;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(floor.client(None).await?);
        }
        let rooms = create_rooms(&clients[0], PREFIX, rooms).await?;
        let (mut watchers, mut readers) = (Vec::new(), Vec::new());
        for node in &floor.nodes {
            let (watcher, reader) = watch(floor, node).await?;
            watchers.push(watcher);
            readers.push(reader);
        }
        Ok(Self { clients, rooms, watchers, readers })
    }
}

async fn watch(floor: &Floor, node: &RealNode) -> Result<(Watcher, NodeReader), String> {
    let filter: SubjectFilter = format!("{PREFIX}.>").parse().map_err(|error| format!("filter: {error}"))?;
    let watcher = Watcher::new(node.id, &node.name, floor.client(Some(node)).await?);
    watcher.lives(node.process.life());
    Ok((watcher, NodeReader::new(node.id, &node.name, floor.client(Some(node)).await?, &filter)))
}
