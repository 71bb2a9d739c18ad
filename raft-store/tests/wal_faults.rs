//! A disk that fails once, at every operation of a script, and one that is full: what was acknowledged is there,
//! nothing is acknowledged after a failed sync, and want of space is waited for.

mod wal_model;

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use unibus_proto::id::{GroupId, NodeId};
use unibus_raft_store::env::{AsyncRuntime, Env, sleep, timeout};
use unibus_raft_store::testing::crash::CrashEnv;
use unibus_raft_store::types::log_id;
use unibus_raft_store::wal::{Form, GroupLog, LogEntry, Wal, WalConfig};

use wal_model::{CLUSTER, DIR, Script, completion, logs_shown, open, vote};

const STEPS: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(20);

/// No spare files: every operation of the disk is the writer's.
fn config() -> WalConfig {
    WalConfig { file_bytes: 4 << 10, tail_bytes: 512, spare_files: 0, kept_files: 0, ..WalConfig::default() }
}

/// An append that waits.
type Waits = <<CrashEnv as Env>::Rt as AsyncRuntime>::JoinHandle<io::Result<()>>;

/// What became of a failure.
#[derive(Debug, PartialEq, Eq)]
enum Became {
    /// The script ended before.
    NotReached,
    /// Nobody noticed.
    Absorbed,
    /// The WAL stopped.
    Stopped,
}

/// Runs the script of `seed`, of which the operation after `operations` fails once.
async fn fail_at(seed: u64, operations: u64, kind: io::ErrorKind, power: bool) -> Result<Became, String> {
    let mut script = Script::create(seed, config()).await;
    script.env.disk().fail_once_after(operations, kind);
    let fault = script.wal.fault();
    let mut failed = false;
    for _ in 0..STEPS {
        failed = script.step().await.is_err();
        if failed {
            break;
        }
    }
    if script.env.disk().is_to_fail() {
        return Ok(Became::NotReached);
    }
    let attempted = script.history.states.len() - 1;
    let acknowledged = attempted - usize::from(failed);
    if failed {
        let operations = script.env.disk().operations();
        let said = timeout::<CrashEnv, _>(PATIENCE, fault).await.ok_or("the process is not told to end")?;
        if !said.contains(DIR) || !said.contains("not tried again") || !said.contains("start the node") {
            return Err(format!("it says {said:?}"));
        }
        if script.wal.group(GroupId(0)).save_vote(vote(99, false)).await.is_ok() {
            return Err("it goes on after a failure".into());
        }
        if script.env.disk().operations() != operations {
            return Err("it touches the disk after a failure".into());
        }
    }
    if power {
        script.env.disk().crash();
    }
    script.wal = open(&script.env, &script.config).await.map_err(|error| format!("refused: {error}"))?;
    let (found, states) = (logs_shown(&script.wal).await, &script.history.states);
    match found == states[acknowledged] || found == states[attempted] {
        true if failed => Ok(Became::Stopped),
        true => Ok(Became::Absorbed),
        false => Err(format!("after {acknowledged} acknowledged steps: {found:?}")),
    }
}

/// Every operation fails once; how often that was absorbed.
async fn fail_everywhere(kind: io::ErrorKind) -> usize {
    let mut absorbed = 0;
    for (seed, power) in (0..4).flat_map(|seed| [(seed, false), (seed, true)]) {
        for operations in 0.. {
            match fail_at(seed, operations, kind, power).await {
                Ok(Became::NotReached) => break,
                Ok(Became::Absorbed) => absorbed += 1,
                Ok(Became::Stopped) => {}
                Err(what) => panic!("seed {seed}, {kind} after {operations} operations, power cut {power}: {what}"),
            }
        }
    }
    absorbed
}

#[tokio::test]
async fn a_failed_write_or_sync_is_never_tried_again() {
    // What EIO is to the standard library. Only the last purge of a script may fail after its answer.
    assert!(fail_everywhere(io::ErrorKind::Other).await <= 8);
}

#[tokio::test]
async fn want_of_space_for_a_new_file_is_absorbed() {
    assert!(fail_everywhere(io::ErrorKind::StorageFull).await > 40, "each new file has two operations to fail at");
}

fn entry(index: u64) -> LogEntry {
    LogEntry::new(log_id(1, NodeId(1), index), Form::Normal, Bytes::from(vec![index as u8; 600]))
}

async fn append(log: &GroupLog<CrashEnv>, index: u64) -> io::Result<()> {
    let (done, written) = completion();
    log.append(vec![entry(index)], done).await?;
    written.await.expect("the callback is called")
}

/// Fills the disk and appends until nothing is written any more; how many were acknowledged, and one that waits.
async fn stalled() -> (CrashEnv, Wal<CrashEnv>, u64, Waits) {
    let env = CrashEnv::new(5);
    Wal::create(&env, Path::new(DIR), CLUSTER, &config()).await.expect("create");
    let wal = open(&env, &config()).await.expect("open");
    env.disk().fill();
    let log = wal.group(GroupId(1));
    for index in 0.. {
        let (log, begun) = (log.clone(), wal.stats().rounds);
        let mut waits = <CrashEnv as Env>::Rt::spawn(async move { append(&log, index).await });
        tokio::select! {
            biased;
            answer = &mut waits => answer.expect("no panic").expect("an append into a file that is there"),
            () = async {
                while wal.stalled().is_none() {
                    sleep::<CrashEnv>(Duration::from_millis(1)).await;
                }
            } => {
                assert_eq!(wal.stats().rounds, begun);
                return (env, wal, index, waits);
            }
        }
    }
    unreachable!("the disk is full")
}

#[tokio::test]
async fn a_full_disk_stops_the_writing_and_nothing_else() {
    let (env, wal, acknowledged, waits) = stalled().await;
    let log = wal.group(GroupId(1));
    assert!(acknowledged > 0, "what is there was used");
    assert!(wal.stalled().expect("waits").contains("no space"));
    assert_eq!(log.flushed_index(), Some(acknowledged - 1));
    assert_eq!(wal.stats().in_flight, None, "a full disk does not hang");
    assert_eq!(log.read(0..99, u64::MAX).await.expect("it is read meanwhile").len() as u64, acknowledged + 1);
    let voting = {
        let log = wal.group(GroupId(2));
        <CrashEnv as Env>::Rt::spawn(async move { log.save_vote(vote(7, false)).await })
    };
    sleep::<CrashEnv>(Duration::from_millis(300)).await;
    assert!(!waits.is_finished() && !voting.is_finished(), "acknowledged before it is on disk");
    assert!(
        env.disk().names().iter().all(|name| !name.to_string_lossy().contains("spare")),
        "{:?}",
        env.disk().names()
    );

    env.disk().set_capacity(None);
    for waits in [waits, voting] {
        let answer = timeout::<CrashEnv, _>(PATIENCE, waits).await.expect("goes on by itself");
        answer.expect("no panic").expect("written");
    }
    assert_eq!(wal.stalled(), None);
    append(&log, acknowledged + 1).await.expect("goes on");
    env.disk().crash();
    let again = open(&env, &config()).await.expect("opens");
    assert_eq!(again.group(GroupId(1)).state().last.map(|id| id.index), Some(acknowledged + 1));
    assert_eq!(again.group(GroupId(2)).state().vote, Some(vote(7, false)));
}

#[tokio::test]
async fn a_power_cut_while_the_disk_is_full_loses_nothing_acknowledged() {
    let (env, _wal, acknowledged, waits) = stalled().await;
    env.disk().crash();
    waits.abort();
    let again = open(&env, &config()).await.expect("opens on a full disk");
    let last = again.group(GroupId(1)).state().last.map(|id| id.index);
    assert_eq!(last, Some(acknowledged - 1));
}

#[tokio::test]
async fn a_node_that_stops_does_not_wait_for_space() {
    let (_env, wal, _, waits) = stalled().await;
    wal.give_up_waiting();
    let answer = timeout::<CrashEnv, _>(PATIENCE, waits).await.expect("gives up").expect("no panic");
    answer.expect_err("not written, and not acknowledged");
    timeout::<CrashEnv, _>(PATIENCE, wal.shutdown()).await.expect("stops");
}
