//! `bench publish` and `bench latency`.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::load::Plan;
use super::measure::Measured;
use super::report::{Report, volume};
use super::{Rooms, drive, ended};
use crate::args::{BenchEarlier, BenchLatencyArgs, BenchPublishArgs, Global};
use crate::exit::Result;
use crate::output::{Output, bytes, thousands};
use crate::session::Session;
use crate::time::human;

const CLOSED: &str = "note: closed loop: a publisher sends when an answer came, so a stall is counted once per message \
                      on the way, not once per message that a fixed rate would have sent meanwhile (coordinated \
                      omission)";
const OPEN: &str = "note: open loop: latency counts from the moment that a message was due";

/// Runs `bench publish`.
pub async fn run(args: &BenchPublishArgs, global: &Global, out: Output) -> Result<()> {
    let client = Session::open(global, out)?.client;
    let rooms = Rooms::prepare(&client, &args.load.run.common, args.load.rooms).await?;
    let publishers = rooms.publishers(&client, args.publishers).await?;
    let plan = Plan::new(args.load.size, args.in_flight, args.load.run.time.warmup, args.load.run.time.duration);
    let plan = match args.count {
        Some(count) => plan.count(count),
        None => plan,
    };
    let (measured, was_interrupted) = drive(publishers, args.rate, &Arc::new(plan), out).await?;
    let load = match args.rate {
        None => format!("{} publishers with {} on the way", args.publishers, args.in_flight),
        Some(_) => format!("{} publishers", args.publishers),
    };
    let report = describe("bench_publish", (args.load.size, args.publishers, args.rate), &load, &rooms, &measured);
    let report = if args.rate.is_none() { report.set("in_flight", args.in_flight) } else { report };
    finish(report, &args.load.run.common.earlier, measured, was_interrupted, out)
}

/// Runs `bench latency`.
pub async fn latency(args: &BenchLatencyArgs, global: &Global, out: Output) -> Result<()> {
    let client = Session::open(global, out)?.client;
    let rooms = Rooms::prepare(&client, &args.load.run.common, args.load.rooms).await?;
    let publishers = rooms.publishers(&client, args.publishers).await?;
    let plan = Arc::new(Plan::new(args.load.size, 1, args.load.run.time.warmup, args.load.run.time.duration));
    let (measured, was_interrupted) = drive(publishers, Some(args.rate), &plan, out).await?;
    let load = format!("{} publishers at {}/s", args.publishers, args.rate);
    let report =
        describe("bench_latency", (args.load.size, args.publishers, Some(args.rate)), &load, &rooms, &measured);
    finish(report, &args.load.run.common.earlier, measured, was_interrupted, out)
}

fn finish(
    report: Report,
    earlier: &BenchEarlier,
    measured: Measured,
    was_interrupted: bool,
    out: Output,
) -> Result<()> {
    let printed = report.print(earlier, out);
    ended(measured.failure, !measured.latency.is_empty(), was_interrupted)?;
    printed
}

fn describe(
    schema: &'static str,
    (size, publishers, rate): (usize, u32, Option<NonZeroU32>),
    load: &str,
    rooms: &Rooms,
    measured: &Measured,
) -> Report {
    let per_second = measured.per_second();
    let headline = format!(
        "{} msg/s, {}: {} messages of {} in {}, {load}, fsynced on a majority of {}",
        thousands(per_second as u64),
        volume(per_second, size),
        thousands(measured.latency.len()),
        bytes(size as u64),
        human(measured.took()),
        measured.voters,
    );
    let note = if rate.is_some() { OPEN } else { CLOSED };
    let report = Report::new(schema, headline)
        .set("room", rooms.filter.as_str())
        .set("rooms", rooms.subjects.len())
        .set("size_bytes", size)
        .set("publishers", publishers)
        .set("messages", measured.latency.len())
        .set("warmup_messages", measured.warmup)
        .set("duration_ms", measured.took().as_millis() as u64)
        .set("messages_per_second", per_second as u64)
        .set("bytes_per_second", (per_second * size as f64) as u64)
        .set("voters", measured.voters)
        .set("failed", measured.failure.is_some())
        .set("note", note.trim_start_matches("note: "))
        .latency(measured)
        .note(rooms.describe())
        .note(note);
    match rate {
        Some(rate) => report.set("rate_per_second", rate.get()),
        None => report,
    }
}
