//! The invariants of retention: each entry from the floor on is in one span, segments count the entries
//! that somebody may still read, and what a policy wants gone is gone or due.

use std::collections::BTreeMap;

use unibus_proto::id::RoomId;
use unibus_proto::row::{GroupRow, RoomRow, SegmentRow, SpanRow};

use crate::apply::Machine;
use crate::check::{Result, count, each_row, ensure};
use crate::key::{Key, ordinal};
use crate::retention::{bytes_below, end, is_sealed, policy};
use crate::rows::{self, Rows};

pub(crate) fn check<R: Rows>(machine: &Machine<R>) -> Result {
    let rows = &machine.rows;
    let group: GroupRow = rows::get(rows, &Key::Group).unwrap_or_default();
    let (mut live, mut spans, mut due) = (BTreeMap::new(), 0, 0);
    each_row::<_, RoomRow>(rows, &[ordinal::ROOM], |key, room| {
        let Key::Room(id) = key else { return Ok(()) };
        let all = spans_of(rows, id, &room)?;
        spans += all.len() - usize::from(room.oldest.is_some()) - usize::from(room.newest.is_some());
        due += u64::from(room.retention_due_ms > 0);
        spans_are_the_timeline(&room, &all)?;
        for span in &all {
            *live.entry(span.segment).or_insert(0) += end(span) - span.first_sequence.max(room.floor);
        }
        policy_holds_or_is_due(&room, &all, group.at_ms)?;
        let is_noted = room.retention_due_ms == 0 || rows::exists(rows, &Key::RetentionDue(room.retention_due_ms, id));
        ensure(is_noted, || format!("due at {}, but no row says so", room.retention_due_ms))
    })?;
    let (found, noted) = (count(rows, &[ordinal::SPAN]), count(rows, &[ordinal::RETENTION_DUE]));
    ensure(found == spans as u64, || format!("{found} spans, {spans} of them belong to a room"))?;
    ensure(noted == due, || format!("{noted} deadlines of retention, {due} rooms are due"))?;
    segments_count_what_is_live(rows, &group, live)
}

/// All spans of a room, ascending.
fn spans_of<R: Rows>(rows: &R, id: RoomId, room: &RoomRow) -> std::result::Result<Vec<SpanRow>, String> {
    let mut spans: Vec<SpanRow> = room.oldest.into_iter().collect();
    each_row::<_, SpanRow>(rows, &[&[ordinal::SPAN], &id.0[..]].concat(), |key, span| {
        let is_its_own = matches!(key, Key::Span(_, first) if first == span.first_sequence);
        ensure(is_its_own && room.oldest.is_some(), || "a span in another place, or before the oldest".into())?;
        spans.push(span);
        Ok(())
    })?;
    spans.extend(room.newest);
    Ok(spans)
}

fn spans_are_the_timeline(room: &RoomRow, spans: &[SpanRow]) -> Result {
    ensure(room.floor <= room.next_sequence, || format!("floor {} above the head", room.floor))?;
    let first = spans.first().map_or(room.next_sequence, |span| span.first_sequence);
    let last = spans.last().map_or(room.next_sequence, end);
    ensure(first <= room.floor && last == room.next_sequence, || {
        format!("spans reach from {first} to {last}, floor {}, next {}", room.floor, room.next_sequence)
    })?;
    ensure(spans.first().is_none_or(|span| room.floor < end(span)), || "a span below the floor".into())?;
    ensure(spans.iter().all(|span| span.count > 0), || "a span without entries".into())?;
    let follows = |pair: &[SpanRow]| {
        end(&pair[0]) == pair[1].first_sequence
            && pair[0].segment <= pair[1].segment
            && pair[0].last_ms <= pair[1].first_ms
    };
    ensure(spans.windows(2).all(follows), || format!("spans do not follow each other: {spans:?}"))?;
    let bytes: u64 = spans.iter().map(|span| span.bytes).sum();
    let below = spans.first().map_or(0, |span| bytes_below(span, room.floor));
    ensure(room.size_bytes == bytes - below, || {
        format!("{} bytes, its spans have {bytes}, {below} of them below the floor", room.size_bytes)
    })
}

/// More is kept than the policy says only when the next tick is to see to it.
fn policy_holds_or_is_due(room: &RoomRow, spans: &[SpanRow], now_ms: u64) -> Result {
    let (policy, due_ms) = (policy(room), room.retention_due_ms);
    let is_due = due_ms > 0 && due_ms <= now_ms;
    let kept = room.next_sequence - room.floor;
    ensure(is_due || policy.max_messages == 0 || kept <= policy.max_messages, || {
        format!("{kept} entries, at most {} are kept", policy.max_messages)
    })?;
    ensure(is_due || policy.max_bytes == 0 || room.size_bytes <= policy.max_bytes || kept <= 1, || {
        format!("{} bytes in {kept} entries, at most {} are kept", room.size_bytes, policy.max_bytes)
    })?;
    let Some(oldest) = spans.first().filter(|_| policy.max_age_ms > 0) else { return Ok(()) };
    let expires_ms = oldest.last_ms.saturating_add(policy.max_age_ms);
    ensure(due_ms > 0 && due_ms <= expires_ms, || format!("due at {due_ms}, but entries expire at {expires_ms}"))
}

fn segments_count_what_is_live<R: Rows>(rows: &R, group: &GroupRow, mut live: BTreeMap<u64, u64>) -> Result {
    let in_open = live.remove(&group.segment).unwrap_or(0);
    ensure(in_open == group.segment_live, || {
        format!("{in_open} entries live in the open segment, counted {}", group.segment_live)
    })?;
    each_row::<_, SegmentRow>(rows, &[ordinal::SEGMENT], |key, row| {
        let Key::Segment(segment) = key else { return Ok(()) };
        ensure(segment < group.segment, || format!("complete, but {} is the open one", group.segment))?;
        ensure(row.hash.is_empty() || row.hash.len() == 32, || format!("a hash of {} bytes", row.hash.len()))?;
        let found = live.remove(&segment).unwrap_or(0);
        ensure(found == row.live, || format!("{found} entries live, counted {}", row.live))?;
        ensure(row.live > 0 || !is_sealed(&row), || "sealed and nobody reads it, but not dropped".into())
    })?;
    ensure(live.is_empty(), || format!("entries live in segments that are dropped or to come: {live:?}"))
}
