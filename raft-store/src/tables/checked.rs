//! Values that prove themselves: each is stored with a keyed hash over key and value, so that what a tree
//! gives back wrong, or from another place, is never served.

use std::io;
use std::sync::Arc;

use blake3::Hasher;
use bytes::{BufMut, Bytes, BytesMut};

use crate::segment::Place;
use crate::tree::{TreeRead, TreeRow};

/// Where the marker of a tree lies. The rows of the machine begin at 1.
pub const MARKER_KEY: [u8; 1] = [0];
/// Where its rows begin.
pub const FIRST_ROW: [u8; 1] = [1];

const HASH_BYTES: usize = 16;

/// Seals and opens the values of one group.
#[derive(Clone)]
pub struct Seal(Hasher);

impl Seal {
    /// The seal of a group: what another group or cluster wrote does not pass.
    pub fn new(place: Place) -> Self {
        let mut key = Hasher::new_derive_key("unibus 2026 stored value of the tables, v1");
        key.update(&place.cluster.0).update(&place.group.0.to_le_bytes());
        Self(Hasher::new_keyed(key.finalize().as_bytes()))
    }

    /// The value as it is stored.
    pub fn seal(&self, key: &[u8], value: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(value.len() + HASH_BYTES);
        out.put_slice(value);
        out.put_slice(&self.hash(key, value));
        out.freeze()
    }

    /// The value of what is stored.
    pub fn open(&self, key: &[u8], stored: &Bytes) -> io::Result<Bytes> {
        let wrong = || {
            let found = format!("the stored value of row {key:02x?} does not match its hash");
            io::Error::new(io::ErrorKind::InvalidData, found)
        };
        let length = stored.len().checked_sub(HASH_BYTES).ok_or_else(wrong)?;
        let value = stored.slice(..length);
        if self.hash(key, &value) == stored[length..] { Ok(value) } else { Err(wrong()) }
    }

    fn hash(&self, key: &[u8], value: &[u8]) -> [u8; HASH_BYTES] {
        let mut hasher = self.0.clone();
        hasher.update(&(key.len() as u32).to_le_bytes()).update(key).update(value);
        let mut hash = [0; HASH_BYTES];
        hasher.finalize_xof().fill(&mut hash);
        hash
    }
}

/// The rows of a tree, each checked when it is read. Clones share the tree.
#[derive(Clone)]
pub struct CheckedRows {
    tree: Arc<dyn TreeRead>,
    seal: Seal,
}

impl CheckedRows {
    /// The rows of a tree.
    pub fn new(tree: Arc<dyn TreeRead>, seal: Seal) -> Self {
        Self { tree, seal }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.tree.get(key)?.map(|stored| self.seal.open(key, &stored)).transpose()
    }

    /// The first `limit` rows with `from <= key`, and `key < to` where a `to` is given, ascending.
    pub fn scan(&self, from: &[u8], to: Option<&[u8]>, limit: usize) -> io::Result<Vec<TreeRow>> {
        let mut rows = self.tree.scan(from, to, limit)?;
        for (key, value) in &mut rows {
            *value = self.seal.open(key, value)?;
        }
        Ok(rows)
    }

    /// The machine's rows after `after`, at most `limit`.
    pub fn page(&self, after: Option<&[u8]>, limit: usize) -> io::Result<Vec<TreeRow>> {
        match after {
            Some(after) => self.scan(&[after, &[0]].concat(), None, limit),
            None => self.scan(&FIRST_ROW, None, limit),
        }
    }
}
