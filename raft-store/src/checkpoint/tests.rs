use std::sync::Mutex as StdMutex;

use openraft_rt_tokio::TokioRuntime;
use unibus_proto::id::{ClusterId, GroupId, NodeId};

use super::*;
use crate::env::{Instant, now};
use crate::tables::{FrozenRows, Tables};
use crate::testing::crash::{CrashDisk, CrashEnv};
use crate::testing::{FixedClock, FsDisk, NoNet, SeededRng, TestEnv};
use crate::tree::{LogTree, LogTrees, SledTrees, TreeRead, TreeRow};
use crate::types::{SnapshotMeta, StoredMembership, log_id};
use unibus_machine::Rows;

const PLACE: Place = Place { cluster: ClusterId([7; 16]), group: GroupId(1) };
const CONFIG: TreeConfig = TreeConfig { cache_bytes: 1 << 20, check_bytes: u64::MAX };

/// Trees that say which were opened, and that may say that they synced when they did not.
#[derive(Clone)]
struct SpyTrees {
    trees: LogTrees<CrashDisk>,
    lie: bool,
    opened: Arc<StdMutex<Vec<PathBuf>>>,
}

#[derive(Clone)]
struct SpyTree(LogTree<CrashDisk>, bool);

impl Trees for SpyTrees {
    type Tree = SpyTree;

    async fn open(&self, dir: &Path, cache_bytes: u64) -> io::Result<SpyTree> {
        self.opened.lock().expect("no panic").push(dir.into());
        Ok(SpyTree(self.trees.open(dir, cache_bytes).await?, self.lie))
    }
}

impl TreeRead for SpyTree {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.0.get(key)
    }
    fn scan(&self, from: &[u8], to: Option<&[u8]>, limit: usize) -> io::Result<Vec<TreeRow>> {
        self.0.scan(from, to, limit)
    }
}

impl Tree for SpyTree {
    async fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.0.reserve(bytes).await
    }
    async fn write(&self, rows: Vec<TreeWrite>) -> io::Result<()> {
        self.0.write(rows).await
    }
    async fn sync(&self) -> io::Result<()> {
        if self.1 { Ok(()) } else { self.0.sync().await }
    }
}

macro_rules! env {
    ($name:ident, $disk:ty, $trees:ty) => {
        #[derive(Clone)]
        struct $name {
            disk: $disk,
            trees: $trees,
            rng: SeededRng,
        }

        impl Env for $name {
            type Rt = TokioRuntime;
            type Net = NoNet;
            type Disk = $disk;
            type Trees = $trees;
            type Clock = FixedClock;
            type Rng = SeededRng;

            fn net(&self) -> &NoNet {
                &NoNet
            }
            fn disk(&self) -> &$disk {
                &self.disk
            }
            fn trees(&self) -> $trees {
                self.trees.clone()
            }
            fn clock(&self) -> &FixedClock {
                &FixedClock
            }
            fn rng(&self) -> &SeededRng {
                &self.rng
            }
        }
    };
}

env!(SpyEnv, CrashDisk, SpyTrees);
env!(SledEnv, FsDisk, SledTrees);

impl SpyEnv {
    fn new(seed: u64, lie: bool) -> Self {
        let env = CrashEnv::new(seed);
        let disk = env.disk().clone();
        let trees = SpyTrees { trees: LogTrees(disk.clone()), lie, opened: Arc::default() };
        Self { disk, trees, rng: env.rng().clone() }
    }
}

fn sled_env() -> SledEnv {
    SledEnv { disk: FsDisk, trees: SledTrees, rng: SeededRng::new(1) }
}

fn row(key: u64, value: u64) -> (Bytes, Bytes) {
    let key = [&[1], &key.to_be_bytes()[..]].concat();
    (key.into(), value.to_le_bytes().repeat(1 + value as usize % 9).into())
}

/// The rows at a checkpoint: each replaces some, deletes some and adds some of those before.
fn rows_at(index: u64) -> FrozenRows {
    let mut rows = FrozenRows::new();
    for at in 1..=index {
        rows.extend((at * 10..at * 10 + 30).map(|key| row(key, at)));
        rows.remove(&row(at * 10 + 5, 0).0);
    }
    rows
}

fn marker(index: u64) -> Marker {
    let mut sum = RowSum::default();
    rows_at(index).iter().for_each(|(key, value)| sum.add(key, value));
    let last_log_id = (index > 0).then(|| log_id(1, NodeId(1), index));
    Marker { meta: SnapshotMeta { last_log_id, last_membership: StoredMembership::default() }, sum, segments: vec![] }
}

fn change_to(index: u64) -> Overlay {
    let (before, after) = (rows_at(index - 1), rows_at(index));
    let mut overlay = Overlay::default();
    let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(value));
    changed.for_each(|(key, value)| overlay.set(key.clone(), Some(value.clone())));
    before.keys().filter(|key| !after.contains_key(*key)).for_each(|key| overlay.set(key.clone(), None));
    overlay
}

/// Saves checkpoints up to `last`; the newest that was acknowledged is left in `saved`.
async fn save_to<E: Env>(checkpoints: &Checkpoints<E>, last: u64, saved: &mut u64) -> Result<(), StoreError> {
    let mut current = checkpoints.hold().await;
    for index in current.marker().index().unwrap_or(0) + 1..=last {
        let marker = marker(index);
        checkpoints.save(&mut current, marker, &change_to(index)).await?;
        *saved = index;
    }
    Ok(())
}

/// The checkpoint that the tree is at; its rows are those of it.
async fn whole<E: Env>(checkpoints: &Checkpoints<E>) -> u64 {
    let current = checkpoints.hold().await;
    let index = current.marker().index().unwrap_or(0);
    let rows = checkpoints.rows(&current).page(None, usize::MAX).expect("rows are whole");
    assert!(rows.into_iter().collect::<FrozenRows>() == rows_at(index), "the rows are not those of {index}");
    checkpoints.prove(&current).await.expect("they add up");
    index
}

async fn open<E: Env>(env: &E, dir: &Path) -> Result<Checkpoints<E>, StoreError> {
    Box::pin(Checkpoints::open(env, dir, PLACE, CONFIG)).await
}

/// P1: what was acknowledged outlives a power cut at any moment.
#[tokio::test]
async fn power_fails_at_every_disk_operation() {
    let dir = Path::new("/group");
    for lie in [false, true] {
        let mut discarded = 0;
        for left in 0.. {
            let env = SpyEnv::new(left, lie);
            let checkpoints = open(&env, dir).await.expect("a blank group");
            let mut saved = 0;
            save_to(&checkpoints, 1, &mut saved).await.expect("saved");
            env.disk.fail_after(left);
            let cut = save_to(&checkpoints, 4, &mut saved).await.is_err();
            drop(checkpoints);
            env.disk.crash();
            let again = open(&env, dir).await.expect("starts whatever is left");
            let found = whole(&again).await;
            match lie {
                // It is at what was acknowledged or at what was being saved: never discarded.
                false => assert!((saved..=saved + 1).contains(&found), "{found} after {saved} and {left} operations"),
                // It may have been discarded, and is blank then, but it never is anything else.
                true => discarded += u64::from(found == 0),
            }
            save_to(&again, 6, &mut saved).await.expect("goes on");
            assert_eq!(whole(&again).await, 6);
            if !cut {
                break;
            }
        }
        assert_eq!(lie, discarded > 0, "a tree that only says that it synced is found out");
    }
}

#[tokio::test]
async fn power_fails_while_a_tree_is_opened_or_rebuilt() {
    let dir = Path::new("/group");
    for left in 0.. {
        let env = SpyEnv::new(left, false);
        let mut saved = 0;
        save_to(&open(&env, dir).await.expect("blank"), 3, &mut saved).await.expect("saved");
        env.disk.fail_after(left);
        let cut = match open(&env, dir).await {
            Ok(checkpoints) => {
                let mut current = checkpoints.hold().await;
                let rows = rows_at(5).into_iter().collect();
                checkpoints
                    .rebuild(&mut current, marker(5), Some(RowPages::of(env.clone(), PLACE, rows)))
                    .await
                    .is_err()
            }
            Err(_) => true,
        };
        env.disk.crash();
        let found = whole(&open(&env, dir).await.expect("starts whatever is left")).await;
        assert!([0, 3, 5].contains(&found), "{found} after {left} operations");
        if !cut {
            assert_eq!(found, 5);
            break;
        }
    }
}

#[tokio::test]
async fn a_tree_that_a_start_did_not_get_through_is_discarded_unopened() {
    let dir = Path::new("/group");
    for name in [OPENING, DAMAGED] {
        let env = SpyEnv::new(1, false);
        let mut saved = 0;
        save_to(&open(&env, dir).await.expect("blank"), 2, &mut saved).await.expect("saved");
        env.disk.open(&dir.join(name), OpenMode::Create).await.expect("marked");
        env.trees.opened.lock().expect("no panic").clear();
        assert_eq!(whole(&open(&env, dir).await.expect("starts")).await, 0, "{name}");
        let opened = env.trees.opened.lock().expect("no panic").clone();
        assert_eq!(opened, [dir.join("tree-2")], "{name}: only a new one");
        assert!(!env.disk.exists(&dir.join("tree-1")).await.expect("asked"), "{name}");
        assert!(!env.disk.exists(&dir.join(name)).await.expect("asked"), "{name} is gone");
    }
}

#[tokio::test]
async fn a_condemned_tree_is_not_used_again() {
    let (env, dir) = (SpyEnv::new(1, false), Path::new("/group"));
    let checkpoints = open(&env, dir).await.expect("blank");
    save_to(&checkpoints, 2, &mut 0).await.expect("saved");
    checkpoints.condemn().await.expect("marked");
    assert_eq!(whole(&open(&env, dir).await.expect("starts")).await, 0);
    assert_eq!(whole(&open(&env, dir).await.expect("starts")).await, 0);
}

/// P9, P10: rows that are whole one by one, and are not those of the checkpoint.
#[tokio::test]
async fn rows_that_do_not_add_up_are_discarded() {
    let (env, dir) = (SpyEnv::new(1, false), Path::new("/group"));
    let checkpoints = open(&env, dir).await.expect("blank");
    save_to(&checkpoints, 2, &mut 0).await.expect("saved");
    // A whole row of this group, but an old one: only the sum can tell.
    let stale = checkpoints.home.sealed((row(22, 0).0, Some(row(22, 1).1)));
    checkpoints.hold().await.tree.write(vec![stale]).await.expect("written");
    assert_eq!(whole(&open(&env, dir).await.expect("starts")).await, 0);
}

#[tokio::test]
async fn a_full_disk_is_told_before_the_tree_is_touched() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let checkpoints = open(&TestEnv::new(1), dir.path()).await.expect("blank");
    let mut overlay = change_to(1);
    overlay.claim_bytes(1 << 40);
    let refused = checkpoints.save(&mut *checkpoints.hold().await, marker(1), &overlay).await;
    assert!(matches!(&refused, Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull));
    let told = refused.expect_err("no space").to_string();
    assert!(told.contains("free space or enlarge the disk"), "{told}");
    save_to(&checkpoints, 1, &mut 0).await.expect("saved when there is space");
}

/// What a file-system accident does to sled's directory between two starts.
type Accident = fn(tree: &Path, older: &Path);

/// P9: files that are lost, cut or not the newest.
#[tokio::test]
async fn whatever_happens_to_sleds_directory_is_noticed() {
    let accidents: [(&str, Accident, bool); 5] = [
        ("nothing", |_, _| (), true),
        ("deleted", |tree, _| std::fs::remove_dir_all(tree).expect("deletes"), false),
        ("an older copy", |tree, older| replace(tree, older), false),
        ("cut to a half", |tree, _| cut(&tree.join("db")), false),
        ("another sled's", |tree, _| std::fs::remove_file(tree.join("db")).expect("deletes"), false),
    ];
    for (name, accident, is_whole) in accidents {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (tree, older) = (dir.path().join("tree-1"), dir.path().join("older"));
        let checkpoints = open(&sled_env(), dir.path()).await.expect("blank");
        save_to(&checkpoints, 1, &mut 0).await.expect("saved");
        copy(&tree, &older);
        save_to(&checkpoints, 4, &mut 0).await.expect("saved");
        drop(checkpoints);
        wait_until_closed(&tree);
        accident(&tree, &older);
        let again = open(&sled_env(), dir.path()).await.expect("starts");
        assert_eq!(whole(&again).await, if is_whole { 4 } else { 0 }, "{name}");
        save_to(&again, 6, &mut 0).await.expect("goes on");
        assert_eq!(whole(&again).await, 6, "{name}");
    }
}

/// P9: flips below the tree.
#[tokio::test]
async fn bits_that_flip_in_sleds_files_are_noticed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let checkpoints = open(&sled_env(), dir.path()).await.expect("blank");
    save_to(&checkpoints, 4, &mut 0).await.expect("saved");
    drop(checkpoints);
    let tree = dir.path().join("tree-1");
    wait_until_closed(&tree);
    let used = std::fs::read(tree.join("db")).expect("reads").iter().rposition(|byte| *byte != 0).expect("not empty");
    let mut discarded = 0;
    for round in 0..24 {
        let copy_dir = tempfile::tempdir().expect("a temporary directory");
        copy(dir.path(), copy_dir.path());
        let db = copy_dir.path().join("tree-1/db");
        let mut bytes = std::fs::read(&db).expect("reads");
        bytes[used * round / 24] ^= 1 << (round % 8);
        std::fs::write(&db, bytes).expect("flips");
        let found = whole(&open(&sled_env(), copy_dir.path()).await.expect("starts")).await;
        assert!([0, 4].contains(&found), "{found}");
        discarded += u64::from(found == 0);
    }
    assert!(discarded > 0, "no flip hit anything");
}

/// Readers and the writer of a checkpoint do not disturb each other.
#[tokio::test]
async fn tables_answer_the_same_while_a_checkpoint_is_written() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let checkpoints = open(&sled_env(), dir.path()).await.expect("blank");
    let mut current = checkpoints.hold().await;
    let mut tables =
        Tables::new(checkpoints.rows(&current), RowSum::default(), 10_000, crate::faults::Faults::default());
    for index in 1..=5 {
        for (key, value) in change_to(index).iter() {
            match value {
                Some(value) => tables.put(key.to_vec(), value.clone()),
                None => tables.delete(key),
            }
        }
        let marker = Marker { sum: tables.sum(), ..marker(index) };
        assert_eq!(marker, self::marker(index));
        let overlay = tables.seal();
        let expected: Vec<_> = rows_at(index).into_iter().collect();
        let mut saving = Box::pin(checkpoints.save(&mut current, marker, &overlay));
        loop {
            let saved = futures::poll!(saving.as_mut());
            assert!(tables.scan(&[1], &[2], usize::MAX) == expected);
            if let std::task::Poll::Ready(saved) = saved {
                saved.expect("saved");
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(saving);
        drop(overlay);
        tables.written();
        assert!(tables.scan(&[1], &[2], usize::MAX) == expected);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("creates");
    for entry in std::fs::read_dir(from).expect("lists") {
        let path = entry.expect("entry").path();
        let target = to.join(path.file_name().expect("named"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("copies");
        }
    }
}

fn replace(tree: &Path, older: &Path) {
    std::fs::remove_dir_all(tree).expect("deletes");
    std::fs::rename(older, tree).expect("moves");
}

fn cut(file: &Path) {
    let bytes = std::fs::read(file).expect("reads");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("not empty");
    std::fs::write(file, &bytes[..used / 2]).expect("cuts");
}

/// A tree closes on a thread of its own.
fn wait_until_closed(tree: &Path) {
    let begun = now::<TestEnv>();
    let file = std::fs::File::open(tree.join("db")).expect("there");
    while file.try_lock().is_err() {
        assert!(begun.elapsed() < PATIENCE, "it does not close");
        std::thread::yield_now();
    }
}
