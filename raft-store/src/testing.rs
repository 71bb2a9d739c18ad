//! An environment for tests: tokio, files through `std::fs`, no network, a seeded random source.
//!
//! File calls block the test's thread, which no test minds.

pub mod crash;

use std::fs::{self, File, OpenOptions};
use std::future;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use openraft_rt_tokio::TokioRuntime;
use unibus_proto::id::NodeId;

use crate::env::{Clock, Disk, DiskFile, Duplex, Env, FrameRx, FrameTx, Lane, Net, NetError, OpenMode, Rng};
use crate::tree::LogTrees;

/// Tokio, `std::fs`, no network, a clock that stands still, seeded randomness.
#[derive(Clone, Debug)]
pub struct TestEnv {
    rng: SeededRng,
}

impl TestEnv {
    /// An environment whose random source starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { rng: SeededRng::new(seed) }
    }
}

impl Env for TestEnv {
    type Rt = TokioRuntime;
    type Net = NoNet;
    type Disk = FsDisk;
    type Trees = LogTrees<FsDisk>;
    type Clock = FixedClock;
    type Rng = SeededRng;

    fn net(&self) -> &NoNet {
        &NoNet
    }
    fn disk(&self) -> &FsDisk {
        &FsDisk
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

/// A wall clock that stands still: the store stamps nothing with it, so that no test depends on the day.
#[derive(Clone, Copy, Debug)]
pub struct FixedClock;

impl Clock for FixedClock {
    fn now_ms(&self) -> u64 {
        1_800_000_000_000
    }
}

/// SplitMix64 from a seed; clones share the stream.
#[derive(Clone, Debug)]
pub struct SeededRng(Arc<Mutex<u64>>);

impl SeededRng {
    /// A stream that `seed` determines.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed)))
    }

    fn step(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Rng for SeededRng {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.step().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Files through `std::fs`.
#[derive(Clone, Copy, Debug)]
pub struct FsDisk;

impl Disk for FsDisk {
    type File = FsFile;
    type Lock = File;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FsFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(mode != OpenMode::Read);
        match mode {
            OpenMode::Read | OpenMode::Write => {}
            OpenMode::CreateNew => drop(options.create_new(true)),
            OpenMode::Create => drop(options.create(true)),
            OpenMode::Truncate => drop(options.create(true).truncate(true)),
        }
        Ok(FsFile(Arc::new(options.open(path)?)))
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = vec![];
        for entry in fs::read_dir(path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    async fn exists(&self, path: &Path) -> io::Result<bool> {
        fs::exists(path)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    async fn lock(&self, path: &Path) -> io::Result<File> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        file.try_lock()?;
        Ok(file)
    }

    async fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let said = fs::read_to_string(path.join(FREE_BYTES_FILE));
        Ok(said.ok().and_then(|said| said.parse().ok()).unwrap_or(1 << 40))
    }
}

/// What this file says is the free space of the directory that holds it; without it there is plenty.
pub const FREE_BYTES_FILE: &str = "free-bytes-of-test";

/// A file of [`FsDisk`].
#[derive(Clone, Debug)]
pub struct FsFile(Arc<File>);

impl DiskFile for FsFile {
    async fn write_at(&self, mut offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        for part in parts {
            self.0.write_all_at(&part, offset)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    async fn write_at_sync(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        self.write_at(offset, parts).await?;
        self.0.sync_data()
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; len];
        self.0.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        if self.0.metadata()?.len() < len { self.0.set_len(len) } else { Ok(()) }
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// No peers.
#[derive(Clone, Copy, Debug)]
pub struct NoNet;

impl Net for NoNet {
    type Tx = NoStream;
    type Rx = NoStream;

    async fn connect(&self, _peer: NodeId, _lane: Lane) -> Result<Duplex<Self>, NetError> {
        Err(NetError::Unreachable("this environment has no network".into()))
    }

    async fn accept(&self) -> Result<(NodeId, Duplex<Self>), NetError> {
        future::pending().await
    }
}

/// A stream that cannot exist.
#[derive(Debug)]
pub enum NoStream {}

impl FrameTx for NoStream {
    async fn send(&mut self, _parts: Vec<Bytes>) -> Result<(), NetError> {
        match *self {}
    }

    async fn finish(&mut self) -> Result<(), NetError> {
        match *self {}
    }
}

impl FrameRx for NoStream {
    async fn recv(&mut self) -> Result<Option<Bytes>, NetError> {
        match *self {}
    }
}
