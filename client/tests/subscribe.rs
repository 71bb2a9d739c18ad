//! A subscription over a cluster with faults: gap-free, without duplicates, in every room.

#![allow(clippy::disallowed_methods, reason = "the tests own the runtime; its clock is virtual")]

mod fake;

use std::collections::BTreeMap;
use std::time::Duration;

use fake::{Cluster, FakePlatform, ROOM, SubscribeFault};
use unibus_client::proto::id::RoomId;
use unibus_client::proto::position::Sequence;
use unibus_client::proto::subject::SubjectFilter;
use unibus_client::{ClientEvent, ErrorCode, Item, Start, SubscribeOptions, Subscription};

fn filter(text: &str) -> SubjectFilter {
    text.parse().unwrap()
}

fn bodies(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|at| format!("message {at}")).collect()
}

async fn until_end(cluster: &Cluster, text: &str) -> Vec<(RoomId, u64)> {
    let client = cluster.client().await;
    let options = SubscribeOptions { until_end: true, ..SubscribeOptions::default() };
    let mut subscription = client.subscribe(&filter(text), Start::Earliest, options).await.unwrap();
    let mut read = Vec::new();
    while let Some(item) = subscription.next().await {
        read.extend(place(&item.unwrap()));
    }
    read
}

fn place(item: &Item) -> Option<(RoomId, u64)> {
    match item {
        Item::Message(message) => Some((message.room_id, message.sequence.0)),
        Item::Roster(change) => Some((change.room_id, change.sequence.0)),
        Item::CaughtUp => None,
    }
}

async fn read(subscription: &mut Subscription<FakePlatform>, count: usize) -> Vec<u64> {
    let mut sequences = Vec::new();
    while sequences.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(120), subscription.next()).await;
        sequences.extend(place(&next.expect("items come").unwrap().unwrap()).map(|(_, sequence)| sequence));
    }
    sequences
}

#[tokio::test(start_paused = true)]
async fn history_then_live_with_one_caught_up_between() {
    let cluster = Cluster::new();
    cluster.lock().store(ROOM, bodies(0..5));
    let client = cluster.client().await;
    let mut subscription = client.subscribe(&filter("ops.log"), Start::Earliest, Default::default()).await.unwrap();
    assert_eq!(read(&mut subscription, 6).await, [0, 1, 2, 3, 4, 5]);
    assert_eq!(subscription.next().await, Some(Ok(Item::CaughtUp)));
    cluster.lock().store(ROOM, bodies(5..7));
    let Some(Ok(Item::Message(message))) = subscription.next().await else { panic!("no message") };
    assert_eq!((&*message.body, &*message.subject, &*message.user), (&b"message 5"[..], "ops.log", "alice"));
    assert_eq!(subscription.positions(), BTreeMap::from([(ROOM, Sequence(7))]));
    assert_eq!(read(&mut subscription, 1).await, [7]);
}

#[tokio::test(start_paused = true)]
async fn resumes_elsewhere_without_gap_or_duplicate() {
    let faults = [
        SubscribeFault::BreakAfter(2),
        SubscribeFault::SilentAfter(3),
        SubscribeFault::Repeat(3),
        SubscribeFault::Skip(8),
    ];
    for fault in faults {
        let cluster = Cluster::new();
        cluster.lock().store(ROOM, bodies(0..20));
        for node in 1..=3 {
            cluster.lock().node(node).subscribe_faults.push_back(fault.clone());
        }
        let client = cluster.client().await;
        let mut events = client.events();
        let mut subscription = client.subscribe(&filter("ops.log"), Start::Earliest, Default::default()).await.unwrap();
        assert_eq!(read(&mut subscription, 15).await, (0..15).collect::<Vec<_>>(), "{fault:?}");
        let serving = subscription.node().unwrap().as_bytes()[1] - b'0';
        cluster.lock().kill(serving.into());
        cluster.lock().store(ROOM, bodies(20..30));
        assert_eq!(read(&mut subscription, 16).await, (15..31).collect::<Vec<_>>(), "{fault:?}");
        let failed_over =
            std::iter::from_fn(|| events.try_recv().ok()).any(|event| matches!(event, ClientEvent::FailedOver { .. }));
        assert!(failed_over, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_stays_is_an_error_not_a_hole() {
    let cluster = Cluster::new();
    cluster.lock().store(ROOM, bodies(0..20));
    for node in 1..=3 {
        let faults = std::iter::repeat_n(SubscribeFault::Skip(8), 20);
        cluster.lock().node(node).subscribe_faults.extend(faults);
    }
    let client = cluster.client().await;
    let mut subscription = client.subscribe(&filter("ops.log"), Start::Earliest, Default::default()).await.unwrap();
    assert_eq!(read(&mut subscription, 8).await, (0..8).collect::<Vec<_>>());
    assert_eq!(subscription.next().await.unwrap().unwrap_err().code, ErrorCode::Corrupt);
    assert_eq!(subscription.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn what_was_received_behind_an_unknown_entry_is_resumed() {
    let cluster = Cluster::new();
    cluster.lock().store(ROOM, bodies(0..6));
    let known = cluster.lock().rooms.get_mut(&ROOM).unwrap().timeline[4].entry.take();
    let client = cluster.client().await;
    let mut subscription = client.subscribe(&filter("ops.log"), Start::Earliest, Default::default()).await.unwrap();
    assert_eq!(read(&mut subscription, 4).await, [0, 1, 2, 3]);
    assert_eq!(subscription.next().await.unwrap().unwrap_err().code, ErrorCode::VersionSkew);
    assert_eq!((subscription.next().await, subscription.received()), (None, None));
    let resume = subscription.positions();
    assert_eq!(resume, BTreeMap::from([(ROOM, Sequence(4))]));
    // As after an upgrade.
    cluster.lock().rooms.get_mut(&ROOM).unwrap().timeline[4].entry = known;
    let options = SubscribeOptions { resume, ..Default::default() };
    let mut subscription = client.subscribe(&filter("ops.log"), Start::Earliest, options).await.unwrap();
    assert_eq!(read(&mut subscription, 3).await, [4, 5, 6]);
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_an_error_and_what_came_with_it_is_resumed() {
    let cluster = Cluster::new();
    cluster.lock().store(ROOM, bodies(0..6));
    // The last gap that is put up with comes in one batch with an entry that is in order.
    let faults = [1, 1, 1, 1, 1, 2].map(SubscribeFault::Skip);
    cluster.lock().node(1).subscribe_faults.extend(faults);
    let client = cluster.client().await;
    let options = SubscribeOptions { pin: Some("n1".into()), ..Default::default() };
    let mut subscription = client.subscribe(&filter("ops.log"), Start::Earliest, options).await.unwrap();
    assert_eq!(read(&mut subscription, 1).await, [0]);
    assert_eq!(subscription.next().await.unwrap().unwrap_err().code, ErrorCode::Corrupt);
    assert_eq!((subscription.next().await, subscription.received()), (None, None));
    assert_eq!(subscription.positions(), BTreeMap::from([(ROOM, Sequence(1))]));
}

#[tokio::test(start_paused = true)]
async fn latest_stays_latest_over_a_break() {
    let cluster = Cluster::new();
    cluster.lock().store(ROOM, bodies(0..5));
    let client = cluster.client().await;
    let mut subscription = client.subscribe(&filter("ops.>"), Start::Latest, Default::default()).await.unwrap();
    assert_eq!(subscription.next().await, Some(Ok(Item::CaughtUp)));
    // While nobody is connected: a message in the old room, and a new room.
    let new = RoomId([5; 16]);
    cluster.lock().kill(1);
    cluster.lock().store(ROOM, bodies(5..6));
    cluster.lock().add_room(new, "ops.new");
    cluster.lock().store(new, bodies(0..1));
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let item = subscription.next().await.unwrap().unwrap();
        assert_ne!(item, Item::CaughtUp, "it comes once");
        seen.extend(place(&item));
    }
    seen.sort();
    assert_eq!(seen, [(new, 0), (new, 1), (ROOM, 6)]);
}

#[tokio::test(start_paused = true)]
async fn latest_is_where_it_was_when_subscribing_even_if_nothing_was_read_yet() {
    let cluster = Cluster::new();
    cluster.lock().store(ROOM, bodies(0..5));
    let client = cluster.client().await;
    let mut subscription = client.subscribe(&filter("ops.log"), Start::Latest, Default::default()).await.unwrap();
    let serving = subscription.node().unwrap().as_bytes()[1] - b'0';
    cluster.lock().store(ROOM, bodies(5..6));
    cluster.lock().kill(serving.into());
    let read = tokio::time::timeout(Duration::from_secs(60), read(&mut subscription, 1)).await;
    assert_eq!(read.expect("stored after the subscription"), [6]);
}

#[tokio::test(start_paused = true)]
async fn until_end_reads_everything_over_breaks_and_lag() {
    let cluster = Cluster::new();
    let other = RoomId([5; 16]);
    cluster.lock().add_room(other, "ops.other");
    cluster.lock().store(ROOM, bodies(0..20));
    cluster.lock().store(other, bodies(0..7));
    for node in 1..=3 {
        cluster.lock().node(node).subscribe_faults.push_back(SubscribeFault::BreakAfter(3));
    }
    // A follower that lags ends too early; it is not believed.
    cluster.lock().node(2).shows = Some(4);
    let mut all = until_end(&cluster, "ops.>").await;
    all.sort();
    let expected: Vec<_> = (0..8).map(|at| (other, at)).chain((0..21).map(|at| (ROOM, at))).collect();
    assert_eq!(all, expected);
    assert_eq!(until_end(&cluster, "ops.log").await.len(), 21);
}

#[tokio::test(start_paused = true)]
async fn until_end_gives_up_when_the_node_never_catches_up() {
    let cluster = Cluster::new();
    cluster.lock().store(ROOM, bodies(0..20));
    cluster.lock().node(2).shows = Some(4);
    let client = cluster.client().await;
    let options = SubscribeOptions {
        until_end: true,
        pin: Some("n2".into()),
        patience: Some(Duration::from_secs(5)),
        ..Default::default()
    };
    let mut subscription = client.subscribe(&filter("ops.log"), Start::Earliest, options).await.unwrap();
    assert_eq!(read(&mut subscription, 4).await, [0, 1, 2, 3]);
    let last = loop {
        match subscription.next().await {
            Some(Ok(item)) => assert_eq!(item, Item::CaughtUp),
            other => break other,
        }
    };
    assert_eq!(last.unwrap().unwrap_err().code, ErrorCode::Overloaded);
}

#[tokio::test(start_paused = true)]
async fn resume_positions_and_a_pinned_node_are_kept() {
    let cluster = Cluster::new();
    cluster.lock().store(ROOM, bodies(0..9));
    let client = cluster.client().await;
    let options = SubscribeOptions {
        pin: Some("n3".into()),
        resume: BTreeMap::from([(ROOM, Sequence(7))]),
        ..Default::default()
    };
    let mut subscription = client.subscribe(&filter("ops.log"), Start::Earliest, options).await.unwrap();
    assert_eq!(subscription.node(), Some("n3:1"));
    assert_eq!(read(&mut subscription, 3).await, [7, 8, 9]);
    cluster.lock().node(3).boot += 1;
    cluster.lock().store(ROOM, bodies(9..10));
    assert_eq!(read(&mut subscription, 1).await, [10]);
    let subscriptions: Vec<_> = cluster.lock().nodes.values().map(|node| node.subscriptions).collect();
    assert_eq!(subscriptions, [0, 0, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_room_is_said_at_once() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    let error = client.subscribe(&filter("ops.nothing"), Start::Latest, Default::default()).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::RoomNotFound);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_keep_a_quiet_subscription() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    let mut subscription = client.subscribe(&filter("ops.log"), Start::Latest, Default::default()).await.unwrap();
    assert_eq!(subscription.next().await, Some(Ok(Item::CaughtUp)));
    let quiet = tokio::time::timeout(Duration::from_secs(600), subscription.next()).await;
    assert!(quiet.is_err());
    let subscriptions: u32 = cluster.lock().nodes.values().map(|node| node.subscriptions).sum();
    assert_eq!(subscriptions, 1);
}
