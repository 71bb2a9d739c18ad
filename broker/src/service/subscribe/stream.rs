//! Carrying a subscription on: one element at a time, from the mailbox and from the segments in turn.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::RoomId;
use unibus_proto::v1::{CaughtUp, DeliveryBatch, Heartbeat, RoomPosition, SubscribeResponse, subscribe_response};
use unibus_raft_store::env::{Env, Instant, now, sleep, timeout};

use super::super::access::Wanted;
use super::super::{Failure, Outcome};
use super::{Mode, Subscription};
use crate::fanout::{CHUNK_BYTES, Entries, Item, Joiner};

/// Silence after which a sign of life is sent, and between two looks whether everything still holds.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Entries of one piece of history; small ones are counted in bytes long before.
const PIECE_ENTRIES_MAX: usize = 8_192;
/// Before the segments are asked again for what was announced but is not there yet.
const READ_AGAIN: Duration = Duration::from_millis(5);

impl<E: Env> Subscription<E> {
    /// The next element; `None` after the end. An error is the last element.
    pub async fn next(&mut self) -> Option<Outcome<SubscribeResponse>> {
        if self.ended {
            return None;
        }
        match self.advance().await {
            Ok(Some(response)) => Some(Ok(response)),
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(failure) => {
                self.ended = true;
                Some(Err(failure))
            }
        }
    }

    async fn advance(&mut self) -> Outcome<Option<SubscribeResponse>> {
        loop {
            if let Some(response) = self.out.pop_front() {
                return Ok(Some(response));
            }
            if self.caught_up && self.until_end {
                return Ok(None);
            }
            if self.targets == 0 && !self.caught_up {
                self.catch_up();
                continue;
            }
            self.service.check_running()?;
            self.check_fed()?;
            self.look_at_dropped()?;
            if self.audited.elapsed() >= HEARTBEAT {
                self.audit()?;
            }
            self.step().await?;
        }
    }

    /// A node without disk space hears of nothing new: the subscriber resumes on another one. What it asked this
    /// one for up to a point that is here, it gets here.
    fn check_fed(&self) -> Outcome<()> {
        let why = self.service.shards().starved().filter(|_| self.caught_up && self.taken.is_empty());
        why.map_or(Ok(()), |why| Err(Failure::new(ErrorCode::Draining, format!("subscribe: {why}"))))
    }

    /// Takes one item or reads one piece of history, in turn; waits when there is neither.
    async fn step(&mut self) -> Outcome<()> {
        self.history_turn = !self.history_turn;
        if self.history_turn
            && let Some(room) = self.behind.pop_front()
        {
            return self.read_history(room).await;
        }
        if self.taken.is_empty() {
            self.mailbox.take(&mut self.taken, CHUNK_BYTES);
        }
        if !self.taken.is_empty() {
            return self.take_all().await;
        }
        if self.behind.is_empty() {
            self.wait().await;
        }
        Ok(())
    }

    /// Entries up to the next notice: what was before it is handed out before it has its effect.
    async fn take_all(&mut self) -> Outcome<()> {
        while let Some(item) = self.taken.pop_front() {
            if !matches!(item, Item::Entries(_) | Item::Ephemeral(_)) && !self.out.is_empty() {
                self.taken.push_front(item);
                return Ok(());
            }
            self.take(item).await?;
        }
        Ok(())
    }

    async fn wait(&mut self) {
        let service = self.service.clone();
        let woken = async {
            tokio::select! {
                biased;
                () = service.stopped() => {}
                _ = self.woken.recv() => {}
            }
        };
        if timeout::<E, _>(HEARTBEAT, woken).await.is_none() {
            self.out.push_back(element(subscribe_response::Item::Heartbeat(Heartbeat {})));
        }
    }

    async fn take(&mut self, item: Item) -> Outcome<()> {
        match item {
            Item::Entries(entries) => {
                self.deliver_live(&entries);
                Ok(())
            }
            Item::Member { room, is_member: true } => self.joined(room).await,
            Item::Member { room, is_member: false } => self.left(room),
            Item::Access => self.service.reauthenticate_stream(&self.caller).await,
            Item::Reset => self.start_over().await,
            Item::Ephemeral(burst) => self.deliver_burst(burst),
            Item::Lease => self.look_at_leases(),
        }
    }

    fn deliver_live(&mut self, entries: &Entries) {
        let Some(followed) = self.rooms.get_mut(&entries.room) else { return };
        followed.wanted = followed.wanted.max(entries.end());
        let is_gap = entries.first > followed.next;
        match followed.mode {
            // The segments have what is missing. A joining room reads them next anyway.
            Mode::Live if is_gap => self.fall_behind(entries.room),
            Mode::Joining | Mode::Live if !is_gap => self.deliver(entries),
            Mode::Joining | Mode::Live | Mode::Behind | Mode::Left => {}
        }
    }

    /// Queues the entries from the next wanted one on.
    fn deliver(&mut self, entries: &Entries) {
        let Some(followed) = self.rooms.get_mut(&entries.room) else { return };
        let end = if self.until_end { followed.target.unwrap_or(followed.next) } else { u64::MAX };
        let Some(fresh) = entries.within(followed.next, end) else { return };
        followed.next = fresh.end();
        followed.may_move = false;
        self.service.counters().delivered(fresh.count as usize);
        if followed.target.is_some_and(|target| followed.next >= target) {
            followed.target = None;
            self.targets -= 1;
        }
        let subject = followed.subject.clone();
        self.hand_out(fresh.room.to_bytes(), subject, fresh.bytes);
    }

    /// Puts entries into the last batch if they fit, else into a new one.
    fn hand_out(&mut self, room_id: Bytes, subject: Arc<str>, chunk: Bytes) {
        let filled = self.filled_bytes + chunk.len();
        if let Some(SubscribeResponse { item: Some(subscribe_response::Item::Batch(last)) }) = self.out.back_mut()
            && last.room_id == room_id
            && filled <= CHUNK_BYTES
        {
            self.filled_bytes = filled;
            return last.push(chunk);
        }
        self.filled_bytes = chunk.len();
        let mut batch = DeliveryBatch::new(room_id, subject);
        batch.push(chunk);
        self.out.push_back(element(subscribe_response::Item::Batch(batch)));
    }

    /// Reads a piece of a room's history; at the head the room goes live.
    async fn read_history(&mut self, room: RoomId) -> Outcome<()> {
        let Some(followed) = self.rooms.get(&room) else { return Ok(()) };
        if !matches!(followed.mode, Mode::Behind | Mode::Joining) {
            return Ok(());
        }
        if self.until_end && followed.target.is_none() {
            return Ok(());
        }
        let (shard, next) = (followed.shard, followed.next);
        let entries = match self.service.read_timeline(shard, room, next, CHUNK_BYTES, PIECE_ENTRIES_MAX).await {
            Err(failure) if failure.code == ErrorCode::OutOfRange => return self.below_floor(room, failure),
            read => read?,
        };
        // What was read may lie behind a removal; the rows are at least as new as the segments, except
        // while a snapshot is being installed: then the piece is read again.
        let Some(access) = self.service.find_in_shards(&self.user, room) else { return self.left(room) };
        let is_certain = entries.last().is_none_or(|last| last.sequence.0 < access.row.next_sequence);
        if !is_certain || (entries.is_empty() && next < self.wanted(room)) {
            sleep::<E>(READ_AGAIN).await;
            self.behind.push_back(room);
            return Ok(());
        }
        if entries.is_empty() {
            self.join(room);
            return Ok(());
        }
        self.behind.push_back(room);
        Joiner::join(room, &entries).iter().for_each(|entries| self.deliver(entries));
        Ok(())
    }

    /// Retention was faster than the subscriber. Who asked for the earliest and was given nothing of the room
    /// yet gets what is the earliest now; for everybody else it would be a gap, and the subscription ends.
    fn below_floor(&mut self, room: RoomId, failure: Failure) -> Outcome<()> {
        let Some(access) = self.service.find_in_shards(&self.user, room) else { return self.left(room) };
        let Some(followed) = self.rooms.get_mut(&room) else { return Ok(()) };
        match access.row.floor {
            floor if followed.may_move && floor > followed.next => {
                followed.next = floor;
                self.targets -= usize::from(followed.target.take_if(|target| *target <= floor).is_some());
                self.behind.push_back(room);
                Ok(())
            }
            _ => Err(failure),
        }
    }

    fn wanted(&self, room: RoomId) -> u64 {
        self.rooms.get(&room).map_or(0, |followed| followed.wanted)
    }

    /// At the head: first the mailbox takes entries, then one more read finds what came in between.
    fn join(&mut self, room: RoomId) {
        let Some(followed) = self.rooms.get_mut(&room) else { return };
        if followed.mode == Mode::Joining {
            followed.mode = Mode::Live;
        } else {
            followed.mode = Mode::Joining;
            self.mailbox.set_live(room);
            self.behind.push_front(room);
        }
    }

    fn fall_behind(&mut self, room: RoomId) {
        self.mailbox.set_not_live(room);
        if let Some(followed) = self.rooms.get_mut(&room)
            && matches!(followed.mode, Mode::Live | Mode::Left)
        {
            followed.mode = Mode::Behind;
            self.behind.push_back(room);
        }
    }

    fn look_at_dropped(&mut self) -> Outcome<()> {
        if self.mailbox.is_overrun() {
            let message =
                "subscribe: too many changes of members wait for this subscriber; resume from the last positions";
            return Err(Failure::new(ErrorCode::Overloaded, message));
        }
        for room in self.mailbox.take_dropped() {
            match self.rooms.get_mut(&room) {
                // It waits in `behind`; the mailbox must be joined once more.
                Some(followed) if followed.mode == Mode::Joining => followed.mode = Mode::Behind,
                Some(followed) if followed.mode == Mode::Live => self.fall_behind(room),
                _ => {}
            }
        }
        Ok(())
    }

    async fn joined(&mut self, room: RoomId) -> Outcome<()> {
        match self.rooms.get(&room).map(|followed| followed.mode) {
            Some(Mode::Left) => {
                self.registration.follow(room);
                self.fall_behind(room);
                self.listen_again(room).await
            }
            Some(_) => Ok(()),
            None => self.pick_up(room).await,
        }
    }

    /// The user lost the room: nothing of it is delivered any more.
    fn left(&mut self, room: RoomId) -> Outcome<()> {
        let Some(followed) = self.rooms.get_mut(&room) else { return Ok(()) };
        (followed.mode, followed.listening) = (Mode::Left, None);
        self.targets -= usize::from(followed.target.take().is_some());
        self.mailbox.set_not_live(room);
        self.registration.unfollow(room);
        if self.single == Some(room) {
            let subject = followed.subject.parse()?;
            return Err(Wanted::Subject(subject).not_found());
        }
        Ok(())
    }

    /// Looks at each room again: whether it is still readable, and whether the mailbox missed something.
    fn audit(&mut self) -> Outcome<()> {
        self.audited = now::<E>();
        let rooms: Vec<RoomId> = self.rooms.keys().copied().collect();
        for room in rooms {
            let Some(followed) = self.rooms.get(&room) else { continue };
            let (mode, next) = (followed.mode, followed.next);
            match self.service.find_in_shards(&self.user, room) {
                None if mode != Mode::Left => self.left(room)?,
                Some(access) if mode == Mode::Live && access.row.next_sequence > next => self.fall_behind(room),
                _ => {}
            }
        }
        Ok(())
    }

    /// After a snapshot: the events in between are lost, so everything is looked at.
    async fn start_over(&mut self) -> Outcome<()> {
        self.audit()?;
        self.service.reauthenticate_stream(&self.caller).await?;
        if self.single.is_none() {
            for access in self.matching()? {
                self.joined(access.room).await?;
            }
        }
        Ok(())
    }

    fn catch_up(&mut self) {
        self.caught_up = true;
        let positions = self.rooms.iter().filter(|(_, followed)| followed.mode != Mode::Left);
        let position = |(room, followed): (&RoomId, &super::Followed<E>)| RoomPosition {
            room_id: room.to_bytes(),
            next_sequence: followed.next,
        };
        let caught_up = CaughtUp { positions: positions.map(position).collect() };
        self.out.push_back(element(subscribe_response::Item::CaughtUp(caught_up)));
    }
}

pub(super) fn element(item: subscribe_response::Item) -> SubscribeResponse {
    SubscribeResponse { item: Some(item) }
}
