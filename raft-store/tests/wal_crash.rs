//! The power fails at every operation of a script, and what was not synced survives by halves: the WAL
//! opens, holds everything acknowledged, and nothing that was never asked for.

mod wal_model;

use std::time::Duration;

use unibus_raft_store::env::{Env, sleep};
use unibus_raft_store::testing::crash::CrashEnv;
use unibus_raft_store::wal::WalConfig;

use wal_model::{Script, logs_shown, open};

const STEPS: u64 = 40;

fn config() -> WalConfig {
    WalConfig {
        file_bytes: 4 << 10,
        tail_bytes: 512,
        spare_files: 1,
        cover_after: Duration::from_micros(1),
        ..WalConfig::default()
    }
}

/// Runs the script of `seed` until the power fails after `operations`; what is wrong, and whether the power
/// failed at all.
async fn crash_at(seed: u64, operations: u64) -> Result<bool, String> {
    let mut script = Script::create(seed, config()).await;
    script.env.disk().fail_after(operations);
    let mut failed = false;
    for _ in 0..STEPS {
        if script.below(16) == 0 {
            // Time for a cover frame.
            sleep::<CrashEnv>(Duration::from_millis(2)).await;
        }
        failed = script.step().await.is_err();
        if failed {
            break;
        }
    }
    let attempted = script.history.states.len() - 1;
    let acknowledged = attempted - usize::from(failed);
    script.env.disk().crash();
    script.wal = open(&script.env, &script.config).await.map_err(|error| format!("refused: {error}"))?;
    let found = logs_shown(&script.wal).await;
    let states = &mut script.history.states;
    if found != states[acknowledged] && found != states[attempted] {
        return Err(format!("after {acknowledged} acknowledged steps: {found:?}"));
    }
    // What was found is binding from now on: it goes on from there, also over another start.
    states.push(found);
    for _ in 0..4 {
        script.step().await.map_err(|error| format!("does not go on: {error}"))?;
    }
    script.env.disk().crash();
    script.wal = open(&script.env, &script.config).await.map_err(|error| format!("refused later: {error}"))?;
    match logs_shown(&script.wal).await == *script.history.newest() {
        true => Ok(failed),
        false => Err("the second start found something else".into()),
    }
}

#[cfg(not(feature = "mutants"))]
#[tokio::test]
async fn nothing_acknowledged_is_lost_at_any_crash() {
    for seed in 0..12 {
        for operations in 0.. {
            match crash_at(seed, operations).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(what) => panic!("seed {seed}, power fails after {operations} operations: {what}"),
            }
        }
    }
}

#[cfg(feature = "mutants")]
#[tokio::test]
async fn acknowledging_before_the_sync_is_caught() {
    unibus_raft_store::mutants::enable("ack-before-fsync");
    let mut caught = 0;
    for operations in 0..80 {
        caught += usize::from(crash_at(1, operations).await.is_err());
    }
    unibus_raft_store::mutants::disable_all();
    assert!(caught > 0, "the planted bug went unseen");
}
