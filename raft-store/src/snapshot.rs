//! Snapshots of a group: its rows at an index in our own checksummed format, with a manifest of the
//! segment files that belong to them.
//!
//! A snapshot is a manifest and the files that it lists: rows, by key range and named after their hashes, and
//! segments. The last two are kept; the log is purged below the older one only, so that either can be built
//! on. A file goes when no snapshot that is kept or on its way lists it. A snapshot of a peer is
//! staged (`stage.rs`), verified by hash, and takes effect by one rename.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

use crate::env::{Disk, Env, write_whole};
use crate::error::{Damage, StoreError, io_at};
use crate::segment::{Place, SegmentEntry, Segments, segment_path};
use crate::sum::FileSum;
use crate::tables::StateHash;
use crate::types::SnapshotMeta;
use crate::watched::{WatchReceiverOf, Watched};

mod block;
mod files;
mod manifest;
mod open;
mod rows;
mod stage;

pub use manifest::{Manifest, RowsFile};
pub use open::Base;
pub use rows::{PAGE_ROWS, RowPage, RowPages, RowSource};
pub(crate) use stage::{StagedFile, Staging};

use files::{manifest_name, segments_of};

/// How many snapshots are kept.
const KEPT: usize = 2;

/// A snapshot on disk: what openraft carries around. Clones share it, and while one of them is there its files
/// are not removed.
#[derive(Clone, Debug)]
pub struct SnapshotData(Arc<SnapshotFiles>);

/// The files of a snapshot.
#[derive(Debug)]
pub struct SnapshotFiles {
    /// What it covers.
    pub manifest: Manifest,
    /// Where each file of rows is, in the order of their keys.
    pub rows: Vec<(RowsFile, PathBuf)>,
    /// Where each segment file of the manifest is.
    pub segments: Vec<(SegmentEntry, PathBuf)>,
    /// The manifest file.
    pub path: PathBuf,
    /// What stands in it.
    pub encoded: Bytes,
}

impl std::ops::Deref for SnapshotData {
    type Target = SnapshotFiles;

    fn deref(&self) -> &SnapshotFiles {
        &self.0
    }
}

impl SnapshotData {
    fn of(files: SnapshotFiles) -> Self {
        Self(Arc::new(files))
    }

    /// What it covers.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.manifest.meta
    }

    /// Index of the last entry that it holds.
    pub fn index(&self) -> Option<u64> {
        self.manifest.index()
    }

    /// All files but the manifest, with what is needed of them. Segments first: what was received of them
    /// counts for a later snapshot too.
    pub fn files(&self) -> impl Iterator<Item = (&Path, FileSum)> {
        let segments = self.segments.iter().map(|(entry, path)| {
            let sum = FileSum { length: entry.length, hash: entry.hash };
            (path.as_path(), sum)
        });
        segments.chain(self.rows.iter().map(|(file, path)| (path.as_path(), file.sum)))
    }
}

/// The snapshots of one group.
pub struct Snapshots<E: Env> {
    env: E,
    place: Place,
    dir: PathBuf,
    segments_dir: PathBuf,
    /// Oldest first.
    kept: Mutex<Vec<SnapshotData>>,
    /// All that may still be in use: kept, being sent, being received.
    known: Mutex<Vec<Weak<SnapshotFiles>>>,
    /// Held while the files of snapshots change.
    changing: tokio::sync::Mutex<()>,
    /// Held while one is received.
    receiving: tokio::sync::Mutex<()>,
    /// Counts the snapshots that were offered: a later offer ends an earlier one.
    offers: Watched<E, u64>,
}

impl<E: Env> Snapshots<E> {
    fn new(env: E, place: Place, dir: PathBuf, segments_dir: PathBuf, kept: Vec<SnapshotData>) -> Self {
        let (changing, receiving) = (tokio::sync::Mutex::new(()), tokio::sync::Mutex::new(()));
        let known = Mutex::new(kept.iter().map(|data| Arc::downgrade(&data.0)).collect());
        let offers = Watched::new(0);
        Self { env, place, dir, segments_dir, kept: Mutex::new(kept), known, changing, receiving, offers }
    }

    /// The newest snapshot.
    pub fn current(&self) -> Option<SnapshotData> {
        self.kept().last().cloned()
    }

    /// Index and BLAKE3 of the manifest of each that is kept.
    pub(crate) fn manifests(&self) -> Vec<(u64, [u8; 32])> {
        let of = |data: &SnapshotData| (data.index().unwrap_or(0), blake3::hash(&data.encoded).into());
        self.kept().iter().map(of).collect()
    }

    /// Up to which index the log may be purged: the older of two snapshots, or an even older one that is
    /// being sent, whose receiver goes on from there.
    pub fn purge_bound(&self) -> Option<u64> {
        let older = {
            let kept = self.kept();
            kept.len().checked_sub(KEPT).and_then(|older| kept[older].index())?
        };
        Some(self.listed().iter().filter_map(SnapshotData::index).fold(older, u64::min))
    }

    /// The segment files that snapshots need, kept or on their way.
    pub fn listed_segments(&self) -> BTreeSet<u64> {
        segments_of(&self.listed())
    }

    /// Writes a snapshot of `rows`; the segments of its manifest must be durable already.
    pub async fn save(&self, manifest: Manifest, rows: &dyn RowSource) -> Result<SnapshotData, StoreError> {
        let _changing = self.changing.lock().await;
        if let Some(current) = self.current().filter(|current| current.index() > manifest.index()) {
            // It was installed while this one waited.
            return Ok(current);
        }
        match Box::pin(self.write(manifest, rows)).await {
            Ok(data) => {
                self.keep(data.clone()).await?;
                Ok(data)
            }
            Err(error) => {
                // What was written of it takes space that may be what is missing.
                files::sweep_rows(&self.env, &self.dir, &self.listed()).await.ok();
                Err(error)
            }
        }
    }

    async fn write(&self, manifest: Manifest, rows: &dyn RowSource) -> Result<SnapshotData, StoreError> {
        let files = rows::write(&self.env, &self.dir, self.place, rows).await?;
        // The manifest must not be there before what it lists.
        self.env.disk().sync_dir(&self.dir).await.map_err(io_at("sync", &self.dir))?;
        let encoded = manifest::encode(self.place, &manifest, &files);
        let name = manifest_name(manifest.meta.last_log_id);
        let path = self.dir.join(&name);
        write_whole(self.env.disk(), &self.dir, &name, encoded.clone()).await.map_err(io_at("write", &path))?;
        Ok(placed((manifest, files, encoded), path, &self.dir, &self.segments_dir))
    }

    /// Begins to receive a snapshot, or goes on with it; `segments` are those that this node has. An earlier
    /// receiver ends by [`offers`](Self::offers).
    pub(crate) async fn stage(&self, encoded: Bytes, segments: &Segments<E>) -> Result<Staging<E>, StoreError> {
        let _changing = self.changing.lock().await;
        let own = |entry: &SegmentEntry| entry.sealed && segments.sealed(entry.id) == Some(*entry);
        let staging =
            Box::pin(Staging::begin(&self.env, &self.dir, &self.segments_dir, self.place, encoded, own)).await?;
        self.know(staging.data());
        Ok(staging)
    }

    /// Announces a receiver; the lock is its turn. It hears of those that are announced while it waits.
    pub(crate) async fn offered(&self) -> (WatchReceiverOf<E, u64>, tokio::sync::MutexGuard<'_, ()>) {
        self.offers.update(|offers| *offers += 1);
        let offers = self.offers.subscribe();
        (offers, self.receiving.lock().await)
    }

    /// Where the file of a segment is in its place, whole or not.
    pub(crate) fn segment_in_place(&self, staged: &Path) -> Option<PathBuf> {
        let id = crate::segment::segment_id(&staged.file_name()?.to_string_lossy())?;
        Some(segment_path(&self.segments_dir, id))
    }

    /// Makes a snapshot from elsewhere this group's newest: one rename decides. Segment files of this node
    /// that belong to it must be durable.
    pub(crate) async fn install(&self, data: &SnapshotData) -> Result<(SnapshotData, RowPages<E>), StoreError> {
        let _changing = self.changing.lock().await;
        if !stage::is_staged(&self.dir, data) {
            let none = |_: &SegmentEntry| false;
            let encoded = data.encoded.clone();
            let staging =
                Box::pin(Staging::begin(&self.env, &self.dir, &self.segments_dir, self.place, encoded, none)).await?;
            Box::pin(staging.copy_from(data)).await?;
        }
        let path = Box::pin(stage::commit(&self.env, &data.encoded, &self.dir, &self.segments_dir, self.place)).await?;
        let read = manifest::read(&self.env, &path, self.place).await?;
        let installed = placed(read, path, &self.dir, &self.segments_dir);
        self.kept().clear();
        self.keep(installed.clone()).await?;
        let rows = RowPages::new(self.env.clone(), self.place, installed.rows.clone());
        Ok((installed, rows))
    }

    async fn keep(&self, data: SnapshotData) -> Result<(), StoreError> {
        self.know(&data);
        {
            let mut kept = self.kept();
            kept.retain(|other| other.path != data.path);
            kept.push(data.clone());
            let surplus = kept.len().saturating_sub(KEPT);
            kept.drain(..surplus);
        }
        self.sweep(&data).await;
        // It may have been collected while the log was quicker.
        stage::discard_stale(&self.env, &self.dir, self.place, data.index()).await
    }

    /// Removes the files that nothing lists.
    async fn sweep(&self, newest: &SnapshotData) {
        let listed = self.listed();
        let rows = files::sweep_rows(&self.env, &self.dir, &listed).await;
        let segments = files::sweep_segments(&self.env, &self.segments_dir, newest, &listed).await;
        if let Err(error) = rows.and(segments) {
            // What stays only takes space; the next snapshot tries again.
            tracing::warn!(group = %self.place.group, %error, "old snapshots are not removed");
        }
    }

    /// Removes the files of a snapshot that was on its way, when nobody needs them any more.
    pub(crate) async fn release(&self, data: SnapshotData) {
        drop(data);
        if let (Ok(_changing), Some(newest)) = (self.changing.try_lock(), self.current()) {
            self.sweep(&newest).await;
        }
    }

    fn know(&self, data: &SnapshotData) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|data| data.strong_count() > 0);
        known.push(Arc::downgrade(&data.0));
    }

    fn listed(&self) -> Vec<SnapshotData> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter_map(Weak::upgrade).map(SnapshotData).collect()
    }

    fn kept(&self) -> MutexGuard<'_, Vec<SnapshotData>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A snapshot whose files are in their places.
fn placed(
    (manifest, rows, encoded): (Manifest, Vec<RowsFile>, Bytes),
    path: PathBuf,
    dir: &Path,
    segments_dir: &Path,
) -> SnapshotData {
    let rows = rows.into_iter().map(|file| (file.clone(), dir.join(file.name()))).collect();
    let segments = manifest.segments.iter().map(|entry| (*entry, segment_path(segments_dir, entry.id))).collect();
    SnapshotData::of(SnapshotFiles { manifest, rows, segments, path, encoded })
}

/// Reads all rows once: they are whole, and add up to the state hash.
async fn verify_rows<E: Env>(env: &E, place: Place, data: &SnapshotData) -> Result<(), StoreError> {
    let mut pages = RowPages::new(env.clone(), place, data.rows.clone());
    let mut sum = StateHash::default();
    while let Some(page) = pages.next().await? {
        page.iter().for_each(|(key, value)| sum.add_row(key, value));
    }
    if sum == data.manifest.state_hash {
        return Ok(());
    }
    Err(Damage::new(&data.path, 0, "rows that do not add up to the state hash", "those that were written").into())
}

#[cfg(test)]
mod tests;
