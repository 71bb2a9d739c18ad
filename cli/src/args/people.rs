//! `user` and `identity`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use unibus_proto::id::Handle;
use unibus_proto::v1::{DeviceKind, UserRole};

/// Commands of `user`.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    #[allow(missing_docs)]
    Add(UserAddArgs),
    /// Lists the users
    #[command(
        before_help = "Examples:\n  unibusctl user list\n  unibusctl user list --json",
        after_help = "Next: unibusctl user info HANDLE"
    )]
    List {
        /// At most so many
        #[arg(long, default_value_t = 1000, value_name = "USERS")]
        limit: u32,
    },
    /// Shows a user: role, status, key fingerprint
    #[command(
        visible_alias = "get",
        before_help = "Examples:\n  unibusctl user info bob",
        after_help = "Next: unibusctl user role HANDLE admin"
    )]
    Info {
        /// The user
        handle: Handle,
    },
    /// Changes a user's role in the cluster
    #[command(before_help = "Examples:\n  unibusctl user role bob admin", after_help = "Next: unibusctl user list")]
    Role {
        /// The user
        handle: Handle,
        /// The role from now on
        #[arg(value_enum)]
        role: RoleArg,
    },
    /// Ends a user's access, on streams already open too
    #[command(
        before_help = "Examples:\n  unibusctl user revoke bob --yes",
        after_help = "Next: unibusctl user reinstate HANDLE undoes it"
    )]
    Revoke {
        /// The user
        handle: Handle,
    },
    /// Gives a revoked user access again
    #[command(before_help = "Examples:\n  unibusctl user reinstate bob", after_help = "Next: unibusctl user list")]
    Reinstate {
        /// The user
        handle: Handle,
    },
}

/// Lets a user sign in
///
/// The same user again changes nothing and is no error; another key under the same handle is refused:
/// nothing is ever overwritten.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl user add bob --key bob.pub
  unibusctl user add carol --key carol.pub --role admin",
    after_help = "Next: unibusctl room member add SUBJECT USER --role reader"
)]
pub struct UserAddArgs {
    /// The user's name in this cluster
    pub handle: Handle,
    /// The user's public card: HANDLE.pub, as `identity new` writes it. It holds no secret
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// What the user may do with the cluster. It is no right to read rooms
    #[arg(long, value_enum, default_value_t = RoleArg::Member)]
    pub role: RoleArg,
}

/// Commands of `identity`.
#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    #[allow(missing_docs)]
    New(IdentityNewArgs),
}

/// Makes an identity: a file of secret keys, and a public card to hand to an admin
///
/// Writes HANDLE.identity (mode 0600; keep it, it cannot be restored) and HANDLE.pub (for
/// `user add --key`). Existing files are never overwritten. Nothing leaves this machine.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl identity new bob
  unibusctl identity new scout --kind agent --out /etc/scout",
    after_help = "Next: an admin runs: unibusctl user add HANDLE --key HANDLE.pub"
)]
pub struct IdentityNewArgs {
    /// The user's name: 1 to 64 of a-z 0-9 . _ -, starting with a letter or digit
    pub handle: Handle,
    /// Where to write the two files
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    /// What it is used by
    #[arg(long, value_enum, default_value_t = IdentityKind::Person)]
    pub kind: IdentityKind,
}

/// What an identity is used by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IdentityKind {
    /// A person
    Person,
    /// An unattended service
    Service,
    /// An LLM agent
    Agent,
}

impl From<IdentityKind> for DeviceKind {
    fn from(kind: IdentityKind) -> Self {
        match kind {
            IdentityKind::Person => Self::Person,
            IdentityKind::Service => Self::Service,
            IdentityKind::Agent => Self::Agent,
        }
    }
}

/// A role in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Creates rooms and uses those that he is a member of
    Member,
    /// Also manages users and nodes
    Admin,
}

impl From<RoleArg> for UserRole {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Member => Self::Member,
            RoleArg::Admin => Self::Admin,
        }
    }
}
