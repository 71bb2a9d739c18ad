//! The bytes of a segment file: header, records, and when it is sealed a [footer](super::footer).
//!
//! ```text
//! header (64 bytes)  magic, version, group, cluster, segment, CRC
//! record             length, CRC, room, sequence, at_ms, bytes      (repeated)
//! ```
//! A record's CRC-32C covers cluster, group, segment and offset as well, so that a record that was read
//! from the wrong place does not pass. Everything is little-endian and a function of what was appended:
//! replicas hold identical files.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use unibus_machine::StoredDelivery;
use unibus_proto::id::{ClusterId, GroupId, RoomId};
use unibus_proto::position::Sequence;

/// The version that this code writes.
pub const VERSION: u32 = 1;
/// Bytes before the first record.
pub const HEADER_BYTES: u64 = 64;
/// Bytes of a record before its body.
pub const RECORD_HEAD_BYTES: usize = 40;

/// Cluster, group, segment and offset.
const PLACE_BYTES: usize = 36;
const MAGIC: &[u8; 8] = b"UNIBSEG1";

/// Which file it is: part of every checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The cluster.
    pub cluster: ClusterId,
    /// The shard.
    pub group: GroupId,
}

/// Consecutive records of one room that stand one after another in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The file.
    pub segment: u64,
    /// Where the first record begins.
    pub offset: u64,
    /// Bytes of all records.
    pub bytes: u32,
    /// Number of records.
    pub count: u32,
}

impl Run {
    /// Whether `other` begins where this one ends.
    pub fn is_before(&self, other: &Self) -> bool {
        other.segment == self.segment && other.offset == self.offset + u64::from(self.bytes)
    }
}

/// A record as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its room.
    pub room: RoomId,
    /// What is delivered.
    pub delivery: StoredDelivery,
    /// Bytes in the file.
    pub size: u64,
}

impl Place {
    /// The header of the file `segment`.
    pub fn encode_header(&self, segment: u64) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES as usize);
        out.put_slice(MAGIC);
        out.put_u32_le(VERSION);
        out.put_u32_le(self.group.0);
        out.put_slice(&self.cluster.0);
        out.put_u64_le(segment);
        out.resize(HEADER_BYTES as usize - 4, 0);
        out.put_u32_le(crc32c::crc32c(&out));
        out.freeze()
    }

    /// Checks the header of the file `segment`.
    pub fn check_header(&self, segment: u64, bytes: &[u8]) -> Result<(), String> {
        if bytes.len() != HEADER_BYTES as usize || &bytes[..8] != MAGIC {
            return Err("no segment header".into());
        }
        let version = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
        if version > VERSION {
            return Err(format!("format version {version}, newer than {VERSION}"));
        }
        if bytes != self.encode_header(segment) {
            return Err("the header of another file, or an altered one".into());
        }
        Ok(())
    }

    /// Appends the record that is to stand at `offset` of the file `segment`.
    pub fn encode_record(&self, segment: u64, offset: u64, room: RoomId, d: &StoredDelivery, out: &mut BytesMut) {
        let length = u32::try_from(d.bytes.len()).expect("a delivery is far below 4 GiB");
        let mut body = [0; RECORD_HEAD_BYTES - 8];
        body[..16].copy_from_slice(&room.0);
        body[16..24].copy_from_slice(&d.sequence.0.to_le_bytes());
        body[24..].copy_from_slice(&d.at_ms.to_le_bytes());
        out.put_u32_le(length);
        out.put_u32_le(self.record_crc(segment, offset, length, &body, &d.bytes));
        out.put_slice(&body);
        out.put_slice(&d.bytes);
    }

    /// The record at the start of `bytes`, which were read from `offset` of the file `segment`; none
    /// when more bytes are needed.
    pub fn decode_record(&self, segment: u64, offset: u64, bytes: &Bytes) -> Result<Option<Record>, String> {
        if bytes.len() < RECORD_HEAD_BYTES {
            return Ok(None);
        }
        let mut head = &bytes[..RECORD_HEAD_BYTES];
        let (length, crc) = (head.get_u32_le(), head.get_u32_le());
        let size = RECORD_HEAD_BYTES + length as usize;
        if bytes.len() < size {
            return Ok(None);
        }
        let body = bytes.slice(RECORD_HEAD_BYTES..size);
        if self.record_crc(segment, offset, length, &bytes[8..RECORD_HEAD_BYTES], &body) != crc {
            return Err("a record whose checksum does not match".into());
        }
        let room = RoomId(head[..16].try_into().expect("16 bytes"));
        head.advance(16);
        let (sequence, at_ms) = (Sequence(head.get_u64_le()), head.get_u64_le());
        Ok(Some(Record { room, delivery: StoredDelivery { sequence, at_ms, bytes: body }, size: size as u64 }))
    }

    /// Checksum of a part of the footer that stands at `offset`.
    pub fn index_crc(&self, segment: u64, offset: u64, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.place_crc(segment, offset), bytes)
    }

    fn place_crc(&self, segment: u64, offset: u64) -> u32 {
        crc32c::crc32c(&self.place_bytes(segment, offset))
    }

    /// What a checksum covers beside the bytes.
    fn place_bytes(&self, segment: u64, offset: u64) -> [u8; PLACE_BYTES] {
        let mut place = [0; PLACE_BYTES];
        place[..16].copy_from_slice(&self.cluster.0);
        place[16..20].copy_from_slice(&self.group.0.to_le_bytes());
        place[20..28].copy_from_slice(&segment.to_le_bytes());
        place[28..].copy_from_slice(&offset.to_le_bytes());
        place
    }

    fn record_crc(&self, segment: u64, offset: u64, length: u32, body: &[u8], bytes: &[u8]) -> u32 {
        // One call for all that is small: each costs more than the bytes that it covers.
        let mut head = [0; PLACE_BYTES + RECORD_HEAD_BYTES - 4];
        head[..PLACE_BYTES].copy_from_slice(&self.place_bytes(segment, offset));
        head[PLACE_BYTES..PLACE_BYTES + 4].copy_from_slice(&length.to_le_bytes());
        head[PLACE_BYTES + 4..].copy_from_slice(body);
        crc32c::crc32c_append(crc32c::crc32c(&head), bytes)
    }
}

/// Bytes of the record of `delivery`.
pub fn record_bytes(delivery: &StoredDelivery) -> u64 {
    (RECORD_HEAD_BYTES + delivery.bytes.len()) as u64
}
