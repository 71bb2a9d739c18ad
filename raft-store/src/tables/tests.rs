use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::RwLock;

use proptest::prelude::*;
use unibus_proto::id::{ClusterId, GroupId};

use super::*;
use crate::segment::Place;
use crate::tree::{TreeRead, TreeRow};

const PLACE: Place = Place { cluster: ClusterId([7; 16]), group: GroupId(1) };

/// A tree in memory.
#[derive(Default)]
struct MemoryTree(RwLock<FrozenRows>);

impl TreeRead for MemoryTree {
    fn get(&self, key: &[u8]) -> std::io::Result<Option<Bytes>> {
        Ok(self.0.read().expect("no panic").get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: Option<&[u8]>, limit: usize) -> std::io::Result<Vec<TreeRow>> {
        let rows = self.0.read().expect("no panic");
        let range = rows.range::<[u8], _>((Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded)));
        Ok(range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

impl MemoryTree {
    fn write(&self, overlay: &Overlay) {
        let mut rows = self.0.write().expect("no panic");
        for (key, value) in overlay.iter() {
            match value {
                Some(value) => drop(rows.insert(key.clone(), Seal::new(PLACE).seal(key, value))),
                None => drop(rows.remove(key)),
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Change {
    Put(u8, u8),
    Delete(u8),
    Hash,
    Scan(u8, u8, usize),
    Seal,
    Written,
    /// The process dies: what is above the last checkpoint is gone.
    Reopen,
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        8 => (1..40u8, any::<u8>()).prop_map(|(key, value)| Change::Put(key, value)),
        4 => (1..40u8).prop_map(Change::Delete),
        2 => Just(Change::Hash),
        3 => (0..40u8, 0..42u8, 0..12usize).prop_map(|(from, to, limit)| Change::Scan(from, to, limit)),
        1 => Just(Change::Seal),
        2 => Just(Change::Written),
        1 => Just(Change::Reopen),
    ];
    proptest::collection::vec(change, 0..120)
}

/// Tables over a tree beside the reference.
struct Both {
    tree: Arc<MemoryTree>,
    tables: Tables,
    memory: MemoryTables,
    sealed: Option<(Arc<Overlay>, RowSum, FrozenRows)>,
    checkpoint: (RowSum, FrozenRows),
}

impl Both {
    fn new() -> Self {
        let tree = Arc::new(MemoryTree::default());
        let tables = over(&tree, RowSum::default());
        Self { tree, tables, memory: MemoryTables::default(), sealed: None, checkpoint: Default::default() }
    }

    fn step(&mut self, change: &Change) {
        match *change {
            Change::Put(key, value) => {
                let value = Bytes::from(vec![value; usize::from(value % 5)]);
                self.tables.put(vec![key], value.clone());
                self.memory.put(vec![key], value);
            }
            Change::Delete(key) => {
                self.tables.delete(&[key]);
                self.memory.delete(&[key]);
            }
            Change::Hash => assert_eq!(self.tables.state_hash(), self.memory.state_hash()),
            Change::Scan(from, to, limit) => {
                assert_eq!(self.tables.scan(&[from], &[to], limit), self.memory.scan(&[from], &[to], limit));
            }
            Change::Seal if self.sealed.is_none() => {
                let sum = self.tables.sum();
                self.sealed = Some((self.tables.seal(), sum, self.memory.freeze()));
            }
            Change::Written => {
                if let Some((overlay, sum, rows)) = self.sealed.take() {
                    self.tree.write(&overlay);
                    drop(overlay);
                    self.tables.written();
                    self.checkpoint = (sum, rows);
                }
            }
            Change::Reopen => {
                self.tables = over(&self.tree, self.checkpoint.0);
                self.memory.restore(self.checkpoint.1.clone());
                self.sealed = None;
            }
            Change::Seal => {}
        }
    }
}

fn over(tree: &Arc<MemoryTree>, sum: RowSum) -> Tables {
    Tables::new(CheckedRows::new(tree.clone(), Seal::new(PLACE)), sum, 2_000, Faults::default())
}

proptest! {
    /// P10: equal rows have the same state hash, whatever their way to the disk.
    #[test]
    fn they_are_what_the_rows_in_memory_are(changes in changes()) {
        let mut both = Both::new();
        changes.iter().for_each(|change| both.step(change));
        let rows = both.memory.freeze();
        for key in 0..42u8 {
            prop_assert_eq!(both.tables.get(&[key]), rows.get(&[key][..]).cloned());
        }
        both.step(&Change::Seal);
        both.step(&Change::Written);
        for key in 0..42u8 {
            prop_assert_eq!(both.tables.get(&[key]), rows.get(&[key][..]).cloned());
        }
        let all: FrozenRows = both.tables.scan(&[0], &[0xff], usize::MAX).into_iter().collect();
        prop_assert_eq!(&all, &rows);
        let sum = both.tables.sum();
        prop_assert_eq!(sum.hash, StateHash::of(&rows));
        prop_assert_eq!(sum.rows, rows.len() as u64);
        prop_assert_eq!(sum.bytes, rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum::<u64>());
    }
}

#[test]
fn a_long_scan_goes_over_many_pages() {
    let mut both = Both::new();
    for n in 0..3_000u16 {
        both.tables.put([&[1], &n.to_be_bytes()[..]].concat(), Bytes::from_static(b"x"));
    }
    let overlay = both.tables.seal();
    both.tree.write(&overlay);
    drop(overlay);
    both.tables.written();
    (0..3_000u16).step_by(2).for_each(|n| both.tables.delete(&[&[1], &n.to_be_bytes()[..]].concat()));
    assert_eq!(both.tables.scan(&[1], &[2], usize::MAX).len(), 1_500);
    assert_eq!(both.tables.scan(&[1], &[2], 700).len(), 700);
    assert_eq!(both.tables.scan(&[1], &[2], 1)[0].0[..], [1, 0, 1]);
}

/// P9: flipped, cut, or in the place of another.
#[test]
fn a_value_that_is_not_what_was_written_is_never_served() {
    let mut both = Both::new();
    [1, 2].into_iter().for_each(|key| both.tables.put(vec![key], Bytes::from_static(b"value")));
    both.step(&Change::Seal);
    both.step(&Change::Written);
    let sum = both.checkpoint.0;
    let whole = both.tree.0.read().expect("no panic").clone();
    let (first, second) = (whole[&[1u8][..]].clone(), whole[&[2u8][..]].clone());
    let flipped: Vec<u8> = first.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 2)).collect();
    for (what, stored) in [("flipped", flipped.into()), ("of another key", second), ("cut", first.slice(..9))] {
        both.tree.0.write().expect("no panic").insert(Bytes::from_static(&[1]), stored);
        let damage = Faults::default();
        let tables = Tables::new(CheckedRows::new(both.tree.clone(), Seal::new(PLACE)), sum, 2_000, damage.clone());
        assert!(catch_unwind(AssertUnwindSafe(|| tables.get(&[1]))).is_err(), "{what}: served");
        assert!(damage.first().is_some_and(|why| why.contains("does not match its hash")), "{what}");
        assert!(catch_unwind(AssertUnwindSafe(|| tables.scan(&[1], &[9], 5))).is_err(), "{what}: served by a scan");
        assert_eq!(tables.get(&[2]), Some(Bytes::from_static(b"value")), "{what}: the others are whole");
    }
}
