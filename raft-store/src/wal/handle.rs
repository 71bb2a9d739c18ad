//! A group's side of the WAL.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use unibus_proto::id::GroupId;

use super::frame::{Record, Row};
use super::reader;
use super::shared::{Append, Group, Request, Shared, lock};
use super::{Done, LogEntry};
use crate::env::Env;
use crate::types::{LogId, Vote};

/// Bytes of one append, at most: a frame states its payload bytes in 32 bits.
const APPEND_BYTES_MAX: usize = 1 << 30;

/// Hard state and log ends of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The vote.
    pub vote: Option<Vote>,
    /// Committed up to here, as last saved.
    pub committed: Option<LogId>,
    /// Purged up to here.
    pub purged: Option<LogId>,
    /// The last entry; the purged one when the log is empty.
    pub last: Option<LogId>,
}

/// A group's log and hard state. Clones share it.
pub struct GroupLog<E: Env> {
    pub(super) shared: Arc<Shared<E>>,
    pub(super) group: Arc<Group>,
    pub(super) queue: mpsc::UnboundedSender<Request>,
}

impl<E: Env> Clone for GroupLog<E> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), group: self.group.clone(), queue: self.queue.clone() }
    }
}

impl<E: Env> std::fmt::Debug for GroupLog<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupLog").field("group", &self.group.id).finish_non_exhaustive()
    }
}

impl<E: Env> GroupLog<E> {
    /// The group.
    pub fn group(&self) -> GroupId {
        self.group.id
    }

    /// Hard state and log ends, as of everything asked for so far.
    pub fn state(&self) -> LogState {
        let index = lock(&self.group.index);
        LogState { vote: index.vote, committed: index.committed, purged: index.purged(), last: index.last() }
    }

    /// The newest entry that is synced to this node's disk, or that a purge has made superfluous.
    pub fn flushed_index(&self) -> Option<u64> {
        lock(&self.group.index).flushed()
    }

    /// How long the write that is on its way takes already.
    pub fn disk_waits(&self) -> Duration {
        self.shared.stats().in_flight.unwrap_or_default()
    }

    /// Adds entries; they can be read when this returns, and are on disk when `done` is called. Waits while
    /// too many bytes wait for the disk. An error means that nothing was added, and `done` is not called.
    pub async fn append(&self, entries: Vec<LogEntry>, done: Done) -> io::Result<()> {
        self.shared.check()?;
        let bytes: usize = entries.iter().map(|entry| entry.payload.len()).sum();
        if bytes > APPEND_BYTES_MAX {
            let what = format!("append of {bytes} bytes, expected at most {APPEND_BYTES_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let share = bytes.min(self.shared.config.queue_bytes) as u32;
        let room = self.shared.room.clone().acquire_many_owned(share).await;
        let permit = room.map_err(|_| self.shared.closed())?;
        let mut index = lock(&self.group.index);
        check_order(index.next(), &entries)?;
        let ticket = index.append(&entries);
        // Sent under the lock: the queue must have the order of the log.
        self.send(Request::Append(Append { group: self.group.clone(), ticket, entries, done, permit }))
    }

    /// Saves the vote; on disk when this returns.
    pub async fn save_vote(&self, vote: Vote) -> io::Result<()> {
        self.shared.check()?;
        let (done, saved) = completion();
        {
            let mut index = lock(&self.group.index);
            index.vote = Some(vote);
            self.send(Request::Record(Row::bare(self.group.id, Record::Vote(vote)), Some(done)))?;
        }
        self.finished(saved).await
    }

    /// Saves how far the log is committed, with the next round or when the WAL is idle.
    pub fn save_committed(&self, committed: LogId) -> io::Result<()> {
        self.shared.check()?;
        {
            let mut index = lock(&self.group.index);
            index.committed = Some(committed);
            index.committed_is_news = true;
        }
        if self.shared.note_committed() { self.send(Request::Wake) } else { Ok(()) }
    }

    /// Removes the entries after `after`, `None`: all. On disk before anything that is asked for later.
    pub fn truncate_after(&self, after: Option<LogId>) -> io::Result<()> {
        self.shared.check()?;
        let mut index = lock(&self.group.index);
        index.truncate_after(after.map(|id| id.index));
        self.send(Request::Record(Row::bare(self.group.id, Record::Truncate(after)), None))
    }

    /// Removes the entries up to `id`, which may lie beyond the last one. On disk before anything that is
    /// asked for later.
    pub fn purge(&self, id: LogId) -> io::Result<()> {
        self.shared.check()?;
        let mut index = lock(&self.group.index);
        if index.purged().is_some_and(|purged| purged.index >= id.index) {
            return Ok(());
        }
        index.purge(id);
        self.send(Request::Record(Row::bare(self.group.id, Record::Purge(id)), None))
    }

    /// Returns when everything asked for so far is on disk.
    pub async fn barrier(&self) -> io::Result<()> {
        let (done, reached) = completion();
        self.send(Request::Barrier(done))?;
        self.finished(reached).await
    }

    /// The entries of `range` that are there, until their payloads exceed `bytes_max`; the first one always.
    pub async fn read(&self, range: Range<u64>, bytes_max: u64) -> io::Result<Vec<LogEntry>> {
        loop {
            let (found, epoch) = {
                let index = lock(&self.group.index);
                (index.find(range.clone(), bytes_max), index.epoch())
            };
            let read = reader::fetch(&self.shared, self.group.id, found).await;
            // A purge may have recycled the file meanwhile: then the places were stale.
            if read.is_ok() || lock(&self.group.index).epoch() == epoch {
                return read;
            }
        }
    }

    /// The last entry of each leader from `first` to `last`.
    pub fn key_log_ids(&self, first: u64, last: u64) -> Vec<LogId> {
        lock(&self.group.index).key_log_ids(first, last)
    }

    fn send(&self, request: Request) -> io::Result<()> {
        self.queue.send(request).map_err(|_| self.shared.closed())
    }

    async fn finished(&self, receiver: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
        receiver.await.unwrap_or_else(|_| Err(self.shared.closed()))
    }
}

fn completion() -> (Done, oneshot::Receiver<io::Result<()>>) {
    let (sender, receiver) = oneshot::channel();
    (Box::new(move |result| drop(sender.send(result))), receiver)
}

fn check_order(next: Option<u64>, entries: &[LogEntry]) -> io::Result<()> {
    let mut expected = next;
    for entry in entries {
        let index = entry.log_id.index;
        if expected.is_some_and(|expected| expected != index) {
            let what =
                format!("append of entry {index}, expected {}: the log must have no hole", expected.unwrap_or(0));
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        expected = Some(index + 1);
    }
    Ok(())
}
