//! [`SimDisk`]: the [`Disk`] of a simulated node, with latencies, locks, syncs that can be held or
//! fail, and space that can be short.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use openraft_rt::AsyncRuntime;
use openraft_rt::watch::{Watch, WatchReceiver, WatchSender};
use unibus_raft_store::env::{Disk, DiskFile, OpenMode};

use crate::sim::filesystem::{Filesystem, Inode};
use crate::sim::random::{Random, hash_bytes};
use crate::sim::runtime::{Handle, SimRuntime};
use crate::sim::trace::Step;
use crate::sim::watch::{SimWatch, SimWatchSender};

/// How long the disk takes, as ranges of nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct DiskTiming {
    /// A write into the page cache.
    pub write_nanos: (u64, u64),
    /// A sync of a file or directory.
    pub sync_nanos: (u64, u64),
}

impl Default for DiskTiming {
    fn default() -> Self {
        Self { write_nanos: (2_000, 20_000), sync_nanos: (100_000, 2_000_000) }
    }
}

struct State {
    files: Filesystem,
    random: Random,
    timing: DiskTiming,
    /// Held locks, each with the lives of the node that took it.
    locks: BTreeMap<PathBuf, u64>,
    /// How often the node was killed.
    deaths: u64,
    syncs: u64,
    /// Bytes that all files may have together.
    capacity: u64,
    /// The next sync of a file of this kind fails.
    bad_sync: Option<FileKind>,
    bad_syncs: u64,
}

/// Without a fault: more than any run writes.
const CAPACITY: u64 = 1 << 40;

/// What a sync can be made to fail on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A file of the write-ahead log.
    Wal,
    /// A segment.
    Segment,
    /// Any other.
    Other,
}

impl FileKind {
    fn of(path: &Path) -> Self {
        let is_wal = path.parent().is_some_and(|dir| dir.ends_with("wal"));
        match path.extension().is_some_and(|extension| extension == "segment") {
            _ if is_wal => Self::Wal,
            true => Self::Segment,
            false => Self::Other,
        }
    }
}

impl State {
    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.files.used())
    }

    /// A file is to have `length` bytes.
    fn check_space(&self, inode: Inode, length: u64) -> io::Result<()> {
        let growth = length.saturating_sub(self.files.len(inode));
        if growth > self.free() { Err(no_space()) } else { Ok(()) }
    }

    fn create(&mut self, path: &Path) -> io::Result<Inode> {
        if self.free() == 0 { Err(no_space()) } else { self.files.create(path) }
    }
}

fn no_space() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no space left on the simulated device")
}

struct Shared {
    node: u64,
    state: Mutex<State>,
    held: SimWatchSender<bool>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The disk of one node. It outlives the node's processes.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

impl SimDisk {
    /// An empty disk with the directory `root`.
    pub fn new(seed: u64, node: u64, root: &Path) -> Self {
        let state = State {
            files: Filesystem::new(root),
            random: Random::stream(seed, "disk", node),
            timing: DiskTiming::default(),
            locks: BTreeMap::new(),
            deaths: 0,
            syncs: 0,
            capacity: CAPACITY,
            bad_sync: None,
            bad_syncs: 0,
        };
        let (held, _) = SimWatch::channel(false);
        Self { shared: Arc::new(Shared { node, state: Mutex::new(state), held }) }
    }

    /// The process died: its locks are free. The page cache stays.
    pub fn release_locks(&self) {
        let mut state = self.shared.lock();
        state.deaths += 1;
        state.locks.clear();
    }

    /// The power went: what was not synced is lost in part or whole.
    pub fn cut_power(&self) {
        self.release_locks();
        let mut state = self.shared.lock();
        let State { files, random, .. } = &mut *state;
        files.crash(random);
    }

    /// While held, no sync returns and nothing becomes durable.
    pub fn hold_syncs(&self, hold: bool) {
        self.shared.held.send_if_modified(|held| std::mem::replace(held, hold) != hold);
    }

    /// Changes the latencies.
    pub fn set_timing(&self, timing: DiskTiming) {
        self.shared.lock().timing = timing;
    }

    /// From now on only `leave` bytes more can be written; `None`: as many as anybody likes.
    pub fn fill(&self, leave: Option<u64>) {
        let mut state = self.shared.lock();
        state.capacity = leave.map_or(CAPACITY, |leave| state.files.used() + leave);
    }

    /// Whether it was filled.
    pub fn is_filled(&self) -> bool {
        self.shared.lock().capacity < CAPACITY
    }

    /// The next sync of a file of this kind fails, once; `None`: none does.
    pub fn fail_sync(&self, kind: Option<FileKind>) {
        self.shared.lock().bad_sync = kind;
    }

    /// How many syncs failed.
    pub fn bad_syncs(&self) -> u64 {
        self.shared.lock().bad_syncs
    }

    /// How many syncs completed.
    pub fn syncs(&self) -> u64 {
        self.shared.lock().syncs
    }

    async fn pause(&self, range: fn(&DiskTiming) -> (u64, u64)) {
        let nanos = {
            let mut state = self.shared.lock();
            let (low, high) = range(&state.timing);
            state.random.between(low, high)
        };
        SimRuntime::sleep(Duration::from_nanos(nanos)).await;
    }

    async fn pause_for_sync(&self) {
        self.pause(|timing| timing.sync_nanos).await;
        let mut held = self.shared.held.subscribe();
        // The sender lives in the disk, so waiting cannot fail.
        let _ = held.wait_until(|held| !held).await;
    }

    fn trace(&self, a: u64) {
        Handle::current().step(Step::Disk, self.shared.node, a);
    }
}

impl Disk for SimDisk {
    type File = SimFile;
    type Lock = SimLock;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        self.pause(|timing| timing.write_nanos).await;
        let mut state = self.shared.lock();
        let found = state.files.find(path);
        let inode = match (mode, found) {
            (OpenMode::Read | OpenMode::Write, found) => found?,
            (OpenMode::Create, Ok(inode)) => inode,
            (OpenMode::CreateNew, Ok(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::Truncate, Ok(inode)) => {
                state.files.set_len(inode, 0);
                inode
            }
            (OpenMode::Create | OpenMode::CreateNew | OpenMode::Truncate, Err(_)) => state.create(path)?,
        };
        Ok(SimFile { disk: self.clone(), inode, kind: FileKind::of(path), read_only: mode == OpenMode::Read })
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.pause(|timing| timing.write_nanos).await;
        self.shared.lock().files.create_dir_all(path);
        Ok(())
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.shared.lock().files.list(path)
    }

    async fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.shared.lock().files.exists(path))
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pause(|timing| timing.write_nanos).await;
        self.shared.lock().files.rename(from, to)
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.pause(|timing| timing.write_nanos).await;
        self.shared.lock().files.remove_file(path)
    }

    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.pause(|timing| timing.write_nanos).await;
        self.shared.lock().files.remove_dir_all(path);
        Ok(())
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.pause_for_sync().await;
        self.trace(hash_bytes(path.as_os_str().as_encoded_bytes()));
        self.shared.lock().files.sync_dir(path)
    }

    async fn lock(&self, path: &Path) -> io::Result<SimLock> {
        let mut state = self.shared.lock();
        if state.locks.contains_key(path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if state.files.find(path).is_err() {
            state.files.create(path)?;
        }
        let deaths = state.deaths;
        state.locks.insert(path.to_path_buf(), deaths);
        Ok(SimLock { shared: self.shared.clone(), path: path.to_path_buf(), deaths })
    }

    async fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(self.shared.lock().free())
    }
}

/// A held lock.
pub struct SimLock {
    shared: Arc<Shared>,
    path: PathBuf,
    deaths: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        // A lock of an earlier life was released when that life ended.
        if state.locks.get(&self.path) == Some(&self.deaths) {
            state.locks.remove(&self.path);
        }
    }
}

/// An open file.
#[derive(Clone)]
pub struct SimFile {
    disk: SimDisk,
    inode: Inode,
    kind: FileKind,
    read_only: bool,
}

impl SimFile {
    fn write_now(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the file was opened for reading"));
        }
        let mut bytes = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        self.disk.trace(hash_bytes(&bytes));
        let mut state = self.disk.shared.lock();
        state.check_space(self.inode, offset + bytes.len() as u64)?;
        state.files.write(self.inode, offset, bytes.freeze());
        Ok(())
    }
}

impl DiskFile for SimFile {
    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        self.disk.pause(|timing| timing.write_nanos).await;
        self.write_now(offset, &parts)
    }

    async fn write_at_sync(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        self.write_at(offset, parts).await?;
        self.sync_data().await
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.disk.shared.lock().files.read(self.inode, offset, len)
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.disk.shared.lock().files.len(self.inode))
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.pause(|timing| timing.write_nanos).await;
        let mut state = self.disk.shared.lock();
        state.check_space(self.inode, len)?;
        state.files.set_len(self.inode, len);
        Ok(())
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        if self.len().await? < len {
            self.set_len(len).await?;
        }
        Ok(())
    }

    async fn sync_data(&self) -> io::Result<()> {
        let covered = self.disk.shared.lock().files.changes(self.inode);
        self.disk.pause_for_sync().await;
        let mut state = self.disk.shared.lock();
        if state.bad_sync == Some(self.kind) {
            state.bad_sync = None;
            state.bad_syncs += 1;
            state.files.fail_sync(self.inode, covered);
            return Err(io::Error::other("the simulated disk has failed (EIO)"));
        }
        state.files.sync(self.inode, covered);
        state.syncs += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use openraft_rt::Instant as _;

    use super::*;
    use crate::sim::timer::SimInstant;

    fn in_sim<T>(future: impl Future<Output = T>) -> T {
        SimRuntime::with_seed(1).block_on(future)
    }

    #[test]
    fn a_lock_excludes_until_dropped_or_its_process_dies() {
        in_sim(async {
            let disk = SimDisk::new(1, 1, Path::new("/d"));
            let path = Path::new("/d/lock");
            let first = disk.lock(path).await.unwrap();
            assert_eq!(disk.lock(path).await.err().map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
            disk.release_locks();
            let second = disk.lock(path).await.unwrap();
            drop(first);
            assert!(disk.lock(path).await.is_err(), "the lock of a dead process must not free a live one's");
            drop(second);
            assert!(disk.lock(path).await.is_ok());
        });
    }

    #[test]
    fn a_full_disk_takes_what_is_left_and_a_failed_sync_loses_what_it_covered() {
        in_sim(async {
            let disk = SimDisk::new(1, 1, Path::new("/d"));
            let file = disk.open(Path::new("/d/7.segment"), OpenMode::CreateNew).await.unwrap();
            disk.sync_dir(Path::new("/d")).await.unwrap();
            file.write_at_sync(0, vec![Bytes::from_static(b"old")]).await.unwrap();
            disk.fill(Some(2));
            assert_eq!(disk.free_bytes(Path::new("/d")).await.unwrap(), 2);
            file.write_at_sync(0, vec![Bytes::from_static(b"olded")]).await.unwrap();
            let full = file.write_at(5, vec![Bytes::from_static(b"x")]).await.unwrap_err();
            assert_eq!(full.kind(), io::ErrorKind::StorageFull);
            assert!(disk.open(Path::new("/d/new"), OpenMode::Create).await.is_err());
            disk.fill(None);

            disk.fail_sync(Some(FileKind::Segment));
            file.write_at_sync(0, vec![Bytes::from_static(b"newer")]).await.unwrap_err();
            file.sync_data().await.expect("a second sync says nothing of the first");
            assert_eq!((file.read_at(0, 5).await.unwrap(), disk.bad_syncs()), (Bytes::from_static(b"newer"), 1));
            disk.cut_power();
            assert_eq!(file.read_at(0, 5).await.unwrap(), "olded");
        });
    }

    #[test]
    fn a_held_sync_makes_nothing_durable_before_it_is_released() {
        in_sim(async {
            let disk = SimDisk::new(1, 1, Path::new("/d"));
            let file = disk.open(Path::new("/d/f"), OpenMode::CreateNew).await.unwrap();
            disk.sync_dir(Path::new("/d")).await.unwrap();
            disk.hold_syncs(true);
            let write = {
                let file = file.clone();
                SimRuntime::spawn(async move { file.write_at_sync(0, vec![Bytes::from_static(b"x")]).await })
            };
            let write = SimRuntime::timeout(Duration::from_secs(60), write).await;
            assert!(write.is_err(), "the sync returned while held");
            disk.hold_syncs(false);
            let began = SimInstant::now();
            file.sync_data().await.unwrap();
            assert!(SimInstant::now() > began, "a sync takes time");
            for _ in 0..50 {
                disk.cut_power();
                assert_eq!(file.read_at(0, 1).await.unwrap(), "x");
            }
        });
    }
}
