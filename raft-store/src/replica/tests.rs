use std::time::Duration;

use unibus_proto::id::{ClusterId, NodeId};

use super::*;
use crate::env::{WatchReceiver, spawn, timeout};
use crate::testing::TestEnv;
use crate::types::log_id;

const PLACE: Place = Place { cluster: ClusterId([7; 16]), group: GroupId(1) };
/// Blank entries of so many bytes make a checkpoint due.
const DUE_ENTRIES: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(20);

async fn replica(dir: &Path) -> Replica<TestEnv> {
    let checkpoint_log_bytes = DUE_ENTRIES * ENTRY_OVERHEAD_BYTES;
    let config = ReplicaConfig { checkpoint_log_bytes, ..ReplicaConfig::default() };
    Box::pin(Replica::open(&TestEnv::new(1), dir, PLACE, None, config)).await.expect("a blank group")
}

fn apply_blanks(replica: &Replica<TestEnv>, indices: std::ops::RangeInclusive<u64>) {
    for index in indices {
        let entry = Entry { log_id: log_id(1, NodeId(1), index), payload: Payload::Blank };
        replica.apply(&entry).expect("applied");
    }
}

/// A log that is always on disk.
fn synced() -> LogSynced {
    Arc::new(|_| Box::pin(std::future::ready(Ok(()))))
}

#[tokio::test]
async fn a_checkpoint_is_asked_for_again_when_an_install_answered_the_last_request() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (leader, follower) = (replica(&dir.path().join("1")).await, replica(&dir.path().join("2")).await);
    apply_blanks(&leader, 1..=20);
    let snapshot = leader.build_snapshot(&synced()).await.expect("built");
    let asked = || *follower.checkpoint_due.subscribe().borrow_watched();
    apply_blanks(&follower, 1..=DUE_ENTRIES);
    assert_eq!(asked(), 1);
    follower.install(&snapshot).await.expect("installed");
    drop(follower.checkpoint(&synced()).await.expect("nothing to write"));
    apply_blanks(&follower, 21..=20 + DUE_ENTRIES - 1);
    assert_eq!(asked(), 1, "what was applied before the install does not count");
    apply_blanks(&follower, 20 + DUE_ENTRIES..=20 + DUE_ENTRIES);
    assert_eq!(asked(), 2);
}

#[tokio::test]
async fn a_segment_that_is_not_what_the_log_sealed_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sealed = Event::SegmentSealed { segment: 3, length: 4, hash: [5; 32] };
    let told = replica(dir.path()).await.store(&sealed).expect_err("it has no such segment");
    assert!(told.contains("segment 3") && told.contains("`unibusctl verify`"), "{told}");
}

async fn reaches_checkpoint(replica: &Replica<TestEnv>, index: u64) {
    let mut checkpointed = replica.checkpointed.subscribe();
    let reached = checkpointed.wait_until(|at| *at >= index);
    let reached = timeout::<TestEnv, _>(PATIENCE, reached).await;
    reached.unwrap_or_else(|| panic!("checkpoint {index} is not written")).expect("the replica is there");
}

#[tokio::test]
async fn a_group_whose_tree_is_held_does_not_keep_the_others_from_their_checkpoints() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let turn = CheckpointTurn::default();
    let stop = Watched::<TestEnv, bool>::new(false);
    let mut replicas = vec![];
    for name in ["1", "2"] {
        let replica = Arc::new(replica(&dir.path().join(name)).await.with_turn(turn.clone()));
        let (tended, stop) = (replica.clone(), stop.subscribe());
        spawn::<TestEnv>(async move { tended.tend(synced(), stop).await });
        apply_blanks(&replica, 1..=DUE_ENTRIES);
        reaches_checkpoint(&replica, DUE_ENTRIES).await;
        replicas.push(replica);
    }
    let [first, second] = &replicas[..] else { unreachable!() };
    let held = first.checkpoints.hold().await;
    apply_blanks(first, DUE_ENTRIES + 1..=2 * DUE_ENTRIES);
    // On the one thread of this test: the first is woken first.
    apply_blanks(second, DUE_ENTRIES + 1..=2 * DUE_ENTRIES);
    reaches_checkpoint(second, 2 * DUE_ENTRIES).await;
    assert_eq!(first.checkpoint_index(), DUE_ENTRIES);
    drop(held);
    reaches_checkpoint(first, 2 * DUE_ENTRIES).await;
    stop.update(|stop| *stop = true);
}

#[tokio::test]
async fn the_checkpoint_under_a_snapshot_waits_for_its_turn() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let turn = CheckpointTurn::default();
    let replica = replica(&dir.path().join("1")).await.with_turn(turn.clone());
    apply_blanks(&replica, 1..=1);
    let synced = synced();
    let mut building = Box::pin(replica.build_snapshot(&synced));
    {
        let _held = turn.lock().await;
        assert!(futures::poll!(building.as_mut()).is_pending());
        assert_eq!(replica.checkpoint_index(), 0, "another one is being written");
    }
    building.await.expect("built");
    assert_eq!(replica.checkpoint_index(), 1);
}
