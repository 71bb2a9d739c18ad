//! Snapshots of a group: its rows at an index in our own checksummed format, with a manifest of the
//! segment files that belong to them.
//!
//! The last two are kept; the log is purged below the older one only, so that either can be built on.
//! A snapshot of a peer is received into a staging directory, verified by hash, and takes effect by one
//! rename; what a crash leaves half done vanishes, what was renamed is finished at the next start.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::env::{Disk, Env, create_dir_durable};
use crate::error::{Damage, StoreError, io_at};
use crate::segment::{Place, SegmentEntry, Segments, segment_path};
use crate::sum::FileSum;
use crate::types::{LogId, SnapshotMeta};

mod format;
mod rows;
mod stage;

pub use format::Manifest;
pub use rows::{PAGE_ROWS, RowPage, RowPages, RowSource};
pub(crate) use stage::{Staging, segment_name};

/// How many snapshots are kept.
const KEPT: usize = 2;
const SUFFIX: &str = ".snapshot";

/// A snapshot on disk: what openraft carries around. Clones share it.
#[derive(Clone, Debug)]
pub struct SnapshotData(Arc<SnapshotFiles>);

/// The files of a snapshot.
#[derive(Debug)]
pub struct SnapshotFiles {
    /// What it covers.
    pub manifest: Manifest,
    /// The rows file.
    pub rows: PathBuf,
    /// Length and hash of the rows file.
    pub rows_sum: FileSum,
    /// Where each segment file of the manifest is.
    pub segments: Vec<(SegmentEntry, PathBuf)>,
}

impl std::ops::Deref for SnapshotData {
    type Target = SnapshotFiles;

    fn deref(&self) -> &SnapshotFiles {
        &self.0
    }
}

impl SnapshotData {
    fn new(manifest: Manifest, rows: PathBuf, rows_sum: FileSum, segments_dir: &Path) -> Self {
        let segments = manifest.segments.iter().map(|entry| (*entry, segment_path(segments_dir, entry.id))).collect();
        Self(Arc::new(SnapshotFiles { manifest, rows, rows_sum, segments }))
    }

    /// What it covers.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.manifest.meta
    }

    /// Index of the last entry that it holds.
    pub fn index(&self) -> Option<u64> {
        self.manifest.meta.last_log_id.map(|id| id.index)
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
}

/// What a group starts from.
pub struct Base<E: Env> {
    /// The snapshots that are whole.
    pub snapshots: Snapshots<E>,
    /// Rows and coverage of the newest of them; none when there is none.
    pub rows: Option<(Manifest, RowPages)>,
    /// Whether the base is the tree that was offered, not a snapshot.
    pub is_tree: bool,
    /// The segments, cut to it.
    pub segments: Segments<E>,
}

impl<E: Env> Snapshots<E> {
    /// Loads the newest snapshot that is whole, with its segments. `purged` is the last index that the
    /// log no longer has: a base below it would leave a gap. `tree` is what the tables on disk hold: the
    /// base, if no snapshot is newer.
    pub async fn open(
        env: &E,
        group_dir: &Path,
        place: Place,
        tail_bytes_max: u64,
        purged: Option<u64>,
        tree: Option<&Manifest>,
    ) -> Result<Base<E>, StoreError> {
        let (dir, segments_dir) = (group_dir.join("snapshots"), group_dir.join("segments"));
        create_dir_durable(env.disk(), &dir).await.map_err(io_at("create", &dir))?;
        create_dir_durable(env.disk(), &segments_dir).await.map_err(io_at("create", &segments_dir))?;
        Box::pin(stage::finish_or_discard(env, &dir, &segments_dir, place)).await?;
        let mut kept = vec![];
        let mut base = None;
        let mut damage = None;
        let names = snapshot_names(env, &dir).await?;
        if let Some(tree) = tree.filter(|tree| names.last() <= Some(&file_name(tree.meta.last_log_id))) {
            let (dir, others) = (segments_dir.clone(), BTreeSet::new());
            let loaded = Segments::load(env.clone(), dir, place, tail_bytes_max, &tree.segments, &others);
            match Box::pin(loaded).await {
                Ok(segments) => base = Some((tree.clone(), None, segments)),
                Err(error @ StoreError::Io { .. }) => return Err(error),
                Err(error) => tracing::warn!(group = %place.group, %error, "tables are not used, a snapshot is tried"),
            }
        }
        let is_tree = base.is_some();
        for name in names.into_iter().rev() {
            let path = dir.join(&name);
            match Box::pin(load_one(env, &path, place, &segments_dir, tail_bytes_max, base.is_some())).await {
                Ok((data, rows, segments)) => {
                    kept.insert(0, data.clone());
                    base = base.or(segments.map(|segments| (data.manifest.clone(), Some(rows), segments)));
                }
                Err(error @ (StoreError::Io { .. } | StoreError::Identity(_))) => return Err(error),
                Err(error) => {
                    tracing::error!(group = %place.group, %error, "snapshot is not used, an older one is tried");
                    damage = Some(error);
                    discard(env, &dir, &path).await?;
                }
            }
        }
        let index = base.as_ref().and_then(|(manifest, ..)| manifest.meta.last_log_id).map(|id| id.index);
        if index < purged {
            let found = format!("snapshots up to index {index:?} while the log begins after {purged:?}");
            let missing = Damage::new(&dir, 0, found, "a snapshot at or above the log's beginning");
            return Err(damage.unwrap_or_else(|| missing.into()));
        }
        let snapshots =
            Self { env: env.clone(), place, dir, segments_dir: segments_dir.clone(), kept: Mutex::new(kept) };
        let Some((manifest, rows, segments)) = base else {
            let segments =
                Segments::load(env.clone(), segments_dir, place, tail_bytes_max, &[], &BTreeSet::new()).await?;
            return Ok(Base { snapshots, rows: None, is_tree, segments });
        };
        Ok(Base { snapshots, rows: rows.map(|rows| (manifest, rows)), is_tree, segments })
    }

    /// The newest snapshot.
    pub fn current(&self) -> Option<SnapshotData> {
        self.kept().last().cloned()
    }

    /// Up to which index the log may be purged: the older of two snapshots.
    pub fn purge_bound(&self) -> Option<u64> {
        let kept = self.kept();
        kept.len().checked_sub(KEPT).and_then(|older| kept[older].index())
    }

    /// Writes a snapshot of `rows`; the segments of its manifest must be durable already.
    pub async fn save(&self, manifest: Manifest, rows: &dyn RowSource) -> Result<SnapshotData, StoreError> {
        let path = self.dir.join(file_name(manifest.meta.last_log_id));
        let tmp = path.with_extension("tmp");
        let sum = format::write(&self.env, &tmp, self.place, &manifest, rows).await?;
        self.env.disk().rename(&tmp, &path).await.map_err(io_at("rename", &path))?;
        self.env.disk().sync_dir(&self.dir).await.map_err(io_at("sync", &self.dir))?;
        let data = SnapshotData::new(manifest, path, sum, &self.segments_dir);
        self.keep(data.clone()).await;
        Ok(data)
    }

    /// A new, empty place for a snapshot that comes from elsewhere.
    pub(crate) async fn stage(&self) -> Result<Staging<E>, StoreError> {
        Staging::create(self.env.clone(), &self.dir, self.place).await
    }

    /// Makes a snapshot from elsewhere this group's newest: one rename decides.
    pub(crate) async fn install(&self, data: &SnapshotData) -> Result<(SnapshotData, RowPages), StoreError> {
        let staged = match data.rows.parent().filter(|parent| stage::is_staging(&self.dir, parent)) {
            Some(dir) => dir.to_path_buf(),
            None => Box::pin(self.stage().await?.copy_from(data)).await?,
        };
        let path = Box::pin(stage::commit(&self.env, &staged, &self.dir, &self.segments_dir, self.place)).await?;
        let (manifest, rows, sum) = format::read(&self.env, &path, self.place).await?;
        let installed = SnapshotData::new(manifest, path, sum, &self.segments_dir);
        self.kept().clear();
        self.keep(installed.clone()).await;
        Ok((installed, RowPages::new(rows)))
    }

    async fn keep(&self, data: SnapshotData) {
        let keep: Vec<PathBuf> = {
            let mut kept = self.kept();
            kept.retain(|other| other.rows != data.rows);
            kept.push(data);
            // One that was being built while a newer one was installed does not become the newest.
            kept.sort_by_key(SnapshotData::index);
            let surplus = kept.len().saturating_sub(KEPT);
            kept.drain(..surplus);
            kept.iter().map(|data| data.rows.clone()).collect()
        };
        let Ok(names) = snapshot_names(&self.env, &self.dir).await else { return };
        for path in names.into_iter().map(|name| self.dir.join(name)).filter(|path| !keep.contains(path)) {
            // A file that stays only takes space; the next snapshot tries again.
            if let Err(error) = self.env.disk().remove_file(&path).await {
                tracing::warn!(group = %self.place.group, path = %path.display(), %error, "old snapshot is not removed");
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<SnapshotData>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A snapshot, its rows, and its segments unless a newer base was found already.
type Loaded<E> = (SnapshotData, RowPages, Option<Segments<E>>);

async fn load_one<E: Env>(
    env: &E,
    path: &Path,
    place: Place,
    segments_dir: &Path,
    tail_bytes_max: u64,
    have_base: bool,
) -> Result<Loaded<E>, StoreError> {
    let (manifest, rows, sum) = format::read(env, path, place).await?;
    let segments = match have_base {
        true => None,
        false => {
            let dir = segments_dir.to_path_buf();
            Some(Segments::load(env.clone(), dir, place, tail_bytes_max, &manifest.segments, &BTreeSet::new()).await?)
        }
    };
    Ok((SnapshotData::new(manifest, path.to_path_buf(), sum, segments_dir), RowPages::new(rows), segments))
}

/// Takes a damaged file out of the way, for analysis.
async fn discard<E: Env>(env: &E, dir: &Path, path: &Path) -> Result<(), StoreError> {
    let to = path.with_extension("damaged");
    env.disk().rename(path, &to).await.map_err(io_at("rename", path))?;
    env.disk().sync_dir(dir).await.map_err(io_at("sync", dir))
}

async fn snapshot_names<E: Env>(env: &E, dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = env.disk().list(dir).await.map_err(io_at("list", dir))?;
    names.retain(|name| name.ends_with(SUFFIX));
    Ok(names)
}

/// Names sort by index.
fn file_name(last: Option<LogId>) -> String {
    match last {
        Some(id) => format!("{:020}-{}-{}{SUFFIX}", id.index + 1, id.leader_id.term, id.leader_id.node_id),
        None => format!("{:020}-0-0{SUFFIX}", 0),
    }
}

#[cfg(test)]
mod tests;
