//! The groups of this node: proposing to them, batching publishes, read barriers, log time, ticks, who leads.

pub mod barrier;
pub mod batcher;
mod budget;
pub mod clock;
mod commands;
mod entries;
mod fitness;
mod leaders;
pub mod placement;
pub mod propose;
mod space;
mod tick;
mod transfer;

use std::sync::Arc;

use unibus_proto::id::{GroupId, Handle, NodeId, RoomId};
use unibus_raft_store::Group;
use unibus_raft_store::env::{Clock, Env, InstantOf, now, spawn};

use crate::peer::exchange::Peers;
use crate::service::{Counters, Failure};
use barrier::Barrier;
use batcher::Batcher;
use budget::Budget;
use clock::LogClock;
use commands::Commands;
use fitness::Fitness;

/// The groups of this node and the way to their leaders. Clones share everything.
pub struct Shards<E: Env> {
    inner: Arc<Inner<E>>,
}

impl<E: Env> Clone for Shards<E> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<E: Env> {
    env: E,
    node: NodeId,
    peers: Peers<E>,
    slots: Vec<Slot<E>>,
    budget: Budget,
    command_budget: Budget,
    counters: Arc<Counters>,
    fitness: Fitness<E>,
    started: InstantOf<E>,
}

/// What the node keeps per group.
struct Slot<E: Env> {
    group: Group<E>,
    clock: LogClock,
    barrier: Barrier,
    batcher: Batcher,
    commands: Commands<E>,
    /// Held while the leadership is handed over: openraft takes a second order without a word.
    handing_over: tokio::sync::Mutex<()>,
}

impl<E: Env> Shards<E> {
    /// Takes the groups (meta first, then the shards in order) and starts their tasks.
    pub fn start(env: E, node: NodeId, groups: Vec<Group<E>>, peers: Peers<E>, counters: Arc<Counters>) -> Self {
        let mut runs = Vec::new();
        let slots = groups.into_iter().map(|group| {
            let (batcher, publishes) = Batcher::new();
            let (commands, lanes) = Commands::new();
            runs.push((publishes, lanes));
            let (clock, barrier, handing_over) =
                (LogClock::default(), Barrier::default(), tokio::sync::Mutex::default());
            Slot { group, clock, barrier, batcher, commands, handing_over }
        });
        let slots = slots.collect();
        let (budget, command_budget) = (Budget::of_publishes(), Budget::of_commands());
        let (fitness, started) = (Fitness::default(), now::<E>());
        let inner = Inner { env, node, peers, slots, budget, command_budget, counters, fitness, started };
        let shards = Self { inner: Arc::new(inner) };
        for (index, (publishes, lanes)) in (0..).zip(runs) {
            spawn::<E>(batcher::drive(shards.clone(), GroupId(index), publishes));
            for lane in lanes {
                spawn::<E>(commands::drive(shards.clone(), GroupId(index), lane));
            }
        }
        spawn::<E>(tick::run(shards.clone()));
        spawn::<E>(leaders::run(shards.clone()));
        shards
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// Number of shard groups.
    pub fn count(&self) -> u32 {
        self.inner.slots.len().saturating_sub(1) as u32
    }

    /// All groups, by id.
    pub fn ids(&self) -> impl Iterator<Item = GroupId> + use<E> {
        (0..self.inner.slots.len() as u32).map(GroupId)
    }

    /// A group's replica on this node.
    pub fn group(&self, group: GroupId) -> Result<&Group<E>, Failure> {
        self.slot(group).map(|slot| &slot.group)
    }

    /// The meta group's replica on this node.
    pub fn meta(&self) -> &Group<E> {
        &self.inner.slots[0].group
    }

    /// The shard that a new room goes to.
    pub fn place_room(&self, room: RoomId) -> GroupId {
        placement::of_room(room, self.count())
    }

    /// The shard of a user's devices.
    pub fn of_user(&self, user: &Handle) -> GroupId {
        placement::of_user(user, self.count())
    }

    /// What is known of the other nodes.
    pub fn peers(&self) -> &Peers<E> {
        &self.inner.peers
    }

    /// Log time for the next entry of a group that this node leads.
    pub fn stamp(&self, group: GroupId) -> Result<u64, Failure> {
        let slot = self.slot(group)?;
        let own = self.inner.env.clock().now_ms();
        Ok(slot.clock.stamp(own, &self.other_clocks(&slot.group)))
    }

    fn other_clocks(&self, group: &Group<E>) -> Vec<u64> {
        let own = self.inner.env.clock().now_ms();
        let voters = group.status().voters;
        voters.into_iter().filter_map(|voter| self.inner.peers.clock_of(voter, own)).collect()
    }

    fn slot(&self, group: GroupId) -> Result<&Slot<E>, Failure> {
        let count = self.inner.slots.len();
        self.inner.slots.get(group.0 as usize).ok_or_else(|| {
            Failure::invalid(format!("group {}: no such group, this cluster has 0 to {}", group.0, count - 1))
        })
    }
}
