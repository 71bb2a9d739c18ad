//! Message bodies of a shard, appended in apply order to files that are sealed where the machine says.
//!
//! Between snapshots the files need no fsync: the write-ahead log holds what they hold. On start they
//! are cut to the lengths in the snapshot used, and replay writes the rest again, byte by byte the same.
//! Every read verifies checksum, room and sequence; what does not match is [`TimelineError::Corrupt`]
//! and is never served.

mod footer;
mod format;
mod ledger;
mod load;
mod lookup;
mod lru;
mod read;
mod scrub;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use unibus_machine::StoredDelivery;
use unibus_proto::id::RoomId;
use unibus_proto::position::Sequence;

use crate::env::{Disk, Env, OpenMode};
use crate::error::StoreError;

pub use format::Place;
use ledger::Ledger;
use lookup::IndexCache;
use write::Writer;

/// Open files kept for reading; a shard rarely reads more at once.
const FILES_MAX: usize = 64;

/// A file of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// Its id in the shard.
    pub id: u64,
    /// Bytes: all of a sealed file, a prefix of the open one.
    pub length: u64,
    /// Their [`FileSum`](crate::sum::FileSum).
    pub hash: [u8; 32],
    /// Whether it is complete.
    pub sealed: bool,
}

/// Why a timeline cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimelineError {
    /// The position is not on the timeline.
    #[error("position outside the timeline: it reaches from {floor} to {head}")]
    OutOfRange {
        /// The oldest sequence.
        floor: Sequence,
        /// The newest sequence.
        head: Sequence,
    },
    /// The bytes on disk are not what was written; they are not served.
    #[error("{0}")]
    Corrupt(String),
    /// The shard stores nothing of this room.
    #[error("the shard stores no such room")]
    NotFound,
}

/// The segments of one shard.
pub struct Segments<E: Env> {
    env: E,
    place: Place,
    dir: PathBuf,
    tail_bytes_max: u64,
    ledger: Mutex<Ledger>,
    index: Mutex<IndexCache>,
    files: Mutex<OpenFiles<E>>,
    writer: Writer,
    /// What scrubbing found damaged.
    damaged: Mutex<BTreeSet<u64>>,
}

/// Files that are open, by segment.
struct OpenFiles<E: Env> {
    by_segment: BTreeMap<u64, <E::Disk as Disk>::File>,
    /// Counts the snapshots that put other files in their places, and the files that were dropped: one that
    /// was being opened meanwhile may be a file that no longer has a name.
    epoch: u64,
}

/// The file of segment `id` in `dir`.
pub fn segment_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:012}.segment"))
}

/// The segment whose file has this name.
pub fn segment_id(name: &str) -> Option<u64> {
    name.strip_suffix(".segment")?.parse().ok()
}

impl<E: Env> Segments<E> {
    /// The files in `dir` as `manifest` lists them: anything beyond is cut off or removed, but for the
    /// files `keep`. Nothing is changed unless all of them are whole.
    pub async fn load(
        env: E,
        dir: PathBuf,
        place: Place,
        tail_bytes_max: u64,
        manifest: &[SegmentEntry],
        keep: &BTreeSet<u64>,
    ) -> Result<Self, StoreError> {
        let ledger = Box::pin(load::load(&env, &dir, place, manifest, keep)).await?;
        Ok(Self {
            env,
            place,
            dir,
            tail_bytes_max,
            ledger: Mutex::new(ledger),
            index: Mutex::new(IndexCache::new()),
            files: Mutex::new(OpenFiles { by_segment: BTreeMap::new(), epoch: 0 }),
            writer: Writer::default(),
            damaged: Mutex::default(),
        })
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Appends records in memory; [`flush`](Self::flush) writes them out.
    pub fn append(&self, segment: u64, room: RoomId, deliveries: &[StoredDelivery]) -> Result<(), String> {
        self.ledger().append(segment, room, deliveries)
    }

    /// Seals the open file.
    pub fn cut(&self, segment: u64) -> Result<SegmentEntry, String> {
        self.ledger().cut(segment)
    }

    /// A sealed file.
    pub fn sealed(&self, id: u64) -> Option<SegmentEntry> {
        self.ledger().sealed(id).map(|sealed| sealed.entry)
    }

    /// Forgets a sealed file of which no record counts any more. The file itself goes when no snapshot
    /// lists it either.
    pub fn drop_sealed(&self, id: u64) -> bool {
        self.index().clear();
        let is_dropped = self.ledger().drop_sealed(id);
        // An open file keeps its space when its name is gone.
        let mut files = self.files();
        files.by_segment.remove(&id);
        files.epoch += 1;
        is_dropped
    }

    /// What waits in memory to be written.
    #[cfg(test)]
    pub(crate) fn unwritten_bytes(&self) -> u64 {
        self.ledger().unwritten_bytes()
    }

    /// All files as they stand.
    pub fn manifest(&self) -> Vec<SegmentEntry> {
        self.ledger().manifest()
    }

    async fn file(&self, segment: u64, mode: OpenMode) -> io::Result<<E::Disk as Disk>::File> {
        let (known, epoch) = {
            let files = self.files();
            (files.by_segment.get(&segment).cloned(), files.epoch)
        };
        if let Some(file) = known {
            return Ok(file);
        }
        // One handle serves readers and the writer: it is opened for both.
        let mode = if mode == OpenMode::Read { OpenMode::Write } else { mode };
        let file = self.env.disk().open(&segment_path(&self.dir, segment), mode).await?;
        let is_listed = self.ledger().lists(segment);
        let mut files = self.files();
        if is_listed && files.epoch == epoch {
            if files.by_segment.len() >= FILES_MAX {
                files.by_segment.pop_first();
            }
            files.by_segment.insert(segment, file.clone());
        }
        Ok(file)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, IndexCache> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, OpenFiles<E>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
