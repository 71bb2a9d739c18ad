//! How much space this node's disk has left, and what it still takes for that.
//!
//! Two marks. Below the *low* one the node takes no new messages as a leader, and leads nothing while others can.
//! Below the *reserve* it takes no entries from other leaders either: what is left is for votes, commit
//! indexes, purges, and for the checkpoints and snapshots after which files of the log go back. So a disk
//! fills up in steps, and what was promised before the last one can be kept.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::env::{Disk, Env, Instant, InstantOf, WatchReceiver, now, sleep};
use crate::wal::Wal;
use crate::watched::WatchReceiverOf;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(100);
/// After an allocation failed the disk counts as full for so long, whatever it says: there are quotas and
/// inodes too.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// What is refused is asked for again at once, and the log need not say so each time.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Free bytes below which a node takes less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceMarks {
    /// No new messages.
    pub low_bytes: u64,
    /// No entries of other leaders.
    pub reserve_bytes: u64,
}

impl Default for SpaceMarks {
    fn default() -> Self {
        // The reserve holds a new file of the log (64 MiB), a checkpoint and small snapshots; what is above it
        // is for what other leaders send meanwhile, and for an operator to notice.
        Self { low_bytes: 512 << 20, reserve_bytes: 128 << 20 }
    }
}

/// What a node takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpaceLevel {
    /// Everything.
    #[default]
    Enough,
    /// No new messages.
    Low,
    /// Nothing but what Raft itself needs.
    Reserve,
}

/// Whether an error says that there is no space.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The space of a node. Looks for itself; everybody asks.
pub struct Space<E: Env> {
    env: E,
    dir: PathBuf,
    marks: SpaceMarks,
    state: Mutex<State<E>>,
}

struct State<E: Env> {
    free_bytes: u64,
    level: SpaceLevel,
    /// An allocation that failed, and when.
    failed: Option<(InstantOf<E>, String)>,
    /// When the log was told last of what did not fit.
    told: Option<InstantOf<E>>,
}

impl<E: Env> State<E> {
    /// Why an allocation failed, if that is not long ago.
    fn failed_lately(&self) -> Option<&String> {
        self.failed.as_ref().filter(|(at, _)| at.elapsed() < FAILED_FOR).map(|(_, why)| why)
    }
}

impl<E: Env> Space<E> {
    /// Of the file system that holds `dir`, as of now.
    pub async fn measure(env: E, dir: PathBuf, marks: SpaceMarks) -> Self {
        let state = State { free_bytes: u64::MAX, level: SpaceLevel::Enough, failed: None, told: None };
        let space = Self { env, dir, marks, state: Mutex::new(state) };
        space.look().await;
        space
    }

    /// Looks until the store stops.
    pub(crate) async fn watch(self: Arc<Self>, wal: Wal<E>, mut stop: WatchReceiverOf<E, bool>) {
        loop {
            if let Some(why) = wal.stalled() {
                self.note_failure(why);
            }
            self.look().await;
            tokio::select! {
                biased;
                _ = stop.changed() => return,
                () = sleep::<E>(PERIOD) => {}
            }
        }
    }

    /// Looks at the disk now.
    pub async fn look(&self) {
        // A disk that does not say is judged by what fails on it.
        let Ok(free) = self.env.disk().free_bytes(&self.dir).await else { return };
        let (before, level) = {
            let mut state = self.state();
            let before = state.level;
            state.free_bytes = free;
            state.level = self.marks.level(free, before);
            (before, state.level)
        };
        match level.cmp(&before) {
            std::cmp::Ordering::Greater => tracing::warn!(?level, "{}", self.found(level, free)),
            std::cmp::Ordering::Less => tracing::info!(?level, free, "the disk has space again"),
            std::cmp::Ordering::Equal => {}
        }
    }

    /// An allocation failed: the disk is full, before it is looked at again.
    pub fn note_failure(&self, why: String) {
        self.state().failed = Some((now::<E>(), why));
    }

    /// The marks.
    pub(crate) fn marks(&self) -> SpaceMarks {
        self.marks
    }

    /// Bytes that could be written when the disk was last looked at.
    pub fn free_bytes(&self) -> u64 {
        self.state().free_bytes
    }

    /// What the node takes now.
    pub fn level(&self) -> SpaceLevel {
        if self.has_failed() { SpaceLevel::Reserve } else { self.state().level }
    }

    /// Whether an allocation failed just now.
    pub fn has_failed(&self) -> bool {
        self.state().failed_lately().is_some()
    }

    /// Refuses what takes `needed` bytes when they are not free now. The log says so too, now and then.
    pub(crate) async fn check(&self, what: &str, needed: u64) -> Result<(), String> {
        self.look().await;
        let free = self.free_bytes();
        if free >= needed {
            return Ok(());
        }
        let refused = format!("no space for {what}: {}", self.lacks(free, needed));
        let told = &mut self.state().told;
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            tracing::warn!("{refused}");
            *told = Some(now::<E>());
        }
        Err(refused)
    }

    /// Why this node takes no new messages.
    pub fn refuses_writes(&self) -> Option<String> {
        self.refuses(SpaceLevel::Low)
    }

    /// Why this node takes no entries from other leaders.
    pub fn refuses_entries(&self) -> Option<String> {
        self.refuses(SpaceLevel::Reserve)
    }

    fn refuses(&self, from: SpaceLevel) -> Option<String> {
        let level = self.level();
        if level < from {
            return None;
        }
        let (free, failed) = {
            let state = self.state();
            (state.free_bytes, state.failed_lately().cloned())
        };
        // What is measured says more, where it says enough.
        let failed = failed.filter(|_| self.marks.level(free, SpaceLevel::Enough) < level);
        Some(match failed {
            Some(why) => format!("{why}; {REMEDY}"),
            None => self.found(level, free),
        })
    }

    fn found(&self, level: SpaceLevel, free: u64) -> String {
        let needed = match level {
            SpaceLevel::Reserve => self.marks.reserve_bytes,
            _ => self.marks.low_bytes,
        };
        self.lacks(free, needed.saturating_add(needed / MARGIN))
    }

    fn lacks(&self, free: u64, needed: u64) -> String {
        let needed = needed.div_ceil(1 << 20);
        format!("{} has {} MiB free, needed are {needed} MiB; {REMEDY}", self.dir.display(), free >> 20)
    }

    fn state(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const REMEDY: &str = "free space there or enlarge the disk, then the node goes on by itself";
/// A mark that was passed holds until this part of it is free on top, or a node at the mark would go to and fro.
const MARGIN: u64 = 8;

impl SpaceMarks {
    fn level(self, free: u64, before: SpaceLevel) -> SpaceLevel {
        let is_below = |mark: u64, level| {
            let margin = if before >= level { mark / MARGIN } else { 0 };
            free < mark.saturating_add(margin)
        };
        if is_below(self.reserve_bytes, SpaceLevel::Reserve) {
            SpaceLevel::Reserve
        } else if is_below(self.low_bytes, SpaceLevel::Low) {
            SpaceLevel::Low
        } else {
            SpaceLevel::Enough
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::timeout;
    use crate::testing::{FREE_BYTES_FILE, TestEnv};

    #[test]
    fn a_mark_that_was_passed_holds_until_there_is_some_more() {
        let marks = SpaceMarks { low_bytes: 800, reserve_bytes: 80 };
        let mut level = SpaceLevel::Enough;
        let mut at = |free| {
            level = marks.level(free, level);
            level
        };
        assert_eq!([at(800), at(799), at(899), at(900)].map(|level| level as u8), [0, 1, 1, 0]);
        assert_eq!([at(79), at(89), at(90), at(900)].map(|level| level as u8), [2, 2, 1, 0]);
    }

    #[tokio::test]
    async fn a_failure_that_is_over_is_no_reason_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let leave = |bytes: u64| std::fs::write(dir.path().join(FREE_BYTES_FILE), bytes.to_string()).unwrap();
        leave(79 << 20);
        let marks = SpaceMarks { low_bytes: 800 << 20, reserve_bytes: 80 << 20 };
        let space = Space::measure(TestEnv::new(1), dir.path().into(), marks).await;
        // Above the mark, and not yet by an eighth of it.
        leave(85 << 20);
        space.look().await;
        space.note_failure("no inode is left".into());
        let why = space.refuses_entries().expect("it failed just now");
        assert!(why.starts_with("no inode is left; free space"), "{why}");
        let over = async {
            while space.has_failed() {
                sleep::<TestEnv>(PERIOD).await;
            }
        };
        timeout::<TestEnv, _>(10 * FAILED_FOR, over).await.expect("it counts for a while only");
        let why = space.refuses_entries().expect("there is less than is needed");
        assert!(why.contains("has 85 MiB free, needed are 90 MiB"), "{why}");
    }
}
