//! Subscriptions: history joins the live tail, filters pick rooms up, a removal ends the stream.

use unibus_proto::code::ErrorCode;
use unibus_proto::v1::*;

use crate::cluster::{Cluster, User, earliest, latest};

/// Publishes `count` messages one by one, from `first` on.
fn publish_in_background(user: &User, room: &Room, first: u64, count: u64) -> tokio::task::JoinHandle<()> {
    let (user, room) = (user.clone(), room.clone());
    tokio::spawn(async move {
        for number in first..first + count {
            user.publish(&room, number, &[&number.to_string()]).await.unwrap();
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_joins_live_without_gap_or_duplicate_on_every_node() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.live").await;
    publish_in_background(&alice, &room, 1, 50).await.unwrap();
    let publishing = publish_in_background(&alice, &room, 51, 250);
    let mut readers = Vec::new();
    for node in 1..=3 {
        let there = alice.at(cluster.service(node)).await;
        readers.push(there.subscribe("ops.live", earliest()).await.unwrap());
    }
    for reader in &mut readers {
        let found = reader.messages(300).await;
        let expected: Vec<_> = (1..=300).map(|n: u64| ("ops.live".to_string(), n, n.to_string())).collect();
        assert_eq!(found, expected);
        reader.until_caught_up().await;
    }
    publishing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_subscriber_falls_back_to_history_and_misses_nothing() {
    let cluster = Cluster::start(1).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.slow").await;
    let mut reader = alice.subscribe("ops.slow", latest()).await.unwrap();
    alice.publish(&room, 1, &["first"]).await.unwrap();
    assert_eq!(reader.messages(1).await[0].2, "first");
    // 12 MiB while nobody reads: three times what the mailbox holds.
    let body = "x".repeat(64 << 10);
    for batch in 0..12 {
        alice.publish(&room, 2 + batch * 16, &[body.as_str(); 16]).await.unwrap();
    }
    let found = reader.messages(12 * 16).await;
    assert_eq!(
        found.iter().map(|(_, sequence, _)| *sequence).collect::<Vec<_>>(),
        (2..2 + 12 * 16).collect::<Vec<_>>()
    );
    alice.publish(&room, 2 + 12 * 16, &["live again"]).await.unwrap();
    assert_eq!(reader.messages(1).await[0].2, "live again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_picks_up_rooms_that_are_created_later_from_their_start() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let bob = cluster.user("bob", 2).await;
    let before = alice.create("ops.before").await;
    alice.publish(&before, 1, &["old"]).await.unwrap();
    let there = alice.at(cluster.service(3)).await;
    let mut reader = there.subscribe("ops.>", latest()).await.unwrap();
    let later = alice.create("ops.later").await;
    bob.create("ops.bobs").await;
    alice.create("other.room").await;
    alice.publish(&later, 1, &["new"]).await.unwrap();
    let entries = reader.batch().await.unwrap().unwrap();
    assert_eq!((&*entries.subject, entries.deliveries().unwrap()[0].sequence), ("ops.later", 0), "the creation itself");
    if entries.deliveries().unwrap().len() == 1 {
        assert_eq!(reader.messages(1).await, [("ops.later".to_string(), 1, "new".to_string())]);
    }
    alice.publish(&before, 2, &["newer"]).await.unwrap();
    assert_eq!(reader.messages(1).await, [("ops.before".to_string(), 2, "newer".to_string())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_members_stream_ends_and_nothing_after_it_is_delivered() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let bob = cluster.user("bob", 2).await;
    let room = alice.create("ops.fence").await;
    alice.change(&room, &bob.identity, Some(RoomRole::Reader)).await;
    let mut single = bob.subscribe("ops.fence", earliest()).await.unwrap();
    let mut wild = bob.subscribe("ops.>", earliest()).await.unwrap();
    alice.publish(&room, 1, &["seen"]).await.unwrap();
    assert_eq!(single.messages(1).await[0].2, "seen");
    assert_eq!(wild.messages(1).await[0].2, "seen");
    let removal = alice.change(&room, &bob.identity, None).await.sequence;
    alice.publish(&room, 2, &["secret"]).await.unwrap();
    let (sequences, failure) = single.drain().await;
    assert!(sequences.iter().all(|&sequence| sequence <= removal), "{sequences:?} go beyond {removal}");
    assert_eq!(failure.expect("the stream ends").code, ErrorCode::RoomNotFound);
    let refused = bob.subscribe("ops.fence", earliest()).await.err().expect("no member").code;
    assert_eq!(refused, ErrorCode::RoomNotFound);

    alice.change(&room, &bob.identity, Some(RoomRole::Reader)).await;
    alice.publish(&room, 3, &["back"]).await.unwrap();
    let bodies: Vec<_> = wild.messages(2).await.into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(bodies, ["secret", "back"], "a member again, he reads the plaintext room without a gap");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn until_end_stops_at_the_head_of_the_moment_on_any_node() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.end").await;
    publish_in_background(&alice, &room, 1, 40).await.unwrap();
    for node in 1..=3 {
        let there = alice.at(cluster.service(node)).await;
        let start = Some(StartFrom { from: Some(earliest()) });
        let request =
            SubscribeRequest { filter: "ops.*".into(), start, until_end: true, ..SubscribeRequest::default() };
        let mut reader = there.subscribe_with(request).await.unwrap();
        let publishing = publish_in_background(&alice, &room, 41 + 5 * (node as u64 - 1), 5);
        let (sequences, failure) = reader.drain().await;
        let head = 40 + 5 * (node as u64 - 1);
        assert_eq!((sequences, failure), ((0..=head).collect(), None), "through node {node}");
        assert_eq!(reader.caught_up.unwrap().positions[0].next_sequence, head + 1);
        publishing.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_starts_where_it_is_told() {
    let cluster = Cluster::start(1).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.start").await;
    let mut times = Vec::new();
    for number in 1..=5u64 {
        times.push(alice.publish(&room, number, &[&number.to_string()]).await.unwrap().time_ms);
        tokio::task::yield_now().await;
        unibus_raft_store::env::sleep::<crate::net::HubEnv>(std::time::Duration::from_millis(3)).await;
    }
    let first = async |from| alice.subscribe("ops.start", from).await.unwrap().messages(1).await[0].1;
    assert_eq!(first(start_from::From::Sequence(3)).await, 3);
    assert_eq!(first(start_from::From::TimeMs(times[3])).await, 4);
    assert_eq!(first(start_from::From::TimeMs(0)).await, 1);
    let position = |next_sequence| RoomPosition { room_id: room.room_id.clone(), next_sequence };
    let resume =
        |next| SubscribeRequest { filter: "ops.>".into(), resume: vec![position(next)], ..SubscribeRequest::default() };
    assert_eq!(alice.subscribe_with(resume(5)).await.unwrap().messages(1).await[0].1, 5);
    let beyond = alice.subscribe_with(resume(99)).await.err().expect("above the head + 1");
    assert_eq!(beyond.code, ErrorCode::OutOfRange);
    let beyond = alice.subscribe("ops.start", start_from::From::Sequence(7)).await.err().expect("above the head + 1");
    assert_eq!(beyond.code, ErrorCode::OutOfRange);
    let malformed = alice.subscribe("ops..x", earliest()).await.err().expect("no filter");
    assert_eq!(malformed.code, ErrorCode::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_streams_end_when_the_user_is_revoked_or_the_node_stops() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster.user("alice", 1).await, cluster.user("bob", 1).await);
    alice.create("ops.a").await;
    bob.create("ops.b").await;
    let mut of_alice = alice.subscribe("ops.a", latest()).await.unwrap();
    let mut of_bob = bob.subscribe("ops.>", latest()).await.unwrap();
    let revoke = RevokeUserRequest { request_id: crate::cluster::unique(16), handle: "alice".into() };
    alice.service.revoke_user(&unibus_broker::service::Caller::Local, revoke).await.unwrap();
    assert_eq!(of_alice.drain().await.1.expect("revoked").code, ErrorCode::Forbidden);
    bob.service.stop();
    assert_eq!(of_bob.drain().await.1.expect("stopping").code, ErrorCode::Draining);
    assert_eq!(bob.service.subscriptions(), 2, "until the streams are dropped");
    drop((of_alice, of_bob));
    assert_eq!(bob.service.subscriptions(), 0);
}
