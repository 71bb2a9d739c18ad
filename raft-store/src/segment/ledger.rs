//! What the segments of a shard hold, in memory: the files, the runs of each room, and the bytes that
//! were appended last. Knows no files; [`super::Segments`] writes out and reads.

use std::collections::BTreeMap;

use blake3::Hasher;
use bytes::{Bytes, BytesMut};
use unibus_machine::StoredDelivery;
use unibus_proto::id::RoomId;
use unibus_proto::position::Sequence;

use super::format::{BLOCK_BYTES, Footer, Place, Run, record_bytes};
use super::{SegmentEntry, TimelineError};

/// A longer run is split, so that a read never scans more than this to find its first record.
const RUN_BYTES_MAX: u32 = 64 << 10;

/// The files and runs of a shard.
pub struct Ledger {
    place: Place,
    sealed: BTreeMap<u64, SegmentEntry>,
    open: Option<OpenSegment>,
    runs: BTreeMap<(RoomId, Sequence), Run>,
    /// Appended bytes by (segment, offset): all that are not yet written, and the newest that are.
    tail: BTreeMap<(u64, u64), Bytes>,
    tail_bytes: u64,
    /// Everything before is written out.
    written: (u64, u64),
}

/// The file that is being appended to.
pub struct OpenSegment {
    id: u64,
    length: u64,
    whole: Hasher,
    block: Hasher,
    blocks: Vec<[u8; 32]>,
    runs: Vec<(RoomId, Sequence)>,
}

/// Bytes that a file does not have yet.
pub struct Unwritten {
    /// The file.
    pub segment: u64,
    /// Where they go.
    pub offset: u64,
    /// One after another.
    pub parts: Vec<Bytes>,
}

impl OpenSegment {
    /// An empty file.
    pub fn new(id: u64) -> Self {
        Self { id, length: 0, whole: Hasher::new(), block: Hasher::new(), blocks: vec![], runs: vec![] }
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// BLAKE3 of the bytes so far.
    pub fn hash(&self) -> [u8; 32] {
        self.whole.finalize().into()
    }

    /// Counts and hashes bytes that follow.
    pub fn extend(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
        while !bytes.is_empty() {
            let room = (BLOCK_BYTES - self.length % BLOCK_BYTES) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.update(now);
            self.length += now.len() as u64;
            if self.length.is_multiple_of(BLOCK_BYTES) {
                self.end_block();
            }
            bytes = later;
        }
    }

    fn end_block(&mut self) {
        self.blocks.push(self.block.finalize().into());
        self.block.reset();
    }
}

impl Ledger {
    /// Without any file.
    pub fn new(place: Place) -> Self {
        Self {
            place,
            sealed: BTreeMap::new(),
            open: None,
            runs: BTreeMap::new(),
            tail: BTreeMap::new(),
            tail_bytes: 0,
            written: (0, 0),
        }
    }

    /// Takes over a sealed file that was found.
    pub fn adopt_sealed(&mut self, entry: SegmentEntry, footer: Footer) {
        self.runs.extend(footer.runs.into_iter().map(|(room, first, run)| ((room, first), run)));
        self.sealed.insert(entry.id, entry);
        self.written = self.written.max((entry.id + 1, 0));
    }

    /// Takes over the file that was being appended to, with its records indexed by
    /// [`index`](Self::index).
    pub fn adopt_open(&mut self, open: OpenSegment) {
        self.written = (open.id, open.length);
        self.open = Some(open);
    }

    /// Appends records; `segment` is the open file, or the next one.
    pub fn append(&mut self, segment: u64, room: RoomId, deliveries: &[StoredDelivery]) -> Result<(), String> {
        self.open_segment(segment)?;
        let mut out = BytesMut::with_capacity(deliveries.iter().map(record_bytes).sum::<u64>() as usize);
        let mut open = self.open.take().expect("opened above");
        for delivery in deliveries {
            let at = open.length + out.len() as u64;
            self.place.encode_record(segment, at, room, delivery, &mut out);
            self.index(&mut open, room, delivery.sequence, at, record_bytes(delivery) as u32)?;
        }
        self.push(&mut open, out.freeze());
        self.open = Some(open);
        Ok(())
    }

    /// Adds a record to the runs.
    pub fn index(
        &mut self,
        open: &mut OpenSegment,
        room: RoomId,
        sequence: Sequence,
        offset: u64,
        bytes: u32,
    ) -> Result<(), String> {
        if let Some(head) = self.head(room).filter(|head| sequence != head.next()) {
            return Err(format!("room {room}: sequence {sequence} after {head}, expected the one that follows"));
        }
        if let Some(last) = open.runs.last().filter(|last| last.0 == room) {
            let run = self.runs.get_mut(last).expect("each run of the open file is indexed");
            if run.offset + u64::from(run.bytes) == offset && run.bytes < RUN_BYTES_MAX {
                run.bytes += bytes;
                run.count += 1;
                return Ok(());
            }
        }
        open.runs.push((room, sequence));
        self.runs.insert((room, sequence), Run { segment: open.id, offset, bytes, count: 1 });
        Ok(())
    }

    /// Seals the open file.
    pub fn cut(&mut self, segment: u64) -> Result<SegmentEntry, String> {
        let mut open = match self.open.take() {
            Some(open) if open.id == segment => open,
            other => return Err(format!("segment {segment} is to be sealed, open is {:?}", other.map(|open| open.id))),
        };
        let (data_bytes, data_hash) = (open.length, open.hash());
        if !open.length.is_multiple_of(BLOCK_BYTES) {
            open.end_block();
        }
        let runs = open.runs.iter().map(|key| (key.0, key.1, self.runs[key])).collect();
        let footer = Footer { data_bytes, data_hash, runs, blocks: std::mem::take(&mut open.blocks) };
        self.push(&mut open, footer.encode());
        let entry = SegmentEntry { id: segment, length: open.length, hash: open.hash(), sealed: true };
        self.sealed.insert(segment, entry);
        Ok(entry)
    }

    fn open_segment(&mut self, segment: u64) -> Result<(), String> {
        match &self.open {
            Some(open) if open.id == segment => Ok(()),
            Some(open) => Err(format!("segment {segment} is to be appended to, open is {}", open.id)),
            None if self.sealed.last_key_value().is_some_and(|(last, _)| *last >= segment) => {
                Err(format!("segment {segment} is to be appended to, but it is sealed"))
            }
            None => {
                let mut open = OpenSegment::new(segment);
                self.push(&mut open, self.place.encode_header(segment));
                self.open = Some(open);
                Ok(())
            }
        }
    }

    fn push(&mut self, open: &mut OpenSegment, bytes: Bytes) {
        self.tail_bytes += bytes.len() as u64;
        let at = (open.id, open.length);
        open.extend(&bytes);
        self.tail.insert(at, bytes);
    }

    /// What is sealed, by id.
    pub fn sealed(&self, id: u64) -> Option<SegmentEntry> {
        self.sealed.get(&id).copied()
    }

    /// All files as they stand; the open one last, with the hash of what it holds.
    pub fn manifest(&self) -> Vec<SegmentEntry> {
        let open = self.open.as_ref();
        let open = open.map(|open| SegmentEntry { id: open.id, length: open.length, hash: open.hash(), sealed: false });
        self.sealed.values().copied().chain(open).collect()
    }

    /// What the files do not have yet, file by file.
    pub fn unwritten(&self) -> Vec<Unwritten> {
        let mut out: Vec<Unwritten> = vec![];
        for ((segment, offset), bytes) in self.tail.range(self.written..) {
            match out.last_mut().filter(|last| last.segment == *segment) {
                Some(last) => last.parts.push(bytes.clone()),
                None => out.push(Unwritten { segment: *segment, offset: *offset, parts: vec![bytes.clone()] }),
            }
        }
        out
    }

    /// Says that everything before (segment, offset) is written, and lets go of the oldest bytes beyond
    /// `tail_bytes_max`.
    pub fn written(&mut self, upto: (u64, u64), tail_bytes_max: u64) {
        self.written = upto;
        while self.tail_bytes > tail_bytes_max {
            let Some(first) = self.tail.first_entry().filter(|first| *first.key() < upto) else { break };
            self.tail_bytes -= first.remove().len() as u64;
        }
    }

    /// The newest sequence of a room.
    pub fn head(&self, room: RoomId) -> Option<Sequence> {
        let ((_, first), run) = self.runs.range((room, Sequence(0))..=(room, Sequence(u64::MAX))).next_back()?;
        Some(Sequence(first.0 + u64::from(run.count) - 1))
    }

    /// The run that holds `from`, with its first sequence; none just beyond the head.
    pub fn find(&self, room: RoomId, from: Sequence) -> Result<Option<(Sequence, Run)>, TimelineError> {
        let head = self.head(room).ok_or(TimelineError::NotFound)?;
        let floor = self.runs.range((room, Sequence(0))..).next().map_or(head, |((_, first), _)| *first);
        if from < floor || from > head.next() {
            return Err(TimelineError::OutOfRange { floor, head });
        }
        let found = self.runs.range((room, Sequence(0))..=(room, from)).next_back();
        Ok(found.filter(|_| from <= head).map(|((_, first), run)| (*first, *run)))
    }

    /// The bytes of `run` that are in memory: where they begin, and the bytes to its end.
    pub fn in_memory(&self, run: &Run) -> (u64, Bytes) {
        let end = run.offset + u64::from(run.bytes);
        let mut begin = end;
        let mut parts = vec![];
        for ((_, offset), bytes) in self.tail.range((run.segment, 0)..(run.segment, end)).rev() {
            let chunk_end = offset + bytes.len() as u64;
            if chunk_end <= run.offset || chunk_end < begin {
                break;
            }
            let from = run.offset.max(*offset);
            parts.push(bytes.slice((from - offset) as usize..(begin.min(chunk_end) - offset) as usize));
            begin = from;
        }
        (begin, join(parts))
    }
}

/// Joins parts that were collected from last to first.
fn join(mut parts: Vec<Bytes>) -> Bytes {
    match parts.len() {
        0 => Bytes::new(),
        1 => parts.remove(0),
        _ => parts.iter().rev().flat_map(|part| part.iter().copied()).collect(),
    }
}
