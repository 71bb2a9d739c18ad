//! Rows in memory: the reference that the tables over a tree must agree with.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use unibus_machine::Rows;

use super::{FrozenRows, StateHash};

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

impl MemoryTables {
    /// The hash of all rows as they stand; costs the rows changed since the last call.
    pub fn state_hash(&mut self) -> StateHash {
        for (key, before) in std::mem::take(&mut self.dirty) {
            if let Some(before) = before {
                self.hash.subtract_row(&key, &before);
            }
            if let Some(now) = self.rows.get(&key) {
                self.hash.add_row(&key, now);
            }
        }
        self.hash
    }

    /// All rows as they stand.
    pub fn freeze(&self) -> FrozenRows {
        self.rows.clone()
    }

    /// Replaces all rows.
    pub fn restore(&mut self, rows: FrozenRows) {
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
