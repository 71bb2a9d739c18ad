//! The rows of a group's machine and their state hash.
//!
//! [`Tables`] is the seam behind which rows live: in memory here, larger than memory later. The state
//! hash is additive: the sum, modulo 2^256, of a keyed hash over each row. So it costs only the rows
//! that changed since it was last taken, does not depend on the order of changes, and a scan of any
//! copy of the rows must add up to the same number.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use bytes::Bytes;
use unibus_machine::Rows;

/// A consistent copy of the rows, ascending by key.
pub type FrozenRows = BTreeMap<Bytes, Bytes>;

/// Rows that know their hash and can be copied at a moment.
pub trait Tables: Rows + Send + Sync + 'static {
    /// The hash of all rows as they stand; costs the rows changed since the last call.
    fn state_hash(&mut self) -> StateHash;
    /// All rows as they stand.
    fn freeze(&self) -> FrozenRows;
    /// Replaces all rows.
    fn restore(&mut self, rows: FrozenRows);
}

/// Sum of the keyed hashes of rows, modulo 2^256 (little-endian).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct StateHash(pub [u8; 32]);

impl StateHash {
    /// The hash of a set of rows.
    pub fn of<'a>(rows: impl IntoIterator<Item = (&'a Bytes, &'a Bytes)>) -> Self {
        let mut sum = Self::default();
        rows.into_iter().for_each(|(key, value)| sum.add(row_hash(key, value)));
        sum
    }

    fn add(&mut self, term: [u8; 32]) {
        let mut carry = 0u16;
        for (digit, add) in self.0.iter_mut().zip(term) {
            carry += u16::from(*digit) + u16::from(add);
            *digit = carry as u8;
            carry >>= 8;
        }
    }

    fn subtract(&mut self, term: [u8; 32]) {
        let mut borrow = 0i16;
        for (digit, sub) in self.0.iter_mut().zip(term) {
            let difference = i16::from(*digit) - i16::from(sub) - borrow;
            *digit = difference as u8;
            borrow = i16::from(difference < 0);
        }
    }
}

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn row_hash(key: &[u8], value: &[u8]) -> [u8; 32] {
    const KEY: &[u8; 32] = b"unibus state hash of rows, v1   ";
    let mut hasher = blake3::Hasher::new_keyed(KEY);
    hasher.update(&(key.len() as u32).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize().into()
}

/// Rows in memory.
#[derive(Default)]
pub struct MemoryTables {
    rows: FrozenRows,
    hash: StateHash,
    /// Rows changed since `hash` was taken, with what `hash` counts for them.
    dirty: BTreeMap<Bytes, Option<Bytes>>,
}

impl Rows for MemoryTables {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.rows.get(key).cloned()
    }

    fn put(&mut self, key: Vec<u8>, value: Bytes) {
        let key = Bytes::from(key);
        let before = self.rows.insert(key.clone(), value);
        self.dirty.entry(key).or_insert(before);
    }

    fn delete(&mut self, key: &[u8]) {
        if let Some((key, before)) = self.rows.remove_entry(key) {
            self.dirty.entry(key).or_insert(Some(before));
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Vec<(Bytes, Bytes)> {
        if from >= to {
            return vec![];
        }
        let range = self.rows.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

impl Tables for MemoryTables {
    fn state_hash(&mut self) -> StateHash {
        for (key, before) in std::mem::take(&mut self.dirty) {
            if let Some(before) = before {
                self.hash.subtract(row_hash(&key, &before));
            }
            if let Some(now) = self.rows.get(&key) {
                self.hash.add(row_hash(&key, now));
            }
        }
        self.hash
    }

    fn freeze(&self) -> FrozenRows {
        self.rows.clone()
    }

    fn restore(&mut self, rows: FrozenRows) {
        self.hash = StateHash::of(&rows);
        self.dirty.clear();
        self.rows = rows;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_running_hash_is_the_hash_of_the_rows(steps in proptest::collection::vec((0..8u8, any::<Option<u8>>(), any::<bool>()), 0..64)) {
            let mut tables = MemoryTables::default();
            for (key, value, take) in steps {
                match value {
                    Some(value) => tables.put(vec![key], Bytes::from(vec![value])),
                    None => tables.delete(&[key]),
                }
                if take {
                    tables.state_hash();
                }
            }
            let frozen = tables.freeze();
            prop_assert_eq!(tables.state_hash(), StateHash::of(&frozen));
            let mut copy = MemoryTables::default();
            copy.restore(frozen);
            prop_assert_eq!(copy.state_hash(), tables.state_hash());
        }
    }

    #[test]
    fn any_difference_changes_the_hash() {
        let hash = |rows: &[(&'static [u8], &'static [u8])]| {
            let rows: FrozenRows = rows.iter().map(|(k, v)| (Bytes::from_static(k), Bytes::from_static(v))).collect();
            StateHash::of(&rows)
        };
        assert_eq!(hash(&[]), StateHash::default());
        assert_ne!(hash(&[(b"a", b"1")]), hash(&[(b"a", b"2")]));
        assert_ne!(hash(&[(b"a", b"1")]), hash(&[(b"a1", b"")]));
        assert_ne!(hash(&[(b"a", b"1"), (b"b", b"2")]), hash(&[(b"a", b"2"), (b"b", b"1")]));
    }
}
