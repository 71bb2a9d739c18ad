//! The network between all endpoints: directed links with delays, cuts and losses, and who is up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::Waker;
use std::time::Duration;

use openraft_rt::AsyncRuntime;
use unibus_proto::id::NodeId;

use crate::sim::executor::Domain;
use crate::sim::net::NodeStream;
use crate::sim::pipe::Breakable;
use crate::sim::random::Random;
use crate::sim::runtime::{Handle, SimRuntime};
use crate::sim::trace::Step;

/// A connection through a cut dies after this silence (QUIC's idle timeout is 10 s, keep-alives of
/// HTTP/2 the like; shorter finds more).
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Something with an address: a node under its node id, a client above [`Endpoint::CLIENTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint(pub u64);

impl Endpoint {
    /// Endpoints from here on are clients.
    pub const CLIENTS: u64 = 1_000;

    /// A node.
    pub fn node(id: NodeId) -> Self {
        Self(id.0)
    }

    /// A client.
    pub fn client(number: u64) -> Self {
        Self(Self::CLIENTS + number)
    }
}

/// How links behave.
#[derive(Clone, Copy, Debug)]
pub struct LinkTiming {
    /// One way, nanoseconds.
    pub delay_nanos: (u64, u64),
    /// Frames per million that take their stream with them.
    pub stream_loss_per_million: u32,
    /// Frames per million that take every stream of the pair with them.
    pub connection_loss_per_million: u32,
}

impl Default for LinkTiming {
    fn default() -> Self {
        Self { delay_nanos: (50_000, 500_000), stream_loss_per_million: 0, connection_loss_per_million: 0 }
    }
}

#[derive(Default)]
struct Node {
    up: bool,
    /// Rises with each death.
    life: u64,
    incoming: VecDeque<(NodeId, NodeStream)>,
    acceptor: Option<Waker>,
}

struct State {
    random: Random,
    timing: LinkTiming,
    nodes: BTreeMap<Endpoint, Node>,
    cuts: BTreeMap<(Endpoint, Endpoint), u64>,
    next_cut: u64,
    pipes: Vec<(Endpoint, Endpoint, Weak<dyn Breakable>)>,
    registered: usize,
}

/// The network.
pub struct Hub {
    state: Mutex<State>,
}

impl Hub {
    /// A network without endpoints.
    pub fn new(seed: u64) -> Arc<Self> {
        let state = State {
            random: Random::stream(seed, "net", 0),
            timing: LinkTiming::default(),
            nodes: BTreeMap::new(),
            cuts: BTreeMap::new(),
            next_cut: 0,
            pipes: Vec::new(),
            registered: 0,
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes how links behave.
    pub fn set_timing(&self, timing: LinkTiming) {
        self.lock().timing = timing;
    }

    /// An endpoint comes up.
    pub fn start(&self, endpoint: Endpoint) {
        let mut state = self.lock();
        let node = state.nodes.entry(endpoint).or_default();
        node.up = true;
        node.incoming.clear();
    }

    /// An endpoint dies. Its streams break at once or, as nobody says goodbye for it, after a silence.
    pub fn kill(self: &Arc<Self>, endpoint: Endpoint) {
        let silence = {
            let mut state = self.lock();
            let node = state.nodes.entry(endpoint).or_default();
            node.up = false;
            node.life += 1;
            let incoming = std::mem::take(&mut node.incoming);
            let millis = if state.random.chance(500_000) { 1 } else { state.random.between(1, 3_000) };
            drop(state);
            drop(incoming);
            Duration::from_millis(millis)
        };
        let doomed = self.pipes(|from, to| from == endpoint || to == endpoint);
        let _detached = Handle::current().spawn_in(Domain::HARNESS, async move {
            SimRuntime::sleep(silence).await;
            doomed.iter().filter_map(Weak::upgrade).for_each(|pipe| pipe.break_off("the peer is gone"));
        });
    }

    /// Whether an endpoint is up.
    pub fn is_up(&self, endpoint: Endpoint) -> bool {
        self.lock().nodes.get(&endpoint).is_some_and(|node| node.up)
    }

    /// How often an endpoint died.
    pub fn life(&self, endpoint: Endpoint) -> u64 {
        self.lock().nodes.get(&endpoint).map_or(0, |node| node.life)
    }

    /// Cuts one direction of a link. Frames wait; connections die when the cut lasts.
    pub fn cut(self: &Arc<Self>, from: Endpoint, to: Endpoint) {
        let number = {
            let mut state = self.lock();
            state.next_cut += 1;
            let number = state.next_cut;
            state.cuts.insert((from, to), number);
            number
        };
        let hub = self.clone();
        let _detached = Handle::current().spawn_in(Domain::HARNESS, async move {
            SimRuntime::sleep(IDLE_TIMEOUT).await;
            if hub.lock().cuts.get(&(from, to)) == Some(&number) {
                hub.break_pair(from, to, "idle timeout");
            }
        });
    }

    /// Heals one direction of a link.
    pub fn heal(&self, from: Endpoint, to: Endpoint) {
        self.lock().cuts.remove(&(from, to));
        let waiting = self.pipes(|a, b| (a, b) == (from, to));
        waiting.iter().filter_map(Weak::upgrade).for_each(|pipe| pipe.nudge());
    }

    /// Heals every link.
    pub fn heal_all(&self) {
        let cuts: BTreeSet<_> = self.lock().cuts.keys().copied().collect();
        cuts.into_iter().for_each(|(from, to)| self.heal(from, to));
    }

    /// Whether a direction is cut.
    pub fn is_cut(&self, from: Endpoint, to: Endpoint) -> bool {
        self.lock().cuts.contains_key(&(from, to))
    }

    /// Breaks every stream between two endpoints.
    pub fn break_pair(&self, a: Endpoint, b: Endpoint, why: &str) {
        let between = self.pipes(|from, to| (from, to) == (a, b) || (from, to) == (b, a));
        between.iter().filter_map(Weak::upgrade).for_each(|pipe| pipe.break_off(why));
    }

    fn pipes(&self, wanted: impl Fn(Endpoint, Endpoint) -> bool) -> Vec<Weak<dyn Breakable>> {
        let state = self.lock();
        let found = state.pipes.iter().filter(|(from, to, _)| wanted(*from, *to));
        found.map(|(_, _, pipe)| pipe.clone()).collect()
    }

    pub(crate) fn register(&self, from: Endpoint, to: Endpoint, pipe: Weak<dyn Breakable>) {
        let mut state = self.lock();
        state.registered += 1;
        if state.registered.is_multiple_of(256) {
            state.pipes.retain(|(_, _, pipe)| pipe.strong_count() > 0);
        }
        state.pipes.push((from, to, pipe));
    }

    /// The delay of the next frame of a link; `None` when the frame is lost, and its stream with it.
    pub(crate) fn draw_delay(&self, from: Endpoint, to: Endpoint, size: usize) -> Option<Duration> {
        Handle::current().step(Step::Frame, from.0 << 32 | to.0, size as u64);
        let mut state = self.lock();
        let timing = state.timing;
        if state.random.chance(timing.connection_loss_per_million) {
            drop(state);
            self.break_pair(from, to, "connection lost");
            return None;
        }
        if state.random.chance(timing.stream_loss_per_million) {
            return None;
        }
        let (low, high) = timing.delay_nanos;
        Some(Duration::from_nanos(state.random.between(low, high)))
    }

    pub(crate) fn offer(&self, to: Endpoint, from: NodeId, stream: NodeStream) {
        let acceptor = {
            let mut state = self.lock();
            let node = state.nodes.entry(to).or_default();
            node.incoming.push_back((from, stream));
            node.acceptor.take()
        };
        acceptor.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn poll_accept(&self, at: Endpoint, waker: &Waker) -> Option<(NodeId, NodeStream)> {
        let mut state = self.lock();
        let node = state.nodes.entry(at).or_default();
        let stream = node.incoming.pop_front();
        if stream.is_none() {
            node.acceptor = Some(waker.clone());
        }
        stream
    }
}
