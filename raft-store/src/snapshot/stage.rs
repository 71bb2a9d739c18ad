//! Taking over a snapshot that comes from elsewhere.
//!
//! Its files are collected in `staging-N`: `rows`, and `segment-<id>` for each segment. When all are
//! there, verified and synced, `rows` is renamed to `commit`: from then on the snapshot counts, and what
//! remains (moving the files to their places) is repeated at start after a crash.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::format;
use super::{SnapshotData, file_name};
use crate::env::{Disk, DiskFile, Env, OpenMode, Rng, create_dir_durable};
use crate::error::{Damage, StoreError, io_at};
use crate::segment::{Place, segment_path};
use crate::sum::{FileHasher, FileSum};

const STAGING: &str = "staging-";
const ROWS: &str = "rows";
const COMMIT: &str = "commit";

/// A directory in which a snapshot is collected.
pub(crate) struct Staging<E: Env> {
    env: E,
    dir: PathBuf,
    place: Place,
}

/// A file that is being received.
pub(crate) struct StagedFile<E: Env> {
    file: <E::Disk as Disk>::File,
    path: PathBuf,
    hasher: FileHasher,
}

/// The name of segment `id` in a staging directory and on the wire.
pub(crate) fn segment_name(id: u64) -> String {
    format!("segment-{id}")
}

pub(super) fn is_staging(snapshots: &Path, dir: &Path) -> bool {
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned());
    dir.parent() == Some(snapshots) && name.is_some_and(|name| name.starts_with(STAGING))
}

impl<E: Env> Staging<E> {
    pub(super) async fn create(env: E, snapshots: &Path, place: Place) -> Result<Self, StoreError> {
        let dir = snapshots.join(format!("{STAGING}{:016x}", env.rng().next_u64()));
        create_dir_durable(env.disk(), &dir).await.map_err(io_at("create", &dir))?;
        Ok(Self { env, dir, place })
    }

    /// Starts the file `name`.
    pub async fn file(&self, name: &str) -> Result<StagedFile<E>, StoreError> {
        let path = self.dir.join(name);
        let file = self.env.disk().open(&path, OpenMode::CreateNew).await.map_err(io_at("create", &path))?;
        Ok(StagedFile { file, path, hasher: FileHasher::default() })
    }

    /// Verifies that rows and segments belong together; all files were finished before.
    pub async fn complete(&self) -> Result<SnapshotData, StoreError> {
        let rows = self.dir.join(ROWS);
        let (manifest, _, sum) = format::read(&self.env, &rows, self.place).await?;
        let mut segments = vec![];
        for entry in &manifest.segments {
            let path = self.dir.join(segment_name(entry.id));
            let expected = FileSum { length: entry.length, hash: entry.hash };
            let found = format::sum(&self.env, &path, entry.length).await?;
            if found != expected {
                return Err(Damage::new(&path, 0, "bytes with another hash", "the hash in the manifest").into());
            }
            segments.push((*entry, path));
        }
        self.env.disk().sync_dir(&self.dir).await.map_err(io_at("sync", &self.dir))?;
        Ok(SnapshotData(super::SnapshotFiles { manifest, rows, rows_sum: sum, segments }.into()))
    }

    /// Throws the directory away.
    pub async fn discard(self) {
        if let Err(error) = self.env.disk().remove_dir_all(&self.dir).await {
            tracing::warn!(dir = %self.dir.display(), %error, "staging directory is not removed");
        }
    }

    /// Collects the files of a snapshot on this disk; answers the directory.
    pub(super) async fn copy_from(self, data: &SnapshotData) -> Result<PathBuf, StoreError> {
        self.copy(&data.rows, data.rows_sum.length, ROWS).await?;
        for (entry, path) in &data.segments {
            self.copy(path, entry.length, &segment_name(entry.id)).await?;
        }
        self.complete().await?;
        Ok(self.dir)
    }

    async fn copy(&self, from: &Path, length: u64, name: &str) -> Result<(), StoreError> {
        let source = self.env.disk().open(from, OpenMode::Read).await.map_err(io_at("open", from))?;
        let mut to = self.file(name).await?;
        while to.length() < length {
            let piece = (length - to.length()).min(format::PIECE_BYTES as u64) as usize;
            to.write(source.read_at(to.length(), piece).await.map_err(io_at("read", from))?).await?;
        }
        to.finish().await.map(|_| ())
    }
}

impl<E: Env> StagedFile<E> {
    /// Appends a piece.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let at = self.hasher.length();
        self.hasher.update(&bytes);
        self.file.write_at(at, vec![bytes]).await.map_err(io_at("write", &self.path))
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.hasher.length()
    }

    /// Makes the file durable; answers what it holds.
    pub async fn finish(self) -> Result<FileSum, StoreError> {
        self.file.sync_data().await.map_err(io_at("sync", &self.path))?;
        Ok(self.hasher.sum())
    }
}

/// Makes a complete staging directory count and moves its files; answers the rows file.
pub(super) async fn commit<E: Env>(
    env: &E,
    staged: &Path,
    snapshots: &Path,
    segments_dir: &Path,
    place: Place,
) -> Result<PathBuf, StoreError> {
    let decided = staged.join(COMMIT);
    env.disk().rename(&staged.join(ROWS), &decided).await.map_err(io_at("rename", &decided))?;
    env.disk().sync_dir(staged).await.map_err(io_at("sync", staged))?;
    env.disk().sync_dir(snapshots).await.map_err(io_at("sync", snapshots))?;
    move_files(env, staged, snapshots, segments_dir, place).await
}

async fn move_files<E: Env>(
    env: &E,
    staged: &Path,
    snapshots: &Path,
    segments_dir: &Path,
    place: Place,
) -> Result<PathBuf, StoreError> {
    let decided = staged.join(COMMIT);
    let (manifest, _, _) = format::read(env, &decided, place).await?;
    for entry in &manifest.segments {
        let from = staged.join(segment_name(entry.id));
        if env.disk().exists(&from).await.map_err(io_at("look for", &from))? {
            let to = segment_path(segments_dir, entry.id);
            env.disk().rename(&from, &to).await.map_err(io_at("rename", &to))?;
        }
    }
    env.disk().sync_dir(segments_dir).await.map_err(io_at("sync", segments_dir))?;
    let rows = snapshots.join(file_name(manifest.meta.last_log_id));
    env.disk().rename(&decided, &rows).await.map_err(io_at("rename", &rows))?;
    env.disk().sync_dir(snapshots).await.map_err(io_at("sync", snapshots))?;
    env.disk().remove_dir_all(staged).await.map_err(io_at("remove", staged))?;
    Ok(rows)
}

/// At start: finishes what was decided, removes what was not.
pub(super) async fn finish_or_discard<E: Env>(
    env: &E,
    snapshots: &Path,
    segments_dir: &Path,
    place: Place,
) -> Result<(), StoreError> {
    for name in env.disk().list(snapshots).await.map_err(io_at("list", snapshots))? {
        let path = snapshots.join(&name);
        if name.ends_with(".tmp") {
            env.disk().remove_file(&path).await.map_err(io_at("remove", &path))?;
        } else if name.starts_with(STAGING) {
            let decided = path.join(COMMIT);
            if env.disk().exists(&decided).await.map_err(io_at("look for", &decided))? {
                move_files(env, &path, snapshots, segments_dir, place).await?;
            } else {
                env.disk().remove_dir_all(&path).await.map_err(io_at("remove", &path))?;
            }
        }
    }
    Ok(())
}
