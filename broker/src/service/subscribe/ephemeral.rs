//! The ephemeral rooms of a subscription: their rosters are followed like those of any room, their messages
//! come live or never, and only while this node holds the leases for deciding who may read.

use std::sync::Arc;

use unibus_machine::is_ephemeral;
use unibus_proto::id::RoomId;
use unibus_proto::v1::{DeliveryBatch, SubscribeResponse, start_from::From, subscribe_response};
use unibus_raft_store::env::Env;

use super::super::access::Access;
use super::super::{Failure, Outcome};
use super::stream::element;
use super::{Mode, Subscription};
use crate::ephemeral::Listening;
use crate::fanout::{Burst, CHUNK_BYTES};

impl<E: Env> Subscription<E> {
    /// Refuses to read what an ephemeral room does not store. `is_resumed`: it goes on from a live position.
    pub(super) fn check_live(&self, access: &Access, is_resumed: bool) -> Outcome<()> {
        let is_live = !self.until_end && (is_resumed || matches!(self.start, From::Latest(_)));
        if is_live || self.single != Some(access.room) || !is_ephemeral(&access.row) {
            return Ok(());
        }
        let subject = &access.row.subject;
        let found = if self.until_end { "no end to stop at" } else { "nothing from before" };
        Err(Failure::invalid(format!(
            "room {subject} is ephemeral and stores no messages, so it has {found}; subscribe from the latest, without \
             an end"
        )))
    }

    /// Listens to a room, if it is ephemeral.
    pub(super) async fn listen(&self, access: &Access) -> Outcome<Option<Listening<E>>> {
        if self.until_end || !is_ephemeral(&access.row) {
            return Ok(None);
        }
        let ephemeral = &self.service.inner.ephemeral;
        ephemeral.obtain(access.shard, &self.user).await?;
        ephemeral.listen((access.shard, access.room), &self.user, &self.mailbox).map(Some)
    }

    /// Hands messages out, if he may still read them as this node knows under its leases.
    pub(super) fn deliver_burst(&mut self, burst: Burst) -> Outcome<()> {
        let Some(followed) = self.rooms.get(&burst.room) else { return Ok(()) };
        let Some(listening) = followed.listening.as_ref().filter(|_| followed.mode != Mode::Left) else {
            return Ok(());
        };
        if !listening.holds() {
            return Err(self.service.inner.ephemeral.refusal(followed.shard, &self.user));
        }
        // Only the shard knows: the room may be newer than this node's directory. When he may not read it, the
        // notice that ends it is on its way.
        let replica = self.service.shards().group(followed.shard)?;
        if replica.view(|machine| machine.member(burst.room, &self.user)).is_some() {
            let subject = followed.subject.clone();
            self.service.counters().ephemeral_delivered(u64::from(burst.count));
            self.hand_out_burst(burst, subject);
        }
        Ok(())
    }

    fn hand_out_burst(&mut self, burst: Burst, subject: Arc<str>) {
        let (room_id, filled) = (burst.room.to_bytes(), self.filled_bytes + burst.bytes.len());
        if let Some(SubscribeResponse { item: Some(subscribe_response::Item::Ephemeral(last)) }) = self.out.back_mut()
            && last.room_id == room_id
            && filled <= CHUNK_BYTES
        {
            self.filled_bytes = filled;
            return last.push(burst.bytes);
        }
        self.filled_bytes = burst.bytes.len();
        let mut batch = DeliveryBatch::new(room_id, subject);
        batch.push(burst.bytes);
        self.out.push_back(element(subscribe_response::Item::Ephemeral(batch)));
    }

    /// Ends the subscription when a lease that it rests on has lapsed: what was sent meanwhile may be missing,
    /// and who was removed meanwhile may not be known here.
    pub(super) fn look_at_leases(&self) -> Outcome<()> {
        let is_broken = |listening: &Listening<E>| !listening.holds();
        let broken = self.rooms.values().find(|followed| followed.listening.as_ref().is_some_and(is_broken));
        broken.map_or(Ok(()), |followed| Err(self.service.inner.ephemeral.refusal(followed.shard, &self.user)))
    }

    /// Listens again to a room whose member he is again.
    pub(super) async fn listen_again(&mut self, room: RoomId) -> Outcome<()> {
        let Some(access) = self.service.find_in_shards(&self.user, room) else { return Ok(()) };
        let listening = self.listen(&access).await?;
        if let Some(followed) = self.rooms.get_mut(&room) {
            followed.listening = listening;
        }
        Ok(())
    }
}
