//! Scripted runs: one bug each that must never come back.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use openraft_rt::AsyncRuntime;
use unibus_broker::node::Node;
use unibus_broker::service::Caller;
use unibus_broker::shard::placement;
use unibus_client::Client;
use unibus_proto::id::{GroupId, NodeId, RequestId, RoomId};
use unibus_proto::row::NodeRow;
use unibus_proto::v1::{NodeState, ReplaceNodeRequest};

use crate::cluster::Cluster;
use crate::history::Outcome;
use crate::invariants::Violation;
use crate::plan::Plan;
use crate::run::{Report, Run, locked, simulate};
use crate::sim::env::SimEnv;
use crate::sim::grpc::SimPlatform;
use crate::sim::hub::LinkTiming;
use crate::sim::random::Random;
use crate::sim::runtime::SimRuntime;

/// A replacement takes some seconds; an election that a crash costs, one.
const PATIENCE: Duration = Duration::from_secs(60);
/// Published after each kill of whoever reconciles: no two bodies are equal.
const MEANWHILE: [&str; 3] = ["after one kill", "after two kills", "after three kills"];
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

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
    let rooms = run.set_up(plan).await?;
    let shard = GroupId(1);
    wait_spread(run, Duration::from_secs(10)).await?;
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

/// ARCHITECTURE section 9: a node's disk is lost and a new node takes its place, while whoever leads meta,
/// and so reconciles, loses power again and again at any moment.
pub fn node_replace(seed: u64, trace: Option<&Path>) -> Report {
    let plan = Plan { nodes: 3, faults: Vec::new(), ..Plan::of_seed(seed) };
    simulate(seed, trace, |recorder| async move {
        let run = Run::new(&plan, Cluster::new(&plan), recorder);
        let ended = replace(&run, &plan).await;
        (ended, run.cluster.exits(), run.fired())
    })
}

async fn replace(run: &Run, plan: &Plan) -> Result<(), Violation> {
    let mut random = Random::stream(plan.seed, "replace", 0);
    let rooms = run.set_up(plan).await?;
    run.publish(rooms[0], "before").await;
    let (lost, new) = (NodeId(random.between(1, 3)), NodeId(4));
    run.cluster.kill(lost, true);
    run.cluster.retire(lost);
    run.cluster.add_joining(new);
    run.cluster.start(new);
    record_replacement(run, lost, new).await?;
    for body in MEANWHILE {
        SimRuntime::sleep(Duration::from_millis(random.below(600))).await;
        let leader = reconciler(run).await?;
        run.cluster.kill(leader, true);
        *locked(&run.fired).entry("reconciler-killed").or_default() += 1;
        SimRuntime::sleep(Duration::from_millis(random.below(400))).await;
        run.cluster.start(leader);
        run.publish(rooms[0], body).await;
    }
    let is_gone = |state| state == NodeState::Removed;
    wait_for(run, "the lost node has left every group", |node| state_of(node, lost).is_some_and(is_gone)).await?;
    run.cluster.wait_ready(PATIENCE).await.map_err(|what| liveness(&what))?;
    let expected: Vec<_> = run.cluster.ids();
    wait_for(run, "three nodes vote in every group", |node| {
        node.store().groups().all(|group| group.status().voters == expected)
    })
    .await?;
    run.publish(rooms[0], "after").await;
    run.converge().await?;
    run.power_cycle().await?;
    run.scan(&rooms).await
}

/// Whoever leads meta, as soon as somebody does: a scenario in which nobody is killed proves nothing.
async fn reconciler(run: &Run) -> Result<NodeId, Violation> {
    let mut waited = Duration::ZERO;
    loop {
        if let Some(leader) = run.cluster.leader(GroupId::META) {
            return Ok(leader);
        }
        if waited > PATIENCE {
            return Err(unfit(&format!("nobody leads meta within {PATIENCE:?}")));
        }
        SimRuntime::sleep(LOOK).await;
        waited += LOOK;
    }
}

async fn record_replacement(run: &Run, lost: NodeId, new: NodeId) -> Result<(), Violation> {
    let (node, with) = (format!("n{lost}"), format!("n{new}"));
    let request = ReplaceNodeRequest { request_id: RequestId([9; 16]).to_bytes(), node, with };
    let (mut waited, mut last) = (Duration::ZERO, String::new());
    while waited < PATIENCE {
        for id in run.cluster.ids().into_iter().filter(|id| *id != new) {
            let Some(node) = run.cluster.node(id) else { continue };
            match node.service().replace_node(&Caller::Local, request.clone()).await {
                Ok(_) => return Ok(()),
                Err(failure) => last = failure.to_string(),
            }
        }
        SimRuntime::sleep(LOOK).await;
        waited += LOOK;
    }
    Err(liveness(&format!("the replacement cannot be recorded: {last}")))
}

fn state_of(node: &Node<SimEnv>, wanted: NodeId) -> Option<NodeState> {
    let rows = node.store().group(GroupId::META)?.view(|machine| machine.node_rows());
    let is_wanted = |row: &&NodeRow| row.node.as_ref().is_some_and(|node| node.node_id == wanted.0);
    rows.iter().find(is_wanted).map(NodeRow::state)
}

async fn wait_for(run: &Run, what: &str, holds: impl Fn(&Node<SimEnv>) -> bool) -> Result<(), Violation> {
    let mut waited = Duration::ZERO;
    let holds = |id: NodeId| run.cluster.node(id).is_some_and(|node| holds(&node));
    while !run.cluster.ids().into_iter().all(holds) {
        if waited > PATIENCE {
            let says = |id: NodeId| Some(format!("n{id}: {:?}", run.cluster.node(id)?.service().status().problems));
            let all: Vec<_> = run.cluster.ids().into_iter().filter_map(says).collect();
            return Err(liveness(&format!("{what}: not within {PATIENCE:?}: {}", all.join("; "))));
        }
        SimRuntime::sleep(LOOK).await;
        waited += LOOK;
    }
    Ok(())
}

fn unfit(what: &str) -> Violation {
    Violation { invariant: "the scenario plays", what: what.into() }
}

fn liveness(what: &str) -> Violation {
    Violation { invariant: "I14 liveness", what: what.into() }
}

async fn wait_open(run: &Run, node: NodeId) {
    while run.cluster.runs(node) && run.cluster.node(node).is_none() {
        SimRuntime::sleep(Duration::from_micros(100)).await;
    }
}

/// Leaders spread over the nodes, a client publishes to all of them without a detour, and after a node was
/// killed and is back they are spread again.
pub fn spread_leaders(seed: u64, trace: Option<&Path>) -> Report {
    let of_seed = Plan::of_seed(seed);
    // Who loses a stream takes a detour, and rightly.
    let link = LinkTiming { stream_loss_per_million: 0, connection_loss_per_million: 0, ..of_seed.link };
    let plan = Plan { shards: 8, rooms: 24, faults: Vec::new(), link, ..of_seed };
    simulate(seed, trace, |recorder| async move {
        let run = Run::new(&plan, Cluster::new(&plan), recorder);
        let ended = spread_script(&run, &plan).await;
        (ended, run.cluster.exits(), BTreeMap::from([("spread-leaders", 1)]))
    })
}

async fn spread_script(run: &Run, plan: &Plan) -> Result<(), Violation> {
    let broken = |what: String| Violation { invariant: "leaders are spread", what };
    let rooms = run.set_up(plan).await?;
    wait_spread(run, Duration::from_secs(10)).await?;
    let client = run.client().await;
    let before = published_and_forwarded(run);
    for body in ["one", "two", "three"] {
        publish_to_all(run, &client, &rooms, body).await?;
    }
    let after = published_and_forwarded(run);
    if let Some((node, _)) = after.iter().find(|(node, (published, _))| before[*node].0 == *published) {
        return Err(broken(format!("nothing was published through n{node}: {after:?}")));
    }
    let forwarded = |of: &BTreeMap<NodeId, (u64, u64)>| of.values().map(|(_, forwarded)| forwarded).sum::<u64>();
    let detours = forwarded(&after) - forwarded(&before);
    if detours > 0 {
        return Err(broken(format!("{detours} of {} publishes were forwarded", 3 * rooms.len())));
    }
    run.cluster.kill(NodeId(1), false);
    publish_to_all(run, &client, &rooms, "while n1 is down").await?;
    run.cluster.start(NodeId(1));
    run.cluster.wait_ready(Duration::from_secs(30)).await.map_err(broken)?;
    wait_spread(run, Duration::from_secs(10)).await?;
    run.converge().await?;
    run.power_cycle().await?;
    run.scan(&rooms).await
}

async fn publish_to_all(
    run: &Run,
    client: &Client<SimPlatform>,
    rooms: &[RoomId],
    body: &'static str,
) -> Result<(), Violation> {
    for room in rooms {
        match run.publish_as(client, *room, body).await {
            Outcome::Acked { .. } => {}
            outcome => return Err(unfit(&format!("publish {body:?} into room {room}: {outcome:?}"))),
        }
    }
    Ok(())
}

/// Waits until each group is led by the node that should lead it.
async fn wait_spread(run: &Run, patience: Duration) -> Result<(), Violation> {
    let (look, mut waited) = (Duration::from_millis(50), Duration::ZERO);
    let ids = run.cluster.ids();
    loop {
        let groups = || run.cluster.groups().map(|group| (group, run.cluster.leader(group)));
        if groups().all(|(group, leader)| leader == placement::ranking(group, &ids).first().copied()) {
            return Ok(());
        }
        if waited > patience {
            let what = format!("after {waited:?} the groups are led by {:?}", groups().collect::<Vec<_>>());
            return Err(Violation { invariant: "leaders are spread", what });
        }
        SimRuntime::sleep(look).await;
        waited += look;
    }
}

/// By node: messages stored for its clients, and entries that it sent to a leader elsewhere.
fn published_and_forwarded(run: &Run) -> BTreeMap<NodeId, (u64, u64)> {
    let counted = |id: NodeId| {
        let counted = run.cluster.node(id).map(|node| node.service().counters().now()).unwrap_or_default();
        (id, (counted.published, counted.forwarded))
    };
    run.cluster.ids().into_iter().map(counted).collect()
}
