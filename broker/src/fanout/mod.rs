//! From applied entries to the subscribers of this node.
//!
//! One task per group takes the group's events in log order and puts them into the [`Mailbox`]es of the
//! subscriptions that they concern. Entries are encoded once and shared, those that wait together are
//! joined, and a mailbox is bounded: one that is full drops entries and remembers of which rooms, and the
//! subscription reads those from the segments. So a slow subscriber costs a node its mailbox and nothing
//! else, and loses nothing.

mod entries;
mod mailbox;
mod registry;

use std::sync::Arc;

use unibus_machine::Event;
use unibus_proto::id::{GroupId, RoomId};
use unibus_raft_store::AppliedEntry;
use unibus_raft_store::env::{Env, spawn};

use crate::shard::Shards;
pub use entries::{Burst, CHUNK_BYTES, Entries, Joiner};
pub use mailbox::{Item, Mailbox};
pub use registry::{Registration, Registry};

/// Members of a new room that are told of it; it has one until others are added, who are told by that.
const FOUNDERS_MAX: usize = 100;
/// Applied log entries that are looked at together.
const AT_ONCE: usize = 64;

/// Starts a fan-out task per group.
pub fn start<E: Env>(shards: &Shards<E>, registry: &Arc<Registry>) {
    for group in shards.ids() {
        spawn::<E>(run(shards.clone(), Arc::clone(registry), group));
    }
}

async fn run<E: Env>(shards: Shards<E>, registry: Arc<Registry>, group: GroupId) {
    let Ok(replica) = shards.group(group) else { return };
    let mut events = replica.subscribe_events();
    let mut applied = Vec::with_capacity(AT_ONCE);
    while events.recv_many(&mut applied, AT_ONCE).await > 0 {
        dispatch(&registry, &applied, |event| notify(&shards, &registry, group, event));
        applied.clear();
    }
}

/// Hands out what was applied, in its order.
fn dispatch(registry: &Registry, applied: &[Arc<AppliedEntry>], notify: impl Fn(&Event)) {
    let mut joiner = Joiner::default();
    for entry in applied {
        if entry.reset {
            deliver(registry, joiner.finish());
            registry.to_all(|| Item::Reset);
        }
        for event in &entry.events {
            match event {
                Event::Appended { room, deliveries, .. } => {
                    // Whoever follows it from now on reads the segments first, and they have these already.
                    if registry.is_followed(*room) {
                        deliveries.iter().for_each(|delivery| deliver(registry, joiner.add(*room, delivery)));
                    }
                }
                event => {
                    deliver(registry, joiner.finish());
                    notify(event);
                }
            }
        }
    }
    deliver(registry, joiner.finish());
}

fn deliver(registry: &Registry, entries: Option<Entries>) {
    if let Some(entries) = entries {
        registry.to_room(&entries);
    }
}

fn notify<E: Env>(shards: &Shards<E>, registry: &Registry, group: GroupId, event: &Event) {
    match event {
        Event::RoomCreated { room } => announce(shards, registry, group, *room),
        // Meta may be behind the shard: whoever subscribed in between found the room in neither.
        Event::DirectoryChanged { room, shard, .. } => announce(shards, registry, *shard, *room),
        Event::MemberChanged { room, user, role } => {
            let (room, is_member) = (*room, role.is_some());
            registry.to_user(user, || Item::Member { room, is_member });
        }
        Event::UserChanged { user } | Event::DevicesChanged { user } => registry.to_user(user, || Item::Access),
        Event::Appended { .. }
        | Event::SegmentCut { .. }
        | Event::SegmentSealed { .. }
        | Event::SegmentDropped { .. } => {}
    }
}

/// Tells the members of a new room, as far as its shard has it here, so that their filters pick it up.
fn announce<E: Env>(shards: &Shards<E>, registry: &Registry, group: GroupId, room: RoomId) {
    // Whoever registers after this reads what is applied, and the room is.
    if registry.count() == 0 {
        return;
    }
    let Ok(replica) = shards.group(group) else { return };
    for (user, _) in replica.view(|machine| machine.members(room, None, FOUNDERS_MAX)) {
        registry.to_user(&user, || Item::Member { room, is_member: true });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;
    use unibus_machine::StoredDelivery;
    use unibus_proto::position::Sequence;

    use super::*;

    const QUIET: RoomId = RoomId([1; 16]);
    const BUSY: RoomId = RoomId([2; 16]);

    fn appended(room: RoomId, sequence: u64, body: Bytes) -> Event {
        let delivery = StoredDelivery { sequence: Sequence(sequence), at_ms: 1, bytes: body };
        Event::Appended { segment: 0, room, deliveries: vec![delivery] }
    }

    fn applied(events: Vec<Event>) -> Arc<AppliedEntry> {
        Arc::new(AppliedEntry { group: GroupId(1), index: 1, events, reset: false })
    }

    /// A subscriber of the quiet room, and what it got.
    fn received(send: impl FnOnce(&Registry)) -> VecDeque<Item> {
        let registry = Arc::new(Registry::default());
        let (mailbox, _woken) = Mailbox::new();
        let user = "alice".parse().expect("a handle");
        let mut registration = registry.register(&user, Arc::clone(&mailbox)).expect("there is room");
        registration.follow(QUIET);
        mailbox.set_live(QUIET);
        send(&registry);
        let mut items = VecDeque::new();
        mailbox.take(&mut items, usize::MAX);
        items
    }

    #[test]
    fn a_subscriber_holds_on_to_nothing_but_his_rooms() {
        let body = Bytes::from(vec![0; 1 << 20]);
        let events = vec![appended(QUIET, 1, vec![1].into()), appended(BUSY, 1, body.clone())];
        let items = received(|registry| dispatch(registry, &[applied(events)], |_| {}));
        assert!(body.is_unique(), "the other room's body is still held");
        assert_eq!(items.len(), 1);
    }

    #[test]
    fn what_waits_together_is_joined_and_nothing_is_overtaken() {
        let entry = |sequence| appended(QUIET, sequence, vec![1].into());
        let user: unibus_proto::id::Handle = "alice".parse().expect("a handle");
        let change = Event::UserChanged { user: user.clone() };
        let log = [applied(vec![entry(1)]), applied(vec![entry(2), change, entry(3)]), applied(vec![entry(4)])];
        let items = received(|registry| {
            dispatch(registry, &log, |_| registry.to_user(&user, || Item::Access));
        });
        let words = items.iter().map(|item| match item {
            Item::Entries(entries) => format!("{}..{}", entries.first, entries.end()),
            other => format!("{other:?}"),
        });
        assert_eq!(words.collect::<Vec<_>>(), ["1..3", "Access", "3..5"]);
    }
}
