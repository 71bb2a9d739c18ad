#[path = "../../machine/tests/common/mod.rs"]
mod common;

use std::path::Path;

use common::{Person, publish, room_id};
use prost::Message;
use unibus_proto::id::{ClusterId, GroupId, NodeId};
use unibus_proto::log::{self, proposal::Command};

use super::*;
use crate::checkpoint::TreeConfig;
use crate::env::Disk;
use crate::replica::ReplicaConfig;
use crate::segment::Place;
use crate::testing::TestEnv;
use crate::tree::{DAMAGED, Tree, TreeRead, Trees};
use crate::types::{Entry, Payload, Proposal, log_id};
use crate::wal::{Wal, WalConfig};

const PLACE: Place = Place { cluster: ClusterId([7; 16]), group: GroupId(1) };
const ROOM: &str = "agent.scout.in";

/// A state machine over the files in `dir`, beside a log that it does not need.
async fn machine(dir: &Path, config: ReplicaConfig) -> StateMachine<TestEnv> {
    let env = TestEnv::new(1);
    let (wal_dir, wal) = (dir.join("wal"), WalConfig { file_bytes: 64 << 10, spare_files: 0, ..WalConfig::default() });
    if !env.disk().exists(&wal_dir).await.expect("asked") {
        Wal::create(&env, &wal_dir, PLACE.cluster, &wal).await.expect("created");
    }
    let wal = Wal::open(&env, &wal_dir, PLACE.cluster, wal).await.expect("opened");
    let replica = Box::pin(Replica::open(&env, &dir.join("group"), PLACE, None, config)).await.expect("opened");
    StateMachine::new(Arc::new(replica), wal.group(PLACE.group))
}

fn entry(index: u64, command: Command) -> Entry {
    let proposal = log::Proposal { at_ms: 1_000, command: Some(command) };
    Entry { log_id: log_id(1, NodeId(1), index), payload: Payload::Normal(Proposal(proposal.encode_to_vec().into())) }
}

/// What a node has applied and not yet written does not grow with how far it is behind.
#[tokio::test]
async fn a_long_batch_is_written_out_as_it_is_applied() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut machine = machine(dir.path(), ReplicaConfig::default()).await;
    let (ada, body) = (Person::new("ada"), "x".repeat(64 << 10));
    let entries = (0..64).map(|number| match number {
        0 => entry(1, ada.create(ROOM)),
        _ => entry(number + 1, publish(vec![ada.group(ROOM, "p", number, &[&body])])),
    });
    let replica = machine.replica.clone();
    let entries = futures::stream::iter(entries).map(|entry| {
        let waits = replica.segments.unwritten_bytes();
        assert!(waits < (256 + 64 + 1) << 10, "{waits} bytes wait to be written at {}", entry.log_id);
        Ok((entry, None))
    });
    machine.apply(entries).await.expect("applied");
    let head = replica.view(|machine| machine.room(room_id(ROOM)).expect("there").next_sequence);
    assert_eq!(head, 64, "all are stored");
}

/// What is read from the tree and is not what was written stops the node, which says that a start mends it.
#[tokio::test]
async fn a_damaged_row_is_named_and_the_tree_condemned_before_apply_answers() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // A tree that is not added up at the start.
    let tree = TreeConfig { check_bytes: 0, ..ReplicaConfig::default().tree };
    let config = ReplicaConfig { tree, ..ReplicaConfig::default() };
    let ada = Person::new("ada");
    let before = &mut machine(dir.path(), config).await;
    before.apply(futures::stream::iter([Ok((entry(1, ada.create(ROOM)), None))])).await.expect("applied");
    drop(before.replica.checkpoint(&before.builder(true).synced).await.expect("written"));
    let group = dir.path().join("group");
    let tree = TestEnv::new(1).trees().open(&group.join("tree-1"), 0).await.expect("opened");
    let flipped = tree.scan(&[1], None, usize::MAX).expect("read").into_iter().map(|(key, value)| {
        let flip = value.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 2)).collect::<Vec<_>>();
        (key, Some(flip.into()))
    });
    tree.write(flipped.collect()).await.expect("written");

    let mut damaged = machine(dir.path(), config).await;
    let publish = publish(vec![ada.group(ROOM, "p", 1, &["one"])]);
    let error = damaged.apply(futures::stream::iter([Ok((entry(2, publish), None))])).await;
    let error = error.expect_err("a flipped row").to_string();
    assert!(error.contains("the tree is discarded at the next start"), "{error}");
    assert!(!error.contains("bug"), "{error}");
    assert!(group.join(DAMAGED).exists(), "the next start would use it again");
}
