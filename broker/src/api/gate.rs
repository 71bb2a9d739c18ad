//! What every request passes before a byte of its message is read: who calls, within which time, on which
//! connection. A new RPC is behind it without doing anything.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Request};
use tonic::Status;
use tonic_types::StatusExt;
use unibus_proto::code::ErrorCode;
use unibus_raft_store::env::{Env, timeout};

use super::connection::{Connection, SignInPermit};
use super::{LocalCaller, to_status};
use crate::service::{Caller, Failure, Outcome, Service};

/// Bytes of the `authorization` entry: a token of 4 KiB in base64.
const AUTHORIZATION_BYTES_MAX: usize = 6 << 10;
/// What stands before the token.
const SCHEME: &str = "Unibus ";
/// The longest that a call takes which goes through several groups one after another, each within its
/// patience of 2 s: making a room is five steps.
const UNARY_PATIENCE: Duration = Duration::from_secs(15);
/// Whoever has not signed in yet gets less.
const SIGN_IN_PATIENCE: Duration = Duration::from_secs(10);
/// A snapshot of every group on a slow disk.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(600);

/// What is different about an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rpc {
    /// Needs no token.
    SignIn,
    /// Has no deadline: it lives as long as the caller wants it.
    Stream,
    Snapshot,
    Unary,
}

impl Rpc {
    fn of(path: &str) -> Self {
        match path {
            "/unibus.v1.AuthService/Challenge" | "/unibus.v1.AuthService/SignIn" => Self::SignIn,
            "/unibus.v1.MessageService/PublishStream" | "/unibus.v1.MessageService/Subscribe" => Self::Stream,
            "/unibus.v1.ClusterService/Snapshot" => Self::Snapshot,
            _ => Self::Unary,
        }
    }

    fn patience(self) -> Option<Duration> {
        match self {
            Self::SignIn => Some(SIGN_IN_PATIENCE),
            Self::Stream => None,
            Self::Snapshot => Some(SNAPSHOT_PATIENCE),
            Self::Unary => Some(UNARY_PATIENCE),
        }
    }

    /// How long the request may take: the caller may ask for less than we give, not for more.
    fn deadline(self, headers: &HeaderMap) -> Outcome<Option<Duration>> {
        let Some(patience) = self.patience() else { return Ok(None) };
        let Some(asked) = headers.get("grpc-timeout") else { return Ok(Some(patience)) };
        let asked = asked.to_str().ok().and_then(parse_timeout).ok_or_else(|| {
            Failure::invalid("grpc-timeout: malformed, expected at most 8 digits and one of H, M, S, m, u, n")
        })?;
        if asked.is_zero() {
            return Err(Failure::invalid("grpc-timeout: found 0, the deadline has passed; nothing was done"));
        }
        // A little less, so that our answer arrives before the caller gives up.
        Ok(Some((asked - asked / 20).min(patience)))
    }
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(amount * 3600),
        'M' => Duration::from_secs(amount * 60),
        'S' => Duration::from_secs(amount),
        'm' => Duration::from_millis(amount),
        'u' => Duration::from_micros(amount),
        'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Lets a request through, with its [`Caller`] in the extensions, or answers it.
pub(super) async fn pass<E: Env>(State(service): State<Service<E>>, request: Request<Body>, next: Next) -> Response {
    let rpc = Rpc::of(request.uri().path());
    let response = match rpc.deadline(request.headers()) {
        Ok(Some(deadline)) => {
            let answered = timeout::<E, _>(deadline, answer(&service, rpc, request, next)).await;
            answered.unwrap_or_else(|| Err(too_late(deadline)))
        }
        Ok(None) => answer(&service, rpc, request, next).await,
        Err(failure) => Err(failure),
    };
    let response = response.unwrap_or_else(|failure| to_status(failure).into_http());
    if let Some(code) = response.extensions().get().and_then(code_of) {
        service.counters().rejected(code);
    }
    response
}

async fn answer<E: Env>(service: &Service<E>, rpc: Rpc, mut request: Request<Body>, next: Next) -> Outcome<Response> {
    let connection = request.extensions().get::<Connection>().cloned();
    let _permit = match rpc {
        Rpc::SignIn => begin_sign_in(connection)?,
        Rpc::Stream | Rpc::Snapshot | Rpc::Unary => {
            let is_local = request.extensions().get::<LocalCaller>().is_some();
            let caller = match is_local {
                true => Caller::Local,
                false => {
                    let token = token(request.headers())?;
                    signed_in(service, &token, connection).await?
                }
            };
            request.extensions_mut().insert(caller);
            None
        }
    };
    Ok(next.run(request).await)
}

/// Requests in process have no connection.
fn begin_sign_in(connection: Option<Connection>) -> Outcome<Option<SignInPermit>> {
    connection.map(|connection| connection.begin_sign_in()).transpose()
}

async fn signed_in<E: Env>(service: &Service<E>, token: &[u8], connection: Option<Connection>) -> Outcome<Caller> {
    let caller = service.authenticate(token).await?;
    if let (Some(connection), Caller::User { handle, .. }) = (connection, &caller) {
        connection.used_by(handle)?;
    }
    Ok(caller)
}

fn too_late(deadline: Duration) -> Failure {
    let message =
        format!("not answered within the deadline of {deadline:?}; it may have happened: retry with the same ids");
    Failure::new(ErrorCode::OutcomeUnknown, message)
}

fn code_of(status: &Status) -> Option<ErrorCode> {
    status.get_details_error_info()?.reason.parse().ok()
}

/// The encoded token of a request.
fn token(headers: &HeaderMap) -> Outcome<Vec<u8>> {
    let entry = headers.get("authorization").and_then(|value| value.to_str().ok());
    let entry = entry.ok_or_else(|| {
        Failure::unauthenticated("authorization: not set, expected \"Unibus <base64 of a token>\"; sign in")
    })?;
    if entry.len() > AUTHORIZATION_BYTES_MAX {
        let found = entry.len();
        return Err(Failure::unauthenticated(format!(
            "authorization: found {found} bytes, at most {AUTHORIZATION_BYTES_MAX} are allowed"
        )));
    }
    let encoded = entry.strip_prefix(SCHEME).and_then(|encoded| STANDARD.decode(encoded.trim()).ok());
    encoded.ok_or_else(|| {
        Failure::unauthenticated("authorization: malformed, expected \"Unibus <base64 of a token>\"; sign in")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().expect("a value"))])
    }

    #[test]
    fn the_token_is_taken_from_the_metadata() {
        let with = |value: &str| token(&headers("authorization", value));
        assert_eq!(with("Unibus AQID"), Ok(vec![1, 2, 3]));
        for wrong in ["Bearer AQID", "Unibus !", "", &"a".repeat(AUTHORIZATION_BYTES_MAX + 1)] {
            assert_eq!(with(wrong).expect_err("malformed").code, ErrorCode::Unauthenticated);
        }
        assert_eq!(token(&HeaderMap::new()).expect_err("missing").code, ErrorCode::Unauthenticated);
    }

    #[test]
    fn the_caller_may_shorten_the_deadline_and_not_lengthen_it() {
        let with = |value| Rpc::Unary.deadline(&headers("grpc-timeout", value));
        assert_eq!(Rpc::Unary.deadline(&HeaderMap::new()), Ok(Some(UNARY_PATIENCE)));
        assert_eq!(with("1S"), Ok(Some(Duration::from_millis(950))));
        assert_eq!(with("200m"), Ok(Some(Duration::from_millis(190))));
        assert_eq!(with("99999999H"), Ok(Some(UNARY_PATIENCE)));
        for wrong in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "0S"] {
            assert_eq!(with(wrong).expect_err("refused").code, ErrorCode::Invalid, "{wrong:?}");
        }
        assert_eq!(Rpc::Stream.deadline(&headers("grpc-timeout", "1S")), Ok(None));
    }
}
