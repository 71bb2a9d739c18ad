//! Rows changed since the last checkpoint.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

/// Counted for each row beside its key and value: nodes of the map, handles, allocations.
const ROW_OVERHEAD_BYTES: usize = 128;

/// What a row takes in memory, about.
pub(super) fn row_bytes(key: &[u8], value: Option<&Bytes>) -> usize {
    ROW_OVERHEAD_BYTES + key.len() + value.map_or(0, Bytes::len)
}

/// Changed rows; none for deleted ones.
#[derive(Default)]
pub struct Overlay {
    rows: BTreeMap<Bytes, Option<Bytes>>,
    bytes: usize,
}

impl Overlay {
    /// What became of a key; none when it was not changed.
    pub fn get(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        self.rows.get(key).map(Option::as_ref)
    }

    /// Sets or deletes a row.
    pub fn set(&mut self, key: Bytes, value: Option<Bytes>) {
        self.bytes += row_bytes(&key, value.as_ref());
        let size = row_bytes(&key, None);
        if let Some(before) = self.rows.insert(key, value) {
            self.bytes -= size + before.map_or(0, |before| before.len());
        }
    }

    /// Changed rows of a range, ascending.
    pub fn range<'a>(&'a self, from: &[u8], to: &[u8]) -> impl Iterator<Item = (&'a Bytes, Option<&'a Bytes>)> {
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        self.rows.range::<[u8], _>(bounds).map(|(key, value)| (key, value.as_ref()))
    }

    /// All changed rows, ascending.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Bytes, Option<&Bytes>)> {
        self.rows.iter().map(|(key, value)| (key, value.as_ref()))
    }

    /// The rows themselves.
    pub fn into_rows(self) -> BTreeMap<Bytes, Option<Bytes>> {
        self.rows
    }

    /// Says that it takes more than it does.
    #[cfg(test)]
    pub(crate) fn claim_bytes(&mut self, bytes: usize) {
        self.bytes = bytes;
    }

    /// What it takes in memory, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
