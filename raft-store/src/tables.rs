//! The rows of a group's machine: an overlay of what changed since the last checkpoint, over a bounded
//! cache of rows, over the tree, which is frozen at that checkpoint and larger than memory.
//!
//! A checkpoint seals the overlay and opens a second one; while the sealed one is written to the tree it
//! still answers for its rows, so readers see no difference. Nothing that the tree gives back wrong is
//! served: the replica stops, and the next start discards the tree.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use unibus_machine::Rows;

use crate::faults::Faults;

mod cache;
mod checked;
mod hash;
#[cfg(any(test, feature = "testing"))]
mod memory;
mod overlay;
mod scan;
#[cfg(test)]
mod tests;

use cache::RowCache;
pub use checked::{CheckedRows, FIRST_ROW, MARKER_KEY, Seal};
pub use hash::StateHash;
#[cfg(any(test, feature = "testing"))]
pub use memory::MemoryTables;
pub use overlay::Overlay;

/// A consistent copy of the rows, ascending by key.
pub type FrozenRows = BTreeMap<Bytes, Bytes>;

/// What all rows come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowSum {
    /// The state hash.
    pub hash: StateHash,
    /// How many there are.
    pub rows: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl RowSum {
    /// Counts a row in.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.hash.add_row(key, value);
        self.rows += 1;
        self.bytes += (key.len() + value.len()) as u64;
    }

    fn subtract(&mut self, key: &[u8], value: &[u8]) {
        self.hash.subtract_row(key, value);
        self.rows -= 1;
        self.bytes -= (key.len() + value.len()) as u64;
    }
}

/// See the module.
pub struct Tables {
    open: Overlay,
    sealed: Option<Arc<Overlay>>,
    cache: Mutex<RowCache>,
    tree: CheckedRows,
    sum: RowSum,
    /// Rows changed since `sum` was taken, with what it counts for them.
    dirty: BTreeMap<Bytes, Option<Bytes>>,
    damage: Faults,
}

impl Tables {
    /// The rows of `tree`, which come to `sum`. Damage that is read is reported to `damage`.
    pub fn new(tree: CheckedRows, sum: RowSum, cache_bytes: usize, damage: Faults) -> Self {
        Self {
            open: Overlay::default(),
            sealed: None,
            cache: Mutex::new(RowCache::new(cache_bytes)),
            tree,
            sum,
            dirty: BTreeMap::new(),
            damage,
        }
    }

    /// The hash of all rows as they stand; costs the rows changed since the last call.
    pub fn state_hash(&mut self) -> StateHash {
        self.sum().hash
    }

    /// What all rows come to as they stand; costs the rows changed since the last call.
    pub fn sum(&mut self) -> RowSum {
        for (key, before) in std::mem::take(&mut self.dirty) {
            if let Some(before) = before {
                self.sum.subtract(&key, &before);
            }
            if let Some(now) = self.get(&key) {
                self.sum.add(&key, &now);
            }
        }
        self.sum
    }

    /// What the overlay that is not sealed takes in memory, about.
    pub fn open_bytes(&self) -> usize {
        self.open.bytes()
    }

    /// Seals the overlay and opens another one. The one sealed before must be written.
    pub fn seal(&mut self) -> Arc<Overlay> {
        assert!(self.sealed.is_none(), "a checkpoint is finished before the next one begins");
        let sealed = Arc::new(std::mem::take(&mut self.open));
        self.sealed = Some(sealed.clone());
        sealed
    }

    /// The tree holds what was sealed. Answers what is left of it, to be dropped when nobody waits.
    pub fn written(&mut self) -> Option<Arc<Overlay>> {
        let (overlay, shared) = match Arc::try_unwrap(self.sealed.take()?) {
            Ok(overlay) => (Some(overlay), None),
            Err(shared) => (None, Some(shared)),
        };
        self.cache().adopt(overlay);
        shared
    }

    fn change(&mut self, key: Bytes, value: Option<Bytes>) {
        if !self.dirty.contains_key(&key) {
            let before = self.get(&key);
            if before.is_none() && value.is_none() {
                return;
            }
            self.dirty.insert(key.clone(), before);
        }
        if self.open.get(&key).is_none() {
            self.cache().forget(&key);
        }
        self.open.set(key, value);
    }

    fn stored(&self, key: &[u8]) -> Option<Bytes> {
        if let Some(known) = self.cache().get(key) {
            return known;
        }
        let value = self.tree.get(key).unwrap_or_else(|error| self.stop(&error));
        self.cache().insert(Bytes::copy_from_slice(key), value.clone());
        value
    }

    /// Ends whoever asked: there is no answer that is known to be right.
    fn stop(&self, error: &std::io::Error) -> ! {
        self.damage.report(format!("tables: {error}; the tree is discarded at the next start, which rebuilds it"));
        panic!("tables: {error}");
    }

    fn cache(&self) -> MutexGuard<'_, RowCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows for Tables {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        let sealed = || self.sealed.as_ref().and_then(|sealed| sealed.get(key));
        match self.open.get(key).or_else(sealed) {
            Some(changed) => changed.cloned(),
            None => self.stored(key),
        }
    }

    fn put(&mut self, key: Vec<u8>, value: Bytes) {
        self.change(key.into(), Some(value));
    }

    fn delete(&mut self, key: &[u8]) {
        self.change(Bytes::copy_from_slice(key), None);
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Vec<(Bytes, Bytes)> {
        let from = from.max(&FIRST_ROW);
        if from >= to || limit == 0 {
            return vec![];
        }
        let layers = [Some(&self.open), self.sealed.as_deref()];
        scan::merge(&self.tree, layers, (from, to), limit).unwrap_or_else(|error| self.stop(&error))
    }
}
