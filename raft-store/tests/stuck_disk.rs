//! What may and what must happen while the write-ahead log's disk answers no sync.

#[path = "../machine/tests/common/mod.rs"]
mod common;
mod held;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Person, publish};
use held::{HeldEnv, Hold};
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, RaftSnapshotBuilder};
use prost::Message;
use unibus_proto::id::{ClusterId, GroupId, NodeId};
use unibus_proto::log::{Proposal, Tick, proposal::Command};
use unibus_raft_store::env::{AsyncRuntime, Env, sleep, timeout};
use unibus_raft_store::replica::{Replica, ReplicaConfig};
use unibus_raft_store::segment::Place;
use unibus_raft_store::space::{SpaceLevel, SpaceMarks};
use unibus_raft_store::state::StateMachine;
use unibus_raft_store::testing::crash::CrashEnv;
use unibus_raft_store::types::{self, Entry, Member, log_id};
use unibus_raft_store::wal::{Form, GroupLog, LogEntry, Wal, WalConfig};
use unibus_raft_store::{Identity, Store, StoreConfig};

const PLACE: Place = Place { cluster: ClusterId([7; 16]), group: GroupId(1) };
const PATIENCE: Duration = Duration::from_secs(20);

const ROOM: &str = "agent.scout.in";

fn sizes() -> ReplicaConfig {
    ReplicaConfig { snapshot_log_bytes: u64::MAX, timeline_tail_bytes: 0, ..ReplicaConfig::default() }
}

async fn replica(env: &HeldEnv, dir: &Path, sizes: ReplicaConfig) -> Arc<Replica<HeldEnv>> {
    Arc::new(Box::pin(Replica::open(env, dir, PLACE, None, sizes)).await.expect("a blank group"))
}

async fn machine(env: &HeldEnv, dir: &Path, log: GroupLog<HeldEnv>) -> StateMachine<HeldEnv> {
    StateMachine::new(replica(env, dir, sizes()).await, log)
}

fn small() -> WalConfig {
    WalConfig { file_bytes: 64 << 10, spare_files: 0, ..WalConfig::default() }
}

/// The group's part of a new write-ahead log.
async fn blank_log(env: &HeldEnv, dir: &Path) -> GroupLog<HeldEnv> {
    let dir = dir.join("wal");
    Wal::create(env, &dir, PLACE.cluster, &small()).await.expect("created");
    Wal::open(env, &dir, PLACE.cluster, small()).await.expect("opened").group(PLACE.group)
}

/// Appends three entries; with the log held, they are not on disk.
async fn append(log: &GroupLog<HeldEnv>) {
    let entries = (0..3).map(|index| LogEntry::new(log_id(1, NodeId(1), index), Form::Blank, Bytes::new()));
    log.append(entries.collect(), Box::new(|_| ())).await.expect("appended");
}

fn entry(index: u64, command: Command) -> Entry {
    let proposal = Proposal { at_ms: 1_000, command: Some(command) };
    let payload = EntryPayload::Normal(types::Proposal(proposal.encode_to_vec().into()));
    Entry { log_id: log_id(1, NodeId(1), index), payload }
}

async fn until(condition: impl Fn() -> bool + Send + Sync, what: &str) {
    let met = async {
        while !condition() {
            sleep::<HeldEnv>(Duration::from_millis(5)).await;
        }
    };
    timeout::<HeldEnv, _>(PATIENCE, met).await.unwrap_or_else(|| panic!("{what} does not come"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_takes_effect_after_the_truncation_that_makes_room_for_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (env, hold) = HeldEnv::new();
    let log = blank_log(&env, dir.path()).await;
    append(&log).await;
    log.barrier().await.expect("synced");

    let mut leader = machine(&env, &dir.path().join("leader"), log.clone()).await;
    let blank = |index| Entry { log_id: log_id(2, NodeId(2), index), payload: EntryPayload::Blank };
    leader.apply(futures::stream::iter((0..2).map(|index| Ok((blank(index), None))))).await.expect("applied");
    let snapshot = leader.get_snapshot_builder().await.build_snapshot().await.expect("built");

    let mut follower = machine(&env, &dir.path().join("follower"), log.clone()).await;
    hold.set(true);
    log.truncate_after(None).expect("queued");
    let install = <HeldEnv as Env>::Rt::spawn(async move {
        follower.install_snapshot(&snapshot.meta, snapshot.snapshot).await.expect("installed");
    });
    sleep::<HeldEnv>(Duration::from_millis(200)).await;
    assert!(!install.is_finished(), "the log still holds what the snapshot contradicts");
    hold.set(false);
    timeout::<HeldEnv, _>(PATIENCE, install).await.expect("in time").expect("no panic");
}

/// A base ahead of the log does not start: `apply` may run ahead of this node's own fsync, the tree may not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_begins_when_the_log_is_on_disk_up_to_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (env, hold) = HeldEnv::new();
    let log = blank_log(&env, dir.path()).await;
    let group_dir = dir.path().join("group");
    let mut follower = machine(&env, &group_dir, log.clone()).await;
    let checkpoint = || std::fs::read(group_dir.join("checkpoint")).expect("there from the beginning");
    let blank = checkpoint();

    hold.set(true);
    append(&log).await;
    let entry = |index| Entry { log_id: log_id(1, NodeId(1), index), payload: EntryPayload::Blank };
    follower.apply(futures::stream::iter((0..3).map(|index| Ok((entry(index), None))))).await.expect("applied");
    let building = <HeldEnv as Env>::Rt::spawn(async move {
        follower.get_snapshot_builder().await.build_snapshot().await.expect("built");
    });
    sleep::<HeldEnv>(Duration::from_millis(200)).await;
    assert!(!building.is_finished() && checkpoint() == blank, "the tree is ahead of the log");
    assert_eq!(log.flushed_index(), None);
    hold.set(false);
    timeout::<HeldEnv, _>(PATIENCE, building).await.expect("in time").expect("no panic");
    assert!(checkpoint() != blank);
}

/// P12: two overlays are all there are. While the log is not on disk the sealed one cannot be written, and
/// `apply` waits rather than let the other one grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_waits_when_the_overlay_is_full() {
    const OVERLAY_BYTES: usize = 4_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (env, hold) = HeldEnv::new();
    let log = blank_log(&env, dir.path()).await;
    let sizes = ReplicaConfig { overlay_bytes: OVERLAY_BYTES, ..sizes() };
    let replica = replica(&env, &dir.path().join("group"), sizes).await;
    let mut follower = StateMachine::new(replica.clone(), log.clone());
    let mut builder = follower.get_snapshot_builder().await;
    let open_bytes = || replica.view(|machine| machine.rows().open_bytes());
    let ada = Person::new("ada");

    hold.set(true);
    append(&log).await;
    let create = Ok((entry(1, ada.create(ROOM)), None));
    follower.apply(futures::stream::iter([create])).await.expect("applied");
    let sealing = <HeldEnv as Env>::Rt::spawn(async move {
        builder.build_snapshot().await.expect("built");
        builder
    });
    until(|| open_bytes() == 0, "the sealed overlay").await;
    let entries = (2..=60).map(|index| {
        let group = ada.group(ROOM, &format!("p{index}"), 1, &["x"]);
        Ok((entry(index, publish(vec![group])), None))
    });
    let entries = futures::stream::iter(entries.collect::<Vec<_>>());
    let applying = <HeldEnv as Env>::Rt::spawn(async move { follower.apply(entries).await.expect("applied") });
    until(|| open_bytes() >= 2 * OVERLAY_BYTES, "the second overlay").await;
    sleep::<HeldEnv>(Duration::from_millis(200)).await;
    let bytes = open_bytes();
    assert!(!applying.is_finished() && bytes < 3 * OVERLAY_BYTES, "apply goes on into an overlay of {bytes} bytes");

    hold.set(false);
    let mut builder = timeout::<HeldEnv, _>(PATIENCE, sealing).await.expect("in time").expect("no panic");
    let finishing = async {
        while !applying.is_finished() {
            builder.build_snapshot().await.expect("built");
            tokio::task::yield_now().await;
        }
    };
    timeout::<HeldEnv, _>(PATIENCE, finishing).await.expect("in time");
    applying.await.expect("no panic");
}

async fn leader(dir: &Path) -> (Store<HeldEnv>, Hold, impl Sized) {
    let (env, hold) = HeldEnv::new();
    let (identity, lock) = Identity::open(&env, dir, PLACE.cluster, NodeId(1)).await.expect("minted");
    let config = StoreConfig { dir: dir.into(), groups: 2, wal: small(), ..StoreConfig::default() };
    let config = StoreConfig { disk_patience: Duration::from_millis(500), ..config };
    let store = Store::open(env, identity, config).await.expect("opened");
    let members = BTreeMap::from([(NodeId(1), Member { directory: identity.directory })]);
    store.group(PLACE.group).expect("there").initialize(members).await.expect("initialized");
    (store, hold, lock)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_ends_the_node() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (store, hold, _lock) = leader(dir.path()).await;
    let group = store.group(PLACE.group).expect("there");
    let tick = || Bytes::from(Proposal { at_ms: 1, command: Some(Command::Tick(Tick {})) }.encode_to_vec());
    while group.propose(tick()).await.is_err() {
        sleep::<HeldEnv>(Duration::from_millis(10)).await;
    }
    assert!(group.disk_waits() < Duration::from_millis(500));
    hold.set(true);
    let proposing = <HeldEnv as Env>::Rt::spawn(async move { group.propose(tick()).await.is_ok() });
    let fault = timeout::<HeldEnv, _>(PATIENCE, store.faults()).await.expect("the node gives up");
    assert!(fault.contains("disk"), "{fault}");
    assert!(!proposing.is_finished(), "acknowledged before its sync");
    assert!(store.group(PLACE.group).expect("there").disk_waits() >= Duration::from_millis(500));
}

/// A snapshot that finds no space is tried again, and the group goes on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_without_space_is_absorbed_and_made_later() {
    let (env, dir) = (CrashEnv::new(1), Path::new("/node"));
    let (identity, _lock) = Identity::open(&env, dir, PLACE.cluster, NodeId(1)).await.expect("minted");
    let config = StoreConfig { dir: dir.into(), groups: 2, wal: small(), ..StoreConfig::default() };
    let config = StoreConfig { snapshot_log_bytes: 2_000, ..config };
    let store = Store::open(env.clone(), identity, config).await.expect("opened");
    let members = BTreeMap::from([(NodeId(1), Member { directory: identity.directory })]);
    let group = store.group(PLACE.group).expect("there");
    group.initialize(members).await.expect("initialized");
    env.disk().set_full(Some("snapshots"));
    let tick = || Bytes::from(Proposal { at_ms: 1, command: Some(Command::Tick(Tick {})) }.encode_to_vec());
    while group.propose(tick()).await.is_err() {
        sleep::<CrashEnv>(Duration::from_millis(10)).await;
    }
    assert!(group.snapshot().await.is_err(), "no space");
    for _ in 0..200 {
        group.propose(tick()).await.expect("goes on");
    }
    assert_eq!(group.status().snapshot_index, 0);
    env.disk().set_full(None);
    let made = async {
        while group.status().snapshot_index == 0 {
            sleep::<CrashEnv>(Duration::from_millis(20)).await;
        }
    };
    timeout::<CrashEnv, _>(PATIENCE, made).await.expect("made when there is space again");
    group.propose(tick()).await.expect("goes on");
}

/// Neither the log nor checkpoints nor snapshots end a group when nothing fits on the disk any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_waited_for_and_ends_nothing() {
    let (env, dir) = (CrashEnv::new(2), Path::new("/node"));
    let (identity, _lock) = Identity::open(&env, dir, PLACE.cluster, NodeId(1)).await.expect("minted");
    let space = SpaceMarks { low_bytes: 1 << 20, reserve_bytes: 512 << 10 };
    let config = StoreConfig { dir: dir.into(), groups: 2, wal: small(), space, ..StoreConfig::default() };
    let config = StoreConfig { checkpoint_log_bytes: 2_000, snapshot_log_bytes: 4_000, ..config };
    let config = StoreConfig { disk_patience: Duration::from_secs(1), ..config };
    let store = Store::open(env.clone(), identity, config).await.expect("opened");
    let members = BTreeMap::from([(NodeId(1), Member { directory: identity.directory })]);
    let group = store.group(PLACE.group).expect("there");
    group.initialize(members).await.expect("initialized");
    let tick = || Bytes::from(Proposal { at_ms: 1, command: Some(Command::Tick(Tick {})) }.encode_to_vec());
    while group.propose(tick()).await.is_err() {
        sleep::<CrashEnv>(Duration::from_millis(10)).await;
    }
    env.disk().fill();
    let writer = {
        let group = group.clone();
        <CrashEnv as Env>::Rt::spawn(async move {
            for _ in 0..2_000 {
                group.propose(tick()).await.expect("waits, and does not fail");
            }
        })
    };
    let stalled = async {
        while store.wal().stalled().is_none() {
            sleep::<CrashEnv>(Duration::from_millis(10)).await;
        }
    };
    timeout::<CrashEnv, _>(PATIENCE, stalled).await.expect("the log needs another file");
    // Longer than a disk that hangs is given.
    let fault = timeout::<CrashEnv, _>(Duration::from_millis(1_500), store.faults()).await;
    assert!(fault.is_none() && !writer.is_finished(), "{fault:?}");
    let why = store.space().refuses_entries().expect("it takes no more entries");
    assert!(why.contains("/node has 0 MiB free") && why.contains("enlarge the disk"), "{why}");

    env.disk().set_capacity(None);
    timeout::<CrashEnv, _>(PATIENCE, writer).await.expect("goes on by itself").expect("all written");
    let made = async {
        while group.status().snapshot_index == 0 || store.space().level() != SpaceLevel::Enough {
            sleep::<CrashEnv>(Duration::from_millis(20)).await;
        }
    };
    timeout::<CrashEnv, _>(PATIENCE, made).await.expect("what was put off is made up for");
    env.disk().fill();
    timeout::<CrashEnv, _>(PATIENCE, store.shutdown()).await.expect("a full disk holds up no shutdown");
}
