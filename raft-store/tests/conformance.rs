//! openraft's own storage suite over the WAL, with a state machine that only remembers positions.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{Stream, StreamExt};
use openraft::alias::SnapshotOf;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, StorageError};
use tempfile::TempDir;
use unibus_proto::id::{ClusterId, GroupId};
use unibus_raft_store::log::LogStore;
use unibus_raft_store::testing::TestEnv;
use unibus_raft_store::types::{Answer, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig};
use unibus_raft_store::wal::{Wal, WalConfig};

type Config = TypeConfig<TestEnv>;

/// Remembers what was applied; a snapshot of it is its metadata.
#[derive(Clone, Default)]
struct Positions {
    last: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<SnapshotMeta>,
}

#[derive(Default)]
struct PositionsMachine(Arc<std::sync::Mutex<Positions>>);

impl PositionsMachine {
    fn with<T>(&self, act: impl FnOnce(&mut Positions) -> T) -> T {
        act(&mut self.0.lock().expect("no test panics while it holds this"))
    }
}

impl RaftSnapshotBuilder<Config> for PositionsMachine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Config, ()>> {
        let meta = self.with(|state| {
            let meta = SnapshotMeta { last_log_id: state.last, last_membership: state.membership.clone() };
            state.snapshot = Some(meta.clone());
            meta
        });
        Ok(Snapshot { meta, snapshot: () })
    }
}

impl RaftStateMachine<Config> for PositionsMachine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok(self.with(|state| (state.last, state.membership.clone())))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Config>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.with(|state| {
                state.last = Some(entry.log_id);
                if let Payload::Membership(membership) = entry.payload {
                    state.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            });
            if let Some(responder) = responder {
                responder.send(Answer::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        Self(self.0.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, (): ()) -> io::Result<()> {
        self.with(|state| {
            state.last = meta.last_log_id;
            state.membership = meta.last_membership.clone();
            state.snapshot = Some(meta.clone());
        });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Config, ()>>> {
        Ok(self.with(|state| state.snapshot.clone()).map(|meta| Snapshot { meta, snapshot: () }))
    }
}

/// One WAL for all tests of the suite, a group of its own for each.
struct Builder {
    dir: PathBuf,
    next: AtomicU64,
}

impl StoreBuilder<Config, LogStore<TestEnv>, PositionsMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore<TestEnv>, PositionsMachine), StorageError<Config>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let env = TestEnv::new(number);
        let dir = tempfile::tempdir_in(&self.dir).expect("temporary directory");
        let config = WalConfig { file_bytes: 16 << 10, tail_bytes: 256, spare_files: 1, ..WalConfig::default() };
        Wal::create(&env, &dir.path().join("wal"), ClusterId([7; 16]), &config).await.expect("create");
        let wal = Wal::open(&env, &dir.path().join("wal"), ClusterId([7; 16]), config).await.expect("open");
        Ok((dir, LogStore::new(wal.group(GroupId(3))), PositionsMachine::default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let builder = Builder { dir: dir.path().into(), next: AtomicU64::new(1) };
    Suite::<Config, _, _, _, _>::test_all(builder).await.expect("the suite passes");
}
