//! The bytes of a segment file: header, records, footer.
//!
//! ```text
//! header (64 bytes)  magic, version, group, cluster, segment, CRC
//! record             length, CRC, room, sequence, at_ms, bytes      (repeated)
//! footer             runs of rooms, hash per 64 KiB of data, hash of the data, CRC, its own length, magic
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
/// The data is hashed in blocks of this size, so that damage can be located.
pub const BLOCK_BYTES: u64 = 64 << 10;

const MAGIC: &[u8; 8] = b"UNIBSEG1";
const FOOTER_MAGIC: &[u8; 8] = b"UNIBSEGF";
/// Footer length and magic.
const TRAILER_BYTES: u64 = 16;
const RUN_BYTES: usize = 40;

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

/// What a sealed file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Bytes of header and records.
    pub data_bytes: u64,
    /// BLAKE3 of header and records.
    pub data_hash: [u8; 32],
    /// Room and first sequence of each run, in the order of the file.
    pub runs: Vec<(RoomId, Sequence, Run)>,
    /// BLAKE3 of each 64 KiB of header and records.
    pub blocks: Vec<[u8; 32]>,
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

    fn record_crc(&self, segment: u64, offset: u64, length: u32, body: &[u8], bytes: &[u8]) -> u32 {
        let crc = crc32c::crc32c(&self.cluster.0);
        let crc = crc32c::crc32c_append(crc, &self.group.0.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &segment.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &length.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(crc, body), bytes)
    }
}

/// Bytes of the record of `delivery`.
pub fn record_bytes(delivery: &StoredDelivery) -> u64 {
    (RECORD_HEAD_BYTES + delivery.bytes.len()) as u64
}

impl Footer {
    /// The footer's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64_le(self.data_bytes);
        out.put_slice(&self.data_hash);
        out.put_u32_le(self.runs.len() as u32);
        out.put_u32_le(self.blocks.len() as u32);
        for (room, first, run) in &self.runs {
            out.put_slice(&room.0);
            out.put_u64_le(first.0);
            out.put_u64_le(run.offset);
            out.put_u32_le(run.bytes);
            out.put_u32_le(run.count);
        }
        self.blocks.iter().for_each(|hash| out.put_slice(hash));
        out.put_u32_le(crc32c::crc32c(&out));
        out.put_u64_le(out.len() as u64);
        out.put_slice(FOOTER_MAGIC);
        out.freeze()
    }

    /// Where the footer of a file of `length` bytes begins, from the file's last 16 bytes.
    pub fn begin(length: u64, trailer: &[u8]) -> Result<u64, String> {
        if trailer.len() as u64 != TRAILER_BYTES || &trailer[8..] != FOOTER_MAGIC {
            return Err("no footer".into());
        }
        let bytes = u64::from_le_bytes(trailer[..8].try_into().expect("8 bytes"));
        let begin = length.checked_sub(TRAILER_BYTES).and_then(|end| end.checked_sub(bytes));
        begin.filter(|begin| *begin >= HEADER_BYTES).ok_or_else(|| "a footer longer than the file".into())
    }

    /// The footer of the file `segment`, without its trailer.
    pub fn decode(segment: u64, begin: u64, bytes: &[u8]) -> Result<Self, String> {
        let (mut body, crc) = bytes.split_at_checked(bytes.len().wrapping_sub(4)).ok_or("an empty footer")?;
        if crc != crc32c::crc32c(body).to_le_bytes() || body.len() < 48 {
            return Err("a footer whose checksum does not match".into());
        }
        let data_bytes = body.get_u64_le();
        let mut data_hash = [0; 32];
        body.copy_to_slice(&mut data_hash);
        let (runs, blocks) = (body.get_u32_le() as usize, body.get_u32_le() as usize);
        if data_bytes != begin || body.len() != runs * RUN_BYTES + blocks * 32 {
            return Err("a footer of another file".into());
        }
        let runs = (0..runs).map(|_| decode_run(segment, &mut body)).collect();
        let blocks = body.chunks_exact(32).map(|hash| hash.try_into().expect("32 bytes")).collect();
        Ok(Self { data_bytes, data_hash, runs, blocks })
    }
}

fn decode_run(segment: u64, body: &mut &[u8]) -> (RoomId, Sequence, Run) {
    let mut room = [0; 16];
    body.copy_to_slice(&mut room);
    let first = Sequence(body.get_u64_le());
    let (offset, bytes, count) = (body.get_u64_le(), body.get_u32_le(), body.get_u32_le());
    (RoomId(room), first, Run { segment, offset, bytes, count })
}
