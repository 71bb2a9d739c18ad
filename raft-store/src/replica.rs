//! A group's replicated state on this node: the machine over its rows, the segments, the snapshots.
//! Shared by the state machine that openraft drives and by everybody who reads locally.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures::future::BoxFuture;
use tokio::sync::mpsc;
use unibus_machine::{Event, Machine};
use unibus_proto::id::GroupId;
use unibus_proto::log::{self, proposal::Command};

use crate::checkpoint::{Checkpoints, Marker, TreeConfig};
use crate::codec::decode_message;
use crate::env::Env;
use crate::error::StoreError;
use crate::faults::Faults;
use crate::segment::{Place, Segments};
use crate::snapshot::{Manifest, SnapshotData, Snapshots};
use crate::store::StoreConfig;
use crate::tables::{StateHash, Tables};
use crate::types::{Answer, Entry, LogId, Payload, SnapshotMeta, StoredMembership};
use crate::wal::GroupLog;
use crate::watched::{WatchReceiverOf, Watched};

mod checkpoint;

/// The state hash is taken at each multiple of this index, on every replica.
pub const HASH_INTERVAL: u64 = 256;
/// Newest hashes that are kept: a busy group passes so many intervals within a second or two.
const HASHES_KEPT: usize = 32;
/// Counted for each entry beside its proposal when deciding that a snapshot is due.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// The machine as it runs here.
pub type GroupMachine = Machine<Tables>;

/// Resolves when this node's own log is durable up to an index.
pub type LogSynced = Arc<dyn Fn(u64) -> BoxFuture<'static, io::Result<()>> + Send + Sync>;

/// Checkpoints are written one at a time, or their syncs would meet.
pub(crate) type CheckpointTurn = Arc<tokio::sync::Mutex<()>>;

/// When the group's log is on this node's disk up to an index.
pub(crate) fn log_synced<E: Env>(log: GroupLog<E>) -> LogSynced {
    Arc::new(move |index| {
        let log = log.clone();
        Box::pin(async move {
            if log.flushed_index() < Some(index) {
                log.barrier().await?;
            }
            Ok(())
        })
    })
}

/// An entry that was applied, and what happened.
#[derive(Clone, Debug, PartialEq)]
pub struct AppliedEntry {
    /// The group.
    pub group: GroupId,
    /// Its index.
    pub index: u64,
    /// What happened, in order.
    pub events: Vec<Event>,
    /// A snapshot was installed instead: anything may have changed, and no events say what.
    pub reset: bool,
}

/// State of a group on this node.
pub struct Replica<E: Env> {
    pub(crate) place: Place,
    state: RwLock<State>,
    pub(crate) segments: Segments<E>,
    pub(crate) snapshots: Snapshots<E>,
    applied: Watched<E, u64>,
    events: Mutex<Option<mpsc::Sender<Arc<AppliedEntry>>>>,
    log_bytes: AtomicU64,
    snapshot_due: Watched<E, u64>,
    config: ReplicaConfig,
    pub(crate) checkpoints: Checkpoints<E>,
    sealed: Mutex<Option<checkpoint::Sealed>>,
    /// The index of the newest checkpoint.
    checkpointed: Watched<E, u64>,
    checkpoint_due: Watched<E, u64>,
    /// Held while a checkpoint is written: by one of the replicas that share it.
    turn: CheckpointTurn,
    /// Since a checkpoint was asked for and until its overlay is sealed.
    checkpoint_asked: AtomicBool,
    /// Bytes of log above the overlay that was sealed last.
    unwritten_log_bytes: AtomicU64,
    /// Where the tables report what is wrong with the tree.
    damage: Faults,
}

struct State {
    machine: GroupMachine,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    hash: (u64, StateHash),
    /// Taken at each interval and at each tick, so that anybody who wants to compare replicas proposes a tick.
    hashes: VecDeque<(u64, StateHash)>,
}

/// How a replica is sized.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaConfig {
    /// Build a snapshot after so many bytes of log.
    pub snapshot_log_bytes: u64,
    /// Segments are cut at this size, the same on all replicas of a cluster.
    pub segment_bytes: u64,
    /// The newest bytes of the timeline that are kept in memory.
    pub timeline_tail_bytes: u64,
    /// Write a checkpoint after so many bytes of log.
    pub checkpoint_log_bytes: u64,
    /// Write a checkpoint when the rows changed since the last one take so many bytes. `apply` waits at
    /// twice as many.
    pub overlay_bytes: usize,
    /// Memory for rows that were read from the tree.
    pub row_cache_bytes: usize,
    /// How the tree is kept.
    pub tree: TreeConfig,
}

impl Default for ReplicaConfig {
    fn default() -> Self {
        StoreConfig::default().replica()
    }
}

impl<E: Env> Replica<E> {
    /// The state in the directory of a group: that of the tree or of the newest snapshot, whichever is
    /// newer. `purged` is the last index that the log no longer has.
    pub async fn open(
        env: &E,
        dir: &Path,
        place: Place,
        purged: Option<u64>,
        config: ReplicaConfig,
    ) -> Result<Self, StoreError> {
        let checkpoints = Box::pin(Checkpoints::open(env, dir, place, config.tree)).await?;
        let mut current = checkpoints.hold().await;
        let tree = Manifest::from(current.marker());
        let base = Box::pin(Snapshots::open(env, dir, place, config.timeline_tail_bytes, purged, Some(&tree))).await?;
        if !base.is_tree {
            let (marker, rows) = match base.rows {
                Some((manifest, rows)) => (Marker::from(&manifest), Some(rows)),
                None => (Marker::default(), None),
            };
            tracing::warn!(
                group = %place.group, found = ?current.marker().index(), rebuilt = ?marker.index(),
                "tables are rebuilt: the newest snapshot is a better base"
            );
            checkpoints.rebuild(&mut current, marker, rows).await?;
        }
        let damage = Faults::default();
        let tables = checkpoint::tables(&checkpoints, &current, &config, &damage);
        let meta = current.marker().meta.clone();
        let index = meta.last_log_id.map_or(0, |id| id.index);
        drop(current);
        Ok(Self {
            place,
            state: RwLock::new(State::restore(place, config.segment_bytes, meta, tables)),
            segments: base.segments,
            snapshots: base.snapshots,
            applied: Watched::new(index),
            events: Mutex::new(None),
            log_bytes: AtomicU64::new(0),
            snapshot_due: Watched::new(0),
            config,
            checkpoints,
            sealed: Mutex::new(None),
            checkpointed: Watched::new(index),
            checkpoint_due: Watched::new(0),
            turn: CheckpointTurn::default(),
            checkpoint_asked: AtomicBool::new(false),
            unwritten_log_bytes: AtomicU64::new(0),
            damage,
        })
    }

    /// Its checkpoints and those of all that share `turn` are written one at a time.
    pub(crate) fn with_turn(self, turn: CheckpointTurn) -> Self {
        Self { turn, ..self }
    }

    /// Applies the next entry.
    pub(crate) fn apply(&self, entry: &Entry) -> io::Result<(Answer, Vec<Event>)> {
        let mut state = self.write();
        let fault = |why: String| io::Error::other(format!("apply {} entry {}: {why}", self.place.group, entry.log_id));
        let mut log_bytes = ENTRY_OVERHEAD_BYTES;
        let mut is_tick = false;
        let (answer, events) = match &entry.payload {
            Payload::Blank => (Answer::default(), vec![]),
            Payload::Membership(membership) => {
                state.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                (Answer::default(), vec![])
            }
            Payload::Normal(proposal) => {
                log_bytes += proposal.0.len() as u64;
                let proposal: log::Proposal =
                    decode_message(proposal.0.clone(), "proposal").map_err(|e| fault(e.to_string()))?;
                is_tick = holds_tick(proposal.command.as_ref());
                state.run(self.place.group, entry.log_id, proposal).map_err(fault)?
            }
        };
        events.iter().try_for_each(|event| self.store(event)).map_err(fault)?;
        state.last_applied = Some(entry.log_id);
        state.take_hash(entry.log_id.index, is_tick);
        self.count_unwritten(&state, log_bytes);
        drop(state);
        self.applied.update(|applied| *applied = entry.log_id.index);
        self.count_log_bytes(log_bytes);
        Ok((answer, events))
    }

    /// Puts what an event says into the segments.
    fn store(&self, event: &Event) -> Result<(), String> {
        match event {
            Event::Appended { segment, room, deliveries } => self.segments.append(*segment, *room, deliveries),
            Event::SegmentCut { segment } => self.segments.cut(*segment).map(drop),
            Event::SegmentSealed { segment, length, hash } => match self.segments.sealed(*segment) {
                Some(own) if (own.length, own.hash) == (*length, *hash) => Ok(()),
                own => Err(format!(
                    "segment {segment} is sealed by the log with {length} bytes, here it is {own:?}: this replica \
                     differs from the one that proposed it; compare the nodes with `unibusctl verify`: one that \
                     differs from the majority is to be replaced, with `unibusctl node replace`"
                )),
            },
            Event::SegmentDropped { segment } => {
                self.segments.drop_sealed(*segment);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn count_log_bytes(&self, bytes: u64) {
        let bytes = self.log_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if bytes >= self.config.snapshot_log_bytes {
            self.log_bytes.store(0, Ordering::Relaxed);
            self.ask_snapshot();
        }
    }

    /// Says that a snapshot is due.
    pub(crate) fn ask_snapshot(&self) {
        self.snapshot_due.update(|asked| *asked += 1);
    }

    /// Counts how often a snapshot was asked for.
    pub(crate) fn snapshot_due(&self) -> WatchReceiverOf<E, u64> {
        self.snapshot_due.subscribe()
    }

    /// Tells the subscriber, if there is one; waits while it is behind.
    pub(crate) async fn tell(&self, index: u64, events: Vec<Event>, reset: bool) {
        let sender = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(sender) = sender else { return };
        let entry = AppliedEntry { group: self.place.group, index, events, reset };
        if sender.send(Arc::new(entry)).await.is_err() {
            *self.events.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Everything applied from here on; an earlier subscriber hears no more.
    pub fn subscribe(&self, capacity: usize) -> mpsc::Receiver<Arc<AppliedEntry>> {
        let (sender, receiver) = mpsc::channel(capacity);
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Reads the machine; keep it short, `apply` waits.
    pub fn view<T>(&self, read: impl FnOnce(&GroupMachine) -> T) -> T {
        read(&self.read().machine)
    }

    /// The index that was applied last.
    pub(crate) fn applied(&self) -> WatchReceiverOf<E, u64> {
        self.applied.subscribe()
    }

    /// What was applied last, and the membership at it.
    pub(crate) fn coverage(&self) -> SnapshotMeta {
        self.read().coverage()
    }

    /// The state hash at the last multiple of [`HASH_INTERVAL`].
    pub fn hash_at_interval(&self) -> (u64, StateHash) {
        self.read().hash
    }

    /// The state hash as of now, with the index that it belongs to.
    pub fn hash_now(&self) -> (u64, StateHash) {
        let mut state = self.write();
        (state.last_applied.map_or(0, |id| id.index), state.machine.rows_mut().state_hash())
    }

    /// The state hash at an index at which it was taken lately.
    pub fn hash_at(&self, index: u64) -> Option<StateHash> {
        self.read().hashes.iter().find(|(at, _)| *at == index).map(|(_, hash)| *hash)
    }

    /// Bytes of log since a snapshot was last asked for.
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }

    /// Makes a snapshot from elsewhere the state.
    pub(crate) async fn install(&self, data: &SnapshotData) -> Result<(), StoreError> {
        let mut current = self.checkpoints.hold().await;
        let (installed, rows) = Box::pin(self.snapshots.install(data)).await?;
        let marker = Marker::from(&installed.manifest);
        Box::pin(self.checkpoints.rebuild(&mut current, marker, Some(rows))).await?;
        self.segments.reload(&installed.manifest.segments, &self.snapshots.listed_segments()).await?;
        let meta = installed.meta().clone();
        let index = meta.last_log_id.map_or(0, |id| id.index);
        *self.sealed() = None;
        let tables = checkpoint::tables(&self.checkpoints, &current, &self.config, &self.damage);
        *self.write() = State::restore(self.place, self.config.segment_bytes, meta, tables);
        drop(current);
        self.checkpointed.update(|checkpointed| *checkpointed = index);
        self.applied.update(|applied| *applied = index);
        self.tell(index, vec![], true).await;
        Ok(())
    }

    fn sealed(&self) -> MutexGuard<'_, Option<checkpoint::Sealed>> {
        self.sealed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn restore(place: Place, segment_bytes: u64, meta: SnapshotMeta, mut tables: Tables) -> Self {
        let index = meta.last_log_id.map_or(0, |id| id.index);
        let hash = (index, tables.state_hash());
        let machine = Machine::new(place.group, place.cluster, tables).with_segment_bytes(segment_bytes);
        Self { machine, last_applied: meta.last_log_id, membership: meta.last_membership, hash, hashes: [hash].into() }
    }

    fn take_hash(&mut self, index: u64, is_tick: bool) {
        let is_interval = index.is_multiple_of(HASH_INTERVAL);
        if !is_interval && !is_tick {
            return;
        }
        let hash = (index, self.machine.rows_mut().state_hash());
        if is_interval {
            self.hash = hash;
        }
        if self.hashes.len() == HASHES_KEPT {
            self.hashes.pop_front();
        }
        self.hashes.push_back(hash);
    }

    /// What was applied last, and the membership at it.
    fn coverage(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() }
    }

    fn run(&mut self, group: GroupId, log_id: LogId, proposal: log::Proposal) -> Result<(Answer, Vec<Event>), String> {
        let entry = unibus_machine::Entry { group, index: log_id.index, term: log_id.leader_id.term };
        // A panic is a bug in the rules. It must stop this replica, not leave it half applied.
        let applied = catch_unwind(AssertUnwindSafe(|| self.machine.apply(entry, proposal)));
        let applied = applied.map_err(|_| "the machine panicked; this is a bug, keep the directory".to_string())?;
        Ok((Answer(applied.reply), applied.events))
    }
}

/// Whether `verify` may ask for the state after this entry, alone in it or with others.
fn holds_tick(command: Option<&Command>) -> bool {
    match command {
        Some(Command::Tick(_)) => true,
        Some(Command::CommandBatch(batch)) => batch.commands.iter().any(|one| holds_tick(one.command.as_ref())),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
