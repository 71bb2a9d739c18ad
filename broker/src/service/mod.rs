//! What the API does, without gRPC: domain and `unibus.v1` types in, [`Failure`] or answer out.
//!
//! The node composes it as follows (all that `node.rs` needs to know):
//! - `Service::new(ServiceParts { .. })` once the groups are open; it starts its own tasks;
//! - `service.serve_link(peer, duplex).await` for each accepted peer stream whose purpose is `node`,
//!   `service.serve_ephemeral(peer, duplex).await` for each whose purpose is `ephemeral`;
//! - `service.local_status()`, `service.subscriptions()`, `service.peers_reachable()` for the admin port;
//! - `service.hand_over().await`, then `service.stop()` at shutdown;
//! - `api::routes(service)` is the gRPC surface.

mod access;
pub mod auth;
mod challenges;
mod check;
mod cluster;
mod counters;
mod devices;
mod ephemeral;
mod failure;
mod groups;
mod messages;
mod nodes;
mod parts;
mod problems;
mod rooms;
mod saga;
mod sign_in;
mod subscribe;
mod users;
mod verify;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::Semaphore;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::peer::{Exchange, NodeError, node_request::Request, node_response::Response};
use unibus_proto::v1::ConfigValue;
use unibus_raft_store::env::{Clock, Duplex, Env, InstantOf, now, spawn};
use unibus_raft_store::stream::SETTINGS;

use crate::ephemeral::Ephemeral;
use crate::fanout::{self, Registry};
use crate::peer::exchange::Peers;
use crate::peer::link::{self, Answer};
use crate::shard::Shards;
pub use auth::Caller;
use auth::Tokens;
use challenges::Challenges;
pub use counters::{Counted, Counters};
pub use failure::{Failure, Outcome};
pub use parts::{NoVitals, ServiceParts, Vitals};
pub use subscribe::Subscription;

/// The API of a node. Clones share everything.
pub struct Service<E: Env> {
    inner: Arc<Inner<E>>,
}

impl<E: Env> Clone for Service<E> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<E: Env> {
    parts: ServiceParts<E>,
    shards: Shards<E>,
    registry: Arc<Registry>,
    ephemeral: Ephemeral<E>,
    challenges: Mutex<Challenges<E>>,
    tokens: Mutex<Tokens>,
    counters: Arc<Counters>,
    started: InstantOf<E>,
    config: OnceLock<Vec<ConfigValue>>,
    /// A majority of the nodes was heard of once.
    heard: AtomicBool,
    /// Closed when the node stops: whoever waits on it is woken.
    running: Semaphore,
}

impl<E: Env> Service<E> {
    /// Starts the service of a node: links to the peers, fan-out, batches, ticks, reconciler.
    pub fn new(parts: ServiceParts<E>) -> Self {
        let nodes = parts.nodes.iter().map(|node| NodeId(node.node_id));
        let peers = Peers::connect(&parts.env, parts.identity, nodes);
        let (groups, counters) = (parts.store.groups().collect(), Arc::<Counters>::default());
        let shards =
            Shards::start(parts.env.clone(), parts.identity.node, groups, peers.clone(), Arc::clone(&counters));
        let registry = Arc::new(Registry::new(parts.store.waits().clone()));
        fanout::start(&shards, &registry);
        let (env, identity) = (parts.env.clone(), parts.identity);
        let ephemeral = Ephemeral::start(env, identity, shards.clone(), Arc::clone(&registry), Arc::clone(&counters));
        let service = Self {
            inner: Arc::new(Inner {
                parts,
                shards,
                registry,
                ephemeral,
                challenges: Mutex::default(),
                tokens: Mutex::default(),
                counters,
                started: now::<E>(),
                config: OnceLock::new(),
                heard: AtomicBool::new(false),
                running: Semaphore::new(0),
            }),
        };
        // The peers are part of the service: they must not keep it alive.
        let (says, hears) = (Arc::downgrade(&service.inner), service.inner.parts.members.clone());
        let say = move || says.upgrade().map(|inner| Self { inner }.said()).unwrap_or_default();
        let spaces = Arc::downgrade(&service.inner);
        let urgent = move || spaces.upgrade().map_or(0, |inner| inner.parts.store.space().level() as u64);
        peers.exchange_with_all(say, move |said| hears.learn(said.registry.as_ref()), urgent);
        spawn::<E>(service.clone().reconcile());
        service
    }

    /// Serves a `node` stream that a peer opened, until it ends.
    pub async fn serve_link(&self, peer: NodeId, duplex: Duplex<E::Net>) {
        link::serve::<E>(peer, duplex, self.clone()).await;
    }

    /// Serves an `ephemeral` stream that a peer opened, until it ends.
    pub async fn serve_ephemeral(&self, peer: NodeId, duplex: Duplex<E::Net>) {
        self.inner.ephemeral.serve(peer, duplex).await;
    }

    /// This node's groups.
    pub fn shards(&self) -> &Shards<E> {
        &self.inner.shards
    }

    /// What has happened since the node started.
    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// Open subscriptions.
    pub fn subscriptions(&self) -> usize {
        self.inner.registry.count()
    }

    /// Peers that were heard from within the last two seconds.
    pub fn peers_reachable(&self) -> usize {
        self.shards().peers().reachable()
    }

    /// Why this node cannot tell yet how the cluster is: it has just started and has not heard from a
    /// majority of the nodes.
    pub fn not_heard(&self) -> Option<String> {
        if self.inner.heard.load(Ordering::Relaxed) {
            return None;
        }
        let (nodes, heard) = (self.nodes().len(), self.peers_reachable() + 1);
        let is_majority = 2 * heard > nodes;
        self.inner.heard.fetch_or(is_majority, Ordering::Relaxed);
        let others = self.shards().peers().refusals().into_iter().find(|why| why.contains(SETTINGS));
        let remedy = others.unwrap_or_else(|| "start the others".into());
        (!is_majority).then(|| format!("has heard from {heard} of {nodes} nodes, itself included; {remedy}"))
    }

    /// Tells what the node runs with, for `GetConfig`; the first call counts.
    pub fn set_config(&self, values: Vec<ConfigValue>) {
        drop(self.inner.config.set(values));
    }

    /// Hands the leadership of each group that this node leads to the best other node, and takes none from
    /// then on; says what could not be handed over.
    pub async fn hand_over(&self) -> Vec<Failure> {
        let shards = self.shards();
        shards.decline_leadership(Some("it is shutting down".into()));
        let leads = |group| shards.group(group).is_ok_and(|it| it.leader() == Some(shards.node()));
        let transfers = shards.ids().filter(|&group| leads(group)).filter_map(|group| {
            let to = shards.best_successor(group)?;
            Some(async move { (group, shards.transfer(group, to).await) })
        });
        let moved = futures::future::join_all(transfers).await;
        // The spreading may have been faster.
        moved.into_iter().filter(|(group, _)| leads(*group)).filter_map(|(_, moved)| moved.err()).collect()
    }

    /// Refuses new requests with `Draining` and ends all subscriptions, which the clients resume elsewhere.
    pub fn stop(&self) {
        self.inner.running.close();
        self.inner.ephemeral.stop();
    }

    /// Resolves when the node stops.
    pub async fn stopped(&self) {
        drop(self.inner.running.acquire().await);
    }

    /// Refuses when the node is stopping.
    pub fn check_running(&self) -> Outcome<()> {
        if self.inner.running.is_closed() { Err(self.draining()) } else { Ok(()) }
    }

    fn draining(&self) -> Failure {
        let node = self.node();
        let why = self.inner.parts.members.removed().unwrap_or_else(|| format!("node {node} is shutting down"));
        Failure::new(ErrorCode::Draining, format!("{why}; use another node"))
    }

    /// What this node tells its peers each second.
    fn said(&self) -> Exchange {
        let registry = Some(self.inner.parts.members.registry());
        Exchange { now_ms: self.now_ms(), status: Some(self.local_status()), registry }
    }

    fn node(&self) -> NodeId {
        self.inner.parts.identity.node
    }

    fn now_ms(&self) -> u64 {
        self.inner.parts.env.clock().now_ms()
    }
}

impl<E: Env> Answer for Service<E> {
    async fn answer(&self, peer: NodeId, request: Request) -> Response {
        match request {
            Request::Propose(propose) => self.shards().serve_propose(propose).await,
            Request::ReadIndex(read) => self.shards().serve_read_index(read).await,
            Request::LeadOffer(offer) => self.shards().serve_lead_offer(offer),
            Request::Inspect(inspect) => self.serve_inspect(inspect).await,
            Request::Exchange(said) => {
                self.shards().peers().heard_from(peer, said);
                Response::Exchange(self.said())
            }
            Request::MembershipQuery(query) => self.shards().serve_membership_query(GroupId(query.group)),
            Request::MembershipChange(change) => self.shards().serve_membership_change(change).await,
            #[allow(unreachable_patterns, reason = "requests of later versions")]
            _ => Response::Error(NodeError {
                code: ErrorCode::VersionSkew.as_str().into(),
                message: "unknown request; upgrade this node".into(),
                leader: 0,
            }),
        }
    }
}
