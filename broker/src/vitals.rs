//! What a node knows of its own state: readiness and disk.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use unibus_raft_store::Store;
use unibus_raft_store::env::{Disk, DiskFile, Env, Instant, InstantOf, OpenMode, now, sleep};

use crate::formation::Formation;
use crate::members::Members;
use crate::service::Vitals;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Walking the directory opens each file.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// An election must not take a node that was ready out of service.
const LEADERLESS_TOLERATED: Duration = Duration::from_secs(10);
/// Directories below the data directory.
const DEPTH_MAX: usize = 4;

/// Readiness and disk, kept up to date by [`watch`](Self::watch).
pub struct NodeVitals<E: Env> {
    env: E,
    dir: PathBuf,
    store: Store<E>,
    formation: Arc<Formation<E>>,
    members: Arc<Members<E>>,
    not_ready: RwLock<Vec<String>>,
    used_bytes: AtomicU64,
}

impl<E: Env> NodeVitals<E> {
    /// Of a node that has just been opened.
    pub fn new(env: E, dir: PathBuf, store: Store<E>, formation: Arc<Formation<E>>, members: Arc<Members<E>>) -> Self {
        let not_ready = RwLock::new(vec!["starting".into()]);
        let used_bytes = AtomicU64::new(0);
        Self { env, dir, store, formation, members, not_ready, used_bytes }
    }

    /// Looks for ever.
    pub async fn watch(self: Arc<Self>) {
        let (mut measured, mut well): (Option<InstantOf<E>>, Option<InstantOf<E>>) = (None, None);
        loop {
            let now = now::<E>();
            let found = self.look();
            if found.is_empty() {
                well = Some(now);
            }
            let is_member = self.members.removed().is_none();
            let tolerated =
                is_member && well.is_some_and(|well| now.saturating_duration_since(well) < LEADERLESS_TOLERATED);
            let mut reasons = if tolerated { Vec::new() } else { found };
            reasons.extend(self.store.space().refuses_writes().map(|why| format!("takes no new messages: {why}")));
            *self.not_ready.write().unwrap_or_else(PoisonError::into_inner) = reasons;
            if measured.is_none_or(|measured| now.saturating_duration_since(measured) >= MEASURE_EVERY) {
                measured = Some(now);
                self.measure().await;
            }
            sleep::<E>(LOOK_EVERY).await;
        }
    }

    fn look(&self) -> Vec<String> {
        if let Some(why) = self.members.removed() {
            return vec![format!("{why}; stop this node, its directory is of no more use")];
        }
        if let Some(waiting) = self.formation.waiting_for() {
            return vec![format!("waiting for {waiting}")];
        }
        let leaderless = self.store.groups().filter(|group| group.leader().is_none());
        leaderless.map(|group| format!("group {} has no leader", group.id())).collect()
    }

    async fn measure(&self) {
        self.used_bytes.store(self.used().await, Ordering::Relaxed);
    }

    /// Files come and go meanwhile: what cannot be read counts nothing.
    async fn used(&self) -> u64 {
        let (mut sum, mut left) = (0, vec![(self.dir.clone(), 0)]);
        while let Some((path, depth)) = left.pop() {
            match self.env.disk().list(&path).await {
                Ok(names) if depth < DEPTH_MAX => left.extend(names.iter().map(|name| (path.join(name), depth + 1))),
                Ok(_) => {}
                Err(_) => sum += self.file_len(&path).await,
            }
        }
        sum
    }

    async fn file_len(&self, path: &Path) -> u64 {
        match self.env.disk().open(path, OpenMode::Read).await {
            Ok(file) => file.len().await.unwrap_or(0),
            Err(_) => 0,
        }
    }
}

impl<E: Env> Vitals for NodeVitals<E> {
    fn disk_used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    fn disk_free_bytes(&self) -> u64 {
        self.store.space().free_bytes()
    }

    fn last_fsync_us(&self) -> u64 {
        u64::try_from(self.store.wal().stats().last_sync.as_micros()).unwrap_or(u64::MAX)
    }

    fn not_ready(&self) -> Vec<String> {
        self.not_ready.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
