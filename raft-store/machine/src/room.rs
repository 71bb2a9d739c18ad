//! Rooms in their shard: created and changed by signed events, each of which takes a sequence.

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{Handle, RoomId};
use unibus_proto::log::{RoomCreate, RoomReply, RosterAppend, RosterReply};
use unibus_proto::position::Sequence;
use unibus_proto::row::{MemberRow, RoomRow, RosterRow};
use unibus_proto::v1::{ActorProof, Reject, RoomRole, RosterEntry, Signed, delivery};

use crate::event::Event;
use crate::fields::{reject, require};
use crate::key::Key;
use crate::retention;
use crate::roster::{Creation, RosterChange, RosterCheck, RosterEffect, verify_create, verify_roster};
use crate::rows::{self, Rows};
use crate::step::{Answer, Step};
use crate::timeline::Appender;

/// Whether the messages of a room are delivered and not stored. Its roster is stored like any other.
pub fn is_ephemeral(room: &RoomRow) -> bool {
    room.policy.is_some_and(|policy| !policy.persist)
}

pub(crate) fn create<R: Rows>(step: &mut Step<'_, R>, create: RoomCreate) -> Result<Answer, Reject> {
    let (event, actor) = (create.event.unwrap_or_default(), create.actor.unwrap_or_default());
    let creation = verify_create(step.cluster, &event, &actor)?;
    let room = creation.room;
    if rows::exists(step.rows, &Key::Room(room)) {
        require(first_event_hash(step.rows, room) == Some(creation.hash), || {
            reject(ErrorCode::AlreadyExists, format!("room id {room} belongs to another room; mint a new id"))
        })?;
        return Ok(answer(room, false));
    }
    let mut row = new_room(&creation, step.now());
    step.group.rooms += 1;
    step.events.push(Event::RoomCreated { room });
    let sequence = append_event(step, room, &mut row, 0, event, actor);
    put_member(step, room, creation.creator, RoomRole::Admin, &creation.fingerprint, sequence);
    put_room(step, room, row);
    Ok(answer(room, true))
}

fn first_event_hash<R: Rows>(rows: &R, room: RoomId) -> Option<[u8; 32]> {
    let entry = rows::get::<RosterRow>(rows, &Key::Roster(room, 0))?.entry?;
    Some(entry.event?.payload_hash())
}

fn new_room(creation: &Creation, now_ms: u64) -> RoomRow {
    RoomRow {
        subject: creation.subject.to_string(),
        policy: Some(creation.policy),
        roster_hash: creation.hash.to_vec().into(),
        created_ms: now_ms,
        members: 1,
        admins: 1,
        ..RoomRow::default()
    }
}

fn answer(room: RoomId, created: bool) -> Answer {
    Answer::Room(RoomReply { room_id: room.to_bytes(), created, shard: 0 })
}

pub(crate) fn append_roster<R: Rows>(step: &mut Step<'_, R>, append: RosterAppend) -> Result<Answer, Reject> {
    let (event, actor) = (append.event.unwrap_or_default(), append.actor.unwrap_or_default());
    let sequence = match verify_roster(step.rows, step.cluster, &event, &actor, step.now())? {
        RosterCheck::Known(sequence) => sequence,
        RosterCheck::Next(change) => advance(step, change, event, actor),
    };
    Ok(Answer::Roster(RosterReply { sequence: sequence.0 }))
}

fn advance<R: Rows>(step: &mut Step<'_, R>, change: RosterChange, event: Signed, actor: ActorProof) -> Sequence {
    let RosterChange { room, effect, height, hash } = change;
    let mut row: RoomRow = rows::get(step.rows, &Key::Room(room)).expect("a checked event's room exists");
    row.roster_height = height;
    row.roster_hash = hash.to_vec().into();
    let sequence = append_event(step, room, &mut row, height, event, actor);
    match effect {
        RosterEffect::Add { user, role, fingerprint } => {
            row.members += 1;
            row.admins += u32::from(role == RoomRole::Admin);
            put_member(step, room, user, role, &fingerprint, sequence);
        }
        RosterEffect::End { user, was } => {
            row.members -= 1;
            row.admins -= u32::from(was == RoomRole::Admin);
            row.epoch += 1;
            rows::delete(step.rows, &Key::Member(room, user.as_str()));
            step.events.push(Event::MemberChanged { room, user, role: None });
        }
        RosterEffect::Role { user, was, role } => {
            row.admins = row.admins + u32::from(role == RoomRole::Admin) - u32::from(was == RoomRole::Admin);
            put_role(step, room, user, role);
        }
        RosterEffect::Policy(policy) => {
            row.policy = Some(policy);
            row.epoch += 1;
        }
    }
    put_room(step, room, row);
    sequence
}

/// The event takes the next sequence, is delivered like a message, and is kept by height.
fn append_event<R: Rows>(
    step: &mut Step<'_, R>,
    room: RoomId,
    row: &mut RoomRow,
    height: u64,
    event: Signed,
    actor: ActorProof,
) -> Sequence {
    let entry = RosterEntry { event: Some(event), actor: Some(actor), sequence: row.next_sequence };
    rows::put(step.rows, &Key::Roster(room, height), &RosterRow { entry: Some(entry.clone()) });
    let mut appender = Appender::default();
    let sequence = appender.push(row, step.now(), delivery::Entry::Roster(entry));
    appender.finish(step, room, row);
    sequence
}

/// Writes the room, with its floor where its policy wants it.
fn put_room<R: Rows>(step: &mut Step<'_, R>, room: RoomId, mut row: RoomRow) {
    let mut work = retention::Work::default();
    retention::enforce(step, (room, &mut row), &mut work);
    rows::put(step.rows, &Key::Room(room), &row);
    work.finish(step);
}

fn put_member<R: Rows>(
    step: &mut Step<'_, R>,
    room: RoomId,
    user: Handle,
    role: RoomRole,
    fingerprint: &[u8; 32],
    since: Sequence,
) {
    let row = MemberRow { role: role.into(), key_fingerprint: fingerprint.to_vec().into(), since_sequence: since.0 };
    rows::put(step.rows, &Key::Member(room, user.as_str()), &row);
    step.events.push(Event::MemberChanged { room, user, role: Some(role) });
}

fn put_role<R: Rows>(step: &mut Step<'_, R>, room: RoomId, user: Handle, role: RoomRole) {
    let key = Key::Member(room, user.as_str());
    let row: MemberRow = rows::get(step.rows, &key).expect("a checked event's member exists");
    rows::put(step.rows, &key, &MemberRow { role: role.into(), ..row });
    step.events.push(Event::MemberChanged { room, user, role: Some(role) });
}
