//! Creating and opening a WAL.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};
use unibus_proto::id::{ClusterId, GroupId};

use super::error::WalError;
use super::files::{FILE_BYTES_MAX, FileSet, Spares, start_pool};
use super::frame::{ALIGN, align_up};
use super::handle::GroupLog;
use super::ledger::Ledger;
use super::recover::{Recovered, Replay, file_name};
use super::shared::{FileOf, Request, Shared, WalStats, lock};
use super::writer::Writer;
use super::{WalConfig, index::Index};
use crate::env::{Disk, DiskFile, Env, OpenMode, create_dir_durable, spawn};

/// The write-ahead log of a node. Clones share it; the writer ends when the last one and the last handle
/// are gone.
pub struct Wal<E: Env> {
    shared: Arc<Shared<E>>,
    queue: mpsc::UnboundedSender<Request>,
}

impl<E: Env> Clone for Wal<E> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), queue: self.queue.clone() }
    }
}

impl<E: Env> std::fmt::Debug for Wal<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

/// What is in a WAL directory.
struct Found {
    generations: Vec<u64>,
    spares: Vec<String>,
    unfinished: Vec<String>,
}

impl<E: Env> Wal<E> {
    /// Whether `dir` holds a WAL.
    pub async fn exists(env: &E, dir: &Path) -> Result<bool, WalError> {
        if !env.disk().exists(dir).await.map_err(WalError::io("look for WAL", dir))? {
            return Ok(false);
        }
        Ok(!list(env, dir).await?.generations.is_empty())
    }

    /// Makes an empty WAL in `dir`; durable when this returns. A crash before leaves no WAL.
    pub async fn create(env: &E, dir: &Path, cluster: ClusterId, config: &WalConfig) -> Result<(), WalError> {
        let disk = env.disk();
        create_dir_durable(disk, dir).await.map_err(WalError::io("create WAL directory", dir))?;
        if let Some(parent) = dir.parent() {
            disk.sync_dir(parent).await.map_err(WalError::io("sync directory", parent))?;
        }
        if !list(env, dir).await?.generations.is_empty() {
            return Err(WalError::Exists { dir: dir.into() });
        }
        let shared = Arc::new(Shared::new(env.clone(), dir.into(), normal(config), BTreeMap::new()));
        let files = FileSet { shared, cluster, spares: Arc::default(), pool: mpsc::unbounded_channel().0 };
        files.prepare().await.map_err(WalError::io("create WAL", dir))?;
        files.advance(None, &Ledger::default(), 0).await.map_err(WalError::io("create WAL", dir))?;
        Ok(())
    }

    /// Opens the WAL in `dir`: reads it back, refuses damage, makes durable what it found, starts writing.
    pub async fn open(env: &E, dir: &Path, cluster: ClusterId, config: WalConfig) -> Result<Self, WalError> {
        let config = normal(&config);
        let found = match env.disk().exists(dir).await.map_err(WalError::io("open WAL", dir))? {
            true => list(env, dir).await?,
            false => return Err(WalError::Missing { dir: dir.into() }),
        };
        let (recovered, files) = recover(env, dir, cluster, &found.generations).await?;
        let spares = tidy(env, dir, found, &config).await.map_err(WalError::io("tidy WAL directory", dir))?;
        let Recovered { ledger, indexes, end, torn_tail } = recovered;
        if torn_tail {
            let file = file_name(end.tag.generation);
            tracing::info!("WAL {file}: dropped a round that was not finished, at byte {}", end.last_frame.1);
        }
        let file = files.last_key_value().map(|(_, file)| file.clone());
        let file = file.ok_or_else(|| WalError::Missing { dir: dir.into() })?;
        Ok(Self::start(env, dir, cluster, config, (ledger, indexes, end), (file, files, spares)))
    }

    fn start(
        env: &E,
        dir: &Path,
        cluster: ClusterId,
        config: WalConfig,
        (ledger, indexes, end): (Ledger, BTreeMap<GroupId, Index>, super::recover::End),
        (file, files, spares): (FileOf<E>, BTreeMap<u64, FileOf<E>>, Spares),
    ) -> Self {
        let shared = Arc::new(Shared::new(env.clone(), dir.into(), config, indexes));
        *lock(&shared.files) = files;
        let spares = Arc::new(Mutex::new(spares));
        let (pool, taken) = mpsc::unbounded_channel();
        start_pool(&shared, spares.clone(), taken);
        let files = FileSet { shared: shared.clone(), cluster, spares, pool };
        let (queue, requests) = mpsc::unbounded_channel();
        let writer = Writer { shared: shared.clone(), queue: requests, files, file, ledger, end };
        spawn::<E>(writer.run());
        Self { shared, queue }
    }

    /// The handle of a group; a group that was never written to is empty.
    pub fn group(&self, group: GroupId) -> GroupLog<E> {
        GroupLog { shared: self.shared.clone(), group: self.shared.group(group), queue: self.queue.clone() }
    }

    /// The groups that the WAL knows.
    pub fn groups(&self) -> Vec<GroupId> {
        self.shared.all_groups().iter().map(|group| group.id).collect()
    }

    /// Figures.
    pub fn stats(&self) -> WalStats {
        self.shared.stats()
    }

    /// Why nothing is written: a new file is needed and the disk has no space for it.
    pub fn stalled(&self) -> Option<String> {
        self.shared.stalled()
    }

    /// From here on the WAL does not wait for space but fails.
    pub fn give_up_waiting(&self) {
        self.shared.give_up_waiting();
    }

    /// Resolves with the error that stopped the WAL: then the process must exit.
    pub fn fault(&self) -> impl Future<Output = String> + Send + 'static {
        self.shared.fault()
    }

    /// Writes what waits and stops. Later requests fail.
    pub async fn shutdown(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.queue.send(Request::Shutdown(reply)).is_ok() {
            drop(stopped.await);
        }
    }
}

fn normal(config: &WalConfig) -> WalConfig {
    WalConfig { file_bytes: align_up(config.file_bytes).clamp(8 * ALIGN, FILE_BYTES_MAX), ..config.clone() }
}

async fn list<E: Env>(env: &E, dir: &Path) -> Result<Found, WalError> {
    let names = env.disk().list(dir).await.map_err(WalError::io("list WAL directory", dir))?;
    let mut found = Found { generations: vec![], spares: vec![], unfinished: vec![] };
    for name in names {
        match name.strip_suffix(".wal").map(str::parse::<u64>) {
            Some(Ok(generation)) => found.generations.push(generation),
            _ if name.ends_with(".tmp") => found.unfinished.push(name),
            _ if name.starts_with("spare-") => found.spares.push(name),
            _ => tracing::warn!("WAL directory {}: ignoring {name}", dir.display()),
        }
    }
    found.generations.sort_unstable();
    Ok(found)
}

/// Reads the files back, and writes the last frame once more: a process that died may have left it in the
/// page cache only, and a sync that failed may have left it there marked clean.
async fn recover<E: Env>(
    env: &E,
    dir: &Path,
    cluster: ClusterId,
    generations: &[u64],
) -> Result<(Recovered, BTreeMap<u64, FileOf<E>>), WalError> {
    let mut replay = Replay::new(cluster);
    let mut files = BTreeMap::new();
    let mut last = None;
    for generation in generations {
        let path = dir.join(file_name(*generation));
        let file = env.disk().open(&path, OpenMode::Write).await.map_err(WalError::io("open WAL", &path))?;
        let bytes = async { file.read_at(0, file.len().await? as usize).await };
        let bytes = bytes.await.map_err(WalError::io("read WAL", &path))?;
        replay.file(*generation, &bytes).map_err(|damage| WalError::Damaged { dir: dir.into(), damage })?;
        last = Some((path, file.clone(), bytes));
        files.insert(*generation, file);
    }
    let recovered = replay.finish().map_err(|damage| WalError::Damaged { dir: dir.into(), damage })?;
    let (Some(recovered), Some((path, file, bytes))) = (recovered, last) else {
        return Err(WalError::Missing { dir: dir.into() });
    };
    let (start, end) = recovered.end.last_frame;
    let frame = bytes.slice(start as usize..(end as usize).min(bytes.len()));
    file.write_at_sync(start, vec![frame]).await.map_err(WalError::io("sync WAL", &path))?;
    env.disk().sync_dir(dir).await.map_err(WalError::io("sync WAL directory", dir))?;
    Ok((recovered, files))
}

/// Removes what was being prepared, and spare files of another size.
async fn tidy<E: Env>(env: &E, dir: &Path, found: Found, config: &WalConfig) -> io::Result<Spares> {
    let disk = env.disk();
    for name in found.unfinished {
        disk.remove_file(&dir.join(name)).await?;
    }
    let mut kept = vec![];
    for name in found.spares {
        let path = dir.join(&name);
        let bytes = disk.open(&path, OpenMode::Write).await?.len().await?;
        if bytes == config.file_bytes && kept.len() < config.kept_files {
            kept.push(name);
        } else {
            disk.remove_file(&path).await?;
        }
    }
    Ok(Spares::found(kept))
}
