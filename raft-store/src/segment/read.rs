//! Reading a room's timeline: find the run, take it from memory or disk, verify each record.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use unibus_machine::StoredDelivery;
use unibus_proto::id::RoomId;
use unibus_proto::position::Sequence;

use super::format::Run;
use super::lookup::Found;
use super::{Segments, TimelineError, segment_path};
use crate::env::{DiskFile, Env, OpenMode};

impl<E: Env> Segments<E> {
    /// The deliveries of `room` from `from` on: at most `count_max` of them and `bytes_max` bytes, but
    /// always one if there is one. Empty just beyond the head.
    pub async fn read(
        &self,
        room: RoomId,
        from: Sequence,
        bytes_max: usize,
        count_max: usize,
    ) -> Result<Vec<StoredDelivery>, TimelineError> {
        let mut batch = Batch { out: vec![], bytes: 0, bytes_max, count_max: count_max.max(1), is_enough: false };
        let mut next = from;
        while !batch.is_full() {
            next = match self.locate(room, next).await? {
                Found::Open(runs) => self.read_runs(room, runs.into_iter(), next, &mut batch).await?,
                Found::Sealed(segment, runs) => {
                    self.read_runs(room, runs.from(segment, next), next, &mut batch).await?
                }
                Found::Beyond => break,
            };
        }
        Ok(batch.out)
    }

    async fn read_runs(
        &self,
        room: RoomId,
        runs: impl Iterator<Item = (Sequence, Run)> + Send,
        mut next: Sequence,
        batch: &mut Batch,
    ) -> Result<Sequence, TimelineError> {
        let mut runs = runs.peekable();
        while let Some((first, mut run)) = runs.next() {
            // One read for runs that stand one after another: each costs a way to the I/O threads and back.
            while batch.wants_more_than(&run, first, next)
                && let Some((_, adjacent)) = runs.next_if(|(_, other)| run.is_before(other))
            {
                run.bytes += adjacent.bytes;
                run.count += adjacent.count;
            }
            next = self.read_run(room, (first, run), next, batch).await?;
            batch.end_of_run();
            if batch.is_full() {
                break;
            }
        }
        Ok(next)
    }

    async fn read_run(
        &self,
        room: RoomId,
        (first, run): (Sequence, Run),
        from: Sequence,
        batch: &mut Batch,
    ) -> Result<Sequence, TimelineError> {
        let bytes = self.bytes(run.segment, run.offset..run.offset + u64::from(run.bytes)).await?;
        self.take_run(room, first, from, &run, bytes, batch)
    }

    /// Verifies the records of a run and takes those from `from` on; answers what follows the run.
    fn take_run(
        &self,
        room: RoomId,
        first: Sequence,
        from: Sequence,
        run: &Run,
        mut bytes: Bytes,
        batch: &mut Batch,
    ) -> Result<Sequence, TimelineError> {
        let mut offset = run.offset;
        let mut expected = first;
        for _ in 0..run.count {
            let record = match self.place.decode_record(run.segment, offset, &bytes) {
                Ok(Some(record)) => record,
                Ok(None) => return Err(self.corrupt(run.segment, offset, "a record that is cut off")),
                Err(found) => return Err(self.corrupt(run.segment, offset, &found)),
            };
            if record.room != room || record.delivery.sequence != expected {
                let found = format!("room {} sequence {}", record.room, record.delivery.sequence);
                return Err(self.corrupt(
                    run.segment,
                    offset,
                    &format!("{found}, not room {room} sequence {expected}"),
                ));
            }
            if expected >= from && !batch.push(record.delivery) {
                break;
            }
            expected = expected.next();
            offset += record.size;
            bytes.advance(record.size as usize);
        }
        Ok(expected)
    }

    /// Bytes of a file, from memory as far as they are there.
    pub(super) async fn bytes(&self, segment: u64, range: Range<u64>) -> Result<Bytes, TimelineError> {
        let (begin, newest) = self.ledger().in_memory(segment, range.clone());
        let missing = (begin - range.start) as usize;
        if missing == 0 {
            return Ok(newest);
        }
        let read = async {
            let file = self.file(segment, OpenMode::Read).await?;
            file.read_at(range.start, missing).await
        };
        let older = read.await.map_err(|e| self.corrupt(segment, range.start, &e.to_string()))?;
        if newest.is_empty() {
            return Ok(older);
        }
        let mut all = BytesMut::with_capacity(older.len() + newest.len());
        all.extend_from_slice(&older);
        all.extend_from_slice(&newest);
        Ok(all.freeze())
    }

    pub(super) fn corrupt(&self, segment: u64, offset: u64, found: &str) -> TimelineError {
        let path = segment_path(self.dir(), segment);
        TimelineError::Corrupt(format!(
            "{} is damaged at byte {offset}: found {found}; it is not served, read from another node",
            path.display()
        ))
    }
}

/// What a read has collected.
struct Batch {
    out: Vec<StoredDelivery>,
    bytes: usize,
    bytes_max: usize,
    count_max: usize,
    is_enough: bool,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.is_enough || self.out.len() >= self.count_max || (!self.out.is_empty() && self.bytes >= self.bytes_max)
    }

    /// Whether there is room for more than a run that begins with `first`, read from `from` on.
    fn wants_more_than(&self, run: &Run, first: Sequence, from: Sequence) -> bool {
        let before = from.0.saturating_sub(first.0) as usize;
        let count = self.out.len() + (run.count as usize).saturating_sub(before);
        count < self.count_max && self.bytes + (run.bytes as usize) < self.bytes_max
    }

    /// The next read should begin where a run begins, or it reads and verifies the first half of it again.
    fn end_of_run(&mut self) {
        self.is_enough |= self.bytes >= self.bytes_max / 4 * 3 && !self.out.is_empty();
    }

    /// Takes a delivery; false when it does not fit any more.
    fn push(&mut self, delivery: StoredDelivery) -> bool {
        let bytes = self.bytes + delivery.bytes.len();
        if self.is_full() || (!self.out.is_empty() && bytes > self.bytes_max) {
            self.bytes = self.bytes_max.max(self.bytes);
            return false;
        }
        self.bytes = bytes;
        self.out.push(delivery);
        true
    }
}
