//! Rooms and their members. Every change is an event that this client's device signs; the nodes order
//! events, they cannot make them.

use bytes::Bytes;
use unibus_proto::id::{Handle, RoomId};
use unibus_proto::limits::PAGE_MAX;
use unibus_proto::signed::sha256;
use unibus_proto::subject::{Subject, SubjectFilter};
use unibus_proto::v1::message_service_client::MessageServiceClient;
use unibus_proto::v1::room_service_client::RoomServiceClient;
use unibus_proto::v1::{self, RoomPolicy, RoomRole, RosterEvent, RosterOp, Signed, room_ref};

use crate::core::unary;
use crate::nodes::Target;
use crate::platform::{Platform, random};
use crate::{Client, Error, ErrorCode};

/// Others may change the roster between reading its head and signing; so many times in a row is a fault.
const RESIGNS_MAX: u32 = 16;

/// Names a room by id or by subject.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RoomKey {
    /// By its id, which never changes.
    Id(RoomId),
    /// By its subject, which the cluster resolves.
    Subject(Subject),
}

impl From<RoomId> for RoomKey {
    fn from(id: RoomId) -> Self {
        Self::Id(id)
    }
}

impl From<Subject> for RoomKey {
    fn from(subject: Subject) -> Self {
        Self::Subject(subject)
    }
}

impl From<&Subject> for RoomKey {
    fn from(subject: &Subject) -> Self {
        Self::Subject(subject.clone())
    }
}

impl RoomKey {
    fn wire(&self) -> v1::RoomRef {
        let room = match self {
            Self::Id(id) => room_ref::Room::RoomId(id.to_bytes()),
            Self::Subject(subject) => room_ref::Room::Subject(subject.as_str().into()),
        };
        v1::RoomRef { room: Some(room) }
    }
}

/// A room that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct CreatedRoom {
    /// The room.
    pub room: v1::Room,
    /// False when an attempt before had made it.
    pub created: bool,
}

unary!(create, RoomServiceClient, create_room, v1::CreateRoomRequest, v1::CreateRoomResponse);
unary!(read get_room, RoomServiceClient, get_room, v1::GetRoomRequest, v1::GetRoomResponse);
unary!(read rooms_page, RoomServiceClient, list_rooms, v1::ListRoomsRequest, v1::ListRoomsResponse);
unary!(read members_page, RoomServiceClient, list_members, v1::ListMembersRequest, v1::ListMembersResponse);
unary!(read read_roster, RoomServiceClient, read_roster, v1::ReadRosterRequest, v1::ReadRosterResponse);
unary!(append_roster, RoomServiceClient, append_roster, v1::AppendRosterRequest, v1::AppendRosterResponse);
unary!(read fetch_range, MessageServiceClient, fetch_range, v1::FetchRangeRequest, v1::FetchRangeResponse);

impl<P: Platform> Client<P> {
    /// Makes a room, of which the caller becomes the first admin.
    pub async fn create_room(&self, subject: &Subject, policy: RoomPolicy) -> Result<CreatedRoom, Error> {
        let event = RosterEvent {
            room_id: RoomId(random(&self.core.platform)).to_bytes(),
            op: RosterOp::Create.into(),
            subject_user: self.identity().handle.as_str().into(),
            subject_key_fingerprint: fingerprint(self.identity().user_key.verifying_key().as_bytes()),
            role: RoomRole::Admin.into(),
            policy: Some(policy),
            subject: subject.as_str().into(),
            ..RosterEvent::default()
        };
        let (event, actor) = self.sign_event(event).await?;
        let request = v1::CreateRoomRequest { event: Some(event), actor: Some(actor) };
        let answer = self.core.create(&self.core.target(Target::Any), request).await?;
        Ok(CreatedRoom { room: answer.room.unwrap_or_default(), created: answer.created })
    }

    /// A room that the caller may read.
    pub async fn room(&self, room: impl Into<RoomKey>) -> Result<v1::Room, Error> {
        let request = v1::GetRoomRequest { room: Some(room.into().wire()) };
        let answer = self.core.get_room(&self.core.target(Target::Any), request).await?;
        answer.room.ok_or_else(|| Error::new(ErrorCode::VersionSkew, "get room: the answer has no room"))
    }

    /// A page of the rooms that the caller may read, by subject, and the token of the next page; an
    /// empty token asks for the first page, and stands after the last.
    pub async fn list_rooms_page(
        &self,
        filter: Option<&SubjectFilter>,
        page_size: u32,
        page_token: &str,
    ) -> Result<(Vec<v1::Room>, String), Error> {
        let filter = filter.map(|filter| filter.as_str().to_owned()).unwrap_or_default();
        let request = v1::ListRoomsRequest { filter, page_size, page_token: page_token.into() };
        let page = self.core.rooms_page(&self.core.target(Target::Any), request).await?;
        Ok((page.rooms, page.next_page_token))
    }

    /// All rooms that the caller may read, by subject.
    pub async fn list_rooms(&self, filter: Option<&SubjectFilter>) -> Result<Vec<v1::Room>, Error> {
        let (mut rooms, mut token) = self.list_rooms_page(filter, PAGE_MAX, "").await?;
        while !token.is_empty() {
            let (page, next) = self.list_rooms_page(filter, PAGE_MAX, &token).await?;
            rooms.extend(page);
            token = next;
        }
        Ok(rooms)
    }

    /// All members of a room, by handle.
    pub async fn members(&self, room: impl Into<RoomKey>) -> Result<Vec<v1::RoomMember>, Error> {
        let (room, mut members, mut page_token) = (room.into().wire(), Vec::new(), String::new());
        loop {
            let request = v1::ListMembersRequest { room: Some(room.clone()), page_size: PAGE_MAX, page_token };
            let page = self.core.members_page(&self.core.target(Target::Any), request).await?;
            members.extend(page.members);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(members);
            }
        }
    }

    /// The signed roster events of a room from a height on, at most 1,000.
    pub async fn roster(&self, room: impl Into<RoomKey>, from_height: u64) -> Result<Vec<v1::RosterEntry>, Error> {
        let request = v1::ReadRosterRequest { room: Some(room.into().wire()), from_height, page_size: PAGE_MAX };
        Ok(self.core.read_roster(&self.core.target(Target::Any), request).await?.entries)
    }

    /// A range of a room's timeline.
    pub async fn fetch(
        &self,
        room: impl Into<RoomKey>,
        from_sequence: u64,
        count_max: u32,
    ) -> Result<v1::FetchRangeResponse, Error> {
        let request = v1::FetchRangeRequest { room: Some(room.into().wire()), from_sequence, count_max };
        self.core.fetch_range(&self.core.target(Target::Any), request).await
    }

    /// Adds a member, pinning the user key that the cluster knows for him.
    pub async fn add_member(
        &self,
        room: impl Into<RoomKey>,
        user: &Handle,
        role: RoomRole,
    ) -> Result<v1::AppendRosterResponse, Error> {
        let key = self.device_list(user).await?.user_key;
        let change = RosterEvent { role: role.into(), subject_key_fingerprint: fingerprint(&key), ..about(user) };
        self.append(room.into(), |_| RosterEvent { op: RosterOp::Add.into(), ..change.clone() }).await
    }

    /// Removes a member: he reads and publishes nothing that comes after.
    pub async fn remove_member(
        &self,
        room: impl Into<RoomKey>,
        user: &Handle,
    ) -> Result<v1::AppendRosterResponse, Error> {
        self.append(room.into(), |_| RosterEvent { op: RosterOp::Remove.into(), ..about(user) }).await
    }

    /// Changes a member's role.
    pub async fn set_member_role(
        &self,
        room: impl Into<RoomKey>,
        user: &Handle,
        role: RoomRole,
    ) -> Result<v1::AppendRosterResponse, Error> {
        let change = |_: &_| RosterEvent { op: RosterOp::Role.into(), role: role.into(), ..about(user) };
        self.append(room.into(), change).await
    }

    /// Leaves a room.
    pub async fn leave_room(&self, room: impl Into<RoomKey>) -> Result<v1::AppendRosterResponse, Error> {
        let change = |_: &_| RosterEvent { op: RosterOp::Leave.into(), ..about(&self.identity().handle) };
        self.append(room.into(), change).await
    }

    /// Changes a room's policy to what `change` makes of it; asked again when another change came between.
    pub async fn update_room_policy(
        &self,
        room: impl Into<RoomKey>,
        change: impl Fn(RoomPolicy) -> RoomPolicy,
    ) -> Result<v1::AppendRosterResponse, Error> {
        let change = |room: &v1::Room| {
            let policy = Some(change(room.policy.unwrap_or_default()));
            RosterEvent { op: RosterOp::Policy.into(), policy, ..RosterEvent::default() }
        };
        self.append(room.into(), change).await
    }

    /// Signs a change of the room on top of its roster's head, again when another change came between.
    async fn append(
        &self,
        key: RoomKey,
        change: impl Fn(&v1::Room) -> RosterEvent,
    ) -> Result<v1::AppendRosterResponse, Error> {
        let mut resigns = 0;
        loop {
            let room = self.room(key.clone()).await?;
            let event = RosterEvent {
                room_id: room.room_id.clone(),
                height: room.roster_height + 1,
                previous_hash: room.roster_hash.clone(),
                ..change(&room)
            };
            let height = event.height;
            let (event, actor) = self.sign_event(event).await?;
            let hash = event.payload_hash();
            let request = v1::AppendRosterRequest { event: Some(event), actor: Some(actor) };
            match self.core.append_roster(&self.core.target(Target::Any), request).await {
                Err(error) if error.code == ErrorCode::SequenceMismatch && resigns < RESIGNS_MAX => {
                    // A lost answer may have been a success: then the event at this height is ours.
                    if let Some(done) = self.find_appended(&room, height, &hash).await? {
                        return Ok(done);
                    }
                    resigns += 1;
                }
                answer => return answer,
            }
        }
    }

    async fn find_appended(
        &self,
        room: &v1::Room,
        height: u64,
        hash: &[u8; 32],
    ) -> Result<Option<v1::AppendRosterResponse>, Error> {
        let invalid = |error| Error::new(ErrorCode::VersionSkew, format!("get room: {error}"));
        let id = RoomId::from_bytes(&room.room_id).map_err(invalid)?;
        let entries = self.roster(id, height).await?;
        let ours = |entry: &&v1::RosterEntry| entry.event.as_ref().is_some_and(|event| event.payload_hash() == *hash);
        let Some(entry) = entries.iter().find(ours) else { return Ok(None) };
        Ok(Some(v1::AppendRosterResponse { sequence: entry.sequence, room: Some(self.room(id).await?) }))
    }

    async fn sign_event(&self, event: RosterEvent) -> Result<(Signed, v1::ActorProof), Error> {
        let version = self.own_list_version().await?;
        let (identity, cluster) = (self.identity(), self.cluster_id());
        let event = RosterEvent {
            actor_user: identity.handle.as_str().into(),
            actor_device: identity.device_id().to_bytes(),
            actor_list_version: version,
            created_ms: self.core.platform.wall_ms(),
            ..event
        };
        Ok((Signed::sign(cluster, &event, &[&identity.device_key]), identity.actor_proof(cluster)))
    }
}

fn about(user: &Handle) -> RosterEvent {
    RosterEvent { subject_user: user.as_str().into(), ..RosterEvent::default() }
}

fn fingerprint(user_key: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&sha256(user_key))
}
