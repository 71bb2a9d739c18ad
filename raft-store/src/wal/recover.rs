//! Reads WAL files back and tells a torn tail from damage: a pure function of the files' bytes.
//!
//! Round n + 1 is written only after round n was synced, so a bad frame may be what a crash left of the
//! last round, and is then dropped, only if nothing valid follows it, in this file or a later one, and no
//! watermark covers it. Anything else means that acknowledged bytes are gone: refuse, and say where.

use std::collections::BTreeMap;

use unibus_proto::id::{ClusterId, GroupId};

use super::frame::{ALIGN, FileTag, Head, Header, NoFrame, Record, Row, align_up, decode_head, payload_offset};
use super::index::{Index, Place};
use super::ledger::Ledger;

/// Acknowledged bytes that cannot be read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file} at byte {offset}: {what}")]
pub struct Damage {
    /// The file.
    pub file: String,
    /// Where in the file.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

/// The name of the file of a generation.
pub fn file_name(generation: u64) -> String {
    format!("{generation:016}.wal")
}

/// Where the next frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The last file's.
    pub tag: FileTag,
    /// Bytes of that file.
    pub file_bytes: u64,
    /// Number of the last frame.
    pub number: u64,
    /// Its checksum.
    pub crc: u32,
    /// Its start and end; the next frame starts at the end.
    pub last_frame: (u64, u64),
    /// The last frame holds nothing that was acknowledged: it needs no later watermark.
    pub covered: bool,
}

/// What the files add up to.
#[derive(Debug)]
pub struct Recovered {
    /// State of the groups, liveness of the files.
    pub ledger: Ledger,
    /// The logs.
    pub indexes: BTreeMap<GroupId, Index>,
    /// Where writing goes on.
    pub end: End,
    /// Bytes of an unfinished last round were dropped.
    pub torn_tail: bool,
}

/// Recovery, file by file in ascending order of generations.
#[derive(Clone, Debug)]
pub struct Replay {
    cluster: ClusterId,
    ledger: Ledger,
    indexes: BTreeMap<GroupId, Index>,
    /// Entries up to here lay in files that were recycled: they must have been purged.
    absent: BTreeMap<GroupId, u64>,
    watermark: u64,
    end: Option<End>,
    stop: Stop,
}

/// Where and why the frames of a file ended.
#[derive(Clone, Debug, Default)]
struct Stop {
    offset: u64,
    why: String,
    /// Something is there that is no frame.
    torn: bool,
    /// A whole frame lies further on.
    follows: Option<u64>,
}

impl Replay {
    /// Starts the recovery of a cluster's WAL.
    pub fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            ledger: Ledger::default(),
            indexes: BTreeMap::new(),
            absent: BTreeMap::new(),
            watermark: 0,
            end: None,
            stop: Stop::default(),
        }
    }

    /// Takes in the next file.
    pub fn file(&mut self, generation: u64, bytes: &[u8]) -> Result<(), Damage> {
        let damage = |offset, what| Err(Damage { file: file_name(generation), offset, what });
        let head = match decode_head(bytes) {
            Ok(head) => head,
            Err(why) => return damage(0, format!("the first frame is damaged ({why})")),
        };
        let tag = head.header.tag;
        if tag.cluster != self.cluster {
            return damage(0, format!("belongs to cluster {}, expected {}", tag.cluster, self.cluster));
        }
        if tag.generation != generation || !head.header.start {
            return damage(0, format!("starts with a frame of generation {}, expected {generation}", tag.generation));
        }
        let Some((restated, file_bytes)) = Ledger::from_checkpoint(&head.rows) else {
            return damage(0, "the first frame does not state the file's size".into());
        };
        if file_bytes > u64::from(u32::MAX) {
            return damage(0, format!("states a size of {file_bytes} bytes, expected less than 4 GiB"));
        }
        if (bytes.len() as u64) < file_bytes {
            let what = format!("the file has {} bytes, expected {file_bytes}: its end was cut off", bytes.len());
            return damage(bytes.len() as u64, what);
        }
        self.join(&head, restated)?;
        let end = End { tag, file_bytes, number: 0, crc: 0, last_frame: (0, 0), covered: true };
        self.frames(&bytes[..file_bytes as usize], head, end)
    }

    /// Checks that the file goes on where the one before ended, and restates the same.
    fn join(&mut self, head: &Head, restated: Ledger) -> Result<(), Damage> {
        let Some(end) = &self.end else {
            for (group, state) in restated.groups() {
                let index = self.indexes.entry(group).or_default();
                index.restore_purged(state.last);
                let purged = state.purged.map(|id| id.index);
                let absent = state.last.filter(|last| purged.is_none_or(|purged| purged < last.index));
                self.absent.extend(absent.map(|last| (group, last.index)));
            }
            self.ledger = restated;
            return Ok(());
        };
        let file = file_name(end.tag.generation);
        let header = &head.header;
        if header.number != end.number + 1 || header.previous_crc != end.crc {
            let (expected, found) = (end.number + 1, header.number);
            let why = &self.stop.why;
            let what = format!("frame {expected} is damaged or missing ({why}), but the next file starts with {found}");
            return Err(Damage { file, offset: self.stop.offset, what });
        }
        if !restated.same_groups(&self.ledger) {
            let what = "the start of the next file states another vote or log end than the records up to here";
            return Err(Damage { file, offset: self.stop.offset, what: what.into() });
        }
        Ok(())
    }

    fn frames(&mut self, bytes: &[u8], first: Head, mut end: End) -> Result<(), Damage> {
        let generation = end.tag.generation;
        let mut head = first;
        let mut offset = 0;
        loop {
            let next = offset + head.frame_bytes();
            self.watermark = self.watermark.max(head.header.watermark);
            if !head.header.start {
                self.rows(generation, offset, &head.rows)?;
            }
            let covered = head.header.start || head.rows.iter().all(|row| matches!(row.record, Record::Committed(_)));
            end = End { number: head.header.number, crc: head.crc, last_frame: (offset, next), covered, ..end };
            offset = next;
            head = match read_frame(bytes, offset, &end) {
                Ok(head) => head,
                Err(why) => {
                    let follows = frame_after(bytes, offset, &end);
                    self.watermark = follows.as_ref().map_or(0, |(_, header)| header.watermark).max(self.watermark);
                    let torn = why != NoFrame::Absent;
                    self.stop = Stop { offset, why: why.to_string(), torn, follows: follows.map(|(at, _)| at) };
                    self.end = Some(end);
                    return Ok(());
                }
            };
        }
    }

    fn rows(&mut self, generation: u64, frame: u64, rows: &[Row]) -> Result<(), Damage> {
        let mut offset = frame + payload_offset(rows.len());
        for row in rows {
            let index = self.indexes.entry(row.group).or_default();
            match row.record {
                Record::Entry(id, form) => {
                    if index.next().is_some_and(|next| next != id.index) {
                        let what = format!("entry {} of group {}, expected {:?}", id.index, row.group, index.next());
                        return Err(Damage { file: file_name(generation), offset, what });
                    }
                    let place = u32::try_from(offset).expect("offsets lie inside a file below 4 GiB");
                    let place = Place { generation, offset: place, length: row.length, crc: row.crc, form };
                    index.restore(id, place);
                }
                Record::Truncate(after) => index.truncate_after(after.map(|id| id.index)),
                Record::Purge(id) => index.purge(id),
                Record::Vote(_) | Record::Committed(_) | Record::Last(_) | Record::File(_) => {}
            }
            self.ledger.record(generation, row);
            if let Record::Truncate(after) = row.record {
                self.truncated(row.group, after.map(|id| id.index));
            }
            offset += u64::from(row.length);
        }
        Ok(())
    }

    /// A truncation may reach below what lay in recycled files.
    fn truncated(&mut self, group: GroupId, after: Option<u64>) {
        let index = self.indexes.entry(group).or_default();
        if index.is_empty() {
            index.restore_purged(self.ledger.group(group).last);
        }
        match (after, self.absent.get_mut(&group)) {
            (Some(after), Some(absent)) => *absent = after.min(*absent),
            (None, Some(_)) => drop(self.absent.remove(&group)),
            (_, None) => {}
        }
    }

    /// Judges the end of the last file. `None` when there was no file.
    pub fn finish(self) -> Result<Option<Recovered>, Damage> {
        let Some(end) = self.end else { return Ok(None) };
        let file = file_name(end.tag.generation);
        let Stop { offset, why, torn, follows } = self.stop;
        let expected = end.number + 1;
        if let Some(follows) = follows {
            let what = format!("frame {expected} is damaged ({why}), but a whole frame follows at byte {follows}");
            return Err(Damage { file, offset, what });
        }
        if self.watermark >= expected {
            let what = format!("frame {expected} is damaged ({why}), but was synced: watermark {}", self.watermark);
            return Err(Damage { file, offset, what });
        }
        let purged = |group| self.ledger.group(group).purged.map(|id| id.index);
        if let Some((group, absent)) = self.absent.iter().find(|(group, absent)| purged(**group) < Some(**absent)) {
            let what = format!("entries up to {absent} of group {group} are missing: an earlier WAL file is gone");
            return Err(Damage { file, offset: 0, what });
        }
        let Self { ledger, mut indexes, .. } = self;
        for (group, state) in ledger.groups() {
            let index = indexes.entry(group).or_default();
            index.vote = state.vote;
            index.committed = state.committed.filter(|id| index.last().is_some_and(|last| id.index <= last.index));
        }
        Ok(Some(Recovered { ledger, indexes, end, torn_tail: torn }))
    }
}

/// The frame that must stand at `offset`, with its payloads checked.
fn read_frame(bytes: &[u8], offset: u64, end: &End) -> Result<Head, NoFrame> {
    let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
    let head = decode_head(rest)?;
    let Header { tag, number, previous_crc, start, .. } = head.header;
    if tag != end.tag {
        return Err(NoFrame::Absent);
    }
    if number != end.number + 1 || previous_crc != end.crc || start {
        let why = format!("found frame {number}, which does not continue frame {}", end.number);
        return Err(NoFrame::Malformed(why));
    }
    let mut payload = payload_offset(head.rows.len()) as usize;
    for row in &head.rows {
        let bytes = rest.get(payload..payload + row.length as usize).ok_or(NoFrame::Cut)?;
        let computed = crc32c::crc32c(bytes);
        if computed != row.crc {
            let Row { group, record, crc, .. } = row;
            let at = offset + payload as u64;
            let what = format!("{record:?} of group {group} at byte {at}: checksum {crc:#x}, computed {computed:#x}");
            return Err(NoFrame::Malformed(what));
        }
        payload += row.length as usize;
    }
    Ok(head)
}

/// A whole head of this file beyond the frame that must stand at `offset`: something that was written
/// after it. At `offset` itself a head with a later number, or one of another chain, counts too.
fn frame_after(bytes: &[u8], offset: u64, end: &End) -> Option<(u64, Header)> {
    let first = align_up(offset);
    (first..bytes.len() as u64).step_by(ALIGN as usize).find_map(|at| {
        let header = decode_head(&bytes[at as usize..]).ok()?.header;
        let ours = header.tag == end.tag;
        let unfinished = at == offset && header.number == end.number + 1 && header.previous_crc == end.crc;
        (ours && !unfinished && !header.start).then_some((at, header))
    })
}
