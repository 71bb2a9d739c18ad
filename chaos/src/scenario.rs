//! Scripted runs: one bug each that must never come back.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use openraft_rt::AsyncRuntime;
use unibus_proto::id::{GroupId, NodeId};

use crate::cluster::Cluster;
use crate::history::Outcome;
use crate::invariants::Violation;
use crate::plan::Plan;
use crate::run::{Report, Run, simulate};
use crate::sim::runtime::SimRuntime;

/// ARCHITECTURE section 8.1: a leader whose own fsync is held gets a publish acknowledged through its
/// followers, loses power, and restarts within its lease. Restored as leader without a vote it would give
/// the same log position to another entry.
pub fn leader_restore(seed: u64, restore: bool, trace: Option<&Path>) -> Report {
    let plan = Plan { shards: 1, rooms: 1, faults: Vec::new(), ..Plan::of_seed(seed) };
    simulate(seed, trace, |recorder| async move {
        let cluster = Cluster::new(&plan).with_leader_restore(restore);
        let run = Run::new(&plan, cluster, recorder);
        let ended = script(&run, &plan).await;
        (ended, run.cluster.exits(), BTreeMap::from([("leader-restore", 1)]))
    })
}

async fn script(run: &Run, plan: &Plan) -> Result<(), Violation> {
    let unfit = |what: &str| Violation { invariant: "the scenario plays", what: what.into() };
    let rooms = run.set_up(plan).await?;
    let shard = GroupId(1);
    let leader = run.cluster.leader(shard).ok_or_else(|| unfit("the shard has no leader"))?;
    let disk = run.cluster.disk(leader).ok_or_else(|| unfit("the leader has no disk"))?;
    run.publish(rooms[0], "before").await;
    disk.hold_syncs(true);
    if !matches!(run.publish(rooms[0], "acknowledged through the followers").await, Outcome::Acked { .. }) {
        return Err(unfit("no acknowledgement while the leader's fsync is held"));
    }
    // The leader is alone with its memory: its followers hold the entry, its own disk does not.
    run.cluster.kill(leader, true);
    disk.hold_syncs(false);
    run.cluster.start(leader);
    wait_open(run, leader).await;
    run.publish(rooms[0], "after").await;
    run.cluster.wait_ready(Duration::from_secs(30)).await.map_err(|what| unfit(&what))?;
    run.converge().await?;
    run.power_cycle().await?;
    run.scan(&rooms).await
}

async fn wait_open(run: &Run, node: NodeId) {
    while run.cluster.runs(node) && run.cluster.node(node).is_none() {
        SimRuntime::sleep(Duration::from_micros(100)).await;
    }
}
