//! The end of a sealed segment file: which rooms it holds, and where. It is read piece by piece when a
//! room is asked for, so that memory does not grow with the log.
//!
//! ```text
//! runs      offset, bytes, records                         (12 bytes each, room by room)
//! pages     room, first sequence, records, first run, runs, CRC of its runs
//!                                                          (40 bytes each, ascending, 100 to a page); CRC
//! blocks    hash of each 64 KiB of header and records
//! summary   bytes of header and records, runs, rooms, blocks, CRC of blocks, first room of each page; CRC
//! trailer   length of the summary, magic
//! ```
//! Each CRC covers the place of its bytes as well.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use unibus_proto::id::RoomId;
use unibus_proto::position::Sequence;

use super::format::{HEADER_BYTES, Place, Run};
use crate::sum::BLOCK_BYTES;

const MAGIC: &[u8; 8] = b"UNIBSEGF";
/// Length of the summary and magic.
pub const TRAILER_BYTES: u64 = 16;
/// Rooms of one page: about 4 KiB.
const PAGE_ROOMS: usize = 100;
const ROOM_BYTES: u64 = 40;
const RUN_BYTES: u64 = 12;
const SUMMARY_HEAD_BYTES: usize = 24;
const CRC_BYTES: u64 = 4;

/// Consecutive records of one room that stand one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunAt {
    /// Where the first record begins.
    pub offset: u32,
    /// Bytes of all records.
    pub bytes: u32,
    /// Number of records.
    pub count: u32,
}

/// What a file holds of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomRuns {
    /// Sequence of the first record.
    pub first: Sequence,
    /// Records.
    pub count: u32,
    /// Where they are, in order.
    pub runs: Vec<RunAt>,
}

impl RoomRuns {
    /// The sequence that follows.
    pub fn end(&self) -> Sequence {
        Sequence(self.first.0 + u64::from(self.count))
    }

    /// The runs of the file `segment` from the one that holds `from` on, each with its first sequence.
    pub fn from(&self, segment: u64, from: Sequence) -> impl Iterator<Item = (Sequence, Run)> + '_ {
        let mut next = self.first;
        self.runs.iter().filter_map(move |run| {
            let first = next;
            next = Sequence(first.0 + u64::from(run.count));
            let run = Run { segment, offset: u64::from(run.offset), bytes: run.bytes, count: run.count };
            (next > from).then_some((first, run))
        })
    }
}

/// A room as a page says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomEntry {
    /// The room.
    pub room: RoomId,
    /// Sequence of its first record.
    pub first: Sequence,
    /// Its records.
    pub count: u32,
    runs_at: u32,
    runs: u32,
    crc: u32,
}

/// Where the parts of a footer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of header and records.
    pub data_bytes: u64,
    runs: u32,
    rooms: u32,
    blocks: u32,
    blocks_crc: u32,
    /// The first room of each page.
    fences: Vec<RoomId>,
}

/// The footer of the file `segment` that holds `data_bytes` of header and records.
pub fn encode(
    place: Place,
    segment: u64,
    data_bytes: u64,
    rooms: &BTreeMap<RoomId, RoomRuns>,
    blocks: &[[u8; 32]],
) -> (Summary, Bytes) {
    let mut out = BytesMut::new();
    let mut entries = Vec::with_capacity(rooms.len());
    let mut runs_at = 0;
    for (room, index) in rooms {
        let begin = out.len();
        for run in &index.runs {
            out.put_u32_le(run.offset);
            out.put_u32_le(run.bytes);
            out.put_u32_le(run.count);
        }
        let crc = place.index_crc(segment, data_bytes + begin as u64, &out[begin..]);
        let runs = index.runs.len() as u32;
        entries.push(RoomEntry { room: *room, first: index.first, count: index.count, runs_at, runs, crc });
        runs_at += runs;
    }
    for page in entries.chunks(PAGE_ROOMS) {
        let begin = out.len();
        page.iter().for_each(|entry| entry.encode(&mut out));
        out.put_u32_le(place.index_crc(segment, data_bytes + begin as u64, &out[begin..]));
    }
    let begin = out.len();
    blocks.iter().for_each(|block| out.put_slice(block));
    let blocks_crc = place.index_crc(segment, data_bytes + begin as u64, &out[begin..]);
    let fences = entries.iter().step_by(PAGE_ROOMS).map(|entry| entry.room).collect();
    let rooms = entries.len() as u32;
    let summary = Summary { data_bytes, runs: runs_at, rooms, blocks: blocks.len() as u32, blocks_crc, fences };
    summary.encode(place, segment, &mut out);
    (summary, out.freeze())
}

impl RoomEntry {
    fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&self.room.0);
        out.put_u64_le(self.first.0);
        out.put_u32_le(self.count);
        out.put_u32_le(self.runs_at);
        out.put_u32_le(self.runs);
        out.put_u32_le(self.crc);
    }

    fn decode(mut bytes: &[u8]) -> Self {
        let mut room = [0; 16];
        bytes.copy_to_slice(&mut room);
        let first = Sequence(bytes.get_u64_le());
        let (count, runs_at) = (bytes.get_u32_le(), bytes.get_u32_le());
        Self { room: RoomId(room), first, count, runs_at, runs: bytes.get_u32_le(), crc: bytes.get_u32_le() }
    }

    /// The sequence that follows its last record.
    pub fn end(&self) -> Sequence {
        Sequence(self.first.0 + u64::from(self.count))
    }

    /// Its runs, from the bytes that [`Summary::runs_of`] names.
    pub fn decode_runs(&self, place: Place, segment: u64, at: u64, mut bytes: &[u8]) -> Result<RoomRuns, String> {
        if place.index_crc(segment, at, bytes) != self.crc {
            return Err("an index of runs whose checksum does not match".into());
        }
        let mut runs = Vec::with_capacity(self.runs as usize);
        while bytes.len() as u64 >= RUN_BYTES {
            let (offset, length) = (bytes.get_u32_le(), bytes.get_u32_le());
            runs.push(RunAt { offset, bytes: length, count: bytes.get_u32_le() });
        }
        Ok(RoomRuns { first: self.first, count: self.count, runs })
    }
}

impl Summary {
    fn encode(&self, place: Place, segment: u64, out: &mut BytesMut) {
        let begin = out.len();
        out.put_u64_le(self.data_bytes);
        out.put_u32_le(self.runs);
        out.put_u32_le(self.rooms);
        out.put_u32_le(self.blocks);
        out.put_u32_le(self.blocks_crc);
        self.fences.iter().for_each(|room| out.put_slice(&room.0));
        out.put_u32_le(place.index_crc(segment, self.data_bytes + begin as u64, &out[begin..]));
        out.put_u64_le((out.len() - begin) as u64);
        out.put_slice(MAGIC);
    }

    /// Where the summary of a file of `length` bytes is, from the file's last 16 bytes.
    pub fn find(length: u64, trailer: &[u8]) -> Result<Range<u64>, String> {
        if trailer.len() as u64 != TRAILER_BYTES || &trailer[8..] != MAGIC {
            return Err("no footer".into());
        }
        let bytes = u64::from_le_bytes(trailer[..8].try_into().expect("8 bytes"));
        let end = length.checked_sub(TRAILER_BYTES).ok_or("a footer longer than the file")?;
        let begin = end.checked_sub(bytes).filter(|begin| *begin >= HEADER_BYTES);
        Ok(begin.ok_or("a footer longer than the file")?..end)
    }

    /// The summary that stands at `at` of the file `segment`.
    pub fn decode(place: Place, segment: u64, at: u64, bytes: &[u8]) -> Result<Self, String> {
        const OTHER: &str = "a footer of another file, or an altered one";
        let (mut body, crc) = bytes.split_at_checked(bytes.len().wrapping_sub(4)).ok_or("an empty footer")?;
        if crc != place.index_crc(segment, at, body).to_le_bytes() || body.len() < SUMMARY_HEAD_BYTES {
            return Err(OTHER.into());
        }
        let data_bytes = body.get_u64_le();
        let (runs, rooms, blocks) = (body.get_u32_le(), body.get_u32_le(), body.get_u32_le());
        let blocks_crc = body.get_u32_le();
        let fences = body.chunks_exact(16).map(|room| RoomId(room.try_into().expect("16 bytes"))).collect();
        let summary = Self { data_bytes, runs, rooms, blocks, blocks_crc, fences };
        let fits = summary.fences.len() == (rooms as usize).div_ceil(PAGE_ROOMS) && summary.blocks_range().end == at;
        if fits && u64::from(blocks) == data_bytes.div_ceil(BLOCK_BYTES) { Ok(summary) } else { Err(OTHER.into()) }
    }

    fn pages_begin(&self) -> u64 {
        self.data_bytes + u64::from(self.runs) * RUN_BYTES
    }

    fn page_end(&self, page: usize) -> u64 {
        let rooms = ((page + 1) * PAGE_ROOMS).min(self.rooms as usize) as u64;
        self.pages_begin() + rooms * ROOM_BYTES + (page as u64 + 1) * CRC_BYTES
    }

    /// The page that would hold `room`.
    pub fn page_of(&self, room: RoomId) -> Option<usize> {
        self.fences.partition_point(|first| *first <= room).checked_sub(1)
    }

    /// Where a page is.
    pub fn page(&self, page: usize) -> Range<u64> {
        let begin = page.checked_sub(1).map_or(self.pages_begin(), |before| self.page_end(before));
        begin..self.page_end(page)
    }

    /// The rooms of the page that was read from `at`.
    pub fn decode_page(place: Place, segment: u64, at: u64, bytes: &[u8]) -> Result<Vec<RoomEntry>, String> {
        let (body, crc) = bytes.split_at_checked(bytes.len().wrapping_sub(4)).ok_or("an empty page")?;
        if crc != place.index_crc(segment, at, body).to_le_bytes() {
            return Err("an index page whose checksum does not match".into());
        }
        Ok(body.chunks_exact(ROOM_BYTES as usize).map(RoomEntry::decode).collect())
    }

    /// Where the runs of a room are.
    pub fn runs_of(&self, entry: &RoomEntry) -> Range<u64> {
        let begin = self.data_bytes + u64::from(entry.runs_at) * RUN_BYTES;
        begin..begin + u64::from(entry.runs) * RUN_BYTES
    }

    /// Where the hashes of the blocks are.
    pub fn blocks_range(&self) -> Range<u64> {
        let pages = self.fences.len() as u64;
        let begin = self.pages_begin() + u64::from(self.rooms) * ROOM_BYTES + pages * CRC_BYTES;
        begin..begin + u64::from(self.blocks) * 32
    }

    /// The hashes of the blocks.
    pub fn decode_blocks(&self, place: Place, segment: u64, bytes: &[u8]) -> Result<Vec<[u8; 32]>, String> {
        if place.index_crc(segment, self.blocks_range().start, bytes) != self.blocks_crc {
            return Err("block hashes whose checksum does not match".into());
        }
        Ok(bytes.chunks_exact(32).map(|hash| hash.try_into().expect("32 bytes")).collect())
    }
}
