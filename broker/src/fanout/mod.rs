//! From applied entries to the subscribers of this node.
//!
//! One task per group takes the group's events in log order and puts them into the [`Mailbox`]es of the
//! subscriptions that they concern. Entries are shared, never copied, and a mailbox is bounded: one that
//! is full drops entries and remembers of which rooms, and the subscription reads those from the
//! segments. So a slow subscriber costs a node its mailbox and nothing else, and loses nothing.

mod mailbox;
mod registry;

use std::cell::OnceCell;
use std::sync::Arc;

use unibus_machine::Event;
use unibus_proto::id::{GroupId, RoomId};
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
        for event in &entry.events {
            match event {
                Event::RoomCreated { room } => announce(&shards, &registry, group, *room),
                // Meta may be behind the shard: whoever subscribed in between found the room in neither.
                Event::DirectoryChanged { room, shard, .. } => announce(&shards, &registry, *shard, *room),
                event => dispatch(&registry, event),
            }
        }
    }
}

fn dispatch(registry: &Registry, event: &Event) {
    match event {
        Event::Appended { room, deliveries, .. } => {
            let room = *room;
            let shared = OnceCell::new();
            registry.to_room(room, || {
                let deliveries = shared.get_or_init(|| Arc::from(&deliveries[..]));
                Item::Entries { room, deliveries: Arc::clone(deliveries) }
            });
        }
        Event::MemberChanged { room, user, role } => {
            let (room, is_member) = (*room, role.is_some());
            registry.to_user(user, || Item::Member { room, is_member });
        }
        Event::UserChanged { user } | Event::DevicesChanged { user } => registry.to_user(user, || Item::Access),
        Event::RoomCreated { .. }
        | Event::DirectoryChanged { .. }
        | Event::SegmentCut { .. }
        | Event::SegmentSealed { .. }
        | Event::SegmentDropped { .. } => {}
    }
}

/// Tells the members of a new room, as far as its shard has it here, so that their filters pick it up.
fn announce<E: Env>(shards: &Shards<E>, registry: &Registry, group: GroupId, room: RoomId) {
    let Ok(replica) = shards.group(group) else { return };
    for (user, _) in replica.view(|machine| machine.members(room, None, FOUNDERS_MAX)) {
        registry.to_user(&user, || Item::Member { room, is_member: true });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use unibus_machine::StoredDelivery;
    use unibus_proto::position::Sequence;
    use unibus_raft_store::AppliedEntry;

    use super::*;

    fn appended(room: RoomId, body: Bytes) -> Event {
        let delivery = StoredDelivery { sequence: Sequence(1), at_ms: 1, bytes: body };
        Event::Appended { segment: 0, room, deliveries: vec![delivery] }
    }

    #[test]
    fn a_subscriber_holds_on_to_nothing_but_his_rooms() {
        let registry = Arc::new(Registry::default());
        let (quiet, busy) = (RoomId([1; 16]), RoomId([2; 16]));
        let (mailbox, _woken) = Mailbox::new();
        let user = "alice".parse().expect("a handle");
        let mut registration = registry.register(&user, Arc::clone(&mailbox)).expect("there is room");
        registration.follow(quiet);
        mailbox.set_live(quiet);
        let body = Bytes::from(vec![0; 1 << 20]);
        let events = vec![appended(quiet, vec![1].into()), appended(busy, body.clone())];
        let entry = Arc::new(AppliedEntry { group: GroupId(1), index: 1, events, reset: false });
        entry.events.iter().for_each(|event| dispatch(&registry, event));
        drop(entry);
        assert!(body.is_unique(), "the other room's body is still held");
        assert_eq!(mailbox.pop().expect("queued").deliveries().len(), 1);
    }
}
