//! What this node knows of the others: each second they exchange wall clock and status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
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
    inner: Arc<Inner<E>>,
}

struct Inner<E: Env> {
    env: E,
    identity: Identity,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer<E>>>>,
    talk: OnceLock<Talk>,
}

/// What is exchanged with each peer: what this node says, and what becomes of the answer.
struct Talk {
    say: Box<dyn Fn() -> Exchange + Send + Sync>,
    hear: Box<dyn Fn(&Exchange) + Send + Sync>,
    /// Changes when what is to be said should not wait for the next period.
    urgent: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl<E: Env> Clone for Peers<E> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
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
        let inner = Inner { env: env.clone(), identity, peers: RwLock::default(), talk: OnceLock::new() };
        let peers = Self { inner: Arc::new(inner) };
        peers.set(nodes);
        peers
    }

    /// The nodes to talk to from now on: links to new ones are opened, the links to others end.
    pub fn set(&self, nodes: impl IntoIterator<Item = NodeId>) {
        let nodes: BTreeSet<NodeId> = nodes.into_iter().filter(|&node| node != self.inner.identity.node).collect();
        let mut peers = self.inner.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|node, peer| {
            let stays = nodes.contains(node);
            if !stays {
                peer.link.close();
            }
            stays
        });
        for node in nodes {
            peers.entry(node).or_insert_with(|| self.open(node));
        }
    }

    fn open(&self, node: NodeId) -> Arc<Peer<E>> {
        let (link, run) = Link::new(self.inner.env.clone(), self.inner.identity, node);
        spawn::<E>(run);
        let heard = Heard { at: None, round_trip: Duration::ZERO, clock_offset_ms: None, status: None };
        let peer = Arc::new(Peer { link, heard: Mutex::new(heard) });
        if self.inner.talk.get().is_some() {
            spawn::<E>(self.clone().exchange_with(peer.clone()));
        }
        peer
    }

    /// Exchanges clock and status with each peer, as long as it is one, each in a task of its own.
    pub fn exchange_with_all(
        &self,
        say: impl Fn() -> Exchange + Send + Sync + 'static,
        hear: impl Fn(&Exchange) + Send + Sync + 'static,
        urgent: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let peers = self.inner.peers.read().unwrap_or_else(PoisonError::into_inner);
        if self.inner.talk.set(Talk { say: Box::new(say), hear: Box::new(hear), urgent: Box::new(urgent) }).is_err() {
            return;
        }
        for peer in peers.values() {
            spawn::<E>(self.clone().exchange_with(peer.clone()));
        }
    }

    async fn exchange_with(self, peer: Arc<Peer<E>>) {
        let Some(talk) = self.inner.talk.get() else { return };
        while !peer.link.is_closed() {
            let (sent, said) = (now::<E>(), (talk.urgent)());
            match peer.link.request::<E>(Request::Exchange((talk.say)()), SILENCE_MAX).await {
                Ok(Response::Exchange(answer)) => {
                    (talk.hear)(&answer);
                    peer.learn(&self.inner.env, answer, sent.elapsed());
                }
                Err(LinkError::Lost(_)) => peer.link.reset(),
                Ok(_) | Err(LinkError::NotSent(_)) => {}
            }
            // Until it was heard once, nobody can say how the cluster is.
            let period = if peer.heard().at.is_some() { PERIOD } else { PERIOD / 10 };
            loop {
                sleep::<E>(PERIOD / 10).await;
                if sent.elapsed() >= period || (talk.urgent)() != said {
                    break;
                }
            }
        }
    }

    fn peer(&self, node: NodeId) -> Option<Arc<Peer<E>>> {
        self.inner.peers.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    fn all(&self) -> Vec<Arc<Peer<E>>> {
        self.inner.peers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The peers, by id.
    pub fn ids(&self) -> Vec<NodeId> {
        self.inner.peers.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Why there is no link to those peers to which there is none.
    pub fn refusals(&self) -> Vec<String> {
        self.all().iter().filter_map(|peer| peer.link.down()).collect()
    }

    /// The link to a peer.
    pub fn link(&self, node: NodeId) -> Option<Arc<Link>> {
        self.peer(node).map(|peer| peer.link.clone())
    }

    /// Takes note of what a peer said on the stream that it opened. The round trip of our own exchanges
    /// measures its clock better, so the clock is taken from here only while nothing else is known.
    pub fn heard_from(&self, node: NodeId, said: Exchange) {
        let Some(peer) = self.peer(node) else { return };
        if let Some(talk) = self.inner.talk.get() {
            (talk.hear)(&said);
        }
        let mut heard = peer.heard();
        heard.at = Some(now::<E>());
        let offset = said.now_ms as i64 - self.inner.env.clock().now_ms() as i64;
        heard.clock_offset_ms.get_or_insert(offset);
        heard.status = said.status;
    }

    /// Whether something was heard from a peer within the last two seconds.
    pub fn is_reachable(&self, node: NodeId) -> bool {
        self.peer(node).is_some_and(|peer| peer.heard().is_fresh())
    }

    /// Why a peer takes no new messages as a leader, as it last said.
    pub fn disk_full(&self, node: NodeId) -> Option<String> {
        let peer = self.peer(node)?;
        let heard = peer.heard();
        heard.status.as_ref().map(|status| status.disk_full.clone()).filter(|why| !why.is_empty())
    }

    /// The peers whose disks have no space for entries, as they last said.
    pub fn refusing_entries(&self) -> BTreeSet<NodeId> {
        let peers = self.inner.peers.read().unwrap_or_else(PoisonError::into_inner);
        let refuses = |peer: &Arc<Peer<E>>| peer.heard().status.as_ref().is_some_and(|status| status.refuses_entries);
        peers.iter().filter(|(_, peer)| refuses(peer)).map(|(node, _)| *node).collect()
    }

    /// How many peers are reachable.
    pub fn reachable(&self) -> usize {
        self.all().iter().filter(|peer| peer.heard().is_fresh()).count()
    }

    /// A peer's wall clock now, given ours, as far as it is known.
    pub fn clock_of(&self, node: NodeId, own_ms: u64) -> Option<u64> {
        let offset = self.peer(node)?.heard().clock_offset_ms?;
        own_ms.checked_add_signed(offset)
    }

    /// What a peer last said of itself, with what this node measured; `None` for a node that is no peer.
    pub fn status_of(&self, node: NodeId) -> Option<NodeStatus> {
        let peer = self.peer(node)?;
        let heard = peer.heard();
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
