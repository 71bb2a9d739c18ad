//! Three nodes in one process, each on a runtime of its own, so that a kill takes everything with it.
#![allow(dead_code)] // Each test binary uses a part of it.

mod net;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use unibus_machine::StoredDelivery;
use unibus_proto::id::{ClusterId, GroupId, NodeId, RoomId};
use unibus_proto::log::{Proposal, proposal::Command};
use unibus_proto::position::Sequence;
use unibus_raft_store::env::{Env, Instant, Net, now, sleep, spawn};
use unibus_raft_store::identity::DirectoryLock;
use unibus_raft_store::store::{Store, StoreConfig};
use unibus_raft_store::stream::accept_stream;
use unibus_raft_store::testing::{FixedClock, FsDisk, SeededRng, TestEnv};
use unibus_raft_store::tree::SledTrees;
use unibus_raft_store::types::Member;
use unibus_raft_store::wal::WalConfig;
use unibus_raft_store::{Committed, Group, Identity, ProposeError, Role};

pub use net::{Hub, MemNet};

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
pub const META: GroupId = GroupId(0);
pub const SHARD: GroupId = GroupId(1);
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct LabEnv {
    net: MemNet,
    rng: SeededRng,
}

impl LabEnv {
    pub fn new(net: MemNet, seed: u64) -> Self {
        Self { net, rng: SeededRng::new(seed) }
    }
}

impl Env for LabEnv {
    type Rt = <TestEnv as Env>::Rt;
    type Net = MemNet;
    type Disk = FsDisk;
    type Trees = SledTrees;
    type Clock = FixedClock;
    type Rng = SeededRng;

    fn net(&self) -> &MemNet {
        &self.net
    }
    fn disk(&self) -> &FsDisk {
        &FsDisk
    }
    fn trees(&self) -> SledTrees {
        SledTrees
    }
    fn clock(&self) -> &FixedClock {
        &FixedClock
    }
    fn rng(&self) -> &SeededRng {
        &self.rng
    }
}

pub struct Node {
    runtime: Option<Runtime>,
    pub store: Store<LabEnv>,
    pub identity: Identity,
    _lock: DirectoryLock<LabEnv>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Node {
    pub fn group(&self, id: GroupId) -> Group<LabEnv> {
        self.store.group(id).expect("the group exists")
    }
}

pub struct Lab {
    dir: TempDir,
    pub hub: Hub,
    starts: u64,
    pub config: StoreConfig,
    pub nodes: BTreeMap<u64, Node>,
}

impl Lab {
    /// Three nodes whose groups are formed.
    pub async fn formed(config: StoreConfig) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut lab = Self { dir, hub: Hub::default(), starts: 0, config, nodes: BTreeMap::new() };
        for node in 1..=3 {
            lab.start(node).await;
        }
        let member = |node: &Node| (node.identity.node, Member { directory: node.identity.directory });
        let members: BTreeMap<_, _> = lab.nodes.values().map(member).collect();
        for group in [META, SHARD] {
            lab.nodes[&1].group(group).initialize(members.clone()).await.expect("initializes");
        }
        lab
    }

    pub fn small() -> StoreConfig {
        let wal = WalConfig { file_bytes: 256 << 10, spare_files: 1, ..WalConfig::default() };
        let defaults = StoreConfig { groups: 2, wal, timeline_tail_bytes: 4 << 10, ..StoreConfig::default() };
        StoreConfig { segment_bytes: 16 << 10, snapshot_log_bytes: u64::MAX, ..defaults }
    }

    pub fn dir_of(&self, node: u64) -> PathBuf {
        self.dir.path().join(format!("n{node}"))
    }

    pub async fn start(&mut self, node: u64) {
        self.try_start(node).await.expect("starts");
    }

    pub async fn try_start(&mut self, node: u64) -> Result<(), String> {
        self.starts += 1;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
        let env = LabEnv::new(self.hub.join(NodeId(node)), self.starts);
        let config = StoreConfig { dir: self.dir_of(node), ..self.config.clone() };
        let opened = runtime.spawn(async move {
            let opened = Identity::open(&env, &config.dir, CLUSTER, NodeId(node)).await;
            let (identity, lock) = opened.map_err(|e| e.to_string())?;
            let store = Store::open(env.clone(), identity, config).await.map_err(|e| e.to_string())?;
            spawn::<LabEnv>(serve(env, identity, store.clone()));
            Ok::<_, String>((identity, lock, store))
        });
        match opened.await.expect("no panic") {
            Ok((identity, lock, store)) => {
                self.nodes.insert(node, Node { runtime: Some(runtime), store, identity, _lock: lock });
                Ok(())
            }
            Err(why) => {
                self.hub.leave(NodeId(node));
                runtime.shutdown_background();
                Err(why)
            }
        }
    }

    /// Ends a node at once; nothing is said to anybody.
    #[allow(clippy::disallowed_methods, reason = "the lab owns a runtime per node, and ends it")]
    pub async fn kill(&mut self, node: u64) {
        self.hub.leave(NodeId(node));
        let mut killed = self.nodes.remove(&node).expect("it runs");
        let runtime = killed.runtime.take().expect("it runs");
        let stop = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5)));
        stop.await.expect("stops");
    }

    pub async fn leader(&self, group: GroupId) -> u64 {
        eventually("a leader", || {
            let leads = |node: &&u64| self.nodes[*node].group(group).status().role == Role::Leader;
            self.nodes.keys().find(leads).copied()
        })
        .await
    }

    /// Proposes to whoever leads until it is committed. Only for commands that may be repeated.
    pub async fn propose(&self, group: GroupId, command: Command) -> Committed {
        let bytes: Bytes = Proposal { at_ms: 1_000, command: Some(command) }.encode_to_vec().into();
        let begun = now::<LabEnv>();
        loop {
            let leader = self.leader(group).await;
            match self.nodes[&leader].group(group).propose(bytes.clone()).await {
                Ok(committed) => return committed,
                Err(ProposeError::Fault(why)) => panic!("fault: {why}"),
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
            sleep::<LabEnv>(Duration::from_millis(10)).await;
        }
    }

    /// All nodes that run have applied `index`; their state hashes are equal.
    pub async fn agree(&self, group: GroupId, index: u64) {
        for (id, node) in &self.nodes {
            let group = node.group(group);
            group
                .wait_applied(index, PATIENCE)
                .await
                .unwrap_or_else(|e| panic!("node {id}: {e}: {:?}", group.status()));
        }
        eventually("equal state hashes", || {
            let hashes: Vec<_> = self.nodes.values().map(|node| node.group(group).state_hash_now()).collect();
            hashes.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
        })
        .await;
    }

    pub async fn timeline(&self, node: u64, room: RoomId) -> Vec<StoredDelivery> {
        let group = self.nodes[&node].group(SHARD);
        let mut all: Vec<StoredDelivery> = vec![];
        loop {
            let from = Sequence(all.len() as u64);
            let more = group.read_timeline(room, from, 10_000, 50).await.expect("the timeline is whole");
            if more.is_empty() {
                return all;
            }
            all.extend(more);
        }
    }
}

async fn serve(env: LabEnv, identity: Identity, store: Store<LabEnv>) {
    while let Ok((peer, duplex)) = env.net().accept().await {
        let store = store.clone();
        spawn::<LabEnv>(async move {
            let known = store.clone();
            let check = move |directory, _: &_| match known.knows_peer(peer, directory) {
                Some(false) => Err("directory: not a member".to_owned()),
                _ => Ok(()),
            };
            if let Ok(accepted) = accept_stream::<LabEnv>(&identity, peer, duplex, check).await {
                store.serve_raft(peer, accepted.purpose, accepted.duplex).await;
            }
        });
    }
}

/// Waits until `look` finds something.
pub async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = now::<LabEnv>();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not come about");
        sleep::<LabEnv>(Duration::from_millis(10)).await;
    }
}
