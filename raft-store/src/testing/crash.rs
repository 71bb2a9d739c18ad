//! A disk in memory that loses what was not synced, cut off after any number of operations.
//!
//! Bytes that were written and not synced survive a crash by halves, sector by sector; names that were
//! made, moved or removed and not synced survive as a prefix. Which ones, a seed decides.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use openraft_rt_tokio::TokioRuntime;

use super::{FixedClock, NoNet, SeededRng};
use crate::env::{Disk, DiskFile, Env, OpenMode, Rng};
use crate::tree::LogTrees;

/// What a disk writes whole.
const SECTOR: usize = 512;

/// Tokio and a [`CrashDisk`].
#[derive(Clone, Debug)]
pub struct CrashEnv {
    disk: CrashDisk,
    rng: SeededRng,
}

impl CrashEnv {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        let rng = SeededRng::new(seed);
        let state = Arc::new(Mutex::new(State::new(rng.clone())));
        Self { disk: CrashDisk { state, syncing_dir: Arc::default() }, rng }
    }
}

impl Env for CrashEnv {
    type Rt = TokioRuntime;
    type Net = NoNet;
    type Disk = CrashDisk;
    type Trees = LogTrees<CrashDisk>;
    type Clock = FixedClock;
    type Rng = SeededRng;

    fn net(&self) -> &NoNet {
        &NoNet
    }
    fn disk(&self) -> &CrashDisk {
        &self.disk
    }
    fn trees(&self) -> LogTrees<CrashDisk> {
        LogTrees(self.disk.clone())
    }
    fn clock(&self) -> &FixedClock {
        &FixedClock
    }
    fn rng(&self) -> &SeededRng {
        &self.rng
    }
}

#[derive(Clone, Debug, Default)]
struct Content {
    current: Vec<u8>,
    synced: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl Content {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.current.len() < end {
            self.current.resize(end, 0);
        }
        self.current[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty.extend(offset / SECTOR..=(end - 1) / SECTOR);
        }
    }

    fn sync(&mut self) {
        self.synced.resize(self.current.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(self.current.len());
            if !range.is_empty() {
                self.synced[range.clone()].copy_from_slice(&self.current[range]);
            }
        }
    }

    fn crash(&mut self, coin: &mut impl FnMut() -> bool) {
        if coin() {
            self.synced.resize(self.current.len(), 0);
        }
        for sector in std::mem::take(&mut self.dirty) {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(self.current.len()).min(self.synced.len());
            if coin() && !range.is_empty() {
                self.synced[range.clone()].copy_from_slice(&self.current[range]);
            }
        }
        self.current.clone_from(&self.synced);
    }
}

type Names = BTreeMap<PathBuf, u64>;

#[derive(Debug)]
struct State {
    rng: SeededRng,
    contents: BTreeMap<u64, Content>,
    names: Names,
    synced_names: Names,
    /// The names after each change since the last sync of a directory.
    unsynced_names: Vec<Names>,
    next: u64,
    /// Operations until the power fails.
    left: Option<u64>,
    operations: u64,
    /// No space for files whose path contains this; for none at all when it is empty.
    full: Option<String>,
    /// Bytes of all files together, at most.
    capacity: Option<u64>,
    /// Operations until one fails, and how.
    fault: Option<(u64, io::ErrorKind)>,
}

impl State {
    fn new(rng: SeededRng) -> Self {
        Self {
            rng,
            contents: BTreeMap::new(),
            names: Names::new(),
            synced_names: Names::new(),
            unsynced_names: vec![],
            next: 0,
            left: None,
            operations: 0,
            full: None,
            capacity: None,
            fault: None,
        }
    }

    fn free(&self) -> u64 {
        let used = self.names.values().filter_map(|id| self.contents.get(id)).map(|content| content.current.len());
        self.capacity.map_or(1 << 40, |capacity| capacity.saturating_sub(used.sum::<usize>() as u64))
    }

    /// A file grows to `len` bytes, if there is space.
    fn grow(&mut self, id: u64, len: u64) -> io::Result<()> {
        let growth = len.saturating_sub(self.content(id).current.len() as u64);
        if growth > self.free() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn space_for(&self, path: &str) -> io::Result<()> {
        let full = self.full.as_ref().is_some_and(|full| path.contains(full.as_str()));
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// One operation that changes something; an error when the power is gone.
    fn operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        match &mut self.fault {
            Some((0, kind)) => {
                let kind = *kind;
                self.fault = None;
                return Err(io::Error::new(kind, "the disk fails once"));
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        match &mut self.left {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn named(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{path:?}")))
    }

    fn rename_change(&mut self) {
        self.unsynced_names.push(self.names.clone());
    }

    fn content(&mut self, id: u64) -> &mut Content {
        self.contents.entry(id).or_default()
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct CrashDisk {
    state: Arc<Mutex<State>>,
    /// Held by a sync of a directory, and by a test that holds those up.
    syncing_dir: Arc<tokio::sync::Mutex<()>>,
}

impl CrashDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power fails after `operations` more that change something.
    pub fn fail_after(&self, operations: u64) {
        self.state().left = Some(operations);
    }

    /// From now on there is no space for new files whose path contains `path`; when it is empty, for nothing
    /// that is written.
    pub fn set_full(&self, path: Option<&str>) {
        self.state().full = path.map(str::to_owned);
    }

    /// No sync of a directory ends before the guard is dropped; it takes the names that there were when it began.
    pub async fn hold_dir_syncs(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.syncing_dir.clone().lock_owned().await
    }

    /// From now on all files together have so many bytes at most; `None`: as many as they like.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// No file grows any more.
    pub fn fill(&self) {
        let mut state = self.state();
        state.capacity = Some(u64::MAX);
        state.capacity = Some(u64::MAX - state.free());
    }

    /// The operation after so many more fails; what it was to sync is never on disk, and the next one succeeds.
    pub fn fail_once_after(&self, operations: u64, kind: io::ErrorKind) {
        self.state().fault = Some((operations, kind));
    }

    /// Whether the failure that was asked for is still to come.
    pub fn is_to_fail(&self) -> bool {
        self.state().fault.is_some()
    }

    /// The names of all files.
    pub fn names(&self) -> Vec<PathBuf> {
        self.state().names.keys().cloned().collect()
    }

    /// Replaces the bytes of a file, durably.
    pub fn overwrite(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state();
        let id = state.named(path).expect("the file is there");
        let content = state.content(id);
        content.current = bytes.to_vec();
        content.sync();
    }

    /// Operations so far that changed something, or would have.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The power comes back: what was not synced survived by halves.
    pub fn crash(&self) {
        let mut state = self.state();
        let rng = state.rng.clone();
        let mut coin = || rng.next_u64() & 1 == 1;
        state.contents.values_mut().for_each(|content| content.crash(&mut coin));
        let survived = rng.next_u64() as usize % (state.unsynced_names.len() + 1);
        if let Some(names) = survived.checked_sub(1).map(|at| state.unsynced_names[at].clone()) {
            state.synced_names = names;
        }
        state.names = state.synced_names.clone();
        state.unsynced_names.clear();
        state.left = None;
    }

    /// The bytes of a file.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        let id = state.names.get(path)?;
        state.contents.get(id).map(|content| content.current.clone())
    }
}

impl Disk for CrashDisk {
    type File = CrashFile;
    type Lock = ();

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<CrashFile> {
        let mut state = self.state();
        let found = state.named(path);
        let id = match (mode, found) {
            (OpenMode::CreateNew, Ok(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::Read | OpenMode::Write, found) => found?,
            (_, Ok(id)) => id,
            (_, Err(_)) => {
                state.space_for(&path.to_string_lossy())?;
                state.operation()?;
                state.next += 1;
                let id = state.next;
                state.names.insert(path.into(), id);
                state.rename_change();
                id
            }
        };
        let content = state.content(id);
        if mode == OpenMode::Truncate {
            content.current.clear();
        }
        Ok(CrashFile { disk: self.clone(), id })
    }

    async fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        // A directory is there while something is in it.
        let inside = state.names.keys().filter_map(|name| name.strip_prefix(path).ok()?.iter().next());
        let names: BTreeSet<_> = inside.map(|name| name.to_string_lossy().into_owned()).collect();
        Ok(names.into_iter().collect())
    }

    async fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.state().names.keys().any(|name| name.starts_with(path)))
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        let id = state.named(from)?;
        state.names.remove(from);
        state.names.insert(to.into(), id);
        state.rename_change();
        Ok(())
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        state.named(path)?;
        state.names.remove(path);
        state.rename_change();
        Ok(())
    }

    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        state.names.retain(|name, _| !name.starts_with(path));
        state.rename_change();
        Ok(())
    }

    async fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        let names = self.state().names.clone();
        let _turn = self.syncing_dir.lock().await;
        let mut state = self.state();
        state.operation()?;
        if let Some(last) = state.unsynced_names.iter().rposition(|then| *then == names) {
            state.unsynced_names.drain(..=last);
            state.synced_names = names;
        }
        Ok(())
    }

    async fn lock(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    async fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(self.state().free())
    }
}

/// A file of a [`CrashDisk`].
#[derive(Clone, Debug)]
pub struct CrashFile {
    disk: CrashDisk,
    id: u64,
}

impl DiskFile for CrashFile {
    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        let mut state = self.disk.state();
        let bytes = parts.iter().fold(BytesMut::new(), |mut all, part| {
            all.extend_from_slice(part);
            all
        });
        if state.left == Some(0) {
            return state.operation();
        }
        state.space_for("")?;
        state.grow(self.id, offset + bytes.len() as u64)?;
        // The power fails during the write: its bytes are there, and not synced.
        state.content(self.id).write(offset as usize, &bytes);
        state.operation()
    }

    async fn write_at_sync(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        self.write_at(offset, parts).await?;
        self.sync_data().await
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut state = self.disk.state();
        let content = &state.content(self.id).current;
        let bytes = content.get(offset as usize..offset as usize + len).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Bytes::copy_from_slice(bytes))
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().content(self.id).current.len() as u64)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operation()?;
        state.grow(self.id, len)?;
        state.content(self.id).current.resize(len as usize, 0);
        Ok(())
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        let now = self.len().await?;
        self.set_len(len.max(now)).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let done = state.operation();
        match &done {
            Ok(()) => state.content(self.id).sync(),
            // The kernel takes the pages for clean: no later sync would write them.
            Err(_) if state.left != Some(0) => state.content(self.id).dirty.clear(),
            Err(_) => {}
        }
        done
    }
}
