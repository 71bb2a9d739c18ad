//! Rooms: reading them, and changing their roster by signed events that are verified here as well as in
//! `apply`, so that a bad one costs no log entry.

use unibus_machine::{RosterCheck, verify_create, verify_roster};
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{DeviceId, GroupId, Handle, RoomId};
use unibus_proto::log::{RosterAppend, proposal::Command, reply::Reply};
use unibus_proto::signed::sha256;
use unibus_proto::subject::{Subject, SubjectFilter};
use unibus_proto::v1::{
    ActorProof, AppendRosterRequest, AppendRosterResponse, CreateRoomRequest, CreateRoomResponse, GetRoomRequest,
    GetRoomResponse, ListMembersRequest, ListMembersResponse, ListRoomsRequest, ListRoomsResponse, ReadRosterRequest,
    ReadRosterResponse, RoomMember, RosterEvent, RosterOp, Signed,
};
use unibus_raft_store::env::Env;

use super::access::Wanted;
use super::devices::unexpected;
use super::{Caller, Failure, Outcome, Service, check};

/// Subjects that one call looks at; a page may be shorter than asked for, its token goes on.
const SUBJECTS_PER_CALL_MAX: usize = 20_000;
/// Subjects per look at the directory.
const LOOK: usize = 1_000;

impl<E: Env> Service<E> {
    /// Makes a room from the creator's signed event; the same event again is answered the same.
    pub async fn create_room(&self, caller: &Caller, request: CreateRoomRequest) -> Outcome<CreateRoomResponse> {
        let event = check::signed("event", &request.event)?;
        let actor = proof(&request.actor)?;
        let creation = verify_create(self.inner.parts.identity.cluster, event, actor)?;
        self.check_actor(caller, &creation.creator, creation.device.id, actor).await?;
        let created = self.make_room(creation.room, event, actor).await?;
        let access = self.readable(caller, &Wanted::Id(creation.room)).await?;
        Ok(CreateRoomResponse { room: Some(self.describe(&access)), created })
    }

    /// One room.
    pub async fn get_room(&self, caller: &Caller, request: GetRoomRequest) -> Outcome<GetRoomResponse> {
        let access = self.readable_now(caller, &Wanted::of(request.room.as_ref())?).await?;
        Ok(GetRoomResponse { room: Some(self.describe(&access)) })
    }

    /// A page of the rooms that the caller may read.
    pub async fn list_rooms(&self, caller: &Caller, request: ListRoomsRequest) -> Outcome<ListRoomsResponse> {
        let (user, _) = caller.user()?;
        let size = check::page_size("page_size", request.page_size)?;
        let filter: Option<SubjectFilter> = match request.filter.as_str() {
            "" => None,
            filter => Some(filter.parse()?),
        };
        let after: Option<RoomId> = check::page_token(&request.page_token)?;
        self.shards().barriers(self.shards().ids()).await?;
        let mut after = after.map(|room| self.subject_of(room)).transpose()?;
        let (mut rooms, mut last) = (Vec::new(), None);
        for _ in 0..SUBJECTS_PER_CALL_MAX / LOOK {
            let page = self.shards().meta().view(|machine| machine.directory_page(after.as_ref(), LOOK));
            let is_last = page.len() < LOOK;
            for (subject, room) in page {
                let matches = filter.as_ref().is_none_or(|filter| filter.matches(&subject));
                let access = matches.then(|| self.readable_here(user, &Wanted::Id(room))).flatten();
                (after, last) = (Some(subject), Some(room));
                rooms.extend(access.map(|access| self.describe(&access)));
                if rooms.len() == size {
                    return Ok(ListRoomsResponse { rooms, next_page_token: room.to_string() });
                }
            }
            if is_last {
                return Ok(ListRoomsResponse { rooms, next_page_token: String::new() });
            }
        }
        Ok(ListRoomsResponse { rooms, next_page_token: last.map_or(String::new(), |last| last.to_string()) })
    }

    /// Where a page of rooms starts. Tokens name rooms by id: the last room looked at may be one that the
    /// caller may not read, and its subject is none of his business.
    fn subject_of(&self, room: RoomId) -> Outcome<Subject> {
        let row = self.shards().meta().view(|machine| machine.directory(room));
        let row = row.ok_or_else(|| Failure::invalid("page_token: unknown; list from the beginning"))?;
        Ok(row.subject.parse()?)
    }

    /// A page of a room's members.
    pub async fn list_members(&self, caller: &Caller, request: ListMembersRequest) -> Outcome<ListMembersResponse> {
        let size = check::page_size("page_size", request.page_size)?;
        let after: Option<Handle> = check::page_token(&request.page_token)?;
        let access = self.readable_now(caller, &Wanted::of(request.room.as_ref())?).await?;
        let shard = self.shards().group(access.shard)?;
        let mut page = shard.view(|machine| machine.members(access.room, after.as_ref(), size + 1));
        let next_page_token = if page.len() > size { page[size - 1].0.to_string() } else { String::new() };
        page.truncate(size);
        let member = |(user, row): (Handle, unibus_proto::row::MemberRow)| RoomMember {
            user: user.to_string(),
            role: row.role,
            key_fingerprint: row.key_fingerprint,
            since_sequence: row.since_sequence,
        };
        Ok(ListMembersResponse { members: page.into_iter().map(member).collect(), next_page_token })
    }

    /// The signed roster events of a room.
    pub async fn read_roster(&self, caller: &Caller, request: ReadRosterRequest) -> Outcome<ReadRosterResponse> {
        let size = check::page_size("page_size", request.page_size)?;
        let access = self.readable_now(caller, &Wanted::of(request.room.as_ref())?).await?;
        let shard = self.shards().group(access.shard)?;
        let entries = shard.view(|machine| machine.roster(access.room, request.from_height, size));
        Ok(ReadRosterResponse { entries })
    }

    /// Appends a signed event to the roster.
    pub async fn append_roster(&self, caller: &Caller, request: AppendRosterRequest) -> Outcome<AppendRosterResponse> {
        let event = check::signed("event", &request.event)?;
        let actor = proof(&request.actor)?;
        let document: RosterEvent = event.decode_unverified()?;
        let wanted = Wanted::Id(RoomId::from_bytes(&document.room_id)?);
        let (user, _) = caller.user()?;
        self.check_actor(caller, &document.actor_user.parse()?, DeviceId::from_bytes(&document.actor_device)?, actor)
            .await?;
        // The retry of an event by which its author left must still be answered.
        let leaves = document.op() == RosterOp::Leave && document.subject_user == user.as_str();
        let shard = match self.readable(caller, &wanted).await {
            Ok(access) => access.shard,
            Err(failure) if !leaves => return Err(failure),
            Err(failure) => self.locate(&wanted).ok_or(failure)?.1,
        };
        self.admit_roster(shard, event, actor).await?;
        if document.op() == RosterOp::Add {
            self.check_added(&document).await?;
        }
        let append = RosterAppend { event: Some(event.clone()), actor: Some(actor.clone()) };
        let sequence = match self.shards().propose_and_see(shard, Command::RosterAppend(append)).await? {
            (_, Reply::Roster(reply)) => reply.sequence,
            (_, other) => return Err(unexpected("roster", &other)),
        };
        let room = self.readable_here(user, &wanted).map(|access| self.describe(&access));
        Ok(AppendRosterResponse { sequence, room })
    }

    /// Runs the machine's own check on the local rows, behind a barrier when they say no.
    async fn admit_roster(&self, shard: GroupId, event: &Signed, actor: &ActorProof) -> Outcome<()> {
        let cluster = self.inner.parts.identity.cluster;
        let now_ms = self.now_ms();
        let check = || -> Outcome<Result<RosterCheck, _>> {
            Ok(self.shards().group(shard)?.view(|machine| verify_roster(machine.rows(), cluster, event, actor, now_ms)))
        };
        if check()?.is_ok() {
            return Ok(());
        }
        self.shards().barrier(shard).await?;
        check()?.map(drop).map_err(Failure::from)
    }

    /// The event must be the caller's own, of a device on his list, proved with his key.
    async fn check_actor(&self, caller: &Caller, actor: &Handle, device: DeviceId, proof: &ActorProof) -> Outcome<()> {
        let (user, _) = caller.user()?;
        if actor != user {
            return Err(Failure::forbidden(format!(
                "roster event: found actor {actor}, expected {user}, who is signed in"
            )));
        }
        self.standing(user, device).await?;
        if self.known_user(user)?.user_key != proof.user_key {
            return Err(Failure::forbidden(format!(
                "roster event: its proof has another user key than the cluster has for {user}"
            )));
        }
        Ok(())
    }

    /// Whoever is added must be a user, and the pinned key his.
    async fn check_added(&self, event: &RosterEvent) -> Outcome<()> {
        let user: Handle = event.subject_user.parse()?;
        if self.known_user(&user).is_err() {
            self.shards().barrier(GroupId::META).await?;
        }
        let found = sha256(&self.known_user(&user)?.user_key);
        if event.subject_key_fingerprint != found[..] {
            let message =
                format!("add {user}: the pinned key fingerprint is not that of the user's key; re-read the user");
            return Err(Failure::new(ErrorCode::Invalid, message));
        }
        Ok(())
    }
}

fn proof(actor: &Option<ActorProof>) -> Outcome<&ActorProof> {
    actor.as_ref().ok_or_else(|| Failure::invalid("actor: not set, expected user key and device bundle of the signer"))
}
