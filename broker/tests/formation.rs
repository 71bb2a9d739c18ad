//! Three real nodes over loopback QUIC and real files form one cluster: in any order, over crashes in
//! between; and a wiped node does not come back.
#![allow(clippy::disallowed_methods)] // Real sockets, time and threads.

mod real;

use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use real::{Cluster, NODES, PATIENCE, Running, assert_one_cluster, node_config, registry, until, until_ready};
use unibus_broker::env::ProductionEnv;
use unibus_broker::formation;
use unibus_broker::node::{Node, NodeError};
use unibus_broker::peer::quic::{QuicNet, QuicSettings};
use unibus_proto::id::NodeId;

/// Starts the nodes in a random order with random gaps; some crash and are started again.
fn form(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let cluster = Cluster::plan();
    let mut waiting: Vec<u64> = (1..=NODES).collect();
    waiting.shuffle(&mut rng);
    let mut crashes_left = rng.random_range(0..4);
    let mut running: Vec<Running> = Vec::new();
    while let Some(node) = waiting.pop() {
        running.push(cluster.start(node));
        std::thread::sleep(Duration::from_millis(rng.random_range(0..150)));
        if crashes_left > 0 && rng.random_bool(0.5) {
            crashes_left -= 1;
            let crashed = running.swap_remove(rng.random_range(0..running.len()));
            waiting.insert(0, crashed.node.identity().node.0);
        }
    }
    until_ready(&running);
    assert_one_cluster(&running);
}

#[test]
fn exactly_one_cluster_forms_in_any_order_and_over_crashes() {
    for seed in 0..20 {
        form(seed);
    }
}

#[test]
fn a_node_that_waits_says_for_what() {
    let cluster = Cluster::plan();
    let second = cluster.start(2);
    until("node 2 names the initializer", || {
        let reasons = second.node.not_ready().join("");
        if reasons.contains("n1 (node 1") { Ok(()) } else { Err(reasons) }
    });
    let first = cluster.start(1);
    until("node 1 names node 3", || {
        let reasons = first.node.not_ready().join("");
        if reasons.contains("n3 (node 3") && !reasons.contains("n2") { Ok(()) } else { Err(reasons) }
    });
}

fn fault_of(running: &Running) -> String {
    let runtime = running.runtime.as_ref().expect("running");
    let fault = runtime.block_on(async { tokio::time::timeout(PATIENCE, running.node.fault()).await });
    fault.expect("the node gives up")
}

#[test]
fn a_wiped_node_does_not_come_back() {
    for wiped in [1, 3] {
        let cluster = Cluster::plan();
        let mut nodes: Vec<Running> = (1..=NODES).map(|node| cluster.start(node)).collect();
        until_ready(&nodes);
        let index = nodes.iter().position(|running| running.node.identity().node.0 == wiped).expect("there");
        drop(nodes.remove(index));
        wipe(&cluster.folder(wiped).join("data"));
        let back = cluster.start(wiped);
        let fault = fault_of(&back);
        assert!(fault.contains("wiped") && fault.contains("node replace"), "{fault}");
        for running in &nodes {
            let known = running.node.store().knows_peer(NodeId(wiped), back.node.identity().directory);
            assert_eq!(known, Some(false));
        }
        assert!(back.node.store().groups().all(|group| !group.is_initialized()), "it took part");
    }
}

fn wipe(dir: &Path) {
    std::fs::remove_dir_all(dir).expect("wiped");
}

#[test]
fn a_formed_cluster_comes_back_after_all_nodes_crashed() {
    let cluster = Cluster::plan();
    let nodes: Vec<Running> = (1..=NODES).map(|node| cluster.start(node)).collect();
    until_ready(&nodes);
    let before = registry(&nodes[0]);
    drop(nodes);
    let nodes: Vec<Running> = [3, 1, 2].map(|node| cluster.start(node)).into();
    until_ready(&nodes);
    assert_one_cluster(&nodes);
    assert_eq!(registry(&nodes[0]), before);
}

#[test]
fn a_directory_in_use_is_refused() {
    let cluster = Cluster::plan();
    let first = cluster.start(1);
    let resolved = cluster.resolved(1);
    let env = first.runtime.as_ref().expect("running").block_on(async {
        let settings = QuicSettings {
            listen: "127.0.0.1:0".parse().expect("an address"),
            cluster: resolved.plan.cluster,
            node: resolved.node,
            peers: [].into(),
            tls: resolved.peer_tls.share(),
            groups: 1,
            initial_mtu: None,
        };
        let env = ProductionEnv::new(QuicNet::bind(settings).expect("bound")).expect("threads");
        Node::start(env, node_config(&resolved), resolved.sign_key).await
    });
    let error = env.err().expect("refused").to_string();
    assert!(error.contains("in use"), "{error}");
}

#[test]
fn a_directory_of_another_cluster_is_refused() {
    let (first, second) = (Cluster::plan(), Cluster::plan());
    drop(first.start(1));
    std::fs::rename(first.folder(1).join("data"), second.folder(1).join("data")).expect("moved");
    let error = second.try_start(1).err().expect("refused").to_string();
    assert!(error.contains("belongs to cluster"), "{error}");
}

#[test]
fn a_promise_to_another_plan_is_refused() {
    let cluster = Cluster::plan();
    let (second, first) = (cluster.start(2), cluster.start(1));
    until("node 2 has promised", || {
        let reasons = second.node.not_ready().join("");
        if reasons.contains("to form the cluster") { Ok(()) } else { Err(reasons) }
    });
    drop((first, second));
    let path = cluster.folder(2).join("node.toml");
    let text = std::fs::read_to_string(&path).expect("there").replace("name = \"n3\"", "name = \"other\"");
    std::fs::write(&path, text).expect("written");
    let error = cluster.try_start(2).err().expect("refused");
    assert!(matches!(error, NodeError::Formation(formation::FormationError::OtherPlan(_))), "{error}");
}
