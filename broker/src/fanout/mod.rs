//! From applied entries to the subscribers of this node.
//!
//! One task per group takes the group's events in log order and puts them into the [`Mailbox`]es of the
//! subscriptions that they concern. Entries are shared, never copied, and a mailbox is bounded: one that
//! is full drops entries and remembers of which rooms, and the subscription reads those from the
//! segments. So a slow subscriber costs a node its mailbox and nothing else, and loses nothing.

mod mailbox;
mod registry;

use std::sync::Arc;

use unibus_machine::Event;
use unibus_proto::id::{GroupId, RoomId};
use unibus_raft_store::AppliedEntry;
use unibus_raft_store::env::{Env, spawn};

use crate::shard::Shards;
pub use mailbox::{Item, Mailbox};
pub use registry::{Registration, Registry};

/// Members of a new room that are told of it; it has one until others are added, who are told by that.
const FOUNDERS_MAX: usize = 100;

/// Starts a fan-out task per group.
pub fn start<E: Env>(shards: &Shards<E>, registry: &Arc<Registry>) {
    for group in shards.ids() {
        spawn::<E>(run(shards.clone(), Arc::clone(registry), group));
    }
}

async fn run<E: Env>(shards: Shards<E>, registry: Arc<Registry>, group: GroupId) {
    let Ok(replica) = shards.group(group) else { return };
    let mut entries = replica.subscribe_events();
    while let Some(entry) = entries.recv().await {
        if entry.reset {
            registry.to_all(|| Item::Reset);
        }
        for (at, event) in entry.events.iter().enumerate() {
            match event {
                Event::RoomCreated { room } => announce(&shards, &registry, group, *room),
                event => dispatch(&registry, &entry, at, event),
            }
        }
    }
}

fn dispatch(registry: &Registry, entry: &Arc<AppliedEntry>, at: usize, event: &Event) {
    match event {
        Event::Appended { room, .. } => registry.to_room(*room, || Item::entries(Arc::clone(entry), at)),
        Event::MemberChanged { room, user, role } => {
            let (room, is_member) = (*room, role.is_some());
            registry.to_user(user, || Item::Member { room, is_member });
        }
        Event::UserChanged { user } | Event::DevicesChanged { user } => registry.to_user(user, || Item::Access),
        Event::RoomCreated { .. }
        | Event::DirectoryChanged { .. }
        | Event::SegmentCut { .. }
        | Event::SegmentSealed { .. } => {}
    }
}

/// Tells the members of a new room, so that their filters pick it up.
fn announce<E: Env>(shards: &Shards<E>, registry: &Registry, group: GroupId, room: RoomId) {
    let Ok(replica) = shards.group(group) else { return };
    for (user, _) in replica.view(|machine| machine.members(room, None, FOUNDERS_MAX)) {
        registry.to_user(&user, || Item::Member { room, is_member: true });
    }
}
