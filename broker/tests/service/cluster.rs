//! A cluster in this process, and users who talk to it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use prost::Message;
use tempfile::TempDir;
use unibus_broker::env::SystemClock;
use unibus_broker::node::{Node, NodeConfig};
use unibus_broker::plan::{Plan, PlanNode};
use unibus_broker::service::{Caller, Failure, Service, Subscription};
use unibus_proto::files::Identity;
use unibus_proto::id::{ClusterId, GroupId, NodeId, RoomId};
use unibus_proto::signed::sha256;
use unibus_proto::v1::*;
use unibus_raft_store::StoreConfig;
use unibus_raft_store::env::{Clock, Instant, Rng, now, sleep, timeout};
use unibus_raft_store::testing::SeededRng;

use crate::net::{Hub, HubEnv};

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Whatever a test waits for happens within this time, or never.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub type TestService = Service<HubEnv>;

pub struct Cluster {
    pub hub: Arc<Hub>,
    pub nodes: Vec<Node<HubEnv>>,
    dirs: Vec<TempDir>,
}

pub fn sign_key(node: u64) -> SigningKey {
    SigningKey::from_bytes(&sha256(&node.to_le_bytes()))
}

/// Nodes 1..=nodes and two shards.
pub fn plan(nodes: u64) -> Plan {
    let planned = (1..=nodes).map(|id| PlanNode {
        id: NodeId(id),
        name: format!("n{id}"),
        peer_address: format!("peer{id}:1"),
        client_address: format!("client{id}:1"),
        sign_key: sign_key(id).verifying_key().to_bytes(),
    });
    Plan { cluster: CLUSTER, shards: 2, nodes: planned.collect() }
}

pub fn node_config(node: NodeId, plan: Plan, dir: &Path) -> NodeConfig {
    let mut store = StoreConfig::default();
    store.wal.file_bytes = 4 << 20;
    store.wal.spare_files = 0;
    // Wide enough for a machine that builds something else at the same time.
    store.raft.election_min = Duration::from_millis(600);
    store.raft.election_max = Duration::from_millis(1_000);
    NodeConfig { node, plan, join: false, data_dir: dir.into(), store, version: "test".into() }
}

impl Cluster {
    /// A formed cluster of nodes 1..=nodes with two shards.
    pub async fn start(nodes: u64) -> Self {
        Self::start_with(nodes, |_| {}).await
    }

    /// The same with another store.
    pub async fn start_with(nodes: u64, change: impl Fn(&mut StoreConfig)) -> Self {
        let plan = plan(nodes);
        let hub = Arc::new(Hub::default());
        let (mut running, mut dirs) = (Vec::new(), Vec::new());
        for id in (1..=nodes).map(NodeId) {
            let dir = tempfile::tempdir().unwrap();
            let mut config = node_config(id, plan.clone(), dir.path());
            change(&mut config.store);
            running.push(Box::pin(Node::start(hub.env(id), config, sign_key(id.0))).await.unwrap());
            dirs.push(dir);
        }
        let cluster = Self { hub, nodes: running, dirs };
        let start = now::<HubEnv>();
        while cluster.nodes.iter().any(|node| !node.not_ready().is_empty()) {
            let waits: Vec<_> = cluster.nodes.iter().map(Node::not_ready).collect();
            assert!(start.elapsed() < PATIENCE, "the cluster does not form: {waits:?}");
            sleep::<HubEnv>(Duration::from_millis(10)).await;
        }
        cluster.spread().await;
        cluster
    }

    /// Where the nodes keep their data.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.dirs.iter().map(TempDir::path)
    }

    /// Waits until each group is led by the node that should lead it.
    pub async fn spread(&self) {
        let shards = self.nodes[0].service().shards().clone();
        let led = |group| shards.group(group).unwrap().leader() == Some(shards.ranking(group).unwrap()[0]);
        eventually("leaders are spread", || shards.ids().all(led)).await;
    }

    /// A node that asks to be taken in.
    pub async fn join(&mut self, id: u64) -> Node<HubEnv> {
        self.join_with(id, |_| {}).await
    }

    /// The same with another store.
    pub async fn join_with(&mut self, id: u64, change: impl Fn(&mut StoreConfig)) -> Node<HubEnv> {
        let dir = tempfile::tempdir().unwrap();
        let mut config = NodeConfig { join: true, ..node_config(NodeId(id), plan(id), dir.path()) };
        change(&mut config.store);
        let node = Box::pin(Node::start(self.hub.env(NodeId(id)), config, sign_key(id))).await.unwrap();
        self.nodes.push(node.clone());
        self.dirs.push(dir);
        node
    }

    pub fn service(&self, node: usize) -> TestService {
        self.nodes[node - 1].service()
    }

    /// Adds a user through the local socket and signs him in at a node.
    pub async fn user(&self, name: &str, node: usize) -> User {
        let identity = identity(name);
        self.service(node).add_user(&Caller::Local, add_user(&identity, UserRole::Member)).await.unwrap();
        User::sign_in(self.service(node), identity).await.unwrap()
    }
}

pub fn identity(name: &str) -> Identity {
    let rng = SeededRng::new(u64::from_le_bytes(sha256(name.as_bytes())[..8].try_into().unwrap()));
    let now_ms = SystemClock.now_ms();
    Identity::generate(name.parse().unwrap(), DeviceKind::Service, now_ms, |bytes| rng.fill(bytes))
}

pub fn add_user(identity: &Identity, role: UserRole) -> AddUserRequest {
    AddUserRequest {
        request_id: unique(16),
        handle: identity.handle.to_string(),
        user_key: Bytes::copy_from_slice(identity.user_key.verifying_key().as_bytes()),
        role: role.into(),
        ..AddUserRequest::default()
    }
}

/// Bytes that no other call of this process returned.
pub fn unique(len: usize) -> Bytes {
    static LAST: AtomicU64 = AtomicU64::new(0);
    Bytes::copy_from_slice(&sha256(&LAST.fetch_add(1, Ordering::Relaxed).to_le_bytes())[..len])
}

/// Claims over a fresh challenge.
pub fn claims(service: &TestService, identity: &Identity) -> TokenClaims {
    let challenge = service.challenge().unwrap();
    TokenClaims {
        user: identity.handle.to_string(),
        device_id: identity.device_id().to_bytes(),
        nonce: challenge.nonce,
        issued_ms: challenge.now_ms,
        expires_ms: challenge.now_ms + challenge.token_lifetime_ms_max,
        node_id: challenge.node_id,
    }
}

pub fn signed(identity: &Identity, claims: &TokenClaims) -> Signed {
    Signed::sign(CLUSTER, claims, &[&identity.device_key])
}

/// A request to sign in, with the first device list.
pub fn sign_in_with_list(identity: &Identity, claims: &TokenClaims) -> SignInRequest {
    let (list, bundles) = identity.device_list(CLUSTER);
    SignInRequest { claims: Some(signed(identity, claims)), device_list: Some(list), bundles }
}

/// A signed-in user at a node.
#[derive(Clone)]
pub struct User {
    pub identity: Identity,
    pub service: TestService,
    pub token: Bytes,
    pub caller: Caller,
    producer: Bytes,
    opened_ms: u64,
}

impl User {
    pub async fn sign_in(service: TestService, identity: Identity) -> Result<Self, Failure> {
        let request = sign_in_with_list(&identity, &claims(&service, &identity));
        let token = service.sign_in(request).await?.token.unwrap().encode_to_vec();
        let caller = service.authenticate(&token).await?;
        let (producer, opened_ms) = (unique(8), SystemClock.now_ms());
        Ok(Self { identity, service, token: token.into(), caller, producer, opened_ms })
    }

    /// The same user at another node, with the same token.
    pub async fn at(&self, service: TestService) -> Self {
        let caller = service.authenticate(&self.token).await.unwrap();
        Self { service, caller, ..self.clone() }
    }

    pub fn event(&self, op: RosterOp) -> RosterEvent {
        RosterEvent {
            op: op.into(),
            actor_user: self.identity.handle.to_string(),
            actor_device: self.identity.device_id().to_bytes(),
            actor_list_version: 1,
            created_ms: SystemClock.now_ms(),
            ..RosterEvent::default()
        }
    }

    pub fn sign(&self, event: &RosterEvent) -> (Option<Signed>, Option<ActorProof>) {
        let signed = Signed::sign(CLUSTER, event, &[&self.identity.device_key]);
        (Some(signed), Some(self.identity.actor_proof(CLUSTER)))
    }

    pub fn create_request(&self, subject: &str) -> CreateRoomRequest {
        self.create_request_with(subject, RoomPolicy { persist: true, ..RoomPolicy::default() })
    }

    fn create_request_with(&self, subject: &str, policy: RoomPolicy) -> CreateRoomRequest {
        let create = RosterEvent {
            room_id: unique(16),
            subject_user: self.identity.handle.to_string(),
            subject_key_fingerprint: fingerprint(&self.identity),
            role: RoomRole::Admin.into(),
            policy: Some(policy),
            subject: subject.into(),
            ..self.event(RosterOp::Create)
        };
        let (event, actor) = self.sign(&create);
        CreateRoomRequest { event, actor }
    }

    pub async fn create(&self, subject: &str) -> Room {
        self.create_with(subject, RoomPolicy { persist: true, ..RoomPolicy::default() }).await
    }

    pub async fn create_with(&self, subject: &str, policy: RoomPolicy) -> Room {
        let request = self.create_request_with(subject, policy);
        self.service.create_room(&self.caller, request).await.unwrap().room.unwrap()
    }

    /// Adds (with a role) or removes a member.
    pub async fn change(&self, room: &Room, member: &Identity, role: Option<RoomRole>) -> AppendRosterResponse {
        let newest = self.get(room).await.unwrap();
        let op = if role.is_some() { RosterOp::Add } else { RosterOp::Remove };
        let event = RosterEvent {
            room_id: room.room_id.clone(),
            height: newest.roster_height + 1,
            previous_hash: newest.roster_hash,
            subject_user: member.handle.to_string(),
            subject_key_fingerprint: role.map_or(Bytes::new(), |_| fingerprint(member)),
            role: role.unwrap_or_default().into(),
            ..self.event(op)
        };
        let (event, actor) = self.sign(&event);
        self.service.append_roster(&self.caller, AppendRosterRequest { event, actor }).await.unwrap()
    }

    pub async fn get(&self, room: &Room) -> Result<Room, Failure> {
        let request = GetRoomRequest { room: Some(by_subject(&room.subject)) };
        Ok(self.service.get_room(&self.caller, request).await?.room.unwrap())
    }

    pub fn publish_request(&self, room: &Room, first_number: u64, bodies: &[&str]) -> PublishRequest {
        let message = |body: &&str| OutgoingMessage { body: Bytes::copy_from_slice(body.as_bytes()), headers: vec![] };
        PublishRequest {
            request: first_number,
            room_id: room.room_id.clone(),
            producer_id: self.producer.clone(),
            opened_ms: self.opened_ms,
            first_number,
            messages: bodies.iter().map(message).collect(),
        }
    }

    pub async fn publish(&self, room: &Room, first_number: u64, bodies: &[&str]) -> Result<PublishResponse, Failure> {
        self.service.publish(&self.caller, self.publish_request(room, first_number, bodies)).await
    }

    pub async fn subscribe(&self, filter: &str, from: start_from::From) -> Result<Reader, Failure> {
        let start = Some(StartFrom { from: Some(from) });
        self.subscribe_with(SubscribeRequest { filter: filter.into(), start, ..SubscribeRequest::default() }).await
    }

    pub async fn subscribe_with(&self, request: SubscribeRequest) -> Result<Reader, Failure> {
        Ok(Reader { subscription: self.service.subscribe(&self.caller, request).await?, caught_up: None })
    }
}

pub fn earliest() -> start_from::From {
    start_from::From::Earliest(Earliest {})
}

pub fn latest() -> start_from::From {
    start_from::From::Latest(Latest {})
}

pub fn fingerprint(identity: &Identity) -> Bytes {
    Bytes::copy_from_slice(&sha256(identity.user_key.verifying_key().as_bytes()))
}

pub fn by_subject(subject: &str) -> RoomRef {
    RoomRef { room: Some(room_ref::Room::Subject(subject.into())) }
}

pub fn shard_of(room: &Room) -> GroupId {
    GroupId(room.shard)
}

pub fn id_of(room: &Room) -> RoomId {
    RoomId::from_bytes(&room.room_id).unwrap()
}

/// Reads a subscription, checking on the way that no room has a gap or a duplicate.
pub struct Reader {
    subscription: Subscription<HubEnv>,
    pub caught_up: Option<CaughtUp>,
}

impl Reader {
    /// The next entries of a room; `None` after the end.
    pub async fn batch(&mut self) -> Option<Result<DeliveryBatch, Failure>> {
        loop {
            let next = timeout::<HubEnv, _>(PATIENCE, self.subscription.next()).await.expect("an element in time");
            match next? {
                Ok(SubscribeResponse { item: Some(subscribe_response::Item::Batch(batch)) }) => return Some(Ok(batch)),
                Ok(SubscribeResponse { item: Some(subscribe_response::Item::CaughtUp(caught_up)) }) => {
                    assert!(self.caught_up.replace(caught_up).is_none(), "caught up twice");
                }
                Ok(_) => {}
                Err(failure) => return Some(Err(failure)),
            }
        }
    }

    /// Bodies of messages (of all rooms, with their sequences) until `count` have come.
    pub async fn messages(&mut self, count: usize) -> Vec<(String, u64, String)> {
        let mut found = Vec::new();
        while found.len() < count {
            let batch = self.batch().await.expect("the stream goes on").expect("no failure");
            for delivery in batch.deliveries().unwrap() {
                if let Some(delivery::Entry::Message(message)) = delivery.entry {
                    let body = String::from_utf8(message.body.to_vec()).unwrap();
                    found.push((batch.subject.to_string(), delivery.sequence, body));
                }
            }
        }
        found
    }

    /// Waits until the stream has said that it is caught up; nothing else may come before that.
    pub async fn until_caught_up(&mut self) {
        while self.caught_up.is_none() {
            let next = timeout::<HubEnv, _>(PATIENCE, self.subscription.next()).await.expect("an element in time");
            match next.expect("the stream goes on").expect("no failure").item {
                Some(subscribe_response::Item::CaughtUp(caught_up)) => self.caught_up = Some(caught_up),
                Some(subscribe_response::Item::Heartbeat(_)) => {}
                other => panic!("{other:?} before the stream is caught up"),
            }
        }
    }

    /// Messages of ephemeral rooms, as room, number and body, until `count` have come.
    pub async fn bursts(&mut self, count: usize) -> Vec<(String, u64, String)> {
        let mut found = Vec::new();
        while found.len() < count {
            let next = timeout::<HubEnv, _>(PATIENCE, self.subscription.next()).await.expect("an element in time");
            let item = next.expect("the stream goes on").expect("no failure").item;
            let Some(subscribe_response::Item::Ephemeral(batch)) = item else { continue };
            for delivery in batch.deliveries().unwrap() {
                assert_eq!(delivery.sequence, 0, "it has no place on the timeline");
                let Some(delivery::Entry::Message(message)) = delivery.entry else { panic!("no message") };
                let body = String::from_utf8(message.body.to_vec()).unwrap();
                found.push((batch.subject.to_string(), message.number, body));
            }
        }
        found
    }

    /// All sequences until the stream ends, and how it ended.
    pub async fn drain(&mut self) -> (Vec<u64>, Option<Failure>) {
        let mut sequences = Vec::new();
        loop {
            match self.batch().await {
                Some(Ok(batch)) => {
                    sequences.extend(batch.deliveries().unwrap().iter().map(|delivery| delivery.sequence))
                }
                Some(Err(failure)) => return (sequences, Some(failure)),
                None => return (sequences, None),
            }
        }
    }
}

/// Waits for a condition.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = now::<HubEnv>();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        sleep::<HubEnv>(Duration::from_millis(10)).await;
    }
}
