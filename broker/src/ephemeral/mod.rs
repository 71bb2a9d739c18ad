//! Ephemeral rooms: messages that skip Raft (ARCHITECTURE section 5).
//!
//! A message goes from the node that took it to the nodes that have subscribers of its room, on a stream of
//! its own per pair of nodes, at most once. Nothing here waits: what does not fit into a bounded queue pushes
//! the oldest out, and is counted.
//!
//! - [`lease`] while this node may decide on access at all: it has applied what was committed lately;
//! - [`listeners`] the subscriptions of this node, and what the other nodes are told of them;
//! - [`outbox`] what waits for another node, and what that node listens to;
//! - [`mesh`] the streams.

pub mod lease;
pub mod listeners;
pub mod mesh;
pub mod outbox;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;
use tokio::sync::Semaphore;
use unibus_proto::id::{GroupId, Handle, NodeId, RoomId};
use unibus_proto::peer::{EphemeralBatch, EphemeralFrame, ephemeral_frame::Frame};
use unibus_raft_store::Identity;
use unibus_raft_store::env::{Env, spawn};

use crate::fanout::{Burst, Mailbox, Registry};
use crate::service::{Counters, Failure};
use crate::shard::Shards;
use lease::{LeaseUse, Leases};
use listeners::{Listener, Listeners};
use outbox::Outbox;

/// Ephemeral messages of this node. Clones share everything.
pub struct Ephemeral<E: Env> {
    inner: Arc<Inner<E>>,
}

impl<E: Env> Clone for Ephemeral<E> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<E: Env> {
    env: E,
    identity: Identity,
    shards: Shards<E>,
    counters: Arc<Counters>,
    leases: Arc<Leases<E>>,
    listeners: Arc<Listeners>,
    outboxes: Mutex<BTreeMap<NodeId, Arc<Outbox>>>,
    /// Closed when the node stops.
    running: Semaphore,
}

/// A subscription's hold on a room; ends when it is dropped.
pub struct Listening<E: Env> {
    _listener: Listener,
    leases: [LeaseUse<E>; 3],
}

impl<E: Env> Listening<E> {
    /// Whether the leases hold, without a break since it began.
    pub fn holds(&self) -> bool {
        self.leases.iter().all(LeaseUse::holds)
    }
}

impl<E: Env> Ephemeral<E> {
    /// Starts leases and streams.
    pub fn start(
        env: E,
        identity: Identity,
        shards: Shards<E>,
        registry: Arc<Registry>,
        counters: Arc<Counters>,
    ) -> Self {
        let leases = Leases::start(&shards, &registry);
        let inner = Inner {
            env,
            identity,
            shards,
            counters,
            leases,
            listeners: Arc::default(),
            outboxes: Mutex::default(),
            running: Semaphore::new(0),
        };
        let ephemeral = Self { inner: Arc::new(inner) };
        spawn::<E>(ephemeral.clone().keep_streams());
        ephemeral
    }

    /// Ends the streams.
    pub fn stop(&self) {
        self.inner.running.close();
    }

    /// When it resolves, this node may decide on a user's access to the rooms of a shard by its own replicas:
    /// at once while it holds the leases, else behind a read barrier of each group that has a say.
    pub async fn obtain(&self, shard: GroupId, user: &Handle) -> Result<(), Failure> {
        let groups = self.groups_of(shard, user);
        if groups.into_iter().all(|group| self.inner.leases.holds(group)) {
            return Ok(());
        }
        let obtained = groups.map(|group| self.inner.leases.obtain(&self.inner.shards, group));
        futures::future::try_join_all(obtained).await.map(drop)
    }

    /// Why a shard's ephemeral rooms are not served to a user here.
    pub fn refusal(&self, shard: GroupId, user: &Handle) -> Failure {
        let lapsed = self.groups_of(shard, user).into_iter().find(|&group| !self.inner.leases.holds(group));
        lease::refusal(&self.inner.shards, lapsed.unwrap_or(shard))
    }

    /// From now on messages of the room reach the mailbox of a user's subscription.
    pub fn listen(
        &self,
        (shard, room): (GroupId, RoomId),
        user: &Handle,
        mailbox: &Arc<Mailbox>,
    ) -> Result<Listening<E>, Failure> {
        let listener = self.inner.listeners.listen(room, mailbox)?;
        let leases = self.groups_of(shard, user).map(|group| self.inner.leases.use_lease(group));
        Ok(Listening { _listener: listener, leases })
    }

    /// Resolves when the nodes that have a stream to this one know what it listens to, or soon.
    pub async fn told(&self) {
        self.inner.listeners.told::<E>().await;
    }

    /// Nodes that are told what this one listens to, and have confirmed it.
    pub fn told_nodes(&self) -> usize {
        self.inner.listeners.told_nodes()
    }

    /// Sends messages to all nodes with subscribers of their room; to how many.
    pub fn send(&self, burst: &Burst) -> u32 {
        let mut nodes = u32::from(self.deliver(burst));
        let frame = encode(burst);
        for outbox in self.outboxes().values() {
            let Some(dropped) = outbox.offer(burst.room, &frame, burst.count) else { continue };
            nodes += 1;
            self.inner.counters.ephemeral_dropped(dropped);
        }
        nodes
    }

    /// Hands messages to the subscribers of this node; whether there are any.
    fn deliver(&self, burst: &Burst) -> bool {
        let (listeners, dropped) = self.inner.listeners.deliver(burst);
        self.inner.counters.ephemeral_dropped(dropped);
        listeners > 0
    }

    /// What decides on a user's access to a shard's rooms: the shard on members, meta on users, and the shard
    /// that has his list on his devices. The same one twice does no harm.
    fn groups_of(&self, shard: GroupId, user: &Handle) -> [GroupId; 3] {
        [shard, GroupId::META, self.inner.shards.of_user(user)]
    }

    fn outboxes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Outbox>>> {
        self.inner.outboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encode(burst: &Burst) -> Bytes {
    let batch = EphemeralBatch { room_id: burst.room.to_bytes(), count: burst.count, entries: burst.bytes.clone() };
    EphemeralFrame { frame: Some(Frame::Batch(batch)) }.encode_to_vec().into()
}
