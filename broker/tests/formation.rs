//! Three real nodes over loopback QUIC and real files form one cluster: in any order, over crashes in
//! between; and a wiped node does not come back.
#![allow(clippy::disallowed_methods)] // Real sockets, time and threads.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::FutureExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use tokio::runtime::Runtime;
use unibus_broker::env::{ProductionEnv, SystemRng};
use unibus_broker::node::{Node, NodeConfig, NodeError};
use unibus_broker::peer::quic::{QuicNet, QuicSettings};
use unibus_broker::plan::{self, ClusterFile, Host, Tuning};
use unibus_broker::resolve::{Resolved, resolve};
use unibus_broker::{config, formation};
use unibus_proto::id::{ClusterId, DirectoryId, NodeId};
use unibus_raft_store::{RaftTiming, StoreConfig};

const NODES: u64 = 3;
const SHARDS: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(30);

/// A plan on disk whose nodes can be started and crashed.
struct Cluster {
    dir: tempfile::TempDir,
}

/// A node in a runtime of its own: dropping it is a crash.
struct Running {
    runtime: Option<Runtime>,
    node: Node<ProductionEnv>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl Cluster {
    fn plan() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let sockets: Vec<UdpSocket> = (0..NODES).map(|_| UdpSocket::bind("127.0.0.1:0").expect("bound")).collect();
        let hosts = sockets.iter().zip(1..).map(|(socket, number)| Host {
            name: format!("n{number}"),
            host: "127.0.0.1".into(),
            peer_port: socket.local_addr().expect("bound").port(),
            client_port: 1,
            admin_port: 1,
            data_dir: "data".into(),
        });
        let file = ClusterFile { shards: SHARDS, node: hosts.collect() };
        plan::write(&file, &dir.path().join("plan"), &SystemRng::default(), &Tuning::default()).expect("planned");
        Self { dir }
    }

    fn folder(&self, node: u64) -> PathBuf {
        self.dir.path().join("plan").join(format!("n{node}"))
    }

    fn resolved(&self, node: u64) -> Resolved {
        let path = self.folder(node).join("node.toml");
        let file = config::load(&path, &[]).expect("loaded");
        resolve(&path, &file).unwrap_or_else(|problems| panic!("{problems:?}"))
    }

    fn start(&self, node: u64) -> Running {
        self.try_start(node).unwrap_or_else(|error| panic!("node {node}: {error}"))
    }

    fn try_start(&self, node: u64) -> Result<Running, NodeError> {
        let resolved = self.resolved(node);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let node = runtime.block_on(async {
            let env = ProductionEnv::new(bind(&resolved).await).expect("threads");
            Node::start(env, node_config(&resolved), resolved.sign_key).await
        });
        match node {
            Ok(node) => Ok(Running { runtime: Some(runtime), node }),
            Err(error) => {
                runtime.shutdown_timeout(Duration::from_secs(5));
                Err(error)
            }
        }
    }
}

/// The port of a node that has just crashed may be held for a moment.
async fn bind(resolved: &Resolved) -> QuicNet {
    let begun = Instant::now();
    loop {
        let others = resolved.plan.nodes.iter().filter(|node| node.id != resolved.node);
        let bound = QuicNet::bind(QuicSettings {
            listen: resolved.listen_peer,
            cluster: resolved.plan.cluster,
            node: resolved.node,
            peers: others.map(|node| (node.id, node.peer_address.clone())).collect(),
            tls: resolved.peer_tls.share(),
            groups: resolved.plan.groups(),
            initial_mtu: None,
        });
        match bound {
            Ok(net) => return net,
            Err(error) if begun.elapsed() > PATIENCE => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

fn node_config(resolved: &Resolved) -> NodeConfig {
    let raft = RaftTiming {
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(200),
        election_max: Duration::from_millis(400),
    };
    NodeConfig {
        node: resolved.node,
        plan: resolved.plan.clone(),
        data_dir: resolved.data_dir.clone(),
        store: StoreConfig { raft, ..StoreConfig::default() },
        version: "test".into(),
    }
}

fn until(what: &str, mut holds: impl FnMut() -> Result<(), String>) {
    let begun = Instant::now();
    loop {
        match holds() {
            Ok(()) => return,
            Err(why) if begun.elapsed() > PATIENCE => panic!("{what}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn until_ready(nodes: &[Running]) {
    until("the nodes are ready", || {
        for running in nodes {
            if let Some(fault) = running.node.fault().now_or_never() {
                panic!("node {}: {fault}", running.node.identity().node);
            }
        }
        let reasons: Vec<_> = nodes.iter().map(|running| running.node.not_ready()).collect();
        if reasons.iter().all(Vec::is_empty) { Ok(()) } else { Err(format!("{reasons:?}")) }
    });
}

/// Cluster, nodes and directories as a node's meta group has them.
type Registry = (ClusterId, Vec<(u64, Vec<u8>)>);

fn registry(running: &Running) -> Registry {
    let meta = running.node.store().group(unibus_proto::id::GroupId::META).expect("meta");
    let nodes = meta.view(|machine| machine.nodes());
    (running.node.identity().cluster, nodes.iter().map(|node| (node.node_id, node.directory_id.to_vec())).collect())
}

fn assert_one_cluster(nodes: &[Running]) {
    let registries: BTreeSet<Registry> = nodes.iter().map(registry).collect();
    assert_eq!(registries.len(), 1, "{registries:?}");
    let (_, registered) = registries.first().expect("one");
    let expected: BTreeSet<_> = nodes
        .iter()
        .map(|running| running.node.identity())
        .map(|identity| (identity.node.0, identity.directory.0.to_vec()))
        .collect();
    assert_eq!(registered.iter().cloned().collect::<BTreeSet<_>>(), expected);
    for running in nodes {
        for group in running.node.store().groups() {
            let members: BTreeSet<(NodeId, DirectoryId)> = group.members().collect();
            assert_eq!(members.len() as u64, NODES, "group {}", group.id());
        }
    }
}

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
