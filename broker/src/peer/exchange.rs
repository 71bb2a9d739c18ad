//! What this node knows of the others: each second they exchange wall clock and status.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use unibus_proto::id::NodeId;
use unibus_proto::peer::{Exchange, node_request::Request, node_response::Response};
use unibus_proto::v1::NodeStatus;
use unibus_raft_store::Identity;
use unibus_raft_store::env::{Clock, Env, Instant, InstantOf, now, sleep, spawn};

use super::link::{Link, LinkError};

/// Between two exchanges with a peer.
const PERIOD: Duration = Duration::from_secs(1);
/// A peer that was silent for so long counts as unreachable: two exchanges missed.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// The other nodes: the links to them and what they last said. Clones share everything.
pub struct Peers<E: Env> {
    env: E,
    peers: Arc<BTreeMap<NodeId, Peer<E>>>,
}

impl<E: Env> Clone for Peers<E> {
    fn clone(&self) -> Self {
        Self { env: self.env.clone(), peers: Arc::clone(&self.peers) }
    }
}

struct Peer<E: Env> {
    link: Arc<Link>,
    heard: Mutex<Heard<E>>,
}

struct Heard<E: Env> {
    at: Option<InstantOf<E>>,
    round_trip: Duration,
    /// The peer's wall clock minus ours; kept while it is unreachable, for clocks drift slowly.
    clock_offset_ms: Option<i64>,
    status: Option<NodeStatus>,
}

impl<E: Env> Peers<E> {
    /// Opens the links to all nodes but this one.
    pub fn connect(env: &E, identity: Identity, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let others = nodes.into_iter().filter(|&node| node != identity.node);
        let peers = others.map(|node| {
            let (link, run) = Link::new(env.clone(), identity, node);
            spawn::<E>(run);
            let heard = Heard { at: None, round_trip: Duration::ZERO, clock_offset_ms: None, status: None };
            (node, Peer { link, heard: Mutex::new(heard) })
        });
        Self { env: env.clone(), peers: Arc::new(peers.collect()) }
    }

    /// Exchanges clock and status with each peer, for ever, each in a task of its own.
    pub fn exchange_with_all(&self, own_status: impl Fn() -> NodeStatus + Clone + Send + Sync + 'static) {
        for &peer in self.peers.keys() {
            spawn::<E>(self.clone().exchange_with(peer, own_status.clone()));
        }
    }

    async fn exchange_with(self, node: NodeId, own_status: impl Fn() -> NodeStatus + Send + Sync + 'static) {
        let Some(peer) = self.peers.get(&node) else { return };
        loop {
            let sent = now::<E>();
            let request = Exchange { now_ms: self.env.clock().now_ms(), status: Some(own_status()) };
            match peer.link.request::<E>(Request::Exchange(request), SILENCE_MAX).await {
                Ok(Response::Exchange(answer)) => peer.learn(&self.env, answer, sent.elapsed()),
                Err(LinkError::Lost(_)) => peer.link.reset(),
                Ok(_) | Err(LinkError::NotSent(_)) => {}
            }
            // Until it was heard once, nobody can say how the cluster is.
            let period = if peer.heard().at.is_some() { PERIOD } else { PERIOD / 10 };
            sleep::<E>(period.saturating_sub(sent.elapsed()).max(PERIOD / 10)).await;
        }
    }

    /// The link to a peer.
    pub fn link(&self, node: NodeId) -> Option<&Arc<Link>> {
        self.peers.get(&node).map(|peer| &peer.link)
    }

    /// Takes note of what a peer said on the stream that it opened. The round trip of our own exchanges
    /// measures its clock better, so the clock is taken from here only while nothing else is known.
    pub fn heard_from(&self, node: NodeId, said: Exchange) {
        let Some(peer) = self.peers.get(&node) else { return };
        let mut heard = peer.heard();
        heard.at = Some(now::<E>());
        let offset = said.now_ms as i64 - self.env.clock().now_ms() as i64;
        heard.clock_offset_ms.get_or_insert(offset);
        heard.status = said.status;
    }

    /// Whether something was heard from a peer within the last two seconds.
    pub fn is_reachable(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.heard().is_fresh())
    }

    /// How many peers are reachable.
    pub fn reachable(&self) -> usize {
        self.peers.values().filter(|peer| peer.heard().is_fresh()).count()
    }

    /// A peer's wall clock now, given ours, as far as it is known.
    pub fn clock_of(&self, node: NodeId, own_ms: u64) -> Option<u64> {
        let offset = self.peers.get(&node)?.heard().clock_offset_ms?;
        own_ms.checked_add_signed(offset)
    }

    /// What a peer last said of itself, with what this node measured; `None` for a node that is no peer.
    pub fn status_of(&self, node: NodeId) -> Option<NodeStatus> {
        let heard = self.peers.get(&node)?.heard();
        Some(NodeStatus {
            node_id: node.0,
            reachable: heard.is_fresh(),
            round_trip_us: heard.round_trip.as_micros() as u64,
            clock_offset_ms: heard.clock_offset_ms.unwrap_or(0),
            ..heard.status.clone().unwrap_or_default()
        })
    }
}

impl<E: Env> Peer<E> {
    fn learn(&self, env: &E, answer: Exchange, round_trip: Duration) {
        let mut heard = self.heard();
        heard.at = Some(now::<E>());
        heard.round_trip = round_trip;
        let its_now = answer.now_ms as i64 + round_trip.as_millis() as i64 / 2;
        heard.clock_offset_ms = Some(its_now - env.clock().now_ms() as i64);
        heard.status = answer.status;
    }

    fn heard(&self) -> MutexGuard<'_, Heard<E>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Env> Heard<E> {
    fn is_fresh(&self) -> bool {
        self.at.is_some_and(|at| at.elapsed() < SILENCE_MAX)
    }
}
