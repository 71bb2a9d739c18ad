//! A watch channel that wakes its waiters in the order in which they began to wait (tokio's spreads
//! them over slots picked by an unseeded random number).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Context, Poll, Waker};

use openraft_rt::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use openraft_rt::{OptionalSend, OptionalSync};

/// The watch channel of the simulation.
pub struct SimWatch;

struct Versioned<T> {
    value: T,
    version: u64,
}

struct Waiters {
    next: u64,
    queue: VecDeque<(u64, Waker)>,
    senders: usize,
    receivers: usize,
}

struct Channel<T> {
    value: RwLock<Versioned<T>>,
    waiters: Mutex<Waiters>,
}

impl<T> Channel<T> {
    fn read(&self) -> RwLockReadGuard<'_, Versioned<T>> {
        self.value.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Versioned<T>> {
        self.value.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn notify(&self) {
        let queue = std::mem::take(&mut self.waiters().queue);
        queue.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

/// Sends values.
pub struct SimWatchSender<T> {
    channel: Arc<Channel<T>>,
}

/// Receives the latest value.
pub struct SimWatchReceiver<T> {
    channel: Arc<Channel<T>>,
    seen: u64,
}

/// The current value, held for reading.
pub struct SimWatchRef<'a, T> {
    guard: RwLockReadGuard<'a, Versioned<T>>,
}

impl<T> Deref for SimWatchRef<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard.value
    }
}

impl Watch for SimWatch {
    type Sender<T: OptionalSend + OptionalSync> = SimWatchSender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = SimWatchReceiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = SimWatchRef<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(value: T) -> (Self::Sender<T>, Self::Receiver<T>) {
        let waiters = Waiters { next: 0, queue: VecDeque::new(), senders: 1, receivers: 1 };
        let channel =
            Arc::new(Channel { value: RwLock::new(Versioned { value, version: 0 }), waiters: Mutex::new(waiters) });
        (SimWatchSender { channel: channel.clone() }, SimWatchReceiver { channel, seen: 0 })
    }
}

impl<T> Clone for SimWatchSender<T> {
    fn clone(&self) -> Self {
        self.channel.waiters().senders += 1;
        Self { channel: self.channel.clone() }
    }
}

impl<T> Drop for SimWatchSender<T> {
    fn drop(&mut self) {
        let last = {
            let mut waiters = self.channel.waiters();
            waiters.senders -= 1;
            waiters.senders == 0
        };
        if last {
            self.channel.notify();
        }
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<SimWatch, T> for SimWatchSender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.channel.waiters().receivers == 0 {
            return Err(SendError(value));
        }
        {
            let mut current = self.channel.write();
            current.value = value;
            current.version += 1;
        }
        self.channel.notify();
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let modified = {
            let mut current = self.channel.write();
            let modified = modify(&mut current.value);
            current.version += u64::from(modified);
            modified
        };
        if modified {
            self.channel.notify();
        }
        modified
    }

    fn borrow_watched(&self) -> SimWatchRef<'_, T> {
        SimWatchRef { guard: self.channel.read() }
    }

    fn subscribe(&self) -> SimWatchReceiver<T> {
        self.channel.waiters().receivers += 1;
        let seen = self.channel.read().version;
        SimWatchReceiver { channel: self.channel.clone(), seen }
    }
}

impl<T> Clone for SimWatchReceiver<T> {
    fn clone(&self) -> Self {
        self.channel.waiters().receivers += 1;
        Self { channel: self.channel.clone(), seen: self.seen }
    }
}

impl<T> Drop for SimWatchReceiver<T> {
    fn drop(&mut self) {
        self.channel.waiters().receivers -= 1;
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<SimWatch, T> for SimWatchReceiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        let mut waiting = Waiting { channel: self.channel.clone(), number: None };
        let seen = &mut self.seen;
        poll_fn(move |context| waiting.poll_changed(seen, context)).await
    }

    fn borrow_watched(&self) -> SimWatchRef<'_, T> {
        SimWatchRef { guard: self.channel.read() }
    }

    fn borrow_and_update(&mut self) -> SimWatchRef<'_, T> {
        let guard = self.channel.read();
        self.seen = guard.version;
        SimWatchRef { guard }
    }
}

/// A place in the queue of waiters, given back on drop.
struct Waiting<T> {
    channel: Arc<Channel<T>>,
    number: Option<u64>,
}

impl<T> Waiting<T> {
    fn poll_changed(&mut self, seen: &mut u64, context: &mut Context<'_>) -> Poll<Result<(), RecvError>> {
        let version = self.channel.read().version;
        if version != *seen {
            *seen = version;
            return Poll::Ready(Ok(()));
        }
        let mut waiters = self.channel.waiters();
        if waiters.senders == 0 {
            return Poll::Ready(Err(RecvError(())));
        }
        let number = *self.number.get_or_insert_with(|| {
            waiters.next += 1;
            waiters.next
        });
        match waiters.queue.iter_mut().find(|(waiting, _)| *waiting == number) {
            Some((_, waker)) => waker.clone_from(context.waker()),
            None => waiters.queue.push_back((number, context.waker().clone())),
        }
        Poll::Pending
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.channel.waiters().queue.retain(|(waiting, _)| *waiting != number);
        }
    }
}
