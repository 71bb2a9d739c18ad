//! Rows on their way into and out of a snapshot, page by page: there may be more than fit into memory.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes, BytesMut};
use futures::future::BoxFuture;

use super::block::{self, BlockBuilder, FILE_BYTES, HEADER_BYTES};
use super::manifest::RowsFile;
use crate::env::{Disk, DiskFile, Env, OpenMode};
use crate::error::{Damage, StoreError, io_at};
use crate::segment::Place;
use crate::sum::{FileHasher, open_whole};

/// Rows of one page: enough to be few, small enough to lie in memory.
pub const PAGE_ROWS: usize = 1024;
/// Read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Rows, ascending by key.
pub type RowPage = Vec<(Bytes, Bytes)>;

/// Where the rows of a snapshot come from: they do not change while it is written.
pub trait RowSource: Send + Sync {
    /// The first `limit` rows whose key is greater than `after`; none of them after the last one.
    fn scan<'a>(&'a self, after: Option<&'a [u8]>, limit: usize) -> BoxFuture<'a, Result<RowPage, StoreError>>;
}

/// Writes rows into files named by their hashes; they are durable when the directory is synced.
pub(super) async fn write<E: Env>(
    env: &E,
    dir: &Path,
    place: Place,
    rows: &dyn RowSource,
) -> Result<Vec<RowsFile>, StoreError> {
    let mut writer = RowsWriter { env, dir, place, done: vec![], open: None, block: BlockBuilder::default() };
    let mut last: Option<Bytes> = None;
    loop {
        let page = rows.scan(last.as_deref(), PAGE_ROWS).await?;
        let Some((key, _)) = page.last() else { return writer.finish().await };
        last = Some(key.clone());
        for (key, value) in &page {
            writer.push(key, value).await?;
        }
    }
}

struct RowsWriter<'a, E: Env> {
    env: &'a E,
    dir: &'a Path,
    place: Place,
    done: Vec<RowsFile>,
    open: Option<OpenRows<<E::Disk as Disk>::File>>,
    block: BlockBuilder,
}

/// The file that is being written.
struct OpenRows<F> {
    file: F,
    path: PathBuf,
    first_key: Bytes,
    rows: u64,
    hasher: FileHasher,
}

impl<F: DiskFile> OpenRows<F> {
    async fn put(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let at = self.hasher.length();
        self.hasher.update(&bytes);
        let length = bytes.len() as u64;
        self.file.write_at(at, vec![bytes]).await.map_err(io_at("write", &self.path))?;
        // A hint only: the sync that follows finds less to do.
        self.file.writeback(at, length).await.ok();
        Ok(())
    }
}

impl<E: Env> RowsWriter<'_, E> {
    async fn push(&mut self, key: &Bytes, value: &Bytes) -> Result<(), StoreError> {
        if self.open.is_none() {
            let path = self.dir.join(format!("rows-{}.tmp", self.done.len()));
            let file = self.env.disk().open(&path, OpenMode::Truncate).await.map_err(io_at("create", &path))?;
            let mut open = OpenRows { file, path, first_key: key.clone(), rows: 0, hasher: FileHasher::default() };
            open.put(block::header(self.place)).await?;
            self.open = Some(open);
        }
        self.block.push(key, value);
        if self.block.is_full() { self.end_block().await } else { Ok(()) }
    }

    async fn end_block(&mut self) -> Result<(), StoreError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if self.block.rows() > 0 {
            open.rows += u64::from(self.block.rows());
            open.put(self.block.take(self.place, open.hasher.length())).await?;
        }
        if open.hasher.length() >= FILE_BYTES { self.end_file().await } else { Ok(()) }
    }

    async fn end_file(&mut self) -> Result<(), StoreError> {
        let Some(OpenRows { file, path, first_key, rows, hasher }) = self.open.take() else { return Ok(()) };
        // A failed sync loses this file alone: it is written anew, never synced again.
        file.sync_data().await.map_err(io_at("sync", &path))?;
        let file = RowsFile { first_key, rows, sum: hasher.sum() };
        let to = self.dir.join(file.name());
        self.env.disk().rename(&path, &to).await.map_err(io_at("rename", &to))?;
        self.done.push(file);
        Ok(())
    }

    async fn finish(mut self) -> Result<Vec<RowsFile>, StoreError> {
        self.end_block().await?;
        self.end_file().await?;
        Ok(self.done)
    }
}

/// The rows of a snapshot, page by page. Each page was verified; the whole file is when its last page was
/// taken, and nothing may be believed for good before the last one of all.
pub struct RowPages<E: Env> {
    env: E,
    place: Place,
    files: VecDeque<(RowsFile, PathBuf)>,
    reading: Option<Reading<<E::Disk as Disk>::File>>,
    #[cfg(test)]
    memory: Option<RowPage>,
}

/// The file that is being read.
struct Reading<F> {
    file: F,
    path: PathBuf,
    expected: RowsFile,
    hasher: FileHasher,
    rows: u64,
    /// Read and not yet taken; it begins at `at`.
    rest: Bytes,
    at: u64,
}

impl<E: Env> RowPages<E> {
    pub(super) fn new(env: E, place: Place, files: impl IntoIterator<Item = (RowsFile, PathBuf)>) -> Self {
        Self {
            env,
            place,
            files: files.into_iter().collect(),
            reading: None,
            #[cfg(test)]
            memory: None,
        }
    }

    /// Rows that were never in a file.
    #[cfg(test)]
    pub(crate) fn of(env: E, place: Place, rows: RowPage) -> Self {
        Self { memory: Some(rows), ..Self::new(env, place, []) }
    }

    /// The next rows; none after the last one.
    pub async fn next(&mut self) -> Result<Option<RowPage>, StoreError> {
        #[cfg(test)]
        if let Some(rows) = self.memory.take() {
            return Ok(Some(rows));
        }
        loop {
            let Some(reading) = &mut self.reading else {
                let Some((expected, path)) = self.files.pop_front() else { return Ok(None) };
                self.reading = Some(Reading::open(&self.env, self.place, expected, path).await?);
                continue;
            };
            match reading.page(self.place).await? {
                Some(page) => return Ok(Some(page)),
                None => self.reading = None,
            }
        }
    }
}

impl<F: DiskFile> Reading<F> {
    async fn open<E: Env>(env: &E, place: Place, expected: RowsFile, path: PathBuf) -> Result<Self, StoreError>
    where
        E::Disk: Disk<File = F>,
    {
        let file = open_whole(env, &path, expected.sum.length).await?;
        let (rest, hasher) = (Bytes::new(), FileHasher::default());
        let mut reading = Self { file, path, expected, hasher, rows: 0, rest, at: 0 };
        reading.more().await?;
        let header = reading.rest.split_to(HEADER_BYTES.min(reading.rest.len()));
        block::check_header(place, &header).map_err(|found| reading.damaged(found, "a file of rows of this group"))?;
        reading.at = HEADER_BYTES as u64;
        Ok(reading)
    }

    async fn page(&mut self, place: Place) -> Result<Option<RowPage>, StoreError> {
        loop {
            let decoded = block::decode(place, self.at, &self.rest);
            if let Some((page, size)) = decoded.map_err(|found| self.damaged(found, "a block of rows"))? {
                self.rest.advance(size);
                self.at += size as u64;
                self.rows += page.len() as u64;
                return Ok(Some(page));
            }
            if self.hasher.length() == self.expected.sum.length {
                let whole = self.rest.is_empty() && self.rows == self.expected.rows;
                return match whole && self.hasher.sum() == self.expected.sum {
                    true => Ok(None),
                    false => Err(self.damaged("rows with another hash".into(), "those of the manifest").into()),
                };
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<(), StoreError> {
        let from = self.hasher.length();
        let piece = PIECE_BYTES.min(self.expected.sum.length - from) as usize;
        let piece = self.file.read_at(from, piece).await.map_err(io_at("read", &self.path))?;
        self.hasher.update(&piece);
        if self.rest.is_empty() {
            self.rest = piece;
            return Ok(());
        }
        let mut joined = BytesMut::with_capacity(self.rest.len() + piece.len());
        joined.extend_from_slice(&self.rest);
        joined.extend_from_slice(&piece);
        self.rest = joined.freeze();
        Ok(())
    }

    fn damaged(&self, found: String, expected: &str) -> Damage {
        Damage::new(&self.path, self.at, found, expected)
    }
}
