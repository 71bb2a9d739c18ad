//! `bench`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use unibus_proto::limits::{BODY_BYTES_MAX, PRODUCER_WINDOW};
use unibus_proto::subject::Subject;

use crate::parse;

/// Commands of `bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    #[allow(missing_docs)]
    Publish(BenchPublishArgs),
    #[allow(missing_docs)]
    Latency(BenchLatencyArgs),
    #[allow(missing_docs)]
    E2e(BenchE2eArgs),
    #[allow(missing_docs)]
    Replay(BenchReplayArgs),
    #[allow(missing_docs)]
    Fanout(BenchFanoutArgs),
    #[allow(missing_docs)]
    Rooms(super::BenchRoomsArgs),
}

/// What every bench has.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct BenchCommon {
    /// Use this room instead of new ones named `bench.<time>`
    #[arg(long, value_name = "SUBJECT")]
    pub room: Option<Subject>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub earlier: BenchEarlier,
}

/// The run that a bench is held against.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct BenchEarlier {
    /// Compare with what an earlier run printed under --json; exit code 1 when a figure got worse
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,

    /// How much worse a figure may be than in --compare, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub tolerance: u32,
}

/// How long a bench runs.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct BenchTime {
    /// How long to measure
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = parse::positive_duration)]
    pub duration: Duration,

    /// How long to run before measuring
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse::duration)]
    pub warmup: Duration,
}

/// How a bench with a clock runs.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct BenchRun {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub time: BenchTime,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: BenchCommon,
}

/// What is stored, and where.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct BenchLoad {
    /// Bytes of a body
    #[arg(long, value_name = "BYTES", default_value = "1024", value_parser = body_size)]
    pub size: usize,

    /// Rooms, to which the publishers are dealt out in turn
    #[arg(long, value_name = "ROOMS", default_value_t = 1, conflicts_with = "room", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub rooms: u32,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub run: BenchRun,
}

/// Measures how fast messages are stored, and how long each takes
///
/// Each publisher keeps --in-flight messages on the way and sends the next one when an answer comes
/// (a closed loop), so the latencies say how much was on the way: for latency at a given load use
/// `bench latency`, or --rate here.
#[derive(Clone, Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl bench publish --size 1024 --publishers 8 --in-flight 128 --for 10s
  unibusctl bench publish --publishers 1 --in-flight 1 --count 1000 --json
  unibusctl bench publish --json > new.json --compare old.json",
    after_help = "Next: unibusctl bench latency"
)]
pub struct BenchPublishArgs {
    /// Publishers at the same time, each a producer of its own
    #[arg(long, value_name = "PUBLISHERS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub publishers: u32,

    /// Messages on the way per publisher
    #[arg(long, value_name = "MESSAGES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=PRODUCER_WINDOW as i64))]
    pub in_flight: u32,

    /// Messages per second of all publishers together, instead of a closed loop
    #[arg(long, value_name = "N/s", value_parser = parse::rate)]
    pub rate: Option<NonZeroU32>,

    /// How many messages to measure, all publishers together, instead of --for
    #[arg(long, value_name = "MESSAGES", conflicts_with_all = ["duration", "rate"], value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub load: BenchLoad,
}

/// Measures how long a message takes to be stored, at a steady rate
///
/// Messages are due at fixed moments, and latency is measured from the moment that a message was due,
/// whether or not those before it have been answered: a stall counts for every message that it held up.
#[derive(Clone, Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl bench latency --rate 1000/s --size 1024
  unibusctl bench latency --rate 20000/s --publishers 4 --rooms 4 --for 30s --json",
    after_help = "Next: unibusctl bench e2e"
)]
pub struct BenchLatencyArgs {
    /// Messages per second, all publishers together
    #[arg(long, value_name = "N/s", default_value = "1000", value_parser = parse::rate)]
    pub rate: NonZeroU32,

    /// Publishers, which take turns
    #[arg(long, value_name = "PUBLISHERS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub publishers: u32,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub load: BenchLoad,
}

/// Measures how long a message takes from its publisher to a subscriber on another node
///
/// The publisher speaks to the leader of the room's shard, each subscriber to a node that does not lead
/// it, up to 48 per node over a connection of its own. Latency is measured from the moment that a message
/// was due.
#[derive(Clone, Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl bench e2e --rate 5000/s --size 1024
  unibusctl bench e2e --rate 1000/s --subscribers 2 --json",
    after_help = "Next: unibusctl bench fanout"
)]
pub struct BenchE2eArgs {
    /// Messages per second
    #[arg(long, value_name = "N/s", default_value = "5000", value_parser = parse::rate)]
    pub rate: NonZeroU32,

    /// Bytes of a body
    #[arg(long, value_name = "BYTES", default_value = "1024", value_parser = stamped_size)]
    pub size: usize,

    /// Publishers, which take turns
    #[arg(long, value_name = "PUBLISHERS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub publishers: u32,

    /// Subscribers
    #[arg(long, value_name = "SUBSCRIBERS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub subscribers: u32,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub run: BenchRun,
}

/// Measures how fast a room's history is read
///
/// Fills a new room with --count messages, then reads it from the first to the last. With --room the
/// room is read as it is.
#[derive(Clone, Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl bench replay --size 128 --count 1000000
  unibusctl bench replay --room bench.18f2 --json
  unibusctl --node n2 bench replay --room bench.18f2 --subscribers 2",
    after_help = "Next: unibusctl bench fanout"
)]
pub struct BenchReplayArgs {
    /// Bytes of a body
    #[arg(long, value_name = "BYTES", default_value = "128", conflicts_with = "room", value_parser = body_size)]
    pub size: usize,

    /// Messages to fill the room with
    #[arg(long, value_name = "MESSAGES", default_value_t = 1_000_000, conflicts_with = "room", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,

    /// Subscribers that read at the same time, up to 48 per node over a connection of its own
    #[arg(long, value_name = "SUBSCRIBERS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub subscribers: u32,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: BenchCommon,
}

/// Measures how many deliveries per second reach the subscribers of a room
///
/// The subscribers are spread over the nodes, up to 48 per node over a connection of its own. The
/// publishers run as fast as they can, but never more than --ahead messages ahead of the slowest
/// subscriber: what is measured can be kept up, and everybody has received everything at the end.
#[derive(Clone, Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl bench fanout --subscribers 10 --size 128
  unibusctl bench fanout --subscribers 100 --rate 2000/s --for 30s --json",
    after_help = "Next: unibusctl bench replay"
)]
pub struct BenchFanoutArgs {
    /// Subscribers
    #[arg(long, value_name = "SUBSCRIBERS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub subscribers: u32,

    /// Bytes of a body
    #[arg(long, value_name = "BYTES", default_value = "128", value_parser = body_size)]
    pub size: usize,

    /// Publishers at the same time
    #[arg(long, value_name = "PUBLISHERS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub publishers: u32,

    /// Messages on the way per publisher
    #[arg(long, value_name = "MESSAGES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=PRODUCER_WINDOW as i64))]
    pub in_flight: u32,

    /// Rooms, to which the publishers are dealt out in turn; each subscriber reads them all
    #[arg(long, value_name = "ROOMS", default_value_t = 1, conflicts_with = "room", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub rooms: u32,

    /// How far the publishers may be ahead of the slowest subscriber
    #[arg(long, value_name = "MESSAGES", default_value_t = 8_192, value_parser = clap::value_parser!(u64).range(1..))]
    pub ahead: u64,

    /// Messages per second, instead of as fast as can be kept up
    #[arg(long, value_name = "N/s", value_parser = parse::rate)]
    pub rate: Option<NonZeroU32>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub run: BenchRun,
}

/// Bytes at the start of a body that say when the message was due.
pub const STAMP_BYTES: usize = 8;

fn body_size(text: &str) -> Result<usize, String> {
    match parse::size(text)? {
        size if size > BODY_BYTES_MAX => Err(format!("found {size} bytes, expected at most {BODY_BYTES_MAX}")),
        size => Ok(size),
    }
}

fn stamped_size(text: &str) -> Result<usize, String> {
    match body_size(text)? {
        size if size < STAMP_BYTES => Err(format!("found {size} bytes, expected at least {STAMP_BYTES} for a time")),
        size => Ok(size),
    }
}
