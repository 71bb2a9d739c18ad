//! `bench`, `profile` and `completions`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use clap_complete::Shell;
use unibus_proto::limits::{BODY_BYTES_MAX, PRODUCER_WINDOW};
use unibus_proto::subject::Subject;

use crate::parse;

/// Commands of `bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    #[allow(missing_docs)]
    Publish(BenchPublishArgs),
    #[allow(missing_docs)]
    Rooms(super::BenchRoomsArgs),
}

/// Measures how fast messages are stored, and how long each takes
///
/// Each publisher keeps --in-flight messages on the way and sends the next one when an answer comes
/// (a closed loop). Latency is measured from the moment a message is handed to the SDK to its
/// acknowledgement, so a stall is counted once per message on the way, not once per message that an
/// open loop would have sent meanwhile: for latency under a given rate read p99.9 and max, not the mean.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl bench publish --size 1024 --publishers 8 --in-flight 128 --for 10s
  unibusctl bench publish --publishers 1 --in-flight 1 --count 1000 --json",
    after_help = "Next: unibusctl status"
)]
pub struct BenchPublishArgs {
    /// Bytes of a body
    #[arg(long, value_name = "BYTES", default_value = "1024", value_parser = body_size)]
    pub size: usize,

    /// Publishers at the same time, each a producer of its own
    #[arg(long, value_name = "PUBLISHERS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub publishers: u32,

    /// Messages on the way per publisher
    #[arg(long, value_name = "MESSAGES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=PRODUCER_WINDOW as i64))]
    pub in_flight: u32,

    /// How long to measure
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", conflicts_with = "count", value_parser = parse::positive_duration)]
    pub duration: Duration,

    /// How many messages to measure, all publishers together
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// How long to publish before measuring
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse::duration)]
    pub warmup: Duration,

    /// Use this room instead of a new one named `bench.<time>`
    #[arg(long, value_name = "SUBJECT")]
    pub room: Option<Subject>,
}

fn body_size(text: &str) -> Result<usize, String> {
    match parse::size(text)? {
        size if size > BODY_BYTES_MAX => Err(format!("found {size} bytes, expected at most {BODY_BYTES_MAX}")),
        size => Ok(size),
    }
}

/// Commands of `profile`.
#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    #[allow(missing_docs)]
    Add(ProfileAddArgs),
    /// Lists the profiles; `*` marks the one in use
    #[command(before_help = "Examples:\n  unibusctl profile list", after_help = "Next: unibusctl profile use NAME")]
    List,
    /// Uses a profile from now on
    #[command(before_help = "Examples:\n  unibusctl profile use bob", after_help = "Next: unibusctl whoami")]
    Use {
        /// The profile
        #[arg(value_parser = parse::profile_name)]
        name: String,
    },
    /// Shows a profile, and where the choice of it comes from
    #[command(
        before_help = "Examples:\n  unibusctl profile show\n  unibusctl profile show bob",
        after_help = "Next: unibusctl whoami"
    )]
    Show {
        /// The profile; without it the one in use
        #[arg(value_parser = parse::profile_name)]
        name: Option<String>,
    },
    /// Forgets a profile; the identity file stays
    #[command(
        visible_alias = "remove",
        before_help = "Examples:\n  unibusctl profile rm bob",
        after_help = "Next: unibusctl profile list"
    )]
    Rm {
        /// The profile
        #[arg(value_parser = parse::profile_name)]
        name: String,
    },
}

/// Adds a profile; one of this name is replaced
///
/// A profile holds paths and addresses, no secret. The nodes' certificates are checked against --ca alone.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl profile add bob --identity bob.identity --ca ca.pem --node 10.0.0.1:7400 --node 10.0.0.2:7400",
    after_help = "Next: unibusctl --profile NAME whoami"
)]
pub struct ProfileAddArgs {
    /// The profile's name
    #[arg(value_parser = parse::profile_name)]
    pub name: String,

    /// The identity file to sign in with
    #[arg(long, value_name = "FILE")]
    pub identity: PathBuf,

    /// The certificate authority of the cluster's client port, PEM
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,

    /// host:port of a node's client port; repeat it for the other nodes
    #[arg(long, value_name = "ADDR", required = true)]
    pub node: Vec<String>,
}

/// Prints a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl completions bash > ~/.local/share/bash-completion/completions/unibusctl
  unibusctl completions zsh > ~/.zfunc/_unibusctl
  unibusctl completions fish > ~/.config/fish/completions/unibusctl.fish",
    after_help = "Next: open a new shell"
)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}
