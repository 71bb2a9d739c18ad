//! Layout of a WAL file: frames, one after another, each at a multiple of [`ALIGN`].
//!
//! ```text
//! header  magic u32 · version u16 · kind u8 · 0 u8 · cluster 16 B · salt u64 · generation u64
//!         number u64 · watermark u64 · payload bytes u32 · rows u32 · previous header's CRC u32 · CRC u32
//! table   rows x { group u32 · kind u8 · form u8 · 0 u16 · length u32 · payload CRC u32
//!                  index u64 · term u64 · leader node u64 }
//! payload of each row, in order; zeros up to the next frame
//! ```
//!
//! All numbers are little endian, all checksums CRC-32C. The header's CRC covers header and table, and
//! no length is believed before it matched; as it covers the payload CRCs too, the chain of header CRCs
//! binds every byte to its place. The salt is drawn anew whenever a file gets a generation: bytes that a
//! file's earlier life or a client's message left behind never pass for a frame.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use unibus_proto::id::{ClusterId, GroupId, NodeId};

use crate::types::{LeaderId, LogId, Vote, log_id};

/// Start of every frame.
const MAGIC: u32 = u32::from_le_bytes(*b"UBWL");
/// Version of this layout.
const VERSION: u16 = 1;
/// Frames start at multiples of this: a disk's sector that holds synced bytes is not written again.
pub const ALIGN: u64 = 512;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 72;
/// Bytes of a row.
pub const ROW_BYTES: usize = 40;

/// `bytes` rounded up to where the next frame may start.
pub const fn align_up(bytes: u64) -> u64 {
    bytes.div_ceil(ALIGN) * ALIGN
}

/// What a WAL file's frames have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileTag {
    /// The cluster that the data belongs to.
    pub cluster: ClusterId,
    /// Random, drawn when the file got this generation.
    pub salt: u64,
    /// Place of the file among all files ever written; 1 is the first.
    pub generation: u64,
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The file's.
    pub tag: FileTag,
    /// First of its file: holds the state of all groups.
    pub start: bool,
    /// Counts frames over all files.
    pub number: u64,
    /// Every frame up to this number was synced before this one was written.
    pub watermark: u64,
    /// CRC of the previous frame's header and table.
    pub previous_crc: u32,
}

/// How an entry's payload is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An encoded proposal.
    Normal,
    /// Nothing.
    Blank,
    /// An encoded membership.
    Membership,
}

/// What a row says about its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A log entry; its payload follows.
    Entry(LogId, Form),
    /// The vote.
    Vote(Vote),
    /// Committed up to here.
    Committed(LogId),
    /// Entries after this index are gone; `None`: all of them.
    Truncate(Option<LogId>),
    /// Entries up to here are gone.
    Purge(LogId),
    /// In a start frame: the last log id.
    Last(LogId),
    /// In a start frame: bytes of the file.
    File(u64),
}

/// A line of a frame's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose record.
    pub group: GroupId,
    /// The record.
    pub record: Record,
    /// Bytes of its payload.
    pub length: u32,
    /// CRC of its payload.
    pub crc: u32,
}

impl Row {
    /// A row without payload.
    pub fn bare(group: GroupId, record: Record) -> Self {
        Self { group, record, length: 0, crc: 0 }
    }
}

/// Bytes of a frame, padding included.
pub fn frame_bytes(rows: usize, payload_bytes: u64) -> u64 {
    align_up((HEADER_BYTES + rows * ROW_BYTES) as u64 + payload_bytes)
}

/// Where the payloads start, from the start of the frame.
pub fn payload_offset(rows: usize) -> u64 {
    (HEADER_BYTES + rows * ROW_BYTES) as u64
}

/// Header and table of a frame, and their CRC.
pub fn encode_head(header: &Header, rows: &[Row]) -> (Bytes, u32) {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + rows.len() * ROW_BYTES);
    out.put_u32_le(MAGIC);
    out.put_u16_le(VERSION);
    out.put_u8(header.start.into());
    out.put_u8(0);
    out.put_slice(&header.tag.cluster.0);
    out.put_u64_le(header.tag.salt);
    out.put_u64_le(header.tag.generation);
    out.put_u64_le(header.number);
    out.put_u64_le(header.watermark);
    out.put_u32_le(rows.iter().map(|row| row.length).sum());
    out.put_u32_le(rows.len() as u32);
    out.put_u32_le(header.previous_crc);
    out.put_u32_le(0);
    rows.iter().for_each(|row| put_row(&mut out, row));
    let crc = head_crc(&out);
    out[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    (out.freeze(), crc)
}

fn head_crc(head: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&head[..HEADER_BYTES - 4]);
    crc32c::crc32c_append(crc, &head[HEADER_BYTES..])
}

fn put_row(out: &mut BytesMut, row: &Row) {
    let none = log_id(0, NodeId(0), 0);
    let (kind, form, id) = match row.record {
        Record::Entry(id, form) => (1, form as u8, id),
        Record::Vote(vote) => (2, vote.committed.into(), LogId { leader_id: vote.leader_id, index: 0 }),
        Record::Committed(id) => (3, 0, id),
        Record::Truncate(None) => (4, 0, none),
        Record::Truncate(Some(id)) => (4, 1, id),
        Record::Purge(id) => (5, 0, id),
        Record::Last(id) => (6, 0, id),
        Record::File(bytes) => (7, 0, log_id(0, NodeId(0), bytes)),
    };
    out.put_u32_le(row.group.0);
    out.put_u8(kind);
    out.put_u8(form);
    out.put_u16_le(0);
    out.put_u32_le(row.length);
    out.put_u32_le(row.crc);
    out.put_u64_le(id.index);
    out.put_u64_le(id.leader_id.term);
    out.put_u64_le(id.leader_id.node_id.0);
}

/// A frame whose header and table are whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The fixed part.
    pub header: Header,
    /// The table.
    pub rows: Vec<Row>,
    /// CRC of both.
    pub crc: u32,
    /// Bytes of the payloads together.
    pub payload_bytes: u64,
}

impl Head {
    /// Bytes of the frame, padding included.
    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(self.rows.len(), self.payload_bytes)
    }
}

/// Why there is no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoFrame {
    /// Nothing was written here.
    #[error("there is no frame")]
    Absent,
    /// The file ends inside the frame.
    #[error("the file ends inside the frame")]
    Cut,
    /// Header or table were damaged, or written in part.
    #[error("header checksum {found:#010x}, computed {computed:#010x}")]
    Checksum {
        /// As written.
        found: u32,
        /// Of the bytes there.
        computed: u32,
    },
    /// Checksum right, content impossible.
    #[error("{0}")]
    Malformed(String),
}

/// Reads the head of the frame at the start of `bytes`, which reach to the end of the file.
pub fn decode_head(bytes: &[u8]) -> Result<Head, NoFrame> {
    if bytes.len() < HEADER_BYTES {
        return Err(if bytes.iter().all(|byte| *byte == 0) { NoFrame::Absent } else { NoFrame::Cut });
    }
    let mut fixed = &bytes[..HEADER_BYTES];
    if fixed.get_u32_le() != MAGIC {
        return Err(NoFrame::Absent);
    }
    let (version, start, reserved) = (fixed.get_u16_le(), fixed.get_u8(), fixed.get_u8());
    let mut cluster = ClusterId::default();
    fixed.copy_to_slice(&mut cluster.0);
    let tag = FileTag { cluster, salt: fixed.get_u64_le(), generation: fixed.get_u64_le() };
    let (number, watermark) = (fixed.get_u64_le(), fixed.get_u64_le());
    let (payload_bytes, rows) = (u64::from(fixed.get_u32_le()), fixed.get_u32_le() as usize);
    let (previous_crc, crc) = (fixed.get_u32_le(), fixed.get_u32_le());
    let head = rows.checked_mul(ROW_BYTES).and_then(|table| bytes.get(..HEADER_BYTES + table)).ok_or(NoFrame::Cut)?;
    let computed = head_crc(head);
    if computed != crc {
        return Err(NoFrame::Checksum { found: crc, computed });
    }
    if version != VERSION || start > 1 || reserved != 0 {
        return Err(NoFrame::Malformed(format!("format version {version}, this program knows {VERSION}")));
    }
    let header = Header { tag, start: start == 1, number, watermark, previous_crc };
    let rows = decode_table(&head[HEADER_BYTES..], payload_bytes)?;
    Ok(Head { header, rows, crc, payload_bytes })
}

fn decode_table(table: &[u8], payload_bytes: u64) -> Result<Vec<Row>, NoFrame> {
    let rows = table.chunks_exact(ROW_BYTES).map(decode_row).collect::<Result<Vec<_>, _>>()?;
    let sum: u64 = rows.iter().map(|row| u64::from(row.length)).sum();
    match sum == payload_bytes {
        true => Ok(rows),
        false => Err(NoFrame::Malformed(format!("payloads of {sum} bytes in a frame of {payload_bytes}"))),
    }
}

fn decode_row(mut row: &[u8]) -> Result<Row, NoFrame> {
    let group = GroupId(row.get_u32_le());
    let (kind, form, _) = (row.get_u8(), row.get_u8(), row.get_u16_le());
    let (length, crc) = (row.get_u32_le(), row.get_u32_le());
    let (index, term, node_id) = (row.get_u64_le(), row.get_u64_le(), NodeId(row.get_u64_le()));
    let id = LogId { leader_id: LeaderId { term, node_id }, index };
    let record = match (kind, form) {
        (1, 0) => Record::Entry(id, Form::Normal),
        (1, 1) => Record::Entry(id, Form::Blank),
        (1, 2) => Record::Entry(id, Form::Membership),
        (2, 0 | 1) => Record::Vote(Vote { leader_id: id.leader_id, committed: form == 1 }),
        (3, 0) => Record::Committed(id),
        (4, 0) => Record::Truncate(None),
        (4, 1) => Record::Truncate(Some(id)),
        (5, 0) => Record::Purge(id),
        (6, 0) => Record::Last(id),
        (7, 0) => Record::File(index),
        _ => return Err(NoFrame::Malformed(format!("record of kind {kind}, form {form}"))),
    };
    Ok(Row { group, record, length, crc })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let tag = FileTag { cluster: ClusterId([7; 16]), salt: 3, generation: 4 };
        Header { tag, start: true, number: 9, watermark: 8, previous_crc: 11 }
    }

    fn rows() -> Vec<Row> {
        let id = log_id(1, NodeId(2), 3);
        let vote = Vote { leader_id: id.leader_id, committed: true };
        let records = [
            Record::Vote(vote),
            Record::Vote(Vote { committed: false, ..vote }),
            Record::Committed(id),
            Record::Truncate(None),
            Record::Truncate(Some(id)),
            Record::Purge(id),
            Record::Last(id),
            Record::File(1 << 40),
        ];
        let mut rows: Vec<_> = records.into_iter().map(|record| Row::bare(GroupId(5), record)).collect();
        for form in [Form::Normal, Form::Blank, Form::Membership] {
            rows.push(Row { group: GroupId(6), record: Record::Entry(id, form), length: 10, crc: 99 });
        }
        rows
    }

    #[test]
    fn heads_come_back() {
        let (bytes, crc) = encode_head(&header(), &rows());
        let head = decode_head(&bytes).expect("is whole");
        assert_eq!(head, Head { header: header(), rows: rows(), crc, payload_bytes: 30 });
        assert_eq!(head.frame_bytes() % ALIGN, 0);
    }

    #[test]
    fn no_flip_of_a_head_is_believed() {
        let (bytes, _) = encode_head(&header(), &rows());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_head(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn zeros_are_no_frame() {
        assert_eq!(decode_head(&[0; 4096]), Err(NoFrame::Absent));
        assert_eq!(decode_head(&[0; 10]), Err(NoFrame::Absent));
        assert_eq!(decode_head(&[]), Err(NoFrame::Absent));
    }
}
