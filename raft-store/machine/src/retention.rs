//! Retention: which entries of a timeline are kept (by age, bytes and count), and which segments nobody
//! reads any more.
//!
//! Entries are counted in spans: consecutive entries of a room in one segment. A span is closed when the
//! segment is cut or when it is a sixteenth of what the room's policy keeps, so a room has a bounded number
//! of them beside the segments that it stands in, and there is never a row per message. The floor rises by
//! count to the entry; by bytes to the entry too, where the mean size of the oldest span is taken for each
//! of its entries; by age a span at a time, once its newest entry is too old. Log time decides, so that all
//! replicas drop the same.

use std::collections::BTreeMap;

use unibus_proto::id::RoomId;
use unibus_proto::row::{RoomRow, SegmentRow, SpanRow};
use unibus_proto::v1::RoomRetention;

use crate::event::{Event, StoredDelivery};
use crate::key::{Key, ordinal, range_of_kind};
use crate::rows::{self, Rows};
use crate::step::Step;

/// Spans that one entry of the log drops at most; what is left is due at once, in the next tick.
const SPANS_DROPPED_MAX: usize = 1_000;
/// Rooms that one tick looks at.
const ROOMS_MAX: usize = 1_000;
/// A policy's bound is cut into so many spans: so exact is retention by age.
const SPANS_PER_BOUND: u64 = 16;
/// A span is closed at this size under any policy, so that a later one finds it fine enough.
const SPAN_BYTES_MAX: u64 = 1 << 20;
/// The same for its time: not finer than ticks come, and not coarser than a day.
const SPAN_MS: (u64, u64) = (1_000, 24 * 3_600 * 1_000);

/// The work of one entry: how much more it may do, and the entries that fell out, by segment.
pub(crate) struct Work {
    left: usize,
    released: BTreeMap<u64, u64>,
}

impl Default for Work {
    fn default() -> Self {
        Self { left: SPANS_DROPPED_MAX, released: BTreeMap::new() }
    }
}

impl Work {
    /// Counts what fell out, and drops the segments in which nothing is left.
    pub(crate) fn finish<R: Rows>(self, step: &mut Step<'_, R>) {
        for (segment, count) in self.released {
            if segment == step.group.segment {
                step.group.segment_live = step.group.segment_live.saturating_sub(count);
                continue;
            }
            // Not there: it was complete before entries were counted.
            let Some(mut row) = rows::get::<SegmentRow>(step.rows, &Key::Segment(segment)) else { continue };
            row.live = row.live.saturating_sub(count);
            put_segment(step, segment, &row);
        }
    }
}

/// Writes a complete segment's row, or drops the segment when it is sealed and nobody reads it any more.
pub(crate) fn put_segment<R: Rows>(step: &mut Step<'_, R>, segment: u64, row: &SegmentRow) {
    if row.live == 0 && is_sealed(row) {
        rows::delete(step.rows, &Key::Segment(segment));
        step.events.push(Event::SegmentDropped { segment });
    } else {
        rows::put(step.rows, &Key::Segment(segment), row);
    }
}

/// Whether the log knows the file's hash.
pub(crate) fn is_sealed(row: &SegmentRow) -> bool {
    !row.hash.is_empty()
}

/// The first sequence after a span.
pub(crate) fn end(span: &SpanRow) -> u64 {
    span.first_sequence + span.count
}

/// Bytes of a span's entries below `floor`, each of which counts with the span's mean.
pub(crate) fn bytes_below(span: &SpanRow, floor: u64) -> u64 {
    let below = floor.clamp(span.first_sequence, end(span)) - span.first_sequence;
    (u128::from(span.bytes) * u128::from(below) / u128::from(span.count.max(1))) as u64
}

/// The oldest span that has an entry.
pub(crate) fn oldest(room: &RoomRow) -> Option<SpanRow> {
    room.oldest.or(room.newest)
}

/// What a room keeps.
pub(crate) fn policy(room: &RoomRow) -> RoomRetention {
    room.policy.and_then(|policy| policy.retention).unwrap_or_default()
}

/// Counts entries that a room has got in a segment.
pub(crate) fn count<R: Rows>(
    step: &mut Step<'_, R>,
    (id, room): (RoomId, &mut RoomRow),
    segment: u64,
    deliveries: &[StoredDelivery],
) {
    let policy = policy(room);
    for StoredDelivery { sequence, at_ms, bytes } in deliveries {
        // A span that the floor cuts grows no more: the mean of its entries must stay what it was.
        let is_full = |span: SpanRow| span.first_sequence < room.floor || is_full(&span, &policy, segment, *at_ms);
        if room.newest.is_some_and(is_full) {
            close_newest(step.rows, id, room);
        }
        let fresh = SpanRow { first_sequence: sequence.0, segment, first_ms: *at_ms, ..SpanRow::default() };
        let span = room.newest.get_or_insert(fresh);
        span.count += 1;
        span.bytes += bytes.len() as u64;
        span.last_ms = *at_ms;
        room.size_bytes += bytes.len() as u64;
    }
    step.group.segment_live += deliveries.len() as u64;
}

fn is_full(span: &SpanRow, policy: &RoomRetention, segment: u64, now_ms: u64) -> bool {
    let part = |bound: u64, least: u64, most: u64| match bound {
        0 => most,
        bound => (bound / SPANS_PER_BOUND).clamp(least, most),
    };
    let bytes_max = part(policy.max_bytes, 1, SPAN_BYTES_MAX);
    let ms_max = part(policy.max_age_ms, SPAN_MS.0, SPAN_MS.1);
    span.segment != segment || span.bytes >= bytes_max || now_ms.saturating_sub(span.first_ms) >= ms_max
}

fn close_newest<R: Rows>(rows: &mut R, id: RoomId, room: &mut RoomRow) {
    let Some(span) = room.newest.take() else { return };
    match room.oldest {
        None => room.oldest = Some(span),
        Some(_) => rows::put(rows, &Key::Span(id, span.first_sequence), &span),
    }
}

/// Raises a room's floor as far as its policy says, and remembers when to look again.
pub(crate) fn enforce<R: Rows>(step: &mut Step<'_, R>, (id, room): (RoomId, &mut RoomRow), work: &mut Work) {
    let policy = policy(room);
    if policy == RoomRetention::default() {
        return;
    }
    while let Some(span) = oldest(room) {
        let floor = floor_in(&span, room, &policy, step.now());
        if floor <= room.floor {
            break;
        }
        if work.left == 0 {
            return remind(step, (id, room), step.now());
        }
        *work.released.entry(span.segment).or_default() += floor - room.floor;
        room.size_bytes = room.size_bytes.saturating_sub(bytes_below(&span, floor) - bytes_below(&span, room.floor));
        room.floor = floor;
        if floor == end(&span) {
            work.left -= 1;
            forget_oldest(step.rows, id, room);
        }
    }
    if let Some(span) = oldest(room).filter(|_| policy.max_age_ms > 0) {
        remind(step, (id, room), span.last_ms.saturating_add(policy.max_age_ms));
    }
}

/// How far the floor rises within the oldest span.
fn floor_in(span: &SpanRow, room: &RoomRow, policy: &RoomRetention, now_ms: u64) -> u64 {
    let (mut floor, end) = (room.floor, end(span));
    if policy.max_age_ms > 0 && span.last_ms.saturating_add(policy.max_age_ms) <= now_ms {
        return end;
    }
    if policy.max_messages > 0 {
        floor = floor.max(room.next_sequence.saturating_sub(policy.max_messages));
    }
    if policy.max_bytes > 0 && room.size_bytes > policy.max_bytes {
        let wanted = bytes_below(span, room.floor) + (room.size_bytes - policy.max_bytes);
        let below = (u128::from(wanted) * u128::from(span.count)).div_ceil(u128::from(span.bytes.max(1)));
        let below = below.min(u128::from(span.count)) as u64;
        // The newest entry stays, however large it is.
        floor = floor.max((span.first_sequence + below).min(room.next_sequence - 1));
    }
    floor.min(end)
}

fn forget_oldest<R: Rows>(rows: &mut R, id: RoomId, room: &mut RoomRow) {
    let Some(gone) = room.oldest.take() else {
        room.newest = None;
        return;
    };
    // Spans follow one another without a gap; looking for the next one would walk what was dropped before.
    let next = Key::Span(id, end(&gone));
    room.oldest = rows::get(rows, &next);
    if room.oldest.is_some() {
        rows::delete(rows, &next);
    }
}

/// Looks at the room again at `due_ms`, or before.
fn remind<R: Rows>(step: &mut Step<'_, R>, (id, room): (RoomId, &mut RoomRow), due_ms: u64) {
    let (due_ms, known) = (due_ms.max(1), room.retention_due_ms);
    if known != 0 && known <= due_ms {
        return;
    }
    if known != 0 {
        rows::delete(step.rows, &Key::RetentionDue(known, id));
    }
    step.rows.put(Key::RetentionDue(due_ms, id).encode(), Default::default());
    room.retention_due_ms = due_ms;
}

/// Looks at the rooms that are due.
pub(crate) fn tick<R: Rows>(step: &mut Step<'_, R>) {
    let mut work = Work::default();
    let (from, _) = range_of_kind(ordinal::RETENTION_DUE);
    let to = [&[ordinal::RETENTION_DUE], &step.now().saturating_add(1).to_be_bytes()[..]].concat();
    for (key, _) in step.rows.scan(&from, &to, ROOMS_MAX) {
        if work.left == 0 {
            break;
        }
        let Some(Key::RetentionDue(_, id)) = Key::parse(&key) else { continue };
        step.rows.delete(&key);
        let mut room: RoomRow = rows::get(step.rows, &Key::Room(id)).expect("a room is never removed");
        room.retention_due_ms = 0;
        enforce(step, (id, &mut room), &mut work);
        rows::put(step.rows, &Key::Room(id), &room);
    }
    work.finish(step);
}
