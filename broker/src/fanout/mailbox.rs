//! The bounded queue of one subscription.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use unibus_proto::id::RoomId;
use unibus_proto::limits::SUBSCRIBER_QUEUE_BYTES_MAX;

use super::{Burst, Entries};

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
    /// Messages of an ephemeral room. They are nowhere else: what does not fit is lost.
    Ephemeral(Burst),
    /// A lease has lapsed: look whether those that the subscription rests on hold.
    Lease,
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Entries(entries) => ITEM_BYTES + entries.bytes.len(),
            Self::Ephemeral(burst) => ITEM_BYTES + burst.bytes.len(),
            Self::Member { .. } | Self::Access | Self::Reset | Self::Lease => 0,
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
    /// Items with their place in the order of both queues.
    queue: VecDeque<(u64, Item)>,
    bytes: usize,
    ephemeral: VecDeque<(u64, Burst)>,
    ephemeral_bytes: usize,
    last_place: u64,
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
        self.state().push(item);
        self.wake.try_send(()).ok();
    }

    /// Puts ephemeral messages in; how many older ones had to go when the bound was reached.
    pub fn push_burst(&self, burst: Burst) -> u64 {
        let lost = self.state().push_burst(burst);
        self.wake.try_send(()).ok();
        lost
    }

    /// Moves the next items to the end of `out`: about `bytes_max` bytes of entries, at least one item.
    pub fn take(&self, out: &mut VecDeque<Item>, bytes_max: usize) {
        let mut state = self.state();
        let (mut bytes, mut notices) = (0, 0);
        while bytes < bytes_max && notices < NOTICES_AT_ONCE {
            let Some(item) = state.pop() else { return };
            match &item {
                Item::Entries(_) | Item::Ephemeral(_) => bytes += item.bytes(),
                Item::Member { .. } | Item::Access | Item::Reset | Item::Lease => notices += 1,
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
    fn push(&mut self, item: Item) {
        let item = match item {
            Item::Ephemeral(burst) => {
                self.push_burst(burst);
                return;
            }
            item => item,
        };
        match &item {
            Item::Entries(entries) if !self.live.contains(&entries.room) => return,
            Item::Entries(entries) if self.bytes + item.bytes() > SUBSCRIBER_QUEUE_BYTES_MAX => {
                return self.drop_entries(entries.room);
            }
            Item::Entries(_) => self.bytes += item.bytes(),
            _ if self.notices >= NOTICES_MAX => return self.overrun = true,
            _ => self.notices += 1,
        }
        self.last_place += 1;
        self.queue.push_back((self.last_place, item));
    }

    fn push_burst(&mut self, burst: Burst) -> u64 {
        let (size, mut lost) = (ITEM_BYTES + burst.bytes.len(), 0);
        while self.ephemeral_bytes + size > SUBSCRIBER_QUEUE_BYTES_MAX {
            let Some((_, oldest)) = self.pop_burst() else { break };
            lost += u64::from(oldest.count);
        }
        self.ephemeral_bytes += size;
        self.last_place += 1;
        self.ephemeral.push_back((self.last_place, burst));
        lost
    }

    fn pop_burst(&mut self) -> Option<(u64, Burst)> {
        let (place, burst) = self.ephemeral.pop_front()?;
        self.ephemeral_bytes -= ITEM_BYTES + burst.bytes.len();
        Some((place, burst))
    }

    /// The next item of both queues.
    fn pop(&mut self) -> Option<Item> {
        let place = |front: Option<u64>| front.unwrap_or(u64::MAX);
        let other = place(self.queue.front().map(|(place, _)| *place));
        if place(self.ephemeral.front().map(|(place, _)| *place)) < other {
            return self.pop_burst().map(|(_, burst)| Item::Ephemeral(burst));
        }
        let (_, item) = self.queue.pop_front()?;
        match &item {
            Item::Entries(_) => self.bytes -= item.bytes(),
            _ => self.notices -= 1,
        }
        Some(item)
    }

    fn drop_entries(&mut self, also: RoomId) {
        let mut dropped = BTreeSet::from([also]);
        self.queue.retain(|(_, item)| match item {
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

    fn burst(n: u8, bytes: usize) -> Burst {
        Burst { room: ROOM, count: 10, bytes: vec![n; bytes].into() }
    }

    #[test]
    fn of_ephemeral_messages_the_oldest_are_dropped_and_counted_and_nothing_else_is() {
        let (mailbox, _woken) = Mailbox::new();
        mailbox.set_live(ROOM);
        assert_eq!(mailbox.push_burst(burst(1, SUBSCRIBER_QUEUE_BYTES_MAX / 2)), 0);
        mailbox.push(entries(ROOM, 1, SUBSCRIBER_QUEUE_BYTES_MAX / 2));
        mailbox.push(Item::Member { room: ROOM, is_member: false });
        assert_eq!(mailbox.push_burst(burst(2, SUBSCRIBER_QUEUE_BYTES_MAX / 3)), 0);
        assert_eq!(mailbox.push_burst(burst(3, SUBSCRIBER_QUEUE_BYTES_MAX / 3)), 10, "the first goes");
        let words = taken(&mailbox, usize::MAX).into_iter().map(|item| match item {
            Item::Ephemeral(burst) => format!("burst {}", burst.bytes[0]),
            Item::Entries(entries) => format!("entry {}", entries.first),
            other => format!("{other:?}"),
        });
        let member = Item::Member { room: ROOM, is_member: false };
        let expected = ["entry 1".into(), format!("{member:?}"), "burst 2".into(), "burst 3".into()];
        assert_eq!(words.collect::<Vec<_>>(), expected, "in the order in which they came");
        let state = mailbox.state();
        assert_eq!((state.bytes, state.ephemeral_bytes, state.notices), (0, 0, 0));
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
