use std::fs;

use bytes::Bytes;
use unibus_machine::StoredDelivery;
use unibus_proto::id::{ClusterId, GroupId, NodeId, RoomId};
use unibus_proto::position::Sequence;

use super::*;
use crate::tables::{FrozenRows, StateHash};
use crate::testing::TestEnv;
use crate::types::{StoredMembership, log_id};

const PLACE: Place = Place { cluster: ClusterId([7; 16]), group: GroupId(1) };
const ROOM: RoomId = RoomId([1; 16]);

fn rows(index: u64) -> FrozenRows {
    (0..100u64).map(|n| (Bytes::from(n.to_be_bytes().to_vec()), Bytes::from(vec![index as u8; 50]))).collect()
}

async fn open(dir: &Path, purged: Option<u64>) -> Result<Base<TestEnv>, StoreError> {
    Snapshots::open(&TestEnv::new(3), dir, PLACE, 0, purged, None).await
}

/// Appends ten deliveries and takes a snapshot at `index`.
async fn snapshot(base: &Base<TestEnv>, index: u64) -> SnapshotData {
    let first = index * 10;
    let deliveries: Vec<_> = (first..first + 10)
        .map(|s| StoredDelivery { sequence: Sequence(s), at_ms: s, bytes: Bytes::from(vec![s as u8; 100]) })
        .collect();
    base.segments.append(index / 2, ROOM, &deliveries).expect("appends");
    if index % 2 == 1 {
        base.segments.cut(index / 2).expect("seals");
    }
    base.segments.sync().await.expect("syncs");
    let meta =
        SnapshotMeta { last_log_id: Some(log_id(1, NodeId(1), index)), last_membership: StoredMembership::default() };
    let rows = rows(index);
    let manifest = Manifest { meta, state_hash: StateHash::of(&rows), segments: base.segments.manifest() };
    base.snapshots.save(manifest, &rows).await.expect("saves")
}

fn snapshot_files(dir: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(dir.join("snapshots")).expect("lists").map(|entry| entry.expect("entry").path());
    let mut paths: Vec<_> = names.filter(|path| path.extension().is_some_and(|e| e == "snapshot")).collect();
    paths.sort();
    paths
}

fn index_of(base: &Base<TestEnv>) -> Option<u64> {
    base.rows.as_ref().and_then(|(manifest, _)| manifest.meta.last_log_id).map(|id| id.index)
}

#[tokio::test]
async fn the_last_two_are_kept_and_the_newest_is_loaded() {
    let dir = tempfile::tempdir().expect("tempdir");
    let base = open(dir.path(), None).await.expect("blank");
    assert_eq!(base.snapshots.purge_bound(), None);
    for index in 0..5 {
        snapshot(&base, index).await;
    }
    assert_eq!(snapshot_files(dir.path()).len(), 2);
    assert_eq!(base.snapshots.purge_bound(), Some(3));
    drop(base);
    let base = open(dir.path(), Some(3)).await.expect("opens");
    assert_eq!(index_of(&base), Some(4));
    assert_eq!(base.snapshots.purge_bound(), Some(3));
    assert_eq!(base.segments.read(ROOM, Sequence(0), usize::MAX, 100).await.expect("reads").len(), 50);
    let (_, found) = base.rows.expect("a base");
    assert_eq!(found.collect().await.expect("reads"), rows(4));
}

#[tokio::test]
async fn a_damaged_newest_makes_the_older_one_used() {
    for damage in ["cut", "flip", "empty", "segment"] {
        let dir = tempfile::tempdir().expect("tempdir");
        let base = open(dir.path(), None).await.expect("blank");
        for index in 0..2 {
            snapshot(&base, index).await;
        }
        let segment = segment_path(&dir.path().join("segments"), 0);
        let before = fs::read(&segment).expect("reads");
        drop(base);
        let newest = snapshot_files(dir.path()).pop().expect("a snapshot");
        let good = fs::read(&newest).expect("reads");
        match damage {
            "cut" => fs::write(&newest, &good[..good.len() - 1]).expect("cut"),
            "flip" => fs::write(&newest, good.iter().map(|b| b ^ 1).collect::<Vec<_>>()).expect("flip"),
            "empty" => fs::write(&newest, b"").expect("empty"),
            _ => fs::write(&segment, &before[..before.len() - 1]).expect("cut"),
        }
        let base = open(dir.path(), Some(0)).await.expect("the older one is whole");
        assert_eq!(index_of(&base), Some(0), "{damage}");
        let read = base.segments.read(ROOM, Sequence(0), usize::MAX, 100).await.expect("reads");
        assert_eq!(read.len(), 10, "{damage}: cut to the older one");
    }
}

#[tokio::test]
async fn every_cut_and_many_flips_are_noticed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let base = open(dir.path(), None).await.expect("blank");
    snapshot(&base, 0).await;
    drop(base);
    let file = snapshot_files(dir.path()).pop().expect("a snapshot");
    let good = fs::read(&file).expect("reads");
    let cuts = (0..good.len()).step_by(37).map(|cut| good[..cut].to_vec());
    let flips = (0..good.len() * 8).step_by(211).map(|bit| {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        bad
    });
    for bad in cuts.chain(flips) {
        fs::write(&file, bad).expect("writes");
        let error = open(dir.path(), Some(0)).await.err().expect("nothing whole is left").to_string();
        assert!(error.contains("is damaged"), "{error}");
    }
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
    assert_eq!(follower.snapshots.purge_bound(), None, "the older one does not continue the log");
    let read = follower.segments.read(ROOM, Sequence(0), usize::MAX, 100).await.expect("reads");
    assert_eq!(read.len(), 30);
    drop(follower);
    let again = open(to.path(), Some(2)).await.expect("opens");
    assert_eq!(index_of(&again), Some(2));
}

#[tokio::test]
async fn a_crash_before_the_rename_leaves_nothing_and_after_it_everything() {
    let (from, to) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let leader = open(from.path(), None).await.expect("blank");
    for index in 0..3 {
        snapshot(&leader, index).await;
    }
    let data = leader.snapshots.current().expect("a snapshot");
    let follower = open(to.path(), None).await.expect("blank");
    let staged = follower.snapshots.stage().await.expect("stages").copy_from(&data).await.expect("copies");
    drop(follower);
    let copy = tempfile::tempdir().expect("tempdir");
    let kept = copy.path().join("kept");
    copy_dir(&staged, &kept);

    let again = open(to.path(), None).await.expect("opens");
    assert_eq!(index_of(&again), None, "half of it vanishes");
    assert!(!staged.exists());
    drop(again);

    copy_dir(&kept, &staged);
    fs::rename(staged.join("rows"), staged.join("commit")).expect("the decision");
    // One of the moves was made before the crash.
    fs::rename(staged.join("segment-0"), segment_path(&to.path().join("segments"), 0)).expect("moves");
    let again = open(to.path(), None).await.expect("finishes");
    assert_eq!(index_of(&again), Some(2));
    assert_eq!(again.segments.read(ROOM, Sequence(0), usize::MAX, 100).await.expect("reads").len(), 30);
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("creates");
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
    }
}
