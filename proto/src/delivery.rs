//! [`DeliveryBatch`], the one message of the API that is not generated: its entries stay encoded.
//!
//! An entry is encoded once, when it is applied, and must not be decoded and encoded again for each
//! subscriber, nor be taken apart by a client before somebody looks at it. On the wire it is the plain
//! protobuf message that `message.proto` describes: as a repeated field is its elements one after
//! another, entries that were encoded apart are joined by putting their bytes side by side.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{
    self, DecodeContext, WireType, check_wire_type, decode_varint, encode_varint, encoded_len_varint,
};
use prost::{DecodeError, Message};

use crate::v1::Delivery;

const ROOM_ID: u32 = 1;
const SUBJECT: u32 = 2;
const DELIVERIES: u32 = 3;
/// What stands before the length of each entry: field 3, length-delimited.
const ENTRY_KEY: u8 = (DELIVERIES << 3) as u8 | 2;
/// What stands before the sequence of an entry: field 1, varint.
const SEQUENCE_KEY: u8 = 1 << 3;

/// Entries of one room, in order.
#[derive(Clone, Default)]
pub struct DeliveryBatch {
    /// The room (16 bytes).
    pub room_id: Bytes,
    /// Its subject.
    pub subject: Arc<str>,
    /// Consecutive entries, encoded, each chunk with whole ones.
    chunks: Vec<Bytes>,
    /// Entries that were received, after those of the chunks: copying them side by side costs less than
    /// a count of references for each.
    received: BytesMut,
}

/// Joins encoded entries to a chunk of a [`DeliveryBatch`].
#[derive(Debug, Default)]
pub struct ChunkWriter(BytesMut);

impl ChunkWriter {
    /// With room for so many bytes, each entry counted by [`entry_bytes`].
    pub fn with_capacity(bytes: usize) -> Self {
        Self(BytesMut::with_capacity(bytes))
    }

    /// Adds an encoded [`Delivery`].
    pub fn push(&mut self, delivery: &[u8]) {
        self.0.put_u8(ENTRY_KEY);
        encode_varint(delivery.len() as u64, &mut self.0);
        self.0.put_slice(delivery);
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// The chunk.
    pub fn finish(self) -> Bytes {
        self.0.freeze()
    }
}

/// Bytes of an encoded delivery of `length` bytes in a chunk.
pub fn entry_bytes(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

/// Where the entry that begins at `at` of a chunk lies, without what stands before it.
pub fn entry_at(chunk: &[u8], at: usize) -> Result<Range<usize>, DecodeError> {
    let cut_off = || malformed("an entry that is cut off");
    let (key, mut rest) = chunk.get(at..).and_then(<[u8]>::split_first).ok_or_else(cut_off)?;
    if *key != ENTRY_KEY {
        return Err(malformed("something else than an entry"));
    }
    let length = decode_varint(&mut rest)?;
    let begin = chunk.len() - rest.len();
    if length > rest.len() as u64 {
        return Err(cut_off());
    }
    Ok(begin..begin + length as usize)
}

/// The sequence of an encoded [`Delivery`].
pub fn sequence_of(delivery: &[u8]) -> Result<u64, DecodeError> {
    match delivery.split_first() {
        Some((&SEQUENCE_KEY, mut rest)) => decode_varint(&mut rest),
        _ => Ok(Delivery::decode(delivery)?.sequence),
    }
}

/// The entries `wanted` of a chunk, counted from 0.
pub fn cut_chunk(chunk: &Bytes, wanted: Range<usize>) -> Result<Bytes, DecodeError> {
    let (mut at, mut begin) = (0, 0);
    for entry in 0..wanted.end {
        if entry == wanted.start {
            begin = at;
        }
        at = entry_at(chunk, at)?.end;
    }
    Ok(if wanted.is_empty() { Bytes::new() } else { chunk.slice(begin..at) })
}

#[allow(deprecated, reason = "prost has no other way for a message that is written by hand")]
fn malformed(why: &'static str) -> DecodeError {
    DecodeError::new(why)
}

impl DeliveryBatch {
    /// Of no entries.
    pub fn new(room_id: Bytes, subject: Arc<str>) -> Self {
        Self { room_id, subject, ..Self::default() }
    }

    /// Of decoded entries.
    pub fn of(room_id: Bytes, subject: &str, deliveries: &[Delivery]) -> Self {
        let mut chunk = ChunkWriter::default();
        deliveries.iter().for_each(|delivery| chunk.push(&delivery.encode_to_vec()));
        let mut batch = Self::new(room_id, subject.into());
        batch.push(chunk.finish());
        batch
    }

    /// Adds entries that a [`ChunkWriter`] joined.
    pub fn push(&mut self, chunk: Bytes) {
        self.settle();
        self.chunks.push(chunk);
    }

    /// The entries as chunks of whole ones.
    pub fn into_chunks(mut self) -> Vec<Bytes> {
        self.settle();
        self.chunks
    }

    /// The entries, decoded.
    pub fn deliveries(&self) -> Result<Vec<Delivery>, DecodeError> {
        self.parts().flat_map(entries).map(|entry| Delivery::decode(entry?)).collect()
    }

    /// Bytes of all entries.
    pub fn entries_bytes(&self) -> usize {
        self.parts().map(<[u8]>::len).sum()
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks.iter().map(|chunk| &chunk[..]).chain([&self.received[..]])
    }

    fn settle(&mut self) {
        if !self.received.is_empty() {
            self.chunks.push(self.received.split().freeze());
        }
    }

    fn merge_entry(&mut self, buf: &mut impl Buf) -> Result<(), DecodeError> {
        if self.received.is_empty() {
            self.received.reserve(1 + buf.remaining());
        }
        let length = decode_varint(buf)?;
        if length > buf.remaining() as u64 {
            return Err(malformed("an entry that is cut off"));
        }
        self.received.put_u8(ENTRY_KEY);
        encode_varint(length, &mut self.received);
        self.received.put(buf.take(length as usize));
        Ok(())
    }
}

/// The entries of a chunk, each the encoding of a [`Delivery`].
fn entries(chunk: &[u8]) -> impl Iterator<Item = Result<&[u8], DecodeError>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let found = (at < chunk.len()).then(|| entry_at(chunk, at))?;
        // What follows a broken entry has no beginning.
        at = found.as_ref().map_or(chunk.len(), |entry| entry.end);
        Some(found.map(|entry| &chunk[entry]))
    })
}

impl Message for DeliveryBatch {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if !self.room_id.is_empty() {
            encoding::bytes::encode(ROOM_ID, &self.room_id, buf);
        }
        if !self.subject.is_empty() {
            encoding::encode_key(SUBJECT, WireType::LengthDelimited, buf);
            encode_varint(self.subject.len() as u64, buf);
            buf.put_slice(self.subject.as_bytes());
        }
        self.parts().for_each(|part| buf.put_slice(part));
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            ROOM_ID => encoding::bytes::merge(wire_type, &mut self.room_id, buf, context),
            SUBJECT => {
                let mut subject = String::new();
                encoding::string::merge(wire_type, &mut subject, buf, context)?;
                self.subject = subject.into();
                Ok(())
            }
            DELIVERIES => {
                check_wire_type(WireType::LengthDelimited, wire_type)?;
                self.merge_entry(buf)
            }
            _ => encoding::skip_field(wire_type, tag, buf, context),
        }
    }

    fn encoded_len(&self) -> usize {
        let field = |length: usize| if length == 0 { 0 } else { entry_bytes(length) };
        field(self.room_id.len()) + field(self.subject.len()) + self.entries_bytes()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

impl PartialEq for DeliveryBatch {
    fn eq(&self, other: &Self) -> bool {
        let same_room = self.room_id == other.room_id && self.subject == other.subject;
        same_room && self.parts().flatten().eq(other.parts().flatten())
    }
}

impl Eq for DeliveryBatch {}

impl Hash for DeliveryBatch {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.room_id.hash(state);
        self.subject.hash(state);
        self.parts().flatten().for_each(|byte| byte.hash(state));
    }
}

impl fmt::Debug for DeliveryBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("DeliveryBatch");
        shown.field("room_id", &self.room_id).field("subject", &self.subject);
        match self.deliveries() {
            Ok(deliveries) => shown.field("deliveries", &deliveries).finish(),
            Err(error) => shown.field("deliveries", &error).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{StoredMessage, SubscribeResponse, delivery, subscribe_response};

    /// The same message as `message.proto` describes it, generated.
    #[derive(Clone, PartialEq, Message)]
    struct Plain {
        #[prost(bytes = "bytes", tag = "1")]
        room_id: Bytes,
        #[prost(string, tag = "2")]
        subject: String,
        #[prost(message, repeated, tag = "3")]
        deliveries: Vec<Delivery>,
    }

    fn delivery(sequence: u64, body: usize) -> Delivery {
        let message = StoredMessage { user: "alice".into(), body: vec![7; body].into(), ..StoredMessage::default() };
        Delivery { sequence, time_ms: 5, entry: Some(delivery::Entry::Message(message)) }
    }

    fn plain() -> Plain {
        let deliveries = [0, 100, 300, 20_000].into_iter().zip(0..).map(|(body, n)| delivery(n, body)).collect();
        Plain { room_id: vec![1; 16].into(), subject: "ops.log".into(), deliveries }
    }

    fn chunked(plain: &Plain) -> DeliveryBatch {
        let (first, second) = plain.deliveries.split_at(1);
        let mut batch = DeliveryBatch::of(plain.room_id.clone(), &plain.subject, first);
        DeliveryBatch::of(Bytes::new(), "", second).into_chunks().into_iter().for_each(|chunk| batch.push(chunk));
        batch
    }

    #[test]
    fn on_the_wire_it_is_the_message_of_the_proto_file() {
        let plain = plain();
        let batch = chunked(&plain);
        assert_eq!(batch.encode_to_vec(), plain.encode_to_vec());
        assert_eq!(batch.encoded_len(), plain.encoded_len());
        let read = DeliveryBatch::decode(&plain.encode_to_vec()[..]).unwrap();
        assert_eq!(read, batch);
        assert_eq!(read.deliveries().unwrap(), plain.deliveries);
        assert_eq!(Plain::decode(&read.encode_to_vec()[..]).unwrap(), plain);
        let within = SubscribeResponse { item: Some(subscribe_response::Item::Batch(batch)) };
        assert_eq!(SubscribeResponse::decode(&within.encode_to_vec()[..]).unwrap(), within);
        assert_eq!(DeliveryBatch::default().encode_to_vec(), [0; 0]);
    }

    #[test]
    fn entries_are_found_and_cut_without_decoding_them() {
        let plain = plain();
        let chunk = DeliveryBatch::of(Bytes::new(), "", &plain.deliveries).into_chunks().remove(0);
        let sequences =
            |chunk: &Bytes| -> Vec<u64> { entries(chunk).map(|entry| sequence_of(entry.unwrap()).unwrap()).collect() };
        assert_eq!(sequences(&chunk), [0, 1, 2, 3]);
        assert_eq!(sequences(&cut_chunk(&chunk, 1..3).unwrap()), [1, 2]);
        assert_eq!(cut_chunk(&chunk, 0..4).unwrap(), chunk);
        assert!(cut_chunk(&chunk, 2..2).unwrap().is_empty());
        assert!(cut_chunk(&chunk, 2..5).is_err());
        let lengths = plain.deliveries.iter().map(|delivery| entry_bytes(delivery.encoded_len()));
        assert_eq!(lengths.sum::<usize>(), chunk.len());
    }

    #[test]
    fn what_is_cut_off_or_altered_is_an_error() {
        let encoded = plain().encode_to_vec();
        for length in 0..400 {
            // At the end of a field a shorter message is a good one.
            if let Ok(batch) = DeliveryBatch::decode(&encoded[..length]) {
                assert_eq!(batch.encode_to_vec(), encoded[..length]);
            }
        }
        assert!(DeliveryBatch::decode(&[ENTRY_KEY, 5, 0][..]).is_err(), "longer than the message");
        assert!(entry_at(&[0x22, 0], 0).is_err() && entry_at(&[ENTRY_KEY], 0).is_err() && entry_at(&[], 0).is_err());
        assert!(entry_at(&[ENTRY_KEY, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], 0).is_err());
    }

    #[test]
    fn fields_of_a_later_version_are_skipped() {
        let mut encoded = plain().encode_to_vec();
        encoded.extend([9 << 3, 1]);
        assert_eq!(DeliveryBatch::decode(&encoded[..]).unwrap(), chunked(&plain()));
    }
}
