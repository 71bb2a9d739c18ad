//! Writing the files out and making them durable, none of which `apply` waits for longer than a write.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{SegmentEntry, Segments, load};
use crate::env::{Disk, DiskFile, Env, OpenMode, sleep, spawn};
use crate::error::StoreError;
use crate::faults::Faults;
use crate::space::is_full;

/// The kernel is told to begin writing after so many bytes: an fsync that finds hundreds of megabytes
/// holds up every other one.
const WRITEBACK_BYTES: u64 = 1 << 20;
/// Appended bytes wait in memory until there are so many: a write for each message costs more than the rest
/// of its way to the file.
const WRITE_BYTES_MIN: u64 = 256 << 10;
/// What a full disk keeps in memory at most, per shard.
const UNWRITTEN_BYTES_MAX: u64 = 8 << 20;
/// A full disk is tried again after this time.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// What is written and what of it is durable.
#[derive(Default)]
pub(super) struct Writer {
    /// Held while files are written or exchanged.
    turn: tokio::sync::Mutex<()>,
    state: Arc<Mutex<Written>>,
}

#[derive(Default)]
struct Written {
    /// Files with bytes that are not synced, and how long they were when last written.
    unsynced: BTreeMap<u64, u64>,
    /// How many files were made, and of those how many have a name that is durable.
    made: u64,
    named: u64,
    /// Bytes of the file that is written now that the kernel was told to write.
    handed_over: (u64, u64),
    /// Where a failed sync is reported: the pages may be lost, and no later sync would say so.
    faults: Option<Faults>,
    failed: Option<String>,
    /// The last write found no space.
    is_full: bool,
    /// The store stops.
    gives_up: bool,
}

impl Written {
    fn check(&self) -> io::Result<()> {
        self.failed.as_ref().map_or(Ok(()), |failed| Err(io::Error::other(failed.clone())))
    }

    fn fail(&mut self, segment: u64, error: &io::Error) {
        let failed = format!("sync of segment {segment} failed: {error}; it is never retried, the node must stop");
        if let Some(faults) = &self.faults {
            faults.report(failed.clone());
        }
        self.failed.get_or_insert(failed);
    }

    fn note_full(&mut self, error: &io::Error) -> io::Result<()> {
        if !std::mem::replace(&mut self.is_full, true) {
            tracing::warn!(%error, "segments are not written out, they are kept in memory and tried again");
        }
        if self.gives_up { Err(io::Error::other("the store stops while the disk is full")) } else { Ok(()) }
    }

    fn synced(&mut self, segment: u64, end: u64) {
        if self.unsynced.get(&segment) == Some(&end) {
            self.unsynced.remove(&segment);
        }
    }
}

fn lock(state: &Mutex<Written>) -> MutexGuard<'_, Written> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E: Env> Segments<E> {
    /// Where a failed sync is to be reported.
    pub fn report_to(&self, faults: Faults) {
        lock(&self.writer.state).faults = Some(faults);
    }

    /// Takes over the files of an installed snapshot; other files but `keep` go.
    pub async fn reload(&self, manifest: &[SegmentEntry], keep: &BTreeSet<u64>) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let ledger = Box::pin(load::load(&self.env, &self.dir, self.place, manifest, keep)).await?;
        *self.ledger() = ledger;
        self.index().clear();
        let mut files = self.files();
        files.by_segment.clear();
        files.epoch += 1;
        lock(&self.writer.state).unsynced.clear();
        Ok(())
    }

    /// Writes out what was appended, once it is worth a write; until then it is read from memory. While the
    /// disk is full it stays there, and when that is too much `apply` waits: nothing is lost, the log has it.
    pub async fn flush(&self) -> io::Result<()> {
        loop {
            if self.ledger().unwritten_bytes() < WRITE_BYTES_MIN.min(self.tail_bytes_max) {
                return Ok(());
            }
            let written = {
                let _turn = self.writer.turn.lock().await;
                self.write_out().await
            };
            match written {
                Err(error) if is_full(&error) => {
                    lock(&self.writer.state).note_full(&error)?;
                    if self.ledger().unwritten_bytes() <= UNWRITTEN_BYTES_MAX {
                        return Ok(());
                    }
                    sleep::<E>(FULL_RETRY).await;
                }
                written => {
                    lock(&self.writer.state).is_full = false;
                    return written;
                }
            }
        }
    }

    /// The store stops: nobody waits for space from here on.
    pub(crate) fn give_up_waiting(&self) {
        lock(&self.writer.state).gives_up = true;
    }

    /// Writes out what was appended and makes it durable. `apply` goes on meanwhile.
    pub async fn sync(&self) -> io::Result<()> {
        let (todo, made) = {
            let _turn = self.writer.turn.lock().await;
            self.write_out().await?;
            // Within the turn: what is only being written must not count as synced.
            let state = lock(&self.writer.state);
            state.check()?;
            (state.unsynced.clone(), state.made)
        };
        for (segment, end) in todo {
            let synced = self.file(segment, OpenMode::Write).await?.sync_data().await;
            let mut state = lock(&self.writer.state);
            match synced {
                Ok(()) => state.synced(segment, end),
                Err(error) => state.fail(segment, &error),
            }
            state.check()?;
        }
        if lock(&self.writer.state).named < made {
            self.env.disk().sync_dir(&self.dir).await?;
            let mut state = lock(&self.writer.state);
            state.named = state.named.max(made);
        }
        Ok(())
    }

    async fn write_out(&self) -> io::Result<()> {
        let todo = self.ledger().unwritten();
        for write in todo {
            let (segment, begin) = (write.segment, write.offset);
            let end = begin + write.parts.iter().map(|part| part.len() as u64).sum::<u64>();
            lock(&self.writer.state).unsynced.insert(segment, end);
            let file = self.file(segment, OpenMode::Create).await?;
            lock(&self.writer.state).made += u64::from(begin == 0);
            file.write_at(begin, write.parts).await?;
            self.ledger().written((segment, end), self.tail_bytes_max);
            self.hand_over(segment, end, file);
        }
        Ok(())
    }

    /// Has the kernel write what was written, piece by piece, and a complete file be synced.
    fn hand_over(&self, segment: u64, end: u64, file: <E::Disk as Disk>::File) {
        if self.sealed(segment).is_some_and(|entry| entry.length == end) {
            let state = self.writer.state.clone();
            spawn::<E>(async move {
                let synced = file.sync_data().await;
                match synced {
                    Ok(()) => lock(&state).synced(segment, end),
                    Err(error) => lock(&state).fail(segment, &error),
                }
            });
            return;
        }
        let begin = {
            let mut state = lock(&self.writer.state);
            let begin = if state.handed_over.0 == segment { state.handed_over.1 } else { 0 };
            if end.saturating_sub(begin) < WRITEBACK_BYTES {
                return;
            }
            state.handed_over = (segment, end);
            begin
        };
        spawn::<E>(async move { drop(file.writeback(begin, end - begin).await) });
    }
}
