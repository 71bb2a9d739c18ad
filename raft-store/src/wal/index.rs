//! A group's log in memory: where each entry lies, who led when, and the bytes of the newest entries.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use super::LogEntry;
use super::frame::Form;
use crate::types::{LeaderId, LogId, Vote};

/// Where an entry lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file; 0 while the entry is not written.
    pub generation: u64,
    /// From the start of the file.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
    /// Checksum.
    pub crc: u32,
    /// How to read it.
    pub form: Form,
}

/// An entry to be read.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its position.
    pub log_id: LogId,
    /// Where it is on disk.
    pub place: Place,
    /// Its payload, while that is in memory.
    pub payload: Option<Bytes>,
}

/// Entries that follow one another under one leader.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    leader: LeaderId,
}

/// An append on its way to the disk, without what was truncated since.
#[derive(Clone, Copy, Debug)]
struct Pending {
    ticket: u64,
    first: u64,
    /// One past its last entry; not above `first` when all of them were truncated.
    end: u64,
}

/// The log and hard state of a group, as its handle shows them.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// The vote.
    pub vote: Option<Vote>,
    /// Committed up to here.
    pub committed: Option<LogId>,
    /// `committed` is newer than what was written.
    pub committed_is_news: bool,
    /// Purged up to here.
    purged: Option<LogId>,
    /// Index of the first entry.
    first: u64,
    places: VecDeque<Place>,
    runs: VecDeque<Run>,
    /// Payloads of the newest entries.
    tail: VecDeque<Bytes>,
    tail_bytes: usize,
    pending: VecDeque<Pending>,
    tickets: u64,
    /// One past the newest entry that is on disk.
    flushed_end: u64,
    /// Counts truncations and purges.
    epoch: u64,
}

impl Index {
    /// One past the last entry.
    fn end(&self) -> u64 {
        self.first + self.places.len() as u64
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Purged up to here.
    pub fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// The last entry; the purged one when the log is empty.
    pub fn last(&self) -> Option<LogId> {
        self.end().checked_sub(1).and_then(|index| self.log_id(index)).or(self.purged)
    }

    /// Counts truncations and purges: places that were looked up before one may be stale.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The newest entry that is on disk, or that a purge has made superfluous.
    pub fn flushed(&self) -> Option<u64> {
        self.flushed_end.checked_sub(1)
    }

    /// Bytes of the payloads in memory.
    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// Bytes of the payloads in memory that are on disk too.
    pub fn evictable_bytes(&self) -> usize {
        if self.tail_first() < self.flushed_end { self.tail_bytes } else { 0 }
    }

    fn tail_first(&self) -> u64 {
        self.end() - self.tail.len() as u64
    }

    /// The entry that may be appended next; any while nothing was ever there.
    pub fn next(&self) -> Option<u64> {
        if self.places.is_empty() { self.purged.map(|id| id.index + 1) } else { Some(self.end()) }
    }

    /// The log id at `index`, if the entry is there.
    pub fn log_id(&self, index: u64) -> Option<LogId> {
        if !(self.first..self.end()).contains(&index) {
            return None;
        }
        let run = self.runs.partition_point(|run| run.first <= index).checked_sub(1)?;
        Some(LogId { leader_id: self.runs[run].leader, index })
    }

    /// Adds an entry at the end.
    fn push(&mut self, id: LogId, place: Place) {
        if self.places.is_empty() {
            self.first = id.index;
        }
        if self.runs.back().is_none_or(|run| run.leader != id.leader_id) {
            self.runs.push_back(Run { first: id.index, leader: id.leader_id });
        }
        self.places.push_back(place);
    }

    /// Adds an entry that recovery found on disk.
    pub fn restore(&mut self, id: LogId, place: Place) {
        self.push(id, place);
        self.flushed_end = self.end();
    }

    /// Sets the purge position that recovery found; the log is empty.
    pub fn restore_purged(&mut self, purged: Option<LogId>) {
        self.purged = purged;
        self.first = purged.map_or(0, |id| id.index + 1);
        self.flushed_end = self.first;
    }

    /// Adds entries that are about to be written. The ticket goes to [`Self::written`].
    pub fn append(&mut self, entries: &[LogEntry]) -> u64 {
        for entry in entries {
            let (length, crc, form) = (entry.payload.len() as u32, entry.crc, entry.form);
            self.push(entry.log_id, Place { generation: 0, offset: 0, length, crc, form });
            self.tail_bytes += entry.payload.len();
            self.tail.push_back(entry.payload.clone());
        }
        self.tickets += 1;
        let first = self.end() - entries.len() as u64;
        self.pending.push_back(Pending { ticket: self.tickets, first, end: self.end() });
        self.tickets
    }

    /// The append of this ticket is on disk: its payloads lie one after another from `offset` on.
    pub fn written(&mut self, ticket: u64, entries: &[LogEntry], generation: u64, offset: u64) {
        let Some(pending) = self.pending.front().copied().filter(|pending| pending.ticket == ticket) else { return };
        self.pending.pop_front();
        let mut offset = offset;
        for (index, entry) in (pending.first..pending.end).zip(entries) {
            let place = index.checked_sub(self.first).and_then(|at| self.places.get_mut(at as usize));
            if let Some(place) = place {
                place.generation = generation;
                place.offset = u32::try_from(offset).expect("files are smaller than 4 GiB");
            }
            offset += entry.payload.len() as u64;
        }
        if pending.end > pending.first {
            self.flushed_end = self.flushed_end.max(pending.end);
        }
    }

    /// Removes the entries after `after`; `None`: all.
    pub fn truncate_after(&mut self, after: Option<u64>) {
        let end = after.map_or(0, |index| index.saturating_add(1));
        let keep = end.saturating_sub(self.first).min(self.places.len() as u64) as usize;
        let cut = self.places.len() - keep;
        self.places.truncate(keep);
        for _ in 0..cut.min(self.tail.len()) {
            self.tail_bytes -= self.tail.pop_back().map_or(0, |payload| payload.len());
        }
        while self.runs.back().is_some_and(|run| run.first >= end) {
            self.runs.pop_back();
        }
        for pending in &mut self.pending {
            pending.end = pending.end.min(end);
        }
        let floor = self.purged.map_or(0, |id| id.index + 1);
        self.flushed_end = self.flushed_end.min(end.max(floor));
        self.epoch += 1;
    }

    /// Removes the entries up to `id`, which may lie beyond the last one.
    pub fn purge(&mut self, id: LogId) {
        if self.purged.is_some_and(|purged| purged.index >= id.index) {
            return;
        }
        let first = id.index + 1;
        let gone = first.saturating_sub(self.first).min(self.places.len() as u64) as usize;
        for _ in 0..gone {
            if self.tail.len() == self.places.len() {
                self.tail_bytes -= self.tail.pop_front().map_or(0, |payload| payload.len());
            }
            self.places.pop_front();
        }
        self.first = if self.places.is_empty() { first } else { self.first + gone as u64 };
        while self.runs.get(1).is_some_and(|run| run.first <= self.first) || self.places.is_empty() {
            if self.runs.pop_front().is_none() {
                break;
            }
        }
        self.purged = Some(id);
        self.flushed_end = self.flushed_end.max(first);
        self.epoch += 1;
    }

    /// Drops the oldest payloads that are on disk too, until `enough` bytes are gone.
    pub fn evict(&mut self, enough: usize) -> usize {
        let before = self.tail_bytes;
        while before - self.tail_bytes < enough && self.tail_first() < self.flushed_end {
            let Some(payload) = self.tail.pop_front() else { break };
            self.tail_bytes -= payload.len();
        }
        before - self.tail_bytes
    }

    /// The entries of `range` that are there, until their payloads exceed `bytes_max`; the first one always.
    pub fn find(&self, range: Range<u64>, bytes_max: u64) -> Vec<Found> {
        let range = range.start.max(self.first)..range.end.min(self.end());
        let (mut found, mut bytes) = (Vec::new(), 0);
        let mut run = self.runs.partition_point(|run| run.first <= range.start).saturating_sub(1);
        for index in range {
            while self.runs.get(run + 1).is_some_and(|next| next.first <= index) {
                run += 1;
            }
            let place = self.places[(index - self.first) as usize];
            bytes += u64::from(place.length);
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            let payload = index.checked_sub(self.tail_first()).map(|at| self.tail[at as usize].clone());
            found.push(Found { log_id: LogId { leader_id: self.runs[run].leader, index }, place, payload });
        }
        found
    }

    /// The last entry of each leader from `first` to `last`: what openraft's index of the log is made of
    /// (its documentation of `get_key_log_ids` says the first; its code and suite ask for the last).
    pub fn key_log_ids(&self, first: u64, last: u64) -> Vec<LogId> {
        let (first, end) = (first.max(self.first), last.saturating_add(1).min(self.end()));
        let ends = self.runs.iter().skip(1).map(|run| run.first).chain([self.end()]);
        let ends = ends.filter(|run_end| *run_end > first && *run_end < end).chain([end]);
        ends.filter(|end| *end > first).filter_map(|end| self.log_id(end - 1)).collect()
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
