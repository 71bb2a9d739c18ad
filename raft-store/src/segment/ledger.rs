//! What the segments of a shard hold, in memory: the files, the runs of the rooms in the open one, and the
//! bytes that were appended last. What sealed files hold is in their footers ([`super::lookup`]). Knows no
//! files; [`super::Segments`] writes out and reads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use unibus_machine::StoredDelivery;
use unibus_proto::id::RoomId;
use unibus_proto::position::Sequence;

use super::SegmentEntry;
use super::footer::{self, RoomRuns, RunAt, Summary};
use super::format::{Place, record_bytes};
use crate::sum::FileHasher;

/// A longer run is split, so that a read never scans more than this to find its first record.
const RUN_BYTES_MAX: u32 = 64 << 10;

/// The files of a shard.
pub struct Ledger {
    place: Place,
    sealed: BTreeMap<u64, Sealed>,
    open: Option<OpenSegment>,
    /// Appended bytes by (segment, offset): all that are not yet written, and the newest that are.
    tail: BTreeMap<(u64, u64), Bytes>,
    tail_bytes: u64,
    /// Everything before is written out.
    written: (u64, u64),
    unwritten_bytes: u64,
}

/// A file that is complete.
#[derive(Clone)]
pub struct Sealed {
    /// Length and hash.
    pub entry: SegmentEntry,
    /// Where the parts of its footer are.
    pub summary: Arc<Summary>,
}

/// The file that is being appended to.
pub struct OpenSegment {
    id: u64,
    hasher: FileHasher,
    rooms: BTreeMap<RoomId, RoomRuns>,
    /// Whose record is the last one.
    last: Option<RoomId>,
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
        Self { id, hasher: FileHasher::default(), rooms: BTreeMap::new(), last: None }
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.hasher.length()
    }

    /// The file as it stands.
    pub fn entry(&self, sealed: bool) -> SegmentEntry {
        let sum = self.hasher.sum();
        SegmentEntry { id: self.id, length: sum.length, hash: sum.hash, sealed }
    }

    /// Counts and hashes bytes that follow.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Adds a record to the runs of its room.
    pub fn index(&mut self, room: RoomId, sequence: Sequence, offset: u64, bytes: u32) -> Result<(), String> {
        let offset = u32::try_from(offset).map_err(|_| format!("a record at byte {offset}, expected below 4 GiB"))?;
        let index = self.rooms.entry(room).or_insert_with(|| RoomRuns {
            first: sequence,
            count: 0,
            runs: Vec::with_capacity(1),
        });
        if sequence != index.end() {
            let expected = index.end();
            return Err(format!("room {room}: sequence {sequence}, expected {expected}, which follows"));
        }
        index.count += 1;
        let follows = self.last.replace(room) == Some(room);
        match index.runs.last_mut().filter(|run| follows && run.bytes < RUN_BYTES_MAX) {
            Some(run) => {
                run.bytes += bytes;
                run.count += 1;
            }
            None => index.runs.push(RunAt { offset, bytes, count: 1 }),
        }
        Ok(())
    }
}

impl Ledger {
    /// Without any file.
    pub fn new(place: Place) -> Self {
        let (sealed, tail) = (BTreeMap::new(), BTreeMap::new());
        Self { place, sealed, open: None, tail, tail_bytes: 0, written: (0, 0), unwritten_bytes: 0 }
    }

    /// Takes over a sealed file that was found.
    pub fn adopt_sealed(&mut self, entry: SegmentEntry, summary: Summary) {
        self.sealed.insert(entry.id, Sealed { entry, summary: Arc::new(summary) });
        self.written = self.written.max((entry.id + 1, 0));
    }

    /// Takes over the file that was being appended to, with its records indexed.
    pub fn adopt_open(&mut self, open: OpenSegment) {
        self.written = (open.id, open.length());
        self.open = Some(open);
    }

    /// Appends records; `segment` is the open file, or the next one.
    pub fn append(&mut self, segment: u64, room: RoomId, deliveries: &[StoredDelivery]) -> Result<(), String> {
        self.open_segment(segment)?;
        let mut out = BytesMut::with_capacity(deliveries.iter().map(record_bytes).sum::<u64>() as usize);
        let mut open = self.open.take().expect("opened above");
        let begin = open.length();
        for delivery in deliveries {
            let at = begin + out.len() as u64;
            self.place.encode_record(segment, at, room, delivery, &mut out);
            open.index(room, delivery.sequence, at, record_bytes(delivery) as u32)?;
        }
        self.push(&mut open, out.freeze());
        self.open = Some(open);
        Ok(())
    }

    /// Seals the open file.
    pub fn cut(&mut self, segment: u64) -> Result<SegmentEntry, String> {
        let mut open = match self.open.take() {
            Some(open) if open.id == segment => open,
            other => return Err(format!("segment {segment} is to be sealed, open is {:?}", other.map(|open| open.id))),
        };
        let data_bytes = open.length();
        let (summary, footer) = footer::encode(self.place, segment, data_bytes, &open.rooms, &open.hasher.blocks());
        self.push(&mut open, footer);
        let entry = open.entry(true);
        self.sealed.insert(segment, Sealed { entry, summary: Arc::new(summary) });
        Ok(entry)
    }

    /// Forgets a sealed file; false when there is none.
    pub fn drop_sealed(&mut self, segment: u64) -> bool {
        self.sealed.remove(&segment).is_some()
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
        self.unwritten_bytes += bytes.len() as u64;
        let at = (open.id, open.length());
        open.extend(&bytes);
        self.tail.insert(at, bytes);
    }

    /// The sealed files, ascending.
    pub fn all_sealed(&self) -> impl DoubleEndedIterator<Item = &Sealed> {
        self.sealed.values()
    }

    /// What is sealed, by id.
    pub fn sealed(&self, id: u64) -> Option<&Sealed> {
        self.sealed.get(&id)
    }

    /// Whether there is such a file, sealed or open.
    pub fn lists(&self, id: u64) -> bool {
        self.sealed.contains_key(&id) || self.open.as_ref().is_some_and(|open| open.id == id)
    }

    /// What the open file holds of a room, with the file's id.
    pub fn open_runs(&self, room: RoomId) -> Option<(u64, &RoomRuns)> {
        self.open.as_ref().and_then(|open| Some((open.id, open.rooms.get(&room)?)))
    }

    /// All files as they stand; the open one last, with the hash of what it holds.
    pub fn manifest(&self) -> Vec<SegmentEntry> {
        let open = self.open.as_ref().map(|open| open.entry(false));
        self.sealed.values().map(|sealed| sealed.entry).chain(open).collect()
    }

    /// Whether a sealed file has all its bytes.
    pub fn is_written(&self, segment: u64) -> bool {
        self.sealed.get(&segment).is_some_and(|sealed| self.written >= (segment, sealed.entry.length))
    }

    /// How much the files do not have yet.
    pub fn unwritten_bytes(&self) -> u64 {
        self.unwritten_bytes
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
        self.unwritten_bytes -= self.tail.range(self.written..upto).map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        self.written = upto;
        while self.tail_bytes > tail_bytes_max {
            let Some(first) = self.tail.first_entry().filter(|first| *first.key() < upto) else { break };
            self.tail_bytes -= first.remove().len() as u64;
        }
    }

    /// The bytes of `range` that are in memory: where they begin, and the bytes to its end.
    pub fn in_memory(&self, segment: u64, range: Range<u64>) -> (u64, Bytes) {
        let end = range.end;
        let mut begin = end;
        let mut parts = vec![];
        for ((_, offset), bytes) in self.tail.range((segment, 0)..(segment, end)).rev() {
            let chunk_end = offset + bytes.len() as u64;
            if chunk_end <= range.start || chunk_end < begin {
                break;
            }
            let from = range.start.max(*offset);
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
        _ => {
            parts.reverse();
            parts.concat().into()
        }
    }
}
