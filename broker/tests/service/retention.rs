//! Retention with real segments: the floor rises, files go, and readers are told where the timeline begins.

use std::path::{Path, PathBuf};

use unibus_proto::code::ErrorCode;
use unibus_proto::v1::*;

use crate::cluster::{Cluster, by_subject, earliest, eventually, id_of, shard_of};

const SEGMENT_BYTES: u64 = 32 << 10;

fn keeping(retention: RoomRetention) -> RoomPolicy {
    RoomPolicy { persist: true, retention: Some(retention), ..RoomPolicy::default() }
}

/// The segment files below a directory.
fn segment_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => segment_files(&path, found),
            false if path.extension().is_some_and(|extension| extension == "segment") => found.push(path),
            false => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_its_bytes_a_room_lets_go_of_its_oldest_entries_and_of_their_files() {
    let cluster = Cluster::start_with(3, |store| store.segment_bytes = SEGMENT_BYTES).await;
    let alice = cluster.user("alice", 1).await;
    let room =
        alice.create_with("ops.short", keeping(RoomRetention { max_bytes: 100_000, ..Default::default() })).await;
    let body = "x".repeat(1_000);
    for batch in 0..40 {
        alice.publish(&room, 1 + batch * 10, &[body.as_str(); 10]).await.unwrap();
    }
    let (shard, id) = (shard_of(&room), id_of(&room));
    for node in &cluster.nodes {
        let group = node.store().group(shard).unwrap();
        eventually("the first segments are dropped", || {
            let segments = group.view(|machine| machine.complete_segments(0, 100));
            segments.first().is_none_or(|(segment, _)| *segment >= 5) && group.view(|m| m.room(id).is_some())
        })
        .await;
    }
    let now = alice.get(&room).await.unwrap();
    assert!(now.size_bytes <= 100_000 && now.size_bytes > 80_000, "{} bytes are kept", now.size_bytes);
    assert!(now.floor > 250 && now.head == 400, "{} to {}", now.floor, now.head);

    // Later snapshots do not list the dropped files; when the older ones are gone, so are the files.
    for node in &cluster.nodes {
        let group = node.store().group(shard).unwrap();
        for _ in 0..3 {
            alice.publish(&room, 401, &["same again"]).await.unwrap();
            group.snapshot().await.unwrap();
        }
    }
    for node in 1..=3 {
        let there = alice.at(cluster.service(node)).await;
        let start = Some(StartFrom { from: Some(earliest()) });
        let request =
            SubscribeRequest { filter: "ops.short".into(), start, until_end: true, ..SubscribeRequest::default() };
        let (sequences, failure) = there.subscribe_with(request).await.unwrap().drain().await;
        let now = there.get(&room).await.unwrap();
        assert_eq!((sequences, failure), ((now.floor..=now.head).collect(), None), "through node {node}");
    }
    let mut files = Vec::new();
    eventually("the files are gone", || {
        files.clear();
        cluster.dirs().for_each(|dir| segment_files(dir, &mut files));
        let first = |file: &PathBuf| file.ends_with("000000000000.segment");
        let group = format!("/groups/{}/", shard.0);
        !files.iter().any(|file| first(file) && file.to_string_lossy().contains(&group))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_the_floor_everybody_is_told_floor_and_head() {
    let cluster = Cluster::start(1).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create_with("ops.last", keeping(RoomRetention { max_messages: 5, ..Default::default() })).await;
    for number in 1..=20u64 {
        alice.publish(&room, number, &[&number.to_string()]).await.unwrap();
    }
    let fetch = |from_sequence| FetchRangeRequest { room: Some(by_subject("ops.last")), from_sequence, count_max: 100 };
    let kept = alice.service.fetch_range(&alice.caller, fetch(16)).await.unwrap();
    assert_eq!((kept.floor, kept.head, kept.deliveries.len()), (16, 20, 5));
    let gone = alice.service.fetch_range(&alice.caller, fetch(15)).await.expect_err("below the floor");
    assert_eq!(gone.code, ErrorCode::OutOfRange);
    assert_eq!(gone.facts, [("floor", "16".to_string()), ("head", "20".to_string())]);
    assert!(gone.message.contains("timeline of ops.last reaches from 16 to 20"), "{}", gone.message);
    let resume = vec![RoomPosition { room_id: room.room_id.clone(), next_sequence: 3 }];
    let request = SubscribeRequest { filter: "ops.>".into(), resume, ..SubscribeRequest::default() };
    assert_eq!(alice.subscribe_with(request).await.err().expect("below the floor").code, ErrorCode::OutOfRange);
    // The roster stays whole, though its first events are below the floor.
    let roster = ReadRosterRequest { room: Some(by_subject("ops.last")), ..ReadRosterRequest::default() };
    assert_eq!(alice.service.read_roster(&alice.caller, roster).await.unwrap().entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_falls_below_the_floor_is_told_and_never_skips() {
    let cluster = Cluster::start(1).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create_with("ops.fast", keeping(RoomRetention { max_messages: 50, ..Default::default() })).await;
    let body = "x".repeat(64 << 10);
    alice.publish(&room, 1, &["first"]).await.unwrap();
    let mut reader = alice.subscribe("ops.fast", earliest()).await.unwrap();
    assert_eq!(reader.messages(1).await[0].2, "first");
    // 12 MiB while nobody reads: three times what the mailbox holds, and far more than the room keeps.
    for batch in 0..12 {
        alice.publish(&room, 2 + batch * 16, &[body.as_str(); 16]).await.unwrap();
    }
    let (sequences, failure) = reader.drain().await;
    let expected: Vec<u64> = (2..).take(sequences.len()).collect();
    assert_eq!(sequences, expected, "what is delivered has no gap");
    assert_eq!(failure.expect("the stream ends").code, ErrorCode::OutOfRange);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_old_goes_without_a_further_publish() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 2).await;
    let room = alice.create_with("ops.brief", keeping(RoomRetention { max_age_ms: 300, ..Default::default() })).await;
    alice.publish(&room, 1, &["one", "two"]).await.unwrap();
    let (shard, id) = (shard_of(&room), id_of(&room));
    for node in &cluster.nodes {
        let group = node.store().group(shard).unwrap();
        eventually("the room is empty", || group.view(|machine| machine.room(id)).is_some_and(|row| row.floor == 3))
            .await;
    }
    let start = Some(StartFrom { from: Some(earliest()) });
    let request = SubscribeRequest { filter: "ops.brief".into(), start, until_end: true, ..Default::default() };
    let mut reader = alice.subscribe_with(request).await.unwrap();
    assert_eq!(reader.drain().await, (vec![], None), "an empty room has an end too");
    let mut live = alice.subscribe("ops.brief", earliest()).await.unwrap();
    alice.publish(&room, 3, &["three"]).await.unwrap();
    assert_eq!(live.messages(1).await, [("ops.brief".to_string(), 3, "three".to_string())]);
}
