//! Asking nodes beside each other: while nobody answers, another node is asked the same.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

use crate::core::{Core, silent};
use crate::nodes::Node;
use crate::platform::Platform;
use crate::{Error, ErrorCode};

/// The answer to one attempt, or why there is none, with the generation of the token that it carried.
pub(crate) type Attempted<T> = Result<T, (u64, Error)>;

/// The nodes of a race.
struct Asked {
    /// With when each was asked.
    nodes: Vec<(Node, Duration)>,
    /// Those that answered without an end to the race, in the order of their answers.
    failed: Vec<(Node, (u64, Error))>,
}

impl<P: Platform> Core<P> {
    /// Asks `first` and, if `beside`, another node each time that nobody has answered for `hedge`. An answer
    /// for good counts, or the first that says that there is no leader; else the first failure. Says whose
    /// answer it is. `step` says what is asked.
    pub async fn race<'a, T>(
        &'a self,
        first: Node,
        hedge: Duration,
        beside: bool,
        step: &str,
        ask: impl Fn(Node) -> BoxFuture<'a, Attempted<T>>,
    ) -> (Node, Attempted<T>) {
        let one = |node: Node| {
            let answer = ask(node.clone());
            async move { (node, answer.await) }
        };
        let mut running = FuturesUnordered::from_iter([one(first.clone())]);
        let mut asked = Asked { nodes: vec![(first, self.platform.now())], failed: Vec::new() };
        loop {
            let next =
                if beside { self.nodes().pick_beside(&self.platform, |address| asked.has(address)) } else { None };
            tokio::select! {
                biased;
                Some((node, answer)) = running.next() => match answer {
                    Err(failure) if !is_final(&failure.1) => {
                        asked.failed.push((node, failure));
                        if running.is_empty() {
                            let (node, failure) = asked.failed.swap_remove(0);
                            return (node, Err(failure));
                        }
                    }
                    answer => {
                        self.note_outrun(&asked, &node, hedge, step);
                        return (node, answer);
                    }
                },
                () = self.platform.sleep(hedge), if next.is_some() => {
                    if let Some(next) = next {
                        asked.nodes.push((next.clone(), self.platform.now()));
                        running.push(one(next));
                    }
                }
            }
        }
    }

    /// Leaves those alone that failed before `winner` answered, or were silent for long enough to tell.
    fn note_outrun(&self, asked: &Asked, winner: &Node, hedge: Duration, step: &str) {
        let now = self.platform.now();
        for (node, at) in asked.nodes.iter().filter(|(node, _)| node.address != winner.address) {
            match asked.failed.iter().find(|(failed, _)| failed.address == node.address) {
                Some((_, (_, error))) => self.note_failure(&node.address, error),
                None if now - *at >= hedge => self.note_failure(&node.address, &silent(node, step)),
                None => {}
            }
        }
    }
}

impl Asked {
    fn has(&self, address: &Arc<str>) -> bool {
        self.nodes.iter().any(|(node, _)| node.address == *address)
    }
}

/// A node that says that there is no leader looked for one for long; who has one would have answered by now.
fn is_final(error: &Error) -> bool {
    error.code == ErrorCode::NoLeader || !error.is_transient()
}
