//! Checks of request fields: everything that can be said without looking at any state.

use unibus_proto::id::{Handle, RequestId};
use unibus_proto::limits::{BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, PAGE_DEFAULT, PAGE_MAX};
use unibus_proto::v1::{OutgoingMessage, PublishRequest, Signed, UserRole};

use super::{Failure, Outcome};

pub(super) fn handle(text: &str) -> Outcome<Handle> {
    Ok(text.parse()?)
}

pub(super) fn request_id(bytes: &[u8]) -> Outcome<RequestId> {
    Ok(RequestId::from_bytes(bytes)?)
}

pub(super) fn key(what: &str, bytes: &[u8]) -> Outcome<[u8; 32]> {
    let wrong = || Failure::invalid(format!("{what}: found {} bytes, expected 32 (Ed25519 public key)", bytes.len()));
    bytes.try_into().map_err(|_| wrong())
}

pub(super) fn role(role: i32) -> Outcome<UserRole> {
    match UserRole::try_from(role) {
        Ok(role @ (UserRole::Member | UserRole::Admin)) => Ok(role),
        _ => Err(Failure::invalid(format!("role: found {role}, expected 1 (member) or 2 (admin)"))),
    }
}

/// A document that the request must carry.
pub(super) fn signed<'a>(what: &str, signed: &'a Option<Signed>) -> Outcome<&'a Signed> {
    signed.as_ref().ok_or_else(|| Failure::invalid(format!("{what}: not set, expected a signed document")))
}

/// Items of a page: 0 = the default.
pub(super) fn page_size(what: &str, asked: u32) -> Outcome<usize> {
    match asked {
        0 => Ok(PAGE_DEFAULT as usize),
        1..=PAGE_MAX => Ok(asked as usize),
        _ => Err(Failure::invalid(format!("{what}: found {asked}, at most {PAGE_MAX} are allowed"))),
    }
}

/// What a page starts after.
pub(super) fn page_token<T: std::str::FromStr>(token: &str) -> Outcome<Option<T>> {
    if token.is_empty() {
        return Ok(None);
    }
    let wrong = |_| Failure::invalid("page_token: malformed, expected the next_page_token of the page before");
    token.parse().map(Some).map_err(wrong)
}

/// The sizes of a publish request as a whole. Those of a single message are checked by `apply`, where a
/// bad one takes its number with it and its batch mates are stored.
pub(super) fn publish(request: &PublishRequest) -> Outcome<()> {
    let count = request.messages.len();
    if count == 0 || count > BATCH_MESSAGES_MAX {
        return Err(Failure::invalid(format!(
            "messages: found {count}, expected 1 to {BATCH_MESSAGES_MAX} in a request"
        )));
    }
    if request.first_number == 0 || request.first_number.checked_add(count as u64).is_none() {
        let found = request.first_number;
        return Err(Failure::invalid(format!("first_number: found {found}, a producer's first message has number 1")));
    }
    let bytes: usize = request.messages.iter().map(|message| message.body.len() + headers_bytes(message)).sum();
    if bytes > BATCH_BYTES_MAX {
        return Err(Failure::invalid(format!(
            "messages: found {bytes} bytes in bodies and headers, at most {BATCH_BYTES_MAX} are allowed in a request; \
             send fewer at a time"
        )));
    }
    Ok(())
}

fn headers_bytes(message: &OutgoingMessage) -> usize {
    message.headers.iter().map(|header| header.name.len() + header.value.len()).sum()
}

#[cfg(test)]
mod tests {
    use unibus_proto::code::ErrorCode;
    use unibus_proto::limits::BODY_BYTES_MAX;

    use super::*;

    fn request(bodies: &[usize]) -> PublishRequest {
        let message = |&len| OutgoingMessage { body: vec![0; len].into(), ..OutgoingMessage::default() };
        PublishRequest { first_number: 1, messages: bodies.iter().map(message).collect(), ..PublishRequest::default() }
    }

    #[track_caller]
    fn refused(request: &PublishRequest, mentions: &[&str]) {
        let failure = publish(request).expect_err("it must be refused");
        assert_eq!(failure.code, ErrorCode::Invalid);
        mentions.iter().for_each(|text| assert!(failure.message.contains(text), "{failure} lacks {text}"));
    }

    #[test]
    fn sizes_are_refused_with_limit_and_found() {
        publish(&request(&[BODY_BYTES_MAX + 1])).expect("left to apply");
        publish(&request(&[BATCH_BYTES_MAX])).expect("exactly the limit");
        refused(&request(&[BODY_BYTES_MAX; 5]), &["5242880", "4194304"]);
        refused(&request(&[]), &["found 0", "256"]);
        refused(&request(&[0; 257]), &["found 257", "256"]);
        refused(&PublishRequest { first_number: 0, ..request(&[1]) }, &["first_number"]);
        refused(&PublishRequest { first_number: u64::MAX, ..request(&[1]) }, &["first_number"]);
    }

    #[test]
    fn pages_have_a_default_and_a_bound() {
        assert_eq!(page_size("page_size", 0), Ok(100));
        assert_eq!(page_size("page_size", 1_000), Ok(1_000));
        assert!(page_size("page_size", 1_001).is_err());
        assert_eq!(page_token::<Handle>(""), Ok(None));
        assert!(page_token::<Handle>("../x").is_err());
    }
}
