//! openraft's log storage over a group's part of the WAL.
//!
//! Truncations and purges are only put in order; entries are readable at once and acknowledged after their
//! sync; only a vote is waited for. openraft counts entries, never bytes, so the byte caps are here.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds, RangeInclusive};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use prost::Message;

use crate::codec;
use crate::env::Env;
use crate::types::{Entry, LogId, Payload, Proposal, TypeConfig, Vote};
use crate::wal::{Form, GroupLog, LogEntry};

/// Payload bytes that are read from the log at once: a request to a follower, a step of `apply`.
const READ_BYTES_MAX: u64 = 1 << 20;

/// The log of a group. Clones share it.
#[derive(Debug)]
pub struct LogStore<E: Env>(GroupLog<E>);

impl<E: Env> Clone for LogStore<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Env> LogStore<E> {
    /// The log behind a WAL handle.
    pub fn new(log: GroupLog<E>) -> Self {
        Self(log)
    }

    /// The WAL handle.
    pub fn wal(&self) -> &GroupLog<E> {
        &self.0
    }

    async fn read(&self, range: Range<u64>, bytes_max: u64) -> io::Result<Vec<Entry>> {
        self.0.read(range, bytes_max).await?.into_iter().map(from_wal).collect()
    }

    /// Entries of `range`, read in steps of a bounded size.
    fn read_in_steps(self, range: Range<u64>) -> BoxStream<'static, io::Result<Entry>> {
        let steps = stream::try_unfold((self, range), |(log, range)| async move {
            let entries = log.read(range.clone(), READ_BYTES_MAX).await?;
            let next = entries.last().map(|last| last.log_id.index + 1);
            Ok::<_, io::Error>(next.map(|next| (entries, (log, next..range.end))))
        });
        let each = steps.map(|step| match step {
            Ok(entries) => stream::iter(entries.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(error) => stream::iter(vec![Err(error)]),
        });
        each.flatten().boxed()
    }
}

/// A log entry as the WAL stores it. The proposal's bytes are shared, not copied.
fn to_wal(entry: Entry) -> LogEntry {
    let (form, payload) = match entry.payload {
        Payload::Normal(Proposal(bytes)) => (Form::Normal, bytes),
        Payload::Blank => (Form::Blank, Bytes::new()),
        Payload::Membership(membership) => {
            (Form::Membership, codec::encode_membership(&membership).encode_to_vec().into())
        }
    };
    LogEntry::new(entry.log_id, form, payload)
}

fn from_wal(entry: LogEntry) -> io::Result<Entry> {
    let payload = match entry.form {
        Form::Normal => Payload::Normal(Proposal(entry.payload)),
        Form::Blank => Payload::Blank,
        Form::Membership => {
            let message = codec::decode_message(entry.payload, "membership entry");
            let membership = message.and_then(|message| codec::decode_membership(&message));
            Payload::Membership(membership.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?)
        }
    };
    Ok(Entry { log_id: entry.log_id, payload })
}

fn to_range(range: impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl<E: Env> RaftLogReader<TypeConfig<E>> for LogStore<E> {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(to_range(range), u64::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, READ_BYTES_MAX).await
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl futures::Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.clone().read_in_steps(to_range(range))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.state().vote)
    }

    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> io::Result<Vec<LogId>> {
        Ok(self.0.key_log_ids(range.start().index, range.end().index))
    }
}

impl<E: Env> RaftLogStorage<TypeConfig<E>> for LogStore<E> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig<E>>> {
        let state = self.0.state();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.0.save_vote(*vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        committed.map_or(Ok(()), |committed| self.0.save_committed(committed))
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.0.state().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig<E>>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(to_wal).collect();
        self.0.append(entries, Box::new(move |result| callback.io_completed(result))).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.0.truncate_after(last_log_id)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.0.purge(log_id)
    }
}
