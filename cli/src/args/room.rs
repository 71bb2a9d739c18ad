//! `room`.

use clap::{Args, Subcommand, ValueEnum};
use unibus_proto::id::Handle;
use unibus_proto::subject::{Subject, SubjectFilter};
use unibus_proto::v1::RoomRole;

use crate::parse;

/// Commands of `room`.
#[derive(Debug, Subcommand)]
pub enum RoomCommand {
    /// Makes a room; you become its admin
    #[command(
        before_help = "Examples:
  unibusctl room create ops.dpkg --plaintext
  unibusctl room create ops.metrics --plaintext --retain-age 7d --retain-bytes 1GiB
  unibusctl room create live.cpu --plaintext --ephemeral",
        after_help = "Next: unibusctl pub SUBJECT --lines < FILE"
    )]
    Create {
        /// Its subject: tokens of A-Z a-z 0-9 _ - joined by dots
        subject: Subject,
        /// The nodes may read the messages. Required: encrypted rooms do not exist yet
        #[arg(long)]
        plaintext: bool,
        /// Store no messages: each goes at once to whoever is subscribed, at most once. For ever: a room does not
        /// change from one to the other
        #[arg(long, conflicts_with_all = ["retain_age", "retain_bytes", "retain_messages"])]
        ephemeral: bool,
        #[command(flatten)]
        retain: RetainArgs,
    },
    /// Changes how long the entries of a room are kept; only its admins may
    #[command(
        before_help = "Examples:
  unibusctl room update ops.dpkg --retain-age 7d
  unibusctl room update ops.dpkg --retain-bytes 1GiB --retain-messages none",
        after_help = "Next: unibusctl room info SUBJECT"
    )]
    Update {
        /// The room
        subject: Subject,
        #[command(flatten)]
        retain: RetainArgs,
    },
    /// Lists the rooms that you may read
    #[command(
        before_help = "Examples:\n  unibusctl room list\n  unibusctl room list 'ops.>' --json",
        after_help = "Next: unibusctl room info SUBJECT"
    )]
    List {
        /// Only subjects that match
        filter: Option<SubjectFilter>,
        /// At most so many
        #[arg(long, default_value_t = 100, value_name = "ROOMS")]
        limit: u32,
    },
    /// Shows a room: policy, sequences, members, leader
    #[command(
        visible_alias = "get",
        before_help = "Examples:\n  unibusctl room info ops.dpkg",
        after_help = "Next: unibusctl sub SUBJECT --from earliest --until-end"
    )]
    Info {
        /// The room
        subject: Subject,
    },
    /// Members of a room and their roles
    #[command(
        subcommand,
        before_help = "Examples:
  unibusctl room member list ops.dpkg
  unibusctl room member add ops.dpkg bob --role reader
  unibusctl room member remove ops.dpkg bob",
        after_help = "Next: unibusctl room member list SUBJECT"
    )]
    Member(MemberCommand),
}

/// How long entries are kept. What is not given stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args)]
pub struct RetainArgs {
    /// Keep entries so long, by log time: 90m, 7d; none = for ever. Roster events count as entries, but the
    /// roster itself stays whole
    #[arg(long, value_name = "TIME", value_parser = parse::retain_age)]
    pub retain_age: Option<u64>,
    /// Keep so many bytes of the newest entries: 512MiB, 1GiB; none = all
    #[arg(long, value_name = "BYTES", value_parser = parse::retain_bytes)]
    pub retain_bytes: Option<u64>,
    /// Keep so many of the newest entries; none = all
    #[arg(long, value_name = "COUNT", value_parser = parse::retain_messages)]
    pub retain_messages: Option<u64>,
}

/// Commands of `room member`.
#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// Adds a user to a room
    #[command(
        before_help = "Examples:\n  unibusctl room member add ops.dpkg bob --role reader",
        after_help = "Next: unibusctl room member list SUBJECT"
    )]
    Add {
        /// The room
        subject: Subject,
        /// The user
        user: Handle,
        /// What he may do
        #[arg(long, value_enum, default_value_t = RoomRoleArg::Member)]
        role: RoomRoleArg,
    },
    /// Removes a user from a room; he reads and publishes nothing after it
    #[command(
        visible_alias = "rm",
        before_help = "Examples:\n  unibusctl room member remove ops.dpkg bob --yes",
        after_help = "Next: unibusctl room member list SUBJECT"
    )]
    Remove {
        /// The room
        subject: Subject,
        /// The user
        user: Handle,
    },
    /// Changes a member's role
    #[command(
        before_help = "Examples:\n  unibusctl room member role ops.dpkg bob member",
        after_help = "Next: unibusctl room member list SUBJECT"
    )]
    Role {
        /// The room
        subject: Subject,
        /// The user
        user: Handle,
        /// What he may do from now on
        #[arg(value_enum)]
        role: RoomRoleArg,
    },
    /// Lists the members of a room
    #[command(
        before_help = "Examples:\n  unibusctl room member list ops.dpkg",
        after_help = "Next: unibusctl room member add SUBJECT USER --role reader"
    )]
    List {
        /// The room
        subject: Subject,
    },
}

/// A role in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoomRoleArg {
    /// Reads
    Reader,
    /// Reads and publishes
    Member,
    /// Reads, publishes, and changes members and policy
    Admin,
}

impl From<RoomRoleArg> for RoomRole {
    fn from(role: RoomRoleArg) -> Self {
        match role {
            RoomRoleArg::Reader => Self::Reader,
            RoomRoleArg::Member => Self::Member,
            RoomRoleArg::Admin => Self::Admin,
        }
    }
}
