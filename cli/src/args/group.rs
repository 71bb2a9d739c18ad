//! `group`, `verify` and `config`.

use clap::Subcommand;
use unibus_proto::id::GroupId;

use crate::parse;

/// Commands of `group`.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Lists the Raft groups: who leads, who should, how far the members are
    ///
    /// A group that is led by another node than the preferred one goes back to it by itself as soon as that
    /// node is well. lag counts entries; log is what was written since the last snapshot.
    #[command(
        before_help = "Examples:\n  unibusctl group list\n  unibusctl group list --json",
        after_help = "Next: unibusctl group transfer GROUP NODE"
    )]
    List,
    /// Moves the leadership of a group to another node
    ///
    /// Publishing goes on meanwhile. The group stays there for ten minutes while the node is well, then it
    /// goes back to the preferred node. To empty a node, drain it.
    #[command(
        before_help = "Examples:\n  unibusctl group transfer s3 n2\n  unibusctl group transfer meta n1",
        after_help = "Next: unibusctl group list"
    )]
    Transfer {
        /// The group: meta, s1, s2, ...
        #[arg(value_parser = parse::group)]
        group: GroupId,
        /// The node: name or id
        #[arg(value_name = "NODE")]
        which: String,
    },
}

/// Compares the replicas of all groups at one index
///
/// Each group agrees on an entry; at it, all nodes compare the hash of their whole state, and their sealed
/// segments. Exit code: 0 all hold the same, 1 something differs, 3 a node could not be asked.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  unibusctl verify\n  unibusctl verify --json",
    after_help = "Next: unibusctl status --groups"
)]
pub struct VerifyArgs {}

/// Commands of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Shows what a node runs with: every key, its value, and where that comes from
    ///
    /// Flags rule over the environment, the environment over the file, the file over the defaults. Keys and
    /// certificates are shown as paths.
    #[command(
        before_help = "Examples:\n  unibusctl config effective --node n1\n  unibusctl --node n2 config effective --json",
        after_help = "Next: unibus-node check-config FILE, on the host of the node"
    )]
    Effective,
}
