//! Disks that fill up: messages go where there is space, and are refused in time where there is none.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::{join, join_all};
use unibus_broker::service::{Caller, Failure};
use unibus_proto::code::{ErrorCode, Outcome};
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::limits::PROPOSE_PATIENCE;
use unibus_proto::v1::*;
use unibus_raft_store::env::{Instant, now};
use unibus_raft_store::testing::FREE_BYTES_FILE;

use crate::cluster::{Cluster, User, add_user, earliest, eventually, identity, shard_of, unique};
use crate::net::HubEnv;

/// Below the low mark, above the reserve.
const LOW: u64 = 256 << 20;
const NONE: u64 = 0;
/// A refusal is there in time, on a machine that builds something else meanwhile.
const IN_TIME: Duration = Duration::from_millis(PROPOSE_PATIENCE.as_millis() as u64 + 500);

/// Leaves so much on a node's disk; more than there is at first when it is `None`.
fn leave(cluster: &Cluster, node: u64, bytes: Option<u64>) {
    let dir: &Path = cluster.dirs().nth(node as usize - 1).expect("a node");
    let file = dir.join(FREE_BYTES_FILE);
    match bytes {
        Some(bytes) => fs::write(file, bytes.to_string()).unwrap(),
        None => fs::remove_file(file).unwrap(),
    }
}

fn leader(cluster: &Cluster, group: GroupId) -> Option<NodeId> {
    cluster.nodes.iter().find_map(|node| {
        let group = node.service().shards().group(group).unwrap().clone();
        group.is_leader().then(|| node.identity().node)
    })
}

fn leads_something(cluster: &Cluster, node: u64) -> bool {
    cluster.service(node as usize).shards().ids().any(|group| leader(cluster, group) == Some(NodeId(node)))
}

async fn refused(user: &User, room: &Room, number: u64) -> Failure {
    let begun = now::<HubEnv>();
    let failure = user.publish(room, number, &["no space"]).await.expect_err("there is no space");
    assert!(begun.elapsed() <= IN_TIME, "refused after {:?}: {failure}", begun.elapsed());
    failure
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_fills_up_gives_its_groups_away_and_gets_them_back() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.full").await;
    let full = leader(&cluster, shard_of(&room)).expect("a leader").0;
    let there = alice.at(cluster.service(full as usize)).await;
    there.publish(&room, 1, &["before"]).await.expect("stored");

    leave(&cluster, full, Some(LOW));
    let service = cluster.service(full as usize);
    eventually("the node says why", || {
        let why = cluster.nodes[full as usize - 1].not_ready().join("; ");
        why.contains("takes no new messages") && why.contains("256 MiB free") && why.contains("enlarge the disk")
    })
    .await;
    there.publish(&room, 2, &["through the full node"]).await.expect("forwarded to the next leader");
    eventually("it leads nothing", || !leads_something(&cluster, full)).await;
    assert_eq!(service.local_status().disk_free_bytes, LOW);
    assert!(!service.local_status().refuses_entries, "it goes on following");
    let mut reader = there.subscribe("ops.full", earliest()).await.expect("it goes on reading");
    assert_eq!(reader.messages(2).await.len(), 2);

    leave(&cluster, full, None);
    cluster.spread().await;
    assert!(leads_something(&cluster, full) && cluster.nodes[full as usize - 1].not_ready().is_empty());
    there.publish(&room, 3, &["after"]).await.expect("stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_every_disk_is_low_messages_are_refused_and_the_rest_goes_on() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let bob = cluster.user("bob", 1).await;
    let room = alice.create("ops.low").await;
    alice.publish(&room, 1, &["before"]).await.expect("stored");
    (1..=3).for_each(|node| leave(&cluster, node, Some(LOW)));
    eventually("all are full", || cluster.nodes.iter().all(|node| !node.not_ready().is_empty())).await;
    for node in 1..=3 {
        let failure = refused(&alice.at(cluster.service(node)).await, &room, 2).await;
        assert_eq!((failure.code, failure.code.outcome()), (ErrorCode::DiskFull, Outcome::None), "{failure}");
        assert!(failure.message.contains("nothing was stored") && failure.message.contains("MiB free"), "{failure}");
    }
    // What lets retention make room, and what takes access away, is no message.
    alice.change(&room, &bob.identity, Some(RoomRole::Reader)).await;
    (1..=3).for_each(|node| leave(&cluster, node, None));
    eventually("all take messages", || cluster.nodes.iter().all(|node| node.not_ready().is_empty())).await;
    alice.publish(&room, 2, &["after"]).await.expect("the number was not used up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_revocation_passes_a_full_disk_among_commands_that_do_not() {
    let cluster = Cluster::start(3).await;
    let bob = cluster.user("bob", 1).await;
    (1..=3).for_each(|node| leave(&cluster, node, Some(LOW)));
    eventually("all are full", || cluster.nodes.iter().all(|node| !node.not_ready().is_empty())).await;
    let service = cluster.service(1);
    let users: Vec<_> = (0..64).map(|n| add_user(&identity(&format!("user{n}")), UserRole::Member)).collect();
    let adding = users.into_iter().map(|user| service.add_user(&Caller::Local, user));
    let revoke = RevokeUserRequest { request_id: unique(16), handle: bob.identity.handle.to_string() };
    let are_answered = AtomicBool::new(false);
    // More wait for an entry of meta than are on their way.
    let added = async {
        let added = join_all(adding).await;
        are_answered.store(true, Ordering::Relaxed);
        added
    };
    let revoked = async {
        let revoked = service.revoke_user(&Caller::Local, revoke).await;
        assert!(!are_answered.load(Ordering::Relaxed), "it waited for what is refused");
        revoked
    };
    let (added, revoked) = join(added, revoked).await;
    let code = |added: &Result<_, Failure>| added.as_ref().map(|_| ()).map_err(|failure| failure.code);
    assert!(added.iter().all(|added| code(added) == Err(ErrorCode::DiskFull)), "users are refused");
    assert_eq!(revoked.expect("what takes access away passes").status(), UserStatus::Revoked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_disks_without_any_space_nothing_is_promised() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.two").await;
    let shard = shard_of(&room);
    let leads = leader(&cluster, shard).expect("a leader");
    let followers: Vec<u64> = (1..=3).filter(|node| *node != leads.0).collect();
    let there = alice.at(cluster.service(leads.0 as usize)).await;
    there.publish(&room, 1, &["before"]).await.expect("stored");

    followers.iter().for_each(|node| leave(&cluster, *node, Some(NONE)));
    let refusing = |node: &u64| cluster.service(*node as usize).local_status().refuses_entries;
    eventually("both refuse entries", || followers.iter().all(refusing)).await;
    // The first may be on its way when the leader learns of it; it is told why as well.
    let first = refused(&there, &room, 2).await;
    assert!(first.message.contains("MiB free"), "{first}");
    let second = refused(&there, &room, 2).await;
    assert_eq!(second.code, ErrorCode::DiskFull, "{second}");
    assert!(second.message.contains("1 of 3 voters have space for it, 2 are needed"), "{second}");

    leave(&cluster, followers[0], None);
    eventually("there is a majority again", || !refusing(&followers[0])).await;
    let begun = now::<HubEnv>();
    while let Err(failure) = there.publish(&room, 2, &["no space"]).await {
        assert!(begun.elapsed() < Duration::from_secs(10), "{failure}");
    }
    leave(&cluster, followers[1], None);
    let last = cluster.service(followers[1] as usize);
    eventually("the last one catches up", || !refusing(&followers[1]) && last.shards().starved().is_none()).await;
    let through = alice.at(cluster.service(followers[1] as usize)).await;
    let mut reader = through.subscribe("ops.two", earliest()).await.expect("subscribed");
    assert_eq!(reader.messages(2).await.len(), 2, "once each");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hears_of_nothing_new_sends_readers_elsewhere() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.starved").await;
    let leads = leader(&cluster, shard_of(&room)).expect("a leader").0;
    let full = leads % 3 + 1;
    let there = alice.at(cluster.service(leads as usize)).await;
    let reading = alice.at(cluster.service(full as usize)).await;
    there.publish(&room, 1, &["before"]).await.expect("stored");
    let mut reader = reading.subscribe("ops.starved", earliest()).await.expect("subscribed");
    reader.messages(1).await;

    leave(&cluster, full, Some(NONE));
    let service = cluster.service(full as usize);
    eventually("it refuses entries", || service.local_status().refuses_entries).await;
    assert_eq!(service.shards().starved(), None, "there is nothing that it lacks");
    reading.get(&room).await.expect("what is here is read here");
    let begun = now::<HubEnv>();
    while there.publish(&room, 2, &["elsewhere"]).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "two of three have space");
    }
    eventually("it knows that it lacks something", || service.shards().starved().is_some()).await;
    let begun = now::<HubEnv>();
    let unread = reading.get(&room).await.map(|_| ());
    // Meta, where the room is found, may have nothing new: then it is read.
    assert!(unread.as_ref().map_or_else(|failure| failure.code == ErrorCode::Draining, |()| true), "{unread:?}");
    let mut again = reading.subscribe("ops.starved", earliest()).await.expect("what is here");
    let (sequences, ended) = again.drain().await;
    let ended = ended.expect("it ends, or the subscriber would wait in vain");
    assert!(!sequences.is_empty() && begun.elapsed() < IN_TIME, "{sequences:?} in {:?}", begun.elapsed());
    assert_eq!(ended.code, ErrorCode::Draining, "{ended}");
    assert!(ended.message.contains("use another node"), "{ended}");
    let (_, ended) = reader.drain().await;
    assert_eq!(ended.expect("it ends").code, ErrorCode::Draining);

    leave(&cluster, full, None);
    eventually("it has caught up", || service.shards().starved().is_none()).await;
    let mut reader = reading.subscribe("ops.starved", earliest()).await.expect("subscribed");
    assert_eq!(reader.messages(2).await.len(), 2);
}
