//! Deadlines, driven by `Tick` from the leader: forgets remembered answers, retires producers, and has
//! `retention.rs` look at the rooms whose entries grow too old.

use unibus_proto::v1::Reject;

use crate::key::{Key, ordinal, range_of_kind};
use crate::rows::Rows;
use crate::step::{Answer, Step, done};
use crate::{producer, request, retention};

/// Rows that one tick looks at, so that it cannot hold up the group; the next deadline stays due until all are done.
const TICK_ROWS_MAX: usize = 1_000;

const KINDS: [u8; 2] = [ordinal::REQUEST_EXPIRY, ordinal::PRODUCER_EXPIRY];

pub(crate) fn tick<R: Rows>(step: &mut Step<'_, R>) -> Result<Answer, Reject> {
    for kind in KINDS {
        let (from, _) = range_of_kind(kind);
        let to = [&[kind], &step.now().saturating_add(1).to_be_bytes()[..]].concat();
        for (key, _) in step.rows.scan(&from, &to, TICK_ROWS_MAX) {
            step.rows.delete(&key);
            match Key::parse(&key) {
                Some(Key::RequestExpiry(_, id)) => request::forget(step, id),
                Some(Key::ProducerExpiry(_, room, producer)) => producer::expire(step, room, producer),
                other => unreachable!("{other:?} among the deadlines"),
            }
        }
    }
    retention::tick(step);
    Ok(done())
}

pub(crate) fn next_deadline<R: Rows>(rows: &R) -> Option<u64> {
    let first = |kind| {
        let (from, to) = range_of_kind(kind);
        let (key, _) = rows.scan(&from, &to, 1).into_iter().next()?;
        match Key::parse(&key)? {
            Key::RequestExpiry(at, _) | Key::ProducerExpiry(at, ..) | Key::RetentionDue(at, _) => Some(at),
            _ => None,
        }
    };
    KINDS.into_iter().chain([ordinal::RETENTION_DUE]).filter_map(first).min()
}
