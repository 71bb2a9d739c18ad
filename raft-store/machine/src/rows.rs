//! What the machine stores its state in: an ordered map from bytes to bytes.
//!
//! The machine owns the meaning of keys ([`crate::key`]) and values (`unibus_proto::row`); whoever
//! implements [`Rows`] owns where they lie: tables with an overlay in production, [`MemoryRows`] in tests.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use prost::Message;

use crate::key::Key;

/// An ordered map of rows. Reads see the writes before them.
pub trait Rows {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Option<Bytes>;
    /// Sets the value of a key.
    fn put(&mut self, key: Vec<u8>, value: Bytes);
    /// Removes a key; nothing happens when it is not there.
    fn delete(&mut self, key: &[u8]);
    /// The first `limit` rows with `from <= key < to`, ascending.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Vec<(Bytes, Bytes)>;
}

/// Rows in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryRows(BTreeMap<Vec<u8>, Bytes>);

impl MemoryRows {
    /// All rows, ascending by key.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Bytes)> {
        self.0.iter().map(|(key, value)| (key.as_slice(), value))
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Rows for MemoryRows {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.0.get(key).cloned()
    }

    fn put(&mut self, key: Vec<u8>, value: Bytes) {
        self.0.insert(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.0.remove(key);
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Vec<(Bytes, Bytes)> {
        if from >= to {
            return Vec::new();
        }
        let range = self.0.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        range.take(limit).map(|(key, value)| (Bytes::copy_from_slice(key), value.clone())).collect()
    }
}

/// Reads and decodes a row.
pub(crate) fn get<M: Message + Default>(rows: &impl Rows, key: &Key<'_>) -> Option<M> {
    let key = key.encode();
    rows.get(&key).map(|value| decode(&key, value))
}

/// Encodes and writes a row.
pub(crate) fn put(rows: &mut impl Rows, key: &Key<'_>, row: &impl Message) {
    rows.put(key.encode(), row.encode_to_vec().into());
}

/// Removes a row.
pub(crate) fn delete(rows: &mut impl Rows, key: &Key<'_>) {
    rows.delete(&key.encode());
}

/// Whether there is such a row.
pub(crate) fn exists(rows: &impl Rows, key: &Key<'_>) -> bool {
    rows.get(&key.encode()).is_some()
}

/// Decodes a value that this machine wrote.
pub(crate) fn decode<M: Message + Default>(key: &[u8], value: Bytes) -> M {
    // Rows are checksummed where they are stored; one that does not decode was written by another program.
    M::decode(value).unwrap_or_else(|error| {
        panic!("row {:?} ({key:02x?}) does not decode: {error}; discard the tables", Key::parse(key))
    })
}
