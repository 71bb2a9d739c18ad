//! One direction of a stream: items arrive whole, in order, after the link's delay, or the pipe breaks.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use openraft_rt::Instant;

use crate::sim::hub::{Endpoint, Hub};
use crate::sim::timer::{SimInstant, SimSleep};

/// Bytes on their way after which a sender waits.
const WINDOW_BYTES: usize = 1 << 20;

struct State<T> {
    queue: VecDeque<(SimInstant, usize, T)>,
    bytes: usize,
    last_arrival: Option<SimInstant>,
    finished: bool,
    broken: Option<String>,
    receiver: Option<Waker>,
    sender: Option<Waker>,
}

struct Pipe<T> {
    state: Mutex<State<T>>,
}

impl<T> Pipe<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wake(&self) {
        let wakers = {
            let mut state = self.lock();
            [state.receiver.take(), state.sender.take()]
        };
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// What the hub does to pipes of any item.
pub(crate) trait Breakable: Send + Sync {
    /// Ends the pipe; what is on its way is lost.
    fn break_off(&self, why: &str);
    /// Has both ends look again.
    fn nudge(&self);
}

impl<T: Send> Breakable for Pipe<T> {
    fn break_off(&self, why: &str) {
        let lost = {
            let mut state = self.lock();
            if state.finished && state.queue.is_empty() {
                return;
            }
            state.broken.get_or_insert_with(|| why.to_string());
            state.bytes = 0;
            std::mem::take(&mut state.queue)
        };
        // Outside the lock: items may own streams.
        drop(lost);
        self.wake();
    }

    fn nudge(&self) {
        self.wake();
    }
}

/// Opens a pipe between two live endpoints.
pub(crate) fn pipe<T: Send + 'static>(hub: &Arc<Hub>, from: Endpoint, to: Endpoint) -> (PipeTx<T>, PipeRx<T>) {
    let state = State {
        queue: VecDeque::new(),
        bytes: 0,
        last_arrival: None,
        finished: false,
        broken: None,
        receiver: None,
        sender: None,
    };
    let pipe = Arc::new(Pipe { state: Mutex::new(state) });
    let breakable: Arc<dyn Breakable> = pipe.clone();
    hub.register(from, to, Arc::downgrade(&breakable));
    let end = || End { hub: hub.clone(), from, to, born: (hub.life(from), hub.life(to)) };
    (PipeTx { pipe: pipe.clone(), end: end() }, PipeRx { pipe, end: end(), sleep: None })
}

struct End {
    hub: Arc<Hub>,
    from: Endpoint,
    to: Endpoint,
    born: (u64, u64),
}

/// The sending end. Dropped without [`finish`](Self::finish), it breaks the pipe.
pub(crate) struct PipeTx<T: Send> {
    pipe: Arc<Pipe<T>>,
    end: End,
}

impl<T: Send> PipeTx<T> {
    /// Sends an item of `size` bytes; waits while the window is full.
    pub async fn send(&mut self, size: usize, item: T) -> Result<(), String> {
        let mut item = Some(item);
        poll_fn(|context| self.poll_send(size, &mut item, context)).await
    }

    fn poll_send(&mut self, size: usize, item: &mut Option<T>, context: &mut Context<'_>) -> Poll<Result<(), String>> {
        {
            let mut state = self.pipe.lock();
            if let Some(why) = &state.broken {
                return Poll::Ready(Err(why.clone()));
            }
            if state.bytes > WINDOW_BYTES {
                state.sender = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        let End { hub, from, to, .. } = &self.end;
        let Some(delay) = hub.draw_delay(*from, *to, size) else {
            // The frame's loss took the stream or the whole connection with it.
            let why = self.pipe.lock().broken.clone().unwrap_or_else(|| "stream lost".into());
            self.pipe.break_off(&why);
            return Poll::Ready(Err(why));
        };
        let mut state = self.pipe.lock();
        let arrival = state.last_arrival.map_or(SimInstant::now() + delay, |last| last.max(SimInstant::now() + delay));
        state.last_arrival = Some(arrival);
        state.bytes += size;
        if let Some(item) = item.take() {
            state.queue.push_back((arrival, size, item));
        }
        let receiver = state.receiver.take();
        drop(state);
        receiver.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }

    /// Waits until the pipe is broken or the receiver is gone.
    pub async fn broken(&self) {
        poll_fn(|context| {
            let mut state = self.pipe.lock();
            if state.broken.is_some() {
                return Poll::Ready(());
            }
            state.sender = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// No more items follow.
    pub fn finish(&mut self) {
        self.pipe.lock().finished = true;
        self.pipe.wake();
    }
}

impl<T: Send> Drop for PipeTx<T> {
    fn drop(&mut self) {
        let finished = self.pipe.lock().finished;
        // A process that died says nothing: its peers find out when the hub tells them.
        if !finished && self.end.hub.life(self.end.from) == self.end.born.0 {
            self.pipe.break_off("the sender reset the stream");
        }
    }
}

/// The receiving end.
pub(crate) struct PipeRx<T: Send> {
    pipe: Arc<Pipe<T>>,
    end: End,
    sleep: Option<(SimInstant, SimSleep)>,
}

impl<T: Send> PipeRx<T> {
    /// The next item; `None` after the last.
    pub async fn recv(&mut self) -> Option<Result<T, String>> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// The next item; `None` after the last.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<T, String>>> {
        loop {
            let mut state = self.pipe.lock();
            if let Some(why) = &state.broken {
                return Poll::Ready(Some(Err(why.clone())));
            }
            state.receiver = Some(context.waker().clone());
            let Some((arrival, ..)) = state.queue.front() else {
                return if state.finished { Poll::Ready(None) } else { Poll::Pending };
            };
            let arrival = *arrival;
            if self.end.hub.is_cut(self.end.from, self.end.to) {
                return Poll::Pending;
            }
            if SimInstant::now() >= arrival
                && let Some((_, size, item)) = state.queue.pop_front()
            {
                state.bytes = state.bytes.saturating_sub(size);
                let sender = state.sender.take();
                drop(state);
                sender.into_iter().for_each(Waker::wake);
                return Poll::Ready(Some(Ok(item)));
            }
            drop(state);
            if self.sleep.as_ref().is_none_or(|(until, _)| *until != arrival) {
                self.sleep = Some((arrival, SimSleep::until(arrival)));
            }
            if let Some((_, sleep)) = &mut self.sleep
                && Pin::new(sleep).poll(context).is_pending()
            {
                return Poll::Pending;
            }
        }
    }
}

impl<T: Send> Drop for PipeRx<T> {
    fn drop(&mut self) {
        if self.end.hub.life(self.end.to) == self.end.born.1 {
            self.pipe.break_off("the receiver closed the stream");
        }
    }
}
