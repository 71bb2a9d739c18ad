//! `status` and `check`.

use std::time::Duration;

use crate::parse;

/// Shows nodes, groups, leaders, lag, disk and agreement of the replicas
///
/// What is wrong comes first. The exit code says whether the question was answered; `check` says whether
/// the cluster works.
///
/// applied and lag count log entries over all groups; leads counts groups. In a pipe: one node per line,
/// fields separated by tabs, the headline on standard error.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl status
  unibusctl status --watch
  unibusctl --node n2 status --json",
    after_help = "Next: unibusctl check"
)]
pub struct StatusArgs {
    /// Show it again and again until Ctrl-C
    #[arg(long)]
    pub watch: bool,
    /// How often, with --watch
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse::positive_duration)]
    pub every: Duration,
    /// Show each group too
    #[arg(long)]
    pub groups: bool,
}

/// Walks the whole client path and says whether it works
///
/// Connects, signs in, publishes messages to a room of its own (`check.<device>`, made at the first run)
/// and gets each of them back; prints the latency of each step. Exit codes are those of Nagios: 0 ok,
/// 1 warning, 2 critical, 3 unknown.
///
/// With --loop it publishes on a timer and keeps receiving while nodes come and go, and counts what was
/// lost, what came twice, and the longest time without an acknowledgement.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl check
  unibusctl check --warn 50ms --critical 1s
  unibusctl check --loop --every 200ms --for 45s   # meanwhile: kill -9 a node",
    after_help = "Next: unibusctl status"
)]
pub struct CheckArgs {
    /// How many messages to publish and get back
    #[arg(long, value_name = "MESSAGES", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: u32,

    /// Warn (1) when the slowest message took longer [default: 1s]; with --loop: when the longest gap did [default: 3s]
    #[arg(long, value_name = "DURATION", value_parser = parse::positive_duration)]
    pub warn: Option<Duration>,

    /// Critical (2) when it took longer than this
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse::positive_duration)]
    pub critical: Duration,

    /// Go on until --for is over, or Ctrl-C
    #[arg(long = "loop", conflicts_with = "count")]
    pub repeat: bool,

    /// How often to publish, with --loop
    #[arg(long, value_name = "DURATION", default_value = "200ms", requires = "repeat", value_parser = parse::positive_duration)]
    pub every: Duration,

    /// How long, with --loop
    #[arg(long = "for", value_name = "DURATION", requires = "repeat", value_parser = parse::positive_duration)]
    pub duration: Option<Duration>,
}
