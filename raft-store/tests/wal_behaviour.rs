//! The WAL as its callers see it.

mod wal_model;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use unibus_proto::id::{GroupId, NodeId};
use unibus_raft_store::env::{Disk, DiskFile, Env, OpenMode, now, sleep, timeout};
use unibus_raft_store::testing::crash::CrashEnv;
use unibus_raft_store::types::log_id;
use unibus_raft_store::wal::recover::file_name;
use unibus_raft_store::wal::{Form, GroupLog, LogEntry, Wal, WalConfig, WalError};

use wal_model::{CLUSTER, DIR, Logs, Step, completion, expect, logs_shown, open, perform, vote};

fn small() -> WalConfig {
    WalConfig { file_bytes: 8 << 10, tail_bytes: 1 << 10, spare_files: 1, ..WalConfig::default() }
}

async fn fresh(config: &WalConfig) -> (CrashEnv, Wal<CrashEnv>) {
    let env = CrashEnv::new(3);
    Wal::create(&env, Path::new(DIR), CLUSTER, config).await.expect("create");
    let wal = open(&env, config).await.expect("open");
    (env, wal)
}

fn entries(term: u64, first: u64, count: u64, bytes: usize) -> Vec<LogEntry> {
    let entry = |index| {
        let payload = Bytes::from(vec![index as u8; bytes]);
        LogEntry::new(log_id(term, NodeId(1), index), Form::Normal, payload)
    };
    (first..first + count).map(entry).collect()
}

async fn append(log: &GroupLog<CrashEnv>, first: u64, count: u64, bytes: usize) -> std::io::Result<()> {
    let (done, written) = completion();
    log.append(entries(1, first, count, bytes), done).await?;
    written.await.expect("the callback is called")
}

fn path(generation: u64) -> PathBuf {
    Path::new(DIR).join(file_name(generation))
}

#[derive(Clone, Debug)]
enum Act {
    Do(u32, Step),
    Reopen { crash: bool },
}

fn acts() -> impl Strategy<Value = Act> {
    let sizes = proptest::collection::vec(0..300usize, 1..4);
    let step = prop_oneof![
        5 => (0..9u64, sizes).prop_map(|(term, sizes)| Step::Append { term, sizes }),
        1 => (0..99u64, any::<bool>()).prop_map(|(term, committed)| Step::Vote(vote(term, committed))),
        2 => (0..5u64).prop_map(|back| Step::Truncate { back }),
        2 => (-6..3i64).prop_map(|ahead| Step::Purge { ahead }),
    ];
    prop_oneof![
        12 => (0..3u32, step).prop_map(|(group, step)| Act::Do(group, step)),
        1 => any::<bool>().prop_map(|crash| Act::Reopen { crash }),
    ]
}

/// Does the acts without waiting for the disk, and compares what can be read after each of them.
async fn follows_the_model(acts: Vec<Act>) {
    let config = WalConfig { file_bytes: 4 << 10, tail_bytes: 300, spare_files: 1, ..WalConfig::default() };
    let (env, mut wal) = fresh(&config).await;
    let mut logs = Logs::new();
    for act in acts {
        match act {
            Act::Do(group, step) => {
                let after = expect(&logs, GroupId(group), &step, env.rng());
                let log = wal.group(GroupId(group));
                let before = logs.get(&GroupId(group)).cloned();
                let expected = after.get(&GroupId(group)).cloned().unwrap_or_default();
                let written = perform(&log, &before, &expected);
                // Half of the steps are left on their way.
                let _ = timeout::<CrashEnv, _>(Duration::from_millis(u64::from(group % 2) * 100), written).await;
                logs = after;
            }
            Act::Reopen { crash } => {
                wal.group(GroupId(0)).barrier().await.expect("the disk works");
                if crash {
                    env.disk().crash();
                } else {
                    wal.shutdown().await;
                }
                wal = open(&env, &config).await.expect("opens");
            }
        }
        assert_eq!(logs_shown(&wal).await, logs);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn reads_what_was_written_over_truncations_purges_and_restarts(acts in proptest::collection::vec(acts(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(follows_the_model(acts));
    }
}

#[tokio::test]
async fn waiting_requests_of_all_groups_share_one_sync() {
    let (_env, wal) = fresh(&WalConfig::default()).await;
    let before = wal.stats().rounds;
    let appends = (0..64).map(|group| {
        let log = wal.group(GroupId(group));
        async move { append(&log, 0, 4, 100).await }
    });
    for result in futures::future::join_all(appends).await {
        result.expect("written");
    }
    let stats = wal.stats();
    assert!(stats.rounds - before <= 3, "{} rounds for 64 groups", stats.rounds - before);
    assert_eq!(stats.entries, 256);
}

#[tokio::test]
async fn files_are_recycled_when_all_groups_purged_and_idle_votes_survive() {
    let (env, wal) = fresh(&small()).await;
    wal.group(GroupId(9)).save_vote(vote(42, true)).await.expect("saved");
    let busy = wal.group(GroupId(1));
    for first in (0..400).step_by(4) {
        append(&busy, first, 4, 200).await.expect("written");
        busy.purge(log_id(1, NodeId(1), first + 1)).expect("queued");
    }
    busy.barrier().await.expect("written");
    let stats = wal.stats();
    assert!(stats.files <= 3 && stats.recycled > 5, "{stats:?}");
    wal.shutdown().await;
    let wal = open(&env, &small()).await.expect("opens");
    assert_eq!(wal.group(GroupId(9)).state().vote, Some(vote(42, true)));
    let kept = wal.group(GroupId(1)).read(0..u64::MAX, u64::MAX).await.expect("readable");
    assert_eq!(kept.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(), [398, 399]);
}

#[tokio::test]
async fn a_slow_group_keeps_its_file() {
    let (env, wal) = fresh(&small()).await;
    append(&wal.group(GroupId(2)), 0, 1, 50).await.expect("written");
    let busy = wal.group(GroupId(1));
    for first in (0..200).step_by(4) {
        append(&busy, first, 4, 200).await.expect("written");
        busy.purge(log_id(1, NodeId(1), first + 1)).expect("queued");
    }
    busy.barrier().await.expect("written");
    assert_eq!(wal.stats().recycled, 0);
    let slow = wal.group(GroupId(2));
    assert_eq!(slow.read(0..9, 1000).await.expect("readable").len(), 1);
    slow.purge(log_id(1, NodeId(1), 0)).expect("queued");
    slow.barrier().await.expect("written");
    // Recycling follows the round.
    slow.barrier().await.expect("written");
    assert!(wal.stats().recycled > 3, "{:?}", wal.stats());
    wal.shutdown().await;
    open(&env, &small()).await.expect("opens");
}

#[tokio::test]
async fn an_append_larger_than_a_file_gets_a_file_of_its_own() {
    let (env, wal) = fresh(&small()).await;
    append(&wal.group(GroupId(1)), 0, 1, 100_000).await.expect("written");
    append(&wal.group(GroupId(1)), 1, 1, 10).await.expect("written");
    wal.shutdown().await;
    let wal = open(&env, &small()).await.expect("opens");
    let read = wal.group(GroupId(1)).read(0..9, u64::MAX).await.expect("readable");
    assert_eq!(read.iter().map(|entry| entry.payload.len()).collect::<Vec<_>>(), [100_000, 10]);
}

#[tokio::test]
async fn a_full_queue_makes_appends_wait() {
    let (_env, wal) = fresh(&WalConfig { queue_bytes: 1000, ..small() }).await;
    let log = wal.group(GroupId(1));
    let (first, _first_written) = completion();
    log.append(entries(1, 0, 2, 400), first).await.expect("there is room");
    let (second, _second_written) = completion();
    let mut waiting = std::pin::pin!(log.append(entries(1, 2, 1, 400), second));
    assert!(futures::poll!(&mut waiting).is_pending(), "800 of 1000 bytes wait for the disk");
    waiting.await.expect("gets room when the disk has caught up");
}

#[tokio::test]
async fn a_failing_disk_stops_the_wal_for_good() {
    let (env, wal) = fresh(&small()).await;
    let log = wal.group(GroupId(1));
    append(&log, 0, 1, 10).await.expect("written");
    let fault = wal.fault();
    env.disk().fail_after(0);
    let failed = append(&log, 1, 1, 10).await.expect_err("the disk is gone").to_string();
    assert!(failed.contains("0000000000000001.wal"), "{failed}");
    assert_eq!(log.flushed_index(), Some(0));
    assert_eq!(fault.await, failed);
    env.disk().fail_after(u64::MAX);
    append(&log, 2, 1, 10).await.expect_err("a failed sync is not tried again");
    log.save_vote(vote(1, false)).await.expect_err("no votes either");
}

#[tokio::test]
async fn commit_indexes_are_written_when_idle() {
    let (env, wal) = fresh(&small()).await;
    let log = wal.group(GroupId(1));
    append(&log, 0, 3, 10).await.expect("written");
    let committed = log_id(1, NodeId(1), 1);
    log.save_committed(committed).expect("queued");
    let rounds = wal.stats().rounds;
    let deadline = now::<CrashEnv>() + Duration::from_secs(5);
    while wal.stats().rounds == rounds && now::<CrashEnv>() < deadline {
        sleep::<CrashEnv>(Duration::from_millis(1)).await;
    }
    env.disk().crash();
    let wal = open(&env, &small()).await.expect("opens");
    assert_eq!(wal.group(GroupId(1)).state().committed, Some(committed));
}

#[tokio::test]
async fn an_idle_wal_covers_its_last_frame_and_falls_silent() {
    let (_env, wal) = fresh(&small()).await;
    append(&wal.group(GroupId(1)), 0, 1, 10).await.expect("written");
    sleep::<CrashEnv>(Duration::from_millis(200)).await;
    assert_eq!(wal.stats().rounds, 2, "the append, and one frame to cover it");
}

#[tokio::test]
async fn spare_files_are_prepared_and_taken() {
    let config = WalConfig { spare_files: 2, ..small() };
    let (env, wal) = fresh(&config).await;
    let spares = async || {
        let names = env.disk().list(Path::new(DIR)).await.expect("listable");
        names.into_iter().filter(|name| name.starts_with("spare-") && !name.ends_with(".tmp")).count()
    };
    let deadline = now::<CrashEnv>() + Duration::from_secs(10);
    while spares().await < 2 && now::<CrashEnv>() < deadline {
        sleep::<CrashEnv>(Duration::from_millis(5)).await;
    }
    assert_eq!(spares().await, 2);
    for first in 0..10 {
        append(&wal.group(GroupId(1)), first, 1, 900).await.expect("written");
    }
    assert!(spares().await < 2, "the next file was a prepared one");
}

#[tokio::test]
async fn a_payload_that_rots_while_running_is_not_served() {
    let (env, wal) = fresh(&WalConfig { tail_bytes: 0, ..small() }).await;
    let log = wal.group(GroupId(1));
    append(&log, 0, 2, 400).await.expect("written");
    assert_eq!(log.read(0..2, u64::MAX).await.expect("readable").len(), 2);
    let file = env.disk().open(&path(1), OpenMode::Write).await.expect("is there");
    let bytes = file.read_at(0, 8 << 10).await.expect("readable");
    let at = bytes.windows(400).position(|window| window == [1; 400]).expect("the second payload") as u64;
    file.write_at(at + 7, vec![Bytes::from_static(b"x")]).await.expect("writable");
    let error = log.read(0..2, u64::MAX).await.expect_err("its checksum is wrong").to_string();
    assert!(error.contains("0000000000000001.wal at byte") && error.contains("entry 1 of group s1"), "{error}");
}

#[tokio::test]
async fn creating_twice_and_opening_nothing_are_refused() {
    let (env, wal) = fresh(&small()).await;
    wal.shutdown().await;
    let twice = Wal::create(&env, Path::new(DIR), CLUSTER, &small()).await;
    assert!(matches!(twice, Err(WalError::Exists { .. })), "{twice:?}");
    let nothing = Wal::open(&env, Path::new("/elsewhere"), CLUSTER, small()).await.expect_err("nothing there");
    assert!(nothing.to_string().contains("unibusctl node replace"), "{nothing}");
    assert!(!Wal::exists(&env, Path::new("/elsewhere")).await.expect("can be asked"));
    assert!(Wal::exists(&env, Path::new(DIR)).await.expect("can be asked"));
}

#[tokio::test]
async fn damage_at_open_names_file_offset_and_remedy() {
    let (env, wal) = fresh(&small()).await;
    append(&wal.group(GroupId(1)), 0, 1, 400).await.expect("written");
    wal.shutdown().await;
    let file = env.disk().open(&path(1), OpenMode::Write).await.expect("is there");
    file.write_at(600, vec![Bytes::from_static(b"???")]).await.expect("writable");
    let refused = open(&env, &small()).await.expect_err("an acknowledged frame is damaged").to_string();
    for part in ["/node/wal/0000000000000001.wal at byte 512", "unibusctl node replace"] {
        assert!(refused.contains(part), "{refused}");
    }
}

#[tokio::test]
async fn holes_are_refused() {
    let (_env, wal) = fresh(&small()).await;
    let log = wal.group(GroupId(1));
    append(&log, 0, 2, 10).await.expect("written");
    append(&log, 3, 1, 10).await.expect_err("entry 2 is missing");
    append(&log, 1, 1, 10).await.expect_err("entry 1 is there already");
    append(&log, 2, 1, 10).await.expect("goes on");
}
