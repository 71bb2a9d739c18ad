//! Ephemeral rooms: from any node to the subscribers of all, at most once, to members only, under a lease.

use std::time::Duration;

use unibus_broker::service::{Caller, Failure};
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::limits::{LEASE, SUBSCRIBER_QUEUE_BYTES_MAX};
use unibus_proto::v1::publish_outcome::Outcome;
use unibus_proto::v1::*;
use unibus_raft_store::env::{Instant, now, sleep, timeout};

use crate::cluster::{CLUSTER, Cluster, PATIENCE, Reader, User, earliest, eventually, id_of, latest, shard_of, unique};
use crate::net::HubEnv;

const EPHEMERAL: RoomPolicy = RoomPolicy { encrypt: false, persist: false, sign: false, retention: None };

/// To how many nodes a message was sent.
async fn send(user: &User, room: &Room, number: u64, body: &str) -> Result<u32, Failure> {
    let response = user.publish(room, number, &[body]).await?;
    match response.outcomes.as_slice() {
        [PublishOutcome { first_number, count: 1, outcome: Some(Outcome::Accepted(accepted)) }]
            if *first_number == number =>
        {
            Ok(accepted.nodes)
        }
        other => panic!("{other:?} is not accepted"),
    }
}

/// A subscription that all nodes know of.
async fn listen(user: &User, filter: &str) -> Reader {
    let mut reader = user.subscribe(filter, latest()).await.unwrap();
    reader.until_caught_up().await;
    reader
}

fn bursts(subject: &str, numbered: &[(u64, &str)]) -> Vec<(String, u64, String)> {
    numbered.iter().map(|(number, body)| (subject.to_string(), *number, (*body).to_string())).collect()
}

/// The list after the user's first one: his only device is revoked.
pub fn revoke_device(user: &User) -> PublishDeviceListRequest {
    let (first, _) = user.identity.device_list(CLUSTER);
    let ended = EndedDevice { device_id: user.identity.device_id().to_bytes(), reason: DeviceEnd::Revoked.into() };
    let list = DeviceList {
        user: user.identity.handle.to_string(),
        version: 2,
        previous_hash: first.payload_hash().to_vec().into(),
        bundle_hashes: vec![],
        ended: vec![ended],
    };
    let device_list = Some(Signed::sign(CLUSTER, &list, &[&user.identity.user_key]));
    PublishDeviceListRequest { request_id: unique(16), device_list, bundles: vec![] }
}

/// Three nodes, with streams between all of them.
async fn cluster() -> Cluster {
    let cluster = Cluster::start(3).await;
    eventually("the nodes hear of each other", || (1..=3).all(|node| cluster.service(node).peers_reachable() == 2))
        .await;
    eventually("the nodes tell each other", || (1..=3).all(|node| cluster.service(node).told_nodes() == 2)).await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_reaches_the_subscribers_of_all_nodes_and_is_not_stored() {
    let cluster = cluster().await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create_with("live.cpu", EPHEMERAL).await;
    assert_eq!(send(&alice, &room, 1, "nobody listens").await.unwrap(), 0);
    let mut here = listen(&alice, "live.cpu").await;
    let mut there = listen(&alice.at(cluster.service(3)).await, "live.*").await;
    assert_eq!(send(&alice, &room, 2, "hi").await.unwrap(), 2);
    let three = alice.publish(&room, 3, &["a", "b", "c"]).await.unwrap();
    assert_eq!(three.outcomes[0].count, 3);
    for reader in [&mut here, &mut there] {
        assert_eq!(reader.bursts(4).await, bursts("live.cpu", &[(2, "hi"), (3, "a"), (4, "b"), (5, "c")]));
    }
    let room = alice.get(&room).await.unwrap();
    assert_eq!(room.head, 0, "nothing but its creation has a sequence");
    let counted = cluster.service(1).counters().now();
    assert_eq!((counted.ephemeral_sent, counted.ephemeral_dropped, counted.published), (5, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_listeners_is_sent_nothing() {
    let cluster = cluster().await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create_with("live.cpu", EPHEMERAL).await;
    let there = alice.at(cluster.service(3)).await;
    let (first, mut second) = (listen(&there, "live.cpu").await, listen(&there, "live.cpu").await);
    assert_eq!(send(&alice, &room, 1, "a").await.unwrap(), 1);
    drop(first);
    assert_eq!(send(&alice, &room, 2, "b").await.unwrap(), 1, "one still listens");
    assert_eq!(second.bursts(2).await, bursts("live.cpu", &[(1, "a"), (2, "b")]));
    drop(second);
    let start = now::<HubEnv>();
    let mut number = 3;
    while send(&alice, &room, number, "c").await.unwrap() > 0 {
        assert!(start.elapsed() < PATIENCE, "the interest is not withdrawn");
        number += 1;
        sleep::<HubEnv>(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_members_publish_and_a_removed_members_stream_ends() {
    let cluster = cluster().await;
    let (alice, bob) = (cluster.user("alice", 1).await, cluster.user("bob", 3).await);
    let room = alice.create_with("live.cpu", EPHEMERAL).await;
    let hidden = bob.publish(&room, 1, &["x"]).await.expect_err("no member");
    assert_eq!(hidden.code, ErrorCode::RoomNotFound);
    let hidden = bob.subscribe("live.cpu", latest()).await.err().expect("no member");
    assert_eq!(hidden.code, ErrorCode::RoomNotFound);
    alice.change(&room, &bob.identity, Some(RoomRole::Reader)).await;
    let (mut single, mut wild) = (listen(&bob, "live.cpu").await, listen(&bob, "live.>").await);
    let refused = bob.publish(&room, 1, &["x"]).await.expect_err("a reader");
    assert_eq!(refused.code, ErrorCode::Forbidden);
    send(&alice, &room, 1, "seen").await.unwrap();
    assert_eq!(single.bursts(1).await, bursts("live.cpu", &[(1, "seen")]));
    assert_eq!(wild.bursts(1).await, bursts("live.cpu", &[(1, "seen")]));
    alice.change(&room, &bob.identity, None).await;
    assert_eq!(single.drain().await.1.expect("the stream ends").code, ErrorCode::RoomNotFound);
    let (group, there) = (shard_of(&room), cluster.service(3));
    let replica = there.shards().group(group).unwrap().clone();
    let id = id_of(&room);
    eventually("the removal is applied", || replica.view(|machine| machine.member(id, &bob.identity.handle)).is_none())
        .await;
    send(&alice, &room, 2, "secret").await.unwrap();
    alice.change(&room, &bob.identity, Some(RoomRole::Reader)).await;
    let mut number = 3;
    let back = loop {
        send(&alice, &room, number, "back").await.unwrap();
        number += 1;
        let next = timeout::<HubEnv, _>(Duration::from_millis(50), wild.bursts(1)).await;
        if let Some(found) = next {
            break found;
        }
        assert!(number < 400, "he is not delivered to any more");
    };
    assert_eq!(back[0].2, "back", "what was sent while he was no member never reaches him");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_stored_cannot_be_asked_for() {
    let cluster = Cluster::start(1).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create_with("live.cpu", EPHEMERAL).await;
    for from in [earliest(), start_from::From::Sequence(0), start_from::From::TimeMs(1)] {
        let refused = alice.subscribe("live.cpu", from).await.err().expect("it stores nothing");
        assert_eq!(refused.code, ErrorCode::Invalid);
        assert!(refused.message.contains("is ephemeral and stores no messages"), "{refused}");
    }
    let until_end = SubscribeRequest { filter: "live.cpu".into(), until_end: true, ..SubscribeRequest::default() };
    assert_eq!(alice.subscribe_with(until_end).await.err().expect("it has no end").code, ErrorCode::Invalid);
    let resumed = RoomPosition { room_id: room.room_id.clone(), next_sequence: 1 };
    let start = Some(StartFrom { from: Some(earliest()) });
    let resumed =
        SubscribeRequest { filter: "live.cpu".into(), start, resume: vec![resumed], ..SubscribeRequest::default() };
    let mut resumed = alice.subscribe_with(resumed).await.expect("it goes on from a live position");
    resumed.until_caught_up().await;
    let mut wild = alice.subscribe("live.>", earliest()).await.expect("a filter passes over it");
    send(&alice, &room, 1, "hi").await.unwrap();
    assert_eq!(resumed.bursts(1).await, bursts("live.cpu", &[(1, "hi")]));
    assert_eq!(wild.bursts(1).await, bursts("live.cpu", &[(1, "hi")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_picks_up_an_ephemeral_room_that_is_made_later() {
    let cluster = cluster().await;
    let alice = cluster.user("alice", 1).await;
    let mut wild = listen(&alice.at(cluster.service(3)).await, "live.>").await;
    let room = alice.create_with("live.cpu", EPHEMERAL).await;
    let creation = wild.batch().await.expect("the stream goes on").expect("no failure");
    assert_eq!(creation.deliveries().unwrap()[0].sequence, 0, "its roster is delivered like any other");
    let start = now::<HubEnv>();
    let mut number = 1;
    while send(&alice, &room, number, "hi").await.unwrap() == 0 {
        assert!(start.elapsed() < PATIENCE, "nobody listens");
        number += 1;
        sleep::<HubEnv>(Duration::from_millis(5)).await;
    }
    assert_eq!(wild.bursts(1).await, bursts("live.cpu", &[(number, "hi")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_neither_takes_nor_delivers() {
    let cluster = cluster().await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create_with("live.cpu", EPHEMERAL).await;
    let there = alice.at(cluster.service(3)).await;
    let mut single = listen(&there, "live.cpu").await;
    let mut wild = listen(&there, "live.>").await;
    let mut here = listen(&alice, "live.cpu").await;
    assert_eq!(send(&there, &room, 1, "before").await.unwrap(), 2);
    for reader in [&mut single, &mut wild, &mut here] {
        assert_eq!(reader.bursts(1).await, bursts("live.cpu", &[(1, "before")]));
    }
    let cut = now::<HubEnv>();
    cluster.hub.cut(NodeId(3));
    for reader in [&mut single, &mut wild] {
        let failure = reader.drain().await.1.expect("the stream ends");
        assert_eq!(failure.code, ErrorCode::NoLeader, "another node serves it: {failure}");
        assert!(failure.message.contains("has not heard from the leader"), "{failure}");
    }
    assert!(cut.elapsed() < LEASE + Duration::from_secs(1), "it took {:?}", cut.elapsed());
    let refused = there.publish(&room, 2, &["x"]).await.expect_err("no lease");
    assert_eq!(refused.code, ErrorCode::NoLeader);
    let refused = there.subscribe("live.cpu", latest()).await.err().expect("no lease");
    assert_eq!(refused.code, ErrorCode::NoLeader);

    cluster.hub.heal(NodeId(3));
    let start = now::<HubEnv>();
    let mut again = loop {
        match there.subscribe("live.cpu", latest()).await {
            Ok(reader) => break reader,
            Err(failure) => assert!(start.elapsed() < PATIENCE, "{failure}"),
        }
    };
    again.until_caught_up().await;
    eventually("the nodes tell each other", || (1..=3).all(|node| cluster.service(node).told_nodes() == 2)).await;
    let mut number = 3;
    while send(&alice, &room, number, "after").await.unwrap() < 2 {
        assert!(start.elapsed() < PATIENCE, "n3 is not sent to again");
        number += 1;
        sleep::<HubEnv>(Duration::from_millis(20)).await;
    }
    assert_eq!(again.bursts(1).await[0].2, "after");
}

/// P6: a node that was away has the word of all that decides before it takes a message, not only of the room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_who_was_revoked_meanwhile_publishes_nothing_through_a_node_that_was_cut_off() {
    let cluster = cluster().await;
    let (alice, bob) = (cluster.user("alice", 1).await, cluster.user("bob", 3).await);
    let room = alice.create_with("live.cpu", EPHEMERAL).await;
    alice.change(&room, &bob.identity, Some(RoomRole::Member)).await;
    let mut here = listen(&alice, "live.cpu").await;
    cluster.hub.cut(NodeId(3));
    let start = now::<HubEnv>();
    let revoke = RevokeUserRequest { request_id: unique(16), handle: "bob".into() };
    while let Err(failure) = cluster.service(1).revoke_user(&Caller::Local, revoke.clone()).await {
        assert!(start.elapsed() < PATIENCE, "{failure}");
    }
    cluster.hub.heal(NodeId(3));
    let refused = loop {
        match bob.publish(&room, 1, &["stolen"]).await.expect_err("he was revoked") {
            failure if failure.code != ErrorCode::NoLeader => break failure,
            failure => assert!(start.elapsed() < PATIENCE, "{failure}"),
        }
    };
    assert_eq!(refused.code, ErrorCode::Forbidden, "{refused}");
    send(&alice, &room, 1, "after").await.unwrap();
    assert_eq!(here.bursts(1).await, bursts("live.cpu", &[(1, "after")]));
}

/// P6: a device that its user revoked neither publishes nor listens through a node that does not hear of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_revoked_device_is_served_no_longer_than_a_lease_where_the_list_of_its_user_is_old() {
    let cluster = cluster().await;
    let alice = cluster.user("alice", 1).await;
    let there = alice.at(cluster.service(3)).await;
    let devices = there.service.shards().of_user(&alice.identity.handle);
    assert_ne!(there.service.shards().group(devices).unwrap().leader(), Some(NodeId(3)), "it would not be held");
    // In another shard than her devices: of all that decides, only the word on these does not come.
    let mut number = 0;
    let room = loop {
        let room = alice.create_with(&format!("live.{number}"), EPHEMERAL).await;
        if shard_of(&room) != devices {
            break room;
        }
        number += 1;
    };
    let mut reader = listen(&there, &room.subject).await;
    assert_eq!(send(&there, &room, 1, "before").await.unwrap(), 1);
    assert_eq!(reader.bursts(1).await, bursts(&room.subject, &[(1, "before")]));

    cluster.hub.hold(NodeId(3), devices);
    alice.service.publish_device_list(&alice.caller, revoke_device(&alice)).await.unwrap();
    let drained = timeout::<HubEnv, _>(LEASE + Duration::from_secs(1), reader.drain()).await;
    let failure = drained.expect("not longer than a lease").1.expect("the stream ends");
    assert_eq!(failure.code, ErrorCode::NoLeader, "another node serves it, or refuses: {failure}");
    assert!(failure.message.contains(&format!("group {devices} ")), "{failure}");
    let refused = there.publish(&room, 2, &["stolen"]).await.expect_err("nobody knows whether she may");
    assert_eq!(refused.code, ErrorCode::NoLeader, "{refused}");
    let refused = alice.publish(&room, 2, &["stolen"]).await.expect_err("this node knows");
    assert_eq!(refused.code, ErrorCode::Unauthenticated, "{refused}");
}

/// Who decides on a message is the room's shard, which may be ahead of the directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_to_a_room_that_the_directory_of_the_node_does_not_name_yet_is_delivered() {
    let cluster = cluster().await;
    let alice = cluster.user("alice", 1).await;
    let there = alice.at(cluster.service(3)).await;
    let known = alice.create_with("live.cpu", EPHEMERAL).await;
    let mut wild = listen(&there, "live.>").await;
    assert_eq!(send(&alice, &known, 1, "before").await.unwrap(), 1);
    assert_eq!(wild.bursts(1).await, bursts("live.cpu", &[(1, "before")]));

    assert_ne!(there.service.shards().meta().leader(), Some(NodeId(3)), "it would not be held");
    cluster.hub.hold(NodeId(3), GroupId::META);
    let start = now::<HubEnv>();
    let room = alice.create_with("live.disk", EPHEMERAL).await;
    wild.batch().await.expect("the stream goes on").expect("its roster, of the same shard");
    let mut number = 1;
    while send(&alice, &room, number, "hi").await.unwrap() == 0 {
        assert!(start.elapsed() < LEASE, "n3 does not listen");
        number += 1;
        sleep::<HubEnv>(Duration::from_millis(5)).await;
    }
    assert_eq!(wild.bursts(1).await, bursts("live.disk", &[(number, "hi")]));
    let named = there.service.shards().meta().view(|machine| machine.directory(id_of(&room)));
    assert_eq!(named, None, "its directory is older than the room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_subscriber_misses_the_oldest_which_is_counted() {
    let cluster = cluster().await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create_with("live.cpu", EPHEMERAL).await;
    let mut reader = listen(&alice, "live.cpu").await;
    let body = "x".repeat(256 << 10);
    let count = 3 * (SUBSCRIBER_QUEUE_BYTES_MAX / body.len()) as u64;
    for number in 1..=count {
        assert_eq!(send(&alice, &room, number, &body).await.unwrap(), 1);
    }
    let dropped = cluster.service(1).counters().now().ephemeral_dropped;
    assert!(dropped > count / 2, "{dropped} of {count} were dropped");
    let numbers: Vec<_> = reader.bursts((count - dropped) as usize).await.into_iter().map(|(_, n, _)| n).collect();
    assert_eq!(numbers, (dropped + 1..=count).collect::<Vec<_>>(), "the newest are there, in order");
}
