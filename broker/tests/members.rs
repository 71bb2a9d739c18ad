//! A lost disk is replaced on real nodes: plan --add, join, replace; crashes of whoever reconciles in
//! between; and neither the old directory nor a wiped one gets in again.
#![allow(clippy::disallowed_methods)] // Real sockets, time and threads.

mod real;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use real::{Cluster, NODES, Running, until, until_ready};
use unibus_broker::env::SystemRng;
use unibus_broker::plan::{self, Host, Tuning};
use unibus_broker::service::Caller;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::v1::{NodeState, ReplaceNodeRequest};

fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").expect("bound").local_addr().expect("bound").port()
}

/// Mints a folder for a new node of the plan.
fn add_to_plan(cluster: &Cluster, name: &str, replaces: &str) {
    let host = Host { peer_port: free_port(), data_dir: "data".into(), ..Host::new(name, "127.0.0.1") };
    let out = cluster.dir.path().join("plan");
    plan::add_host(&host, Some(replaces), &out, &SystemRng::default(), &Tuning::default()).expect("added");
}

fn state_of(running: &Running, node: u64) -> Option<NodeState> {
    let meta = running.node.store().group(GroupId::META).expect("meta");
    let rows = meta.view(|machine| machine.node_rows());
    rows.into_iter().find(|row| row.node.as_ref().is_some_and(|found| found.node_id == node)).map(|row| row.state())
}

fn replace(running: &Running, node: &str, with: &str, request: u8) -> Result<(), String> {
    let request_id = Bytes::from(vec![request; 16]);
    let request = ReplaceNodeRequest { request_id, node: node.into(), with: with.into() };
    let runtime = running.runtime.as_ref().expect("running");
    let service = running.node.service();
    let asked = runtime.block_on(async { service.replace_node(&Caller::Local, request).await });
    asked.map(drop).map_err(|failure| failure.to_string())
}

fn voters(running: &Running) -> BTreeSet<Vec<u64>> {
    let groups = running.node.store().groups();
    groups.map(|group| group.status().voters.iter().map(|voter| voter.0).collect()).collect()
}

/// n3 is lost, n4 takes its place; whoever leads meta crashes at a random moment and is started again.
fn replaced(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let cluster = Cluster::plan();
    let mut nodes: Vec<Running> = (1..=NODES).map(|node| cluster.start(node)).collect();
    until_ready(&nodes);
    drop(nodes.pop());
    let old = cluster.folder(3).join("data");
    std::fs::rename(&old, cluster.dir.path().join("old")).expect("moved away");

    add_to_plan(&cluster, "n4", "n3");
    let new = cluster.start(4);
    until("n4 says what it waits for", || {
        let reasons = new.node.not_ready().join("");
        if reasons.contains("unibusctl node replace OLD --with n4") { Ok(()) } else { Err(reasons) }
    });
    until("the replacement is recorded", || replace(&nodes[0], "n3", "n4", 1));
    std::thread::sleep(Duration::from_millis(rng.random_range(0..400)));
    if let Some(at) = nodes.iter().position(|node| node.node.store().group(GroupId::META).expect("meta").is_leader()) {
        let crashed = nodes.remove(at).node.identity().node.0;
        nodes.push(cluster.start(crashed));
    }
    until("n3 has left", || match state_of(&nodes[0], 3) {
        Some(NodeState::Removed) => Ok(()),
        other => Err(format!("{other:?}, voters {:?}, {:?}", voters(&nodes[0]), new.node.not_ready())),
    });
    nodes.push(new);
    until_ready(&nodes);
    for node in &nodes {
        let expected: BTreeSet<Vec<u64>> = [vec![1, 2, 4]].into();
        until("three vote in every group", || match voters(node) {
            found if found == expected => Ok(()),
            found => Err(format!("{found:?}")),
        });
    }

    // The lost disk turns up again.
    std::fs::rename(cluster.dir.path().join("old"), &old).expect("moved back");
    let back = cluster.start(3);
    until("n3 says why it serves nothing", || {
        let reasons = back.node.not_ready().join("");
        if reasons.contains("was removed from the cluster") { Ok(()) } else { Err(reasons) }
    });
    drop(back);

    // The new node's disk is lost in turn: under its id nothing comes back.
    let lost = nodes.pop().expect("n4");
    assert_eq!(lost.node.identity().node, NodeId(4));
    drop(lost);
    std::fs::remove_dir_all(cluster.folder(4).join("data")).expect("wiped");
    let wiped = cluster.start(4);
    let runtime = wiped.runtime.as_ref().expect("running");
    let fault = runtime.block_on(async { tokio::time::timeout(real::PATIENCE, wiped.node.fault()).await });
    let fault = fault.expect("it gives up");
    assert!(fault.contains("another directory") && fault.contains("node replace"), "{fault}");
    assert!(wiped.node.store().groups().all(|group| !group.is_initialized()), "it took part");
}

#[test]
fn a_lost_disk_is_replaced_while_the_reconciler_crashes() {
    for seed in [1, 2, 3] {
        replaced(seed);
    }
}
