//! Who listens to what on this node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{Handle, RoomId};
use unibus_proto::limits::SUBSCRIPTIONS_MAX;
use unibus_raft_store::waits::{Waiter, Waits};

use super::Entries;
use super::mailbox::{Item, Mailbox};
use crate::service::Failure;

/// The hint when the node has too many subscriptions.
const FULL_HINT: Duration = Duration::from_secs(5);

type Mailboxes = BTreeMap<u64, Arc<Mailbox>>;

/// The subscriptions of this node, by room and by user.
#[derive(Default)]
pub struct Registry {
    waits: Waits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_id: u64,
    count: usize,
    by_room: BTreeMap<RoomId, Mailboxes>,
    by_user: BTreeMap<Handle, Mailboxes>,
}

/// A subscription's place in the registry; ends when it is dropped.
pub struct Registration {
    registry: Arc<Registry>,
    id: u64,
    user: Handle,
    mailbox: Arc<Mailbox>,
    rooms: std::collections::BTreeSet<RoomId>,
    _waiter: Waiter,
}

impl Registry {
    /// A registry whose subscriptions are counted in `waits`.
    pub fn new(waits: Waits) -> Self {
        Self { waits, state: Mutex::default() }
    }

    /// Adds a subscription of `user`, which follows no room yet.
    pub fn register(self: &Arc<Self>, user: &Handle, mailbox: Arc<Mailbox>) -> Result<Registration, Failure> {
        let mut state = self.state();
        if state.count >= SUBSCRIPTIONS_MAX {
            let message = format!("subscribe: this node has {SUBSCRIPTIONS_MAX} subscriptions, its limit; use another");
            return Err(Failure::new(ErrorCode::Overloaded, message).after(FULL_HINT));
        }
        state.count += 1;
        state.last_id += 1;
        let id = state.last_id;
        state.by_user.entry(user.clone()).or_default().insert(id, Arc::clone(&mailbox));
        let (rooms, _waiter) = (Default::default(), self.waits.enter());
        Ok(Registration { registry: Arc::clone(self), id, user: user.clone(), mailbox, rooms, _waiter })
    }

    /// Open subscriptions.
    pub fn count(&self) -> usize {
        self.state().count
    }

    /// Whether anybody follows a room.
    pub fn is_followed(&self, room: RoomId) -> bool {
        self.state().by_room.contains_key(&room)
    }

    /// Puts entries into the mailboxes that follow their room.
    pub fn to_room(&self, entries: &Entries) {
        if let Some(mailboxes) = self.state().by_room.get(&entries.room) {
            mailboxes.values().for_each(|mailbox| mailbox.push(Item::Entries(entries.clone())));
        }
    }

    /// Puts an item into the mailboxes of a user.
    pub fn to_user(&self, user: &Handle, item: impl Fn() -> Item) {
        if let Some(mailboxes) = self.state().by_user.get(user) {
            mailboxes.values().for_each(|mailbox| mailbox.push(item()));
        }
    }

    /// Puts an item into all mailboxes.
    pub fn to_all(&self, item: impl Fn() -> Item) {
        self.state().by_user.values().flat_map(Mailboxes::values).for_each(|mailbox| mailbox.push(item()));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    /// From now on entries of the room reach the mailbox, as far as it wants them.
    pub fn follow(&mut self, room: RoomId) {
        self.rooms.insert(room);
        let mut state = self.registry.state();
        state.by_room.entry(room).or_default().insert(self.id, Arc::clone(&self.mailbox));
    }

    /// The opposite.
    pub fn unfollow(&mut self, room: RoomId) {
        self.rooms.remove(&room);
        remove(&mut self.registry.state().by_room, &room, self.id);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.registry.state();
        state.count -= 1;
        remove(&mut state.by_user, &self.user, self.id);
        for room in &self.rooms {
            remove(&mut state.by_room, room, self.id);
        }
    }
}

fn remove<K: Ord>(map: &mut BTreeMap<K, Mailboxes>, key: &K, id: u64) {
    if let Some(mailboxes) = map.get_mut(key) {
        mailboxes.remove(&id);
        if mailboxes.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_registration_leaves_nothing_behind() {
        let registry = Arc::new(Registry::default());
        let alice: Handle = "alice".parse().expect("a handle");
        let room = RoomId([1; 16]);
        let (mailbox, _woken) = Mailbox::new();
        let mut registration = registry.register(&alice, Arc::clone(&mailbox)).expect("there is room");
        registration.follow(room);
        registry.to_user(&alice, || Item::Access);
        assert!(registry.is_followed(room));
        drop(registration);
        assert_eq!(registry.count(), 0);
        let state = registry.state();
        assert!(state.by_room.is_empty() && state.by_user.is_empty());
    }

    #[test]
    fn the_number_of_subscriptions_is_bounded() {
        let registry = Arc::new(Registry::default());
        let alice: Handle = "alice".parse().expect("a handle");
        let (mailbox, _woken) = Mailbox::new();
        let add = || registry.register(&alice, Arc::clone(&mailbox));
        let all: Vec<_> = (0..SUBSCRIPTIONS_MAX).map(|_| add().expect("there is room")).collect();
        assert_eq!(add().err().expect("it is full").code, ErrorCode::Overloaded);
        drop(all);
        assert!(add().is_ok());
    }
}
