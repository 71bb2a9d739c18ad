//! The runtime of production: tokio's, with the ticks of all Raft groups at the same moments.
//!
//! Each group ticks at a phase of its own. Nine groups would wake the process, and the peers with their
//! heartbeats, nine times per period; together they wake it once and share a datagram.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use openraft_rt_tokio::{TokioInstant, TokioMpsc, TokioMutex, TokioOneshot, TokioRuntime, TokioWatch};
use unibus_raft_store::env::{AsyncRuntime, Instant};

/// Tokio, with the ticks' moments rounded up as [`align_ticks`] says.
///
/// openraft sleeps until a moment for two reasons: a tick, and to gather notices of finished I/O for a
/// microsecond (its `io_completion_forwarder`). The second must not wait for the grid, nor for a timer of
/// tokio, which takes a millisecond: what a follower answers hangs on it.
#[derive(Debug)]
pub struct NodeRuntime(TokioRuntime);

struct Grid {
    origin: TokioInstant,
    step: Duration,
}

/// A moment so near is no tick's.
const TICK_MIN: Duration = Duration::from_millis(1);

static GRID: OnceLock<Grid> = OnceLock::new();

/// From here on ticks of this process happen at multiples of `period`, their own period. Said once.
pub fn align_ticks(period: Duration) {
    if !period.is_zero() {
        GRID.get_or_init(|| Grid { origin: TokioInstant::now(), step: period });
    }
}

/// When to wake who sleeps until `deadline`.
fn moment(deadline: TokioInstant, now: TokioInstant, grid: &Grid) -> TokioInstant {
    match deadline.saturating_duration_since(now) < TICK_MIN {
        true => grid.origin,
        false => align(deadline, grid),
    }
}

/// The first multiple of the step at or after `at`.
fn align(at: TokioInstant, Grid { origin, step }: &Grid) -> TokioInstant {
    let after = at.saturating_duration_since(*origin);
    let steps = after.as_nanos().div_ceil(step.as_nanos());
    *origin + step.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

impl AsyncRuntime for NodeRuntime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: Send + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + Send> = tokio::time::Timeout<T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = TokioMpsc;
    type Watch = TokioWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: Send + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(GRID.get().map_or(deadline, |grid| moment(deadline, TokioInstant::now(), grid)))
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_of_any_phase_meet_and_none_is_early() {
        let ms = Duration::from_millis;
        let grid = Grid { origin: TokioInstant::now(), step: ms(100) };
        for offset in 0..1_000 {
            let at = grid.origin + ms(offset);
            let aligned = align(at, &grid);
            assert!(aligned >= at && aligned < at + grid.step, "{offset} ms");
            assert_eq!((aligned - grid.origin).as_millis() % 100, 0, "{offset} ms");
        }
    }

    #[tokio::test]
    async fn a_notice_of_finished_io_does_not_wait_for_the_next_tick() {
        let grid = Grid { origin: TokioInstant::now(), step: Duration::from_secs(3_600) };
        for micros in [0, 1, 10] {
            let now = TokioInstant::now();
            let wake = moment(now + Duration::from_micros(micros), now, &grid);
            assert!(wake <= now, "{micros} us: a moment that has passed needs no timer");
            TokioRuntime::sleep_until(wake).await;
        }
        let tick = moment(grid.origin + Duration::from_millis(20), grid.origin, &grid);
        assert_eq!(tick, grid.origin + grid.step);
    }
}
