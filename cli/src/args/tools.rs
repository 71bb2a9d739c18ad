//! `profile` and `completions`.

use std::path::PathBuf;

use clap::Subcommand;
use clap_complete::Shell;

use crate::parse;

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
