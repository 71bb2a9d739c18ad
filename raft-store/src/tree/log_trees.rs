//! A tree in memory whose writes are appended to a file: what the simulator and the tests have in place of
//! sled. It trusts its file as little as sled does: the first frame that is not whole ends it, silently.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Tree, TreeRead, TreeRow, TreeWrite, Trees};
use crate::env::{Disk, DiskFile, OpenMode, create_dir_durable};

const FILE: &str = "log";
/// Payload length and CRC before each frame.
const HEAD_BYTES: usize = 8;
/// The marker and the heads of frames.
const RESERVE_BYTES_MIN: u64 = 16 << 10;
/// The length that stands for a deleted value.
const DELETED: u32 = u32::MAX;

/// Trees over a disk.
#[derive(Clone, Debug)]
pub struct LogTrees<D>(pub D);

/// A tree in memory over a file. Clones share it.
#[derive(Clone)]
pub struct LogTree<D: Disk>(Arc<Shared<D>>);

struct Shared<D: Disk> {
    disk: D,
    dir: PathBuf,
    file: D::File,
    rows: RwLock<BTreeMap<Bytes, Bytes>>,
    /// Where the next frame goes.
    end: tokio::sync::Mutex<u64>,
}

impl<D: Disk> Trees for LogTrees<D> {
    type Tree = LogTree<D>;

    async fn open(&self, dir: &Path, _cache_bytes: u64) -> io::Result<LogTree<D>> {
        create_dir_durable(&self.0, dir).await?;
        let file = self.0.open(&dir.join(FILE), OpenMode::Create).await?;
        let length = file.len().await?;
        let bytes = file.read_at(0, length as usize).await?;
        let mut rows = BTreeMap::new();
        let mut end = 0;
        while let Some(payload) = frame(&bytes[end..]) {
            end += HEAD_BYTES + payload.len();
            decode(payload).into_iter().for_each(|write| apply(&mut rows, write));
        }
        file.set_len(end as u64).await?;
        let shared = Shared {
            disk: self.0.clone(),
            dir: dir.into(),
            file,
            rows: RwLock::new(rows),
            end: tokio::sync::Mutex::new(end as u64),
        };
        Ok(LogTree(Arc::new(shared)))
    }
}

impl<D: Disk> LogTree<D> {
    fn rows(&self) -> RwLockReadGuard<'_, BTreeMap<Bytes, Bytes>> {
        self.0.rows.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Disk> TreeRead for LogTree<D> {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        Ok(self.rows().get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: Option<&[u8]>, limit: usize) -> io::Result<Vec<TreeRow>> {
        if to.is_some_and(|to| from >= to) {
            return Ok(vec![]);
        }
        let rows = self.rows();
        let range = rows.range::<[u8], _>((Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded)));
        Ok(range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

impl<D: Disk> Tree for LogTree<D> {
    async fn reserve(&self, bytes: u64) -> io::Result<()> {
        // Zeros at the end are no frame.
        let end = self.0.end.lock().await;
        self.0.file.allocate(*end + 2 * bytes + RESERVE_BYTES_MIN).await
    }

    async fn write(&self, rows: Vec<TreeWrite>) -> io::Result<()> {
        let mut end = self.0.end.lock().await;
        let frame = encode(&rows);
        let length = frame.len() as u64;
        self.0.file.write_at(*end, vec![frame]).await?;
        *end += length;
        let mut all = self.0.rows.write().unwrap_or_else(PoisonError::into_inner);
        rows.into_iter().for_each(|write| apply(&mut all, write));
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        let _end = self.0.end.lock().await;
        self.0.file.sync_data().await?;
        self.0.disk.sync_dir(&self.0.dir).await
    }
}

fn apply(rows: &mut BTreeMap<Bytes, Bytes>, (key, value): TreeWrite) {
    match value {
        Some(value) => drop(rows.insert(key, value)),
        None => drop(rows.remove(&key)),
    }
}

fn encode(rows: &[TreeWrite]) -> Bytes {
    let mut payload = BytesMut::new();
    for (key, value) in rows {
        payload.put_u32_le(key.len() as u32);
        payload.put_u32_le(value.as_ref().map_or(DELETED, |value| value.len() as u32));
        payload.put_slice(key);
        payload.put_slice(value.as_deref().unwrap_or_default());
    }
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + payload.len());
    frame.put_u32_le(payload.len() as u32);
    frame.put_u32_le(crc32c::crc32c(&payload));
    frame.put_slice(&payload);
    frame.freeze()
}

/// The payload of the frame at the beginning of `bytes`, if it is whole.
fn frame(mut bytes: &[u8]) -> Option<&[u8]> {
    let length = bytes.try_get_u32_le().ok().filter(|length| *length > 0)? as usize;
    let crc = bytes.try_get_u32_le().ok()?;
    let payload = bytes.get(..length)?;
    (crc32c::crc32c(payload) == crc).then_some(payload)
}

fn decode(mut payload: &[u8]) -> Vec<TreeWrite> {
    let mut rows = vec![];
    while payload.len() >= HEAD_BYTES {
        let (key, value) = (payload.get_u32_le() as usize, payload.get_u32_le());
        let stored = if value == DELETED { 0 } else { value as usize };
        if payload.len() < key + stored {
            break;
        }
        let key = payload.copy_to_bytes(key);
        let bytes = payload.copy_to_bytes(stored);
        rows.push((key, (value != DELETED).then_some(bytes)));
    }
    rows
}
