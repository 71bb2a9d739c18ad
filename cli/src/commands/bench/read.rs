//! Subscribers that count what they receive.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use unibus_client::{Client, Item, Received, Start, SubscribeOptions, Subscription, TokioPlatform};
use unibus_proto::limits::CONNECTIONS_PER_USER_MAX;
use unibus_proto::subject::SubjectFilter;
use unibus_proto::v1::NodeEndpoint;

use crate::args::Global;
use crate::exit::{Failure, Result};
use crate::session::{During, Session};

/// After the last acknowledgement, what is on its way has so long to arrive.
const PATIENCE: Duration = Duration::from_secs(30);
/// Subscribers of one client process that have connections of their own; more share them, as a node lets
/// a user have only so many.
const CONNECTIONS_PER_NODE: usize = 48;
const _: () = assert!(CONNECTIONS_PER_NODE < CONNECTIONS_PER_USER_MAX, "one is left for publishers");

/// A client for each of `count` subscribers, pinned to the node beside it, on the nodes in turn.
pub fn clients<'a>(global: &Global, nodes: &'a [NodeEndpoint], count: u32) -> Result<Vec<(Client, &'a NodeEndpoint)>> {
    deal(nodes, count, |node| {
        let global = Global { node: vec![node.client_address.clone()], ..global.clone() };
        Ok(Session::prepare(&global)?.client)
    })
}

/// The nodes at which `count` subscribers read, for people.
pub fn names(nodes: &[NodeEndpoint], count: u32) -> String {
    nodes.iter().take(count as usize).map(|node| &*node.name).collect::<Vec<_>>().join(", ")
}

/// Deals `count` out to the nodes in turn; those beyond what a node takes share what others have.
fn deal<C: Clone, N>(nodes: &[N], count: u32, connect: impl Fn(&N) -> Result<C>) -> Result<Vec<(C, &N)>> {
    let own = (count as usize).min(CONNECTIONS_PER_NODE * nodes.len());
    let own: Vec<_> = nodes.iter().cycle().take(own).map(|node| Ok((connect(node)?, node))).collect::<Result<_>>()?;
    Ok(own.iter().cycle().take(count as usize).cloned().collect())
}

/// Subscribers on given nodes.
pub struct Readers {
    subscriptions: Vec<Subscription<TokioPlatform>>,
    /// What each has received.
    pub received: Vec<Arc<AtomicU64>>,
    /// Where they read, for people.
    pub places: String,
}

/// What is told about each message: which subscriber got it, the message, when.
pub trait Note: Clone + Send + 'static {
    /// Takes note of a message that arrived at `now`.
    fn note(&mut self, message: &Received, now: Instant);
}

/// Readers that are running.
#[allow(clippy::disallowed_types, reason = "the CLI is not simulated")]
pub struct Reading<N> {
    tasks: JoinSet<Result<(N, bool)>>,
    expected: watch::Sender<u64>,
}

impl Readers {
    /// Opens `count` subscribers, on the nodes in turn, that read what is stored from now on.
    pub async fn open(global: &Global, filter: &SubjectFilter, nodes: &[NodeEndpoint], count: u32) -> Result<Self> {
        let mut subscriptions = Vec::new();
        for (n, (client, node)) in clients(global, nodes, count)?.into_iter().enumerate() {
            let step = format!("bench, subscriber {} on {}", n + 1, node.name);
            let options = SubscribeOptions::default();
            subscriptions.push(client.subscribe(filter, Start::Latest, options).await.during(step)?);
        }
        let received = subscriptions.iter().map(|_| Arc::default()).collect();
        Ok(Self { subscriptions, received, places: names(nodes, count) })
    }

    /// Reads until as many messages have come as [`Reading::finish`] says.
    pub fn start<N: Note>(self, note: &N) -> Reading<N> {
        let (expected, _) = watch::channel(u64::MAX);
        let mut tasks = JoinSet::new();
        for (subscription, received) in self.subscriptions.into_iter().zip(self.received) {
            tasks.spawn(Box::pin(read(subscription, received, expected.subscribe(), note.clone())));
        }
        Reading { tasks, expected }
    }
}

impl<N: Note> Reading<N> {
    /// Waits until each has received so many messages; answers their notes, and how many did not.
    pub async fn finish(mut self, expected: u64) -> Result<(Vec<N>, usize)> {
        self.expected.send_replace(expected);
        let (mut notes, mut missing) = (Vec::new(), 0);
        while let Some(done) = self.tasks.join_next().await {
            let (note, is_whole) = done.map_err(|error| Failure::local(format!("bench: {error}")))??;
            notes.push(note);
            missing += usize::from(!is_whole);
        }
        Ok((notes, missing))
    }
}

async fn read<N: Note>(
    mut subscription: Subscription<TokioPlatform>,
    received: Arc<AtomicU64>,
    mut expected: watch::Receiver<u64>,
    mut note: N,
) -> Result<(N, bool)> {
    let mut count = 0;
    loop {
        let wanted = *expected.borrow_and_update();
        if count >= wanted {
            return Ok((note, true));
        }
        let patience = if wanted == u64::MAX { Duration::MAX } else { PATIENCE };
        let first = tokio::select! {
            biased;
            item = subscription.next() => item,
            changed = expected.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Ok((note, false)),
            },
            () = tokio::time::sleep(patience) => return Ok((note, false)),
        };
        // One look at the clock for all that came together.
        let now = Instant::now();
        let mut next = first;
        while let Some(item) = next {
            if let Item::Message(message) = item.during("bench, subscriber")? {
                note.note(&message, now);
                count += 1;
            }
            next = subscription.received();
        }
        received.store(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn no_node_gets_more_connections_than_it_takes_of_a_user() {
        for (count, connections) in [(1, 1), (5, 5), (144, 144), (500, 144)] {
            let opened = Cell::new(0);
            let connect = |node: &char| {
                opened.set(opened.get() + 1);
                Ok((*node, opened.get()))
            };
            let dealt = deal(&['a', 'b', 'c'], count, connect).unwrap();
            assert_eq!((dealt.len() as u32, opened.get()), (count, connections));
            assert!(dealt.iter().all(|((connected, _), node)| connected == *node), "each on the node of its client");
            let on = |wanted| dealt.iter().filter(|(_, node)| **node == wanted).count() as u32;
            assert!(['a', 'b', 'c'].map(on).iter().all(|&n| n == count / 3 || n == count.div_ceil(3)), "in turn");
        }
    }
}
