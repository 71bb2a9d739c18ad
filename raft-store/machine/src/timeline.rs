//! Sequences, deliveries and segments: what a room's history is made of.

use prost::Message;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::RoomId;
use unibus_proto::log::SegmentSealed;
use unibus_proto::position::Sequence;
use unibus_proto::row::{RoomRow, SegmentRow};
use unibus_proto::v1::{Delivery, Reject, delivery};

use crate::event::{Event, StoredDelivery};
use crate::fields::{hash, invalid, reject, require};
use crate::key::Key;
use crate::retention;
use crate::rows::{self, Rows};
use crate::step::{Answer, Step, done};

/// Consecutive new entries of one room.
#[derive(Default)]
pub(crate) struct Appender {
    deliveries: Vec<StoredDelivery>,
    bytes: u64,
}

impl Appender {
    /// Gives the entry the room's next sequence and encodes it, once.
    pub(crate) fn push(&mut self, room: &mut RoomRow, at_ms: u64, entry: delivery::Entry) -> Sequence {
        let sequence = Sequence(room.next_sequence);
        let delivery = Delivery { sequence: sequence.0, time_ms: at_ms, entry: Some(entry) };
        let bytes = delivery.encode_to_vec();
        room.next_sequence += 1;
        self.bytes += bytes.len() as u64;
        self.deliveries.push(StoredDelivery { sequence, at_ms, bytes: bytes.into() });
        sequence
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// Sends the entries to the open segment, and cuts it when it is full.
    pub(crate) fn finish<R: Rows>(self, step: &mut Step<'_, R>, id: RoomId, room: &mut RoomRow) {
        let segment = step.group.segment;
        retention::count(step, (id, room), segment, &self.deliveries);
        step.events.push(Event::Appended { segment, room: id, deliveries: self.deliveries });
        step.group.segment_bytes += self.bytes;
        if step.group.segment_bytes >= step.segment_bytes_max {
            step.events.push(Event::SegmentCut { segment });
            let row = SegmentRow { live: step.group.segment_live, ..SegmentRow::default() };
            rows::put(step.rows, &Key::Segment(segment), &row);
            step.group.segment += 1;
            step.group.segment_bytes = 0;
            step.group.segment_live = 0;
        }
    }
}

/// Records length and hash of a complete segment: the first answer stands, and each replica compares with it.
pub(crate) fn seal<R: Rows>(step: &mut Step<'_, R>, sealed: SegmentSealed) -> Result<Answer, Reject> {
    let SegmentSealed { segment, length, .. } = sealed;
    let hash = hash(&sealed.hash, "segment hash")?;
    require(segment < step.group.segment, || {
        invalid(format!("segment {segment} is not complete; the open one is {}", step.group.segment))
    })?;
    // Not there: it was sealed and dropped.
    let Some(row) = rows::get::<SegmentRow>(step.rows, &Key::Segment(segment)) else { return Ok(done()) };
    if retention::is_sealed(&row) {
        require(row.length == length && row.hash == sealed.hash, || {
            let message = format!("segment {segment} was sealed with another length or hash; scrub it on the proposer");
            reject(ErrorCode::AlreadyExists, message)
        })?;
        return Ok(done());
    }
    step.events.push(Event::SegmentSealed { segment, length, hash });
    retention::put_segment(step, segment, &SegmentRow { length, hash: sealed.hash, ..row });
    Ok(done())
}
