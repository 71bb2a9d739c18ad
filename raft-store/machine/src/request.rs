//! Remembered answers: a mutation with the id of an earlier one is answered the same for a day.

use std::time::Duration;

use prost::Message;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::RequestId;
use unibus_proto::limits::REQUEST_LIFETIME;
use unibus_proto::log::Reply;
use unibus_proto::row::RequestRow;
use unibus_proto::signed::sha256;
use unibus_proto::v1::Reject;

use crate::fields::{invalid, reject, require};
use crate::key::Key;
use crate::rows::{self, Rows};
use crate::step::{Answer, Step};

const LIFETIME_MS: u64 = millis(REQUEST_LIFETIME);

const fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// Decides a command once: the first answer, also a refusal, is given again to the same id.
pub(crate) fn once<R: Rows, C: Message>(
    step: &mut Step<'_, R>,
    request_id: &[u8],
    (name, command): (&str, &C),
    decide: impl FnOnce(&mut Step<'_, R>) -> Result<Answer, Reject>,
) -> Result<Answer, Reject> {
    let id = RequestId::from_bytes(request_id).map_err(invalid)?;
    let hash = sha256(&[name.as_bytes(), &[0], &command.encode_to_vec()].concat());
    if let Some(row) = rows::get::<RequestRow>(step.rows, &Key::Request(id)) {
        require(row.command_hash == hash[..], || {
            reject(ErrorCode::IdReused, format!("request {id} came before with another command; use a new id"))
        })?;
        return Ok(row.reply.and_then(|reply| reply.reply).expect("a remembered request has its answer"));
    }
    let answer = decide(step).unwrap_or_else(Answer::Rejected);
    let at_ms = step.now();
    let reply = Some(Reply { at_ms, reply: Some(answer.clone()) });
    rows::put(step.rows, &Key::Request(id), &RequestRow { reply, at_ms, command_hash: hash.to_vec().into() });
    step.rows.put(Key::RequestExpiry(expires(at_ms), id).encode(), Default::default());
    Ok(answer)
}

/// When the answer given at `at_ms` is forgotten.
pub(crate) fn expires(at_ms: u64) -> u64 {
    at_ms.saturating_add(LIFETIME_MS)
}

/// Forgets an answer.
pub(crate) fn forget<R: Rows>(step: &mut Step<'_, R>, id: RequestId) {
    rows::delete(step.rows, &Key::Request(id));
}
