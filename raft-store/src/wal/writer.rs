//! The one task that writes: takes what waits, writes it as one frame with one sync, completes it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::files::{FileSet, padding};
use super::frame::{Header, Record, Row, encode_head, frame_bytes, payload_offset};
use super::ledger::Ledger;
use super::recover::End;
use super::shared::{Append, FileOf, Group, Request, Shared, lock};
use super::{Done, LogEntry};
use crate::env::{DiskFile, Env, sleep, timeout};
use crate::mutants;
use crate::space::is_full;

/// A disk without space for a new file is tried again after this time.
const FULL_RETRY: Duration = Duration::from_millis(100);

/// The writing side of a WAL.
pub(super) struct Writer<E: Env> {
    pub shared: Arc<Shared<E>>,
    pub queue: mpsc::UnboundedReceiver<Request>,
    pub files: FileSet<E>,
    pub file: FileOf<E>,
    pub ledger: Ledger,
    pub end: End,
}

/// What one frame will hold.
#[derive(Default)]
struct Round {
    rows: Vec<Row>,
    payload: Vec<Bytes>,
    payload_bytes: u64,
    /// Appends, each with where its payloads start among those of the frame.
    appends: Vec<(Append, u64)>,
    dones: Vec<Done>,
    shutdown: Option<oneshot::Sender<()>>,
    purges: bool,
}

impl Round {
    fn take(&mut self, request: Request) {
        match request {
            Request::Append(append) => self.take_append(append),
            Request::Record(row, done) => {
                self.purges |= matches!(row.record, Record::Purge(_) | Record::Truncate(_));
                self.rows.push(row);
                self.dones.extend(done);
            }
            Request::Barrier(done) => self.dones.push(done),
            Request::Wake => {}
            Request::Shutdown(reply) => self.shutdown = Some(reply),
        }
    }

    fn take_append(&mut self, append: Append) {
        let start = self.payload_bytes;
        for LogEntry { log_id, form, payload, crc } in &append.entries {
            let (record, length) = (Record::Entry(*log_id, *form), payload.len() as u32);
            self.rows.push(Row { group: append.group.id, record, length, crc: *crc });
            self.payload_bytes += u64::from(length);
            if length > 0 {
                self.payload.push(payload.clone());
            }
        }
        self.appends.push((append, start));
    }

    /// Nobody waits for it.
    fn is_patient(&self) -> bool {
        self.rows.is_empty() && self.dones.is_empty() && self.appends.is_empty() && self.shutdown.is_none()
    }

    /// The planted bug: acknowledges what is not on disk.
    fn complete_early(&mut self) {
        for (append, _) in &mut self.appends {
            std::mem::replace(&mut append.done, Box::new(drop))(Ok(()));
        }
        self.dones.drain(..).for_each(|done| done(Ok(())));
    }

    fn complete(&mut self, result: &io::Result<()>) {
        let again = || match result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        for (Append { permit, done, .. }, _) in self.appends.drain(..) {
            drop(permit);
            done(again());
        }
        self.dones.drain(..).for_each(|done| done(again()));
    }
}

impl<E: Env> Writer<E> {
    /// Writes until the WAL is shut down, every handle is gone, or the disk fails.
    pub async fn run(mut self) {
        while let Some(mut round) = self.next_round().await {
            let written = self.write(&mut round).await;
            if let Err(error) = written {
                return self.stop(round, error).await;
            }
            if let Some(reply) = round.shutdown.take() {
                if !self.end.covered && self.write(&mut Round::default()).await.is_err() {
                    tracing::warn!("the last WAL frame was written but not covered by a watermark");
                }
                let _ = reply.send(());
                return;
            }
        }
    }

    /// What is to be written next; an empty round when the last frame is to be covered.
    async fn next_round(&mut self) -> Option<Round> {
        let mut round = Round::default();
        while round.is_patient() {
            let waits = !self.end.covered || self.shared.committed_waits.load(Ordering::Acquire);
            let first = match waits {
                true => timeout::<E, _>(self.shared.config.cover_after, self.queue.recv()).await,
                false => Some(self.queue.recv().await),
            };
            match first {
                Some(Some(request)) => round.take(request),
                Some(None) => return None,
                None => return Some(round),
            }
        }
        while round.payload_bytes < self.shared.config.round_bytes && round.shutdown.is_none() {
            let Ok(request) = self.queue.try_recv() else { break };
            round.take(request);
        }
        Some(round)
    }

    async fn write(&mut self, round: &mut Round) -> io::Result<()> {
        self.shared.round_starts();
        let groups = self.shared.all_groups();
        let frame = frame_bytes(round.rows.len() + groups.len(), round.payload_bytes);
        if self.end.last_frame.1 + frame > self.end.file_bytes {
            (self.file, self.end) = self.next_file(frame).await?;
        }
        let generation = self.end.tag.generation;
        round.rows.iter().for_each(|row| self.ledger.record(generation, row));
        let covers = round.rows.is_empty();
        self.add_committed(round, &groups);
        if mutants::is("ack-before-fsync") {
            round.complete_early();
        }
        let (offset, bytes) = self.write_frame(round).await?;
        self.end.covered = covers;
        self.place(round, offset);
        self.shared.round_ends(bytes, round.appends.iter().map(|(append, _)| append.entries.len()).sum());
        round.complete(&Ok(()));
        self.shared.evict(&groups);
        if round.purges {
            self.files.recycle(&mut self.ledger, generation).await?;
        }
        Ok(())
    }

    /// The next file. While the disk has no space for it nothing is written and nothing completes, votes
    /// included: their order is that of the queue.
    async fn next_file(&self, frame: u64) -> io::Result<(FileOf<E>, End)> {
        loop {
            match self.files.advance(Some(&self.end), &self.ledger, frame).await {
                Err(error) if is_full(&error) && !self.shared.gives_up.load(Ordering::Acquire) => {
                    let why = format!("{} has no space for a new file of the log: {error}", self.shared.dir.display());
                    if self.shared.stalled().is_none() {
                        tracing::warn!("{why}; it is tried again, and nothing is acknowledged meanwhile");
                    }
                    self.shared.stall(Some(why));
                    sleep::<E>(FULL_RETRY).await;
                }
                advanced => {
                    if self.shared.stalled().is_some() {
                        self.shared.stall(None);
                    }
                    return advanced;
                }
            }
        }
    }

    /// Adds the commit indexes that are news, as far as the log that was written reaches.
    fn add_committed(&mut self, round: &mut Round, groups: &[Arc<Group>]) {
        self.shared.committed_waits.store(false, Ordering::Release);
        for group in groups {
            let mut index = lock(&group.index);
            let news = index.committed.filter(|_| index.committed_is_news);
            let written = self.ledger.group(group.id).last.map(|last| last.index);
            match news {
                Some(committed) if Some(committed.index) <= written => {
                    index.committed_is_news = false;
                    let row = Row::bare(group.id, Record::Committed(committed));
                    self.ledger.record(self.end.tag.generation, &row);
                    round.rows.push(row);
                }
                // Not before its entry: looked at again with the next round.
                Some(_) | None => {}
            }
        }
    }

    /// Writes and syncs the frame; its offset and bytes.
    async fn write_frame(&mut self, round: &mut Round) -> io::Result<(u64, u64)> {
        let End { tag, number, crc, last_frame, .. } = self.end;
        let header = Header { tag, start: false, number: number + 1, watermark: number, previous_crc: crc };
        let (head, crc) = encode_head(&header, &round.rows);
        let padding = padding(head.len() as u64 + round.payload_bytes);
        let mut parts = Vec::with_capacity(round.payload.len() + 2);
        parts.push(head);
        parts.append(&mut round.payload);
        parts.push(padding);
        let (offset, bytes) = (last_frame.1, frame_bytes(round.rows.len(), round.payload_bytes));
        self.file.write_at_sync(offset, parts).await?;
        self.end = End { number: number + 1, crc, last_frame: (offset, offset + bytes), ..self.end };
        Ok((offset, bytes))
    }

    /// Tells the logs where their entries lie.
    fn place(&self, round: &Round, offset: u64) {
        let generation = self.end.tag.generation;
        let payload = offset + payload_offset(round.rows.len());
        for (append, start) in &round.appends {
            lock(&append.group.index).written(append.ticket, &append.entries, generation, payload + start);
        }
    }

    /// Fails everything that waits and will ever wait. A failed sync is never tried again: the kernel may
    /// have dropped the pages and would report success.
    async fn stop(mut self, mut round: Round, error: io::Error) {
        let file = self.shared.dir.join(super::recover::file_name(self.end.tag.generation));
        let message = format!(
            "write WAL: {}: {error}; the write is not tried again and the process must stop: look at the disk \
                     (dmesg), then start the node, which recovers what was acknowledged",
            file.display()
        );
        self.shared.fail(message.clone());
        self.queue.close();
        round.complete(&Err(io::Error::new(error.kind(), message.clone())));
        while let Some(request) = self.queue.recv().await {
            let mut round = Round::default();
            round.take(request);
            round.complete(&Err(io::Error::other(message.clone())));
        }
    }
}
