//! How what waits becomes log entries on their way: publishes and commands alike.

use std::collections::VecDeque;
use std::future::Future;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;

/// Queues what comes and lets `take` make entries of it, for ever.
///
/// `take` gets a queue that is not empty and the number of entries on their way; it answers with the next
/// entry's proposal, or with nothing while the queue has to wait for one of them.
pub(super) async fn drive<W, F: Future<Output = ()>>(
    mut waiting: mpsc::UnboundedReceiver<W>,
    mut take: impl FnMut(&mut VecDeque<W>, usize) -> Option<F>,
) {
    let mut queue = VecDeque::new();
    let mut in_flight = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
            next = waiting.recv() => match next {
                Some(next) => queue.push_back(next),
                None => return,
            }
        }
        while let Ok(next) = waiting.try_recv() {
            queue.push_back(next);
        }
        while !queue.is_empty() {
            let Some(proposal) = take(&mut queue, in_flight.len()) else { break };
            in_flight.push(proposal);
        }
    }
}
