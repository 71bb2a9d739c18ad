//! Nodes come and go: drained, added, removed, replaced, while messages are published and whoever leads
//! meta is cut off in between.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use unibus_broker::node::Node;
use unibus_broker::service::Caller;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::v1::publish_outcome::Outcome;
use unibus_proto::v1::*;
use unibus_raft_store::env::{Instant, Rng, now, sleep, spawn};
use unibus_raft_store::testing::SeededRng;

use crate::cluster::{Cluster, PATIENCE, TestService, User, earliest, eventually, unique};
use crate::net::HubEnv;

fn replace(node: &str, with: &str) -> ReplaceNodeRequest {
    ReplaceNodeRequest { request_id: unique(16), node: node.into(), with: with.into() }
}

fn remove(node: &str) -> RemoveNodeRequest {
    RemoveNodeRequest { request_id: unique(16), node: node.into() }
}

async fn listed(service: &TestService, node: u64) -> Option<NodeInfo> {
    let nodes = service.list_nodes(&Caller::Local).await.ok()?.nodes;
    nodes.into_iter().find(|found| found.node_id == node)
}

/// Waits until a node, as `service` lists it, is as wanted.
async fn until_listed(service: &TestService, node: u64, what: &str, wanted: impl Fn(&NodeInfo) -> bool) -> NodeInfo {
    let start = now::<HubEnv>();
    loop {
        let found = listed(service, node).await;
        if let Some(found) = found.clone().filter(|found| wanted(found)) {
            return found;
        }
        assert!(start.elapsed() < 3 * PATIENCE, "{what}: {found:?}, {:?}", service.list_nodes(&Caller::Local).await);
        sleep::<HubEnv>(Duration::from_millis(20)).await;
    }
}

fn voters(node: &Node<HubEnv>) -> BTreeSet<Vec<NodeId>> {
    node.store().groups().map(|group| group.status().voters).collect()
}

fn ids<const N: usize>(ids: [u64; N]) -> BTreeSet<Vec<NodeId>> {
    [ids.map(NodeId).to_vec()].into()
}

/// Publishes one message after the other, each until it is stored, as an SDK does, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    stored: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Load {
    fn start(users: Vec<User>, room: Room) -> Self {
        let load = Self { stop: Arc::default(), stored: Arc::default(), ended: Arc::default() };
        let (stop, stored, ended) = (load.stop.clone(), load.stored.clone(), load.ended.clone());
        spawn::<HubEnv>(async move {
            let mut at = 0;
            while !stop.load(Ordering::Relaxed) {
                let number = stored.load(Ordering::Relaxed) + 1;
                match users[at % users.len()].publish(&room, number, &[&number.to_string()]).await {
                    Ok(response) => {
                        let outcome = response.outcomes[0].outcome.clone().unwrap();
                        assert!(matches!(outcome, Outcome::Stored(_) | Outcome::Duplicate(_)), "{outcome:?}");
                        stored.store(number, Ordering::Relaxed);
                        sleep::<HubEnv>(Duration::from_millis(2)).await;
                    }
                    Err(failure) => {
                        let may_retry = matches!(failure.code, ErrorCode::NoLeader | ErrorCode::OutcomeUnknown);
                        assert!(may_retry, "{failure}");
                        at += 1;
                    }
                }
            }
            ended.store(true, Ordering::Relaxed);
        });
        load
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        eventually("the last publish is answered", || self.ended.load(Ordering::Relaxed)).await;
        self.stored.load(Ordering::Relaxed)
    }
}

async fn replaced_under_load(seed: u64) {
    let rng = SeededRng::new(seed);
    let mut cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.replace").await;
    let elsewhere = alice.at(cluster.service(2)).await;
    let load = Load::start(vec![alice.clone(), elsewhere], room.clone());
    eventually("there is data", || load.stored.load(Ordering::Relaxed) > 20).await;
    cluster.hub.cut(NodeId(3));

    let new = cluster.join(4).await;
    until_listed(&cluster.service(1), 4, "it asks", |node| node.state() == NodeState::Waiting).await;
    let listed_at = now::<HubEnv>();
    eventually("it names the remedy", || new.not_ready().join("").contains("node replace")).await;
    // The lost node answers nothing for 3 s.
    assert!(listed_at.elapsed() < Duration::from_secs(2), "it said so after {:?} only", listed_at.elapsed());
    let asked = cluster.service(1).replace_node(&Caller::Local, replace("n3", "n4")).await.unwrap();
    assert_eq!((asked.node_id, asked.replaces, asked.state()), (4, 3, NodeState::Voter));

    // Whoever leads meta, and so reconciles, is away for a while at a random moment.
    sleep::<HubEnv>(Duration::from_millis(u64::from(rng.next_u64() as u8) * 4)).await;
    if let Some(leader) = cluster.service(1).shards().meta().leader() {
        cluster.hub.cut(leader);
        sleep::<HubEnv>(Duration::from_millis(1_500)).await;
        cluster.hub.heal(leader);
    }
    until_listed(&cluster.service(1), 3, "n3 has left", |node| node.state() == NodeState::Removed).await;
    until_listed(&cluster.service(2), 4, "n4 votes", |node| node.groups_moved == node.groups).await;
    let count = load.stop().await;
    for node in [0, 1, 3] {
        let node = &cluster.nodes[node];
        eventually("everybody knows the voters", || voters(node) == ids([1, 2, 4])).await;
        eventually("and is ready", || node.not_ready().is_empty()).await;
        assert_eq!(node.store().groups().filter(|group| group.membership().members.len() != 3).count(), 0);
    }
    let there = alice.at(cluster.service(4)).await;
    let bodies = there.subscribe("ops.replace", earliest()).await.unwrap().messages(count as usize).await;
    let bodies: Vec<_> = bodies.into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(bodies, (1..=count).map(|n| n.to_string()).collect::<Vec<_>>(), "on the new node");

    // The old node is back: everybody refuses it, and it says why it serves nothing.
    cluster.hub.heal(NodeId(3));
    let old = &cluster.nodes[2];
    eventually("n3 learns of it", || old.not_ready().join("").contains("removed from the cluster")).await;
    let refused = cluster.service(3).publish(&alice.caller, alice.publish_request(&room, count + 1, &["x"])).await;
    assert!(refused.is_err(), "a removed node served");
    assert!(old.not_ready().join("").contains("node 4 is in its place"), "{:?}", old.not_ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_is_replaced_under_load_while_the_reconciler_dies() {
    for seed in [1, 2] {
        replaced_under_load(seed).await;
    }
}

/// A member that answers nothing is asked for 3 s, and the others meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_hears_that_it_is_taken_in_while_a_member_says_nothing() {
    let mut cluster = Cluster::start(3).await;
    eventually("the nodes hear of each other", || (1..=3).all(|node| cluster.service(node).peers_reachable() == 2))
        .await;
    cluster.hub.mute(NodeId(3));
    let new = cluster.join(4).await;
    eventually("it says what it waits for", || new.not_ready().join("").contains("an admin to take it in")).await;
    let add = AddNodeRequest { request_id: unique(16), node: "n4".into() };
    cluster.service(1).add_node(&Caller::Local, add).await.unwrap();
    let begun = now::<HubEnv>();
    eventually("it is taken in", || !new.not_ready().join("").contains("an admin to take it in")).await;
    assert!(begun.elapsed() < Duration::from_millis(1_500), "it heard of it after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_leads_nothing_until_it_is_undrained() {
    let cluster = Cluster::start(3).await;
    let service = cluster.service(1);
    eventually("the nodes hear of each other", || (1..=3).all(|node| cluster.service(node).peers_reachable() == 2))
        .await;
    let drain = |draining| service.drain_node(&Caller::Local, unique(16), "n2", draining);
    drain(true).await.unwrap();
    let drained = until_listed(&service, 2, "n2 leads nothing", |node| node.groups_moved == node.groups).await;
    assert_eq!((drained.state(), drained.leads), (NodeState::Draining, 0));
    for group in service.shards().ids() {
        let leader = service.shards().group(group).unwrap().leader().unwrap();
        let shards = cluster.service(leader.0 as usize).shards().clone();
        assert!(!shards.ranking(group).unwrap().contains(&NodeId(2)), "group {group} is to be led by it");
        assert_ne!(shards.best_successor(group), Some(NodeId(2)), "group {group} would be handed to it");
    }
    let leads = || (0..3).any(|group| service.shards().group(GroupId(group)).unwrap().leader() == Some(NodeId(2)));
    // What it is given all the same, it hands over again.
    let group = service.shards().group(GroupId(1)).unwrap();
    let leader = cluster.service(group.leader().unwrap().0 as usize);
    let began = now::<HubEnv>();
    while let Err(failure) = leader.shards().transfer(GroupId(1), NodeId(2)).await {
        assert!(began.elapsed() < PATIENCE, "a leader that is new has not heard from all at once: {failure}");
        sleep::<HubEnv>(Duration::from_millis(20)).await;
    }
    eventually("it hands over again", || !leads()).await;
    drain(false).await.unwrap();
    assert_eq!(listed(&service, 2).await.unwrap().state(), NodeState::Voter);
    let again = service.drain_node(&Caller::Local, unique(16), "n9", true).await.unwrap_err();
    assert!(again.code == ErrorCode::Invalid && again.message.contains("n1, n2, n3"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_and_shrinks_but_keeps_a_live_majority() {
    let mut cluster = Cluster::start(3).await;
    let service = cluster.service(1);
    eventually("the nodes hear of each other", || (1..=3).all(|node| cluster.service(node).peers_reachable() == 2))
        .await;
    let add = |node: &str| AddNodeRequest { request_id: unique(16), node: node.into() };
    let refused = service.add_node(&Caller::Local, add("n4")).await.unwrap_err();
    assert!(refused.message.contains("does not ask to be taken in"), "{refused}");
    cluster.join(4).await;
    until_listed(&service, 4, "it asks", |node| node.state() == NodeState::Waiting).await;
    service.add_node(&Caller::Local, add("n4")).await.unwrap();
    until_listed(&service, 4, "it votes", |node| node.groups_moved == node.groups).await;
    assert_eq!(voters(&cluster.nodes[3]), ids([1, 2, 3, 4]));

    service.remove_node(&Caller::Local, remove("n2")).await.unwrap();
    until_listed(&service, 2, "n2 has left", |node| node.state() == NodeState::Removed).await;
    eventually("three vote", || voters(&cluster.nodes[0]) == ids([1, 3, 4])).await;
    eventually("it says so", || cluster.nodes[1].not_ready().join("").contains("was removed")).await;

    cluster.hub.cut(NodeId(4));
    eventually("the loss is noticed", || service.peers_reachable() == 1).await;
    let refused = service.remove_node(&Caller::Local, remove("n3")).await.unwrap_err();
    assert!(refused.code == ErrorCode::Forbidden && refused.message.contains("a majority is needed"), "{refused}");
    service.remove_node(&Caller::Local, remove("n4")).await.unwrap();
    until_listed(&service, 4, "the lost one has left", |node| node.state() == NodeState::Removed).await;
    eventually("two vote", || voters(&cluster.nodes[0]) == ids([1, 3])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_admins_change_nodes() {
    let cluster = Cluster::start(1).await;
    let bob = cluster.user("bob", 1).await;
    let service = cluster.service(1);
    let code = |failure: unibus_broker::service::Failure| failure.code;
    assert_eq!(service.list_nodes(&bob.caller).await.map_err(code).unwrap_err(), ErrorCode::Forbidden);
    assert_eq!(service.remove_node(&bob.caller, remove("n1")).await.map_err(code).unwrap_err(), ErrorCode::Forbidden);
    let last = service.remove_node(&Caller::Local, remove("n1")).await.unwrap_err();
    assert!(last.message.contains("last node"), "{last}");
    let last = service.drain_node(&Caller::Local, unique(16), "1", true).await.unwrap_err();
    assert!(last.message.contains("no other node"), "{last}");
}
