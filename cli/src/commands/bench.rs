//! `bench`: load from this one process, measured.

mod rooms;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use unibus_client::{Client, Publisher, Receipt};
use unibus_proto::subject::Subject;
use unibus_proto::v1::RoomPolicy;

use crate::args::{BenchCommand, BenchPublishArgs, Global};
use crate::exit::{Failure, Result};
use crate::output::{Output, bytes, thousands};
use crate::session::{During, Session, interrupted};
use crate::time::{human, now_ms};

/// Longer latencies are counted as this; the publisher gives up long before.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Three digits: finer than the noise of any machine.
const DIGITS: u8 = 3;

const NOTE: &str = "closed loop: a publisher sends when an answer came, so a stall is counted once per message on the \
                    way, not once per message that a fixed rate would have sent meanwhile (coordinated omission)";

/// Runs a command of `bench`.
pub async fn run(command: &BenchCommand, global: &Global, out: Output) -> Result<()> {
    match command {
        BenchCommand::Publish(args) => publish(args, global, out).await,
        BenchCommand::Rooms(args) => rooms::run(args, global, out).await,
    }
}

async fn publish(args: &BenchPublishArgs, global: &Global, out: Output) -> Result<()> {
    let client = Session::open(global, out)?.client;
    let room = prepare_room(&client, args).await?;
    let mut publishers = Vec::new();
    for _ in 0..args.publishers {
        publishers.push(client.publisher(&room).open().await.during(format!("bench, publisher for {room}"))?);
    }
    let plan = Arc::new(Plan::new(args));
    let mut tasks = JoinSet::new();
    for publisher in publishers {
        tasks.spawn(Box::pin(load(publisher, plan.clone())));
    }
    let bar = (out.err_tty && !out.json).then(|| show(plan.clone()));
    let stop = tokio::spawn({
        let plan = plan.clone();
        async move {
            interrupted().await;
            plan.stop();
        }
    });
    let mut total = Measured::new()?;
    while let Some(done) = tasks.join_next().await {
        total.add(done.map_err(|error| Failure::local(format!("bench: {error}")))??);
    }
    if let Some(bar) = bar {
        bar.abort();
    }
    let was_interrupted = stop.is_finished();
    stop.abort();
    report(args, &room, &total, out)?;
    match total.failure {
        Some(failure) if total.latency.is_empty() => Err(failure.during("bench")),
        Some(failure) => Err(failure.partly().during("bench")),
        None if was_interrupted => Err(Failure::interrupted()),
        None => Ok(()),
    }
}

async fn prepare_room(client: &Client, args: &BenchPublishArgs) -> Result<Subject> {
    if let Some(room) = &args.room {
        return Ok(room.clone());
    }
    let subject: Subject = format!("bench.{:x}", now_ms()).parse().expect("words and hexadecimal digits are a subject");
    let policy = RoomPolicy { persist: true, ..RoomPolicy::default() };
    client.create_room(&subject, policy).await.during(format!("bench, create room {subject}"))?;
    Ok(subject)
}

/// When to start measuring and when to stop, shared by all publishers.
struct Plan {
    body: Bytes,
    in_flight: usize,
    measure_from: Instant,
    ends: Option<Instant>,
    /// Messages that may still be measured, with --count.
    left: Option<AtomicU64>,
    stopped: AtomicU64,
    acked: AtomicU64,
}

impl Plan {
    fn new(args: &BenchPublishArgs) -> Self {
        let mut body = vec![0; args.size];
        SystemRandom::new().fill(&mut body).expect("the operating system has randomness");
        let measure_from = Instant::now() + args.warmup;
        Self {
            body: body.into(),
            in_flight: args.in_flight as usize,
            measure_from,
            ends: args.count.is_none().then(|| measure_from + args.duration),
            left: args.count.map(AtomicU64::new),
            stopped: AtomicU64::new(0),
            acked: AtomicU64::new(0),
        }
    }

    fn stop(&self) {
        self.stopped.store(1, Ordering::Relaxed);
    }

    /// Whether another message may go out now.
    fn takes_one(&self, now: Instant) -> bool {
        if self.stopped.load(Ordering::Relaxed) == 1 || self.ends.is_some_and(|end| now >= end) {
            return false;
        }
        match &self.left {
            Some(left) if now >= self.measure_from => {
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            }
            _ => true,
        }
    }
}

/// What one publisher, or all, measured.
struct Measured {
    latency: Histogram<u64>,
    first: Option<Instant>,
    last: Option<Instant>,
    warmup: u64,
    voters: u32,
    failure: Option<Failure>,
}

impl Measured {
    fn new() -> Result<Self> {
        let latency = Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS)
            .map_err(|error| Failure::local(format!("bench: {error}")))?;
        Ok(Self { latency, first: None, last: None, warmup: 0, voters: 0, failure: None })
    }

    /// One message, sent and acknowledged. Those sent in the warm-up are not measured.
    fn record(&mut self, sent: Instant, acked: Instant, measure_from: Instant) {
        if sent < measure_from {
            self.warmup += 1;
            return;
        }
        self.latency.saturating_record((acked - sent).as_micros() as u64);
        self.first = Some(self.first.map_or(sent, |first| first.min(sent)));
        self.last = self.last.max(Some(acked));
    }

    fn add(&mut self, other: Self) {
        // Equal bounds: adding cannot fail.
        self.latency += other.latency;
        self.first = [self.first, other.first].into_iter().flatten().min();
        self.last = self.last.max(other.last);
        self.warmup += other.warmup;
        self.voters = self.voters.max(other.voters);
        self.failure = self.failure.take().or(other.failure);
    }

    fn took(&self) -> Duration {
        self.first.zip(self.last).map_or(Duration::ZERO, |(first, last)| last - first)
    }

    fn per_second(&self) -> f64 {
        self.latency.len() as f64 / self.took().as_secs_f64().max(1e-6)
    }
}

/// One publisher: keeps its messages on the way until the plan ends, then takes the last answers.
async fn load(publisher: Publisher, plan: Arc<Plan>) -> Result<Measured> {
    let mut measured = Measured::new()?;
    let mut waiting: VecDeque<(Instant, Receipt)> = VecDeque::with_capacity(plan.in_flight);
    loop {
        while waiting.len() < plan.in_flight {
            let now = Instant::now();
            if !plan.takes_one(now) {
                break;
            }
            match publisher.enqueue(plan.body.clone()).await {
                Ok(receipt) => waiting.push_back((now, receipt)),
                Err(error) => {
                    measured.failure = measured.failure.take().or(Some(error.into()));
                    plan.stop();
                }
            }
        }
        let Some((sent, receipt)) = waiting.pop_front() else { return Ok(measured) };
        match receipt.await {
            Ok(ack) => {
                measured.record(sent, Instant::now(), plan.measure_from);
                measured.voters = ack.voters;
                plan.acked.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                measured.failure = measured.failure.take().or(Some(error.into()));
                plan.stop();
            }
        }
    }
}

fn show(plan: Arc<Plan>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let style =
            ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)).with_style(style);
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let acked = plan.acked.load(Ordering::Relaxed);
            let phase = if Instant::now() < plan.measure_from { "warming up" } else { "measuring" };
            bar.set_message(format!(
                "{phase}: {}/s, {} acknowledged",
                thousands((acked - before) * 2),
                thousands(acked)
            ));
            before = acked;
        }
    })
}

fn report(args: &BenchPublishArgs, room: &Subject, measured: &Measured, out: Output) -> Result<()> {
    if out.json {
        return out.object("bench_publish", describe(args, room, measured));
    }
    let rate = measured.per_second();
    out.line(&format!(
        "{} msg/s, {}/s: {} messages of {} in {}, {} publishers with {} on the way, fsynced on a majority of {}",
        thousands(rate as u64),
        bytes((rate * args.size as f64) as u64),
        thousands(measured.latency.len()),
        bytes(args.size as u64),
        human(measured.took()),
        args.publishers,
        args.in_flight,
        measured.voters,
    ))?;
    let row = |name: &str, us: u64| vec![name.to_owned(), human(Duration::from_micros(us))];
    let at = |quantile| measured.latency.value_at_quantile(quantile);
    out.table(
        &["latency", ""],
        &[
            row("p50", at(0.5)),
            row("p90", at(0.9)),
            row("p99", at(0.99)),
            row("p99.9", at(0.999)),
            row("max", measured.latency.max()),
        ],
    )?;
    out.hint(format!("room {room}\nnote: {NOTE}"));
    Ok(())
}

/// The JSON shape of the result.
fn describe(args: &BenchPublishArgs, room: &Subject, measured: &Measured) -> Value {
    let (latency, rate) = (&measured.latency, measured.per_second());
    json!({
        "room": room.as_str(),
        "version": env!("CARGO_PKG_VERSION"),
        "size_bytes": args.size,
        "publishers": args.publishers,
        "in_flight": args.in_flight,
        "messages": latency.len(),
        "warmup_messages": measured.warmup,
        "duration_ms": measured.took().as_millis() as u64,
        "messages_per_second": rate as u64,
        "bytes_per_second": (rate * args.size as f64) as u64,
        "voters": measured.voters,
        "failed": measured.failure.is_some(),
        "latency_us": {
            "min": if latency.is_empty() { 0 } else { latency.min() },
            "mean": latency.mean() as u64,
            "p50": latency.value_at_quantile(0.5),
            "p90": latency.value_at_quantile(0.9),
            "p99": latency.value_at_quantile(0.99),
            "p99_9": latency.value_at_quantile(0.999),
            "max": latency.max(),
        },
        "note": NOTE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(count: Option<u64>) -> BenchPublishArgs {
        BenchPublishArgs {
            size: 1024,
            publishers: 2,
            in_flight: 4,
            duration: Duration::from_secs(10),
            count,
            warmup: Duration::from_secs(1),
            room: None,
        }
    }

    #[test]
    fn plan_ends_by_time_by_count_and_by_stop() {
        let plan = Plan::new(&args(None));
        assert_eq!(plan.body.len(), 1024);
        assert!(plan.takes_one(plan.measure_from));
        assert!(!plan.takes_one(plan.measure_from + Duration::from_secs(10)));
        plan.stop();
        assert!(!plan.takes_one(plan.measure_from));
        let plan = Plan::new(&args(Some(2)));
        let warm = plan.measure_from - Duration::from_millis(1);
        assert!(plan.takes_one(warm) && plan.takes_one(warm) && plan.takes_one(warm), "the warm-up is not counted");
        assert!(plan.takes_one(plan.measure_from) && plan.takes_one(plan.measure_from));
        assert!(!plan.takes_one(plan.measure_from + Duration::from_secs(60)));
    }

    #[test]
    fn warm_up_is_not_measured_and_publishers_add_up() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let measured = |from: u64| {
            let mut measured = Measured::new().unwrap();
            measured.record(start, start + ms(900), start + ms(10));
            for n in 0..100 {
                measured.record(start + ms(from + n), start + ms(from + n + 2), start + ms(10));
            }
            measured
        };
        let mut total = measured(10);
        total.add(measured(910));
        assert_eq!((total.latency.len(), total.warmup), (200, 2));
        assert_eq!(total.took(), ms(1_001));
        let value = describe(&args(None), &"bench.x".parse().unwrap(), &total);
        assert_eq!(value["messages_per_second"], 199);
        assert_eq!(value["latency_us"]["p50"].as_u64().map(|us| us / 100), Some(20));
        assert_eq!(value["failed"], false);
        let value = describe(&args(None), &"bench.x".parse().unwrap(), &Measured::new().unwrap());
        assert_eq!(value["latency_us"]["min"], 0, "nothing measured is no panic");
    }
}
