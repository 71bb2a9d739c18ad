//! Publishers under load: as fast as answers come, or at a steady rate.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use unibus_client::{Publisher, Receipt};

use super::measure::Measured;
use crate::args::STAMP_BYTES;
use crate::exit::{Failure, Result};
use crate::pace::due_after;

/// Messages that are due and not sent yet, per publisher; more wait with the clock, still counted from
/// the moment that they were due.
const DUE_MAX: usize = 1_024;
/// Between two looks at how far the subscribers are.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What is to be sent, when to start measuring and when to stop; shared by all publishers.
pub struct Plan {
    body: Bytes,
    stamped: bool,
    in_flight: usize,
    started: Instant,
    /// What is sent from here on is measured.
    pub measure_from: Instant,
    /// Nothing is sent from here on; none with a count.
    pub ends: Option<Instant>,
    left: Option<AtomicU64>,
    stopped: AtomicBool,
    acked: AtomicU64,
    crowd: Option<Crowd>,
}

/// Subscribers that the publishers wait for.
pub struct Crowd {
    /// How far the publishers may be ahead of the slowest.
    pub ahead: u64,
    /// What each has received.
    pub received: Vec<Arc<AtomicU64>>,
}

impl Plan {
    /// Random bodies of `size` bytes, for `duration` after `warmup`.
    pub fn new(size: usize, in_flight: u32, warmup: Duration, duration: Duration) -> Self {
        let mut body = vec![0; size];
        SystemRandom::new().fill(&mut body).expect("the operating system has randomness");
        let started = Instant::now();
        let measure_from = started + warmup;
        Self {
            body: body.into(),
            stamped: false,
            in_flight: in_flight as usize,
            started,
            measure_from,
            ends: Some(measure_from + duration),
            left: None,
            stopped: AtomicBool::new(false),
            acked: AtomicU64::new(0),
            crowd: None,
        }
    }

    /// So many messages instead of a duration.
    pub fn count(self, count: u64) -> Self {
        Self { left: Some(AtomicU64::new(count)), ends: None, ..self }
    }

    /// Each body begins with the moment that it was due.
    pub fn stamped(self) -> Self {
        Self { stamped: true, ..self }
    }

    /// Waits for these subscribers.
    pub fn with(self, crowd: Crowd) -> Self {
        Self { crowd: Some(crowd), ..self }
    }

    /// Ends it early.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Messages acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    fn body(&self, due: Instant) -> Bytes {
        if !self.stamped {
            return self.body.clone();
        }
        let mut body = BytesMut::from(&self.body[..]);
        let since = (due - self.started).as_nanos() as u64;
        body[..STAMP_BYTES].copy_from_slice(&since.to_le_bytes());
        body.freeze()
    }

    /// When the message with this body was due.
    pub fn due(&self, body: &[u8]) -> Option<Instant> {
        let since = body.first_chunk::<STAMP_BYTES>()?;
        self.started.checked_add(Duration::from_nanos(u64::from_le_bytes(*since)))
    }

    fn is_over(&self, now: Instant) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.ends.is_some_and(|end| now >= end)
    }

    /// Whether another message may go out now.
    fn takes_one(&self, now: Instant) -> bool {
        if self.is_over(now) {
            return false;
        }
        match &self.left {
            Some(left) if now >= self.measure_from => {
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            }
            _ => true,
        }
    }

    /// Whether the slowest subscriber is too far behind.
    fn must_wait(&self) -> bool {
        let Some(crowd) = &self.crowd else { return false };
        let slowest = crowd.received.iter().map(|received| received.load(Ordering::Relaxed)).min();
        self.acked() > slowest.unwrap_or(u64::MAX).saturating_add(crowd.ahead)
    }

    fn settle(
        &self,
        answer: std::result::Result<unibus_client::Ack, unibus_client::Error>,
        sent: Instant,
        to: &mut Measured,
    ) {
        match answer {
            Ok(ack) => {
                to.record(sent, Instant::now(), self.measure_from);
                to.voters = ack.voters;
                self.acked.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                to.fail(error.into());
                self.stop();
            }
        }
    }
}

/// Runs the publishers until the plan ends and all answers are there.
pub async fn run(publishers: Vec<Publisher>, rate: Option<NonZeroU32>, plan: &Arc<Plan>) -> Result<Measured> {
    let mut tasks = JoinSet::new();
    match rate {
        None => publishers.into_iter().for_each(|publisher| {
            tasks.spawn(Box::pin(as_answers_come(publisher, plan.clone())));
        }),
        Some(rate) => {
            let (clocks, due): (Vec<_>, Vec<_>) = publishers.iter().map(|_| mpsc::channel(DUE_MAX)).unzip();
            let plan_of_clock = plan.clone();
            let clock = thread::Builder::new().name("bench-clock".into());
            clock.spawn(move || tick(&plan_of_clock, rate, &clocks))?;
            for (publisher, due) in publishers.into_iter().zip(due) {
                tasks.spawn(Box::pin(as_due(publisher, plan.clone(), due)));
            }
        }
    }
    let mut total = Measured::new()?;
    while let Some(done) = tasks.join_next().await {
        total.add(done.map_err(|error| Failure::local(format!("bench: {error}")))??);
    }
    Ok(total)
}

/// One publisher: keeps its messages on the way until the plan ends, then takes the last answers.
async fn as_answers_come(publisher: Publisher, plan: Arc<Plan>) -> Result<Measured> {
    let mut measured = Measured::new()?;
    let mut waiting: VecDeque<(Instant, Receipt)> = VecDeque::with_capacity(plan.in_flight);
    loop {
        let mut held = false;
        while waiting.len() < plan.in_flight {
            held = plan.must_wait();
            let now = Instant::now();
            if held || !plan.takes_one(now) {
                break;
            }
            match publisher.enqueue(plan.body(now)).await {
                Ok(receipt) => waiting.push_back((now, receipt)),
                Err(error) => {
                    measured.fail(error.into());
                    plan.stop();
                }
            }
        }
        match waiting.pop_front() {
            Some((sent, receipt)) => plan.settle(receipt.await, sent, &mut measured),
            None if held && !plan.is_over(Instant::now()) => tokio::time::sleep(LOOK_EVERY).await,
            None => return Ok(measured),
        }
    }
}

/// Says when each message is due, the publishers in turn. A thread: timers of tokio are a millisecond apart.
fn tick(plan: &Plan, rate: NonZeroU32, publishers: &[mpsc::Sender<Instant>]) {
    for (n, publisher) in (0..).zip(publishers.iter().cycle()) {
        let due = plan.started + due_after(n, rate);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if plan.is_over(due) || publisher.blocking_send(due).is_err() {
            return;
        }
    }
}

/// One publisher: sends what is due, whether or not there are answers.
async fn as_due(publisher: Publisher, plan: Arc<Plan>, mut due: mpsc::Receiver<Instant>) -> Result<Measured> {
    let mut measured = Measured::new()?;
    let mut refused = None;
    let (sent, mut answers) = mpsc::unbounded_channel::<(Instant, Receipt)>();
    let send = async {
        // Dropped at the end, so that the other half ends.
        let sent = sent;
        while let Some(due) = due.recv().await {
            match publisher.enqueue(plan.body(due)).await {
                // The window of the publisher bounds the channel.
                Ok(receipt) => drop(sent.send((due, receipt))),
                Err(error) => {
                    refused = Some(error.into());
                    return plan.stop();
                }
            }
        }
    };
    let receive = async {
        while let Some((due, receipt)) = answers.recv().await {
            plan.settle(receipt.await, due, &mut measured);
        }
    };
    tokio::join!(receive, send);
    if let Some(failure) = refused {
        measured.fail(failure);
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_plan() -> Plan {
        Plan::new(1_024, 4, Duration::from_secs(1), Duration::from_secs(10))
    }

    #[test]
    fn plan_ends_by_time_by_count_and_by_stop() {
        let plan = a_plan();
        assert_eq!(plan.body(plan.started).len(), 1024);
        assert!(plan.takes_one(plan.measure_from));
        assert!(!plan.takes_one(plan.measure_from + Duration::from_secs(10)));
        plan.stop();
        assert!(!plan.takes_one(plan.measure_from));
        let plan = a_plan().count(2);
        let warm = plan.measure_from - Duration::from_millis(1);
        assert!(plan.takes_one(warm) && plan.takes_one(warm) && plan.takes_one(warm), "the warm-up is not counted");
        assert!(plan.takes_one(plan.measure_from) && plan.takes_one(plan.measure_from));
        assert!(!plan.takes_one(plan.measure_from + Duration::from_secs(60)));
    }

    #[test]
    fn a_stamped_body_says_when_it_was_due() {
        let plan = a_plan().stamped();
        let due = plan.measure_from + Duration::from_nanos(1_234_567);
        let body = plan.body(due);
        assert_eq!((plan.due(&body), body.len()), (Some(due), 1_024));
        assert_eq!(plan.due(b"short"), None);
    }

    #[test]
    fn publishers_wait_for_the_slowest_subscriber() {
        let received: Vec<Arc<AtomicU64>> = (0..2).map(|_| Arc::default()).collect();
        let plan = a_plan().with(Crowd { ahead: 10, received: received.clone() });
        plan.acked.store(11, Ordering::Relaxed);
        received[0].store(11, Ordering::Relaxed);
        assert!(plan.must_wait());
        received[1].store(1, Ordering::Relaxed);
        assert!(!plan.must_wait());
    }

    #[test]
    fn the_clock_deals_out_what_is_due_in_turn_and_ends_with_the_plan() {
        let plan = Plan::new(8, 1, Duration::ZERO, Duration::from_millis(10));
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..2).map(|_| mpsc::channel(100)).unzip();
        tick(&plan, NonZeroU32::new(1_000).unwrap(), &senders);
        drop(senders);
        let due = |mut receiver: mpsc::Receiver<Instant>| -> Vec<u128> {
            std::iter::from_fn(|| receiver.try_recv().ok()).map(|due| (due - plan.started).as_millis()).collect()
        };
        assert_eq!(receivers.into_iter().map(due).collect::<Vec<_>>(), [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]);
    }
}
