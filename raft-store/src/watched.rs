//! A value that can be followed, on the watch channel of the runtime (whose sender may not be shared
//! between threads by itself).

use std::sync::{Mutex, PoisonError};

use crate::env::{AsyncRuntime, Env, Watch, WatchSender};

type Sender<E, T> = <<<E as Env>::Rt as AsyncRuntime>::Watch as Watch>::Sender<T>;
/// Follows a value.
pub(crate) type WatchReceiverOf<E, T> = <<<E as Env>::Rt as AsyncRuntime>::Watch as Watch>::Receiver<T>;

/// A value that can be followed.
pub(crate) struct Watched<E: Env, T: Send + Sync + 'static>(Mutex<Sender<E, T>>);

impl<E: Env, T: Send + Sync + 'static> Watched<E, T> {
    /// Starts with `value`.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(<<E::Rt as AsyncRuntime>::Watch as Watch>::channel(value).0))
    }

    /// Changes the value and wakes everybody who follows it.
    pub fn update(&self, change: impl FnOnce(&mut T)) {
        // Not `send`: that drops the value while nobody listens.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Follows the value.
    pub fn subscribe(&self) -> WatchReceiverOf<E, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).subscribe()
    }
}
