//! What waits for another node: bounded, and never in anybody's way.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;
use tokio::sync::{Semaphore, mpsc};
use unibus_proto::id::RoomId;
use unibus_proto::limits::{EPHEMERAL_QUEUE_BYTES_MAX, EPHEMERAL_ROOMS_PER_NODE_MAX};
use unibus_proto::peer::{EphemeralFrame, InterestFrame, ephemeral_frame::Frame};

/// What a queued frame costs beside its bytes.
const FRAME_BYTES: usize = 64;

/// The way to one peer: what it listens to, and frames for it.
pub struct Outbox {
    state: Mutex<State>,
    wake: mpsc::Sender<()>,
    /// Closed when the peer is no member any more.
    open: Semaphore,
}

#[derive(Default)]
struct State {
    /// What the peer's subscribers listen to; nothing while there is no stream.
    rooms: BTreeSet<RoomId>,
    queue: VecDeque<(Bytes, u32)>,
    bytes: usize,
    /// The newest word of the peer that is to be confirmed.
    confirm: Option<u64>,
}

impl Outbox {
    /// An empty one, and what wakes its owner.
    pub fn new() -> (Arc<Self>, mpsc::Receiver<()>) {
        let (wake, woken) = mpsc::channel(1);
        (Arc::new(Self { state: Mutex::default(), wake, open: Semaphore::new(0) }), woken)
    }

    /// Queues a frame with `count` messages if the peer listens to their room; how many older messages had
    /// to go for it.
    pub fn offer(&self, room: RoomId, frame: &Bytes, count: u32) -> Option<u64> {
        let mut state = self.state();
        if !state.rooms.contains(&room) {
            return None;
        }
        let (size, mut dropped) = (frame.len() + FRAME_BYTES, 0);
        while state.bytes + size > EPHEMERAL_QUEUE_BYTES_MAX {
            let Some((oldest, messages)) = state.queue.pop_front() else { break };
            state.bytes -= oldest.len() + FRAME_BYTES;
            dropped += u64::from(messages);
        }
        state.bytes += size;
        state.queue.push_back((frame.clone(), count));
        drop(state);
        self.wake.try_send(()).ok();
        Some(dropped)
    }

    /// Takes note of what the peer listens to; false when it says more than is allowed.
    pub fn learn(&self, said: InterestFrame) -> bool {
        let mut state = self.state();
        if said.anew {
            state.rooms.clear();
        }
        for room in said.remove.iter().filter_map(|room| RoomId::from_bytes(room).ok()) {
            state.rooms.remove(&room);
        }
        state.rooms.extend(said.add.iter().filter_map(|room| RoomId::from_bytes(room).ok()));
        state.confirm = Some(said.version);
        let is_within = state.rooms.len() <= EPHEMERAL_ROOMS_PER_NODE_MAX;
        drop(state);
        self.wake.try_send(()).ok();
        is_within
    }

    /// The next frame to send.
    pub fn next(&self) -> Option<Bytes> {
        let mut state = self.state();
        if let Some(version) = state.confirm.take() {
            return Some(EphemeralFrame { frame: Some(Frame::Confirmed(version)) }.encode_to_vec().into());
        }
        let (frame, _) = state.queue.pop_front()?;
        state.bytes -= frame.len() + FRAME_BYTES;
        Some(frame)
    }

    /// There is no stream any more; how many messages went with it.
    pub fn went_down(&self) -> u64 {
        let lost = std::mem::take(&mut *self.state());
        lost.queue.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// Ends it for good.
    pub fn close(&self) {
        self.open.close();
    }

    /// Whether it was ended for good.
    pub fn is_closed(&self) -> bool {
        self.open.is_closed()
    }

    /// Resolves when it is ended for good.
    pub async fn closed(&self) {
        drop(self.open.acquire().await);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: RoomId = RoomId([1; 16]);

    fn interest(version: u64, anew: bool, add: &[RoomId]) -> InterestFrame {
        InterestFrame { version, anew, add: add.iter().map(|room| room.to_bytes()).collect(), remove: vec![] }
    }

    #[test]
    fn only_what_the_peer_listens_to_is_queued() {
        let (outbox, mut woken) = Outbox::new();
        let frame = Bytes::from_static(b"x");
        assert_eq!(outbox.offer(ROOM, &frame, 1), None);
        assert!(outbox.learn(interest(1, true, &[ROOM])) && woken.try_recv().is_ok());
        assert_eq!(outbox.offer(ROOM, &frame, 1), Some(0));
        let first = EphemeralFrame::decode(outbox.next().expect("a frame")).expect("it is one");
        assert_eq!(first.frame, Some(Frame::Confirmed(1)));
        assert_eq!(outbox.next(), Some(frame.clone()));
        assert_eq!(outbox.next(), None);
        let remove = InterestFrame { version: 2, remove: vec![ROOM.to_bytes()], ..InterestFrame::default() };
        assert!(outbox.learn(remove));
        assert_eq!(outbox.offer(ROOM, &frame, 1), None);
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_counts_them() {
        let (outbox, _woken) = Outbox::new();
        outbox.learn(interest(1, true, &[ROOM]));
        outbox.next();
        let frame = |n: u8| Bytes::from(vec![n; EPHEMERAL_QUEUE_BYTES_MAX / 3]);
        let dropped: Vec<_> = (0..4).map(|n| outbox.offer(ROOM, &frame(n), 10)).collect();
        assert_eq!(dropped, [Some(0), Some(0), Some(10), Some(10)]);
        let left: Vec<_> = std::iter::from_fn(|| outbox.next()).map(|frame| frame[0]).collect();
        assert_eq!(left, [2, 3]);
        assert_eq!(outbox.state().bytes, 0);
    }

    #[test]
    fn without_a_stream_nobody_listens() {
        let (outbox, _woken) = Outbox::new();
        outbox.learn(interest(1, true, &[ROOM]));
        outbox.offer(ROOM, &Bytes::from_static(b"x"), 7);
        assert_eq!(outbox.went_down(), 7);
        assert_eq!(outbox.offer(ROOM, &Bytes::from_static(b"x"), 1), None);
        assert_eq!(outbox.next(), None);
    }

    #[test]
    fn what_a_peer_may_listen_to_is_bounded() {
        let (outbox, _woken) = Outbox::new();
        let room = |n: usize| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            RoomId(id)
        };
        let rooms: Vec<_> = (0..EPHEMERAL_ROOMS_PER_NODE_MAX).map(room).collect();
        assert!(outbox.learn(interest(1, true, &rooms)));
        assert!(!outbox.learn(interest(2, false, &[room(EPHEMERAL_ROOMS_PER_NODE_MAX)])));
    }
}
