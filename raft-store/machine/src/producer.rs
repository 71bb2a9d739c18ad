//! Producers: which numbers of a producer were decided, and how (ARCHITECTURE section 5).
//!
//! A producer belongs to the device that opened it in a room. Its answers are kept as runs, never a row per
//! message: at least those of the last [`PRODUCER_WINDOW`] numbers, whose digests are kept too, so that the
//! same number with other content is noticed. It is retired [`PRODUCER_LIFETIME`] after its last use and
//! its opening, whichever is later: then its opening time is too old to open it again, so that a late retry
//! of number 1 cannot be stored twice.

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{ProducerId, RoomId};
use unibus_proto::limits::{PRODUCER_LIFETIME, PRODUCER_WINDOW, PRODUCERS_PER_USER_MAX};
use unibus_proto::position::Sequence;
use unibus_proto::row::{AnswerRun, ProducerCountRow, ProducerRow};
use unibus_proto::v1::{OutgoingMessage, Reject};

use crate::fields::reject;
use crate::key::Key;
use crate::rows::{self, Rows};
use crate::step::Step;

const LIFETIME_MS: u64 = PRODUCER_LIFETIME.as_millis() as u64;
/// A client's clock may be ahead of log time by this much when it opens a producer.
const OPENED_AHEAD_MS_MAX: u64 = 10 * 60 * 1_000;
/// Runs that are older than the window are kept up to this many in all.
const RUNS_MAX: usize = 64;
const DIGEST_BYTES: usize = 4;
const DIGESTS_BYTES_MAX: usize = PRODUCER_WINDOW as usize * DIGEST_BYTES;

/// A number that was decided before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Stored there.
    Stored(Sequence),
    /// Refused, with the code of this name.
    Refused(String),
    /// Decided so long ago that the answer is not kept.
    Forgotten,
    /// Decided for other content.
    Reused,
}

/// A producer while a group of its messages is decided.
pub(crate) struct Producer {
    row: ProducerRow,
    digests: Vec<u8>,
    is_changed: bool,
}

impl Producer {
    pub(crate) fn new(row: ProducerRow) -> Self {
        Self { digests: row.digests.to_vec(), row, is_changed: false }
    }

    /// The number that comes next.
    pub(crate) fn next(&self) -> u64 {
        self.row.last_number + 1
    }

    /// Whether a number was decided since the row was read.
    pub(crate) fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// How `number` was decided; none when it was not.
    pub(crate) fn known(&self, number: u64, digest: u32) -> Option<Known> {
        let age = self.row.last_number.checked_sub(number)?;
        let kept = (self.digests.len() / DIGEST_BYTES) as u64;
        if age < kept {
            let at = (kept - 1 - age) as usize * DIGEST_BYTES;
            if self.digests[at..at + DIGEST_BYTES] != digest.to_le_bytes() {
                return Some(Known::Reused);
            }
        }
        Some(self.answer(number))
    }

    fn answer(&self, number: u64) -> Known {
        let after = self.row.runs.partition_point(|run| run.first_number <= number);
        let run = after.checked_sub(1).map(|at| &self.row.runs[at]);
        match run {
            Some(run) if number < end(run) && run.reject.is_empty() => {
                Known::Stored(Sequence(run.first_sequence + (number - run.first_number)))
            }
            Some(run) if number < end(run) => Known::Refused(run.reject.clone()),
            _ => Known::Forgotten,
        }
    }

    /// The next number was stored.
    pub(crate) fn stored(&mut self, sequence: Sequence, digest: u32) {
        self.decided(sequence.0, "", digest);
    }

    /// The next number was refused; that uses it up.
    pub(crate) fn refused(&mut self, code: &str, digest: u32) {
        self.decided(0, code, digest);
    }

    fn decided(&mut self, first_sequence: u64, reject: &str, digest: u32) {
        let number = self.next();
        self.row.last_number = number;
        self.is_changed = true;
        self.digests.extend(digest.to_le_bytes());
        if let Some(run) = self.row.runs.last_mut() {
            let follows = !reject.is_empty() || run.first_sequence + u64::from(run.count) == first_sequence;
            if run.reject == reject && follows && run.count < u32::MAX {
                run.count += 1;
                return;
            }
        }
        let run = AnswerRun { first_number: number, count: 1, first_sequence, reject: reject.into() };
        self.row.runs.push(run);
    }

    /// The row, without what is too old to keep.
    pub(crate) fn into_row(mut self, now_ms: u64) -> ProducerRow {
        let window = (self.row.last_number + 1).saturating_sub(PRODUCER_WINDOW);
        let runs = &mut self.row.runs;
        let old = runs.iter().take_while(|run| end(run) <= window).count();
        let excess = runs.len().saturating_sub(RUNS_MAX);
        runs.drain(..old.min(excess));
        let excess = self.digests.len().saturating_sub(DIGESTS_BYTES_MAX);
        self.digests.drain(..excess);
        ProducerRow { digests: self.digests.into(), used_ms: now_ms, ..self.row }
    }
}

/// The number after the last of a run.
fn end(run: &AnswerRun) -> u64 {
    run.first_number + u64::from(run.count)
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

/// Counts a producer that was opened, and sets its deadline.
pub(crate) fn opened<R: Rows>(step: &mut Step<'_, R>, room: RoomId, producer: ProducerId, row: &ProducerRow) {
    let count = count(step.rows, room, &row.user) + 1;
    rows::put(step.rows, &Key::ProducerCount(room, &row.user), &ProducerCountRow { count });
    step.rows.put(Key::ProducerExpiry(deadline(row), room, producer).encode(), Default::default());
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
    let key = Key::ProducerCount(room, &row.user);
    match count(step.rows, room, &row.user) {
        0 | 1 => rows::delete(step.rows, &key),
        count => rows::put(step.rows, &key, &ProducerCountRow { count: count - 1 }),
    }
}
