//! `node`.

use clap::Subcommand;

/// Commands of `node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Lists the nodes: what is wanted of each, and in how many groups it is so
    ///
    /// Nodes that ask to be taken in come last. What a change waits for is said on standard error.
    #[command(
        before_help = "Examples:\n  unibusctl node list\n  unibusctl node list --json",
        after_help = "Next: unibusctl node drain NODE"
    )]
    List {
        /// Removed nodes too
        #[arg(long)]
        all: bool,
    },
    /// Takes in a node that asks for it: it learns, then votes, in every group
    ///
    /// The node runs with a folder that `unibus-node plan --add` made, and says that it waits.
    #[command(
        before_help = "Examples:\n  unibusctl node add n4\n  unibusctl node add n4 --no-wait",
        after_help = "Next: unibusctl node list"
    )]
    Add(NodeArgs),
    /// Hands a node's leaderships over, and keeps it from leading until `undrain`
    ///
    /// When it returns, the node leads nothing and is safe to stop.
    #[command(
        before_help = "Examples:\n  unibusctl node drain n2",
        after_help = "Next: stop the node; when it is back: unibusctl node undrain NODE"
    )]
    Drain(NodeArgs),
    /// Lets a drained node lead again
    #[command(before_help = "Examples:\n  unibusctl node undrain n2", after_help = "Next: unibusctl node list")]
    Undrain {
        /// The node: name or id
        #[arg(value_name = "NODE")]
        which: String,
    },
    /// Takes a node out of the cluster for good
    ///
    /// It hands its leaderships over and leaves every group; then it is cut off. Refused when the nodes that
    /// would be left are no live majority. Its id is never used again.
    #[command(before_help = "Examples:\n  unibusctl node remove n3 --yes", after_help = "Next: unibusctl node list")]
    Remove(NodeArgs),
    /// Puts the node --with, which asks to be taken in, into the place of NODE, lost or not
    ///
    /// The new node learns, then votes; with its vote the old one leaves each group.
    #[command(
        before_help = "Examples:\n  unibusctl node replace n3 --with n4",
        after_help = "Next: unibusctl node list"
    )]
    Replace {
        #[command(flatten)]
        node: NodeArgs,
        /// The node that asks to be taken in: name or id
        #[arg(long, value_name = "NODE")]
        with: String,
    },
}

/// The node that a change is about, and whether to wait until it is done.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// The node: name or id
    #[arg(value_name = "NODE")]
    pub which: String,

    /// Return once it is recorded; the cluster carries it out all the same
    #[arg(long)]
    pub no_wait: bool,
}
