//! The command line. The doc comments here are the manual; `tests` walk the whole tree.

mod bench;
mod bench_rooms;
mod cluster;
mod group;
mod message;
mod node;
mod people;
mod room;
mod tools;

use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Command as ClapCommand, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use bench::{
    BenchCommand, BenchCommon, BenchE2eArgs, BenchEarlier, BenchFanoutArgs, BenchLatencyArgs, BenchPublishArgs,
    BenchReplayArgs, STAMP_BYTES,
};
pub use bench_rooms::BenchRoomsArgs;
pub use cluster::{CheckArgs, StatusArgs};
pub use group::{ConfigCommand, GroupCommand, VerifyArgs};
pub use message::{PubArgs, SubArgs};
pub use node::{NodeArgs, NodeCommand};
pub use people::{IdentityCommand, IdentityNewArgs, UserAddArgs, UserCommand};
#[cfg(test)]
pub use people::{IdentityKind, RoleArg};
pub use room::{MemberCommand, RetainArgs, RoomCommand};
pub use tools::{CompletionsArgs, ProfileAddArgs, ProfileCommand};

use crate::exit::EXIT_CODES;
use crate::parse;

/// Characters of a wrong value that an error repeats.
const SHOWN_MAX: usize = 60;

/// Publishes and reads messages; administers rooms, users and nodes of a unibus cluster.
#[derive(Debug, Parser)]
#[command(
    name = "unibusctl",
    version,
    before_help = "Examples:
  unibusctl room create ops.dpkg --plaintext
  unibusctl pub ops.dpkg --lines < /var/log/dpkg.log
  unibusctl sub 'ops.>' --from earliest",
    subcommand_help_heading = "Commands",
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What is common to all commands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Whom to sign in as and where: a profile made by `profile add`
    ///
    /// Without it: $UNIBUS_PROFILE, then the profile chosen by `profile use`, then `dev` if there is one.
    #[arg(long, global = true, value_name = "NAME", env = "UNIBUS_PROFILE", value_parser = parse::profile_name)]
    pub profile: Option<String>,

    /// Use this node alone: its name (n1) or its host:port
    ///
    /// Without it any node of the profile serves, and another takes over when it fails.
    #[arg(long, global = true, value_name = "NAME|ADDR")]
    pub node: Vec<String>,

    /// Print JSON: an object, or one object per line for streams
    ///
    /// Each object names its `schema`. Names are snake_case, times RFC 3339 in UTC, bodies base64; ids and
    /// hashes are strings. Errors are one JSON object on standard error: code, retry, happened, remedy.
    #[arg(long, global = true)]
    pub json: bool,

    /// Give a request up after so long, retries included
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = parse::positive_duration)]
    pub timeout: Duration,

    /// Answer the question that a destructive command asks on a terminal
    #[arg(long, global = true)]
    pub yes: bool,

    /// Say what the SDK does: sign-ins, failovers, messages sent again
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(name = "pub")]
    #[allow(missing_docs)]
    Publish(PubArgs),
    #[command(name = "sub")]
    #[allow(missing_docs)]
    Subscribe(SubArgs),
    /// Rooms and their members
    #[command(
        subcommand,
        before_help = "Examples:
  unibusctl room create ops.dpkg --plaintext
  unibusctl room list 'ops.>'
  unibusctl room member add ops.dpkg bob --role reader",
        after_help = "Next: unibusctl pub SUBJECT --lines < FILE"
    )]
    Room(RoomCommand),
    /// Users of the cluster: the allowlist
    #[command(
        subcommand,
        before_help = "Examples:
  unibusctl user add bob --key bob.pub
  unibusctl user list
  unibusctl user revoke bob",
        after_help = "Next: unibusctl room member add SUBJECT USER --role reader"
    )]
    User(UserCommand),
    /// Identities: the key files that sign in
    #[command(
        subcommand,
        before_help = "Examples:
  unibusctl identity new bob
  unibusctl identity new scout --kind agent --out /etc/scout",
        after_help = "Next: an admin runs: unibusctl user add HANDLE --key HANDLE.pub"
    )]
    Identity(IdentityCommand),
    /// Shows who the cluster says that you are, and through which profile
    #[command(
        before_help = "Examples:
  unibusctl whoami
  unibusctl --profile bob whoami --json",
        after_help = "Next: unibusctl room list"
    )]
    Whoami,
    #[allow(missing_docs)]
    Status(StatusArgs),
    #[allow(missing_docs)]
    Check(CheckArgs),
    #[allow(missing_docs)]
    Verify(VerifyArgs),
    /// Raft groups: who leads, and moving a leadership
    #[command(
        subcommand,
        before_help = "Examples:
  unibusctl group list
  unibusctl group transfer s3 n2",
        after_help = "Next: unibusctl status --groups"
    )]
    Group(GroupCommand),
    /// What the nodes run with
    #[command(
        subcommand,
        before_help = "Examples:
  unibusctl config effective --node n1",
        after_help = "Next: unibusctl status"
    )]
    Config(ConfigCommand),
    /// Nodes of the cluster: drain, add, remove, replace
    #[command(
        subcommand,
        before_help = "Examples:
  unibusctl node list
  unibusctl node drain n2
  unibusctl node replace n3 --with n4",
        after_help = "Next: unibusctl status"
    )]
    Node(NodeCommand),
    /// Load tests
    #[command(
        subcommand,
        before_help = "Examples:
  unibusctl bench publish --size 1024 --publishers 8 --in-flight 128 --for 10s
  unibusctl bench latency --rate 1000/s
  unibusctl bench e2e --rate 5000/s --json
  unibusctl bench replay --size 128
  unibusctl bench fanout --subscribers 100",
        after_help = "Next: unibusctl status"
    )]
    Bench(BenchCommand),
    /// Profiles: where a cluster is and whom to sign in as
    #[command(
        subcommand,
        visible_alias = "context",
        before_help = "Examples:
  unibusctl profile add bob --identity bob.identity --ca ca.pem --node 10.0.0.1:7400
  unibusctl profile use bob
  unibusctl profile list",
        after_help = "Next: unibusctl whoami"
    )]
    Profile(ProfileCommand),
    #[allow(missing_docs)]
    Completions(CompletionsArgs),
}

/// Examples before options, on every page.
const PAGE: &str = "{about-with-newline}\n{before-help}{usage-heading} {usage}\n\n{all-args}{after-help}";

/// The first page: the commands in groups. A test compares it with the tree.
const FIRST_PAGE: &str = "{about-with-newline}\n{before-help}{usage-heading} {usage}

Messages:
  pub          Publishes messages to a room
  sub          Prints the messages of rooms, stored and live
Rooms:
  room         Rooms and their members
People:
  user         Users of the cluster: the allowlist
  identity     Identities: the key files that sign in
  whoami       Shows who the cluster says that you are, and through which profile
Cluster:
  status       Shows nodes, groups, leaders, lag, disk and agreement of the replicas
  check        Walks the whole client path and says whether it works
  verify       Compares the replicas of all groups at one index
  group        Raft groups: who leads, and moving a leadership
  config       What the nodes run with
  node         Nodes of the cluster: drain, add, remove, replace
Tools:
  bench        Load tests
  profile      Profiles: where a cluster is and whom to sign in as
  completions  Prints a completion script for a shell
  help         Prints the manual of a command

{options}{after-help}";

/// The whole tree, with the manual's layout.
pub fn command() -> ClapCommand {
    fn lay_out(command: ClapCommand) -> ClapCommand {
        command.help_template(PAGE).disable_version_flag(true).mut_subcommands(lay_out)
    }
    Cli::command()
        .mut_subcommands(lay_out)
        .help_template(FIRST_PAGE)
        .after_help("Next: unibusctl help COMMAND; exit codes and more: unibusctl --help")
        .after_long_help(EXIT_CODES)
        .max_term_width(110)
}

impl Cli {
    /// Parses the arguments of the process.
    pub fn parse_from_args<I, T>(args: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        let matches = command().try_get_matches_from(args).map_err(shorten)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command()))
    }
}

/// A wrong value may be of any length; its beginning tells which it is.
fn shorten(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
        && value.chars().count() > SHOWN_MAX
    {
        let short: String = value.chars().take(SHOWN_MAX).chain("...".chars()).collect();
        error.insert(ContextKind::InvalidValue, ContextValue::String(short));
    }
    error
}

#[cfg(test)]
mod tests;
