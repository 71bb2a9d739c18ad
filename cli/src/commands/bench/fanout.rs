//! `bench fanout`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use unibus_client::Received;

use super::load::{Crowd, Plan};
use super::read::{Note, Readers};
use super::report::{Report, volume};
use super::{Rooms, drive, ended, nodes};
use crate::args::{BenchFanoutArgs, Global};
use crate::exit::{Failure, Result};
use crate::output::{Output, bytes, thousands};
use crate::session::Session;
use crate::time::human;

/// Counts what arrives while it is measured.
#[derive(Clone)]
struct Count {
    from: Instant,
    to: Instant,
    deliveries: u64,
}

impl Note for Count {
    fn note(&mut self, _message: &Received, now: Instant) {
        self.deliveries += u64::from(now >= self.from && now < self.to);
    }
}

/// What a run found.
struct Found {
    deliveries: u64,
    took: Duration,
    places: String,
    failure: Option<Failure>,
}

/// Runs `bench fanout`.
pub async fn run(args: &BenchFanoutArgs, global: &Global, out: Output) -> Result<()> {
    let client = Session::open(global, out)?.client;
    let rooms = Rooms::prepare(&client, &args.run.common, args.rooms).await?;
    let readers = Readers::open(global, &rooms.filter, &nodes(&client).await?, args.subscribers).await?;
    let publishers = rooms.publishers(&client, args.publishers).await?;
    let crowd = Crowd { ahead: args.ahead, received: readers.received.clone() };
    let plan = Plan::new(args.size, args.in_flight, args.run.time.warmup, args.run.time.duration).with(crowd);
    let plan = Arc::new(plan);
    let to = plan.measure_from + args.run.time.duration;
    let (places, received) = (readers.places.clone(), readers.received.clone());
    let reading = readers.start(&Count { from: plan.measure_from, to, deliveries: 0 });
    let shown = super::show_count("delivered", move || ("measuring", sum(&received)), out);
    let quiet = Output { err_tty: false, ..out };
    let (stored, was_interrupted) = drive(publishers, args.rate, &plan, quiet).await?;
    let took = to.min(Instant::now()).saturating_duration_since(plan.measure_from);
    let (counts, missing) = reading.finish(plan.acked()).await?;
    drop(shown);
    let deliveries = counts.iter().map(|count| count.deliveries).sum();
    let mut found = Found { deliveries, took, places, failure: stored.failure };
    if missing > 0 {
        let why = format!("{missing} subscribers did not receive every acknowledged message in time");
        found.failure.get_or_insert(Failure::local(why));
    }
    let printed = describe(args, &rooms, &found).print(&args.run.common.earlier, out);
    ended(found.failure, deliveries > 0, was_interrupted)?;
    printed
}

fn sum(received: &[Arc<AtomicU64>]) -> u64 {
    received.iter().map(|received| received.load(Ordering::Relaxed)).sum()
}

fn describe(args: &BenchFanoutArgs, rooms: &Rooms, found: &Found) -> Report {
    let per_second = found.deliveries as f64 / found.took.as_secs_f64().max(1e-6);
    let headline = format!(
        "{} deliveries/s, {}: {} subscribers on {} got {} deliveries of {} in {}",
        thousands(per_second as u64),
        volume(per_second, args.size),
        args.subscribers,
        found.places,
        thousands(found.deliveries),
        bytes(args.size as u64),
        human(found.took),
    );
    let report = Report::new("bench_fanout", headline)
        .set("room", rooms.filter.as_str())
        .set("rooms", rooms.subjects.len())
        .set("size_bytes", args.size)
        .set("publishers", args.publishers)
        .set("in_flight", args.in_flight)
        .set("subscribers", args.subscribers)
        .set("places", found.places.as_str())
        .set("ahead", args.ahead)
        .set("deliveries", found.deliveries)
        .set("deliveries_per_second", per_second as u64)
        .set("bytes_per_second", (per_second * args.size as f64) as u64)
        .set("duration_ms", found.took.as_millis() as u64)
        .set("failed", found.failure.is_some())
        .note(rooms.describe());
    match args.rate {
        Some(rate) => report.set("rate_per_second", rate.get()),
        None => report,
    }
}
