//! A follower that was away longer than the log reaches back: it catches up by snapshot, whatever
//! interrupts it, and nobody waits for it.

#[path = "../machine/tests/common/mod.rs"]
mod common;
mod lab;

use std::time::Duration;

use common::{Person, publish, room_id};
use lab::{Lab, LabEnv, SHARD, eventually};
use unibus_proto::log::reply::Reply;
use unibus_raft_store::StoreConfig;
use unibus_raft_store::env::{Instant, now, sleep};
use unibus_raft_store::space::SpaceMarks;
use unibus_raft_store::testing::FREE_BYTES_FILE;
use unibus_raft_store::wal::WalConfig;

const ROOM: &str = "agent.scout.in";
/// More than one block of a file and more than one chunk of the transfer.
const SEGMENT_BYTES: u64 = 600 << 10;

fn config() -> StoreConfig {
    let wal = WalConfig { file_bytes: 4 << 20, ..Lab::small().wal };
    StoreConfig { wal, segment_bytes: SEGMENT_BYTES, ..Lab::small() }
}

/// Publishes entries of 64 KiB; answers the last index.
async fn fill(lab: &Lab, ada: &Person, entries: std::ops::Range<u64>) -> u64 {
    let mut index = 0;
    for entry in entries {
        let bodies: Vec<String> = (0..8).map(|n| format!("{entry}.{n} {}", "x".repeat(8 << 10))).collect();
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        let committed = lab.propose(SHARD, publish(vec![ada.group(ROOM, "p", entry * 8 + 1, &bodies)])).await;
        assert!(matches!(committed.reply.reply, Some(Reply::Publish(_))), "{:?}", committed.reply);
        index = committed.index;
    }
    index
}

/// A cluster with one node away, whose log the others no longer have.
async fn one_is_away(config: StoreConfig) -> (Lab, Person, u64) {
    let mut lab = Lab::formed(config).await;
    let ada = Person::new("ada");
    lab.propose(SHARD, ada.create(ROOM)).await;
    let leader = lab.leader(SHARD).await;
    let away = (1..=3).find(|node| *node != leader).expect("a follower");
    lab.kill(away).await;
    let mut entries = 0;
    for _ in 0..3 {
        fill(&lab, &ada, entries..entries + 30).await;
        entries += 30;
        for node in lab.nodes.values() {
            node.group(SHARD).snapshot().await.expect("a snapshot");
        }
    }
    let purged = || lab.nodes.values().all(|node| node.group(SHARD).status().purged_index > 60);
    eventually("a purge", || purged().then_some(())).await;
    (lab, ada, away)
}

fn timeline_bytes() -> u64 {
    90 * 8 * (8 << 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_three_times_it_goes_on_where_it_was() {
    let (mut lab, ada, away) = one_is_away(config()).await;
    let part = timeline_bytes() / 5;
    lab.hub.limit_bulk(Some(part));
    lab.start(away).await;
    eventually("the connection breaks", || lab.hub.bulk_is_cut().then_some(())).await;

    // The receiver dies.
    lab.kill(away).await;
    lab.hub.limit_bulk(Some(part));
    lab.start(away).await;
    eventually("the connection breaks again", || lab.hub.bulk_is_cut().then_some(())).await;

    // The sender dies, and another one leads.
    let leader = lab.leader(SHARD).await;
    lab.kill(leader).await;
    let led = lab.leader(SHARD).await;
    assert_ne!(led, leader);
    lab.hub.limit_bulk(Some(part));
    eventually("the connection breaks a third time", || lab.hub.bulk_is_cut().then_some(())).await;
    assert_eq!(lab.nodes[&away].group(SHARD).status().snapshot_index, 0, "not yet installed");

    lab.hub.limit_bulk(None);
    let index = fill(&lab, &ada, 90..91).await;
    lab.agree(SHARD, index).await;
    let (sent, all) = (lab.hub.bulk_sent(), timeline_bytes());
    assert!(sent < all * 13 / 10, "{sent} bytes were sent, the snapshot has some {all}: it began anew");
    assert!(lab.nodes[&away].group(SHARD).status().snapshot_index > 30, "not by log alone");
    let expected = lab.timeline(led, room_id(ROOM)).await;
    assert!(lab.timeline(away, room_id(ROOM)).await == expected);
    assert!(!lab.dir_of(away).join("groups/s1/snapshots/staging").exists());

    lab.kill(away).await;
    lab.start(away).await;
    lab.agree(SHARD, index).await;
    assert!(lab.timeline(away, room_id(ROOM)).await == expected);
}

/// Sealed segments that are there whole are not sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_missing_is_sent() {
    let (mut lab, ada, away) = one_is_away(config()).await;
    lab.start(away).await;
    let index = fill(&lab, &ada, 90..91).await;
    lab.agree(SHARD, index).await;
    let first = lab.hub.bulk_sent();
    assert!(first > timeline_bytes() / 2, "{first}");
    lab.kill(away).await;
    for round in 0..3 {
        fill(&lab, &ada, 91 + round * 3..94 + round * 3).await;
        for node in lab.nodes.values() {
            node.group(SHARD).snapshot().await.expect("a snapshot");
        }
    }
    let beyond = |node: &lab::Node| node.group(SHARD).status().purged_index > index;
    eventually("a purge", || lab.nodes.values().all(beyond).then_some(())).await;
    lab.start(away).await;
    let index = fill(&lab, &ada, 100..101).await;
    lab.agree(SHARD, index).await;
    let second = lab.hub.bulk_sent() - first;
    assert!(second < timeline_bytes() / 4, "{second} bytes were sent for 9 entries");
}

/// A transfer may take as long as it takes, and publishing goes on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_goes_on_while_a_slow_transfer_runs() {
    let slow = StoreConfig { snapshot_bytes_per_second: 2 << 20, ..config() };
    let (mut lab, ada, away) = one_is_away(slow).await;
    let begun = now::<LabEnv>();
    lab.start(away).await;
    let (mut entry, mut worst) = (90, Duration::ZERO);
    while lab.nodes[&away].group(SHARD).status().snapshot_index == 0 {
        let published = now::<LabEnv>();
        fill(&lab, &ada, entry..entry + 1).await;
        worst = worst.max(published.elapsed());
        entry += 1;
        assert!(begun.elapsed() < Duration::from_secs(60), "the transfer does not end");
        sleep::<LabEnv>(Duration::from_millis(20)).await;
    }
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(2), "{took:?}: faster than its budget");
    assert!(worst < Duration::from_secs(1), "a publish took {worst:?}");
    let index = fill(&lab, &ada, entry..entry + 1).await;
    lab.agree(SHARD, index).await;
}

/// Leaves so much on a node's disk.
fn leave(lab: &Lab, node: u64, bytes: u64) {
    std::fs::write(lab.dir_of(node).join(FREE_BYTES_FILE), bytes.to_string()).expect("written");
}

/// Waits until a snapshot was offered to a node without space, and again.
async fn until_refused(lab: &Lab) {
    let before = lab.hub.bulk_opened();
    eventually("snapshots are refused", || (lab.hub.bulk_opened() >= before + 3).then_some(())).await;
}

async fn until_caught_up(lab: &Lab, ada: &Person, away: u64) {
    std::fs::remove_file(lab.dir_of(away).join(FREE_BYTES_FILE)).expect("removed");
    let index = fill(lab, ada, 90..91).await;
    lab.agree(SHARD, index).await;
}

/// What cannot fit is not sent first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_does_not_fit_is_refused_before_a_byte_of_it_comes() {
    let space = SpaceMarks { low_bytes: 1 << 20, reserve_bytes: 1 << 20 };
    let (mut lab, ada, away) = one_is_away(StoreConfig { space, ..config() }).await;
    // Enough to begin with, and for the tables; not for the files and the reserve as well.
    leave(&lab, away, 20 << 20);
    lab.start(away).await;
    until_refused(&lab).await;
    assert!(lab.hub.bulk_sent() < timeline_bytes() / 20, "{} bytes were sent", lab.hub.bulk_sent());
    assert_eq!(lab.nodes[&away].group(SHARD).status().snapshot_index, 0);
    until_caught_up(&lab, &ada, away).await;
}

/// What comes while others fill the disk stops at the reserve, and goes on from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_stops_at_the_reserve() {
    let space = SpaceMarks { low_bytes: 2 << 20, reserve_bytes: 1 << 20 };
    let slow = StoreConfig { snapshot_bytes_per_second: 2 << 20, space, ..config() };
    let (mut lab, ada, away) = one_is_away(slow).await;
    lab.start(away).await;
    eventually("the transfer runs", || (lab.hub.bulk_sent() > timeline_bytes() / 4).then_some(())).await;
    leave(&lab, away, 0);
    until_refused(&lab).await;
    let sent = lab.hub.bulk_sent();
    assert!(sent < timeline_bytes() * 3 / 4, "{sent} bytes were sent to a node without space");
    until_caught_up(&lab, &ada, away).await;
    let sent = lab.hub.bulk_sent();
    assert!(sent < timeline_bytes() * 13 / 10, "{sent} bytes were sent: it began anew");
}
