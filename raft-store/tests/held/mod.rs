//! An environment whose write-ahead log can be held: its syncs hang until it is released.

use std::io;
use std::path::Path;

use bytes::Bytes;
use tokio::sync::watch;
use unibus_raft_store::env::{Disk, DiskFile, Env, OpenMode};
use unibus_raft_store::testing::{FixedClock, FsDisk, FsFile, NoNet, SeededRng, TestEnv};
use unibus_raft_store::tree::LogTrees;

#[derive(Clone)]
pub struct HeldEnv {
    rng: SeededRng,
    disk: HeldDisk,
}

/// Holds and releases; released when it is dropped.
#[allow(clippy::disallowed_types, reason = "one waiter on the runtime of a test: no order to lose")]
pub struct Hold(watch::Sender<bool>);

impl Hold {
    pub fn set(&self, held: bool) {
        self.0.send_replace(held);
    }
}

impl HeldEnv {
    pub fn new() -> (Self, Hold) {
        let (hold, held) = watch::channel(false);
        (Self { rng: SeededRng::new(1), disk: HeldDisk(held) }, Hold(hold))
    }
}

impl Env for HeldEnv {
    type Rt = <TestEnv as Env>::Rt;
    type Net = NoNet;
    type Disk = HeldDisk;
    type Trees = LogTrees<FsDisk>;
    type Clock = FixedClock;
    type Rng = SeededRng;

    fn net(&self) -> &NoNet {
        &NoNet
    }
    fn disk(&self) -> &HeldDisk {
        &self.disk
    }
    fn trees(&self) -> LogTrees<FsDisk> {
        LogTrees(FsDisk)
    }
    fn clock(&self) -> &FixedClock {
        &FixedClock
    }
    fn rng(&self) -> &SeededRng {
        &self.rng
    }
}

#[derive(Clone)]
pub struct HeldDisk(watch::Receiver<bool>);

#[derive(Clone)]
pub struct HeldFile {
    file: FsFile,
    held: Option<watch::Receiver<bool>>,
}

impl Disk for HeldDisk {
    type File = HeldFile;
    type Lock = <FsDisk as Disk>::Lock;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<HeldFile> {
        let is_log = path.parent().is_some_and(|dir| dir.ends_with("wal"));
        Ok(HeldFile { file: FsDisk.open(path, mode).await?, held: is_log.then(|| self.0.clone()) })
    }
    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        FsDisk.create_dir_all(path).await
    }
    async fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        FsDisk.list(path).await
    }
    async fn exists(&self, path: &Path) -> io::Result<bool> {
        FsDisk.exists(path).await
    }
    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        FsDisk.rename(from, to).await
    }
    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        FsDisk.remove_file(path).await
    }
    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        FsDisk.remove_dir_all(path).await
    }
    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        FsDisk.sync_dir(path).await
    }
    async fn lock(&self, path: &Path) -> io::Result<Self::Lock> {
        FsDisk.lock(path).await
    }
    async fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        FsDisk.free_bytes(path).await
    }
}

impl DiskFile for HeldFile {
    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        self.file.write_at(offset, parts).await
    }
    async fn write_at_sync(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        self.write_at(offset, parts).await?;
        self.sync_data().await
    }
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.file.read_at(offset, len).await
    }
    async fn len(&self) -> io::Result<u64> {
        self.file.len().await
    }
    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len).await
    }
    async fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len).await
    }
    async fn sync_data(&self) -> io::Result<()> {
        if let Some(mut held) = self.held.clone() {
            held.wait_for(|held| !held).await.ok();
        }
        self.file.sync_data().await
    }
}
