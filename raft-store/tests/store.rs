//! Three stores over a network in memory: replication, kills, restarts, snapshots.

#[path = "../machine/tests/common/mod.rs"]
mod common;
mod lab;

use std::fs;
use std::time::Duration;

use common::{Person, publish, room_id};
use lab::{CLUSTER, Hub, Lab, LabEnv, META, SHARD};
use prost::Message;
use unibus_machine::Event;
use unibus_proto::id::{ClusterId, DirectoryId, NodeId};
use unibus_proto::log::reply::Reply;
use unibus_proto::peer;
use unibus_proto::peer::stream_open::Purpose;
use unibus_proto::v1::UserRole;
use unibus_raft_store::env::{Env, FrameRx, FrameTx, Instant, Lane, Net, now, sleep, timeout};
use unibus_raft_store::identity::Agreed;
use unibus_raft_store::stream::{StreamError, accept_stream, open_stream, open_stream_to};
use unibus_raft_store::{Identity, ProposeError, StoreConfig};

const ROOM: &str = "agent.scout.in";

/// Publishes the messages `numbers`, eight in an entry; answers the last index.
async fn publish_all(lab: &Lab, ada: &Person, numbers: std::ops::Range<u64>) -> u64 {
    let mut index = 0;
    for first in numbers.clone().step_by(8) {
        let bodies: Vec<String> =
            (first..numbers.end.min(first + 8)).map(|n| format!("{n} {}", "x".repeat(200))).collect();
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        let committed = lab.propose(SHARD, publish(vec![ada.group(ROOM, "p", first, &bodies)])).await;
        assert!(matches!(committed.reply.reply, Some(Reply::Publish(_))), "{:?}", committed.reply);
        index = committed.index;
    }
    index
}

async fn create_room(lab: &Lab, ada: &Person) {
    let created = lab.propose(SHARD, ada.create(ROOM)).await;
    assert!(matches!(created.reply.reply, Some(Reply::Room(_))), "{:?}", created.reply);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_survives_the_leader_and_all_nodes() {
    let mut lab = Lab::formed(Lab::small()).await;
    let ada = Person::new("ada");
    lab.propose(META, common::user_add(&ada, UserRole::Admin, 1)).await;
    create_room(&lab, &ada).await;
    publish_all(&lab, &ada, 1..101).await;

    let leader = lab.leader(SHARD).await;
    lab.kill(leader).await;
    let index = publish_all(&lab, &ada, 101..201).await;
    lab.start(leader).await;
    lab.agree(SHARD, index).await;
    let before = lab.timeline(leader, room_id(ROOM)).await;
    assert_eq!(before.len(), 201, "the creation and each message once");

    for node in [1, 2, 3] {
        lab.kill(node).await;
    }
    for node in [3, 1, 2] {
        lab.start(node).await;
    }
    let index = publish_all(&lab, &ada, 201..209).await;
    lab.agree(SHARD, index).await;
    for node in [1, 2, 3] {
        let timeline = lab.timeline(node, room_id(ROOM)).await;
        assert_eq!(timeline.len(), 209);
        assert_eq!(timeline[..201], before);
        lab.nodes[&node].group(SHARD).view(|machine| machine.check()).expect("the invariants hold");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_gets_a_snapshot() {
    let mut lab = Lab::formed(Lab::small()).await;
    let ada = Person::new("ada");
    create_room(&lab, &ada).await;
    publish_all(&lab, &ada, 1..41).await;
    let leader = lab.leader(SHARD).await;
    let away = (1..=3).find(|node| *node != leader).expect("a follower");
    lab.kill(away).await;
    for round in 0..3 {
        publish_all(&lab, &ada, 41 + round * 160..41 + (round + 1) * 160).await;
        for node in lab.nodes.values() {
            node.group(SHARD).snapshot().await.expect("a snapshot");
        }
    }
    let index = publish_all(&lab, &ada, 521..529).await;
    let group = lab.nodes[&leader].group(SHARD);
    lab::eventually("a purge", || (group.status().purged_index > 20).then_some(())).await;

    lab.start(away).await;
    let mut events = lab.nodes[&away].group(SHARD).subscribe_events();
    lab.agree(SHARD, index).await;
    assert!(lab.nodes[&away].group(SHARD).status().snapshot_index > 20, "not by log alone");
    let expected = lab.timeline(leader, room_id(ROOM)).await;
    assert_eq!(expected.len(), 529);
    assert!(lab.timeline(away, room_id(ROOM)).await == expected);
    let mut resets = 0;
    while let Ok(entry) = events.try_recv() {
        resets += usize::from(entry.reset);
    }
    assert!(resets <= 1, "installed at most once");

    lab.kill(away).await;
    lab.start(away).await;
    lab.agree(SHARD, index).await;
    assert!(lab.timeline(away, room_id(ROOM)).await == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_come_by_bytes_and_a_damaged_one_is_not_used() {
    let mut lab = Lab::formed(StoreConfig { snapshot_log_bytes: 20_000, ..Lab::small() }).await;
    let ada = Person::new("ada");
    create_room(&lab, &ada).await;
    let index = publish_all(&lab, &ada, 1..401).await;
    lab.agree(SHARD, index).await;
    let snapshots = lab.dir_of(1).join("groups/s1/snapshots");
    let newest = lab::eventually("two snapshots", || {
        let mut names: Vec<_> = fs::read_dir(&snapshots).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        names.retain(|path| path.extension().is_some_and(|extension| extension == "snapshot"));
        names.sort();
        (names.len() == 2).then(|| names.pop()).flatten()
    })
    .await;
    lab.kill(1).await;
    let newest = if newest.exists() { newest } else { last_snapshot(&snapshots) };
    let mut bytes = fs::read(&newest).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).expect("flips");
    lab.start(1).await;
    lab.agree(SHARD, index).await;
    assert_eq!(lab.timeline(1, room_id(ROOM)).await.len(), 401);
    assert!(newest.with_extension("damaged").exists(), "kept for analysis");
}

/// P12: the log stays bounded although the meta group has had nothing to write since it was formed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_group_does_not_hold_on_to_the_log() {
    let small = Lab::small();
    let wal = unibus_raft_store::wal::WalConfig { file_bytes: 32 << 10, ..small.wal.clone() };
    let config = StoreConfig { wal, snapshot_log_bytes: 8_000, ..small };
    let lab = Lab::formed(config).await;
    let ada = Person::new("ada");
    create_room(&lab, &ada).await;
    let begun = now::<LabEnv>();
    let mut next = 1;
    while lab.nodes.values().any(|node| node.store.wal().stats().recycled < 5) {
        let stats: Vec<_> = lab.nodes.values().map(|node| node.store.wal().stats()).collect();
        assert!(begun.elapsed() < Duration::from_secs(60), "the log only grows: {stats:?}");
        publish_all(&lab, &ada, next..next + 50).await;
        next += 50;
    }
}

fn last_snapshot(dir: &std::path::Path) -> std::path::PathBuf {
    let mut paths: Vec<_> = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "snapshot"));
    paths.sort();
    paths.pop().expect("a snapshot")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_in_order_on_a_follower() {
    let lab = Lab::formed(Lab::small()).await;
    let ada = Person::new("ada");
    let leader = lab.leader(SHARD).await;
    let follower = (1..=3).find(|node| *node != leader).expect("a follower");
    let mut events = lab.nodes[&follower].group(SHARD).subscribe_events();
    create_room(&lab, &ada).await;
    publish_all(&lab, &ada, 1..101).await;
    let mut sequences = vec![];
    while sequences.len() < 101 {
        let entry = timeout::<LabEnv, _>(Duration::from_secs(20), events.recv()).await.expect("in time").expect("open");
        for event in &entry.events {
            if let Event::Appended { deliveries, .. } = event {
                sequences.extend(deliveries.iter().map(|delivery| delivery.sequence.0));
            }
        }
    }
    assert_eq!(sequences, (0..101).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_acknowledged_or_read() {
    let mut lab = Lab::formed(Lab::small()).await;
    let ada = Person::new("ada");
    create_room(&lab, &ada).await;
    let leader = lab.leader(SHARD).await;
    let group = lab.nodes[&leader].group(SHARD);
    let read = group.read_index().await.expect("a quorum confirms");
    assert!(read >= 1);
    for node in (1..=3).filter(|node| *node != leader) {
        lab.kill(node).await;
    }
    let proposed = timeout::<LabEnv, _>(Duration::from_secs(2), group.propose(vec![].into())).await;
    assert!(!matches!(proposed, Some(Ok(_))), "{proposed:?}");
    let read = timeout::<LabEnv, _>(Duration::from_secs(2), group.read_index()).await.expect("answered within 2 s");
    assert!(matches!(read, Err(ProposeError::NotLeader { .. })), "{read:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_cannot_be_read_is_a_fault() {
    let lab = Lab::formed(Lab::small()).await;
    create_room(&lab, &Person::new("ada")).await;
    let leader = &lab.nodes[&lab.leader(SHARD).await];
    let proposed = leader.group(SHARD).propose(vec![0xff; 9].into()).await;
    assert!(matches!(proposed, Err(ProposeError::Fault(_))), "{proposed:?}");
    let fault = timeout::<LabEnv, _>(Duration::from_secs(5), leader.store.faults()).await.expect("reported");
    assert!(fault.contains("group s1"), "{fault}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_waits_for_a_slow_consumer_and_goes_on_after_it() {
    let lab = Lab::formed(Lab::small()).await;
    let ada = Person::new("ada");
    let leader = lab.leader(SHARD).await;
    let follower = lab.nodes[&(1..=3).find(|node| *node != leader).expect("a follower")].group(SHARD);
    let mut events = follower.subscribe_events();
    create_room(&lab, &ada).await;
    let mut index = 0;
    for number in 1..1200 {
        index = lab.propose(SHARD, publish(vec![ada.group(ROOM, "p", number, &["x"])])).await.index;
    }
    sleep::<LabEnv>(Duration::from_millis(200)).await;
    assert!(follower.applied_index() < index, "the queue is bounded");
    while follower.applied_index() < index {
        events.recv().await.expect("open");
    }
    lab.agree(SHARD, index).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_only_to_who_can_take_it() {
    let lab = Lab::formed(Lab::small()).await;
    let ada = Person::new("ada");
    create_room(&lab, &ada).await;
    let leader = lab.leader(SHARD).await;
    let group = lab.nodes[&leader].group(SHARD);
    assert!(group.transfer_leader(NodeId(9)).await.expect_err("no voter").contains("not another voter"));
    assert!(group.transfer_leader(NodeId(leader)).await.is_err(), "itself");
    let to = (1..=3).find(|node| *node != leader).expect("a follower");
    lab::eventually("a hand-over that is allowed", || group.status().matched.get(&NodeId(to)).map(drop)).await;
    while let Err(why) = group.transfer_leader(NodeId(to)).await {
        assert!(why.contains("heard"), "{why}");
        sleep::<LabEnv>(Duration::from_millis(20)).await;
    }
    let taken = lab.nodes[&to].group(SHARD);
    lab::eventually("the new leader", || taken.is_leader().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_or_foreign_directory_does_not_start() {
    let mut lab = Lab::formed(Lab::small()).await;
    create_room(&lab, &Person::new("ada")).await;
    lab.kill(2).await;
    let why = {
        fs::rename(lab.dir_of(2).join("wal"), lab.dir_of(2).join("lost")).expect("the log is lost");
        lab.try_start(2).await.expect_err("an identity without a log")
    };
    assert!(why.contains("no write-ahead log") && why.contains("node replace"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_index_that_is_told_without_asking_is_answered_only_when_it_is_refused() {
    let lab = Lab::formed(Lab::small()).await;
    create_room(&lab, &Person::new("ada")).await;
    let leader = lab.leader(SHARD).await;
    let (term, follower) = (lab.nodes[&leader].group(SHARD).status().term, if leader == 1 { 2 } else { 1 });
    let hub = Hub::default();
    let (from, to) = (hub.join(NodeId(leader)), hub.join(NodeId(follower)));
    let append = |term, silent| {
        let vote = peer::Vote { term, node_id: leader, committed: true };
        let append = peer::AppendRequest { vote: Some(vote), silent, ..peer::AppendRequest::default() };
        let request = peer::RaftRequest { request: Some(peer::raft_request::Request::Append(append)) };
        vec![request.encode_to_vec().into()]
    };
    let (mut tx, mut rx) = from.connect(NodeId(follower), Lane::Log).await.expect("connects");
    let (peer, theirs) = to.accept().await.expect("opened");
    let purpose = Purpose::Append(peer::GroupStream { group: SHARD.0 });
    let serving = lab.nodes[&follower].store.serve_raft(peer, purpose, theirs);
    let asking = async {
        tx.send(append(term, true)).await.expect("sent");
        tx.send(append(term, false)).await.expect("sent");
        let first = peer::RaftResponse::decode(rx.recv().await.expect("open").expect("an answer")).expect("decodes");
        assert!(first.error.is_empty() && first.response.is_some(), "{first:?}");
        tx.send(append(0, true)).await.expect("sent");
        let second = peer::RaftResponse::decode(rx.recv().await.expect("open").expect("a refusal")).expect("decodes");
        assert!(second.error.contains("a commit index is refused"), "{second:?}");
        assert_eq!(rx.recv().await.expect("finished"), None, "one answer to the question, one refusal, no more");
    };
    futures::join!(serving, asking);
}

/// With another size it would cut its segments elsewhere, from the replay of its log on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_keeps_the_settings_that_its_replicas_were_made_with() {
    let mut lab = Lab::formed(Lab::small()).await;
    create_room(&lab, &Person::new("ada")).await;
    lab.kill(2).await;
    let made_with = lab.config.clone();
    lab.config.segment_bytes *= 2;
    let why = lab.try_start(2).await.expect_err("another size");
    assert!(why.contains("written with store.segment_bytes = 16384, the node is started with 32768"), "{why}");
    lab.config = StoreConfig { groups: 3, ..made_with.clone() };
    let why = lab.try_start(2).await.expect_err("another number");
    assert!(why.contains("written with cluster.shards = 1, the node is started with 2"), "{why}");
    lab.config = made_with;
    lab.start(2).await;
}

#[tokio::test]
async fn a_stream_is_checked_before_anything_is_read() {
    let hub = Hub::default();
    let (one, two) = (LabEnv::new(hub.join(NodeId(1)), 1), LabEnv::new(hub.join(NodeId(2)), 2));
    let identity = |node: u64, cluster: u8| Identity {
        cluster: ClusterId([cluster; 16]),
        node: NodeId(node),
        directory: DirectoryId([node as u8; 16]),
        agreed: Some(Agreed { groups: 2, segment_bytes: 16 }),
    };
    let purpose = || Purpose::Control(peer::GroupStream { group: 0 });
    let exchange = async |from: Identity, expected: u8, known: bool| {
        let accept = async {
            let (peer, duplex) = two.net().accept().await.expect("opened");
            let check = |directory: DirectoryId, _: &Purpose| {
                let member = known && directory == DirectoryId([1; 16]);
                if member { Ok(()) } else { Err("membership: unknown directory".to_owned()) }
            };
            accept_stream::<LabEnv>(&identity(2, CLUSTER.0[0]), peer, duplex, check).await.map(drop)
        };
        let to = (NodeId(2), DirectoryId([expected; 16]));
        let open = open_stream_to(&one, &from, to, purpose(), Lane::Control);
        futures::join!(open, accept)
    };
    let (opened, accepted) = exchange(identity(1, CLUSTER.0[0]), 2, true).await;
    assert!(opened.is_ok() && accepted.is_ok());
    let (opened, accepted) = exchange(identity(1, 99), 2, true).await;
    let refused = opened.err().expect("another cluster").to_string();
    assert!(refused.contains("cluster: this node belongs to"), "{refused}");
    assert!(matches!(accepted, Err(StreamError::Rejected { .. })));
    let (opened, _) = exchange(identity(3, CLUSTER.0[0]), 2, true).await;
    assert!(opened.err().expect("another node").to_string().contains("the certificate says node 1"));
    let (opened, _) = exchange(identity(1, CLUSTER.0[0]), 2, false).await;
    assert!(opened.err().expect("unknown").to_string().contains("membership: unknown directory"));
    let (opened, _) = exchange(identity(1, CLUSTER.0[0]), 77, true).await;
    assert!(opened.err().expect("another disk").to_string().contains("has directory 0202"));
    let (opened, _) =
        exchange(identity(1, CLUSTER.0[0]).agreeing(Agreed { groups: 2, segment_bytes: 64 }), 2, true).await;
    let refused = opened.err().expect("another size").to_string();
    assert!(refused.contains("settings: store.segment_bytes is 64 on node 1, 16 on node 2"), "{refused}");
    let (opened, _) =
        exchange(identity(1, CLUSTER.0[0]).agreeing(Agreed { groups: 9, segment_bytes: 16 }), 2, true).await;
    let refused = opened.err().expect("another number").to_string();
    assert!(refused.contains("settings: cluster.shards is 8 on node 1, 1 on node 2"), "{refused}");
    let (opened, _) = exchange(Identity { agreed: None, ..identity(1, CLUSTER.0[0]) }, 2, true).await;
    assert!(opened.is_ok(), "an earlier version does not say");
    let gone = open_stream(&one, &identity(1, CLUSTER.0[0]), NodeId(5), purpose(), Lane::Control).await;
    assert!(matches!(gone, Err(StreamError::Net(_))));
}
