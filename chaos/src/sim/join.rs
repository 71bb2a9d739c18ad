//! Handles of spawned tasks. A panic ends the task, not the run, and is kept for the judges.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt;
use tokio::sync::oneshot;

use crate::sim::executor;

/// Why a task gave no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SimJoinError {
    /// It panicked.
    Panic(String),
    /// It was dropped: its domain was killed.
    Cancelled,
}

impl fmt::Display for SimJoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(message) => write!(f, "task panicked: {message}"),
            Self::Cancelled => f.write_str("task cancelled"),
        }
    }
}

impl std::error::Error for SimJoinError {}

/// Resolves to the task's output; dropping it lets the task run on.
pub struct SimJoinHandle<T> {
    receiver: oneshot::Receiver<Result<T, SimJoinError>>,
}

impl<T> Future for SimJoinHandle<T> {
    type Output = Result<T, SimJoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(context).map(|result| result.unwrap_or(Err(SimJoinError::Cancelled)))
    }
}

/// Splits `future` into the task that the executor runs and the handle of its outcome.
pub(crate) fn task<F>(future: F) -> (impl Future<Output = ()>, SimJoinHandle<F::Output>)
where
    F: Future,
{
    let (sender, receiver) = oneshot::channel();
    let task = async move {
        let result = AssertUnwindSafe(future).catch_unwind().await.map_err(|payload| {
            let message = panic_message(payload.as_ref());
            executor::current().lock().note_panic(message.clone());
            SimJoinError::Panic(message)
        });
        // Nobody waits for a detached task.
        let _ = sender.send(result);
    };
    (task, SimJoinHandle { receiver })
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
