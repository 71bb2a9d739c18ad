//! The single-threaded executor behind [`SimRuntime`](crate::sim::runtime::SimRuntime).
//!
//! The runtime traits are static functions, so the executor is reached through a thread-local that
//! `block_on` installs. Each task belongs to a [`Domain`] (a node's incarnation, a client, the
//! harness), inherited at spawn; killing a domain drops its tasks. The next task is a seeded random
//! choice among the runnable ones; when none is runnable, virtual time jumps to the earliest timer.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Wake, Waker};

use crate::sim::random::Random;
use crate::sim::trace::{Step, Trace};

/// Virtual time starts one day in, so that code which subtracts a timeout from now does not underflow.
pub(crate) const EPOCH_NANOS: u64 = 86_400 * 1_000_000_000;

/// Polls at one instant after which a task must be looping.
const POLLS_PER_INSTANT_MAX: u64 = 1_000_000;

const MAIN_TASK: u64 = 0;

/// A set of tasks that lives and dies together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Domain(pub(crate) usize);

impl Domain {
    /// The harness: the main future and what it spawns.
    pub const HARNESS: Self = Self(0);
}

/// A task of a domain that panicked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskPanic {
    /// Whose task.
    pub domain: String,
    /// With what message.
    pub message: String,
}

type TaskFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Task {
    /// `None` while it is being polled.
    future: Option<TaskFuture>,
    domain: Domain,
    queued: bool,
    waker: Waker,
}

struct DomainState {
    label: String,
    alive: bool,
    random: Random,
}

pub(crate) struct State {
    pub(crate) now: u64,
    pub(crate) trace: Trace,
    pub(crate) panics: Vec<TaskPanic>,
    seed: u64,
    current: Domain,
    next_task: u64,
    tasks: BTreeMap<u64, Task>,
    ready: VecDeque<u64>,
    main_queued: bool,
    timers: BTreeMap<(u64, u64), Waker>,
    next_timer: u64,
    domains: Vec<DomainState>,
    schedule: Random,
    /// Among how many of the oldest runnable tasks the next is chosen.
    spread: u64,
    polls_at_instant: u64,
}

/// One runtime's state, shared with its wakers and timers.
pub(crate) struct Shared {
    state: Mutex<State>,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

/// The runtime installed on this thread.
#[track_caller]
pub(crate) fn current() -> Arc<Shared> {
    try_current().expect("simulated time and tasks exist only inside SimRuntime::block_on")
}

pub(crate) fn try_current() -> Option<Arc<Shared>> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// Installs a runtime on this thread until dropped.
struct Enter;

impl Enter {
    fn new(shared: &Arc<Shared>) -> Option<Self> {
        CURRENT
            .try_with(|current| {
                let mut current = current.borrow_mut();
                current.is_none().then(|| *current = Some(shared.clone()))
            })
            .ok()
            .flatten()
            .map(|()| Self)
    }
}

impl Drop for Enter {
    fn drop(&mut self) {
        let _ = CURRENT.try_with(|current| current.borrow_mut().take());
    }
}

struct TaskWaker {
    id: u64,
    shared: Weak<Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(shared) = self.shared.upgrade() {
            shared.lock().wake(self.id);
        }
    }
}

fn waker_for(shared: &Arc<Shared>, id: u64) -> Waker {
    Waker::from(Arc::new(TaskWaker { id, shared: Arc::downgrade(shared) }))
}

impl Shared {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let mut schedule = Random::stream(seed, "sched", 0);
        // A third of the seeds run in order, a third nearly so, a third in any order.
        let spread = [1, 4, u64::MAX][schedule.below(3) as usize];
        let harness = DomainState { label: "harness".into(), alive: true, random: Random::stream(seed, "domain", 0) };
        Arc::new(Self {
            state: Mutex::new(State {
                now: EPOCH_NANOS,
                trace: Trace::default(),
                panics: Vec::new(),
                seed,
                current: Domain::HARNESS,
                next_task: MAIN_TASK + 1,
                tasks: BTreeMap::new(),
                ready: VecDeque::new(),
                main_queued: false,
                timers: BTreeMap::new(),
                next_timer: 0,
                domains: vec![harness],
                schedule,
                spread,
                polls_at_instant: 0,
            }),
        })
    }

    /// Locks the state. No task code runs under this lock, so poison carries no broken invariant.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a task to `domain`, or to the domain of the running task. A task of a dead domain is
    /// dropped at once.
    pub(crate) fn spawn(self: &Arc<Self>, domain: Option<Domain>, future: TaskFuture) {
        let mut state = self.lock();
        let domain = domain.unwrap_or(state.current);
        if !state.domains[domain.0].alive {
            drop(state);
            drop(future);
            return;
        }
        let id = state.next_task;
        state.next_task += 1;
        let task = Task { future: Some(future), domain, queued: false, waker: waker_for(self, id) };
        state.tasks.insert(id, task);
        let now = state.now;
        state.trace.step(now, Step::Spawn, id, domain.0 as u64);
        state.wake(id);
    }

    /// Drops every task of `domain`, also those that are spawned meanwhile.
    pub(crate) fn kill(&self, domain: Domain) {
        loop {
            let doomed: Vec<Task> = {
                let mut state = self.lock();
                state.domains[domain.0].alive = domain == Domain::HARNESS;
                let ids: Vec<u64> =
                    state.tasks.iter().filter(|(_, task)| task.domain == domain).map(|(id, _)| *id).collect();
                ids.iter().filter_map(|id| state.tasks.remove(id)).collect()
            };
            if doomed.is_empty() {
                return;
            }
            let before = std::mem::replace(&mut self.lock().current, domain);
            // Outside the lock: the tasks own timers and channels whose drop needs it.
            drop(doomed);
            self.lock().current = before;
        }
    }

    /// Drops all tasks, with this runtime installed so that drop code may read its clock.
    pub(crate) fn drop_tasks(self: &Arc<Self>) {
        let _enter = Enter::new(self);
        loop {
            let tasks = std::mem::take(&mut self.lock().tasks);
            if tasks.is_empty() {
                return;
            }
            drop(tasks);
        }
    }
}

impl State {
    fn wake(&mut self, id: u64) {
        if id == MAIN_TASK {
            if !std::mem::replace(&mut self.main_queued, true) {
                self.ready.push_back(id);
            }
            return;
        }
        // A waker may outlive its task.
        if let Some(task) = self.tasks.get_mut(&id)
            && !std::mem::replace(&mut task.queued, true)
        {
            self.ready.push_back(id);
        }
    }

    fn next_ready(&mut self) -> Option<u64> {
        let choices = self.spread.min(self.ready.len() as u64);
        let at = if choices > 1 { self.schedule.below(choices) } else { 0 };
        let id = self.ready.remove(at as usize)?;
        self.polls_at_instant += 1;
        assert!(
            self.polls_at_instant <= POLLS_PER_INSTANT_MAX,
            "{POLLS_PER_INSTANT_MAX} polls at one instant: a task is looping without waiting"
        );
        self.trace.step(self.now, Step::Poll, id, 0);
        Some(id)
    }

    /// The domain of the running task.
    pub(crate) fn current_domain(&self) -> Domain {
        self.current
    }

    /// Opens a domain with a random stream of its own.
    pub(crate) fn open_domain(&mut self, label: &str) -> Domain {
        let random = Random::stream(self.seed, label, 0);
        self.domains.push(DomainState { label: label.to_string(), alive: true, random });
        Domain(self.domains.len() - 1)
    }

    pub(crate) fn is_alive(&self, domain: Domain) -> bool {
        self.domains[domain.0].alive
    }

    /// A seed for one `thread_rng` of the running task.
    pub(crate) fn draw_seed(&mut self) -> u64 {
        self.domains[self.current.0].random.next_u64()
    }

    pub(crate) fn note_panic(&mut self, message: String) {
        let domain = self.domains[self.current.0].label.clone();
        self.note(&format!("panic in {domain}: {message}"));
        self.panics.push(TaskPanic { domain, message });
    }

    /// Adds an event worth reading to the trace.
    pub(crate) fn note(&mut self, text: &str) {
        let now = self.now - EPOCH_NANOS;
        self.trace.note(now, text);
    }

    pub(crate) fn next_timer(&mut self) -> u64 {
        self.next_timer += 1;
        self.next_timer
    }

    pub(crate) fn set_timer(&mut self, deadline: u64, number: u64, waker: &Waker) {
        self.timers.insert((deadline, number), waker.clone());
    }

    pub(crate) fn cancel_timer(&mut self, deadline: u64, number: u64) {
        self.timers.remove(&(deadline, number));
    }
}

/// Runs `future` to its end, with everything that was spawned.
pub(crate) fn block_on<F: Future>(shared: &Arc<Shared>, future: F) -> F::Output {
    let _enter = Enter::new(shared).expect("block_on inside block_on");
    let mut future = std::pin::pin!(future);
    let waker = waker_for(shared, MAIN_TASK);
    shared.lock().wake(MAIN_TASK);
    loop {
        let next = shared.lock().next_ready();
        match next {
            Some(MAIN_TASK) => {
                {
                    let mut state = shared.lock();
                    state.main_queued = false;
                    state.current = Domain::HARNESS;
                }
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return output;
                }
            }
            Some(id) => poll_task(shared, id),
            None => assert!(
                fire_timers(shared),
                "deadlock: the main future waits, no task is runnable and no timer is pending"
            ),
        }
    }
}

fn poll_task(shared: &Arc<Shared>, id: u64) {
    let (mut future, waker) = {
        let mut state = shared.lock();
        let Some(task) = state.tasks.get_mut(&id) else { return };
        task.queued = false;
        let Some(future) = task.future.take() else { return };
        let taken = (future, task.waker.clone());
        state.current = task_domain(&state, id);
        taken
    };
    let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
    let leftover = {
        let mut state = shared.lock();
        match (polled, state.tasks.get_mut(&id)) {
            (Poll::Pending, Some(task)) => {
                task.future = Some(future);
                None
            }
            // It ended, or it killed its own domain.
            _ => Some((future, state.tasks.remove(&id))),
        }
    };
    // Outside the lock: what a task owns may need it to be dropped.
    drop(leftover);
    shared.lock().current = Domain::HARNESS;
}

fn task_domain(state: &State, id: u64) -> Domain {
    state.tasks.get(&id).map_or(Domain::HARNESS, |task| task.domain)
}

/// Jumps to the earliest timer and wakes all that are due; false when there is none.
fn fire_timers(shared: &Arc<Shared>) -> bool {
    let due = {
        let mut state = shared.lock();
        let Some((&(deadline, _), _)) = state.timers.first_key_value() else { return false };
        if deadline > state.now {
            state.now = deadline;
            state.polls_at_instant = 0;
        }
        let now = state.now;
        let later = state.timers.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut state.timers, later);
        for (_, number) in due.keys() {
            state.trace.step(now, Step::Fire, *number, 0);
        }
        due
    };
    due.into_values().for_each(Waker::wake);
    true
}
