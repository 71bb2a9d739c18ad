//! Publishing: stored once, in order, refused by name; and reading a range.

use unibus_proto::code::ErrorCode;
use unibus_proto::limits::BODY_BYTES_MAX;
use unibus_proto::v1::publish_outcome::Outcome;
use unibus_proto::v1::*;

use crate::cluster::{Cluster, by_subject};

fn outcome(response: &PublishResponse) -> &Outcome {
    response.outcomes[0].outcome.as_ref().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_answered_with_the_first_answer_on_any_node() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.publish").await;
    let first = alice.publish(&room, 1, &["a", "b"]).await.unwrap();
    assert_eq!(outcome(&first), &Outcome::Stored(Stored { first_sequence: 1 }));
    assert_eq!((first.request, first.voters, first.outcomes[0].count), (1, 3, 2));
    for node in 1..=3 {
        let there = alice.at(cluster.service(node)).await;
        let again = there.publish(&room, 1, &["a", "b"]).await.unwrap();
        assert_eq!(outcome(&again), &Outcome::Duplicate(Stored { first_sequence: 1 }), "through node {node}");
    }
    let other_bytes = alice.publish(&room, 2, &["B"]).await.unwrap();
    let Outcome::Reject(reject) = outcome(&other_bytes) else { panic!("expected a reject: {other_bytes:?}") };
    assert_eq!(reject.error_code(), ErrorCode::IdReused);
    let too_early = alice.publish(&room, 9, &["z"]).await.unwrap();
    let Outcome::Reject(reject) = outcome(&too_early) else { panic!("expected a reject: {too_early:?}") };
    assert_eq!((reject.error_code(), reject.expected), (ErrorCode::OutOfOrder, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversized_message_does_not_fail_its_batch_mates() {
    let cluster = Cluster::start(1).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.sizes").await;
    let huge = "x".repeat(BODY_BYTES_MAX + 1);
    let response = alice.publish(&room, 1, &["a", &huge, "c"]).await.unwrap();
    let [first, second, third] = &response.outcomes[..] else { panic!("expected three outcomes: {response:?}") };
    assert_eq!(first.outcome, Some(Outcome::Stored(Stored { first_sequence: 1 })));
    let Some(Outcome::Reject(reject)) = &second.outcome else { panic!("expected a reject: {second:?}") };
    assert_eq!(reject.error_code(), ErrorCode::Invalid);
    assert!(reject.message.contains("1048576"), "{}", reject.message);
    assert_eq!(third.outcome, Some(Outcome::Stored(Stored { first_sequence: 2 })));

    let too_much = alice.publish(&room, 4, &[&huge[1..]; 5]).await.expect_err("5 MiB");
    assert_eq!(too_much.code, ErrorCode::Invalid);
    let bad_room = PublishRequest { room_id: vec![1; 3].into(), ..alice.publish_request(&room, 4, &["x"]) };
    let bad_room = alice.service.publish(&alice.caller, bad_room).await.expect_err("a room id of 3 bytes");
    assert_eq!(bad_room.code, ErrorCode::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_publishers_share_entries_and_each_gets_its_own_answer() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.many").await;
    let requests = (1..=200).map(|number| alice.publish_request(&room, number, &["m"]));
    let mut waiting = Vec::new();
    for request in requests {
        waiting.push(alice.service.admit_publish(&alice.caller, request).await.unwrap());
    }
    for (number, response) in (1..).zip(futures::future::join_all(waiting).await) {
        let response = response.unwrap();
        assert_eq!(response.outcomes[0].first_number, number);
        assert_eq!(
            outcome(&response),
            &Outcome::Stored(Stored { first_sequence: number }),
            "in the order of admission"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_names_floor_and_head_when_it_is_missed() {
    let cluster = Cluster::start(1).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.range").await;
    alice.publish(&room, 1, &["a", "b", "c"]).await.unwrap();
    let range =
        |from_sequence, count_max| FetchRangeRequest { room: Some(by_subject("ops.range")), from_sequence, count_max };
    let found = alice.service.fetch_range(&alice.caller, range(2, 0)).await.unwrap();
    assert_eq!((found.floor, found.head), (0, 3));
    assert_eq!(found.deliveries.iter().map(|delivery| delivery.sequence).collect::<Vec<_>>(), [2, 3]);
    let one = alice.service.fetch_range(&alice.caller, range(0, 1)).await.unwrap();
    assert_eq!(one.deliveries.len(), 1);
    assert!(alice.service.fetch_range(&alice.caller, range(4, 0)).await.unwrap().deliveries.is_empty());
    let outside = alice.service.fetch_range(&alice.caller, range(5, 0)).await.expect_err("above the head + 1");
    assert_eq!(outside.code, ErrorCode::OutOfRange);
    assert_eq!(outside.facts, [("floor", "0".to_string()), ("head", "3".to_string())]);
}
