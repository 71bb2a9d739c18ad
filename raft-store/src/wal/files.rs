//! The files of a WAL: taken into use, given back, and prepared in advance.
//!
//! Names: `<generation>.wal` in use, `spare-<n>` ready (content does not matter), `*.tmp` in preparation.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::frame::{ALIGN, FileTag, Header, align_up, encode_head, frame_bytes};
use super::ledger::Ledger;
use super::recover::{End, file_name};
use super::shared::{FileOf, Shared, lock};
use crate::env::{Disk, DiskFile, Env, OpenMode, Rng, sleep, spawn};

/// Spare files are filled in steps of this size, so that the disk is never busy for long.
const FILL_BYTES: usize = 1 << 20;
/// Spare files are filled while nothing was written for so long.
const IDLE: Duration = Duration::from_millis(50);
/// Places in a file are 32-bit offsets.
pub(super) const FILE_BYTES_MAX: u64 = 2 << 30;

static ZEROS: [u8; FILL_BYTES] = [0; FILL_BYTES];

/// Zeros that lead from `bytes` to the next frame.
pub(super) fn padding(bytes: u64) -> Bytes {
    Bytes::from_static(&ZEROS[..(align_up(bytes) - bytes) as usize])
}

/// Names of spare files that are ready.
#[derive(Debug, Default)]
pub(super) struct Spares {
    ready: VecDeque<String>,
    named: u64,
}

impl Spares {
    pub fn found(names: Vec<String>) -> Self {
        let number = |name: &String| name.strip_prefix("spare-").and_then(|number| number.parse().ok());
        let named = names.iter().filter_map(number).max().unwrap_or(0);
        Self { ready: names.into(), named }
    }

    fn new_name(&mut self) -> String {
        self.named += 1;
        format!("spare-{}", self.named)
    }
}

/// The files of one WAL, on the writer's side.
pub(super) struct FileSet<E: Env> {
    pub shared: Arc<Shared<E>>,
    pub cluster: unibus_proto::id::ClusterId,
    pub spares: Arc<Mutex<Spares>>,
    /// Tells the pool that a spare file was taken.
    pub pool: mpsc::UnboundedSender<()>,
}

impl<E: Env> FileSet<E> {
    /// Takes the next file into use: writes its start frame, then gives it its name.
    pub async fn advance(&self, from: Option<&End>, ledger: &Ledger, frame: u64) -> io::Result<(FileOf<E>, End)> {
        let rows = ledger.checkpoint(0).len();
        let needed = frame + frame_bytes(rows, 0);
        let (name, file, file_bytes) = self.take(needed).await?;
        let generation = from.map_or(0, |end| end.tag.generation) + 1;
        let tag = FileTag { cluster: self.cluster, salt: self.shared.env.rng().next_u64(), generation };
        let (before, previous_crc) = from.map_or((0, 0), |end| (end.number, end.crc));
        let header = Header { tag, start: true, number: before + 1, watermark: before, previous_crc };
        let (head, crc) = encode_head(&header, &ledger.checkpoint(file_bytes));
        let bytes = align_up(head.len() as u64);
        let padding = padding(head.len() as u64);
        let (disk, path) = (self.shared.env.disk(), self.path(&name));
        let named = match file.write_at_sync(0, vec![head, padding]).await {
            Ok(()) => disk.rename(&path, &self.path(&file_name(generation))).await,
            failed => failed,
        };
        if let Err(error) = named {
            // Not a file to try again with, whatever its disk made of the sync.
            disk.remove_file(&path).await.ok();
            return Err(error);
        }
        // It has its name from here on: whatever fails now, there is no other try.
        disk.sync_dir(&self.shared.dir).await.map_err(|error| io::Error::other(error.to_string()))?;
        lock(&self.shared.files).insert(generation, file.clone());
        Ok((file, End { tag, file_bytes, number: header.number, crc, last_frame: (0, bytes), covered: true }))
    }

    /// Prepares the very first file, where spare files are wanted at all.
    pub async fn prepare(&self) -> io::Result<()> {
        let (env, config) = (&self.shared.env, &self.shared.config);
        if config.spare_files > 0 {
            let name = lock(&self.spares).new_name();
            fill(env, (&self.shared.dir, &name), config.file_bytes, None).await?;
            lock(&self.spares).ready.push_back(name);
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.shared.dir.join(name)
    }

    /// A spare file of at least `needed` bytes: a prepared one, else one that is only allocated.
    async fn take(&self, needed: u64) -> io::Result<(String, FileOf<E>, u64)> {
        let disk = self.shared.env.disk();
        let normal = self.shared.config.file_bytes;
        if needed <= normal {
            let ready = lock(&self.spares).ready.pop_front();
            if let Some(name) = ready {
                let _ = self.pool.send(());
                return Ok((name.clone(), disk.open(&self.path(&name), OpenMode::Write).await?, normal));
            }
        }
        let bytes = align_up(needed.max(normal));
        if bytes > FILE_BYTES_MAX {
            let what = format!("a frame needs a WAL file of {bytes} bytes, expected at most {FILE_BYTES_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let name = lock(&self.spares).new_name();
        let path = self.path(&name);
        let file = disk.open(&path, OpenMode::Truncate).await?;
        if let Err(error) = file.allocate(bytes).await {
            // It may have got a part, of the little that is left.
            disk.remove_file(&path).await.ok();
            return Err(error);
        }
        Ok((name, file, bytes))
    }

    /// Gives back the oldest files, as long as they hold nothing that is needed.
    pub async fn recycle(&self, ledger: &mut Ledger, active: u64) -> io::Result<()> {
        loop {
            let oldest =
                lock(&self.shared.files).first_key_value().map(|(generation, file)| (*generation, file.clone()));
            let Some((generation, file)) = oldest.filter(|(generation, _)| *generation < active) else { return Ok(()) };
            if !ledger.is_dead(generation) {
                return Ok(());
            }
            let normal = file.len().await? == self.shared.config.file_bytes;
            lock(&self.shared.files).remove(&generation);
            ledger.forget_file(generation);
            self.give_back(generation, normal).await?;
            self.shared.file_recycled();
        }
    }

    async fn give_back(&self, generation: u64, normal: bool) -> io::Result<()> {
        let disk = self.shared.env.disk();
        let path = self.path(&file_name(generation));
        let name = {
            let mut spares = lock(&self.spares);
            let wanted = normal && spares.ready.len() < self.shared.config.kept_files;
            wanted.then(|| spares.new_name())
        };
        match &name {
            Some(name) => disk.rename(&path, &self.path(name)).await?,
            None => disk.remove_file(&path).await?,
        }
        // Durable before the file is written again, and before the next one goes: the generations in use
        // must have no gap.
        disk.sync_dir(&self.shared.dir).await?;
        lock(&self.spares).ready.extend(name);
        Ok(())
    }
}

/// Starts the task that prepares spare files while the WAL is idle. It ends with the writer.
pub(super) fn start_pool<E: Env>(
    shared: &Arc<Shared<E>>,
    spares: Arc<Mutex<Spares>>,
    mut taken: mpsc::UnboundedReceiver<()>,
) {
    let shared = Arc::downgrade(shared);
    spawn::<E>(async move {
        loop {
            if let Err(error) = fill_pool(&shared, &spares, &taken).await {
                tracing::warn!("prepare a spare WAL file: {error}; the next file will only be allocated");
            }
            if taken.recv().await.is_none() {
                return;
            }
        }
    });
}

async fn fill_pool<E: Env>(
    shared: &Weak<Shared<E>>,
    spares: &Mutex<Spares>,
    taken: &mpsc::UnboundedReceiver<()>,
) -> io::Result<()> {
    loop {
        let Some(wal) = shared.upgrade() else { return Ok(()) };
        let (env, dir, bytes) = (wal.env.clone(), wal.dir.clone(), wal.config.file_bytes);
        let name = {
            let mut spares = lock(spares);
            if spares.ready.len() >= wal.config.spare_files {
                return Ok(());
            }
            spares.new_name()
        };
        drop(wal);
        match fill(&env, (&dir, &name), bytes, Some((shared, taken))).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                // What it got is missed elsewhere.
                env.disk().remove_file(&unfinished(&dir, &name)).await.ok();
                return Err(error);
            }
        }
        lock(spares).ready.push_back(name);
    }
}

fn unfinished(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.tmp"))
}

/// Makes a spare file of zeros: what is written into it later changes nothing but its content, so that to
/// sync it costs no write of the file system's own. With a WAL to wait for, only while that is idle; false
/// when it ended before.
async fn fill<E: Env>(
    env: &E,
    (dir, name): (&Path, &str),
    bytes: u64,
    wait: Option<(&Weak<Shared<E>>, &mpsc::UnboundedReceiver<()>)>,
) -> io::Result<bool> {
    let unfinished = unfinished(dir, name);
    let file = env.disk().open(&unfinished, OpenMode::Truncate).await?;
    for offset in (0..bytes).step_by(FILL_BYTES) {
        if let Some((shared, taken)) = wait
            && !wait_idle(shared, taken).await
        {
            return Ok(false);
        }
        let length = (bytes - offset).min(FILL_BYTES as u64) as usize;
        file.write_at(offset, vec![Bytes::from_static(&ZEROS[..length])]).await?;
        file.sync_data().await?;
    }
    env.disk().rename(&unfinished, &dir.join(name)).await?;
    env.disk().sync_dir(dir).await?;
    Ok(true)
}

/// Waits for a quiet moment; false when the WAL is gone.
async fn wait_idle<E: Env>(shared: &Weak<Shared<E>>, taken: &mpsc::UnboundedReceiver<()>) -> bool {
    loop {
        let Some(idle) = shared.upgrade().map(|shared| shared.idle_for()) else { return false };
        if taken.is_closed() {
            return false;
        }
        if idle >= IDLE {
            return true;
        }
        sleep::<E>(IDLE - idle).await;
    }
}

const _: () = assert!((FILL_BYTES as u64).is_multiple_of(ALIGN));
