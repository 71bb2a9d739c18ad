//! `pub` and `sub`.

use std::num::NonZeroU32;
use std::time::Duration;

use unibus_proto::subject::{Subject, SubjectFilter};

use crate::parse::{self, StartAt};

/// Publishes messages to a room
///
/// Each message is acknowledged when it is fsynced on a majority of the nodes; a lost answer is retried
/// with the same id, so nothing is stored twice. What was stored is said on standard error:
/// `stored: sequence 1..4711, fsynced on a majority of 3`.
///
/// Messages to an ephemeral room are sent once to whoever is subscribed: `sent to 2 nodes, not stored`.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl pub ops.dpkg 'hello'
  unibusctl pub ops.dpkg --lines < /var/log/dpkg.log
  tail -F app.log | unibusctl pub ops.app --lines -H host:web1
  unibusctl pub ops.dpkg --lines --producer import-1 < dump.log   # safe to run again",
    after_help = "Next: unibusctl sub SUBJECT --from earliest --until-end"
)]
pub struct PubArgs {
    /// The room
    pub subject: Subject,

    /// The message; `-` reads one message from standard input
    #[arg(required_unless_present = "lines", allow_negative_numbers = true)]
    pub body: Option<String>,

    /// Each line of standard input is a message
    ///
    /// The line's terminator stays in the body, and a last line without one stays without, so that
    /// `sub --raw` gives the same bytes back.
    #[arg(long, conflicts_with = "body")]
    pub lines: bool,

    /// A header of every message; may be repeated
    ///
    /// Headers travel beside the body and stay readable to the nodes, also in encrypted rooms.
    #[arg(long, short = 'H', value_name = "NAME:VALUE", value_parser = parse::header)]
    pub header: Vec<(String, String)>,

    /// Publish no faster than so many messages per second
    #[arg(long, value_name = "MESSAGES", value_parser = parse::rate)]
    pub rate: Option<NonZeroU32>,

    /// Number the messages under this name: a second run of the same input stores nothing twice
    ///
    /// The name belongs to this device and room and is remembered for 24 h after its last message. The same
    /// name with other input is refused (ID_REUSED).
    #[arg(long, value_name = "NAME")]
    pub producer: Option<String>,
}

/// Prints the messages of rooms, stored and live
///
/// A filter selects rooms: `*` stands for one token, a last `>` for one or more. Rooms created later are
/// included. When a node fails, another goes on where it stopped: no gap, no duplicate.
///
/// The messages of ephemeral rooms come while they are published, or never: such a room cannot be read from
/// earlier on, nor to an end.
///
/// One message per line: time, subject, sequence, user, body. Binary bodies are shown by length and first
/// bytes; `--raw` and `--json` give them whole.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:
  unibusctl sub 'ops.>'
  unibusctl sub ops.dpkg --since 2h
  unibusctl sub ops.dpkg --from earliest --until-end --raw | sha256sum
  unibusctl sub 'ops.>' --json | jq -r .user",
    after_help = "Next: unibusctl room info SUBJECT"
)]
#[command(group = clap::ArgGroup::new("start").args(["from", "since"]))]
pub struct SubArgs {
    /// A room's subject, or a filter over the rooms that you may read
    pub filter: SubjectFilter,

    /// Where to start: `earliest`, `latest` or a sequence
    #[arg(long, value_name = "earliest|latest|SEQ", value_parser = parse::start_at)]
    pub from: Option<StartAt>,

    /// Start with what was stored so long ago
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub since: Option<Duration>,

    /// End at the newest message that was there at the start
    #[arg(long, requires = "start")]
    pub until_end: bool,

    /// Write the bodies and nothing else
    #[arg(long)]
    pub raw: bool,

    /// End after so many messages
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}
