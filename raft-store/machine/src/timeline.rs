//! Sequences, deliveries and segments: what a room's history is made of.

use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use unibus_proto::code::ErrorCode;
use unibus_proto::id::RoomId;
use unibus_proto::log::SegmentSealed;
use unibus_proto::position::Sequence;
use unibus_proto::row::{RoomRow, SegmentRow};
use unibus_proto::v1::{Delivery, OutgoingMessage, Reject, StoredMessage, delivery};

use crate::event::{Event, StoredDelivery};
use crate::fields::{hash, invalid, reject, require};
use crate::key::Key;
use crate::retention;
use crate::rows::{self, Rows};
use crate::step::{Answer, Step, done};

/// Field number of a message in a delivery.
const MESSAGE_IN_DELIVERY: u32 = 3;
/// What an encoded delivery takes beside its sender, headers and body, rounded up.
const DELIVERY_OVERHEAD_BYTES: usize = 64;

/// Consecutive new entries of one room.
#[derive(Default)]
pub(crate) struct Appender {
    deliveries: Vec<StoredDelivery>,
    bytes: u64,
    /// Where the next delivery is encoded: those of a group share one allocation.
    buffer: BytesMut,
}

/// User, device and producer of a message, encoded once for all messages of a group.
pub(crate) struct Sender(Vec<u8>);

impl Sender {
    pub(crate) fn new(user: &str, device_id: &Bytes, producer_id: &Bytes) -> Self {
        let (device_id, producer_id) = (device_id.clone(), producer_id.clone());
        let fields = StoredMessage { user: user.into(), device_id, producer_id, ..StoredMessage::default() };
        Self(fields.encode_to_vec())
    }
}

impl Appender {
    /// With room for these messages of a sender.
    pub(crate) fn for_messages(sender: &Sender, messages: &[OutgoingMessage]) -> Self {
        let each = |message: &OutgoingMessage| message.encoded_len() + sender.0.len() + DELIVERY_OVERHEAD_BYTES;
        let buffer = BytesMut::with_capacity(messages.iter().map(each).sum());
        Self { deliveries: Vec::with_capacity(messages.len()), bytes: 0, buffer }
    }

    /// Gives the entry the room's next sequence and encodes it, once.
    pub(crate) fn push(&mut self, room: &mut RoomRow, at_ms: u64, entry: delivery::Entry) -> Sequence {
        let delivery = Delivery { sequence: room.next_sequence, time_ms: at_ms, entry: Some(entry) };
        delivery.encode_raw(&mut self.buffer);
        self.take(room, at_ms)
    }

    /// The same for a message: byte for byte what `push` makes of it, without putting it together first.
    pub(crate) fn push_message(
        &mut self,
        room: &mut RoomRow,
        at_ms: u64,
        sender: &Sender,
        number: u64,
        message: OutgoingMessage,
    ) -> Sequence {
        let rest = StoredMessage { number, headers: message.headers, body: message.body, ..StoredMessage::default() };
        let length = sender.0.len() + rest.encoded_len();
        let head = Delivery { sequence: room.next_sequence, time_ms: at_ms, entry: None };
        let field_bytes = key_len(MESSAGE_IN_DELIVERY) + encoded_len_varint(length as u64);
        self.buffer.reserve(head.encoded_len() + field_bytes + length);
        head.encode_raw(&mut self.buffer);
        encode_key(MESSAGE_IN_DELIVERY, WireType::LengthDelimited, &mut self.buffer);
        encode_varint(length as u64, &mut self.buffer);
        self.buffer.extend_from_slice(&sender.0);
        rest.encode_raw(&mut self.buffer);
        self.take(room, at_ms)
    }

    /// Counts what was encoded as the room's next entry.
    fn take(&mut self, room: &mut RoomRow, at_ms: u64) -> Sequence {
        let (sequence, bytes) = (Sequence(room.next_sequence), self.buffer.split().freeze());
        room.next_sequence += 1;
        self.bytes += bytes.len() as u64;
        self.deliveries.push(StoredDelivery { sequence, at_ms, bytes });
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unibus_proto::v1::Header;

    use super::*;

    fn messages() -> impl Strategy<Value = Vec<OutgoingMessage>> {
        let header = ("[a-z]{0,4}", "[a-z]{0,200}").prop_map(|(name, value)| Header { name, value });
        let message = (prop::collection::vec(header, 0..3), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(headers, body)| OutgoingMessage { headers, body: body.into() });
        prop::collection::vec(message, 0..8)
    }

    proptest! {
        #[test]
        fn a_message_is_encoded_as_prost_would(
            (user, device, producer) in ("[a-z]{0,9}", any::<[u8; 32]>(), any::<[u8; 8]>()),
            (sequence, at_ms, first) in (0..u64::MAX / 2, any::<u64>(), 1..u64::MAX / 2),
            messages in messages(),
        ) {
            let (device_id, producer_id) = (Bytes::copy_from_slice(&device), Bytes::copy_from_slice(&producer));
            let sender = Sender::new(&user, &device_id, &producer_id);
            let mut room = RoomRow { next_sequence: sequence, ..RoomRow::default() };
            let mut appender = Appender::for_messages(&sender, &messages);
            for (number, message) in (first..).zip(messages) {
                let (device_id, producer_id, sequence) = (device_id.clone(), producer_id.clone(), room.next_sequence);
                let OutgoingMessage { headers, body } = message.clone();
                let stored = StoredMessage { user: user.clone(), device_id, producer_id, number, headers, body };
                let entry = Some(delivery::Entry::Message(stored));
                let wanted = Delivery { sequence, time_ms: at_ms, entry }.encode_to_vec();
                appender.push_message(&mut room, at_ms, &sender, number, message);
                prop_assert_eq!(&appender.deliveries.last().expect("pushed").bytes[..], &wanted[..]);
            }
            let bytes: usize = appender.deliveries.iter().map(|delivery| delivery.bytes.len()).sum();
            prop_assert_eq!(appender.bytes, bytes as u64);
        }
    }
}
