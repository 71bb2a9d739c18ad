//! Trees on sled 0.34, the only place that imports it. Whatever sled writes is done on threads of its own
//! here, since it blocks and may panic or spin; reads are short and stay on the caller's.
//!
//! `sled::flush` on Linux is `sync_file_range`, no fsync, so [`SledTree::sync`] syncs every file and
//! directory of the tree itself, through descriptors that were opened before sled wrote: an error of the
//! writeback is only sure to be told to those. Batches of sled are not used: one holds a lock that every
//! read of every tree in the process waits for (docs/STORAGE.md has the figures).

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use sled::{Config, Db};
use tokio::sync::oneshot;

use super::hang::{self, Reads};
use super::{DAMAGED, Tree, TreeRead, TreeRow, TreeWrite, Trees};

/// An earlier life of the tree in this process may still be closing: its lock is waited for.
const LOCK_RETRY: Duration = Duration::from_millis(20);
const LOCK_TRIES: usize = 250;

/// The file that sled writes rows to.
const FILE: &str = "db";
/// sled writes pages and parts of pages into segments of half a MiB, each padded to its end.
const ROOM_FACTOR: u64 = 3;
const ROOM_BYTES_MIN: u64 = 4 << 20;

/// Trees on sled.
#[derive(Clone, Copy, Debug, Default)]
pub struct SledTrees;

/// A tree on sled. Clones share it.
#[derive(Clone)]
pub struct SledTree(Arc<Shared>);

struct Shared {
    /// Until it is dropped, which takes it.
    db: Option<Db>,
    dir: PathBuf,
    reads: Arc<Reads>,
    /// Descriptors of all files and directories, by path.
    open: Mutex<BTreeMap<PathBuf, File>>,
}

impl Trees for SledTrees {
    type Tree = SledTree;

    async fn open(&self, dir: &Path, cache_bytes: u64) -> io::Result<SledTree> {
        let dir = dir.to_owned();
        on_thread("unibus-tree-open", move || {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            sync_parents(&dir)?;
            let db = open_db(&dir, cache_bytes)?;
            let open = Mutex::new(descriptors(&dir, BTreeMap::new())?);
            let reads = Arc::<Reads>::default();
            hang::watch(&reads, &dir.with_file_name(DAMAGED));
            Ok(SledTree(Arc::new(Shared { db: Some(db), dir, reads, open })))
        })
        .await
    }
}

/// The names that lead to a new directory: that of the group exists.
fn sync_parents(dir: &Path) -> io::Result<()> {
    dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn open_db(dir: &Path, cache_bytes: u64) -> io::Result<Db> {
    // Checkpoints flush; nothing else has to reach the disk.
    let config = Config::new().path(dir).cache_capacity(cache_bytes).flush_every_ms(None);
    let mut tries = 0;
    loop {
        match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().contains("acquire lock") && tries < LOCK_TRIES => {
                tries += 1;
                #[allow(clippy::disallowed_methods, reason = "on a thread of its own, in production only")]
                thread::sleep(LOCK_RETRY);
            }
            opened => return opened.map_err(as_io),
        }
    }
}

impl SledTree {
    fn db(&self) -> &Db {
        self.0.db.as_ref().expect("taken by drop only")
    }

    /// How many files and directories are held open for the next sync.
    #[cfg(test)]
    fn descriptors(&self) -> Vec<PathBuf> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Closing flushes and may block.
        let db = self.db.take();
        drop(thread::Builder::new().name("unibus-tree-close".into()).spawn(move || drop(db)));
    }
}

impl TreeRead for SledTree {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        let _reading = self.0.reads.begin();
        let value = self.db().get(key).map_err(as_io)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, from: &[u8], to: Option<&[u8]>, limit: usize) -> io::Result<Vec<TreeRow>> {
        let _reading = self.0.reads.begin();
        let rows = match to {
            Some(to) if from >= to => return Ok(vec![]),
            Some(to) => self.db().range(from..to),
            None => self.db().range(from..),
        };
        let copied = rows.take(limit).map(|row| {
            let (key, value) = row.map_err(as_io)?;
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        });
        copied.collect()
    }
}

impl Tree for SledTree {
    async fn reserve(&self, bytes: u64) -> io::Result<()> {
        let file = self.0.dir.join(FILE);
        on_thread("unibus-tree-reserve", move || {
            let file = OpenOptions::new().write(true).open(file)?;
            let (end, bytes) = (file.metadata()?.len(), ROOM_FACTOR * bytes + ROOM_BYTES_MIN);
            // Beyond the end, where sled goes on; its length stays, as that is what sled reads back.
            match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, end, bytes) {
                // Not every file system reserves.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
                reserved => Ok(reserved?),
            }
        })
        .await
    }

    async fn write(&self, rows: Vec<TreeWrite>) -> io::Result<()> {
        let tree = self.clone();
        on_thread("unibus-tree-write", move || {
            for (key, value) in rows {
                match value {
                    Some(value) => tree.db().insert(&key, &value[..]).map(drop),
                    None => tree.db().remove(&key).map(drop),
                }
                .map_err(as_io)?;
            }
            Ok(())
        })
        .await
    }

    async fn sync(&self) -> io::Result<()> {
        let tree = self.clone();
        on_thread("unibus-tree-sync", move || {
            tree.db().flush().map_err(as_io)?;
            let mut open = tree.0.open.lock().unwrap_or_else(PoisonError::into_inner);
            *open = descriptors(&tree.0.dir, std::mem::take(&mut *open))?;
            // Files before the directories that name them.
            let (dirs, files): (Vec<_>, Vec<_>) = open.values().partition(|file| is_dir(file));
            files.into_iter().chain(dirs).try_for_each(File::sync_all)
        })
        .await
    }
}

fn is_dir(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_dir())
}

/// Descriptors of what is in `dir` now, those of `known` among them where they are there already.
fn descriptors(dir: &Path, mut known: BTreeMap<PathBuf, File>) -> io::Result<BTreeMap<PathBuf, File>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let file = match known.remove(&path).map_or_else(|| File::open(&path), Ok) {
            // sled removes blobs and snapshots that it no longer needs.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        if is_dir(&file) {
            for entry in fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
        }
        found.insert(path, file);
    }
    Ok(found)
}

fn as_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, format!("sled: {other}")),
    }
}

async fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let guarded = move || {
        let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)));
        drop(done.send(outcome));
    };
    thread::Builder::new().name(name.into()).spawn(guarded)?;
    result.await.map_err(|_| io::Error::other("the thread of the tree ended"))?
}

fn panicked(panic: &(dyn Any + Send)) -> io::Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text");
    io::Error::other(format!("sled panicked: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: u32, value: &[u8]) -> TreeWrite {
        (Bytes::copy_from_slice(&n.to_be_bytes()), Some(Bytes::copy_from_slice(value)))
    }

    #[tokio::test]
    async fn rows_are_there_again_after_a_sync_and_a_start() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tree-1");
        let tree = SledTrees.open(&path, 1 << 20).await.expect("opened");
        tree.write((0..1_000).map(|n| row(n, b"value")).collect()).await.expect("written");
        tree.write(vec![(Bytes::copy_from_slice(&7u32.to_be_bytes()), None)]).await.expect("deleted");
        tree.sync().await.expect("synced");
        drop(tree);
        let tree = SledTrees.open(&path, 1 << 20).await.expect("opened again");
        assert_eq!(tree.scan(&[], None, usize::MAX).expect("scanned").len(), 999);
        assert_eq!(tree.get(&7u32.to_be_bytes()).expect("read"), None);
        let some = tree.scan(&6u32.to_be_bytes(), Some(&9u32.to_be_bytes()), 2).expect("scanned");
        assert_eq!(some.iter().map(|(key, _)| key[3]).collect::<Vec<_>>(), [6, 8]);
    }

    #[tokio::test]
    async fn what_was_reserved_is_taken_and_sled_does_not_see_it() {
        use std::os::unix::fs::MetadataExt;

        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tree-1");
        let tree = SledTrees.open(&path, 1 << 20).await.expect("opened");
        let (before, blocks) = {
            let metadata = fs::metadata(path.join(FILE)).expect("there");
            (metadata.len(), metadata.blocks() * 512)
        };
        tree.reserve(1 << 20).await.expect("reserved");
        let metadata = fs::metadata(path.join(FILE)).expect("there");
        assert_eq!(metadata.len(), before);
        assert!(metadata.blocks() * 512 >= blocks + (7 << 20), "{} blocks", metadata.blocks());
        tree.write((0..1_000).map(|n| row(n, b"value")).collect()).await.expect("written");
        tree.sync().await.expect("synced");
        drop(tree);
        let tree = SledTrees.open(&path, 1 << 20).await.expect("opened again");
        assert_eq!(tree.scan(&[], None, usize::MAX).expect("scanned").len(), 1_000);
    }

    #[tokio::test]
    async fn descriptors_are_open_before_anything_is_written() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tree-1");
        let tree = SledTrees.open(&path, 1 << 20).await.expect("opened");
        let before = tree.descriptors();
        for name in ["", "conf", "db"] {
            let path = if name.is_empty() { path.clone() } else { path.join(name) };
            assert!(before.contains(&path), "{path:?} is not open: {before:?}");
        }
        // Too large for sled's log: it becomes a file of its own, which is synced as well.
        tree.write(vec![row(1, &vec![1; 2 << 20])]).await.expect("written");
        tree.sync().await.expect("synced");
        let after = tree.descriptors();
        assert!(before.iter().all(|path| after.contains(path)), "{after:?}");
        assert!(after.iter().any(|path| path.parent().is_some_and(|dir| dir.ends_with("blobs"))), "{after:?}");
    }
}
