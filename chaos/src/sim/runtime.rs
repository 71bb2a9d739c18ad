//! [`SimRuntime`]: the seeded, deterministic runtime on the traits of `openraft_rt`.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft_rt::{AsyncRuntime, Instant, OptionalSend};
use openraft_rt_tokio::{TokioMpsc, TokioMutex, TokioOneshot};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::sim::executor::{self, Domain, EPOCH_NANOS, Shared, TaskPanic};
use crate::sim::join::{self, SimJoinError, SimJoinHandle};
use crate::sim::timer::{Elapsed, SimInstant, SimSleep, SimTimeout};
use crate::sim::trace::Step;
use crate::sim::watch::SimWatch;

/// One thread, a virtual clock, seeded scheduling, tasks in domains that can be killed.
pub struct SimRuntime {
    shared: Arc<Shared>,
}

impl SimRuntime {
    /// The runtime whose every choice follows from `seed`.
    pub fn with_seed(seed: u64) -> Self {
        Self { shared: Shared::new(seed) }
    }

    /// The handle for the harness.
    pub fn handle(&self) -> Handle {
        Handle { shared: self.shared.clone() }
    }
}

impl fmt::Debug for SimRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimRuntime").finish_non_exhaustive()
    }
}

impl Drop for SimRuntime {
    fn drop(&mut self) {
        self.shared.drop_tasks();
    }
}

/// What the harness does to a runtime, from inside or outside of it.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// The runtime that this code runs in.
    #[track_caller]
    pub fn current() -> Self {
        Self { shared: executor::current() }
    }

    /// Opens a domain; `label` names it and its random stream.
    pub fn open_domain(&self, label: &str) -> Domain {
        self.shared.lock().open_domain(label)
    }

    /// The domain of the running task.
    pub fn current_domain(&self) -> Domain {
        self.shared.lock().current_domain()
    }

    /// Whether the domain was not killed.
    pub fn is_alive(&self, domain: Domain) -> bool {
        self.shared.lock().is_alive(domain)
    }

    /// Starts a task in `domain`.
    pub fn spawn_in<F>(&self, domain: Domain, future: F) -> SimJoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (task, handle) = join::task(future);
        self.shared.spawn(Some(domain), Box::pin(task));
        handle
    }

    /// Drops every task of `domain`; nothing runs in it any more.
    pub fn kill(&self, domain: Domain) {
        self.shared.kill(domain);
    }

    /// Nanoseconds since the run began.
    pub fn now_nanos(&self) -> u64 {
        self.shared.lock().now - EPOCH_NANOS
    }

    /// Adds an event worth reading to the trace.
    pub fn note(&self, text: &str) {
        self.shared.lock().note(text);
    }

    pub(crate) fn step(&self, step: Step, a: u64, b: u64) {
        let mut state = self.shared.lock();
        let now = state.now;
        state.trace.step(now, step, a, b);
    }

    /// The panics of tasks so far.
    pub fn panics(&self) -> Vec<TaskPanic> {
        self.shared.lock().panics.clone()
    }

    /// The hash over all events, and how many there were.
    pub fn digest(&self) -> (u64, u64) {
        self.shared.lock().trace.digest()
    }

    /// The last events worth reading.
    pub fn last_events(&self) -> Vec<String> {
        self.shared.lock().trace.last_events()
    }

    /// Writes every event from here on to a file.
    pub fn trace_to(&self, path: &Path) -> io::Result<()> {
        self.shared.lock().trace.write_to(path)
    }

    /// Writes what the trace has buffered.
    pub fn flush_trace(&self) {
        self.shared.lock().trace.flush();
    }
}

impl AsyncRuntime for SimRuntime {
    type JoinError = SimJoinError;
    type JoinHandle<T: OptionalSend + 'static> = SimJoinHandle<T>;
    type Sleep = SimSleep;
    type Instant = SimInstant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = SimTimeout<T>;
    type ThreadLocalRng = SmallRng;
    // Tokio's mpsc, oneshot and mutex need no tokio runtime and wake in order; its watch does not.
    type Mpsc = TokioMpsc;
    type Watch = SimWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    #[track_caller]
    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let (task, handle) = join::task(future);
        executor::current().spawn(None, Box::pin(task));
        handle
    }

    #[track_caller]
    fn sleep(duration: Duration) -> Self::Sleep {
        SimSleep::until(SimInstant::now() + duration)
    }

    #[track_caller]
    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        SimSleep::until(deadline)
    }

    #[track_caller]
    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        SimTimeout::new(future, Self::sleep(duration))
    }

    #[track_caller]
    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        SimTimeout::new(future, Self::sleep_until(deadline))
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        matches!(error, SimJoinError::Panic(_))
    }

    #[track_caller]
    fn thread_rng() -> Self::ThreadLocalRng {
        let seed = executor::current().lock().draw_seed();
        SmallRng::seed_from_u64(seed)
    }

    fn new(_threads: usize) -> Self {
        Self::with_seed(0)
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        executor::block_on(&self.shared, future)
    }

    /// Refused: a thread would end at a time that differs between runs.
    fn spawn_blocking<F, T>(_blocking: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        std::future::ready(Err(io::Error::new(io::ErrorKind::Unsupported, "no blocking work in the simulation")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use openraft_rt::testing::Suite;

    use super::*;

    #[test]
    fn passes_openrafts_runtime_suite() {
        Suite::<SimRuntime>::test_all();
    }

    /// Ten tasks that draw, sleep and log, as one seed orders them.
    fn interleaving(seed: u64) -> (Vec<(u64, u64)>, (u64, u64)) {
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut runtime = SimRuntime::with_seed(seed);
        let handle = runtime.handle();
        runtime.block_on(async {
            for task in 0..10 {
                let log = log.clone();
                let _detached = SimRuntime::spawn(async move {
                    for _ in 0..5 {
                        let nanos = rand::Rng::next_u64(&mut SimRuntime::thread_rng()) % 3;
                        SimRuntime::sleep(Duration::from_nanos(nanos)).await;
                        log.lock().unwrap().push((task, SimInstant::now().nanos()));
                    }
                });
            }
            SimRuntime::sleep(Duration::from_secs(3_600)).await;
        });
        let log = log.lock().unwrap().clone();
        (log, handle.digest())
    }

    #[test]
    fn a_seed_replays_and_seeds_differ() {
        for seed in 0..20 {
            assert_eq!(interleaving(seed), interleaving(seed), "seed {seed}");
        }
        let orders: std::collections::BTreeSet<_> = (0..20).map(|seed| interleaving(seed).0).collect();
        assert!(orders.len() > 15, "{} orders of 20 seeds", orders.len());
    }

    #[test]
    fn killing_a_domain_drops_its_tasks_and_those_they_spawned() {
        struct Flag(Arc<AtomicBool>);
        impl Drop for Flag {
            fn drop(&mut self) {
                // Drop code of a dead domain may spawn; the task must never run.
                let _never = SimRuntime::spawn(async { panic!("a task of a dead domain ran") });
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let mut runtime = SimRuntime::with_seed(3);
        let handle = runtime.handle();
        let dropped = Arc::new(AtomicBool::new(false));
        let outcome = runtime.block_on({
            let (handle, dropped) = (handle.clone(), dropped.clone());
            async move {
                let node = handle.open_domain("n1#1");
                let child = handle.spawn_in(node, async move {
                    SimRuntime::spawn(async move {
                        let _flag = Flag(dropped);
                        std::future::pending::<()>().await;
                    })
                    .await
                });
                SimRuntime::sleep(Duration::from_secs(1)).await;
                handle.kill(node);
                let outcome = child.await;
                SimRuntime::sleep(Duration::from_secs(1)).await;
                outcome
            }
        });
        assert!(dropped.load(Ordering::SeqCst));
        assert!(matches!(outcome, Err(SimJoinError::Cancelled)));
        assert_eq!(handle.panics(), []);
    }

    #[test]
    fn a_panic_is_kept_with_its_domain() {
        let mut runtime = SimRuntime::with_seed(3);
        let handle = runtime.handle();
        runtime.block_on({
            let handle = handle.clone();
            async move {
                let node = handle.open_domain("n2#1");
                let outcome = handle.spawn_in(node, async { panic!("boom") }).await;
                let outcome: Result<(), _> = outcome;
                assert_eq!(outcome, Err(SimJoinError::Panic("boom".into())));
            }
        });
        assert_eq!(handle.panics(), [TaskPanic { domain: "n2#1".into(), message: "boom".into() }]);
    }
}
