//! Taking over a snapshot that comes from elsewhere.
//!
//! Its files are collected in `staging`, each under the name that it will have, with `.part` behind while it
//! is not whole, beside the `manifest` of the offer. What is there survives a broken connection and a
//! restart, and is matched with the next offer, whoever makes it: equal bytes are taken, the others go. When
//! all is there, verified and synced, `manifest` is renamed to `commit`: from then on the snapshot counts, and
//! what remains (moving the files to their places) is repeated at start after a crash.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::files::manifest_name;
use super::manifest::{self, Manifest};
use super::{SnapshotData, SnapshotFiles, verify_rows};
use crate::env::{Disk, DiskFile, Env, OpenMode, create_dir_durable, write_whole};
use crate::error::{Damage, StoreError, io_at};
use crate::segment::{Place, SegmentEntry, segment_path};
use crate::sum::{FileHasher, FileSum, open_whole};

const STAGING: &str = "staging";
const MANIFEST: &str = "manifest";
const COMMIT: &str = "commit";
const PART: &str = ".part";
/// Read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Where the parts of a snapshot are collected.
pub(crate) struct Staging<E: Env> {
    env: E,
    dir: PathBuf,
    place: Place,
    data: SnapshotData,
}

/// A file that is being received.
pub(crate) struct StagedFile<E: Env> {
    env: E,
    file: <E::Disk as Disk>::File,
    path: PathBuf,
    part: PathBuf,
    expected: FileSum,
    hasher: FileHasher,
}

pub(super) fn staging_dir(snapshots: &Path) -> PathBuf {
    snapshots.join(STAGING)
}

pub(super) fn is_staged(snapshots: &Path, data: &SnapshotData) -> bool {
    data.path == staging_dir(snapshots).join(MANIFEST)
}

impl<E: Env> Staging<E> {
    /// Begins to collect the snapshot of `encoded`, with what of it is there already. `own` says which
    /// segment files are in their places.
    pub(super) async fn begin(
        env: &E,
        snapshots: &Path,
        segments_dir: &Path,
        place: Place,
        encoded: Bytes,
        own: impl Fn(&SegmentEntry) -> bool,
    ) -> Result<Self, StoreError> {
        let dir = staging_dir(snapshots);
        let path = dir.join(MANIFEST);
        let damaged = |found| Damage::new(&path, 0, found, "the manifest of a snapshot of this group");
        let (manifest, rows) = manifest::decode(place, &encoded).map_err(damaged)?;
        create_dir_durable(env.disk(), &dir).await.map_err(io_at("create", &dir))?;
        let mut placed = vec![];
        for file in rows {
            // A snapshot of this node has it, or an install was cut off after it was moved.
            let here = snapshots.join(file.name());
            let exists = env.disk().exists(&here).await.map_err(io_at("look for", &here))?;
            let whole = exists && sum(env, &here, file.sum.length).await? == Some(file.sum);
            let there = dir.join(file.name());
            placed.push((file, if whole { here } else { there }));
        }
        let segment = |entry: &SegmentEntry| {
            let own = own(entry).then(|| segment_path(segments_dir, entry.id));
            (*entry, own.unwrap_or_else(|| segment_path(&dir, entry.id)))
        };
        let segments = manifest.segments.iter().map(segment).collect();
        let data = SnapshotData::of(SnapshotFiles { manifest, rows: placed, encoded, path, segments });
        let staging = Self { env: env.clone(), dir, place, data };
        staging.clear_others().await?;
        let SnapshotFiles { encoded, path, .. } = &**staging.data();
        write_whole(env.disk(), &staging.dir, MANIFEST, encoded.clone()).await.map_err(io_at("write", path))?;
        Ok(staging)
    }

    /// What is being collected: it keeps its files from being removed.
    pub fn data(&self) -> &SnapshotData {
        &self.data
    }

    /// Removes what does not belong to this snapshot.
    async fn clear_others(&self) -> Result<(), StoreError> {
        let names = self.env.disk().list(&self.dir).await.map_err(io_at("list", &self.dir))?;
        for path in names.into_iter().map(|name| self.dir.join(name)) {
            let whole = path.to_string_lossy().strip_suffix(PART).map_or(path.clone(), PathBuf::from);
            if !self.data.files().any(|(of, _)| *of == whole) {
                self.env.disk().remove_file(&path).await.map_err(io_at("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Bytes that the disk has to take until all is there.
    pub async fn missing_bytes(&self) -> Result<u64, StoreError> {
        let mut missing = 0;
        for (path, expected) in self.data.files().filter(|(path, _)| path.parent() == Some(&self.dir)) {
            // What is there and wrong is written over.
            let there = self.length(path).await?.max(self.length(&part_of(path)).await?);
            missing += expected.length.saturating_sub(there);
        }
        Ok(missing)
    }

    /// Of a file; 0 when it is not there.
    async fn length(&self, path: &Path) -> Result<u64, StoreError> {
        if !self.env.disk().exists(path).await.map_err(io_at("look for", path))? {
            return Ok(0);
        }
        let file = self.env.disk().open(path, OpenMode::Read).await.map_err(io_at("open", path))?;
        file.len().await.map_err(io_at("measure", path))
    }

    /// Whether a file is whole already: in its place, or received before.
    pub async fn has(&self, path: &Path, expected: FileSum) -> Result<bool, StoreError> {
        if path.parent() != Some(&self.dir) {
            return Ok(true);
        }
        if !self.env.disk().exists(path).await.map_err(io_at("look for", path))? {
            return Ok(false);
        }
        if sum(&self.env, path, expected.length).await? == Some(expected) {
            return Ok(true);
        }
        // Of an earlier offer: the segment has grown since. Its beginning may count.
        let part = part_of(path);
        self.env.disk().rename(path, &part).await.map_err(io_at("rename", path))?;
        Ok(false)
    }

    /// Goes on with a file. What was received before is counted, and `seed` copied when nothing was.
    pub async fn file(&self, path: &Path, expected: FileSum, seed: Option<&Path>) -> Result<StagedFile<E>, StoreError> {
        let (env, part) = (self.env.clone(), part_of(path));
        let file = env.disk().open(&part, OpenMode::Create).await.map_err(io_at("create", &part))?;
        let mut file = StagedFile { env, file, path: path.into(), part, expected, hasher: FileHasher::default() };
        file.count().await?;
        if let Some(seed) = seed.filter(|_| file.hasher.length() == 0) {
            file.copy(seed, true).await?;
        }
        Ok(file)
    }

    /// Verifies that rows and segments belong together; all files are there.
    pub async fn complete(&self) -> Result<SnapshotData, StoreError> {
        verify_rows(&self.env, self.place, &self.data).await?;
        self.env.disk().sync_dir(&self.dir).await.map_err(io_at("sync", &self.dir))?;
        Ok(self.data.clone())
    }

    /// Collects the files of a snapshot on this disk.
    pub(super) async fn copy_from(&self, from: &SnapshotData) -> Result<SnapshotData, StoreError> {
        let sources: Vec<_> = from.files().map(|(path, _)| path.to_path_buf()).collect();
        for ((path, expected), source) in self.data.files().zip(sources) {
            if !self.has(path, expected).await? {
                let mut file = self.file(path, expected, None).await?;
                // Nobody says which of the bytes before a crash are right.
                file.cut(0).expect("the beginning is the end of no block");
                file.copy(&source, false).await?;
                file.finish().await?;
            }
        }
        self.complete().await
    }
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PART);
    name.into()
}

impl<E: Env> StagedFile<E> {
    /// Counts what was received before a restart.
    async fn count(&mut self) -> Result<(), StoreError> {
        let length = self.file.len().await.map_err(io_at("measure", &self.part))?.min(self.expected.length);
        self.hasher.read(&self.file, length).await.map_err(io_at("read", &self.part))
    }

    async fn copy(&mut self, from: &Path, short: bool) -> Result<(), StoreError> {
        let source = match short {
            false => open_whole(&self.env, from, self.expected.length).await?,
            true if !self.env.disk().exists(from).await.map_err(io_at("look for", from))? => return Ok(()),
            true => self.env.disk().open(from, OpenMode::Read).await.map_err(io_at("open", from))?,
        };
        let length = source.len().await.map_err(io_at("measure", from))?.min(self.expected.length);
        while self.hasher.length() < length {
            let (at, piece) = (self.hasher.length(), PIECE_BYTES.min(length - self.hasher.length()));
            let bytes = source.read_at(at, piece as usize).await.map_err(io_at("read", from))?;
            self.write(bytes).await?;
        }
        Ok(())
    }

    /// The hashes of the whole blocks that are there: the sender says how many of them are right.
    pub fn blocks(&self) -> Vec<[u8; 32]> {
        self.hasher.whole_blocks().to_vec()
    }

    /// Takes only the bytes before `length`, a multiple of the block size, for right.
    pub fn cut(&mut self, length: u64) -> Result<(), String> {
        self.hasher.cut(length)
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.hasher.length()
    }

    /// Whether nothing is missing any more.
    pub fn is_whole(&self) -> bool {
        self.is_full() && self.hasher.sum() == self.expected
    }

    /// Whether all bytes are there, right or wrong.
    pub fn is_full(&self) -> bool {
        self.length() == self.expected.length
    }

    /// Appends a piece.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let (at, length) = (self.hasher.length(), bytes.len() as u64);
        if at + length > self.expected.length {
            let found = format!("{} bytes", at + length);
            return Err(Damage::new(&self.part, at, found, format!("{} bytes", self.expected.length)).into());
        }
        self.hasher.update(&bytes);
        self.file.write_at(at, vec![bytes]).await.map_err(io_at("write", &self.part))?;
        // A hint only: the sync at the end finds less to do.
        self.file.writeback(at, length).await.ok();
        Ok(())
    }

    /// Verifies the whole and makes it durable under its name.
    pub async fn finish(self) -> Result<(), StoreError> {
        if self.hasher.sum() != self.expected {
            self.env.disk().remove_file(&self.part).await.map_err(io_at("remove", &self.part))?;
            return Err(Damage::new(&self.path, 0, "bytes with another hash", "the hash in the manifest").into());
        }
        self.file.set_len(self.expected.length).await.map_err(io_at("cut", &self.part))?;
        self.file.sync_data().await.map_err(io_at("sync", &self.part))?;
        self.env.disk().rename(&self.part, &self.path).await.map_err(io_at("rename", &self.path))
    }
}

/// Length and hash of the first `length` bytes of a file; none when it is shorter.
async fn sum<E: Env>(env: &E, path: &Path, length: u64) -> Result<Option<FileSum>, StoreError> {
    let file = env.disk().open(path, OpenMode::Read).await.map_err(io_at("open", path))?;
    if file.len().await.map_err(io_at("measure", path))? < length {
        return Ok(None);
    }
    let mut hasher = FileHasher::default();
    hasher.read(&file, length).await.map_err(io_at("read", path))?;
    Ok(Some(hasher.sum()))
}

/// Makes a complete staging directory count and moves its files; answers the manifest's path.
pub(super) async fn commit<E: Env>(
    env: &E,
    encoded: &Bytes,
    snapshots: &Path,
    segments_dir: &Path,
    place: Place,
) -> Result<PathBuf, StoreError> {
    let staged = staging_dir(snapshots);
    let decided = staged.join(COMMIT);
    let (_, _, found) = manifest::read(env, &staged.join(MANIFEST), place).await?;
    if found != encoded {
        return Err(Damage::new(&staged, 0, "another snapshot", "the one that is to be installed").into());
    }
    env.disk().rename(&staged.join(MANIFEST), &decided).await.map_err(io_at("rename", &decided))?;
    env.disk().sync_dir(&staged).await.map_err(io_at("sync", &staged))?;
    move_files(env, snapshots, segments_dir, place).await
}

async fn move_files<E: Env>(
    env: &E,
    snapshots: &Path,
    segments_dir: &Path,
    place: Place,
) -> Result<PathBuf, StoreError> {
    let staged = staging_dir(snapshots);
    let decided = staged.join(COMMIT);
    let (manifest, rows, _) = manifest::read(env, &decided, place).await?;
    let rows = rows.iter().map(|file| (staged.join(file.name()), snapshots.join(file.name())));
    let segments = manifest.segments.iter();
    let segments = segments.map(|entry| (segment_path(&staged, entry.id), segment_path(segments_dir, entry.id)));
    for (from, to) in rows.chain(segments) {
        if env.disk().exists(&from).await.map_err(io_at("look for", &from))? {
            env.disk().rename(&from, &to).await.map_err(io_at("rename", &to))?;
        }
    }
    env.disk().sync_dir(segments_dir).await.map_err(io_at("sync", segments_dir))?;
    env.disk().sync_dir(snapshots).await.map_err(io_at("sync", snapshots))?;
    let path = snapshots.join(manifest_name(manifest.meta.last_log_id));
    env.disk().rename(&decided, &path).await.map_err(io_at("rename", &path))?;
    env.disk().sync_dir(snapshots).await.map_err(io_at("sync", snapshots))?;
    env.disk().remove_dir_all(&staged).await.map_err(io_at("remove", &staged))?;
    Ok(path)
}

/// At start: finishes what was decided, and keeps what was begun when one knows of what.
pub(super) async fn resume<E: Env>(
    env: &E,
    snapshots: &Path,
    segments_dir: &Path,
    place: Place,
) -> Result<(), StoreError> {
    let staged = staging_dir(snapshots);
    let decided = staged.join(COMMIT);
    if env.disk().exists(&decided).await.map_err(io_at("look for", &decided))? {
        return move_files(env, snapshots, segments_dir, place).await.map(drop);
    }
    if staged_manifest(env, snapshots, place).await?.is_none() {
        env.disk().remove_dir_all(&staged).await.map_err(io_at("remove", &staged))?;
    }
    Ok(())
}

/// What is being collected, if that can be told.
async fn staged_manifest<E: Env>(env: &E, snapshots: &Path, place: Place) -> Result<Option<Manifest>, StoreError> {
    let path = staging_dir(snapshots).join(MANIFEST);
    if !env.disk().exists(&path).await.map_err(io_at("look for", &path))? {
        return Ok(None);
    }
    match manifest::read(env, &path, place).await {
        Ok((manifest, ..)) => Ok(Some(manifest)),
        Err(StoreError::Damaged(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes what was collected of a snapshot that is not ahead of `index` any more.
pub(super) async fn discard_stale<E: Env>(
    env: &E,
    snapshots: &Path,
    place: Place,
    index: Option<u64>,
) -> Result<(), StoreError> {
    let staged = staging_dir(snapshots);
    if staged_manifest(env, snapshots, place).await?.is_some_and(|manifest| manifest.index() <= index) {
        env.disk().remove_dir_all(&staged).await.map_err(io_at("remove", &staged))?;
    }
    Ok(())
}
