//! What handles, writer and pool of one WAL share.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use unibus_proto::id::GroupId;

use super::frame::Row;
use super::index::Index;
use super::{Done, LogEntry, WalConfig};
use crate::env::{Disk, Env, Instant, InstantOf, now};

/// The file type of an environment.
pub(super) type FileOf<E> = <<E as Env>::Disk as Disk>::File;

/// Locks; a panic of another holder does not matter, as no holder leaves a half-made change.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A group's log in memory.
#[derive(Debug)]
pub(super) struct Group {
    pub id: GroupId,
    pub index: Mutex<Index>,
}

/// What waits for the writer.
pub(super) enum Request {
    /// Entries.
    Append(Append),
    /// A vote, truncation or purge.
    Record(Row, Option<Done>),
    /// Nothing: completes when all before it is on disk.
    Barrier(Done),
    /// A commit index is to be written when there is time.
    Wake,
    /// The end.
    Shutdown(oneshot::Sender<()>),
}

/// An append in the queue.
pub(super) struct Append {
    pub group: Arc<Group>,
    pub ticket: u64,
    pub entries: Vec<LogEntry>,
    pub done: Done,
    /// Its share of the queue's bytes.
    pub permit: OwnedSemaphorePermit,
}

/// Figures of a WAL since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Rounds written, each with one sync.
    pub rounds: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Entries written.
    pub entries: u64,
    /// How long the last write and sync took.
    pub last_sync: Duration,
    /// How long the longest took.
    pub longest_sync: Duration,
    /// How long the round on its way takes already.
    pub in_flight: Option<Duration>,
    /// Bytes waiting for the disk.
    pub queued_bytes: usize,
    /// Files in use.
    pub files: usize,
    /// Files that were taken into use under a new generation after all groups had purged past them.
    pub recycled: u64,
}

/// What is measured while running.
#[derive(Debug)]
pub(super) struct Meter<E: Env> {
    stats: WalStats,
    round_started: Option<InstantOf<E>>,
    last_round: InstantOf<E>,
}

#[derive(Debug, Default)]
struct Fault {
    message: Option<String>,
    waiters: Vec<oneshot::Sender<String>>,
}

/// What handles, writer and pool share.
pub(super) struct Shared<E: Env> {
    pub env: E,
    pub dir: PathBuf,
    pub config: WalConfig,
    pub groups: Mutex<BTreeMap<GroupId, Arc<Group>>>,
    /// Open files by generation.
    pub files: Mutex<BTreeMap<u64, FileOf<E>>>,
    /// Room in the queue, in bytes.
    pub room: Arc<Semaphore>,
    /// Some group has a commit index that was not written.
    pub committed_waits: AtomicBool,
    /// The writer does not wait for space any more.
    pub gives_up: AtomicBool,
    /// Why the writer waits for space.
    stalled: Mutex<Option<String>>,
    meter: Mutex<Meter<E>>,
    fault: Mutex<Fault>,
}

impl<E: Env> Shared<E> {
    pub fn new(env: E, dir: PathBuf, config: WalConfig, indexes: BTreeMap<GroupId, Index>) -> Self {
        let group = |(id, index)| (id, Arc::new(Group { id, index: Mutex::new(index) }));
        let meter = Meter { stats: WalStats::default(), round_started: None, last_round: now::<E>() };
        Self {
            env,
            dir,
            groups: Mutex::new(indexes.into_iter().map(group).collect()),
            files: Mutex::default(),
            room: Arc::new(Semaphore::new(config.queue_bytes)),
            committed_waits: AtomicBool::new(false),
            gives_up: AtomicBool::new(false),
            stalled: Mutex::default(),
            meter: Mutex::new(meter),
            fault: Mutex::default(),
            config,
        }
    }

    /// The group, made when it is new.
    pub fn group(&self, id: GroupId) -> Arc<Group> {
        let mut groups = lock(&self.groups);
        groups.entry(id).or_insert_with(|| Arc::new(Group { id, index: Mutex::default() })).clone()
    }

    /// All groups.
    pub fn all_groups(&self) -> Vec<Arc<Group>> {
        lock(&self.groups).values().cloned().collect()
    }

    /// Notes that a commit index waits; true when the writer has to be told.
    pub fn note_committed(&self) -> bool {
        !self.committed_waits.swap(true, Ordering::AcqRel)
    }

    /// Stops the WAL for good.
    pub fn fail(&self, message: String) {
        tracing::error!(dir = %self.dir.display(), "{message}");
        self.room.close();
        let mut fault = lock(&self.fault);
        let message = fault.message.get_or_insert(message).clone();
        for waiter in fault.waiters.drain(..) {
            drop(waiter.send(message.clone()));
        }
    }

    /// The error that stopped the WAL.
    pub fn check(&self) -> io::Result<()> {
        match &lock(&self.fault).message {
            Some(message) => Err(io::Error::other(message.clone())),
            None => Ok(()),
        }
    }

    /// The error for a request that found the queue closed.
    pub fn closed(&self) -> io::Error {
        self.check().err().unwrap_or_else(|| io::Error::other("the WAL is shut down"))
    }

    /// Resolves when an error stops the WAL.
    pub fn fault(&self) -> impl Future<Output = String> + Send + 'static {
        let (sender, receiver) = oneshot::channel();
        let mut fault = lock(&self.fault);
        match &fault.message {
            Some(message) => drop(sender.send(message.clone())),
            None => fault.waiters.push(sender),
        }
        async move {
            match receiver.await {
                Ok(message) => message,
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Why nothing is written for want of space.
    pub fn stalled(&self) -> Option<String> {
        lock(&self.stalled).clone()
    }

    /// The writer waits for space because of `why`, or no longer.
    pub fn stall(&self, why: Option<String>) {
        // A disk that is full does not hang.
        lock(&self.meter).round_started = why.is_none().then(now::<E>);
        *lock(&self.stalled) = why;
    }

    /// The writer is to fail rather than wait for space.
    pub fn give_up_waiting(&self) {
        self.gives_up.store(true, Ordering::Release);
    }

    pub fn round_starts(&self) {
        lock(&self.meter).round_started = Some(now::<E>());
    }

    pub fn round_ends(&self, bytes: u64, entries: usize) {
        let mut meter = lock(&self.meter);
        let now = now::<E>();
        let took = meter.round_started.take().map_or(Duration::ZERO, |started| now.saturating_duration_since(started));
        meter.last_round = now;
        let stats = &mut meter.stats;
        stats.rounds += 1;
        stats.bytes += bytes;
        stats.entries += entries as u64;
        stats.last_sync = took;
        stats.longest_sync = stats.longest_sync.max(took);
    }

    pub fn file_recycled(&self) {
        lock(&self.meter).stats.recycled += 1;
    }

    /// How long nothing was written.
    pub fn idle_for(&self) -> Duration {
        let meter = lock(&self.meter);
        if meter.round_started.is_some() { Duration::ZERO } else { meter.last_round.elapsed() }
    }

    pub fn stats(&self) -> WalStats {
        let meter = lock(&self.meter);
        let queued_bytes = self.config.queue_bytes.saturating_sub(self.room.available_permits());
        let in_flight = meter.round_started.map(|started| started.elapsed());
        WalStats { queued_bytes, in_flight, files: lock(&self.files).len(), ..meter.stats.clone() }
    }

    /// Drops payloads from memory until the budget holds: from the group that has most, as far as they are
    /// on disk.
    pub fn evict(&self, groups: &[Arc<Group>]) {
        let bytes: usize = groups.iter().map(|group| lock(&group.index).tail_bytes()).sum();
        let mut excess = bytes.saturating_sub(self.config.tail_bytes);
        while excess > 0 {
            let evictable = |group: &&Arc<Group>| lock(&group.index).evictable_bytes();
            let Some(group) = groups.iter().max_by_key(evictable) else { return };
            let gone = lock(&group.index).evict(excess);
            if gone == 0 {
                return;
            }
            excess = excess.saturating_sub(gone);
        }
    }
}
