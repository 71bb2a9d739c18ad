//! Producers: which numbers of a producer were decided, and how (ARCHITECTURE section 5).
//!
//! A producer belongs to the device that opened it in a room; its answers are in `answers.rs`. It is retired [`PRODUCER_LIFETIME`] after its last use and
//! its opening, whichever is later: then its opening time is too old to open it again, so that a late retry
//! of number 1 cannot be stored twice.

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{DeviceId, ProducerId, RoomId};
use unibus_proto::limits::{PRODUCER_LIFETIME, PRODUCERS_PER_USER_MAX};
use unibus_proto::position::Sequence;
use unibus_proto::row::{AnswerRun, ProducerCountRow, ProducerRow};
use unibus_proto::v1::{OutgoingMessage, Reject};

use crate::answers::{self, Answers, Known};
use crate::fields::reject;
use crate::key::Key;
use crate::rows::{self, Rows};
use crate::step::Step;

const LIFETIME_MS: u64 = PRODUCER_LIFETIME.as_millis() as u64;
/// A client's clock may be ahead of log time by this much when it opens a producer.
const OPENED_AHEAD_MS_MAX: u64 = 10 * 60 * 1_000;

/// A producer while a batch is decided: read once, written once.
pub(crate) struct Producer {
    row: ProducerRow,
    answers: Answers,
    is_changed: bool,
}

impl Producer {
    pub(crate) fn new(room: RoomId, producer: ProducerId, row: ProducerRow) -> Self {
        Self { row, answers: Answers::new(room, producer), is_changed: false }
    }

    /// Whether it belongs to this device of this user.
    pub(crate) fn belongs_to(&self, user: &str, device: DeviceId) -> bool {
        self.row.user == user && self.row.device_id == device.0[..]
    }

    /// The number that comes next.
    pub(crate) fn next(&self) -> u64 {
        self.row.last_number + 1
    }

    /// How `number` was decided; none when it was not.
    pub(crate) fn known<R: Rows>(&mut self, rows: &R, number: u64, digest: u32) -> Option<Known> {
        (number <= self.row.last_number).then(|| self.answers.known(rows, number, digest))
    }

    /// The next number was stored.
    pub(crate) fn stored<R: Rows>(&mut self, rows: &R, sequence: Sequence, digest: u32) {
        self.decided(rows, sequence.0, "", digest);
    }

    /// The next number was refused; that uses it up.
    pub(crate) fn refused<R: Rows>(&mut self, rows: &R, code: &str, digest: u32) {
        self.decided(rows, 0, code, digest);
    }

    fn decided<R: Rows>(&mut self, rows: &R, first_sequence: u64, reject: &str, digest: u32) {
        let run = AnswerRun { first_number: self.next(), count: 1, first_sequence, reject: reject.into() };
        self.answers.decided(rows, run, digest);
        self.row.last_number += 1;
        self.is_changed = true;
    }

    /// Writes what changed.
    pub(crate) fn flush<R: Rows>(mut self, step: &mut Step<'_, R>) {
        if self.is_changed {
            self.row.used_ms = step.now();
            rows::put(step.rows, &self.answers.key(), &self.row);
            self.answers.flush(step.rows);
        }
    }
}

/// CRC-32C over the headers, each with its lengths, and the body.
pub(crate) fn digest(message: &OutgoingMessage) -> u32 {
    let mut crc = 0;
    for header in &message.headers {
        for text in [&header.name, &header.value] {
            crc = crc32c::crc32c_append(crc, &(text.len() as u64).to_le_bytes());
            crc = crc32c::crc32c_append(crc, text.as_bytes());
        }
    }
    crc = crc32c::crc32c_append(crc, &(message.body.len() as u64).to_le_bytes());
    crc32c::crc32c_append(crc, &message.body)
}

/// Whether a producer that is not known may be opened now.
pub(crate) fn check_open<R: Rows>(
    step: &Step<'_, R>,
    (room, user, producer): (RoomId, &str, ProducerId),
    first_number: u64,
    opened_ms: u64,
) -> Result<(), Reject> {
    let unknown = |why: String| {
        let message = format!("producer {producer} is not known in room {room}, and {why}; open a new producer");
        Err(reject(ErrorCode::UnknownProducer, message))
    };
    let now = step.now();
    if first_number != 1 {
        return unknown(format!("number {first_number} opens none: a producer's first number is 1"));
    }
    if now >= opened_ms.saturating_add(LIFETIME_MS) {
        return unknown(format!("it was opened at {opened_ms} ms, more than 24 h before {now} ms"));
    }
    if opened_ms > now.saturating_add(OPENED_AHEAD_MS_MAX) {
        return unknown(format!("it was opened at {opened_ms} ms, which is yet to come at {now} ms: set the clock"));
    }
    if count(step.rows, room, user) >= PRODUCERS_PER_USER_MAX {
        let message = format!(
            "{user} has {PRODUCERS_PER_USER_MAX} live producers in room {room}, the most a user may have; \
             use one of them, or wait until one has been idle for 24 h"
        );
        return Err(reject(ErrorCode::QuotaExceeded, message));
    }
    Ok(())
}

fn count<R: Rows>(rows: &R, room: RoomId, user: &str) -> u32 {
    rows::get::<ProducerCountRow>(rows, &Key::ProducerCount(room, user)).map_or(0, |row| row.count)
}

/// Opens a producer now: counts it and sets its deadline.
pub(crate) fn open<R: Rows>(
    step: &mut Step<'_, R>,
    (room, producer): (RoomId, ProducerId),
    (user, device): (&str, DeviceId),
    opened_ms: u64,
) -> Producer {
    let count = count(step.rows, room, user) + 1;
    rows::put(step.rows, &Key::ProducerCount(room, user), &ProducerCountRow { count });
    let (device_id, used_ms) = (device.to_bytes(), step.now());
    let row = ProducerRow { device_id, user: user.into(), opened_ms, last_number: 0, used_ms };
    step.rows.put(Key::ProducerExpiry(deadline(&row), room, producer).encode(), Default::default());
    Producer::new(room, producer, row)
}

/// When a producer is retired unless it is used again.
pub(crate) fn deadline(row: &ProducerRow) -> u64 {
    row.used_ms.max(row.opened_ms).saturating_add(LIFETIME_MS)
}

/// The deadline of a producer was reached: it is retired, or was used since and gets another one. So that
/// using a producer costs no row but its own.
pub(crate) fn expire<R: Rows>(step: &mut Step<'_, R>, room: RoomId, producer: ProducerId) {
    let key = Key::Producer(room, producer);
    let row: ProducerRow = rows::get(step.rows, &key).expect("a deadline has its producer");
    if deadline(&row) > step.now() {
        return step.rows.put(Key::ProducerExpiry(deadline(&row), room, producer).encode(), Default::default());
    }
    rows::delete(step.rows, &key);
    answers::delete(step.rows, room, producer);
    let key = Key::ProducerCount(room, &row.user);
    match count(step.rows, room, &row.user) {
        0 | 1 => rows::delete(step.rows, &key),
        count => rows::put(step.rows, &key, &ProducerCountRow { count: count - 1 }),
    }
}
