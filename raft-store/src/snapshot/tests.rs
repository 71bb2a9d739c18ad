use std::fs;
use std::ops::Bound;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use proptest::prelude::*;
use unibus_machine::StoredDelivery;
use unibus_proto::id::{ClusterId, GroupId, NodeId, RoomId};
use unibus_proto::position::Sequence;

use super::*;
use crate::env::WatchReceiver;
use crate::tables::FrozenRows;
use crate::testing::TestEnv;
use crate::testing::crash::CrashEnv;
use crate::types::{StoredMembership, log_id};

mod power;

const PLACE: Place = Place { cluster: ClusterId([7; 16]), group: GroupId(1) };
const ROOM: RoomId = RoomId([1; 16]);

/// Several blocks; the first half of the rows is the same at each index.
fn rows(index: u64) -> FrozenRows {
    let value = |n| if n < 200 { vec![7; 500] } else { vec![index as u8; 500] };
    (0..400u64).map(|n| (Bytes::from(n.to_be_bytes().to_vec()), Bytes::from(value(n)))).collect()
}

async fn open_in<E: Env>(env: &E, dir: &Path, purged: Option<u64>) -> Result<Base<E>, StoreError> {
    Box::pin(Snapshots::open(env, dir, PLACE, 0, purged, None)).await
}

async fn open(dir: &Path, purged: Option<u64>) -> Result<Base<TestEnv>, StoreError> {
    open_in(&TestEnv::new(3), dir, purged).await
}

fn append<E: Env>(base: &Base<E>, index: u64) {
    let first = index * 10;
    let deliveries: Vec<_> = (first..first + 10)
        .map(|s| StoredDelivery { sequence: Sequence(s), at_ms: s, bytes: Bytes::from(vec![s as u8; 100]) })
        .collect();
    base.segments.append(index / 2, ROOM, &deliveries).expect("appends");
    if index % 2 == 1 {
        base.segments.cut(index / 2).expect("seals");
    }
}

fn manifest<E: Env>(base: &Base<E>, index: u64) -> Manifest {
    let last_log_id = Some(log_id(1, NodeId(1), index));
    let meta = SnapshotMeta { last_log_id, last_membership: StoredMembership::default() };
    Manifest { meta, state_hash: StateHash::of(&rows(index)), segments: base.segments.manifest() }
}

/// Appends ten deliveries and takes a snapshot at `index`.
async fn try_snapshot<E: Env>(base: &Base<E>, index: u64) -> Result<SnapshotData, StoreError> {
    append(base, index);
    base.segments.sync().await.map_err(io_at("sync", base.segments.dir()))?;
    base.snapshots.save(manifest(base, index), &rows(index)).await
}

async fn snapshot<E: Env>(base: &Base<E>, index: u64) -> SnapshotData {
    try_snapshot(base, index).await.expect("saves")
}

fn files_with(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(dir.join("snapshots")).expect("lists").map(|entry| entry.expect("entry").path());
    let mut paths: Vec<_> = names.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    paths.sort();
    paths
}

fn index_of<E: Env>(base: &Base<E>) -> Option<u64> {
    base.rows.as_ref().and_then(|(manifest, _)| manifest.index())
}

async fn count<E: Env>(base: &Base<E>) -> usize {
    base.segments.read(ROOM, Sequence(0), usize::MAX, 1000).await.map_or(0, |read| read.len())
}

#[tokio::test]
async fn the_last_two_are_kept_and_the_newest_is_loaded() {
    let dir = tempfile::tempdir().expect("tempdir");
    let base = open(dir.path(), None).await.expect("blank");
    assert_eq!(base.snapshots.purge_bound(), None);
    for index in 0..5 {
        snapshot(&base, index).await;
    }
    assert_eq!(files_with(dir.path(), "snapshot").len(), 2);
    assert_eq!(files_with(dir.path(), "rows").len(), 2, "the files of rows go with their snapshots");
    assert_eq!(base.snapshots.purge_bound(), Some(3));
    drop(base);
    let base = open(dir.path(), Some(3)).await.expect("opens");
    assert_eq!(index_of(&base), Some(4));
    assert_eq!(base.snapshots.purge_bound(), Some(3));
    assert_eq!(count(&base).await, 50);
    let (_, found) = base.rows.expect("a base");
    assert_eq!(found.collect().await.expect("reads"), rows(4));
}

#[tokio::test]
async fn a_tree_that_is_newer_is_the_base_and_segments_are_cut_to_them() {
    let dir = tempfile::tempdir().expect("tempdir");
    let base = open(dir.path(), None).await.expect("blank");
    snapshot(&base, 0).await;
    append(&base, 1);
    base.segments.sync().await.expect("syncs");
    let tables = manifest(&base, 1);
    append(&base, 2);
    base.segments.sync().await.expect("syncs");
    drop(base);
    let env = TestEnv::new(3);
    let start = async |tree, purged| Box::pin(Snapshots::open(&env, dir.path(), PLACE, 0, purged, tree)).await;
    let base = start(Some(&tables), None).await.expect("opens");
    assert!(base.is_tree && base.rows.is_none());
    assert_eq!((count(&base).await, base.segments.manifest()), (20, tables.segments.clone()));
    drop(base);
    let segment = segment_path(&dir.path().join("segments"), 0);
    let whole = fs::read(&segment).expect("reads");
    fs::write(&segment, &whole[..whole.len() - 1]).expect("cut");
    let base = start(Some(&tables), Some(0)).await.expect("opens");
    assert!(!base.is_tree, "its segments are not whole");
    assert_eq!((index_of(&base), count(&base).await), (Some(0), 10));
    drop(base);
    fs::write(&segment, b"").expect("lost");
    assert!(start(Some(&tables), Some(0)).await.is_err(), "neither the tables nor the snapshot have their segments");
}

#[tokio::test]
async fn a_damaged_newest_makes_the_older_one_used() {
    for damage in ["cut", "flip", "empty", "rows", "no rows", "segment"] {
        let dir = tempfile::tempdir().expect("tempdir");
        let base = open(dir.path(), None).await.expect("blank");
        for index in 0..2 {
            snapshot(&base, index).await;
        }
        let rows = base.snapshots.current().expect("one").rows[0].1.clone();
        let segment = segment_path(&dir.path().join("segments"), 0);
        let before = fs::read(&segment).expect("reads");
        drop(base);
        let newest = files_with(dir.path(), "snapshot").pop().expect("a snapshot");
        let good = fs::read(&newest).expect("reads");
        match damage {
            "cut" => fs::write(&newest, &good[..good.len() - 1]).expect("cut"),
            "flip" => fs::write(&newest, good.iter().map(|b| b ^ 1).collect::<Vec<_>>()).expect("flip"),
            "empty" => fs::write(&newest, b"").expect("empty"),
            "rows" => {
                let mut bytes = fs::read(&rows).expect("reads");
                bytes[70_000] ^= 1;
                fs::write(&rows, bytes).expect("flip");
            }
            "no rows" => fs::remove_file(&rows).expect("removes"),
            _ => fs::write(&segment, &before[..before.len() - 1]).expect("cut"),
        }
        let base = open(dir.path(), Some(0)).await.expect("the older one is whole");
        assert_eq!(index_of(&base), Some(0), "{damage}");
        assert_eq!(count(&base).await, 10, "{damage}: cut to the older one");
        assert!(newest.with_extension("damaged").exists(), "{damage}: kept for analysis");
        drop(base);
        assert_eq!(index_of(&open(dir.path(), Some(0)).await.expect("again")), Some(0));
    }
}

#[tokio::test]
async fn every_cut_and_many_flips_are_noticed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let base = open(dir.path(), None).await.expect("blank");
    let data = snapshot(&base, 0).await;
    drop(base);
    for file in [&data.path, &data.rows[0].1] {
        let good = fs::read(file).expect("reads");
        let (cut, flip) = (good.len() / 40 + 1, good.len() / 10 + 1);
        let cuts = (0..good.len()).step_by(cut).map(|cut| good[..cut].to_vec());
        let flips = (0..good.len() * 8).step_by(flip).chain((0..1000).step_by(37)).map(|bit| {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            bad
        });
        for bad in cuts.chain(flips) {
            fs::write(file, bad).expect("writes");
            let error = open(dir.path(), Some(0)).await.err().expect("nothing whole is left").to_string();
            assert!(error.contains("is damaged"), "{error}");
            fs::rename(data.path.with_extension("damaged"), &data.path).expect("restores");
            fs::write(file, &good).expect("restores");
            for (of, path) in &data.rows {
                fs::write(path, if path == file { good.clone() } else { rows_bytes(of).await }).expect("restores");
            }
        }
    }
    assert_eq!(index_of(&open(dir.path(), Some(0)).await.expect("whole again")), Some(0));
}

/// The bytes that the rows of a snapshot at 0 have.
async fn rows_bytes(file: &RowsFile) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("tempdir");
    let files = rows::write(&TestEnv::new(1), dir.path(), PLACE, &rows(0)).await.expect("writes");
    assert_eq!(files, std::slice::from_ref(file));
    fs::read(dir.path().join(file.name())).expect("reads")
}

#[tokio::test]
async fn a_gap_to_the_log_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let base = open(dir.path(), None).await.expect("blank");
    snapshot(&base, 0).await;
    drop(base);
    let error = open(dir.path(), Some(7)).await.err().expect("entries 1 to 7 are nowhere").to_string();
    assert!(error.contains("the log begins after Some(7)"), "{error}");
    let empty = tempfile::tempdir().expect("tempdir");
    assert!(open(empty.path(), Some(7)).await.is_err(), "no snapshot at all");
}

#[tokio::test]
async fn another_replica_installs_it() {
    let (from, to) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let leader = open(from.path(), None).await.expect("blank");
    snapshot(&leader, 0).await;
    snapshot(&leader, 1).await;
    let data = snapshot(&leader, 2).await;
    let follower = open(to.path(), None).await.expect("blank");
    snapshot(&follower, 0).await;
    let (installed, got) = follower.snapshots.install(&data).await.expect("installs");
    follower.segments.reload(&installed.manifest.segments, &BTreeSet::new()).await.expect("reloads");
    assert_eq!(got.collect().await.expect("reads"), rows(2));
    assert_eq!(installed.meta(), data.meta());
    assert_eq!(installed.encoded, data.encoded);
    assert_eq!(follower.snapshots.purge_bound(), None, "the older one does not continue the log");
    assert_eq!(count(&follower).await, 30);
    drop(follower);
    let again = open(to.path(), Some(2)).await.expect("opens");
    assert_eq!(index_of(&again), Some(2));
}

/// A file goes only when no snapshot, kept or on its way, and not the live ledger lists it.
#[tokio::test]
async fn files_stay_while_a_snapshot_is_on_its_way() {
    let dir = tempfile::tempdir().expect("tempdir");
    let base = open(dir.path(), None).await.expect("blank");
    snapshot(&base, 0).await;
    let sent = snapshot(&base, 1).await;
    let segment = segment_path(&dir.path().join("segments"), 0);
    assert!(base.segments.drop_sealed(0));
    for index in 2..6 {
        snapshot(&base, index).await;
    }
    assert_eq!(base.snapshots.purge_bound(), Some(1), "its receiver goes on from there");
    assert!(sent.files().all(|(path, _)| path.exists()) && sent.path.exists());
    base.snapshots.release(sent.clone()).await;
    assert!(segment.exists(), "somebody still holds it");
    let (rows, path) = (sent.rows[0].1.clone(), sent.path.clone());
    base.snapshots.release(sent).await;
    assert!(!segment.exists() && !rows.exists() && !path.exists());
    assert_eq!(base.snapshots.purge_bound(), Some(4));
    drop(base);
    let again = open(dir.path(), None).await.expect("opens");
    assert_eq!(again.segments.read(ROOM, Sequence(20), usize::MAX, 1000).await.expect("reads").len(), 40);
}

#[tokio::test]
async fn an_offer_ends_the_earlier_ones_that_still_wait() {
    let dir = tempfile::tempdir().expect("tempdir");
    let base = open(dir.path(), None).await.expect("blank");
    let (_, turn) = base.snapshots.offered().await;
    let mut first = Box::pin(base.snapshots.offered());
    assert!(futures::poll!(first.as_mut()).is_pending());
    let mut second = Box::pin(base.snapshots.offered());
    assert!(futures::poll!(second.as_mut()).is_pending());
    drop(turn);
    let (mut offers, turn) = first.await;
    assert!(offers.changed().now_or_never().is_some(), "the second one came later");
    drop(turn);
    let (mut offers, _turn) = second.await;
    assert!(offers.changed().now_or_never().is_none(), "nothing is newer");
}

#[tokio::test]
async fn a_dropped_segment_stays_while_the_older_snapshot_lists_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let base = open(dir.path(), None).await.expect("blank");
    snapshot(&base, 0).await;
    snapshot(&base, 1).await;
    base.segments.drop_sealed(0);
    drop(snapshot(&base, 2).await);
    drop(base);
    let segment = segment_path(&dir.path().join("segments"), 0);
    let base = open(dir.path(), Some(1)).await.expect("opens");
    assert!(segment.exists(), "the snapshot at 1 needs it");
    snapshot(&base, 3).await;
    assert!(!segment.exists());
}

#[tokio::test]
async fn no_space_is_no_damage_and_leaves_nothing_behind() {
    let (env, dir) = (CrashEnv::new(5), PathBuf::from("/group"));
    let base = open_in(&env, &dir, None).await.expect("blank");
    snapshot(&base, 0).await;
    let before = env.disk().names();
    append(&base, 1);
    base.segments.sync().await.expect("syncs");
    env.disk().set_full(Some(""));
    let refused = base.snapshots.save(manifest(&base, 1), &rows(1)).await.expect_err("no space");
    assert!(matches!(&refused, StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
    assert_eq!(env.disk().names(), before, "no remainders");
    env.disk().set_full(None);
    let data = base.snapshots.save(manifest(&base, 1), &rows(1)).await.expect("space again");
    assert_eq!(base.snapshots.current().and_then(|current| current.index()), data.index());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rows_come_back_and_their_files_depend_on_nothing_else(
        rows in proptest::collection::btree_map(
            proptest::collection::vec(any::<u8>(), 0..40),
            proptest::collection::vec(any::<u8>(), 0..3000),
            0..200,
        ),
        big in 0..40usize,
    ) {
        let mut rows: FrozenRows = rows.into_iter().map(|(k, v)| (Bytes::from(k), Bytes::from(v))).collect();
        rows.extend((0..big).map(|n| (Bytes::from(format!("big {n:03}")), Bytes::from(vec![n as u8; 300_000]))));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let env = TestEnv::new(1);
            let (one, two) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
            let files = rows::write(&env, one.path(), PLACE, &rows).await.expect("writes");
            let again = rows::write(&env, two.path(), PLACE, &OneByOne(rows.clone())).await.expect("writes");
            prop_assert_eq!(&files, &again, "pages of the source do not matter");
            prop_assert!(files.iter().all(|file| file.sum.length < block::FILE_BYTES + (1 << 20)));
            let placed = files.iter().map(|file| (file.clone(), one.path().join(file.name())));
            let pages = RowPages::new(env, PLACE, placed);
            prop_assert_eq!(pages.collect().await.expect("reads"), rows);
            Ok(())
        })?;
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = manifest::decode(PLACE, &bytes);
        let _ = block::decode(PLACE, 40, &bytes);
        let _ = block::check_header(PLACE, &bytes);
    }
}

impl RowSource for FrozenRows {
    fn scan<'a>(&'a self, after: Option<&'a [u8]>, limit: usize) -> BoxFuture<'a, Result<RowPage, StoreError>> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.range::<[u8], _>((after, Bound::Unbounded)).take(limit);
        let page = range.map(|(key, value)| (key.clone(), value.clone())).collect();
        Box::pin(std::future::ready(Ok(page)))
    }
}

impl<E: Env> RowPages<E> {
    /// All that are left.
    async fn collect(mut self) -> Result<FrozenRows, StoreError> {
        let mut rows = FrozenRows::new();
        while let Some(page) = self.next().await? {
            rows.extend(page);
        }
        Ok(rows)
    }
}

/// A source with pages of one row.
struct OneByOne(FrozenRows);

impl RowSource for OneByOne {
    fn scan<'a>(&'a self, after: Option<&'a [u8]>, _limit: usize) -> BoxFuture<'a, Result<RowPage, StoreError>> {
        self.0.scan(after, 1)
    }
}
