//! Subscribers that count what they receive.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use unibus_client::{Client, Item, Received, Start, SubscribeOptions, Subscription, TokioPlatform};
use unibus_proto::subject::SubjectFilter;
use unibus_proto::v1::NodeEndpoint;

use super::another;
use crate::args::Global;
use crate::exit::{Failure, Result};
use crate::session::During;

/// After the last acknowledgement, what is on its way has so long to arrive.
const PATIENCE: Duration = Duration::from_secs(30);
/// Subscribers of one client process that have connections of their own; more share them, as a node lets
/// a user have only so many.
const CONNECTIONS_PER_NODE: usize = 48;

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
        let clients = (count as usize).min(CONNECTIONS_PER_NODE * nodes.len());
        let clients: Vec<Client> = (0..clients).map(|_| another(global)).collect::<Result<_>>()?;
        let mut subscriptions = Vec::new();
        for (n, (client, node)) in (0..count).zip(clients.iter().zip(nodes.iter().cycle()).cycle()) {
            let options = SubscribeOptions { pin: Some(node.client_address.clone()), ..SubscribeOptions::default() };
            let step = format!("bench, subscriber {} on {}", n + 1, node.name);
            subscriptions.push(client.subscribe(filter, Start::Latest, options).await.during(step)?);
        }
        let used: Vec<_> = nodes.iter().take(count as usize).map(|node| &*node.name).collect();
        let received = subscriptions.iter().map(|_| Arc::default()).collect();
        Ok(Self { subscriptions, received, places: used.join(", ") })
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
