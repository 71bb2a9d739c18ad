//! The bounded queue of one subscription.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use unibus_proto::id::RoomId;
use unibus_proto::limits::SUBSCRIBER_QUEUE_BYTES_MAX;

use super::Entries;

/// Notices about members and access that may wait: beyond it the subscription is closed, resumable.
const NOTICES_MAX: usize = 10_000;
/// What a queued item costs beside the bytes that it holds on to.
const ITEM_BYTES: usize = 128;
/// Notices that are taken out at once.
const NOTICES_AT_ONCE: usize = 64;

/// Something for a subscription, in log order within a group.
#[derive(Clone, Debug)]
pub enum Item {
    /// New entries of a room, shared by all its subscribers.
    Entries(Entries),
    /// From here on the subscriber is, or is no longer, a member of the room.
    Member {
        /// The room.
        room: RoomId,
        /// Whether he is one.
        is_member: bool,
    },
    /// The subscriber's user or devices changed: check the sign-in again.
    Access,
    /// A snapshot took the place of entries: anything may have changed, look at everything again.
    Reset,
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Entries(entries) => ITEM_BYTES + entries.bytes.len(),
            Self::Member { .. } | Self::Access | Self::Reset => 0,
        }
    }
}

/// The queue of one subscription: filled by the fan-out, emptied by the subscriber's stream.
pub struct Mailbox {
    state: Mutex<State>,
    wake: mpsc::Sender<()>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Item>,
    bytes: usize,
    notices: usize,
    /// Rooms whose entries are wanted here; of the others the subscriber reads the segments.
    live: BTreeSet<RoomId>,
    /// Rooms of which entries were dropped.
    dropped: BTreeSet<RoomId>,
    overrun: bool,
}

impl Mailbox {
    /// An empty mailbox, and what wakes its owner after something was put in.
    pub fn new() -> (Arc<Self>, mpsc::Receiver<()>) {
        let (wake, woken) = mpsc::channel(1);
        (Arc::new(Self { state: Mutex::default(), wake }), woken)
    }

    /// Puts an item in. Entries of rooms that are not live are ignored; when the bound is reached, all
    /// queued entries are dropped and their rooms are no longer live.
    pub fn push(&self, item: Item) {
        let mut state = self.state();
        match &item {
            Item::Entries(entries) if !state.live.contains(&entries.room) => return,
            Item::Entries(entries) if state.bytes + item.bytes() > SUBSCRIBER_QUEUE_BYTES_MAX => {
                state.drop_entries(entries.room);
            }
            Item::Entries(_) => {
                state.bytes += item.bytes();
                state.queue.push_back(item);
            }
            Item::Member { .. } | Item::Access | Item::Reset if state.notices >= NOTICES_MAX => state.overrun = true,
            Item::Member { .. } | Item::Access | Item::Reset => {
                state.notices += 1;
                state.queue.push_back(item);
            }
        }
        drop(state);
        self.wake.try_send(()).ok();
    }

    /// Moves the next items to the end of `out`: about `bytes_max` bytes of entries, at least one item.
    pub fn take(&self, out: &mut VecDeque<Item>, bytes_max: usize) {
        let mut state = self.state();
        let (mut bytes, mut notices) = (0, 0);
        while bytes < bytes_max && notices < NOTICES_AT_ONCE {
            let Some(item) = state.queue.pop_front() else { return };
            match &item {
                Item::Entries(_) => {
                    bytes += item.bytes();
                    state.bytes -= item.bytes();
                }
                Item::Member { .. } | Item::Access | Item::Reset => {
                    notices += 1;
                    state.notices -= 1;
                }
            }
            out.push_back(item);
        }
    }

    /// From now on entries of the room are put in.
    pub fn set_live(&self, room: RoomId) {
        self.state().live.insert(room);
    }

    /// From now on entries of the room are ignored.
    pub fn set_not_live(&self, room: RoomId) {
        self.state().live.remove(&room);
    }

    /// Rooms of which entries were dropped since the last call.
    pub fn take_dropped(&self) -> BTreeSet<RoomId> {
        std::mem::take(&mut self.state().dropped)
    }

    /// Whether notices were lost: the subscription cannot go on.
    pub fn is_overrun(&self) -> bool {
        self.state().overrun
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn drop_entries(&mut self, also: RoomId) {
        let mut dropped = BTreeSet::from([also]);
        self.queue.retain(|item| match item {
            Item::Entries(entries) => {
                dropped.insert(entries.room);
                false
            }
            _ => true,
        });
        self.live.retain(|room| !dropped.contains(room));
        self.dropped.append(&mut dropped);
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: RoomId = RoomId([1; 16]);

    fn entries(room: RoomId, sequence: u64, bytes: usize) -> Item {
        Item::Entries(Entries { room, first: sequence, count: 1, bytes: vec![0; bytes].into() })
    }

    fn taken(mailbox: &Mailbox, bytes_max: usize) -> VecDeque<Item> {
        let mut out = VecDeque::new();
        mailbox.take(&mut out, bytes_max);
        out
    }

    fn sequences(items: &VecDeque<Item>) -> Vec<u64> {
        let first = |item: &Item| match item {
            Item::Entries(entries) => Some(entries.first),
            _ => None,
        };
        items.iter().filter_map(first).collect()
    }

    #[test]
    fn only_live_rooms_are_queued() {
        let (mailbox, mut woken) = Mailbox::new();
        mailbox.push(entries(ROOM, 1, 10));
        assert!(taken(&mailbox, 1).is_empty());
        mailbox.set_live(ROOM);
        mailbox.push(entries(ROOM, 2, 10));
        assert!(woken.try_recv().is_ok());
        assert_eq!(sequences(&taken(&mailbox, 1)), [2]);
    }

    #[test]
    fn as_much_is_taken_as_was_asked_for_and_at_least_one() {
        let (mailbox, _woken) = Mailbox::new();
        mailbox.set_live(ROOM);
        (1..=5).for_each(|sequence| mailbox.push(entries(ROOM, sequence, 1_000)));
        mailbox.push(Item::Access);
        assert_eq!(sequences(&taken(&mailbox, 1)), [1]);
        assert_eq!(sequences(&taken(&mailbox, 2 * (1_000 + ITEM_BYTES))), [2, 3]);
        assert_eq!(taken(&mailbox, usize::MAX).len(), 3);
        let state = mailbox.state();
        assert_eq!((state.bytes, state.notices), (0, 0));
    }

    #[test]
    fn a_full_mailbox_drops_entries_keeps_notices_and_says_which_rooms() {
        let (mailbox, _woken) = Mailbox::new();
        let other = RoomId([2; 16]);
        mailbox.set_live(ROOM);
        mailbox.set_live(other);
        mailbox.push(entries(ROOM, 1, SUBSCRIBER_QUEUE_BYTES_MAX / 2));
        mailbox.push(Item::Member { room: other, is_member: false });
        mailbox.push(entries(ROOM, 2, SUBSCRIBER_QUEUE_BYTES_MAX / 2));
        assert_eq!(mailbox.take_dropped(), BTreeSet::from([ROOM]));
        assert!(matches!(taken(&mailbox, 1).pop_front(), Some(Item::Member { .. })));
        mailbox.push(entries(ROOM, 3, 1));
        assert!(taken(&mailbox, 1).is_empty(), "the room is read from the segments now");
        mailbox.push(entries(other, 1, 1));
        assert_eq!(taken(&mailbox, 1).len(), 1, "the other room was not hurt");
    }

    #[test]
    fn too_many_notices_overrun() {
        let (mailbox, _woken) = Mailbox::new();
        (0..NOTICES_MAX).for_each(|_| mailbox.push(Item::Access));
        assert!(!mailbox.is_overrun());
        mailbox.push(Item::Access);
        assert!(mailbox.is_overrun());
    }
}
