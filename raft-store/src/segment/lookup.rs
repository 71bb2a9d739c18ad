//! Where the records of a room are: from memory for the open file, from the footers for the sealed ones.
//!
//! Sequences of a room only grow from file to file, so the files are asked from the newest back, or from
//! where the room was found last. Pages of footers and runs that were used last stay in memory.

use std::sync::Arc;

use unibus_proto::id::RoomId;
use unibus_proto::position::Sequence;

use super::footer::{RoomEntry, RoomRuns, Summary};
use super::format::Run;
use super::ledger::Sealed;
use super::lru::Lru;
use super::{Segments, TimelineError};
use crate::env::Env;

/// Rooms of footer pages that are kept: some 3 MiB.
const ENTRIES_MAX: usize = 64 << 10;
/// Runs that are kept: some 1 MiB.
const RUNS_MAX: usize = 64 << 10;
/// Rooms of which is known where they were found last.
const HINTS_MAX: usize = 4 << 10;
/// Runs of the open file that are handed out at once.
const OPEN_RUNS: usize = 64;

/// What was read from footers last.
pub(super) struct IndexCache {
    pages: Lru<(u64, usize), Arc<Vec<RoomEntry>>>,
    runs: Lru<(u64, RoomId), Arc<RoomRuns>>,
    hints: Lru<RoomId, u64>,
}

impl IndexCache {
    pub(super) fn new() -> Self {
        Self { pages: Lru::new(ENTRIES_MAX), runs: Lru::new(RUNS_MAX), hints: Lru::new(HINTS_MAX) }
    }

    pub(super) fn clear(&mut self) {
        self.pages.clear();
        self.runs.clear();
        self.hints.clear();
    }
}

/// Consecutive runs of a room in one file, the first of which holds what was asked for.
pub(super) enum Found {
    /// Of the open file.
    Open(Vec<(Sequence, Run)>),
    /// Of a sealed one.
    Sealed(u64, Arc<RoomRuns>),
    /// It is just beyond the newest.
    Beyond,
}

impl<E: Env> Segments<E> {
    /// The runs that hold `from` and what follows it in the same file.
    pub(super) async fn locate(&self, room: RoomId, from: Sequence) -> Result<Found, TimelineError> {
        let open = {
            let ledger = self.ledger();
            let open = ledger.open_runs(room);
            if let Some((segment, runs)) = open.filter(|(_, runs)| from >= runs.first && from < runs.end()) {
                return Ok(Found::Open(runs.from(segment, from).take(OPEN_RUNS).collect()));
            }
            open.map(|(_, runs)| (runs.first, runs.end()))
        };
        if open.is_some_and(|(_, end)| from == end) {
            return Ok(Found::Beyond);
        }
        let outside = open.is_some_and(|(_, end)| from > end);
        if let Some((sealed, entry)) = if outside { None } else { self.search(room, from).await? } {
            return Ok(Found::Sealed(sealed.entry.id, self.runs(&sealed, &entry).await?));
        }
        let (floor, end) = self.extent(room, open).await?.ok_or(TimelineError::NotFound)?;
        if from == end {
            return Ok(Found::Beyond);
        }
        Err(TimelineError::OutOfRange { floor, head: Sequence(end.0 - 1) })
    }

    /// The sealed file that holds `from` of the room.
    async fn search(&self, room: RoomId, from: Sequence) -> Result<Option<(Sealed, RoomEntry)>, TimelineError> {
        let hint = self.index().hints.get(&room);
        let hinted = hint.and_then(|id| self.ledger().sealed(id).cloned());
        let mut below = u64::MAX;
        if let Some(sealed) = hinted
            && let Some(entry) = self.entry(&sealed, room).await?
        {
            if from >= entry.end() {
                return self.search_forward(room, from, sealed.entry.id).await;
            }
            if from >= entry.first {
                return Ok(Some((sealed, entry)));
            }
            below = sealed.entry.id;
        }
        while let Some(sealed) = self.before(below) {
            below = sealed.entry.id;
            if let Some(entry) = self.entry(&sealed, room).await?
                && from >= entry.first
            {
                return Ok((from < entry.end()).then(|| self.remember(room, sealed, entry)));
            }
        }
        Ok(None)
    }

    async fn search_forward(
        &self,
        room: RoomId,
        from: Sequence,
        after: u64,
    ) -> Result<Option<(Sealed, RoomEntry)>, TimelineError> {
        let later: Vec<_> = self.ledger().all_sealed().filter(|sealed| sealed.entry.id > after).cloned().collect();
        for sealed in later {
            if let Some(entry) = self.entry(&sealed, room).await?
                && from < entry.end()
            {
                return Ok((from >= entry.first).then(|| self.remember(room, sealed, entry)));
            }
        }
        Ok(None)
    }

    /// First sequence and the one after the last; `open` is what the open file has of it.
    async fn extent(
        &self,
        room: RoomId,
        open: Option<(Sequence, Sequence)>,
    ) -> Result<Option<(Sequence, Sequence)>, TimelineError> {
        let all: Vec<_> = self.ledger().all_sealed().cloned().collect();
        let mut end = open.map(|(_, end)| end);
        for sealed in all.iter().rev() {
            if end.is_some() {
                break;
            }
            end = self.entry(sealed, room).await?.map(|entry| entry.end());
        }
        let Some(end) = end else { return Ok(None) };
        for sealed in &all {
            if let Some(entry) = self.entry(sealed, room).await? {
                return Ok(Some((entry.first, end)));
            }
        }
        Ok(open)
    }

    fn before(&self, id: u64) -> Option<Sealed> {
        self.ledger().all_sealed().rev().find(|sealed| sealed.entry.id < id).cloned()
    }

    fn remember(&self, room: RoomId, sealed: Sealed, entry: RoomEntry) -> (Sealed, RoomEntry) {
        self.index().hints.put(room, 1, sealed.entry.id);
        (sealed, entry)
    }

    /// What a sealed file says of a room.
    async fn entry(&self, sealed: &Sealed, room: RoomId) -> Result<Option<RoomEntry>, TimelineError> {
        let Some(page) = sealed.summary.page_of(room) else { return Ok(None) };
        let segment = sealed.entry.id;
        let known = self.index().pages.get(&(segment, page));
        let entries = match known {
            Some(entries) => entries,
            None => {
                let range = sealed.summary.page(page);
                let at = range.start;
                let bytes = self.bytes(segment, range).await?;
                let entries = Summary::decode_page(self.place, segment, at, &bytes);
                let entries = Arc::new(entries.map_err(|found| self.corrupt(segment, at, &found))?);
                self.index().pages.put((segment, page), entries.len(), entries.clone());
                entries
            }
        };
        let found = entries.binary_search_by_key(&room, |entry| entry.room);
        Ok(found.ok().map(|at| entries[at]))
    }

    async fn runs(&self, sealed: &Sealed, entry: &RoomEntry) -> Result<Arc<RoomRuns>, TimelineError> {
        let segment = sealed.entry.id;
        let known = self.index().runs.get(&(segment, entry.room));
        if let Some(runs) = known {
            return Ok(runs);
        }
        let range = sealed.summary.runs_of(entry);
        let at = range.start;
        let bytes = self.bytes(segment, range).await?;
        let runs = entry.decode_runs(self.place, segment, at, &bytes);
        let runs = Arc::new(runs.map_err(|found| self.corrupt(segment, at, &found))?);
        self.index().runs.put((segment, entry.room), runs.runs.len(), runs.clone());
        Ok(runs)
    }
}
