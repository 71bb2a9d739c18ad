//! The answers of a producer: how each of its numbers was decided, and the digest of what it was decided for.
//!
//! They lie in pages of 64 numbers, so that a publish rewrites one page and not all of them; within a page,
//! consecutive answers are one run. The last 17 pages are kept whole: at least [`PRODUCER_WINDOW`] numbers.
//! Of what is older, page 0 keeps the newest 64 runs without digests: an uninterrupted producer, which has
//! one run, keeps all its answers.

use std::collections::BTreeMap;

use unibus_proto::id::{ProducerId, RoomId};
use unibus_proto::limits::PRODUCER_WINDOW;
use unibus_proto::position::Sequence;
use unibus_proto::row::{AnswerRun, AnswersRow};

use crate::key::{Key, range_of_answers};
use crate::rows::{self, Rows};

/// Numbers of a page: few enough to rewrite for one message, enough to need few pages.
const PAGE_NUMBERS: u64 = 64;
/// The page of the oldest answers.
const OLDEST: u64 = 0;
/// The page under way, and the full ones that hold the window.
const PAGES_KEPT: u64 = PRODUCER_WINDOW / PAGE_NUMBERS + 1;
const OLDEST_RUNS_MAX: usize = 64;
const DIGEST_BYTES: usize = 4;

/// How a number was decided before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Stored there.
    Stored(Sequence),
    /// Refused, with the code of this name.
    Refused(String),
    /// Decided so long ago that the answer is not kept.
    Forgotten,
    /// Decided for other content.
    Reused,
}

/// The pages of a producer that were read or changed.
#[derive(Debug)]
pub(crate) struct Answers {
    room: RoomId,
    producer: ProducerId,
    pages: BTreeMap<u64, Page>,
    retired: Vec<u64>,
}

#[derive(Debug, Default)]
struct Page {
    runs: Vec<AnswerRun>,
    digests: Vec<u8>,
    is_changed: bool,
}

/// The page of a number; the first page is 1.
fn page_of(number: u64) -> u64 {
    number / PAGE_NUMBERS + 1
}

/// The first number of a page: numbers start at 1.
fn first_of(page: u64) -> u64 {
    ((page - 1) * PAGE_NUMBERS).max(1)
}

/// The number after the last of a run.
pub(crate) fn end(run: &AnswerRun) -> u64 {
    run.first_number + u64::from(run.count)
}

impl Answers {
    pub(crate) fn new(room: RoomId, producer: ProducerId) -> Self {
        Self { room, producer, pages: BTreeMap::new(), retired: Vec::new() }
    }

    /// The producer's key.
    pub(crate) fn key(&self) -> Key<'static> {
        Key::Producer(self.room, self.producer)
    }

    /// How a number, which was decided, was decided.
    pub(crate) fn known<R: Rows>(&mut self, rows: &R, number: u64, digest: u32) -> Known {
        let page = page_of(number);
        let found = self.page(rows, page);
        let at = (number - first_of(page)) as usize * DIGEST_BYTES;
        match found.digests.get(at..at + DIGEST_BYTES) {
            Some(kept) if kept == digest.to_le_bytes() => found.answer(number),
            Some(_) => Known::Reused,
            None => self.page(rows, OLDEST).answer(number),
        }
    }

    /// Adds the answer to the next number.
    pub(crate) fn decided<R: Rows>(&mut self, rows: &R, run: AnswerRun, digest: u32) {
        let (number, page) = (run.first_number, page_of(run.first_number));
        if number == first_of(page) && page > PAGES_KEPT {
            self.retire(rows, page - PAGES_KEPT);
        }
        let page = self.page(rows, page);
        page.digests.extend(digest.to_le_bytes());
        page.push(run);
    }

    /// Moves the runs of a page to the oldest ones.
    fn retire<R: Rows>(&mut self, rows: &R, page: u64) {
        let runs = std::mem::take(&mut self.page(rows, page).runs);
        self.pages.remove(&page);
        self.retired.push(page);
        let oldest = self.page(rows, OLDEST);
        runs.into_iter().for_each(|run| oldest.push(run));
        let excess = oldest.runs.len().saturating_sub(OLDEST_RUNS_MAX);
        oldest.runs.drain(..excess);
    }

    fn page<R: Rows>(&mut self, rows: &R, page: u64) -> &mut Page {
        let key = Key::Answers(self.room, self.producer, page);
        self.pages.entry(page).or_insert_with(|| {
            let row: AnswersRow = rows::get(rows, &key).unwrap_or_default();
            Page { runs: row.runs, digests: row.digests.into(), is_changed: false }
        })
    }

    /// Writes what changed.
    pub(crate) fn flush<R: Rows>(self, rows: &mut R) {
        for page in self.retired {
            rows::delete(rows, &Key::Answers(self.room, self.producer, page));
        }
        for (at, page) in self.pages.into_iter().filter(|(_, page)| page.is_changed) {
            let row = AnswersRow { runs: page.runs, digests: page.digests.into() };
            rows::put(rows, &Key::Answers(self.room, self.producer, at), &row);
        }
    }
}

impl Page {
    fn answer(&self, number: u64) -> Known {
        let after = self.runs.partition_point(|run| run.first_number <= number);
        match after.checked_sub(1).map(|at| &self.runs[at]) {
            Some(run) if number >= end(run) => Known::Forgotten,
            Some(run) if run.reject.is_empty() => {
                Known::Stored(Sequence(run.first_sequence + (number - run.first_number)))
            }
            Some(run) => Known::Refused(run.reject.clone()),
            None => Known::Forgotten,
        }
    }

    /// Appends a run, or lengthens the last one with it.
    fn push(&mut self, run: AnswerRun) {
        self.is_changed = true;
        if let Some(last) = self.runs.last_mut() {
            let follows = !run.reject.is_empty() || last.first_sequence + u64::from(last.count) == run.first_sequence;
            let count = last.count.checked_add(run.count);
            if let Some(count) = count.filter(|_| last.reject == run.reject && end(last) == run.first_number && follows)
            {
                last.count = count;
                return;
            }
        }
        self.runs.push(run);
    }
}

/// Removes all answers of a producer.
pub(crate) fn delete<R: Rows>(rows: &mut R, room: RoomId, producer: ProducerId) {
    let (from, to) = range_of_answers(room, producer);
    for (key, _) in rows.scan(&from, &to, usize::MAX) {
        rows.delete(&key);
    }
}

/// The answers of a producer from its rows, for the invariants: all runs and all digests, ascending.
pub(crate) fn all<R: Rows>(rows: &R, room: RoomId, producer: ProducerId) -> (Vec<AnswerRun>, Vec<u8>) {
    let (from, to) = range_of_answers(room, producer);
    let (mut runs, mut digests) = (Vec::new(), Vec::new());
    for (key, value) in rows.scan(&from, &to, usize::MAX) {
        let row: AnswersRow = rows::decode(&key, value);
        runs.extend(row.runs);
        digests.extend(row.digests);
    }
    (runs, digests)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rows::MemoryRows;

    const ROOM: RoomId = RoomId([1; 16]);
    const PRODUCER: ProducerId = ProducerId([2; 8]);

    fn digest(number: u64) -> u32 {
        number as u32 * 7
    }

    /// What lies between two numbers of the producer: other messages, or a refusal.
    fn decide(gap: u64) -> (String, u64) {
        if gap == 3 { ("INVALID".into(), 0) } else { (String::new(), gap) }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        /// Written in batches of any size, the window answers as a map of all answers would.
        #[test]
        fn the_window_is_kept_whole(gaps in prop::collection::vec(0..4_u64, 1..2_500), batch in 1..300_usize) {
            let (mut rows, mut model, mut head) = (MemoryRows::default(), Vec::new(), 0);
            for (at, batch) in gaps.chunks(batch).enumerate() {
                let mut answers = Answers::new(ROOM, PRODUCER);
                for &gap in batch {
                    let (reject, skipped) = decide(gap);
                    let is_stored = reject.is_empty();
                    head += skipped;
                    let (first_number, first_sequence) = (model.len() as u64 + 1, if is_stored { head } else { 0 });
                    model.push(if is_stored { Known::Stored(Sequence(head)) } else { Known::Refused(reject.clone()) });
                    head += u64::from(is_stored);
                    let run = AnswerRun { first_number, count: 1, first_sequence, reject };
                    answers.decided(&rows, run, digest(first_number));
                }
                answers.flush(&mut rows);
                prop_assert!(at > 0 || !rows.is_empty());
            }
            let (last, mut answers) = (model.len() as u64, Answers::new(ROOM, PRODUCER));
            for (number, wanted) in (1..).zip(&model) {
                let known = answers.known(&rows, number, digest(number));
                let in_window = number + PRODUCER_WINDOW > last;
                prop_assert!(known == *wanted || (!in_window && known == Known::Forgotten), "{number}: {known:?}");
                let other = answers.known(&rows, number, digest(number) + 1);
                prop_assert!(other == Known::Reused || !in_window, "{number} with other content: {other:?}");
            }
            prop_assert!(rows.len() as u64 <= PAGES_KEPT + 1);
        }
    }
}
