//! How a run ends: replicas meet, readers have everything, the power fails once more, and what each
//! replica holds is read.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft_rt::AsyncRuntime;
use unibus_proto::id::{NodeId, RoomId};
use unibus_proto::position::Sequence;
use unibus_raft_store::Group;

use crate::history::Entry;
use crate::invariants::Violation;
use crate::record;
use crate::run::{READY, Run, SAMPLE, liveness};
use crate::sim::env::SimEnv;
use crate::sim::runtime::SimRuntime;

/// After healing, replicas are equal within this time (RELIABILITY section 2).
const CONVERGE: Duration = Duration::from_secs(30);
/// After that, readers have everything within this time.
const DRAIN: Duration = Duration::from_secs(40);

/// A tick comes each second at most, and a scan takes less: the second one meets no other.
const SCANS_MAX: u32 = 10;

impl Run {
    /// Waits until each group's replicas stand at one index with one state.
    pub async fn converge(&self) -> Result<(), Violation> {
        let mut waited = Duration::ZERO;
        loop {
            let hashes = self.cluster.hashes();
            let all = self.cluster.ids().len();
            let equal = |replicas: &Vec<(NodeId, u64, [u8; 32])>| {
                replicas.len() == all && replicas.windows(2).all(|pair| pair[0].1 == pair[1].1)
            };
            if hashes.len() == self.cluster.groups().count() && hashes.values().all(equal) {
                let statuses = self.cluster.statuses();
                self.recorder.history().statuses.extend(statuses);
                return Ok(());
            }
            if waited > CONVERGE {
                let indices: Vec<_> = hashes
                    .iter()
                    .map(|(group, replicas)| {
                        let of: Vec<_> = replicas.iter().map(|(node, index, _)| format!("n{node} {index}")).collect();
                        format!("{group}: {}", of.join(" "))
                    })
                    .collect();
                return Err(liveness(format!("replicas do not meet in {waited:?}: {}", indices.join("; "))));
            }
            SimRuntime::sleep(SAMPLE).await;
            waited += SAMPLE;
        }
    }

    /// Waits until each reader from the start has everything.
    pub(crate) async fn drain(&self, readers: &[usize], rooms: &[RoomId]) -> Result<(), Violation> {
        let mut waited = Duration::ZERO;
        loop {
            // Each time anew: what expires meanwhile is given to nobody any more.
            let heads = self.heads(rooms)?;
            let behind: Vec<_> = {
                let history = self.recorder.history();
                let at = |reader: usize, room: &RoomId| {
                    history.readers[reader].rooms.get(room).and_then(|entries| entries.last()).map(|e| e.sequence)
                };
                let lags = |reader: usize| {
                    heads.iter().find(|(room, head)| at(reader, room) < Some(**head)).map(|(room, head)| {
                        format!("{} is at {:?} of {head} in {room}", history.readers[reader].name, at(reader, room))
                    })
                };
                readers.iter().filter_map(|reader| lags(*reader)).collect()
            };
            if behind.is_empty() {
                let mut history = self.recorder.history();
                readers.iter().for_each(|reader| history.readers[*reader].complete = true);
                return Ok(());
            }
            if waited > DRAIN {
                return Err(liveness(format!("readers lag {waited:?} after healing: {}", behind.join(", "))));
            }
            if waited == DRAIN / 8 {
                self.handle.note(&format!("still waiting: {}", behind.join(", ")));
            }
            SimRuntime::sleep(SAMPLE).await;
            waited += SAMPLE;
        }
    }

    /// The last sequence of each room that keeps anything now.
    fn heads(&self, rooms: &[RoomId]) -> Result<BTreeMap<RoomId, u64>, Violation> {
        let id = *self.cluster.ids().first().expect("a cluster has nodes");
        let mut heads = BTreeMap::new();
        for room in rooms {
            let row = self.shard_of(id, *room)?.view(|machine| machine.room(*room)).unwrap_or_default();
            if row.floor < row.next_sequence {
                heads.insert(*room, row.next_sequence - 1);
            }
        }
        Ok(heads)
    }

    /// Cuts the power of all nodes at once and brings them back.
    pub async fn power_cycle(&self) -> Result<(), Violation> {
        let ids = self.cluster.ids();
        ids.iter().for_each(|id| self.cluster.kill(*id, true));
        SimRuntime::sleep(Duration::from_millis(100)).await;
        ids.iter().for_each(|id| self.cluster.start(*id));
        self.cluster.wait_ready(READY).await.map_err(liveness)?;
        self.converge().await
    }

    /// Reads every timeline of every replica into the history.
    pub async fn scan(&self, rooms: &[RoomId]) -> Result<(), Violation> {
        for _ in 0..SCANS_MAX {
            self.converge().await?;
            let before = self.cluster.hashes();
            self.scan_once(rooms).await?;
            // What expired meanwhile is there on some replicas and gone on others: then all are read again.
            if self.cluster.hashes() == before {
                return Ok(());
            }
        }
        Err(liveness(format!("replicas changed during each of {SCANS_MAX} scans without load")))
    }

    async fn scan_once(&self, rooms: &[RoomId]) -> Result<(), Violation> {
        for id in self.cluster.ids() {
            for room in rooms {
                let (floor, entries) = self.timeline(id, *room).await?;
                let mut history = self.recorder.history();
                history.floors.insert((id, *room), floor);
                history.scans.insert((id, *room), entries);
            }
        }
        Ok(())
    }

    /// A node's replica of the shard that has a room.
    fn shard_of(&self, id: NodeId, room: RoomId) -> Result<Group<SimEnv>, Violation> {
        let node = self.cluster.node(id).ok_or_else(|| unreadable(id, "does not run".into()))?;
        let mut groups = self.cluster.groups().filter_map(|group| node.store().group(group));
        let holds = |group: &Group<SimEnv>| group.view(|machine| machine.room(room).is_some());
        let group = groups.find(|group| !group.id().is_meta() && holds(group));
        group.ok_or_else(|| unreadable(id, format!("no shard has room {room}")))
    }

    /// What a replica keeps of a room, and from where on.
    async fn timeline(&self, id: NodeId, room: RoomId) -> Result<(u64, Vec<Entry>), Violation> {
        let broken = |what: String| unreadable(id, what);
        let group = self.shard_of(id, room)?;
        let floor = group.view(|machine| machine.room(room)).map_or(0, |row| row.floor);
        let (mut entries, mut next) = (Vec::new(), Sequence(floor));
        loop {
            let page = group.read_timeline(room, next, 1 << 20, 500).await;
            let page = page.map_err(|error| broken(format!("room {room} from {next}: {error}")))?;
            let Some(last) = page.last() else { return Ok((floor, entries)) };
            next = last.sequence.next();
            for stored in &page {
                entries.push(record::of_stored(&stored.bytes).map_err(broken)?);
            }
        }
    }
}

fn unreadable(node: NodeId, what: String) -> Violation {
    Violation { invariant: "replicas can be read", what: format!("n{node}: {what}") }
}
