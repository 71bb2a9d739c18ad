//! Files on a few I/O threads of their own, so that an fsync never holds up the runtime.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use bytes::{Bytes, BytesMut};
use rustix::fs::{Advice, FallocateFlags, FlockOperation};
use rustix::io::Errno;
use tokio::sync::oneshot;
use unibus_raft_store::env::{Disk, DiskFile, OpenMode};

use super::direct::Direct;

/// One fsync of a segment or snapshot, one of another, and reads beside them: none waits for the others.
const THREADS: usize = 4;
/// Parts of one `pwritev`; the kernel takes no more (IOV_MAX).
const PARTS_MAX: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// The node's files.
#[derive(Clone)]
pub struct FileDisk {
    /// Reads, plain writes, and everything about names.
    jobs: Arc<Jobs>,
    /// Writes that are synced at once, the log's: on a thread of their own, so that they never stand behind
    /// writes that the kernel holds back because too much is dirty.
    synced: Arc<Jobs>,
}

/// What the threads of a queue wait for.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    ready: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// The entrance to a queue; its threads end when it is dropped and all jobs are done.
struct Jobs(Arc<Queue>);

impl Jobs {
    fn start(name: &str, threads: usize) -> io::Result<Arc<Self>> {
        let jobs = Arc::new(Self(Arc::default()));
        for number in 0..threads {
            let queue = jobs.0.clone();
            thread::Builder::new().name(format!("unibus-{name}-{number}")).spawn(move || queue.serve())?;
        }
        Ok(jobs)
    }

    fn send(&self, job: Job) {
        self.0.lock().jobs.push_back(job);
        self.0.ready.notify_one();
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.ready.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        while let Some(job) = self.next() {
            job();
        }
    }

    fn next(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            let job = waiting.jobs.pop_front();
            if job.is_some() || waiting.closed {
                return job;
            }
            waiting = self.ready.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl FileDisk {
    /// Starts the I/O threads; they end with the last clone of the disk and its files.
    pub fn start() -> io::Result<Self> {
        Ok(Self { jobs: Jobs::start("io", THREADS)?, synced: Jobs::start("log", 1)? })
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        run(&self.jobs, work).await
    }

    async fn at<T: Send + 'static>(
        &self,
        path: &Path,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let path = path.to_owned();
        self.run(move || work(&path)).await
    }
}

async fn run<T: Send + 'static>(jobs: &Jobs, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    // The caller may have stopped waiting; the work is done all the same.
    jobs.send(Box::new(move || drop(done.send(work()))));
    result.await.map_err(|_| io::Error::other("the I/O thread has ended"))?
}

/// Held while a directory is in use by this process.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl Disk for FileDisk {
    type File = OpenedFile;
    type Lock = FileLock;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OpenedFile> {
        let file = self.at(path, move |path| options(mode).open(path)).await?;
        Ok(OpenedFile { file: Arc::new(file), direct: Arc::default(), disk: self.clone() })
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.at(path, |path| DirBuilder::new().recursive(true).mode(0o700).create(path)).await
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.at(path, |path| {
            let mut names = Vec::new();
            for entry in fs::read_dir(path)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort_unstable();
            Ok(names)
        })
        .await
    }

    async fn exists(&self, path: &Path) -> io::Result<bool> {
        self.at(path, Path::try_exists).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let to = to.to_owned();
        self.at(from, move |from| fs::rename(from, to)).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.at(path, |path| fs::remove_file(path)).await
    }

    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.at(path, |path| match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        })
        .await
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.at(path, |path| File::open(path)?.sync_all()).await
    }

    async fn lock(&self, path: &Path) -> io::Result<FileLock> {
        self.at(path, |path| {
            let file = options(OpenMode::Create).open(path)?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            Ok(FileLock { _file: file })
        })
        .await
    }

    async fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.at(path, |path| {
            let stat = rustix::fs::statvfs(path)?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        })
        .await
    }
}

fn options(mode: OpenMode) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(mode != OpenMode::Read).mode(0o600);
    match mode {
        OpenMode::Read | OpenMode::Write => {}
        OpenMode::CreateNew => drop(options.create_new(true)),
        OpenMode::Create => drop(options.create(true)),
        OpenMode::Truncate => drop(options.create(true).truncate(true)),
    }
    options
}

/// An open file.
#[derive(Clone)]
pub struct OpenedFile {
    file: Arc<File>,
    direct: Arc<Direct>,
    disk: FileDisk,
}

impl OpenedFile {
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = self.file.clone();
        self.disk.run(move || work(&file)).await
    }
}

impl DiskFile for OpenedFile {
    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        self.run(move |file| write_all(file, offset, &parts)).await
    }

    async fn write_at_sync(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        let (file, direct) = (self.file.clone(), self.direct.clone());
        run(&self.disk.synced, move || {
            if !direct.write(&file, offset, &parts)? {
                write_all(&file, offset, &parts)?;
            }
            Ok(rustix::fs::fdatasync(&*file)?)
        })
        .await
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.run(move |file| {
            let mut buffer = BytesMut::zeroed(len);
            file.read_exact_at(&mut buffer, offset)?;
            Ok(buffer.freeze())
        })
        .await
    }

    async fn len(&self) -> io::Result<u64> {
        self.run(|file| Ok(file.metadata()?.len())).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.run(move |file| file.set_len(len)).await
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        self.run(move |file| match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            // Not every file system reserves; the length still has to be right.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if file.metadata()?.len() < len => file.set_len(len),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            result => Ok(result?),
        })
        .await
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.run(|file| Ok(rustix::fs::fdatasync(file)?)).await
    }

    async fn writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        // What `sync_file_range` would do, which has no safe binding: dirty pages are queued for writing and
        // stay, pages that are clean by now may go.
        self.run(move |file| Ok(rustix::fs::fadvise(file, offset, NonZeroU64::new(len), Advice::DontNeed)?)).await
    }
}

fn write_all(file: &File, mut offset: u64, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let count = rest.len().min(PARTS_MAX);
        match rustix::io::pwritev(file, &rest[..count], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_parts_are_written_in_order() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = FileDisk::start().expect("threads");
        let file = disk.open(&dir.path().join("f"), OpenMode::CreateNew).await.expect("created");
        let parts: Vec<Bytes> = (0..3_000u32).map(|n| Bytes::copy_from_slice(&n.to_be_bytes())).collect();
        file.write_at_sync(5, parts.clone()).await.expect("written");
        assert_eq!(file.read_at(5, 12_000).await.expect("read"), parts.concat());
        assert_eq!(file.len().await.expect("length"), 12_005);
        let short = file.read_at(12_000, 6).await.expect_err("past the end");
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        file.writeback(0, 12_005).await.expect("a hint");
        file.allocate(20_000).await.expect("reserved");
        assert_eq!(file.len().await.expect("length"), 20_000);
    }

    #[tokio::test]
    async fn synced_writes_of_any_size_are_read_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = FileDisk::start().expect("threads");
        let file = disk.open(&dir.path().join("f"), OpenMode::CreateNew).await.expect("created");
        file.allocate(8 << 20).await.expect("reserved");
        let mut model = vec![0; 8 << 20];
        // Whole sectors, several pieces, then what no disk writes directly.
        for (offset, bytes) in [(0, 512), (512, 4096 + 512), (1 << 20, (2 << 20) + 1536), (700, 100), (1024, 1)] {
            let parts: Vec<Bytes> =
                (0..bytes).map(|n| n as u8).collect::<Vec<_>>().chunks(700).map(Bytes::copy_from_slice).collect();
            file.write_at_sync(offset as u64, parts.clone()).await.expect("written");
            model[offset..offset + bytes].copy_from_slice(&parts.concat());
            assert!(file.read_at(0, model.len()).await.expect("read") == model, "after {bytes} bytes at {offset}");
        }
    }

    #[tokio::test]
    async fn a_lock_is_held_once_until_it_is_dropped() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = FileDisk::start().expect("threads");
        let path = dir.path().join("lock");
        let lock = disk.lock(&path).await.expect("free");
        assert_eq!(disk.lock(&path).await.expect_err("held").kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        disk.lock(&path).await.expect("free again");
    }

    #[tokio::test]
    async fn modes_keep_their_word() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = FileDisk::start().expect("threads");
        let path = dir.path().join("a/b/file");
        disk.create_dir_all(&dir.path().join("a/b")).await.expect("created");
        assert!(disk.open(&path, OpenMode::Write).await.is_err());
        disk.open(&path, OpenMode::CreateNew).await.expect("created");
        assert!(disk.open(&path, OpenMode::CreateNew).await.is_err());
        assert_eq!(disk.list(&dir.path().join("a/b")).await.expect("listed"), ["file"]);
        disk.remove_dir_all(&dir.path().join("a")).await.expect("removed");
        disk.remove_dir_all(&dir.path().join("a")).await.expect("nothing to remove");
        assert!(!disk.exists(&path).await.expect("asked"));
    }
}
