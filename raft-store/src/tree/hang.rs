//! Ends the process when reads of a tree do not come back: sled is known to spin. Whoever reads holds the
//! rows of its group, so the node would hang for ever and yet count as a member. The next start discards
//! the tree.
#![allow(clippy::disallowed_methods, reason = "production only: simulated trees do not hang")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::thread;
use std::time::Duration;

/// Between two looks at all trees.
const PERIOD: Duration = Duration::from_secs(5);
/// So many looks without a read that came back, while one is under way, are a hang.
const LOOKS: u32 = 6;

/// Counts the reads of a tree.
#[derive(Default)]
pub(super) struct Reads {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A read that is under way.
pub(super) struct Reading<'a>(&'a Reads);

impl Reads {
    /// A read begins; it ends when the answer is dropped.
    pub fn begin(&self) -> Reading<'_> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Reading(self)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the looks at one tree found so far.
#[derive(Default)]
struct Looks {
    ended: u64,
    stuck: u32,
}

impl Looks {
    /// Whether its reads hang.
    fn again(&mut self, reads: &Reads) -> bool {
        let ended = reads.ended.load(Ordering::Relaxed);
        let is_stuck = reads.begun.load(Ordering::Relaxed) > ended && ended == self.ended;
        self.stuck = if is_stuck { self.stuck + 1 } else { 0 };
        self.ended = ended;
        self.stuck >= LOOKS
    }
}

struct Watched {
    reads: Weak<Reads>,
    looks: Looks,
    marker: PathBuf,
}

static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());
static THREAD: Once = Once::new();

/// Watches the reads of a tree as long as it is open. When they hang, the file `marker` is made and the
/// process ends.
pub(super) fn watch(reads: &Arc<Reads>, marker: &Path) {
    let watched = Watched { reads: Arc::downgrade(reads), looks: Looks::default(), marker: marker.into() };
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
    THREAD.call_once(|| {
        if let Err(error) = thread::Builder::new().name("unibus-tree-watch".into()).spawn(look_for_ever) {
            tracing::warn!(%error, "nobody watches the trees");
        }
    });
}

fn look_for_ever() {
    loop {
        thread::sleep(PERIOD);
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|tree| tree.reads.strong_count() > 0);
        let hangs = |tree: &mut Watched| tree.reads.upgrade().is_some_and(|reads| tree.looks.again(&reads));
        if let Some(tree) = watched.iter_mut().find_map(|tree| hangs(tree).then_some(&tree.marker)) {
            end(tree);
        }
    }
}

fn end(marker: &Path) -> ! {
    let marked = File::create(marker).and_then(|_| File::open(marker.parent().unwrap_or(marker))?.sync_all());
    let tree = marker.display();
    tracing::error!(%tree, ?marked, "fatal: a read of the tables hangs; start the node again, which rebuilds them");
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_read_that_does_not_come_back_is_a_hang() {
        let (reads, mut looks) = (Reads::default(), Looks::default());
        assert!((0..20).all(|_| !looks.again(&reads)), "nobody reads");
        for _ in 0..20 {
            let reading = reads.begin();
            assert!(!looks.again(&reads), "they come back");
            drop(reading);
        }
        let stuck = reads.begin();
        assert!((0..LOOKS).all(|_| !looks.again(&reads)), "it may only be slow");
        assert!(looks.again(&reads), "it hangs");
        drop(stuck);
        assert!(!looks.again(&reads));
    }
}
