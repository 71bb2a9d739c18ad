//! The one error of the SDK: what happened, whether it may have had an effect, and whether to try again.

use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use unibus_proto::code::{GrpcCode, Outcome, Retry};
use unibus_proto::id::NodeId;
use unibus_proto::v1;

pub use unibus_proto::code::ErrorCode;

/// The domain of the details that nodes attach to a status.
const DOMAIN: &str = "unibus";

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The kind; ask it whether to retry.
    pub code: ErrorCode,
    /// What was found, what was expected and what to do.
    pub message: String,
    /// The node asks to wait so long before a retry.
    pub retry_after: Option<Duration>,
    /// The node that leads, as far as the answering node knows.
    pub leader: Option<NodeId>,
    /// Whether the call may have had an effect.
    pub outcome: Outcome,
    /// For `SEQUENCE_MISMATCH` and `OUT_OF_ORDER`: what comes next.
    pub expected: Option<u64>,
    /// For `OUT_OF_RANGE`: the lowest and the highest sequence that can be read.
    pub range: Option<(u64, u64)>,
}

impl Error {
    /// An error without hints; the outcome is the code's.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after: None,
            leader: None,
            outcome: code.outcome(),
            expected: None,
            range: None,
        }
    }

    /// Whether the same call may succeed later or elsewhere.
    pub fn is_transient(&self) -> bool {
        matches!(self.code.retry(), Retry::Safe | Retry::SameId)
    }

    /// A node that could not be reached; nothing was sent.
    pub(crate) fn unreachable(address: &str, cause: &dyn fmt::Display) -> Self {
        Self::new(ErrorCode::Unreachable, format!("node {address} cannot be reached: {cause}"))
    }

    /// A call that got no answer: it may have happened, as its outcome says.
    pub(crate) fn lost(what: impl fmt::Display) -> Self {
        Self::new(ErrorCode::OutcomeUnknown, what.to_string())
    }

    /// What a node has said before outweighs that another one cannot be reached now.
    pub(crate) fn or_said(self, before: Option<Self>) -> Self {
        let was_said = |error: &Self| !matches!(error.code, ErrorCode::Unreachable | ErrorCode::OutcomeUnknown);
        before.filter(|before| self.code == ErrorCode::Unreachable && was_said(before)).unwrap_or(self)
    }

    /// Says that an attempt before this one may have had an effect.
    pub(crate) fn after_lost_attempt(mut self) -> Self {
        self.outcome = Outcome::Unknown;
        self
    }

    /// Parses a node's status. One without our details (a proxy, a broken stream, a deadline) says
    /// nothing about what happened.
    pub(crate) fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN);
        let Some(info) = info else {
            let why = status.message();
            let why = if why.is_empty() { status.code().description() } else { why };
            return Self::lost(format_args!("the answer was lost: {why}"));
        };
        let number = |name: &str| info.metadata.get(name).and_then(|text| text.parse::<u64>().ok());
        let code = info.reason.parse().unwrap_or_else(|()| unknown_reason(status.code()));
        let outcome = match info.metadata.get("outcome").map(String::as_str) {
            Some("none") => Outcome::None,
            Some(_) => Outcome::Unknown,
            None => code.outcome(),
        };
        Self {
            code,
            message: status.message().into(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            leader: number("leader").filter(|&id| id != 0).map(NodeId),
            outcome,
            expected: number("expected"),
            range: number("floor").zip(number("head")),
        }
    }

    /// Parses the failure of a request on a publish stream.
    pub(crate) fn from_failure(failure: &v1::Failure, leader: u64) -> Self {
        let code = failure.code.parse().unwrap_or(ErrorCode::VersionSkew);
        Self {
            retry_after: (failure.retry_after_ms != 0).then(|| Duration::from_millis(failure.retry_after_ms)),
            leader: (leader != 0).then_some(NodeId(leader)),
            outcome: if failure.outcome == "none" { Outcome::None } else { Outcome::Unknown },
            ..Self::new(code, failure.message.clone())
        }
    }

    /// Parses a deterministic refusal.
    pub(crate) fn from_reject(reject: &v1::Reject) -> Self {
        Self {
            outcome: Outcome::None,
            expected: Some(reject.expected),
            range: Some((reject.floor, reject.head)),
            ..Self::new(reject.error_code(), reject.message.clone())
        }
    }

    /// The status that a node would send for this.
    pub(crate) fn into_status(self) -> Status {
        let mut details = ErrorDetails::new();
        let outcome = [("outcome".to_owned(), self.outcome.as_str().to_owned())];
        details.set_error_info(self.code.as_str(), DOMAIN, outcome);
        Status::with_error_details(Code::from_i32(self.code.grpc() as i32), self.message, details)
    }
}

/// A reason that this version does not know: the closest of its own with the same gRPC status.
fn unknown_reason(code: Code) -> ErrorCode {
    let same = |known: &&ErrorCode| known.grpc() as i32 == code as i32;
    match code {
        Code::Unknown | Code::Internal => ErrorCode::OutcomeUnknown,
        Code::Unavailable => ErrorCode::Draining,
        _ if code as i32 == GrpcCode::Aborted as i32 => ErrorCode::VersionSkew,
        _ => ErrorCode::ALL.iter().find(same).copied().unwrap_or(ErrorCode::VersionSkew),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Error {}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::from_status(&status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<const N: usize>(code: Code, reason: &str, domain: &str, metadata: [(&str, &str); N]) -> Error {
        let mut details = ErrorDetails::new();
        let metadata = metadata.map(|(name, value)| (name.to_owned(), value.to_owned()));
        details.set_error_info(reason, domain, metadata).set_retry_info(Some(Duration::from_millis(30)));
        Error::from_status(&Status::with_error_details(code, "said", details))
    }

    #[test]
    fn reads_the_details_of_a_node() {
        let metadata = [("outcome", "none"), ("leader", "3"), ("expected", "7"), ("floor", "2"), ("head", "9")];
        let error = parse(Code::Unavailable, "NOT_LEADER", "unibus", metadata);
        assert_eq!((error.code, error.outcome), (ErrorCode::NotLeader, Outcome::None));
        assert_eq!((error.leader, error.expected, error.range), (Some(NodeId(3)), Some(7), Some((2, 9))));
        assert_eq!((error.retry_after, &*error.message), (Some(Duration::from_millis(30)), "said"));
    }

    #[test]
    fn a_status_without_our_details_says_nothing_about_the_outcome() {
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Internal, Code::Cancelled, Code::NotFound] {
            let error = Error::from_status(&Status::new(code, "from a proxy"));
            assert_eq!((error.code, error.outcome), (ErrorCode::OutcomeUnknown, Outcome::Unknown));
            assert!(error.is_transient());
        }
        assert_eq!(parse(Code::NotFound, "ROOM_NOT_FOUND", "proxy", []).code, ErrorCode::OutcomeUnknown);
    }

    #[test]
    fn a_newer_node_is_understood_by_its_status() {
        let parsed = |code| parse(code, "SOMETHING_NEW", "unibus", [("outcome", "none")]);
        assert_eq!(parsed(Code::PermissionDenied).code, ErrorCode::Forbidden);
        assert_eq!(parsed(Code::Unavailable).code, ErrorCode::Draining);
        assert_eq!(parsed(Code::Aborted).code, ErrorCode::VersionSkew);
        assert_eq!(parsed(Code::Unknown).code, ErrorCode::OutcomeUnknown);
        assert!(!parsed(Code::FailedPrecondition).is_transient());
    }

    #[test]
    fn an_error_survives_its_status() {
        for &code in ErrorCode::ALL {
            let error = Error::new(code, "why");
            assert_eq!(Error::from_status(&error.clone().into_status()), error);
        }
    }
}
