//! Virtual instants, sleeps and timeouts.

use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use openraft_rt::Instant;

use crate::sim::executor::{self, EPOCH_NANOS, Shared};

/// A point on the virtual clock, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SimInstant(pub(crate) u64);

impl SimInstant {
    /// Nanoseconds since the run began.
    pub fn nanos(self) -> u64 {
        self.0.saturating_sub(EPOCH_NANOS)
    }

    /// Now, or `None` outside a runtime.
    pub fn try_now() -> Option<Self> {
        executor::try_current().map(|shared| Self(shared.lock().now))
    }
}

impl fmt::Debug for SimInstant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ns", self.nanos())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

impl Add<Duration> for SimInstant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for SimInstant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for SimInstant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.checked_sub(nanos(duration)).expect("virtual time begins a day in; nothing looks further back"))
    }
}

impl SubAssign<Duration> for SimInstant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub for SimInstant {
    type Output = Duration;

    fn sub(self, other: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(other.0))
    }
}

impl Instant for SimInstant {
    #[track_caller]
    fn now() -> Self {
        Self(executor::current().lock().now)
    }
}

/// Ends when virtual time reaches its deadline.
pub struct SimSleep {
    deadline: u64,
    number: u64,
    shared: Weak<Shared>,
}

impl SimSleep {
    #[track_caller]
    pub(crate) fn until(deadline: SimInstant) -> Self {
        let shared = executor::current();
        let number = shared.lock().next_timer();
        Self { deadline: deadline.0, number, shared: Arc::downgrade(&shared) }
    }
}

impl Future for SimSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(shared) = self.shared.upgrade() else { return Poll::Pending };
        let mut state = shared.lock();
        if state.now >= self.deadline {
            return Poll::Ready(());
        }
        state.set_timer(self.deadline, self.number, context.waker());
        Poll::Pending
    }
}

impl Drop for SimSleep {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.lock().cancel_timer(self.deadline, self.number);
        }
    }
}

/// The deadline came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("deadline has elapsed")
    }
}

/// A future with a deadline. The future is polled first: ready at the deadline, it wins.
pub struct SimTimeout<T> {
    future: Pin<Box<T>>,
    sleep: SimSleep,
}

impl<T> SimTimeout<T> {
    pub(crate) fn new(future: T, sleep: SimSleep) -> Self {
        Self { future: Box::pin(future), sleep }
    }
}

impl<T: Future> Future for SimTimeout<T> {
    type Output = Result<T::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut self.sleep).poll(context).map(|()| Err(Elapsed))
    }
}
