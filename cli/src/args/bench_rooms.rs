//! `bench rooms`.

use super::BenchEarlier;

/// Measures how fast rooms are made
///
/// Keeps --parallel requests on the way, each of which makes a room and waits until it is fsynced on a majority
/// and can be read. First it adds --users users, measured in the same way. Nothing removes them again: use a
/// cluster that is yours to throw away.
#[derive(Clone, Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl bench rooms --rooms 10000 --parallel 256
  unibusctl bench rooms --rooms 100000 --users 10000 --json
  unibusctl bench rooms --json > new.json --compare old.json",
    after_help = "Next: unibusctl status"
)]
pub struct BenchRoomsArgs {
    /// How many rooms to make, named `bench.<time>.<number>`
    #[arg(long, value_name = "ROOMS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub rooms: u64,

    /// How many users to add before
    #[arg(long, value_name = "USERS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub users: u64,

    /// Requests on the way
    #[arg(long, value_name = "REQUESTS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub parallel: u32,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub earlier: BenchEarlier,
}
