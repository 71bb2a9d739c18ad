//! The one error code of the system, with its three exhaustive answers: which gRPC status, may I
//! retry, did it happen (ARCHITECTURE section 12).

use std::fmt;
use std::str::FromStr;

use crate::v1::Reject;

/// May the caller try again?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// No: the same request gives the same answer.
    Never,
    /// Yes, at once or after the hinted time: nothing happened.
    Safe,
    /// After a repair: re-read, resend from the expected number, open a new producer, rejoin, sign in.
    AfterRepair,
    /// Only with the same message or request id: it may have happened.
    SameId,
}

/// Did the request have an effect?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No.
    None,
    /// It may have.
    Unknown,
}

impl Outcome {
    /// The word in the metadata of an `ErrorInfo`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $grpc:ident, $retry:ident, $outcome:ident;)*) => {
        /// Why a request failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ErrorCode { $($(#[$doc])* $name,)* }

        impl ErrorCode {
            /// All codes.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in UPPER_SNAKE, as in `ErrorInfo.reason` and `Reject.code`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The gRPC status.
            pub fn grpc(self) -> GrpcCode {
                match self { $(Self::$name => GrpcCode::$grpc,)* }
            }

            /// May the caller try again?
            pub fn retry(self) -> Retry {
                match self { $(Self::$name => Retry::$retry,)* }
            }

            /// Did it happen?
            pub fn outcome(self) -> Outcome {
                match self { $(Self::$name => Outcome::$outcome,)* }
            }
        }

        impl FromStr for ErrorCode {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($text => Ok(Self::$name),)* _ => Err(()) }
            }
        }
    };
}

codes! {
    /// A malformed name, subject, size, frame, signature or document.
    Invalid = "INVALID", InvalidArgument, Never, None;
    /// No valid sign-in; sign in (again).
    Unauthenticated = "UNAUTHENTICATED", Unauthenticated, AfterRepair, None;
    /// The caller may read the object but not do this, or is revoked.
    Forbidden = "FORBIDDEN", PermissionDenied, Never, None;
    /// No such room, or no right to read it.
    RoomNotFound = "ROOM_NOT_FOUND", NotFound, Never, None;
    /// No such user.
    UserNotFound = "USER_NOT_FOUND", NotFound, Never, None;
    /// No such device, or it has ended.
    DeviceNotFound = "DEVICE_NOT_FOUND", NotFound, Never, None;
    /// Another object has this name or id.
    AlreadyExists = "ALREADY_EXISTS", AlreadyExists, Never, None;
    /// A signed document does not follow the newest one: re-read and sign again.
    SequenceMismatch = "SEQUENCE_MISMATCH", Aborted, AfterRepair, None;
    /// A message's number is not the next one: resend from the expected number.
    OutOfOrder = "OUT_OF_ORDER", Aborted, AfterRepair, None;
    /// The producer is not known, or too old: open a new one.
    UnknownProducer = "UNKNOWN_PRODUCER", Aborted, AfterRepair, None;
    /// The same message or request id came with other content.
    IdReused = "ID_REUSED", Aborted, Never, None;
    /// The room has been closed.
    RoomClosed = "ROOM_CLOSED", FailedPrecondition, Never, None;
    /// The request needs a newer version, or something that this one does not do.
    VersionSkew = "VERSION_SKEW", FailedPrecondition, Never, None;
    /// A position outside the timeline: between floor and head it would be valid.
    OutOfRange = "OUT_OF_RANGE", OutOfRange, AfterRepair, None;
    /// Too many requests: wait for the hinted time.
    RateLimited = "RATE_LIMITED", ResourceExhausted, Safe, None;
    /// A quota or limit on the number of objects is reached.
    QuotaExceeded = "QUOTA_EXCEEDED", ResourceExhausted, Never, None;
    /// The node or the subscriber is behind: wait for the hinted time, or resume.
    Overloaded = "OVERLOADED", ResourceExhausted, Safe, None;
    /// The leader, or a majority of the group's nodes, has no disk space for it. Nothing was stored.
    DiskFull = "DISK_FULL", ResourceExhausted, Safe, None;
    /// This node does not lead the group; refused before it was proposed.
    NotLeader = "NOT_LEADER", Unavailable, Safe, None;
    /// The group has no leader: no quorum, or an election is under way. Nothing was proposed.
    NoLeader = "NO_LEADER", Unavailable, Safe, None;
    /// The node is shutting down, or cannot serve this while its disk is full; use another.
    Draining = "DRAINING", Unavailable, Safe, None;
    /// The node could not be reached; nothing was sent.
    Unreachable = "UNREACHABLE", Unavailable, Safe, None;
    /// Proposed, but the answer was lost: it may have happened.
    OutcomeUnknown = "OUTCOME_UNKNOWN", Unknown, SameId, Unknown;
    /// Damage to stored bytes was found; they are not served.
    Corrupt = "CORRUPT", DataLoss, Never, None;
    /// A defect of the program.
    Internal = "INTERNAL", Internal, SameId, Unknown;
}

/// The gRPC status codes that unibus uses, by their standard numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum GrpcCode {
    Unknown = 2,
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Reject {
    /// A reject that says what was found, what was expected and what to do.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code: code.as_str().into(), message: message.into(), ..Self::default() }
    }

    /// The code; a name that this version does not know counts as [`ErrorCode::VersionSkew`].
    pub fn error_code(&self) -> ErrorCode {
        self.code.parse().unwrap_or(ErrorCode::VersionSkew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for &code in ErrorCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(code));
        }
    }

    #[test]
    fn only_unknown_outcomes_need_the_same_id() {
        for &code in ErrorCode::ALL {
            assert_eq!(code.outcome() == Outcome::Unknown, code.retry() == Retry::SameId, "{code}");
        }
    }
}
