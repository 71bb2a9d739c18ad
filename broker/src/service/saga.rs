//! Making a room spans two groups: reserved in meta, created in its shard, activated in meta. Each step
//! may be repeated and may arrive late; what a crash interrupted is finished by the leader of meta.

use std::collections::BTreeSet;
use std::time::Duration;

use unibus_proto::id::{GroupId, RoomId};
use unibus_proto::log::{RoomActivate, RoomCreate, RoomReserve, proposal::Command, reply::Reply};
use unibus_proto::row::DirectoryRow;
use unibus_proto::v1::{ActorProof, Signed};
use unibus_raft_store::env::{Env, sleep};

use super::devices::unexpected;
use super::{Outcome, Service};

/// Between two looks at the rooms that wait. A room is taken up when it was seen twice: until then
/// whoever makes it is at work.
const PERIOD: Duration = Duration::from_secs(2);
/// Rooms per look.
const LOOK: usize = 256;

impl<E: Env> Service<E> {
    /// Carries a room through all steps; whether it was created by this call.
    pub(super) async fn make_room(&self, room: RoomId, event: &Signed, actor: &ActorProof) -> Outcome<bool> {
        let shard = self.shards().place_room(room).0;
        let reserve = RoomReserve { event: Some(event.clone()), actor: Some(actor.clone()), shard };
        // The record rules: a retry may find the room placed by other rules.
        let shard = match self.shards().propose(GroupId::META, Command::RoomReserve(reserve)).await? {
            (_, Reply::Room(reply)) => GroupId(reply.shard),
            (_, other) => return Err(unexpected("room reserve", &other)),
        };
        self.create_and_activate(room, shard, event.clone(), actor.clone()).await
    }

    async fn create_and_activate(
        &self,
        room: RoomId,
        shard: GroupId,
        event: Signed,
        actor: ActorProof,
    ) -> Outcome<bool> {
        let create = RoomCreate { event: Some(event), actor: Some(actor) };
        let created = match self.shards().propose_and_see(shard, Command::RoomCreate(create)).await? {
            (_, Reply::Room(reply)) => reply.created,
            (_, other) => return Err(unexpected("room create", &other)),
        };
        let activate = RoomActivate { room_id: room.to_bytes() };
        self.shards().propose_and_see(GroupId::META, Command::RoomActivate(activate)).await?;
        Ok(created)
    }

    /// Finishes rooms that nobody finished, while this node leads meta; for ever.
    pub(super) async fn reconcile(self) {
        let mut seen = BTreeSet::new();
        loop {
            sleep::<E>(PERIOD).await;
            let meta = self.shards().meta();
            if meta.leader() != Some(self.node()) {
                seen.clear();
                continue;
            }
            let pending = meta.view(|machine| machine.pending_rooms(LOOK));
            let waiting: BTreeSet<RoomId> = pending.iter().map(|(room, _)| *room).collect();
            for (room, row) in pending {
                if seen.contains(&room) {
                    self.finish(room, row).await;
                }
            }
            seen = waiting;
        }
    }

    async fn finish(&self, room: RoomId, row: DirectoryRow) {
        let DirectoryRow { shard, event: Some(event), actor: Some(actor), .. } = row else { return };
        match self.create_and_activate(room, GroupId(shard), event, actor).await {
            Ok(_) => tracing::info!(%room, "a room whose creation was interrupted is finished"),
            Err(failure) => tracing::warn!(%room, %failure, "a room's creation is not finished yet"),
        }
    }
}
