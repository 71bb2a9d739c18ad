//! A publisher over a cluster with faults: every message once, in order, answers in order.

#![allow(clippy::disallowed_methods, reason = "the tests own the runtime; its clock is virtual")]

mod fake;

use std::time::Duration;

use fake::{Cluster, Fault, ROOM};
use unibus_client::proto::code::Outcome;
use unibus_client::proto::limits::{BODY_BYTES_MAX, PRODUCER_WINDOW};
use unibus_client::proto::v1::RoomPolicy;
use unibus_client::{ClientEvent, ErrorCode, Message, Publisher};

async fn publisher(cluster: &Cluster) -> Publisher {
    cluster.client().await.publisher(ROOM).open().await.unwrap()
}

fn numbered(count: u64) -> Vec<String> {
    (0..count).map(|at| format!("message {at}")).collect()
}

/// Publishes pipelined and returns the sequences in the order of the answers.
async fn publish_all(publisher: &Publisher, bodies: &[String]) -> Vec<u64> {
    let mut receipts = Vec::new();
    for body in bodies {
        receipts.push(publisher.enqueue(body.clone()).await.unwrap());
    }
    let mut sequences = Vec::new();
    for receipt in receipts {
        sequences.push(receipt.await.unwrap().sequence.0);
    }
    sequences
}

#[tokio::test(start_paused = true)]
async fn stores_in_order_and_answers_in_order() {
    let cluster = Cluster::new();
    let publisher = publisher(&cluster).await;
    let bodies = numbered(3_000);
    assert_eq!(publish_all(&publisher, &bodies).await, (1..=3_000).collect::<Vec<_>>());
    assert_eq!(cluster.bodies(), bodies);
    let requests = &cluster.lock().nodes[&1].requests;
    assert!(requests.len() < 100, "messages travel in batches, not in {} requests", requests.len());
}

#[tokio::test(start_paused = true)]
async fn goes_to_the_leader_and_follows_it() {
    let cluster = Cluster::new();
    cluster.lock().leader = 2;
    let publisher = publisher(&cluster).await;
    publisher.send("a").await.unwrap();
    assert!(cluster.lock().nodes[&1].requests.is_empty());
    cluster.lock().leader = 3;
    publisher.send("b").await.unwrap();
    publisher.send("c").await.unwrap();
    assert_eq!(cluster.lock().nodes[&3].requests, [(3, 1)]);
    assert_eq!(cluster.bodies(), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_moves_takes_the_stream_with_it_and_nothing_is_sent_twice() {
    let cluster = Cluster::new();
    let publisher = publisher(&cluster).await;
    let bodies: Vec<_> = (0..1_200).map(|at| format!("{at:x<4000}")).collect();
    let (mover, moved) = (cluster.clone(), cluster.clone());
    let moves = async move {
        while mover.lock().rooms[&ROOM].head() < 1_200 {
            let next = mover.lock().leader % 3 + 1;
            mover.lock().leader = next;
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
    };
    let (sequences, ()) = tokio::join!(publish_all(&publisher, &bodies), moves);
    assert!(moved.bodies() == bodies, "something is lost, double or out of order");
    assert_eq!(sequences, (1..=1_200).collect::<Vec<_>>());
    let state = moved.lock();
    let sent: Vec<usize> = state.nodes.values().map(|node| node.requests.iter().map(|(_, n)| n).sum()).collect();
    assert!(sent.iter().filter(|count| **count > 0).count() >= 2, "those that led were used: {sent:?}");
    assert_eq!(sent.iter().sum::<usize>(), bodies.len(), "nothing was sent twice: {sent:?}");
}

#[tokio::test(start_paused = true)]
async fn resends_the_same_numbers_after_a_broken_stream() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    let mut events = client.events();
    let publisher = client.publisher(ROOM).open().await.unwrap();
    publisher.send("a").await.unwrap();
    cluster.lock().node(1).publish_faults.push_back(Fault::BreakAfter);
    let ack = publisher.send("b").await.unwrap();
    assert_eq!((ack.sequence.0, ack.duplicate, ack.voters), (2, true, 3));
    assert_eq!(cluster.bodies(), ["a", "b"]);
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(event);
    }
    assert!(seen.contains(&ClientEvent::Resent { count: 1 }), "{seen:?}");
    assert!(
        seen.iter().any(|event| matches!(event, ClientEvent::FailedOver { from, .. } if from == "n1:1")),
        "{seen:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn goes_on_when_the_node_dies_and_no_answer_comes() {
    for fault in [Fault::HangAfter, Fault::BreakBefore, Fault::Fail(ErrorCode::NoLeader, false)] {
        let cluster = Cluster::new();
        let publisher = publisher(&cluster).await;
        publisher.send("a").await.unwrap();
        cluster.lock().node(1).publish_faults.push_back(fault);
        let started = tokio::time::Instant::now();
        publisher.send("b").await.unwrap();
        assert!(started.elapsed() < Duration::from_millis(3_500), "took {:?}", started.elapsed());
        cluster.lock().kill(1);
        let started = tokio::time::Instant::now();
        publisher.send("c").await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(1), "took {:?}", started.elapsed());
        assert_eq!(cluster.bodies(), ["a", "b", "c"]);
    }
}

#[tokio::test(start_paused = true)]
async fn keeps_the_order_when_a_request_in_the_middle_fails() {
    let cluster = Cluster::new();
    let publisher = publisher(&cluster).await;
    let faults = [Fault::Fail(ErrorCode::Overloaded, false), Fault::Fail(ErrorCode::OutcomeUnknown, true)];
    cluster.lock().node(1).publish_faults.extend(faults);
    let bodies = numbered(2_000);
    publish_all(&publisher, &bodies).await;
    assert_eq!(cluster.bodies(), bodies);
}

#[tokio::test(start_paused = true)]
async fn random_faults_lose_double_and_reorder_nothing() {
    for seed in 1..=40 {
        let cluster = Cluster::new();
        let publisher = publisher(&cluster).await;
        cluster.lock().chaos = Some(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed) | 1);
        // Large enough that some fifty requests are made.
        let bodies: Vec<_> = (0..1_500).map(|at| format!("{at:x<8000}")).collect();
        let sequences = publish_all(&publisher, &bodies).await;
        let sent: usize = cluster.lock().nodes.values().flat_map(|node| &node.requests).map(|(_, count)| count).sum();
        assert!(sent > bodies.len(), "seed {seed}: no fault struck");
        assert!(cluster.bodies() == bodies, "seed {seed}: something is lost, double or out of order");
        assert_eq!(sequences, (1..=1_500).collect::<Vec<_>>(), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_named_producer_run_again_stores_nothing_twice() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    let bodies = numbered(700);
    let first = client.publisher(ROOM).named("import").open().await.unwrap();
    let sequences = publish_all(&first, &bodies[..400]).await;
    first.close().await.unwrap();
    let again = client.publisher(ROOM).named("import").open().await.unwrap();
    assert_eq!(publish_all(&again, &bodies).await[..400], sequences);
    assert_eq!(cluster.bodies(), bodies);
    let other = client.publisher(ROOM).named("import").open().await.unwrap();
    assert!(other.send("message 0").await.unwrap().duplicate);
    assert_eq!(other.send("another").await.unwrap_err().code, ErrorCode::IdReused);
    assert!(other.send("message 2").await.unwrap().duplicate);
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_does_not_stop_the_next() {
    let cluster = Cluster::new();
    let publisher = publisher(&cluster).await;
    cluster.lock().refuse_body = Some("bad".into());
    let receipts = [publisher.enqueue("a").await, publisher.enqueue("bad").await, publisher.enqueue("b").await];
    let [a, bad, b] = receipts.map(Result::unwrap);
    assert_eq!(a.await.unwrap().sequence.0, 1);
    let refused = bad.await.unwrap_err();
    assert_eq!((refused.code, refused.outcome), (ErrorCode::Forbidden, Outcome::None));
    assert_eq!(b.await.unwrap().sequence.0, 2);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_producer_is_replaced_when_nothing_is_in_doubt() {
    let cluster = Cluster::new();
    let publisher = publisher(&cluster).await;
    publisher.send("a").await.unwrap();
    cluster.lock().rooms.get_mut(&ROOM).unwrap().producers.clear();
    assert_eq!(publisher.send("b").await.unwrap().sequence.0, 2);
    cluster.lock().node(1).publish_faults.push_back(Fault::BreakBefore);
    cluster.lock().rooms.get_mut(&ROOM).unwrap().producers.clear();
    let doubtful = publisher.send("c").await.unwrap_err();
    assert_eq!((doubtful.code, doubtful.outcome), (ErrorCode::UnknownProducer, Outcome::Unknown));
    assert_eq!(publisher.send("d").await.unwrap_err().outcome, Outcome::None);
    assert_eq!(cluster.bodies(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn gives_up_with_the_reason_when_patience_ends() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    let publisher = client.publisher(ROOM).patience(Duration::from_secs(5)).open().await.unwrap();
    for node in 1..=3 {
        let faults = std::iter::repeat_n(Fault::Fail(ErrorCode::NoLeader, false), 1_000);
        cluster.lock().node(node).publish_faults.extend(faults);
    }
    let error = publisher.send("a").await.unwrap_err();
    assert_eq!((error.code, error.outcome), (ErrorCode::NoLeader, Outcome::None));
    assert!(publisher.flush().await.is_err());
    assert!(publisher.send("b").await.is_err());
    assert!(cluster.bodies().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_reported_as_unknown() {
    let cluster = Cluster::new();
    let client = cluster.client().await;
    let publisher = client.publisher(ROOM).patience(Duration::from_secs(8)).open().await.unwrap();
    cluster.lock().node(1).publish_faults.push_back(Fault::BreakAfter);
    let receipt = publisher.enqueue("a").await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    (1..=3).for_each(|node| cluster.lock().kill(node));
    let error = receipt.await.unwrap_err();
    assert_eq!((error.code, error.outcome), (ErrorCode::Unreachable, Outcome::Unknown));
}

#[tokio::test(start_paused = true)]
async fn what_a_node_would_refuse_takes_no_number() {
    let cluster = Cluster::new();
    let publisher = publisher(&cluster).await;
    let refused = [
        Message::new(vec![0; BODY_BYTES_MAX + 1]),
        Message::new("").header("", "x"),
        Message::new("").header("a\nb", "x"),
        Message::new("").header("a", "x".repeat(5_000)),
        (0..70).fold(Message::new(""), |message, at| message.header(format!("h{at}"), "")),
    ];
    for message in refused {
        assert_eq!(publisher.send(message).await.unwrap_err().code, ErrorCode::Invalid);
    }
    publisher.send(Message::new(vec![0; BODY_BYTES_MAX]).header("a", "x")).await.unwrap();
    assert_eq!(cluster.lock().nodes[&1].requests, [(1, 1)]);
}

#[tokio::test(start_paused = true)]
async fn the_window_is_bounded_and_large_bodies_flow() {
    let cluster = Cluster::new();
    let publisher = publisher(&cluster).await;
    cluster.lock().node(1).deaf = true;
    cluster.lock().node(1).boot += 1;
    (2..=3).for_each(|node| cluster.lock().node(node).deaf = true);
    let fill = async {
        for _ in 0..=PRODUCER_WINDOW {
            publisher.enqueue("x").await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), fill).await.is_err(), "the window took more than its bound");
    for node in 1..=3 {
        cluster.lock().node(node).deaf = false;
    }
    publisher.flush().await.unwrap();
    let big: Vec<_> = (0..30).map(|at| at.to_string().repeat(BODY_BYTES_MAX / 2)).collect();
    publish_all(&publisher, &big).await;
    assert_eq!(cluster.bodies().len(), PRODUCER_WINDOW as usize + 30);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_publisher_lets_what_was_enqueued_be_sent() {
    let cluster = Cluster::new();
    let publisher = publisher(&cluster).await;
    let receipts: Vec<_> = [publisher.enqueue("a").await, publisher.enqueue("b").await].into_iter().collect();
    drop(publisher);
    for receipt in receipts {
        receipt.unwrap().await.unwrap();
    }
    assert_eq!(cluster.bodies(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn changes_to_a_fresh_token_before_the_old_one_ends() {
    let cluster = Cluster::new();
    let publisher = publisher(&cluster).await;
    for minutes in 0..60 {
        publisher.send(format!("minute {minutes}")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(cluster.lock().expired_requests, 0);
    assert_eq!(cluster.bodies().len(), 60);
    let sign_ins = cluster.lock().sign_ins;
    assert!((5..=6).contains(&sign_ins), "{sign_ins} sign-ins, expected one each 12 minutes");
}

#[tokio::test(start_paused = true)]
async fn signs_in_again_when_the_node_does_not_take_the_token_any_more() {
    let cluster = Cluster::new();
    let publisher = publisher(&cluster).await;
    publisher.send("a").await.unwrap();
    let faults = [Fault::Fail(ErrorCode::Unauthenticated, false), Fault::End(ErrorCode::Unauthenticated)];
    cluster.lock().node(1).publish_faults.extend(faults);
    publisher.send("b").await.unwrap();
    assert_eq!(cluster.lock().sign_ins, 3);
    assert_eq!(cluster.bodies(), ["a", "b"]);
    let faults = std::iter::repeat_n(Fault::Fail(ErrorCode::Unauthenticated, false), 9);
    cluster.lock().node(1).publish_faults.extend(faults);
    assert_eq!(publisher.send("c").await.unwrap_err().code, ErrorCode::Unauthenticated);
}

async fn ephemeral_publisher(cluster: &Cluster) -> Publisher {
    cluster.lock().rooms.get_mut(&ROOM).unwrap().room.policy = Some(RoomPolicy::default());
    publisher(cluster).await
}

#[tokio::test(start_paused = true)]
async fn messages_of_an_ephemeral_room_are_sent_in_batches_and_have_no_place() {
    let cluster = Cluster::new();
    let publisher = ephemeral_publisher(&cluster).await;
    let bodies = numbered(1_000);
    let mut receipts = Vec::new();
    for body in &bodies {
        receipts.push(publisher.enqueue(body.clone()).await.unwrap());
    }
    for receipt in receipts {
        let ack = receipt.await.unwrap();
        assert_eq!((ack.sequence.0, ack.sent_to, ack.voters), (0, Some(2), 0));
    }
    assert_eq!(cluster.bodies(), bodies);
    let requests: usize = cluster.lock().nodes.values().map(|node| node.requests.len()).sum();
    assert!(requests < 100, "messages travel in batches, not in {requests} requests");
    publisher.close().await.unwrap();
    let named = cluster.client().await.publisher(ROOM).named("again").open().await.unwrap_err();
    assert_eq!(named.code, ErrorCode::Invalid);
}

#[tokio::test(start_paused = true)]
async fn in_an_ephemeral_room_only_what_was_certainly_not_sent_is_sent_again() {
    let cluster = Cluster::new();
    let publisher = ephemeral_publisher(&cluster).await;
    let strike =
        |fault: Fault| (1..=3).for_each(|node| cluster.lock().node(node).publish_faults = [fault.clone()].into());
    let forgive = || (1..=3).for_each(|node| cluster.lock().node(node).publish_faults.clear());
    strike(Fault::Fail(ErrorCode::NoLeader, false));
    assert_eq!(publisher.send("a").await.unwrap().sent_to, Some(2), "another node took it");
    for fault in [Fault::BreakBefore, Fault::BreakAfter, Fault::HangAfter] {
        forgive();
        strike(fault.clone());
        let error = publisher.send(format!("{fault:?}")).await.unwrap_err();
        assert_eq!((error.code, error.outcome), (ErrorCode::OutcomeUnknown, Outcome::Unknown), "{fault:?}");
    }
    forgive();
    publisher.send("z").await.unwrap();
    assert_eq!(cluster.bodies(), ["a", "BreakAfter", "HangAfter", "z"], "nothing twice, and the publisher goes on");
}
