//! The nodes of a simulated cluster: starting, killing, cutting off.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use openraft_rt::AsyncRuntime;
use unibus_broker::node::{Node, NodeConfig};
use unibus_broker::plan::{Plan as Planned, PlanNode};
use unibus_proto::id::{ClusterId, GroupId, NodeId};
use unibus_raft_store::wal::WalConfig;
use unibus_raft_store::{Role, StoreConfig};

use crate::history::Status;
use crate::plan::{Plan, Target};
use crate::sim::clock::SimClock;
use crate::sim::disk::{DiskTiming, SimDisk};
use crate::sim::env::{SimEnv, SimRng};
use crate::sim::executor::Domain;
use crate::sim::grpc::Listeners;
use crate::sim::hub::{Endpoint, Hub};
use crate::sim::net::SimNet;
use crate::sim::random::Random;
use crate::sim::runtime::{Handle, SimRuntime};

const DATA_DIR: &str = "/data";

/// A node's running process.
#[derive(Clone)]
struct Running {
    domain: Domain,
    node: Option<Node<SimEnv>>,
}

struct Slot {
    disk: SimDisk,
    clock: SimClock,
    key: SigningKey,
    /// Itself, when it is no node of the plan and asks to be taken in.
    joins: Option<PlanNode>,
    life: u64,
    /// Syncs that failed in earlier lives.
    bad_syncs: u64,
    running: Option<Running>,
}

struct State {
    slots: BTreeMap<NodeId, Slot>,
    /// Nodes that ended, or refused to start, on their own.
    exits: Vec<String>,
}

impl Slot {
    fn blank(seed: u64, sync_nanos: (u64, u64), id: NodeId, key: SigningKey) -> Self {
        let disk = SimDisk::new(seed, id.0, Path::new(DATA_DIR));
        disk.set_timing(DiskTiming { sync_nanos, ..DiskTiming::default() });
        Self { disk, clock: SimClock::default(), key, joins: None, life: 0, bad_syncs: 0, running: None }
    }
}

fn plan_node(id: NodeId, key: &SigningKey) -> PlanNode {
    PlanNode {
        id,
        name: format!("n{id}"),
        peer_address: format!("n{id}:7401"),
        client_address: client_address(id),
        sign_key: key.verifying_key().to_bytes(),
    }
}

/// A simulated cluster. Clones share it.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    handle: Handle,
    hub: Arc<Hub>,
    listeners: Listeners,
    seed: u64,
    planned: Planned,
    store: StoreConfig,
    sync_nanos: (u64, u64),
    state: Mutex<State>,
}

impl Cluster {
    /// The cluster of a plan; no node runs yet.
    pub fn new(plan: &Plan) -> Self {
        let mut random = Random::stream(plan.seed, "keys", 0);
        let mut draw = || {
            let mut bytes = [0; 32];
            random.fill(&mut bytes);
            bytes
        };
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&draw()[..16]);
        let keys: BTreeMap<_, _> = (1..=plan.nodes).map(|id| (NodeId(id), SigningKey::from_bytes(&draw()))).collect();
        let nodes = keys.iter().map(|(id, key)| plan_node(*id, key));
        let planned = Planned { cluster: ClusterId(cluster), shards: plan.shards, nodes: nodes.collect() };
        let slot = |(id, key): (NodeId, SigningKey)| (id, Slot::blank(plan.seed, plan.sync_nanos, id, key));
        let state = State { slots: keys.into_iter().map(slot).collect(), exits: Vec::new() };
        let hub = Hub::new(plan.seed);
        hub.set_timing(plan.link);
        let inner = Inner {
            handle: Handle::current(),
            hub,
            listeners: Listeners::default(),
            seed: plan.seed,
            planned,
            store: store_config(plan),
            sync_nanos: plan.sync_nanos,
            state: Mutex::new(state),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Lets restarted leaders go on leading without a vote, to show that the judges see it.
    #[must_use]
    pub fn with_leader_restore(self, on: bool) -> Self {
        let Ok(mut inner) = Arc::try_unwrap(self.inner) else {
            unreachable!("the cluster was just made and nobody shares it");
        };
        inner.store.danger_enable_leader_restore = on;
        Self { inner: Arc::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The id of the cluster.
    pub fn cluster_id(&self) -> ClusterId {
        self.inner.planned.cluster
    }

    /// The network.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.inner.hub
    }

    /// Who listens where.
    pub fn listeners(&self) -> &Listeners {
        &self.inner.listeners
    }

    /// The node ids, ascending.
    pub fn ids(&self) -> Vec<NodeId> {
        self.lock().slots.keys().copied().collect()
    }

    /// The groups.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..self.inner.planned.groups()).map(GroupId)
    }

    /// A running node that has opened its directory.
    pub fn node(&self, id: NodeId) -> Option<Node<SimEnv>> {
        self.lock().slots.get(&id)?.running.as_ref()?.node.clone()
    }

    /// A blank node that is not in the plan: started, it asks to be taken in.
    pub fn add_joining(&self, id: NodeId) {
        let Inner { seed, sync_nanos, .. } = &*self.inner;
        let mut key = [0; 32];
        Random::stream(*seed, "joining key", id.0).fill(&mut key);
        let key = SigningKey::from_bytes(&key);
        let joins = Some(plan_node(id, &key));
        self.lock().slots.insert(id, Slot { joins, ..Slot::blank(*seed, *sync_nanos, id, key) });
    }

    /// Forgets a node that is down, with its disk.
    pub fn retire(&self, id: NodeId) {
        self.lock().slots.remove(&id);
    }

    /// A node's disk.
    pub fn disk(&self, id: NodeId) -> Option<SimDisk> {
        self.lock().slots.get(&id).map(|slot| slot.disk.clone())
    }

    /// Moves a node's wall clock.
    pub fn set_clock(&self, id: NodeId, error_ms: i64) {
        if let Some(slot) = self.lock().slots.get(&id) {
            slot.clock.set_error(error_ms);
        }
    }

    /// Makes a node's syncs slow, or normal again.
    pub fn set_slow(&self, id: NodeId, slow: bool) {
        let sync_nanos = if slow { (50_000_000, 200_000_000) } else { self.inner.sync_nanos };
        let timing = DiskTiming { sync_nanos, ..DiskTiming::default() };
        if let Some(disk) = self.disk(id) {
            disk.set_timing(timing);
        }
    }

    /// Nodes that ended or refused to start without being asked to.
    pub fn exits(&self) -> Vec<String> {
        self.lock().exits.clone()
    }

    /// Starts a node that is down.
    pub fn start(&self, id: NodeId) {
        let Inner { handle, hub, seed, .. } = &*self.inner;
        let (env, key, domain, life, joins) = {
            let mut state = self.lock();
            let Some(slot) = state.slots.get_mut(&id).filter(|slot| slot.running.is_none()) else { return };
            slot.life += 1;
            slot.bad_syncs = slot.disk.bad_syncs();
            let label = format!("n{id}#{}", slot.life);
            let domain = handle.open_domain(&label);
            slot.running = Some(Running { domain, node: None });
            let rng = SimRng::stream(*seed, &label, 0);
            let env = SimEnv::new(SimNet::new(hub.clone(), id), slot.disk.clone(), slot.clock.clone(), rng);
            (env, slot.key.clone(), domain, slot.life, slot.joins.clone())
        };
        hub.start(Endpoint::node(id));
        handle.note(&format!("n{id} starts (life {life})"));
        let cluster = self.clone();
        let mut planned = self.inner.planned.clone();
        let join = joins.is_some();
        planned.nodes.extend(joins);
        let config = NodeConfig {
            node: id,
            plan: planned,
            join,
            data_dir: PathBuf::from(DATA_DIR),
            store: self.inner.store.clone(),
            version: "sim".into(),
        };
        let _detached = handle.spawn_in(domain, async move {
            let why = match Node::start(env, config, key).await {
                Ok(node) => {
                    cluster.serve(id, domain, &node);
                    node.fault().await
                }
                Err(error) if cluster.disk(id).is_some_and(|disk| disk.is_filled()) => {
                    // It needs a little space to start; whoever gives it back starts it again.
                    return cluster.ends(id, &format!("does not start on a full disk: {error}"));
                }
                Err(error) => format!("does not start: {error}"),
            };
            cluster.exited(id, &why);
        });
    }

    fn serve(&self, id: NodeId, domain: Domain, node: &Node<SimEnv>) {
        let routes = unibus_broker::api::routes(node.service());
        self.inner.listeners.listen(&client_address(id), id, domain, routes);
        if let Some(running) = self.lock().slots.get_mut(&id).and_then(|slot| slot.running.as_mut()) {
            running.node = Some(node.clone());
        }
    }

    /// A node gave up: in production its process ends.
    fn exited(&self, id: NodeId, why: &str) {
        if !self.explains_exit(id, why) {
            self.lock().exits.push(format!("n{id}: {why}"));
        }
        self.ends(id, why);
    }

    /// A sync of its disk failed in this life, and it says so.
    fn explains_exit(&self, id: NodeId, why: &str) -> bool {
        let state = self.lock();
        state.slots.get(&id).is_some_and(|slot| slot.disk.bad_syncs() > slot.bad_syncs) && why.contains("EIO")
    }

    /// Something is wrong that is none of the nodes' own exits.
    pub fn blame(&self, what: String) {
        self.lock().exits.push(what);
    }

    /// Which life of a node runs, if it does.
    pub fn life(&self, id: NodeId) -> Option<u64> {
        self.lock().slots.get(&id).filter(|slot| slot.running.is_some()).map(|slot| slot.life)
    }

    fn ends(&self, id: NodeId, why: &str) {
        self.inner.handle.note(&format!("n{id} exits: {why}"));
        let cluster = self.clone();
        // Not from within the node's own task.
        let _detached = self.inner.handle.spawn_in(Domain::HARNESS, async move { cluster.kill(id, false) });
    }

    /// Kills a node's process, or cuts its power.
    pub fn kill(&self, id: NodeId, power: bool) {
        let Inner { handle, hub, listeners, .. } = &*self.inner;
        let Some((running, disk)) = ({
            let mut state = self.lock();
            let slot = state.slots.get_mut(&id);
            slot.and_then(|slot| Some((slot.running.take()?, slot.disk.clone())))
        }) else {
            return;
        };
        handle.note(&format!("n{id} {}", if power { "loses power" } else { "is killed" }));
        // The network first: a dead process says goodbye to nobody.
        hub.kill(Endpoint::node(id));
        listeners.close(&client_address(id));
        handle.kill(running.domain);
        drop(running);
        if power { disk.cut_power() } else { disk.release_locks() }
    }

    /// Whether a node's process runs.
    pub fn runs(&self, id: NodeId) -> bool {
        self.lock().slots.get(&id).is_some_and(|slot| slot.running.is_some())
    }

    /// The node that a fault hits now.
    pub fn resolve(&self, target: Target) -> Option<NodeId> {
        match target {
            Target::Node(id) => Some(id),
            Target::Leader(group) => self.leader(GroupId(group)),
        }
    }

    /// Who leads a group, by its own word.
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        let leads = |id: &NodeId| {
            let node = self.node(*id);
            node.and_then(|node| node.store().group(group)).is_some_and(|group| group.is_leader())
        };
        self.ids().into_iter().find(leads)
    }

    /// What every replica says about itself now.
    pub fn statuses(&self) -> Vec<Status> {
        let at = self.inner.handle.now_nanos();
        let running: Vec<_> = {
            let state = self.lock();
            let nodes = state.slots.iter();
            nodes.filter_map(|(id, slot)| Some((*id, slot.life, slot.running.as_ref()?.node.clone()?))).collect()
        };
        let of_node = |(node, life, running): (NodeId, u64, Node<SimEnv>)| {
            let groups = self.groups().filter_map(move |group| running.store().group(group));
            groups.map(move |group| {
                let (status, (hashed, hash)) = (group.status(), group.state_hash_now());
                let state_hash = (hashed, hash.0);
                Status {
                    at,
                    node,
                    life,
                    group: status.group,
                    term: status.term,
                    leads: status.role == Role::Leader && status.leader == Some(node),
                    committed: status.committed_index,
                    applied: status.applied_index,
                    state_hash: Some(state_hash),
                }
            })
        };
        running.into_iter().flat_map(of_node).collect()
    }

    /// The state hash of every replica as of now, by group: (node, applied index, hash).
    pub fn hashes(&self) -> BTreeMap<GroupId, Vec<(NodeId, u64, [u8; 32])>> {
        let mut hashes: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for id in self.ids() {
            let Some(node) = self.node(id) else { continue };
            for group in self.groups().filter_map(|group| node.store().group(group)) {
                let (index, hash) = group.state_hash_now();
                hashes.entry(group.id()).or_default().push((id, index, hash.0));
            }
        }
        hashes
    }

    /// Waits until each node runs and is ready; says what is missing when it takes too long.
    pub async fn wait_ready(&self, patience: Duration) -> Result<(), String> {
        let mut waited = Duration::ZERO;
        loop {
            let waits = |id: NodeId| match self.node(id) {
                Some(node) => (!node.not_ready().is_empty()).then(|| format!("n{id}: {}", node.not_ready().join("; "))),
                None => Some(format!("n{id}: not open")),
            };
            let missing: Vec<_> = self.ids().into_iter().filter_map(waits).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if waited > patience {
                return Err(format!("not ready after {waited:?}: {}", missing.join(", ")));
            }
            let pause = Duration::from_millis(50);
            SimRuntime::sleep(pause).await;
            waited += pause;
        }
    }
}

/// Where a node's clients find it.
pub fn client_address(id: NodeId) -> String {
    format!("n{id}:7400")
}

fn store_config(plan: &Plan) -> StoreConfig {
    StoreConfig {
        wal: WalConfig { file_bytes: plan.wal_file_bytes, spare_files: 1, ..WalConfig::default() },
        snapshot_log_bytes: plan.snapshot_log_bytes,
        segment_bytes: plan.segment_bytes,
        checkpoint_log_bytes: plan.checkpoint_log_bytes,
        overlay_bytes: plan.overlay_bytes,
        space: plan.space,
        timeline_tail_bytes: 256 << 10,
        ..StoreConfig::default()
    }
}
