//! The values that were used last, within a bound.

use std::collections::BTreeMap;

/// Keeps values up to a total weight; the one that was not used for longest goes first.
pub struct Lru<K, V> {
    values: BTreeMap<K, (u64, usize, V)>,
    by_use: BTreeMap<u64, K>,
    clock: u64,
    weight: usize,
    weight_max: usize,
}

impl<K: Ord + Clone, V: Clone> Lru<K, V> {
    /// Keeps at most `weight_max`.
    pub fn new(weight_max: usize) -> Self {
        Self { values: BTreeMap::new(), by_use: BTreeMap::new(), clock: 0, weight: 0, weight_max }
    }

    /// A value, which counts as used now.
    pub fn get(&mut self, key: &K) -> Option<V> {
        self.clock += 1;
        let (used, _, value) = self.values.get_mut(key)?;
        self.by_use.remove(used);
        *used = self.clock;
        self.by_use.insert(self.clock, key.clone());
        Some(value.clone())
    }

    /// Puts a value in, in place of an earlier one.
    pub fn put(&mut self, key: K, weight: usize, value: V) {
        self.clock += 1;
        if let Some((used, before, _)) = self.values.insert(key.clone(), (self.clock, weight, value)) {
            self.by_use.remove(&used);
            self.weight -= before;
        }
        self.by_use.insert(self.clock, key);
        self.weight += weight;
        while self.weight > self.weight_max {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            let (_, weight, _) = self.values.remove(&oldest).expect("both maps hold the same keys");
            self.weight -= weight;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.values.clear();
        self.by_use.clear();
        self.weight = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first_and_the_bound_holds() {
        let mut lru = Lru::new(10);
        lru.put('a', 4, 1);
        lru.put('b', 4, 2);
        assert_eq!(lru.get(&'a'), Some(1));
        lru.put('c', 4, 3);
        assert_eq!((lru.get(&'a'), lru.get(&'b'), lru.get(&'c')), (Some(1), None, Some(3)));
        lru.put('a', 1, 9);
        lru.put('d', 5, 4);
        assert_eq!((lru.get(&'a'), lru.get(&'c'), lru.get(&'d')), (Some(9), Some(3), Some(4)));
        lru.put('e', 11, 5);
        assert_eq!(lru.get(&'e'), None, "larger than all that may be kept");
        assert_eq!(lru.weight, 0);
    }
}
