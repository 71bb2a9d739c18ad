//! What a tool wants to see of the SDK's work behind the calls: failovers, sign-ins, resends.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::Error;

/// A watcher that does not keep up misses events rather than slowing the client.
const QUEUE: usize = 1_024;

/// Something that the SDK did on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// A publisher, a subscription or a call went from one node to another.
    FailedOver {
        /// Address of the node before.
        from: String,
        /// Address of the node now.
        to: String,
        /// What made it.
        why: Error,
    },
    /// A new token was obtained.
    SignedIn {
        /// Address of the node that gave it.
        node: String,
    },
    /// A publisher sent messages again, with the same ids.
    Resent {
        /// How many.
        count: usize,
    },
    /// An attempt failed and is repeated.
    Retrying {
        /// Why it failed.
        why: Error,
        /// The pause before the next attempt.
        after: Duration,
    },
}

/// The watchers of a client.
#[derive(Default)]
pub(crate) struct Events {
    watchers: Mutex<Vec<mpsc::Sender<ClientEvent>>>,
}

impl Events {
    pub fn watch(&self) -> mpsc::Receiver<ClientEvent> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.lock().push(sender);
        receiver
    }

    pub fn emit(&self, event: ClientEvent) {
        tracing::debug!(?event, "client event");
        self.lock()
            .retain(|watcher| !matches!(watcher.try_send(event.clone()), Err(mpsc::error::TrySendError::Closed(_))));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<mpsc::Sender<ClientEvent>>> {
        self.watchers.lock().expect("nobody panics while holding it")
    }
}
