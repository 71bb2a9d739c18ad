//! The checks of signed roster events (E2E 4.2, 4.11): who may do what to a room. Nothing is written here.
//!
//! The checks are public, so that admission runs the very same ones on the rows of its own replica.

use prost::Message;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{ClusterId, Handle, RoomId};
use unibus_proto::limits::{ROOM_MEMBERS_MAX, ROSTER_ENTRY_BYTES_MAX};
use unibus_proto::position::Sequence;
use unibus_proto::row::{MemberRow, RoomRow, RosterRow};
use unibus_proto::signed::sha256;
use unibus_proto::subject::Subject;
use unibus_proto::v1::{ActorProof, Reject, RoomPolicy, RoomRetention, RoomRole, RosterEvent, RosterOp, Signed};

use crate::device::{VerifiedDevice, verify_bundle};
use crate::fields::{at_most, hash, invalid, parse, public_key, reject, require, room_not_found};
use crate::key::Key;
use crate::rows::{self, Rows};
use crate::signatures;

/// A valid event of height 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Creation {
    /// The room.
    pub room: RoomId,
    /// Its subject.
    pub subject: Subject,
    /// Its policy.
    pub policy: RoomPolicy,
    /// Who creates it and is its first admin.
    pub creator: Handle,
    /// SHA-256 of his user key.
    pub fingerprint: [u8; 32],
    /// The device that signed.
    pub device: VerifiedDevice,
    /// SHA-256 of the event's payload.
    pub hash: [u8; 32],
}

/// A valid event of a later height.
#[derive(Clone, Debug, PartialEq)]
pub struct RosterChange {
    /// The room.
    pub room: RoomId,
    /// What the event does.
    pub effect: RosterEffect,
    /// Its height.
    pub height: u64,
    /// SHA-256 of its payload.
    pub hash: [u8; 32],
}

/// What a roster event does.
#[derive(Clone, Debug, PartialEq)]
pub enum RosterEffect {
    /// Adds a member.
    Add {
        /// Who.
        user: Handle,
        /// What he may do.
        role: RoomRole,
        /// SHA-256 of his user key.
        fingerprint: [u8; 32],
    },
    /// Ends a membership, by an admin or by himself.
    End {
        /// Whose.
        user: Handle,
        /// What he was.
        was: RoomRole,
    },
    /// Changes a role.
    Role {
        /// Whose.
        user: Handle,
        /// What he was.
        was: RoomRole,
        /// What he is.
        role: RoomRole,
    },
    /// Changes the policy.
    Policy(RoomPolicy),
}

/// What the check of a roster event found.
#[derive(Clone, Debug, PartialEq)]
pub enum RosterCheck {
    /// This very event stands already, at this sequence: a retry.
    Known(Sequence),
    /// It is the next one, and it is valid.
    Next(RosterChange),
}

/// Checks the signed event that creates a room. Whether the creator is an active user, and his device not
/// expired, is decided once, in meta; so that the room's shard cannot refuse what meta has reserved.
pub fn verify_create(cluster: ClusterId, event: &Signed, actor: &ActorProof) -> Result<Creation, Reject> {
    let document = decode(event, actor)?;
    let creator: Handle = parse(&document.actor_user)?;
    let user_key = public_key(&actor.user_key, "actor's user key")?;
    let device = verify_device(cluster, event, actor, &document)?;
    let fingerprint = sha256(&user_key);
    let is_create = document.op() == RosterOp::Create && document.height == 0 && document.previous_hash.is_empty();
    require(is_create, || invalid("roster event: expected CREATE at height 0 without a previous hash"))?;
    require(document.subject_user == document.actor_user, || invalid("create: the creator is its subject user"))?;
    require(document.subject_key_fingerprint == fingerprint[..], || {
        invalid("create: the fingerprint is not that of the creator's user key")
    })?;
    require(document.role() == RoomRole::Admin, || invalid("create: the creator's role is ADMIN"))?;
    let policy = check_policy(document.policy.as_ref(), None)?;
    let room = RoomId::from_bytes(&document.room_id).map_err(invalid)?;
    let subject = parse(&document.subject)?;
    Ok(Creation { room, subject, policy, creator, fingerprint, device, hash: event.payload_hash() })
}

/// Checks the next event of a room's roster against the rows of its shard.
pub fn verify_roster<R: Rows>(
    rows: &R,
    cluster: ClusterId,
    event: &Signed,
    actor: &ActorProof,
    now_ms: u64,
) -> Result<RosterCheck, Reject> {
    let document = decode(event, actor)?;
    let id = RoomId::from_bytes(&document.room_id).map_err(invalid)?;
    let user: Handle = parse(&document.actor_user)?;
    let room: RoomRow = rows::get(rows, &Key::Room(id)).ok_or_else(|| room_not_found(id))?;
    let hash = event.payload_hash();
    if let Some(sequence) = known(rows, id, document.height, &hash) {
        return Ok(RosterCheck::Known(sequence));
    }
    let member: MemberRow = rows::get(rows, &Key::Member(id, user.as_str())).ok_or_else(|| room_not_found(id))?;
    check_chain(&room, &document)?;
    require(member.key_fingerprint == sha256(&actor.user_key)[..], || {
        reject(ErrorCode::Forbidden, format!("{user}: the event is proved with another user key than the room pinned"))
    })?;
    verify_device(cluster, event, actor, &document)?.check_live(now_ms)?;
    let leaves = document.op() == RosterOp::Leave;
    require(leaves || member.role() == RoomRole::Admin, || {
        reject(ErrorCode::Forbidden, format!("{user} is no admin of room {id}; ask one to do this"))
    })?;
    let effect = effect(rows, id, &room, &document)?;
    Ok(RosterCheck::Next(RosterChange { room: id, effect, height: document.height, hash }))
}

fn decode(event: &Signed, actor: &ActorProof) -> Result<RosterEvent, Reject> {
    at_most(
        event.encoded_len() + actor.encoded_len(),
        ROSTER_ENTRY_BYTES_MAX,
        "bytes of a roster event with its proof",
    )?;
    event.decode_unverified().map_err(invalid)
}

/// The bundle is the actor's, and its device signed the event.
fn verify_device(
    cluster: ClusterId,
    event: &Signed,
    actor: &ActorProof,
    document: &RosterEvent,
) -> Result<VerifiedDevice, Reject> {
    let bundle = actor.bundle.as_ref().ok_or_else(|| invalid("actor proof: no device bundle"))?;
    let device = verify_bundle(cluster, bundle, &parse(&document.actor_user)?, &actor.user_key)?;
    require(document.actor_device == device.id.0[..], || {
        invalid(format!("roster event: it names another device than its proof, which is of {}", device.id))
    })?;
    signatures::verify::<RosterEvent>(cluster, event, &[&device.bundle.ed25519_key]).map_err(invalid)?;
    Ok(device)
}

fn known<R: Rows>(rows: &R, room: RoomId, height: u64, hash: &[u8; 32]) -> Option<Sequence> {
    let entry = rows::get::<RosterRow>(rows, &Key::Roster(room, height))?.entry?;
    (entry.event?.payload_hash() == *hash).then_some(Sequence(entry.sequence))
}

fn check_chain(room: &RoomRow, document: &RosterEvent) -> Result<(), Reject> {
    let next = room.roster_height + 1;
    if document.height == next && document.previous_hash == room.roster_hash {
        return Ok(());
    }
    let found = match document.height {
        height if height == next => "another event before it".into(),
        height => format!("height {height}"),
    };
    let message =
        format!("roster event: found {found}, expected height {next} after the newest; re-read and sign again");
    Err(Reject { expected: next, ..reject(ErrorCode::SequenceMismatch, message) })
}

fn effect<R: Rows>(rows: &R, id: RoomId, room: &RoomRow, event: &RosterEvent) -> Result<RosterEffect, Reject> {
    let op = event.op();
    require(event.subject.is_empty(), || invalid("roster event: only CREATE has a subject"))?;
    require(op == RosterOp::Policy || event.policy.is_none(), || invalid("roster event: only POLICY has a policy"))?;
    match op {
        RosterOp::Unspecified => Err(invalid(format!("roster event: operation {} is unknown", event.op))),
        RosterOp::Create => Err(invalid("roster event: CREATE stands only at height 0")),
        RosterOp::Policy => {
            require(event.subject_user.is_empty(), || invalid("policy: it is about no user"))?;
            check_policy(event.policy.as_ref(), room.policy.as_ref()).map(RosterEffect::Policy)
        }
        RosterOp::Add => add(rows, id, room, event),
        RosterOp::Remove => end(rows, id, room, event),
        RosterOp::Leave => {
            require(event.subject_user == event.actor_user, || invalid("leave: everybody leaves only by himself"))?;
            end(rows, id, room, event)
        }
        RosterOp::Role => change_role(rows, id, room, event),
    }
}

fn add<R: Rows>(rows: &R, id: RoomId, room: &RoomRow, event: &RosterEvent) -> Result<RosterEffect, Reject> {
    let user: Handle = parse(&event.subject_user)?;
    let role = role_of(event)?;
    let fingerprint = hash(&event.subject_key_fingerprint, "fingerprint of the added user's key")?;
    require(!rows::exists(rows, &Key::Member(id, user.as_str())), || {
        reject(ErrorCode::AlreadyExists, format!("{user} is a member of room {id} already; change his role instead"))
    })?;
    require(room.members < ROOM_MEMBERS_MAX, || {
        reject(ErrorCode::QuotaExceeded, format!("room {id} has {ROOM_MEMBERS_MAX} members, the most it may have"))
    })?;
    Ok(RosterEffect::Add { user, role, fingerprint })
}

fn end<R: Rows>(rows: &R, id: RoomId, room: &RoomRow, event: &RosterEvent) -> Result<RosterEffect, Reject> {
    let (user, was) = existing(rows, id, event)?;
    require(event.role() == RoomRole::Unspecified, || invalid("roster event: who goes has no role"))?;
    keep_admin(id, room, &user, was, RoomRole::Unspecified)?;
    Ok(RosterEffect::End { user, was })
}

fn change_role<R: Rows>(rows: &R, id: RoomId, room: &RoomRow, event: &RosterEvent) -> Result<RosterEffect, Reject> {
    let (user, was) = existing(rows, id, event)?;
    let role = role_of(event)?;
    keep_admin(id, room, &user, was, role)?;
    Ok(RosterEffect::Role { user, was, role })
}

/// The member that an event is about; when the event names a key, it must be the pinned one.
fn existing<R: Rows>(rows: &R, id: RoomId, event: &RosterEvent) -> Result<(Handle, RoomRole), Reject> {
    let user: Handle = parse(&event.subject_user)?;
    let member: MemberRow = rows::get(rows, &Key::Member(id, user.as_str()))
        .ok_or_else(|| reject(ErrorCode::UserNotFound, format!("{user} is no member of room {id}")))?;
    let fingerprint = &event.subject_key_fingerprint;
    require(fingerprint.is_empty() || *fingerprint == member.key_fingerprint, || {
        invalid(format!("{user}: the event names another user key than the room pinned"))
    })?;
    Ok((user, member.role()))
}

fn role_of(event: &RosterEvent) -> Result<RoomRole, Reject> {
    match event.role() {
        RoomRole::Unspecified => Err(invalid(format!("room role {}: expected reader, member or admin", event.role))),
        role => Ok(role),
    }
}

fn keep_admin(id: RoomId, room: &RoomRow, user: &Handle, was: RoomRole, role: RoomRole) -> Result<(), Reject> {
    let is_last = was == RoomRole::Admin && role != RoomRole::Admin && room.admins <= 1;
    require(!is_last, || {
        let message = format!("{user} is the last admin of room {id}; make another member admin first");
        reject(ErrorCode::Forbidden, message)
    })
}

/// The policies that this version keeps: what it cannot keep it must not promise.
fn check_policy(policy: Option<&RoomPolicy>, before: Option<&RoomPolicy>) -> Result<RoomPolicy, Reject> {
    let policy = *policy.ok_or_else(|| invalid("roster event: no policy"))?;
    let unseals = before.is_some_and(|before| before.encrypt) && !policy.encrypt;
    require(!unseals, || reject(ErrorCode::Forbidden, "policy: an encrypted room stays encrypted"))?;
    require(before.is_none_or(|before| before.persist == policy.persist), || {
        let what = "policy: a room stays stored or ephemeral as it was made; create another room";
        reject(ErrorCode::Forbidden, what)
    })?;
    let keeps_all = policy.retention.is_none_or(|retention| retention == RoomRetention::default());
    require(policy.persist || keeps_all, || {
        invalid("policy: an ephemeral room keeps no entries; leave its retention out")
    })?;
    let skew = |what| Err(reject(ErrorCode::VersionSkew, format!("policy: this version has no {what}")));
    match policy {
        RoomPolicy { encrypt: true, persist: false, .. } => {
            skew("encrypted ephemeral rooms; create the room with encrypt = false or persist = true")
        }
        RoomPolicy { encrypt: true, .. } => skew("encrypted rooms yet; create the room with encrypt = false"),
        RoomPolicy { sign: true, .. } => skew("signed messages yet; create the room with sign = false"),
        policy => Ok(policy),
    }
}
