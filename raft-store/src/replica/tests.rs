use super::*;
use crate::env::WatchReceiver;
use crate::testing::TestEnv;
use crate::types::log_id;
use unibus_proto::id::{ClusterId, NodeId};

const PLACE: Place = Place { cluster: ClusterId([7; 16]), group: GroupId(1) };
/// Blank entries of so many bytes make a checkpoint due.
const DUE_ENTRIES: u64 = 5;

async fn replica(dir: &Path) -> Arc<Replica<TestEnv>> {
    let checkpoint_log_bytes = DUE_ENTRIES * ENTRY_OVERHEAD_BYTES;
    let config = ReplicaConfig { checkpoint_log_bytes, ..ReplicaConfig::default() };
    Arc::new(Box::pin(Replica::open(&TestEnv::new(1), dir, PLACE, None, config)).await.expect("a blank group"))
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
