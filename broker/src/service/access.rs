//! May this caller do this to that room? Without the right to read, a room is not found, whether it
//! exists or not. A refusal by the local replica is repeated once behind a read barrier.

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, Handle, RoomId};
use unibus_proto::row::{DirectoryRow, MemberRow, RoomRow};
use unibus_proto::signed::sha256;
use unibus_proto::v1::{Room, RoomRef, RoomRole, room_ref};
use unibus_raft_store::env::Env;

use super::{Caller, Failure, Outcome, Service};

/// A room where the caller found it, with his membership.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) room: RoomId,
    pub(super) shard: GroupId,
    pub(super) row: RoomRow,
    pub(super) member: MemberRow,
}

/// A checked [`RoomRef`].
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    Id(RoomId),
    Subject(unibus_proto::subject::Subject),
}

impl Wanted {
    pub(super) fn of(reference: Option<&RoomRef>) -> Outcome<Self> {
        match reference.and_then(|reference| reference.room.as_ref()) {
            Some(room_ref::Room::RoomId(id)) => Ok(Self::Id(RoomId::from_bytes(id)?)),
            Some(room_ref::Room::Subject(subject)) => Ok(Self::Subject(subject.parse()?)),
            None => Err(Failure::invalid("room: not set, expected a room id or a subject")),
        }
    }

    /// The id by which an absent room is given a shard.
    fn stand_in(&self) -> RoomId {
        match self {
            Self::Id(id) => *id,
            Self::Subject(subject) => {
                let mut id = [0; 16];
                id.copy_from_slice(&sha256(subject.as_str().as_bytes())[..16]);
                RoomId(id)
            }
        }
    }

    /// The one answer for a room that is absent and for one that the caller may not read.
    pub(super) fn not_found(&self) -> Failure {
        let name = match self {
            Self::Id(id) => id.to_string(),
            Self::Subject(subject) => subject.to_string(),
        };
        let message = format!("room {name}: not found, or you may not read it; ask one of its admins to add you");
        Failure::new(ErrorCode::RoomNotFound, message)
    }
}

impl<E: Env> Service<E> {
    /// A room that the caller may read, as the local replica has it; linearizable when it seems absent.
    pub(super) async fn readable(&self, caller: &Caller, wanted: &Wanted) -> Outcome<Access> {
        match self.readable_here(caller.user()?.0, wanted) {
            Some(access) => Ok(access),
            None => self.readable_now(caller, wanted).await,
        }
    }

    /// The same, linearizable.
    pub(super) async fn readable_now(&self, caller: &Caller, wanted: &Wanted) -> Outcome<Access> {
        let (user, _) = caller.user()?;
        self.shards().barrier(GroupId::META).await?;
        // A room that is absent takes the same steps as one that the caller may not read: not even the time
        // tells them apart.
        let located = self.locate(wanted);
        let shard = located.map_or_else(|| self.shards().place_room(wanted.stand_in()), |(_, shard)| shard);
        self.shards().barrier(shard).await?;
        self.readable_here(user, wanted).ok_or_else(|| wanted.not_found())
    }

    /// A room that the caller may publish to.
    pub(super) async fn publishable(&self, caller: &Caller, room: RoomId) -> Outcome<Access> {
        let wanted = Wanted::Id(room);
        let may = |access: &Access| access.member.role() >= RoomRole::Member;
        if let Some(access) = self.readable_here(caller.user()?.0, &wanted).filter(may) {
            return Ok(access);
        }
        let access = self.readable_now(caller, &wanted).await?;
        if may(&access) {
            return Ok(access);
        }
        let (user, _) = caller.user()?;
        Err(Failure::forbidden(format!(
            "publish to room {room}: {user} is a reader; ask an admin of the room for more"
        )))
    }

    /// What the local replica knows of a room and of the user's membership.
    pub(super) fn readable_here(&self, user: &Handle, wanted: &Wanted) -> Option<Access> {
        let (room, shard) = self.locate(wanted)?;
        let replica = self.shards().group(shard).ok()?;
        let (row, member) = replica.view(|machine| Some((machine.room(room)?, machine.member(room, user)?)))?;
        Some(Access { room, shard, row, member })
    }

    /// Room and shard by the local directory.
    pub(super) fn locate(&self, wanted: &Wanted) -> Option<(RoomId, GroupId)> {
        self.shards().meta().view(|machine| {
            let room = match wanted {
                Wanted::Id(room) => *room,
                Wanted::Subject(subject) => machine.room_of(subject)?,
            };
            let DirectoryRow { shard, .. } = machine.directory(room)?;
            Some((room, GroupId(shard)))
        })
    }

    /// A room as its members see it.
    pub(super) fn describe(&self, access: &Access) -> Room {
        let leader = self.shards().group(access.shard).ok().and_then(|replica| replica.leader());
        let row = access.row.clone();
        Room {
            room_id: access.room.to_bytes(),
            subject: row.subject,
            policy: row.policy,
            shard: access.shard.0,
            floor: row.floor,
            head: row.next_sequence.saturating_sub(1),
            roster_height: row.roster_height,
            roster_hash: row.roster_hash,
            members: row.members,
            epoch: row.epoch,
            created_ms: row.created_ms,
            size_bytes: row.size_bytes,
            own_role: access.member.role,
            leader: leader.map_or(0, |leader| leader.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_reference_is_checked_at_the_door() {
        let wanted = |room| Wanted::of(Some(&RoomRef { room: Some(room) }));
        assert!(Wanted::of(None).is_err());
        assert!(wanted(room_ref::Room::RoomId(vec![1; 15].into())).is_err());
        assert!(wanted(room_ref::Room::Subject("a.*".into())).is_err());
        let found = wanted(room_ref::Room::Subject("ops.dpkg".into())).expect("a subject");
        assert!(found.not_found().message.contains("ops.dpkg"));
        assert_eq!(found.not_found().code, ErrorCode::RoomNotFound);
    }
}
