//! Unary calls: sign-in and renewal, failover, pins, signed roster changes.

#![allow(clippy::disallowed_methods, reason = "the tests own the runtime; its clock is virtual")]

mod fake;

use std::cell::Cell;
use std::time::Duration;

use fake::{Cluster, FakePlatform, ROOM, alice};
use unibus_client::proto::code::Outcome;
use unibus_client::proto::id::{ClusterId, Handle};
use unibus_client::proto::v1::{RoomPolicy, RoomRetention, RoomRole};
use unibus_client::{Client, ClientConfig, ErrorCode};

#[tokio::test(start_paused = true)]
async fn signs_in_once_with_the_first_device_list() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    assert_eq!(client.cluster_id(), fake::CLUSTER);
    let calls = futures::future::join_all((0..20).map(|_| client.who_am_i())).await;
    assert!(calls.iter().all(|answer| answer.as_ref().unwrap().user == "alice"));
    let state = cluster.lock();
    assert_eq!(state.sign_ins, 1);
    assert!(state.device_list.is_some());
}

#[tokio::test(start_paused = true)]
async fn renews_the_token_before_it_ends_and_when_it_is_refused() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    client.who_am_i().await.unwrap();
    assert_eq!(cluster.lock().sign_ins, 1);
    tokio::time::sleep(Duration::from_secs(120)).await;
    client.who_am_i().await.unwrap();
    assert_eq!(cluster.lock().sign_ins, 2);
    cluster.lock().node(1).refuse_tokens = 1;
    client.who_am_i().await.unwrap();
    assert_eq!(cluster.lock().sign_ins, 3);
    cluster.lock().node(1).refuse_tokens = 100;
    assert_eq!(client.who_am_i().await.unwrap_err().code, ErrorCode::Unauthenticated);
}

#[tokio::test(start_paused = true)]
async fn another_cluster_is_refused_before_anything_is_signed() {
    let cluster = Cluster::new();
    let refused = cluster.client_with(|config| ClientConfig { cluster_id: Some(ClusterId([8; 16])), ..config }).await;
    let error = refused.unwrap_err();
    assert!(error.code == ErrorCode::Invalid && error.message.contains("07070707"), "{error}");
    assert_eq!(cluster.lock().sign_ins, 0);
}

#[tokio::test(start_paused = true)]
async fn goes_to_the_next_node_when_one_dies_or_has_no_leader() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    cluster.lock().kill(1);
    let started = tokio::time::Instant::now();
    assert_ne!(client.who_am_i().await.unwrap().node_id, 1);
    assert!(started.elapsed() < Duration::from_millis(100));
    let now = client.who_am_i().await.unwrap().node_id;
    cluster.lock().node(now).call_faults.push_back((ErrorCode::NoLeader, 0));
    assert_ne!(client.who_am_i().await.unwrap().node_id, now);
    cluster.lock().node(1).down = false;
    // Long enough for the failed ones to be trusted again.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let now = client.who_am_i().await.unwrap().node_id;
    let other = 6 - 1 - now;
    cluster.lock().node(now).call_faults.push_back((ErrorCode::NotLeader, other));
    assert_eq!(client.who_am_i().await.unwrap().node_id, other);
}

#[tokio::test(start_paused = true)]
async fn says_why_when_no_node_can_be_reached() {
    let cluster = Cluster::new();
    (1..=3).for_each(|node| cluster.lock().kill(node));
    let refused = cluster.client_with(|config| config.patience(Duration::from_secs(2))).await;
    let error = refused.unwrap_err();
    assert_eq!((error.code, error.outcome), (ErrorCode::Unreachable, Outcome::None));
    assert!(error.message.contains("n1:1") && error.message.contains("connection refused"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn one_configured_address_is_enough_to_outlive_its_node() {
    let cluster = Cluster::new();
    let client = Client::unconnected(FakePlatform::new(cluster.clone()), ClientConfig::new(["n1:1"]), alice());
    assert_eq!(client.who_am_i().await.unwrap().node_id, 1);
    cluster.lock().kill(1);
    assert_ne!(client.who_am_i().await.unwrap().node_id, 1);
    assert_eq!(client.node_label("n1:1"), "n1 (n1:1)");
    assert_eq!(client.node_label("n9:1"), "n9:1");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_with_the_patience() {
    let cluster = Cluster::new();
    let patience = Duration::from_secs(3);
    let client = cluster.client_with(|config| config.patience(patience)).await.unwrap();
    (1..=3).for_each(|node| cluster.lock().node(node).deaf = true);
    let started = tokio::time::Instant::now();
    let error = client.who_am_i().await.unwrap_err();
    assert_eq!((error.code, error.outcome), (ErrorCode::OutcomeUnknown, Outcome::Unknown));
    assert!(error.message.contains("has not answered within 3.0 s"), "{error}");
    assert!(started.elapsed() < patience + Duration::from_millis(200), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_answers_is_left() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    cluster.lock().node(1).deaf = true;
    assert_ne!(client.who_am_i().await.unwrap().node_id, 1);
}

/// Three configured nodes of which two take connections and say nothing.
async fn with_two_silent_nodes(patience: Duration) -> (Cluster, Client<FakePlatform>) {
    let cluster = Cluster::new();
    (1..=2).for_each(|node| cluster.lock().node(node).deaf = true);
    cluster.lock().leader = 3;
    let config = ClientConfig::new(["n1:1", "n2:1", "n3:1"]).patience(patience);
    let client = Client::unconnected(FakePlatform::new(cluster.clone()), config, alice());
    (cluster, client)
}

#[tokio::test(start_paused = true)]
async fn silent_nodes_do_not_hold_up_the_sign_in() {
    for _ in 0..3 {
        let (cluster, client) = with_two_silent_nodes(Duration::from_secs(30)).await;
        let started = tokio::time::Instant::now();
        assert_eq!(client.who_am_i().await.unwrap().node_id, 3);
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!(cluster.lock().sign_ins, 1);
        let started = tokio::time::Instant::now();
        assert_eq!(client.who_am_i().await.unwrap().node_id, 3);
        assert!(started.elapsed() < Duration::from_millis(100), "those that were outrun are left alone");
    }
}

/// A node on another continent answers just after another one was asked beside it.
#[tokio::test(start_paused = true)]
async fn a_node_that_was_asked_a_moment_ago_is_not_silent() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    let ms = Duration::from_millis;
    for (node, takes) in [(1, ms(310)), (2, ms(100)), (3, ms(100))] {
        cluster.lock().node(node).sign_in_takes = takes;
    }
    cluster.lock().leader = 2;
    // The token ends.
    tokio::time::sleep(Duration::from_secs(1_000)).await;
    let started = tokio::time::Instant::now();
    client.publisher(ROOM).open().await.unwrap().send("x").await.unwrap();
    assert!((ms(310)..ms(350)).contains(&started.elapsed()), "{:?}", started.elapsed());
    let requests = [1, 2, 3].map(|node| cluster.lock().node(node).requests.len());
    assert_eq!(requests, [0, 1, 0], "the leader was asked beside the first node, and is well");
}

#[tokio::test(start_paused = true)]
async fn with_two_silent_nodes_a_publish_is_refused_in_time_with_the_reason() {
    let (cluster, client) = with_two_silent_nodes(Duration::from_secs(2)).await;
    // What the one that is left says of a shard without a quorum.
    let no_leader = std::iter::repeat_n(fake::Fault::Fail(ErrorCode::NoLeader, false), 1_000);
    cluster.lock().node(3).publish_faults.extend(no_leader);
    let started = tokio::time::Instant::now();
    let publisher = client.publisher(ROOM).patience(Duration::from_secs(1)).open().await.unwrap();
    let error = publisher.send("x").await.unwrap_err();
    assert_eq!((error.code, error.outcome), (ErrorCode::NoLeader, Outcome::None), "{error}");
    assert!(started.elapsed() <= Duration::from_secs(2), "{:?}", started.elapsed());
}

/// P5. A node that is left alone looks for a leader for nearly two seconds before it says so; the nodes that
/// are asked beside it meanwhile are dead or silent, and neither may hide its answer nor be waited for.
#[tokio::test(start_paused = true)]
async fn without_a_quorum_a_read_is_refused_when_the_node_that_is_left_says_so() {
    for silent in [false, true] {
        let cluster = Cluster::new();
        for node in 1..=2 {
            cluster.lock().node(node).deaf = silent;
            cluster.lock().node(node).down = !silent;
        }
        cluster.lock().node(3).leaderless_after = Some(Duration::from_millis(1_900));
        let config = ClientConfig::new(["n1:1", "n2:1", "n3:1"]).patience(Duration::from_secs(3));
        let client = Client::unconnected(FakePlatform::new(cluster.clone()), config, alice());
        let started = tokio::time::Instant::now();
        let error = client.room(ROOM).await.unwrap_err();
        assert_eq!((error.code, error.outcome), (ErrorCode::NoLeader, Outcome::None), "{error}");
        assert!(started.elapsed() < Duration::from_millis(2_700), "silent {silent}: {:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_fails_at_once_is_not_waited_for() {
    let cluster = Cluster::new();
    (1..=2).for_each(|node| cluster.lock().kill(node));
    let config = ClientConfig::new(["n1:1", "n2:1", "n3:1"]);
    let client = Client::unconnected(FakePlatform::new(cluster.clone()), config, alice());
    let started = tokio::time::Instant::now();
    assert_eq!(client.who_am_i().await.unwrap().node_id, 3);
    assert!(started.elapsed() < Duration::from_millis(200), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_read_is_asked_elsewhere_while_a_node_is_silent() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    cluster.lock().node(1).deaf = true;
    let started = tokio::time::Instant::now();
    assert_ne!(client.who_am_i().await.unwrap().node_id, 1);
    assert!(started.elapsed() < Duration::from_millis(1_500), "{:?}", started.elapsed());
    let started = tokio::time::Instant::now();
    client.list_rooms(None).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(100), "the one that was outrun is left alone");
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_about_the_cluster_is_asked_elsewhere_too() {
    for question in ["nodes", "config", "topology"] {
        let cluster = Cluster::new();
        let client = cluster.client().await;
        cluster.lock().node(1).deaf = true;
        let started = tokio::time::Instant::now();
        match question {
            "nodes" => drop(client.list_nodes().await.unwrap()),
            "config" => drop(client.node_config(None).await.unwrap()),
            _ => assert_ne!(client.topology().await.unwrap().node_id, 1),
        }
        assert!(started.elapsed() < Duration::from_millis(1_500), "{question}: {:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_pinned_client_talks_to_its_node_only() {
    let cluster = Cluster::new();
    for pin in ["n2", "n2:1"] {
        let client = cluster.client_with(|config| config.pinned(Some(pin.into()))).await.unwrap();
        assert_eq!(client.who_am_i().await.unwrap().node_id, 2, "{pin}");
    }
    let error = cluster.client_with(|config| config.pinned(Some("n9".into()))).await.unwrap_err();
    assert!(error.message.contains("n1, n2, n3"), "{error}");
    let client =
        cluster.client_with(|config| config.pinned(Some("n2".into())).patience(Duration::from_secs(2))).await.unwrap();
    cluster.lock().kill(2);
    assert_eq!(client.who_am_i().await.unwrap_err().code, ErrorCode::Unreachable);
}

#[tokio::test(start_paused = true)]
async fn creates_and_lists_rooms() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    let subject = "ops.new".parse().unwrap();
    let policy = RoomPolicy { persist: true, ..RoomPolicy::default() };
    let made = client.create_room(&subject, policy).await.unwrap();
    assert!(made.created);
    assert_eq!(client.room(&subject).await.unwrap().room_id, made.room.room_id);
    assert_eq!(client.list_rooms(None).await.unwrap().len(), 2);
    let missing = client.room("no.room".parse::<unibus_client::proto::subject::Subject>().unwrap()).await;
    assert_eq!(missing.unwrap_err().code, ErrorCode::RoomNotFound);
}

#[tokio::test(start_paused = true)]
async fn signs_again_when_another_change_came_first() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    let names: Vec<Handle> = (0..8).map(|at| format!("bob{at}").parse().unwrap()).collect();
    let adds = names.iter().map(|name| client.add_member(ROOM, name, RoomRole::Reader));
    let mut sequences: Vec<_> =
        futures::future::join_all(adds).await.into_iter().map(|answer| answer.unwrap().sequence).collect();
    sequences.sort();
    assert_eq!(sequences, (1..=8).collect::<Vec<_>>());
    assert_eq!(cluster.lock().rooms[&ROOM].room.roster_height, 8);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_policy_keeps_one_that_came_first() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    let asked = Cell::new(0);
    // While it is signed, another admin's change commits.
    let change = |policy: RoomPolicy| {
        if asked.replace(asked.get() + 1) == 0 {
            let mut state = cluster.lock();
            let room = &mut state.rooms.get_mut(&ROOM).unwrap().room;
            (room.roster_height, room.roster_hash) = (1, vec![2; 32].into());
            let retention = Some(RoomRetention { max_bytes: 1 << 30, ..RoomRetention::default() });
            room.policy = Some(RoomPolicy { retention, ..RoomPolicy::default() });
        }
        let retention = RoomRetention { max_age_ms: 60_000, ..policy.retention.unwrap_or_default() };
        RoomPolicy { retention: Some(retention), ..policy }
    };
    let done = client.update_room_policy(ROOM, change).await.unwrap();
    let retention = RoomRetention { max_age_ms: 60_000, max_bytes: 1 << 30, max_messages: 0 };
    assert_eq!((asked.get(), done.room.unwrap().policy.unwrap().retention), (2, Some(retention)));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_a_roster_change_is_found_and_not_repeated() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    cluster.lock().lose_append_answers = 1;
    let answer = client.add_member(ROOM, &"bob".parse().unwrap(), RoomRole::Member).await;
    assert_eq!(answer.unwrap().sequence, 1);
    assert_eq!(cluster.lock().rooms[&ROOM].roster.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_configured_is_said_at_once() {
    let cluster = Cluster::new();
    let none: [&str; 0] = [];
    let refused = Client::connect(FakePlatform::new(cluster), ClientConfig::new(none), alice()).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::Invalid);
}
