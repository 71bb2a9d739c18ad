//! How the program ends: the exit codes, and the one error type that leads to them.

use std::io;

use serde_json::{Value, json};
use unibus_proto::code::{ErrorCode, Outcome, Retry};

/// The exit codes. `check` alone has its own, those of Nagios: 0 ok, 1 warning, 2 critical, 3 unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Refused or failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Partly done: the output says how far.
    Partly = 3,
    /// Not signed in, or not permitted.
    Denied = 4,
    /// Unavailable: nothing happened, a retry is safe.
    Unavailable = 5,
    /// Outcome unknown: retry only with the same message id.
    Unknown = 6,
    /// Interrupted by Ctrl-C.
    Interrupted = 130,
}

/// The table of the manual.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    refused or failed
  2    wrong usage
  3    partly done: the output says how far
  4    not signed in, or not permitted
  5    unavailable: nothing happened, a retry is safe
  6    outcome unknown: retry only with the same message id (pub --producer)
  130  interrupted by Ctrl-C
  `check` alone: 0 ok, 1 warning, 2 critical, 3 unknown (as Nagios wants it)";

impl Exit {
    /// The exit code that an [`ErrorCode`] leads to.
    pub fn of(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Unauthenticated | ErrorCode::Forbidden => Self::Denied,
            _ => match code.retry() {
                Retry::Safe => Self::Unavailable,
                Retry::SameId => Self::Unknown,
                Retry::Never | Retry::AfterRepair => Self::Failed,
            },
        }
    }

    /// The number for the operating system.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// Did it happen, as far as this program knows?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// No.
    No,
    /// Some of it; the message says how much.
    Partly,
    /// It may have.
    Unknown,
}

impl Happened {
    fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Partly => "partly",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a command did not do what was asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// How the program ends.
    pub exit: Exit,
    /// The [`ErrorCode`]'s name, or one of this program's own: USAGE, LOCAL, INTERRUPTED.
    pub code: String,
    /// What failed, on what object, what was found, what was expected.
    pub message: String,
    /// May it be tried again?
    pub retry: &'static str,
    /// Did it happen?
    pub happened: Happened,
    /// What to do: if possible the command to run.
    pub remedy: Option<String>,
    /// Nobody is left to tell: the reader of standard output went away.
    pub silent: bool,
}

/// What commands return.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure of this machine: a file, a profile, a terminal.
    pub fn local(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Failed,
            code: "LOCAL".into(),
            message: message.into(),
            retry: "never",
            happened: Happened::No,
            remedy: None,
            silent: false,
        }
    }

    /// Wrong usage that clap cannot see.
    pub fn usage(message: impl Into<String>) -> Self {
        let remedy = Some("unibusctl help COMMAND".into());
        Self { exit: Exit::Usage, code: "USAGE".into(), remedy, ..Self::local(message) }
    }

    /// An answer of the cluster, or of the SDK about the way there.
    pub fn of_code(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            exit: Exit::of(code),
            code: code.as_str().into(),
            retry: retry_word(code.retry()),
            happened: match code.outcome() {
                Outcome::None => Happened::No,
                Outcome::Unknown => Happened::Unknown,
            },
            remedy: remedy(code).map(str::to_owned),
            ..Self::local(message)
        }
    }

    /// The user pressed Ctrl-C; the summary has been printed.
    pub fn interrupted() -> Self {
        Self { exit: Exit::Interrupted, code: "INTERRUPTED".into(), silent: true, ..Self::local("interrupted") }
    }

    /// Puts what was being done before the message.
    pub fn during(mut self, step: impl AsRef<str>) -> Self {
        self.message = format!("{}: {}", step.as_ref(), self.message);
        self
    }

    /// Sets the remedy.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Something was done before it failed.
    pub fn partly(mut self) -> Self {
        self.exit = Exit::Partly;
        self.happened = Happened::Partly;
        self
    }

    /// As text for people; the last line is the remedy.
    pub fn to_text(&self) -> String {
        let mut text = format!("error: {} [{}]", self.message, self.code);
        if self.happened == Happened::Unknown {
            text.push_str("\n  it may have happened: retry only with the same ids");
        }
        if let Some(remedy) = &self.remedy {
            text.push_str(&format!("\n  -> {remedy}"));
        }
        text
    }

    /// As JSON for programs.
    pub fn to_json(&self) -> Value {
        json!({
            "schema": "unibus.cli.v1.error",
            "code": self.code,
            "message": self.message,
            "retry": self.retry,
            "happened": self.happened.as_str(),
            "remedy": self.remedy,
            "exit_code": self.exit.number(),
        })
    }
}

/// A failed write to standard output: a closed pipe ends the program silently, as done.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { exit: Exit::Done, silent: true, ..Self::local("standard output was closed") };
        }
        Self::local(format!("standard output or input: {error}"))
    }
}

fn retry_word(retry: Retry) -> &'static str {
    match retry {
        Retry::Never => "never",
        Retry::Safe => "safe",
        Retry::AfterRepair => "after_repair",
        Retry::SameId => "same_id",
    }
}

fn remedy(code: ErrorCode) -> Option<&'static str> {
    Some(match code {
        ErrorCode::Unauthenticated => {
            "unibusctl profile show; an admin sees with `unibusctl user list` whether this identity may sign in"
        }
        ErrorCode::Forbidden => {
            "unibusctl whoami shows who you are; an admin of the room (room member role) or of the cluster (user role, \
             user reinstate) can permit it"
        }
        ErrorCode::RoomNotFound => {
            "unibusctl room list shows the rooms that you may read; a room's admin lets you in with: unibusctl room member add ROOM USER"
        }
        ErrorCode::UserNotFound => "unibusctl user list",
        ErrorCode::DeviceNotFound => "ask an admin: unibusctl user add HANDLE --key FILE",
        ErrorCode::NoLeader | ErrorCode::NotLeader => {
            "unibusctl status shows what the cluster waits for; then run the same command again"
        }
        ErrorCode::Unreachable => {
            "unibusctl profile show lists the addresses that were tried: are these nodes running? A profile may name several"
        }
        ErrorCode::Draining | ErrorCode::Overloaded | ErrorCode::RateLimited => {
            "wait a moment, then run the same again"
        }
        ErrorCode::DiskFull => "free space on the disk that is named or enlarge it, then run the same again",
        ErrorCode::OutcomeUnknown | ErrorCode::Internal => {
            "unibusctl pub --producer NAME makes a re-run of the same input store each message once"
        }
        ErrorCode::OutOfRange => "unibusctl room info ROOM shows the lowest and the highest sequence",
        ErrorCode::SequenceMismatch => "somebody else changed it meanwhile: run the same again",
        ErrorCode::IdReused | ErrorCode::UnknownProducer | ErrorCode::OutOfOrder => {
            "choose another name: unibusctl pub --producer NAME"
        }
        ErrorCode::Corrupt => "unibusctl status names the node; its log tells the file and the offset",
        ErrorCode::Invalid
        | ErrorCode::AlreadyExists
        | ErrorCode::RoomClosed
        | ErrorCode::VersionSkew
        | ErrorCode::QuotaExceeded => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_leads_to_the_exit_that_its_answers_say() {
        for &code in ErrorCode::ALL {
            let failure = Failure::of_code(code, "x");
            match failure.exit {
                Exit::Unavailable => assert_eq!(code.outcome(), Outcome::None, "{code}"),
                Exit::Unknown => assert_eq!(code.outcome(), Outcome::Unknown, "{code}"),
                Exit::Failed => assert_ne!(code.retry(), Retry::Safe, "{code}"),
                Exit::Denied => assert!(matches!(code, ErrorCode::Unauthenticated | ErrorCode::Forbidden)),
                other => panic!("{code} ends with {other:?}"),
            }
        }
        assert_eq!(Exit::of(ErrorCode::NoLeader), Exit::Unavailable);
        assert_eq!(Exit::of(ErrorCode::OutcomeUnknown), Exit::Unknown);
        assert_eq!(Exit::of(ErrorCode::RoomNotFound), Exit::Failed);
        assert_eq!(Exit::Interrupted.number(), 130);
    }

    #[test]
    fn text_ends_with_the_remedy_and_json_has_every_answer() {
        let failure = Failure::of_code(ErrorCode::OutcomeUnknown, "publish to ops.dpkg: answer lost").during("pub");
        let text = failure.to_text();
        assert!(text.starts_with("error: pub: publish to ops.dpkg: answer lost [OUTCOME_UNKNOWN]"), "{text}");
        assert!(text.lines().last().is_some_and(|line| line.starts_with("  -> unibusctl pub --producer")), "{text}");
        let json = failure.to_json();
        assert_eq!(json["schema"], "unibus.cli.v1.error");
        assert_eq!(json["code"], "OUTCOME_UNKNOWN");
        assert_eq!(json["retry"], "same_id");
        assert_eq!(json["happened"], "unknown");
        assert_eq!(json["exit_code"], 6);
        assert_eq!(Failure::local("x").partly().to_json()["happened"], "partly");
    }

    #[test]
    fn closed_pipe_is_silent_and_done() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(failure.silent);
        assert_eq!(failure.exit, Exit::Done);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::StorageFull)).exit, Exit::Failed);
    }
}
