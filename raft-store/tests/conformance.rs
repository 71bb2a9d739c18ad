//! openraft's own storage suite over the WAL and the state machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;
use unibus_proto::id::{ClusterId, GroupId};
use unibus_raft_store::log::LogStore;
use unibus_raft_store::replica::{Replica, ReplicaConfig};
use unibus_raft_store::segment::Place;
use unibus_raft_store::state::StateMachine;
use unibus_raft_store::testing::TestEnv;
use unibus_raft_store::types::TypeConfig;
use unibus_raft_store::wal::{Wal, WalConfig};

type Config = TypeConfig<TestEnv>;

const PLACE: Place = Place { cluster: ClusterId([7; 16]), group: GroupId(3) };

/// A WAL and an empty group of its own for each test of the suite.
struct Builder {
    dir: PathBuf,
    next: AtomicU64,
}

impl StoreBuilder<Config, LogStore<TestEnv>, StateMachine<TestEnv>, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore<TestEnv>, StateMachine<TestEnv>), StorageError<Config>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let env = TestEnv::new(number);
        let dir = tempfile::tempdir_in(&self.dir).expect("temporary directory");
        let config = WalConfig { file_bytes: 16 << 10, tail_bytes: 256, spare_files: 1, ..WalConfig::default() };
        Wal::create(&env, &dir.path().join("wal"), PLACE.cluster, &config).await.expect("create");
        let wal = Wal::open(&env, &dir.path().join("wal"), PLACE.cluster, config).await.expect("open");
        let sizes = ReplicaConfig { snapshot_log_bytes: u64::MAX, timeline_tail_bytes: 0, ..ReplicaConfig::default() };
        let replica = Box::pin(Replica::open(&env, &dir.path().join("group"), PLACE, None, sizes)).await;
        let log = wal.group(PLACE.group);
        let machine = StateMachine::new(Arc::new(replica.expect("blank group")), log.clone());
        Ok((dir, LogStore::new(log), machine))
    }
}

/// The suite's tests are one future, too large for the stack of a test thread.
const STACK_BYTES: usize = 64 << 20;

#[test]
fn openrafts_suite_passes() {
    let suite = || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let dir = tempfile::tempdir().expect("temporary directory");
        let builder = Builder { dir: dir.path().into(), next: AtomicU64::new(1) };
        let test_all = Suite::<Config, _, _, _, _>::test_all(builder);
        runtime.expect("a runtime").block_on(test_all).expect("the suite passes");
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(suite).expect("a thread");
    thread.join().expect("the suite passes");
}
