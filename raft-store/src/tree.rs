//! The seam under the tables: an ordered map on disk that is larger than memory, and is not trusted.
//!
//! A [`Tree`] promises little: what was written can be read while the process lives, and after
//! [`Tree::sync`] it is probably there after a power cut. Everything that must hold (a batch that is whole
//! or absent, values that are those written, rows that add up) is proved above it, by
//! [`checkpoint`](crate::checkpoint) and [`tables`](crate::tables). Production is [`SledTrees`], the only
//! importer of sled; the simulator and the tests have [`LogTrees`] over their own [`Disk`](crate::env::Disk).

use std::future::Future;
use std::io;
use std::path::Path;

use bytes::Bytes;

mod hang;
mod log_trees;
mod sled_trees;

pub use log_trees::{LogTree, LogTrees};
pub use sled_trees::{SledTree, SledTrees};

/// In the directory above a tree: says that it gave back something wrong, or nothing.
pub const DAMAGED: &str = "tree-damaged";

/// A row that a tree holds.
pub type TreeRow = (Bytes, Bytes);
/// What becomes of a key: its new value, or none.
pub type TreeWrite = (Bytes, Option<Bytes>);

/// Reading a tree. Both block for as long as a page fault takes, never for a writer.
pub trait TreeRead: Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>>;
    /// The first `limit` rows with `from <= key`, and `key < to` where a `to` is given, ascending.
    fn scan(&self, from: &[u8], to: Option<&[u8]>, limit: usize) -> io::Result<Vec<TreeRow>>;
}

/// An ordered map on disk.
pub trait Tree: TreeRead + Clone {
    /// Takes the space that writing so many bytes of rows needs, so that [`Tree::write`] and [`Tree::sync`] do not
    /// run out of it half-way: a tree that does is lost.
    fn reserve(&self, bytes: u64) -> impl Future<Output = io::Result<()>> + Send;
    /// Writes rows, neither durably nor atomically.
    fn write(&self, rows: Vec<TreeWrite>) -> impl Future<Output = io::Result<()>> + Send;
    /// Makes what was written durable. A failed one is never retried: the tree is discarded.
    fn sync(&self) -> impl Future<Output = io::Result<()>> + Send;
}

/// Where trees come from.
pub trait Trees: Clone + Send + Sync + 'static {
    /// An open tree.
    type Tree: Tree;
    /// Opens the tree in `dir`, made when missing, with about `cache_bytes` of memory for its pages.
    fn open(&self, dir: &Path, cache_bytes: u64) -> impl Future<Output = io::Result<Self::Tree>> + Send;
}
