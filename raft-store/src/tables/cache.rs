//! Rows read from the tree, kept for the next reader, in two generations: what is not asked for while the
//! young one fills up is forgotten with the old one.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::overlay::{Overlay, row_bytes};

/// Rows of the tree by key; none for keys that it does not hold.
pub(super) struct RowCache {
    young: BTreeMap<Bytes, Option<Bytes>>,
    old: BTreeMap<Bytes, Option<Bytes>>,
    young_bytes: usize,
    bytes_max: usize,
}

impl RowCache {
    /// An empty cache of about this size.
    pub fn new(bytes_max: usize) -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new(), young_bytes: 0, bytes_max }
    }

    /// What the tree holds of a key, if that is known.
    pub fn get(&mut self, key: &[u8]) -> Option<Option<Bytes>> {
        if let Some(known) = self.young.get(key) {
            return Some(known.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.insert(key, value.clone());
        Some(value)
    }

    /// Remembers what the tree holds of a key.
    pub fn insert(&mut self, key: Bytes, value: Option<Bytes>) {
        self.young_bytes += row_bytes(&key, value.as_ref());
        self.young.insert(key, value);
        if self.young_bytes > self.bytes_max / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }

    /// Forgets a key, which the tree will soon hold otherwise.
    pub fn forget(&mut self, key: &[u8]) {
        self.old.remove(key);
        self.young.remove(key);
    }

    /// Takes over rows that the tree holds now as its old generation, unless they are too many. What was
    /// taken over before may be changed by them, so it goes in any case.
    pub fn adopt(&mut self, overlay: Option<Overlay>) {
        let small = overlay.filter(|overlay| overlay.bytes() <= self.bytes_max / 2);
        self.old = small.map(Overlay::into_rows).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_bound_and_keeps_what_is_asked_for() {
        let mut cache = RowCache::new(8_000);
        let key = |n: u32| Bytes::copy_from_slice(&n.to_be_bytes());
        cache.insert(key(0), Some(Bytes::from_static(b"hot")));
        for n in 1..10_000 {
            cache.insert(key(n), None);
            assert_eq!(cache.get(&key(0)), Some(Some(Bytes::from_static(b"hot"))));
        }
        assert!(cache.young.len() + cache.old.len() < 100);
        assert_eq!(cache.get(&key(1)), None);
        assert_eq!(cache.get(&key(9_999)), Some(None), "known not to be there");
        cache.forget(&key(0));
        assert_eq!(cache.get(&key(0)), None);
    }
}
