//! Reading a room's timeline: find the run, take it from memory or disk, verify each record.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
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
        let mut batch = Batch { out: vec![], bytes: 0, bytes_max, count_max: count_max.max(1) };
        let mut next = from;
        while !batch.is_full() {
            let runs = match self.locate(room, next).await? {
                Found::Open(runs) => runs,
                Found::Sealed(segment, runs) => {
                    for (first, run) in runs.from(segment, next) {
                        next = self.read_run(room, (first, run), next, &mut batch).await?;
                        if batch.is_full() {
                            break;
                        }
                    }
                    continue;
                }
                Found::Beyond => break,
            };
            for run in runs {
                next = self.read_run(room, run, next, &mut batch).await?;
                if batch.is_full() {
                    break;
                }
            }
        }
        Ok(batch.out)
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
            bytes = bytes.slice(record.size as usize..);
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
}

impl Batch {
    fn is_full(&self) -> bool {
        self.out.len() >= self.count_max || (!self.out.is_empty() && self.bytes >= self.bytes_max)
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
