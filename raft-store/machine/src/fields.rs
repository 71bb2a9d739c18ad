//! From the fields of a command to values that cannot be bad, and the rejects when they are.

use std::fmt::Display;
use std::str::FromStr;

use unibus_proto::code::ErrorCode;
use unibus_proto::id::RoomId;
use unibus_proto::v1::Reject;

use crate::signatures;

/// A reject with a code.
pub(crate) fn reject(code: ErrorCode, message: impl Into<String>) -> Reject {
    Reject::new(code, message)
}

/// A malformed field or document.
pub(crate) fn invalid(problem: impl Display) -> Reject {
    Reject::new(ErrorCode::Invalid, problem.to_string())
}

/// What a caller without the right to read is told, whether the room exists or not.
pub(crate) fn room_not_found(room: RoomId) -> Reject {
    reject(
        ErrorCode::RoomNotFound,
        format!("room {room}: not found, or you are no member; ask an admin of the room to add you"),
    )
}

/// Parses an id, a handle or a subject.
pub(crate) fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, Reject> {
    text.parse().map_err(invalid)
}

/// A field of 32 bytes.
pub(crate) fn hash(bytes: &[u8], what: &str) -> Result<[u8; 32], Reject> {
    bytes.try_into().map_err(|_| invalid(format!("{what}: found {} bytes, expected 32", bytes.len())))
}

/// An Ed25519 key under which signatures can be trusted.
pub(crate) fn public_key(bytes: &[u8], what: &str) -> Result<[u8; 32], Reject> {
    let key = hash(bytes, what)?;
    match signatures::is_usable(&key) {
        true => Ok(key),
        false => {
            Err(invalid(format!("{what}: found 32 bytes that are no usable Ed25519 public key; make a new identity")))
        }
    }
}

/// Bounds the length of a list or text.
pub(crate) fn at_most(found: usize, max: usize, what: &str) -> Result<(), Reject> {
    if found <= max { Ok(()) } else { Err(invalid(format!("{what}: found {found}, expected at most {max}"))) }
}

/// Refuses with `problem` unless the condition holds.
pub(crate) fn require(holds: bool, problem: impl FnOnce() -> Reject) -> Result<(), Reject> {
    if holds { Ok(()) } else { Err(problem()) }
}
