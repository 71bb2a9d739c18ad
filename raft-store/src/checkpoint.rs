//! The tree of a group on disk, and how it is brought from one checkpoint to the next.
//!
//! A checkpoint at index C is: the rows changed since the one before, with the marker of C, in a file of
//! our own that is whole and durable first ([`file`]); then the same rows written to the tree and made
//! durable; then the marker in the tree, durable as well. So a tree says C only when it holds C, and one that
//! a crash left between two checkpoints is brought to the newer one by the file. Between checkpoints the
//! tree does not change: it is the source of snapshots.
//!
//! Nothing rests on the tree. At start it is discarded, unread, when the start before did not get through
//! opening it, and after that when its marker or the sum of its rows is not what the file says. What is
//! discarded is rebuilt from the newest snapshot and the log.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard};

use crate::env::{Disk, Env, OpenMode, create_dir_durable, sleep, timeout};
use crate::error::{StoreError, io_at};
use crate::segment::Place;
use crate::snapshot::RowPages;
use crate::tables::{CheckedRows, MARKER_KEY, Overlay, RowSum, Seal};
use crate::tree::{DAMAGED, Tree, TreeWrite, Trees};

mod file;
mod marker;
mod open;
#[cfg(test)]
mod tests;

pub use marker::Marker;

/// There while a tree is opened and proved.
const OPENING: &str = "tree-opening";
/// The directories of trees: this and a number, of which the checkpoint file names the one that counts.
const TREE: &str = "tree-";
/// A tree that does not open, write or sync in this time hangs: sled is known to spin.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows written to the tree, or read from it, at once.
const PAGE_ROWS: usize = 1024;
/// Kept free beside what a checkpoint writes: a tree that runs out of space while it writes is lost.
const FREE_BYTES_MIN: u64 = 16 << 20;

/// How the tree of a group is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeConfig {
    /// Memory for pages of the tree.
    pub cache_bytes: u64,
    /// A tree with at most so many bytes of rows is summed up before it is used; a larger one meanwhile.
    pub check_bytes: u64,
}

/// The tree of a group with its checkpoints.
pub struct Checkpoints<E: Env> {
    home: Home<E>,
    current: Mutex<Current<E>>,
}

/// Where the trees of a group are.
struct Home<E: Env> {
    env: E,
    place: Place,
    dir: PathBuf,
    config: TreeConfig,
    seal: Seal,
}

/// The tree that counts and the checkpoint that it is at. It does not change while this is held.
pub struct Current<E: Env> {
    number: u64,
    tree: TreeOf<E>,
    marker: Marker,
}

type TreeOf<E> = <<E as Env>::Trees as Trees>::Tree;

impl<E: Env> Current<E> {
    /// The checkpoint that the tree is at.
    pub fn marker(&self) -> &Marker {
        &self.marker
    }
}

impl<E: Env> Checkpoints<E> {
    /// Opens the tree in the directory of a group: proved, or a blank one in its place.
    pub async fn open(env: &E, dir: &Path, place: Place, config: TreeConfig) -> Result<Self, StoreError> {
        create_dir_durable(env.disk(), dir).await.map_err(io_at("create", dir))?;
        let home = Home { env: env.clone(), place, dir: dir.into(), config, seal: Seal::new(place) };
        let current = Mutex::new(Box::pin(home.open()).await?);
        Ok(Self { home, current })
    }

    /// The tree, held at its checkpoint.
    pub async fn hold(&self) -> MutexGuard<'_, Current<E>> {
        self.current.lock().await
    }

    /// The rows of the tree.
    pub fn rows(&self, current: &Current<E>) -> CheckedRows {
        self.home.rows(&current.tree)
    }

    /// Whether the rows are so many that they were not summed up at the start.
    pub fn is_unproved(&self, current: &Current<E>) -> bool {
        current.marker.sum.bytes > self.home.config.check_bytes
    }

    /// Brings the tree to the checkpoint `marker`, which differs from the one before by `rows`. After
    /// [`StoreError::Tables`] the tree cannot be trusted; after another error it may be repeated.
    pub async fn save(&self, current: &mut Current<E>, marker: Marker, rows: &Overlay) -> Result<(), StoreError> {
        let home = &self.home;
        home.check_space(rows).await?;
        // Taken before anything is written: what others write meanwhile must not cost the tree.
        current.tree.reserve(rows.bytes() as u64).await.map_err(io_at("reserve space for the tables in", &home.dir))?;
        let named = (current.number, current.marker.name(), &marker);
        file::write(&home.env, &home.dir, home.place, named, rows).await?;
        let changed = rows.iter().map(|(key, value)| (key.clone(), value.cloned()));
        home.put(&current.tree, changed, &marker).await.map_err(|why| home.failed(why))?;
        current.marker = marker;
        Ok(())
    }

    /// Puts a new tree with these rows in the place of this one.
    pub async fn rebuild(
        &self,
        current: &mut Current<E>,
        marker: Marker,
        rows: Option<RowPages<E>>,
    ) -> Result<(), StoreError> {
        let rebuilt = Box::pin(self.home.build(current.number + 1, marker, rows)).await?;
        let old = std::mem::replace(current, rebuilt);
        self.home.remove_tree(old.number).await
    }

    /// Adds up the rows of the tree; the text says what is wrong.
    pub async fn prove(&self, current: &Current<E>) -> Result<(), String> {
        self.home.prove(&current.tree, &current.marker).await
    }

    /// Makes the next start discard the tree.
    pub async fn condemn(&self) -> Result<(), StoreError> {
        self.home.set(DAMAGED).await
    }
}

impl<E: Env> Home<E> {
    fn rows(&self, tree: &TreeOf<E>) -> CheckedRows {
        CheckedRows::new(Arc::new(tree.clone()), self.seal.clone())
    }

    async fn check_space(&self, rows: &Overlay) -> Result<(), StoreError> {
        let need = 3 * rows.bytes() as u64 + FREE_BYTES_MIN;
        let free = self.env.disk().free_bytes(&self.dir).await.map_err(io_at("measure the space of", &self.dir))?;
        if free >= need {
            return Ok(());
        }
        let found = format!(
            "{free} bytes are free, a checkpoint needs {need}: free space or enlarge the disk; it is tried again \
             every 5 s, and the group stops applying when its overlay is full"
        );
        Err(io_at("write a checkpoint in", &self.dir)(io::Error::new(io::ErrorKind::StorageFull, found)))
    }

    /// Rows, then the marker, each durable before what follows.
    async fn put(
        &self,
        tree: &TreeOf<E>,
        mut rows: impl Iterator<Item = TreeWrite> + Send,
        marker: &Marker,
    ) -> Result<(), String> {
        loop {
            let batch: Vec<_> = rows.by_ref().take(PAGE_ROWS).map(|row| self.sealed(row)).collect();
            if batch.is_empty() {
                break;
            }
            in_time::<E, _>("writing rows", tree.write(batch)).await?;
        }
        in_time::<E, _>("a sync", tree.sync()).await?;
        let marker = self.sealed((Bytes::copy_from_slice(&MARKER_KEY), Some(marker.encode())));
        in_time::<E, _>("writing the marker", tree.write(vec![marker])).await?;
        in_time::<E, _>("a sync", tree.sync()).await
    }

    fn sealed(&self, (key, value): TreeWrite) -> TreeWrite {
        let value = value.map(|value| self.seal.seal(&key, &value));
        (key, value)
    }

    /// A new tree with these rows, which the checkpoint file names from here on.
    async fn build(&self, number: u64, marker: Marker, rows: Option<RowPages<E>>) -> Result<Current<E>, StoreError> {
        self.remove_tree(number).await?;
        let tree = self.open_tree(number).await?.map_err(|why| self.failed(why))?;
        let sum = match rows {
            Some(rows) => self.load(&tree, rows).await?,
            None => RowSum::default(),
        };
        if sum.hash != marker.sum.hash {
            return Err(self.failed(format!("rows to rebuild them come to {}, expected {}", sum.hash, marker.sum.hash)));
        }
        let marker = Marker { sum, ..marker };
        self.put(&tree, std::iter::empty(), &marker).await.map_err(|why| self.failed(why))?;
        let named = (number, marker.name(), &marker);
        file::write(&self.env, &self.dir, self.place, named, &Overlay::default()).await?;
        Ok(Current { number, tree, marker })
    }

    async fn load(&self, tree: &TreeOf<E>, mut rows: RowPages<E>) -> Result<RowSum, StoreError> {
        let mut sum = RowSum::default();
        while let Some(page) = rows.next().await? {
            page.iter().for_each(|(key, value)| sum.add(key, value));
            let rows = page.into_iter().map(|(key, value)| self.sealed((key, Some(value)))).collect();
            in_time::<E, _>("writing rows", tree.write(rows)).await.map_err(|why| self.failed(why))?;
        }
        Ok(sum)
    }

    async fn prove(&self, tree: &TreeOf<E>, marker: &Marker) -> Result<(), String> {
        let rows = self.rows(tree);
        let mut sum = RowSum::default();
        let mut last: Option<Bytes> = None;
        loop {
            let page = rows.page(last.as_deref(), PAGE_ROWS).map_err(|error| error.to_string())?;
            let Some((key, _)) = page.last() else { break };
            last = Some(key.clone());
            page.iter().for_each(|(key, value)| sum.add(key, value));
            // Others have the thread in between: a large tree takes seconds.
            sleep::<E>(Duration::ZERO).await;
        }
        let expected = marker.sum;
        if sum == expected { Ok(()) } else { Err(format!("its rows come to {sum:?}, its marker says {expected:?}")) }
    }

    /// Opens a tree. The inner error means that it is to be discarded, the outer one that it hangs.
    async fn open_tree(&self, number: u64) -> Result<Result<TreeOf<E>, String>, StoreError> {
        let dir = self.tree_dir(number);
        let opened = timeout::<E, _>(PATIENCE, self.env.trees().open(&dir, self.config.cache_bytes)).await;
        let hangs = || self.failed(format!("{} did not open in {PATIENCE:?}", dir.display()));
        Ok(opened.ok_or_else(hangs)?.map_err(|error| format!("it does not open: {error}")))
    }

    fn failed(&self, why: String) -> StoreError {
        StoreError::Tables { group: self.place.group, why }
    }

    fn tree_dir(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{TREE}{number}"))
    }

    async fn remove_tree(&self, number: u64) -> Result<(), StoreError> {
        let dir = self.tree_dir(number);
        if !self.env.disk().exists(&dir).await.map_err(io_at("look for", &dir))? {
            return Ok(());
        }
        self.env.disk().remove_dir_all(&dir).await.map_err(io_at("remove", &dir))?;
        self.env.disk().sync_dir(&self.dir).await.map_err(io_at("sync", &self.dir))
    }

    async fn set(&self, name: &str) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        self.env.disk().open(&path, OpenMode::Create).await.map_err(io_at("create", &path))?;
        self.env.disk().sync_dir(&self.dir).await.map_err(io_at("sync", &self.dir))
    }

    async fn clear(&self, name: &str) -> Result<(), StoreError> {
        if self.is_set(name).await? {
            let path = self.dir.join(name);
            self.env.disk().remove_file(&path).await.map_err(io_at("remove", &path))?;
            self.env.disk().sync_dir(&self.dir).await.map_err(io_at("sync", &self.dir))?;
        }
        Ok(())
    }

    async fn is_set(&self, name: &str) -> Result<bool, StoreError> {
        let path = self.dir.join(name);
        self.env.disk().exists(&path).await.map_err(io_at("look for", &path))
    }
}

async fn in_time<E: Env, T: Send>(what: &str, work: impl Future<Output = io::Result<T>> + Send) -> Result<T, String> {
    match timeout::<E, _>(PATIENCE, work).await {
        Some(done) => done.map_err(|error| format!("{what}: {error}")),
        None => Err(format!("{what} took longer than {PATIENCE:?}")),
    }
}
