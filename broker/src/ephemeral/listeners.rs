//! Who listens to ephemeral rooms on this node, and what the other nodes have been told of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use unibus_proto::code::ErrorCode;
use unibus_proto::id::RoomId;
use unibus_proto::limits::EPHEMERAL_ROOMS_PER_NODE_MAX;
use unibus_proto::peer::InterestFrame;
use unibus_raft_store::env::{Env, timeout};

use crate::fanout::{Burst, Mailbox};
use crate::service::Failure;

/// Rooms of one frame: 180 KiB.
const ROOMS_PER_FRAME: usize = 10_000;
/// A node that does not confirm within this time is not waited for.
const TOLD_PATIENCE: Duration = Duration::from_millis(500);
/// The hint when too many rooms are listened to.
const FULL_HINT: Duration = Duration::from_secs(5);

/// The listeners of this node.
#[derive(Default)]
pub struct Listeners {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_id: u64,
    rooms: BTreeMap<RoomId, BTreeMap<u64, Arc<Mailbox>>>,
    feeds: BTreeMap<u64, FeedState>,
}

/// What one node is told.
struct FeedState {
    wake: mpsc::Sender<()>,
    /// Not told yet: whether a room is listened to.
    changes: BTreeMap<RoomId, bool>,
    /// What was told before is void.
    anew: bool,
    /// Of the last frame.
    version: u64,
    confirmed: u64,
    waiting: Vec<(u64, oneshot::Sender<()>)>,
}

/// A mailbox's place among the listeners of a room; ends when it is dropped.
pub struct Listener {
    listeners: Arc<Listeners>,
    room: RoomId,
    id: u64,
}

/// The words for one node; ends when it is dropped.
pub struct Feed {
    listeners: Arc<Listeners>,
    id: u64,
}

impl Listeners {
    /// Adds a mailbox to the listeners of a room.
    pub fn listen(self: &Arc<Self>, room: RoomId, mailbox: &Arc<Mailbox>) -> Result<Listener, Failure> {
        let mut state = self.state();
        if !state.rooms.contains_key(&room) {
            if state.rooms.len() >= EPHEMERAL_ROOMS_PER_NODE_MAX {
                let most = EPHEMERAL_ROOMS_PER_NODE_MAX;
                let message =
                    format!("subscribe: {most} ephemeral rooms are listened to on this node, its limit; use another");
                return Err(Failure::new(ErrorCode::Overloaded, message).after(FULL_HINT));
            }
            state.change(room, true);
        }
        state.last_id += 1;
        let id = state.last_id;
        state.rooms.entry(room).or_default().insert(id, Arc::clone(mailbox));
        Ok(Listener { listeners: Arc::clone(self), room, id })
    }

    /// Hands messages to all who listen; how many do, and how many older messages had to go for it.
    pub fn deliver(&self, burst: &Burst) -> (usize, u64) {
        let state = self.state();
        let Some(mailboxes) = state.rooms.get(&burst.room) else { return (0, 0) };
        let dropped = mailboxes.values().map(|mailbox| mailbox.push_burst(burst.clone()));
        (mailboxes.len(), dropped.sum())
    }

    /// Begins to tell a node; what wakes the one who does it.
    pub fn feed(self: &Arc<Self>) -> (Feed, mpsc::Receiver<()>) {
        let (wake, woken) = mpsc::channel(1);
        let mut state = self.state();
        state.last_id += 1;
        let id = state.last_id;
        let changes = state.rooms.keys().map(|&room| (room, true)).collect();
        let feed = FeedState { wake, changes, anew: true, version: 0, confirmed: 0, waiting: Vec::new() };
        state.feeds.insert(id, feed);
        (Feed { listeners: Arc::clone(self), id }, woken)
    }

    /// Resolves when each node that is being told has confirmed what is listened to now, or soon.
    pub async fn told<E: Env>(&self) {
        let waiting: Vec<_> = self.state().feeds.values_mut().filter_map(FeedState::wait).collect();
        if !waiting.is_empty() {
            // A feed that ends drops its side: nobody is told through it any more.
            timeout::<E, _>(TOLD_PATIENCE, futures::future::join_all(waiting)).await;
        }
    }

    /// Nodes that have confirmed what is listened to now.
    pub fn told_nodes(&self) -> usize {
        self.state().feeds.values().filter(|feed| feed.confirmed > 0 && feed.is_told()).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn change(&mut self, room: RoomId, is_wanted: bool) {
        for feed in self.feeds.values_mut() {
            feed.changes.insert(room, is_wanted);
            // A node that does not listen for long: all that counts is told anew.
            if feed.changes.len() > 2 * EPHEMERAL_ROOMS_PER_NODE_MAX {
                feed.anew = true;
                feed.changes = self.rooms.keys().map(|&room| (room, true)).collect();
                // It is not among them yet, or no longer.
                feed.changes.insert(room, is_wanted);
            }
            feed.wake.try_send(()).ok();
        }
    }
}

impl FeedState {
    fn frame(&mut self) -> InterestFrame {
        self.version += 1;
        let mut frame =
            InterestFrame { version: self.version, anew: std::mem::take(&mut self.anew), ..InterestFrame::default() };
        for _ in 0..ROOMS_PER_FRAME {
            let Some((room, is_wanted)) = self.changes.pop_first() else { break };
            let list = if is_wanted { &mut frame.add } else { &mut frame.remove };
            list.push(room.to_bytes());
        }
        if !self.changes.is_empty() {
            self.wake.try_send(()).ok();
        }
        frame
    }

    /// The frame with which everything is told.
    fn last_version(&self) -> u64 {
        self.version + self.changes.len().div_ceil(ROOMS_PER_FRAME) as u64
    }

    fn is_told(&self) -> bool {
        self.last_version() <= self.confirmed
    }

    fn wait(&mut self) -> Option<oneshot::Receiver<()>> {
        if self.is_told() {
            return None;
        }
        let version = self.last_version();
        let (confirmed, waiting) = oneshot::channel();
        self.waiting.retain(|(_, waiting)| !waiting.is_closed());
        self.waiting.push((version, confirmed));
        Some(waiting)
    }

    fn confirm(&mut self, version: u64) {
        self.confirmed = self.confirmed.max(version);
        for (at, waiting) in std::mem::take(&mut self.waiting) {
            if at > self.confirmed {
                self.waiting.push((at, waiting));
            } else {
                waiting.send(()).ok();
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.listeners.state();
        let Some(mailboxes) = state.rooms.get_mut(&self.room) else { return };
        mailboxes.remove(&self.id);
        if mailboxes.is_empty() {
            state.rooms.remove(&self.room);
            state.change(self.room, false);
        }
    }
}

impl Feed {
    /// What is to be told next; nothing new is a sign of life.
    pub fn frame(&self) -> InterestFrame {
        self.listeners.state().feeds.get_mut(&self.id).map(FeedState::frame).unwrap_or_default()
    }

    /// The node has taken note of all up to this frame.
    pub fn confirm(&self, version: u64) {
        if let Some(feed) = self.listeners.state().feeds.get_mut(&self.id) {
            feed.confirm(version);
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.listeners.state().feeds.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ephemeral::outbox::Outbox;

    const ROOM: RoomId = RoomId([1; 16]);

    #[test]
    fn a_node_is_told_when_the_first_comes_and_when_the_last_goes() {
        let listeners = Arc::<Listeners>::default();
        let (mailbox, _woken) = Mailbox::new();
        let before = listeners.listen(RoomId([9; 16]), &mailbox).expect("there is room");
        let (feed, mut woken) = listeners.feed();
        let first = feed.frame();
        assert_eq!((first.version, first.anew, first.add.len()), (1, true, 1));
        let one = listeners.listen(ROOM, &mailbox).expect("there is room");
        let two = listeners.listen(ROOM, &mailbox).expect("there is room");
        assert!(woken.try_recv().is_ok());
        let added = feed.frame();
        assert_eq!((added.version, added.anew, added.add, added.remove), (2, false, vec![ROOM.to_bytes()], vec![]));
        drop(one);
        assert!(woken.try_recv().is_err(), "somebody listens still");
        drop(two);
        assert!(woken.try_recv().is_ok());
        assert_eq!(feed.frame().remove, [ROOM.to_bytes()]);
        drop((before, feed));
        let state = listeners.state();
        assert!(state.rooms.is_empty() && state.feeds.is_empty());
    }

    #[test]
    fn who_waits_is_woken_when_what_he_added_is_confirmed() {
        let listeners = Arc::<Listeners>::default();
        let (mailbox, _woken) = Mailbox::new();
        let (feed, _feed_woken) = listeners.feed();
        feed.frame();
        feed.confirm(1);
        assert!(listeners.state().feeds.values_mut().all(|feed| feed.wait().is_none()), "nothing to wait for");
        let _listener = listeners.listen(ROOM, &mailbox).expect("there is room");
        let mut waiting = listeners.state().feeds.values_mut().find_map(FeedState::wait).expect("it is not told yet");
        feed.frame();
        feed.confirm(1);
        assert_eq!(waiting.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        feed.confirm(2);
        assert_eq!(waiting.try_recv(), Ok(()));
    }

    /// P12: what waits for a node is bounded, and what it was told before is not forgotten for it.
    #[test]
    fn p12_a_node_that_does_not_listen_for_long_is_told_anew_all_that_counts() {
        let listeners = Arc::<Listeners>::default();
        let (mailbox, _woken) = Mailbox::new();
        let (feed, _feed_woken) = listeners.feed();
        let (outbox, _outbox_woken) = Outbox::new();
        let _listener = listeners.listen(ROOM, &mailbox).expect("there is room");
        assert!(outbox.learn(feed.frame()));
        for n in 0..=2 * EPHEMERAL_ROOMS_PER_NODE_MAX {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            drop(listeners.listen(RoomId(id), &mailbox).expect("there is room"));
            let waiting = listeners.state().feeds.values().map(|feed| feed.changes.len()).max();
            assert!(waiting.is_some_and(|changes| changes <= 2 * EPHEMERAL_ROOMS_PER_NODE_MAX), "{waiting:?}");
        }
        while listeners.state().feeds.values().any(|feed| !feed.changes.is_empty()) {
            assert!(outbox.learn(feed.frame()));
        }
        assert_eq!(outbox.offer(ROOM, &bytes::Bytes::new(), 1), Some(0), "it is listened to all the time");
    }

    #[test]
    fn many_rooms_are_told_in_several_frames() {
        let listeners = Arc::<Listeners>::default();
        let (mailbox, _woken) = Mailbox::new();
        let listen = |n: usize| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            listeners.listen(RoomId(id), &mailbox).expect("there is room")
        };
        let all: Vec<_> = (0..ROOMS_PER_FRAME + 1).map(listen).collect();
        let (feed, mut woken) = listeners.feed();
        let first = feed.frame();
        assert!(woken.try_recv().is_ok(), "there is more");
        let second = feed.frame();
        assert_eq!((first.anew, first.add.len(), second.anew, second.add.len()), (true, ROOMS_PER_FRAME, false, 1));
        drop(all);
    }
}
