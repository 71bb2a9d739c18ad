//! Leases: until when this node may decide on access by what its own replicas say.
//!
//! A lease begins when a read barrier is asked for that succeeds: everything committed before that moment
//! is applied here. So it is never longer than [`LEASE`] after the last moment at which a removal elsewhere
//! could have been missed, however long messages or this process were held up. Leases are kept only while
//! somebody uses them: a cluster without ephemeral rooms pays nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::GroupId;
use unibus_proto::limits::LEASE;
use unibus_raft_store::env::{Env, Instant, InstantOf, now, sleep, spawn, timeout};
use unibus_raft_store::mutants;

use crate::fanout::{Item, Registry};
use crate::service::Failure;
use crate::shard::Shards;

/// Between two renewals: three may fail before the lease lapses.
const RENEW_EVERY: Duration = Duration::from_millis(500);
/// A lease that nobody asked for during this time is not renewed.
const KEPT_UNUSED: Duration = Duration::from_secs(10);
/// Pause after a renewal that took long, and the hint to those who were refused.
const PAUSE: Duration = Duration::from_millis(50);

/// The leases of a node, one per group.
pub struct Leases<E: Env> {
    slots: Vec<Slot<E>>,
}

struct Slot<E: Env> {
    state: Mutex<State<E>>,
    wake: mpsc::Sender<()>,
}

struct State<E: Env> {
    /// Everything committed before was applied here.
    since: Option<InstantOf<E>>,
    /// Counts how often it was obtained anew: whoever rests on an earlier one has missed something.
    epoch: u64,
    /// When it was last asked for.
    asked: Option<InstantOf<E>>,
    /// Subscriptions that rest on it.
    uses: usize,
    /// Its lapse was told.
    told: bool,
}

impl<E: Env> Default for State<E> {
    fn default() -> Self {
        Self { since: None, epoch: 0, asked: None, uses: 0, told: false }
    }
}

impl<E: Env> State<E> {
    fn holds(&self) -> bool {
        self.left() > Duration::ZERO || (mutants::is("lease-never-lapses") && self.since.is_some())
    }

    fn left(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| LEASE.saturating_sub(since.elapsed()))
    }

    /// A barrier that was asked for at `begun` has succeeded; whether that is still a lease.
    fn note(&mut self, begun: InstantOf<E>) -> bool {
        self.epoch += u64::from(!self.holds());
        self.since = Some(self.since.map_or(begun, |since| since.max(begun)));
        self.told &= !self.holds();
        self.holds()
    }

    /// Whether somebody has to hear that it has lapsed: once.
    fn tell_lapse(&mut self) -> bool {
        self.uses > 0 && !self.holds() && !std::mem::replace(&mut self.told, true)
    }

    fn is_used(&self) -> bool {
        self.uses > 0 || self.asked.is_some_and(|asked| asked.elapsed() < KEPT_UNUSED)
    }
}

/// Keeps a lease renewed as long as it lives.
pub struct LeaseUse<E: Env> {
    leases: Arc<Leases<E>>,
    group: GroupId,
    epoch: u64,
}

impl<E: Env> LeaseUse<E> {
    /// Whether the lease holds, without a break since this use of it began.
    pub fn holds(&self) -> bool {
        let state = self.leases.state(self.group);
        state.holds() && state.epoch == self.epoch
    }
}

impl<E: Env> Drop for LeaseUse<E> {
    fn drop(&mut self) {
        self.leases.state(self.group).uses -= 1;
    }
}

impl<E: Env> Leases<E> {
    /// None is held yet. The mailboxes of `registry` hear of each that lapses.
    pub fn start(shards: &Shards<E>, registry: &Arc<Registry>) -> Arc<Self> {
        let (slots, woken): (Vec<_>, Vec<_>) = shards
            .ids()
            .map(|_| {
                let (wake, woken) = mpsc::channel(1);
                let state = Mutex::new(State::default());
                (Slot { state, wake }, woken)
            })
            .unzip();
        let leases = Arc::new(Self { slots });
        for (group, woken) in shards.ids().zip(woken) {
            spawn::<E>(keep(Arc::downgrade(&leases), shards.clone(), Arc::clone(registry), group, woken));
        }
        leases
    }

    /// Whether the lease of a group holds. Being asked for, it is kept.
    pub fn holds(&self, group: GroupId) -> bool {
        let mut state = self.state(group);
        state.asked = Some(now::<E>());
        let holds = state.holds();
        drop(state);
        self.wake(group);
        holds
    }

    /// Keeps the lease renewed as long as the answer lives.
    pub fn use_lease(self: &Arc<Self>, group: GroupId) -> LeaseUse<E> {
        let mut state = self.state(group);
        state.uses += 1;
        // It may have lapsed just before: who begins now has not heard of it.
        state.told = false;
        let epoch = state.epoch;
        drop(state);
        self.wake(group);
        LeaseUse { leases: Arc::clone(self), group, epoch }
    }

    /// Obtains the lease of a group; at once when it holds.
    pub async fn obtain(&self, shards: &Shards<E>, group: GroupId) -> Result<(), Failure> {
        if self.holds(group) {
            return Ok(());
        }
        let begun = now::<E>();
        shards.barrier(group).await.map_err(|_| refusal(shards, group))?;
        // The answer may have waited for this process.
        if self.state(group).note(begun) { Ok(()) } else { Err(refusal(shards, group)) }
    }

    /// Renews once, and tells at once when the lease lapses meanwhile.
    async fn renew(&self, shards: &Shards<E>, registry: &Registry, group: GroupId, begun: InstantOf<E>) {
        let left = self.state(group).left();
        let mut barrier = std::pin::pin!(shards.barrier(group));
        let renewed = match timeout::<E, _>(left, barrier.as_mut()).await {
            Some(renewed) => renewed,
            None => {
                self.tell_lapse(registry, group);
                barrier.await
            }
        };
        match renewed {
            Ok(()) => drop(self.state(group).note(begun)),
            Err(failure) => tracing::debug!(%group, %failure, "lease is not renewed"),
        }
    }

    /// Has the subscriptions look at their leases when this one does not hold.
    fn tell_lapse(&self, registry: &Registry, group: GroupId) {
        if self.state(group).tell_lapse() {
            tracing::info!(%group, "lease has lapsed: subscriptions to ephemeral rooms of the group end");
            registry.to_all(|| Item::Lease);
        }
    }

    fn wake(&self, group: GroupId) {
        if let Some(slot) = self.slots.get(group.0 as usize) {
            slot.wake.try_send(()).ok();
        }
    }

    fn state(&self, group: GroupId) -> MutexGuard<'_, State<E>> {
        // Groups of rows in the directory exist: the machine has checked them.
        let slot = &self.slots[(group.0 as usize).min(self.slots.len() - 1)];
        slot.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renews the lease of a group while it is used, until the leases are dropped.
async fn keep<E: Env>(
    leases: Weak<Leases<E>>,
    shards: Shards<E>,
    registry: Arc<Registry>,
    group: GroupId,
    mut woken: mpsc::Receiver<()>,
) {
    while let Some(kept) = leases.upgrade() {
        if !kept.state(group).is_used() {
            drop(kept);
            if woken.recv().await.is_none() {
                return;
            }
            continue;
        }
        let begun = now::<E>();
        kept.tell_lapse(&registry, group);
        kept.renew(&shards, &registry, group, begun).await;
        drop(kept);
        sleep::<E>(RENEW_EVERY.saturating_sub(begun.elapsed()).max(PAUSE)).await;
    }
}

/// Why what needs the lease of a group is refused, or ends.
pub fn refusal<E: Env>(shards: &Shards<E>, group: GroupId) -> Failure {
    let (node, cause) = (shards.node(), shards.quorum_cause(group));
    let message = format!(
        "ephemeral rooms: node {node} has not heard from the leader of group {group} for {LEASE:?} ({cause}), so it \
         cannot tell who may read and publish; nothing was sent; use another node"
    );
    Failure::new(ErrorCode::NoLeader, message).after(PAUSE)
}

#[cfg(test)]
mod tests {
    use unibus_raft_store::testing::TestEnv;

    use super::*;

    /// A moment so long ago.
    fn ago(since: Duration) -> InstantOf<TestEnv> {
        now::<TestEnv>() - since
    }

    #[test]
    fn p6_a_barrier_that_was_answered_too_late_gives_no_lease() {
        let mut state = State::<TestEnv>::default();
        assert!(!state.note(ago(LEASE)), "what happened since may have been missed");
        assert!(state.note(ago(Duration::ZERO)) && state.holds());
        assert!(state.note(ago(LEASE)), "an older answer does not shorten it");
    }

    #[test]
    fn a_lapse_is_told_once_to_whoever_rests_on_the_lease() {
        let mut state = State::<TestEnv> { since: Some(ago(LEASE)), ..State::default() };
        assert!(!state.tell_lapse(), "nobody rests on it");
        state.uses = 1;
        assert!(state.tell_lapse());
        assert!(!state.tell_lapse(), "again and again it would crowd out other words");
        assert!(state.note(ago(Duration::ZERO)) && !state.tell_lapse());
        state.since = Some(ago(LEASE));
        assert!(state.tell_lapse(), "the next one is told anew");
    }
}
