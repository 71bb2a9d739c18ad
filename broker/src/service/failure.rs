//! Why a request failed: the one error of the service.

use std::time::Duration;

use unibus_proto::code::ErrorCode;
use unibus_proto::v1::{self, Reject};

/// Why a request failed. The message names the step, the object, what was found, what was expected
/// and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failure {
    /// Which of the system's errors; says whether it happened and whether to retry.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// Waiting so long before a retry helps.
    pub retry_after: Option<Duration>,
    /// Facts for programs: `expected`, `floor`, `head`, `leader`.
    pub facts: Vec<(&'static str, String)>,
}

/// The result of a request.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure without hint or facts.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None, facts: Vec::new() }
    }

    /// A malformed request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Invalid, message)
    }

    /// No valid sign-in.
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unauthenticated, message)
    }

    /// The caller may not do this.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Forbidden, message)
    }

    /// The same with a hint when a retry may help.
    #[must_use]
    pub fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The same with a fact for programs.
    #[must_use]
    pub fn fact(mut self, name: &'static str, value: impl ToString) -> Self {
        self.facts.push((name, value.to_string()));
        self
    }

    /// As an element of a publish stream.
    pub fn to_message(&self) -> v1::Failure {
        v1::Failure {
            code: self.code.as_str().into(),
            message: self.message.clone(),
            outcome: self.code.outcome().as_str().into(),
            retry_after_ms: self.retry_after.map_or(0, |wait| wait.as_millis() as u64),
        }
    }
}

impl From<Reject> for Failure {
    fn from(reject: Reject) -> Self {
        let code = reject.error_code();
        let failure = Self::new(code, reject.message);
        match code {
            ErrorCode::OutOfRange => failure.fact("floor", reject.floor).fact("head", reject.head),
            ErrorCode::OutOfOrder | ErrorCode::SequenceMismatch => failure.fact("expected", reject.expected),
            _ => failure,
        }
    }
}

impl From<unibus_proto::id::InvalidId> for Failure {
    fn from(error: unibus_proto::id::InvalidId) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<unibus_proto::subject::InvalidSubject> for Failure {
    fn from(error: unibus_proto::subject::InvalidSubject) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<unibus_proto::signed::SignatureError> for Failure {
    fn from(error: unibus_proto::signed::SignatureError) -> Self {
        Self::invalid(error.to_string())
    }
}
