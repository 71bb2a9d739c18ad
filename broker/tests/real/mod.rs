//! Nodes over loopback QUIC and real files, each in a runtime of its own, so that dropping one is a crash.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::runtime::Runtime;
use unibus_broker::config;
use unibus_broker::env::{ProductionEnv, SystemRng};
use unibus_broker::node::{Node, NodeConfig, NodeError};
use unibus_broker::peer::quic::{QuicNet, QuicSettings};
use unibus_broker::plan::{self, ClusterFile, Host, Tuning};
use unibus_broker::resolve::{Resolved, resolve};
use unibus_proto::id::{ClusterId, DirectoryId, NodeId};
use unibus_raft_store::{RaftTiming, StoreConfig};

pub const NODES: u64 = 3;
pub const SHARDS: u32 = 2;
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A plan on disk whose nodes can be started and crashed.
pub struct Cluster {
    pub dir: tempfile::TempDir,
}

/// A node in a runtime of its own: dropping it is a crash.
pub struct Running {
    pub runtime: Option<Runtime>,
    pub node: Node<ProductionEnv>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl Cluster {
    pub fn plan() -> Self {
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

    pub fn folder(&self, node: u64) -> PathBuf {
        self.dir.path().join("plan").join(format!("n{node}"))
    }

    pub fn resolved(&self, node: u64) -> Resolved {
        let path = self.folder(node).join("node.toml");
        let file = config::load(&path, &[]).expect("loaded");
        resolve(&path, &file).unwrap_or_else(|problems| panic!("{problems:?}"))
    }

    pub fn start(&self, node: u64) -> Running {
        self.try_start(node).unwrap_or_else(|error| panic!("node {node}: {error}"))
    }

    pub fn try_start(&self, node: u64) -> Result<Running, NodeError> {
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

pub fn node_config(resolved: &Resolved) -> NodeConfig {
    let raft = RaftTiming {
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(200),
        election_max: Duration::from_millis(400),
    };
    NodeConfig {
        node: resolved.node,
        plan: resolved.plan.clone(),
        join: resolved.join,
        data_dir: resolved.data_dir.clone(),
        store: StoreConfig { raft, ..StoreConfig::default() },
        version: "test".into(),
    }
}

pub fn until(what: &str, mut holds: impl FnMut() -> Result<(), String>) {
    let begun = Instant::now();
    loop {
        match holds() {
            Ok(()) => return,
            Err(why) if begun.elapsed() > PATIENCE => panic!("{what}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

pub fn until_ready(nodes: &[Running]) {
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
pub type Registry = (ClusterId, Vec<(u64, Vec<u8>)>);

pub fn registry(running: &Running) -> Registry {
    let meta = running.node.store().group(unibus_proto::id::GroupId::META).expect("meta");
    let nodes = meta.view(|machine| machine.nodes());
    (running.node.identity().cluster, nodes.iter().map(|node| (node.node_id, node.directory_id.to_vec())).collect())
}

pub fn assert_one_cluster(nodes: &[Running]) {
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
