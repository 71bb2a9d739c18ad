//! The first fatal error of a store. After it the process must exit: what follows cannot be trusted.

use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Where fatal errors are reported and waited for. Clones share it.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    first: Option<String>,
    waiting: Vec<Waker>,
}

impl Faults {
    /// Reports a fatal error; only the first counts.
    pub fn report(&self, error: impl Into<String>) {
        let mut state = self.state();
        if state.first.is_none() {
            let error = error.into();
            tracing::error!(%error, "fatal: this node must stop");
            state.first = Some(error);
            state.waiting.drain(..).for_each(Waker::wake);
        }
    }

    /// The first fatal error, if there was one.
    pub fn first(&self) -> Option<String> {
        self.state().first.clone()
    }

    /// Resolves with the first fatal error.
    pub fn wait(&self) -> impl Future<Output = String> + Send + 'static {
        let faults = self.clone();
        poll_fn(move |context| {
            let mut state = faults.state();
            match &state.first {
                Some(first) => Poll::Ready(first.clone()),
                None => {
                    if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                        state.waiting.push(context.waker().clone());
                    }
                    Poll::Pending
                }
            }
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_one_counts_and_everybody_hears_it() {
        let faults = Faults::default();
        let report = async {
            faults.report("disk");
            faults.report("later");
        };
        let (heard, ()) = futures::join!(faults.wait(), report);
        assert_eq!(heard, "disk");
        assert_eq!(faults.wait().await, "disk");
        assert_eq!(faults.first().as_deref(), Some("disk"));
    }
}
