//! The one place where a [`Failure`] becomes a gRPC status.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::service::Failure;

/// The type that `tonic_types` wants; nothing here depends on its order.
#[allow(clippy::disallowed_types, reason = "the type of a field of ErrorInfo")]
type Metadata = std::collections::HashMap<String, String>;

/// The domain of our reasons.
const DOMAIN: &str = "unibus";

/// A failure as a status with an `ErrorInfo` (reason, domain, metadata `outcome` and facts) and, where
/// waiting helps, a `RetryInfo`.
pub fn to_status(failure: Failure) -> Status {
    let facts = failure.facts.iter().map(|(name, value)| ((*name).to_string(), value.clone()));
    let outcome = ("outcome".to_string(), failure.code.outcome().as_str().to_string());
    let metadata = facts.chain([outcome]).collect::<Metadata>();
    let mut details = ErrorDetails::new();
    details.set_error_info(failure.code.as_str(), DOMAIN, metadata);
    if let Some(wait) = failure.retry_after {
        details.set_retry_info(Some(wait));
    }
    Status::with_error_details(Code::from(failure.code.grpc() as i32), failure.message, details)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use unibus_proto::code::ErrorCode;

    use super::*;

    #[test]
    fn every_code_keeps_its_reason_and_outcome() {
        for &code in ErrorCode::ALL {
            let status = to_status(Failure::new(code, "why").fact("head", 7));
            assert_eq!(status.code() as i32, code.grpc() as i32);
            assert_eq!(status.message(), "why");
            let info = status.get_details_error_info().expect("an ErrorInfo");
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (code.as_str(), "unibus"));
            assert_eq!(info.metadata["outcome"], code.outcome().as_str());
            assert_eq!(info.metadata["head"], "7");
            assert!(status.get_details_retry_info().is_none());
        }
    }

    #[test]
    fn a_hint_becomes_a_retry_info() {
        let status = to_status(Failure::new(ErrorCode::Overloaded, "full").after(Duration::from_millis(100)));
        let retry = status.get_details_retry_info().expect("a RetryInfo");
        assert_eq!(retry.retry_delay, Some(Duration::from_millis(100)));
    }
}
