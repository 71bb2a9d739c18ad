//! Whether this node should lead anything now. A clock that is an outlier, a disk that hangs or is full and a stop keep
//! leaderships away; what was once wrong counts for a while, so that nothing is handed to and fro.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use unibus_proto::id::GroupId;
use unibus_raft_store::env::{Clock, Env, Instant, InstantOf, now};

use super::{Shards, clock};

/// A disk that takes so long for one write is not one for leaders: commits go on without it, but what the
/// leader applies does not.
const DISK_WAITS_MAX: Duration = Duration::from_secs(2);
/// After the last sign of trouble.
const UNFIT_FOR: Duration = Duration::from_secs(30);
/// Entries that are on their way are no sign that they never come.
const STARVED_AFTER: Duration = Duration::from_millis(300);
/// Entries that a leader may have to apply before it can serve.
const BEHIND_MAX: u64 = 1_000;

/// What speaks against this node as a leader.
pub(super) struct Fitness<E: Env>(Mutex<Known<E>>);

struct Known<E: Env> {
    declines: Option<String>,
    /// What was found, and when it was last seen.
    trouble: Option<(InstantOf<E>, String)>,
    /// What this node lacks for want of disk space, and since when it is known.
    starved: Option<(InstantOf<E>, String)>,
    /// Groups that somebody asked this node to lead, and until when it keeps them.
    kept: BTreeMap<GroupId, InstantOf<E>>,
}

impl<E: Env> Default for Fitness<E> {
    fn default() -> Self {
        Self(Mutex::new(Known { declines: None, trouble: None, starved: None, kept: BTreeMap::new() }))
    }
}

impl<E: Env> Fitness<E> {
    fn known(&self) -> MutexGuard<'_, Known<E>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Env> Shards<E> {
    /// From now on this node takes no leadership and hands those that it has to others, because of `why`;
    /// `None`: it leads again.
    pub fn decline_leadership(&self, why: Option<String>) {
        self.inner.fitness.known().declines = why;
    }

    /// Why this node should lead nothing now.
    pub fn unfit(&self) -> Option<String> {
        // Not remembered: there are two marks, so it does not go to and fro, and it ends when there is space.
        if let Some(why) = self.meta().space().refuses_writes() {
            return Some(format!("its disk is full: {why}"));
        }
        let known = self.inner.fitness.known();
        let trouble = known.trouble.as_ref().filter(|(seen, _)| seen.elapsed() < UNFIT_FOR);
        known.declines.clone().or_else(|| trouble.map(|(_, why)| why.clone()))
    }

    /// Why this node cannot tell what is new: it takes no entries for want of disk space, and there are some.
    pub fn starved(&self) -> Option<String> {
        let known = self.inner.fitness.known();
        known.starved.as_ref().filter(|(since, _)| since.elapsed() >= STARVED_AFTER).map(|(_, why)| why.clone())
    }

    fn look_for_space(&self) {
        let behind = |group: &GroupId| {
            let status = self.group(*group).ok()?.status();
            (status.committed_index > status.applied_index).then_some(status.committed_index)
        };
        let found = self.meta().space().refuses_entries().and_then(|why| {
            let group = self.ids().find(|group| behind(group).is_some())?;
            let node = self.node();
            Some(format!("node {node} takes no entries and is behind in group {group}: {why}; use another node"))
        });
        let mut known = self.inner.fitness.known();
        known.starved = found.map(|why| {
            let since = known.starved.as_ref().map_or_else(now::<E>, |(since, _)| *since);
            (since, why)
        });
    }

    /// Looks for trouble.
    pub(super) fn examine(&self) {
        self.look_for_space();
        let waits = self.meta().disk_waits();
        let own = self.inner.env.clock().now_ms();
        let why = if waits >= DISK_WAITS_MAX {
            format!("its disk took {:.1} s for one write of the log", waits.as_secs_f64())
        } else if clock::is_outlier(own, &self.other_clocks(self.meta())) {
            "its wall clock is ahead of the others".to_string()
        } else {
            return;
        };
        self.inner.fitness.known().trouble = Some((now::<E>(), why));
    }

    /// Why this node would not lead `group` now.
    pub(super) fn declines(&self, group: GroupId) -> Option<String> {
        let Ok(replica) = self.group(group) else { return Some("it does not have the group".into()) };
        let behind = || {
            let status = replica.status();
            let behind = status.committed_index.saturating_sub(status.applied_index);
            (behind > BEHIND_MAX).then(|| format!("it has {behind} entries to apply first"))
        };
        self.unfit().or_else(behind)
    }

    /// Keeps a group for a while, wherever the spreading would put it.
    pub(super) fn keep(&self, group: GroupId, time: Duration) {
        self.inner.fitness.known().kept.insert(group, now::<E>() + time);
    }

    /// Whether somebody asked this node to keep the group.
    pub(super) fn keeps(&self, group: GroupId) -> bool {
        self.inner.fitness.known().kept.get(&group).is_some_and(|until| now::<E>() < *until)
    }

    /// Since this node started.
    pub(super) fn uptime(&self) -> Duration {
        self.inner.started.elapsed()
    }
}
