//! When the tables of a replica are brought to disk, and what waits for it.
//!
//! The overlay is sealed with everything that belongs to its index in one step; the log, then the segments,
//! are durable up to there before the tree hears of it. `apply` goes on meanwhile, into a second overlay, and
//! waits only when that one has twice the size at which a checkpoint is due: two overlays are all there are.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::BoxFuture;
use tokio::sync::MutexGuard;
use unibus_machine::key::ordinal;

use super::{LogSynced, Replica, ReplicaConfig, State};
use crate::checkpoint::{Checkpoints, Current, Marker};
use crate::env::{Env, WatchReceiver, sleep};
use crate::error::{StoreError, io_at};
use crate::faults::Faults;
use crate::mutants;
use crate::snapshot::{Manifest, RowPage, RowSource, SnapshotData};
use crate::tables::{CheckedRows, Overlay, RowSum, Tables};
use crate::watched::WatchReceiverOf;

/// A checkpoint that failed is tried again after this time.
const RETRY: std::time::Duration = std::time::Duration::from_secs(5);

/// An overlay that is sealed and not yet in the tree.
#[derive(Clone)]
pub(super) struct Sealed {
    marker: Marker,
    overlay: Arc<Overlay>,
}

/// The tables over the tree, which is held.
pub(super) fn tables<E: Env>(
    checkpoints: &Checkpoints<E>,
    current: &Current<E>,
    config: &ReplicaConfig,
    damage: &Faults,
) -> Tables {
    Tables::new(checkpoints.rows(current), current.marker().sum, config.row_cache_bytes, damage.clone())
}

impl<E: Env> Replica<E> {
    /// Brings the tree to what is applied, and holds it there.
    pub(crate) async fn checkpoint(&self, synced: &LogSynced) -> Result<MutexGuard<'_, Current<E>>, StoreError> {
        let mut current = self.checkpoints.hold().await;
        let Some(Sealed { marker, overlay }) = self.seal(&current) else { return Ok(current) };
        if let Some(index) = marker.index() {
            synced(index).await.map_err(io_at("wait for the log of", self.segments.dir()))?;
        }
        // Whoever has it waits for the disk alone, never for a tree that somebody holds.
        let _turn = self.turn.lock().await;
        self.segments.sync().await.map_err(io_at("sync segments in", self.segments.dir()))?;
        if let Err(error) = Box::pin(self.checkpoints.save(&mut current, marker, &overlay)).await {
            if matches!(error, StoreError::Tables { .. }) {
                self.damage.report(error.to_string());
            }
            return Err(error);
        }
        drop(overlay);
        *self.sealed() = None;
        let left = self.write().machine.rows_mut().written();
        drop(left);
        self.checkpointed.update(|index| *index = current.marker().index().unwrap_or(0));
        Ok(current)
    }

    /// Seals the overlay, unless one is sealed already or nothing was applied since.
    fn seal(&self, current: &Current<E>) -> Option<Sealed> {
        let mut sealed = self.sealed();
        if sealed.is_none() {
            let mut state = self.write();
            // Answered, also when an install left nothing to write.
            self.unwritten_log_bytes.store(0, Ordering::Relaxed);
            self.checkpoint_asked.store(false, Ordering::Relaxed);
            let meta = state.coverage();
            if meta == current.marker().meta {
                return None;
            }
            let sum = state.machine.rows_mut().sum();
            let overlay = state.machine.rows_mut().seal();
            let marker = Marker { meta, sum, segments: self.segments.manifest() };
            *sealed = Some(Sealed { marker, overlay });
        }
        sealed.clone()
    }

    /// Asks for a checkpoint when one is due.
    pub(super) fn count_unwritten(&self, state: &State, log_bytes: u64) {
        let bytes = self.unwritten_log_bytes.fetch_add(log_bytes, Ordering::Relaxed) + log_bytes;
        let is_due =
            bytes >= self.config.checkpoint_log_bytes || state.machine.rows().open_bytes() >= self.config.overlay_bytes;
        if is_due && !self.checkpoint_asked.swap(true, Ordering::Relaxed) {
            self.checkpoint_due.update(|asked| *asked += 1);
        }
    }

    /// Returns when the overlay may grow.
    pub(crate) async fn room(&self) {
        let is_full = || self.view(|machine| machine.rows().open_bytes()) >= 2 * self.config.overlay_bytes;
        while is_full() {
            let mut checkpointed = self.checkpointed.subscribe();
            if is_full() && checkpointed.changed().await.is_err() {
                return;
            }
        }
    }

    /// The index of the newest checkpoint.
    pub(crate) fn checkpoint_index(&self) -> u64 {
        *self.checkpointed.subscribe().borrow_watched()
    }

    /// Builds a snapshot of the tree, brought to what is applied. `apply` goes on meanwhile.
    pub(crate) async fn build_snapshot(&self, synced: &LogSynced) -> Result<SnapshotData, StoreError> {
        let current = self.checkpoint(synced).await?;
        let Marker { meta, sum, segments } = current.marker().clone();
        if let Some(newest) = self.snapshots.current().filter(|newest| *newest.meta() == meta) {
            return Ok(newest);
        }
        let rows = self.checkpoints.rows(&current);
        let source = FrozenTree::new(rows, sum, self.damage.clone(), self.place.group);
        let mut manifest = Manifest { meta, state_hash: sum.hash, segments };
        if mutants::is("snapshot-without-producers") {
            manifest.state_hash = source.sum_of_kept()?.hash;
        }
        self.snapshots.save(manifest, &source).await
    }

    /// Makes the next start discard the tree when something wrong was read from it, and says so.
    pub(crate) async fn watch_damage(&self, faults: Faults) {
        let why = self.damage.wait().await;
        self.condemn().await;
        faults.report(format!("group {}: {why}", self.place.group));
    }

    /// Why `apply` failed. When it was for what it read from the tree, that is said instead, and the tree is
    /// marked before anybody hears of it: the process may end at any moment after that.
    pub(crate) async fn explain(&self, error: io::Error) -> io::Error {
        let Some(why) = self.damage.first() else { return error };
        self.condemn().await;
        io::Error::other(why)
    }

    async fn condemn(&self) {
        if let Err(error) = self.checkpoints.condemn().await {
            tracing::error!(group = %self.place.group, %error, "the damaged tables are not marked");
        }
    }

    /// Adds up a tree that was too large for it at the start, then writes checkpoints when they are due. A
    /// failure is never fatal: it is tried again.
    pub(crate) async fn tend(&self, synced: LogSynced, mut stop: WatchReceiverOf<E, bool>) {
        let work = async {
            self.scrub().await;
            let mut due = self.checkpoint_due.subscribe();
            let mut done = 0;
            // Not `changed`: it may have been asked for already.
            while let Ok(asked) = due.wait_until(|asked| *asked > done).await {
                done = asked;
                while let Err(error) = self.checkpoint(&synced).await.map(drop) {
                    tracing::warn!(group = %self.place.group, %error, "checkpoint is not written, it is tried again");
                    sleep::<E>(RETRY).await;
                }
            }
        };
        tokio::select! {
            biased;
            _ = stop.changed() => {}
            () = work => {}
        }
    }

    async fn scrub(&self) {
        let current = self.checkpoints.hold().await;
        if !self.checkpoints.is_unproved(&current) {
            return;
        }
        match self.checkpoints.prove(&current).await {
            Ok(()) => tracing::debug!(group = %self.place.group, sum = ?current.marker().sum, "tables add up"),
            Err(why) => self.damage.report(format!("tables: {why}; the next start rebuilds them")),
        }
    }
}

/// The rows of a tree that is held at a checkpoint. They are added up on the way: a snapshot of rows that
/// do not come to the sum of the checkpoint is never finished.
struct FrozenTree {
    rows: CheckedRows,
    expected: RowSum,
    found: std::sync::Mutex<RowSum>,
    damage: Faults,
    group: unibus_proto::id::GroupId,
}

impl FrozenTree {
    fn new(rows: CheckedRows, expected: RowSum, damage: Faults, group: unibus_proto::id::GroupId) -> Self {
        Self { rows, expected, found: std::sync::Mutex::default(), damage, group }
    }

    fn page(&self, after: Option<&[u8]>, limit: usize) -> Result<RowPage, StoreError> {
        let page = self.rows.page(after, limit).map_err(|error| self.failed(error.to_string()))?;
        let mut found = self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if after.is_none() {
            *found = RowSum::default();
        }
        page.iter().for_each(|(key, value)| found.add(key, value));
        if page.len() < limit && *found != self.expected {
            return Err(self.failed(format!("its rows come to {found:?}, its marker says {:?}", self.expected)));
        }
        Ok(page)
    }

    fn failed(&self, why: String) -> StoreError {
        let error = StoreError::Tables { group: self.group, why };
        self.damage.report(error.to_string());
        error
    }

    /// For the planted bug: what the rows come to without those that it forgets.
    fn sum_of_kept(&self) -> Result<RowSum, StoreError> {
        let mut sum = RowSum::default();
        let all = self.page(None, usize::MAX)?;
        all.iter().filter(is_kept).for_each(|(key, value)| sum.add(key, value));
        Ok(sum)
    }
}

fn is_kept((key, _): &&(bytes::Bytes, bytes::Bytes)) -> bool {
    let producers = ordinal::PRODUCER..=ordinal::PRODUCER_EXPIRY;
    !key.first().is_some_and(|kind| producers.contains(kind))
}

impl RowSource for FrozenTree {
    fn scan<'a>(&'a self, after: Option<&'a [u8]>, limit: usize) -> BoxFuture<'a, Result<RowPage, StoreError>> {
        let page = if mutants::is("snapshot-without-producers") {
            // Small trees only: the simulator's.
            let all = self.page(None, usize::MAX);
            let wanted = |row: &(bytes::Bytes, bytes::Bytes)| after.is_none_or(|after| row.0[..] > *after);
            all.map(|all| all.into_iter().filter(|row| is_kept(&row) && wanted(row)).take(limit).collect())
        } else {
            self.page(after, limit)
        };
        Box::pin(std::future::ready(page))
    }
}
