//! Settings that all nodes must have the same: who has others takes no part, and says which.

use std::sync::Arc;

use unibus_broker::node::{Node, NodeConfig};
use unibus_broker::service::Caller;
use unibus_proto::id::NodeId;
use unibus_raft_store::StoreConfig;
use unibus_raft_store::env::timeout;

use crate::cluster::{Cluster, PATIENCE, eventually, node_config, plan, sign_key};
use crate::net::{Hub, HubEnv};

const OTHER: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_does_not_form_with_a_node_that_cuts_segments_elsewhere() {
    let hub = Arc::new(Hub::default());
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut nodes = Vec::new();
    for (id, dir) in (1..).zip(&dirs) {
        let mut config = node_config(NodeId(id), plan(3), dir.path());
        if id == 2 {
            config.store.segment_bytes = OTHER;
        }
        nodes.push(Box::pin(Node::start(hub.env(NodeId(id)), config, sign_key(id))).await.unwrap());
    }
    let says = |node: usize, what: &str| nodes[node - 1].not_ready().join("; ").contains(what);
    let here = StoreConfig::default().segment_bytes;
    eventually("the one that asks says why", || {
        says(1, &format!("settings: store.segment_bytes is {here} on node 1, {OTHER} on node 2"))
    })
    .await;
    eventually("the one that differs says why", || {
        says(2, &format!("settings: store.segment_bytes is {OTHER} on node 2, {here} on node 1"))
    })
    .await;
    assert!(nodes.iter().all(|node| !node.not_ready().is_empty()), "no cluster is formed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cuts_segments_elsewhere_is_not_taken_in_before_that_is_mended() {
    let mut cluster = Cluster::start(3).await;
    let right = StoreConfig::default().segment_bytes;
    let new = cluster.join_with(4, |store| store.segment_bytes = OTHER).await;
    let fault = timeout::<HubEnv, _>(PATIENCE, new.fault()).await.expect("it ends, and says why");
    let refused = format!("store.segment_bytes is {OTHER} on node 4, {right} on node ");
    assert!(fault.contains("asked to be taken in") && fault.contains(&refused), "{fault}");
    let listed = cluster.service(1).list_nodes(&Caller::Local).await.unwrap();
    assert_eq!(listed.nodes.len(), 3, "nobody can take it in");

    // Nothing was written with the wrong one yet.
    new.shutdown().await;
    cluster.nodes.pop();
    drop(new);
    let dir = cluster.dirs().nth(3).expect("its directory");
    let config = NodeConfig { join: true, ..node_config(NodeId(4), plan(4), dir) };
    let again = Box::pin(Node::start(cluster.hub.env(NodeId(4)), config, sign_key(4))).await.unwrap();
    eventually("it asks", || again.not_ready().join("; ").contains("an admin to take it in")).await;
}
