//! The room directory in meta: ids and subjects are reserved here, then the room's shard creates it.

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, RoomId};
use unibus_proto::limits::ROOMS_MAX;
use unibus_proto::log::{RoomActivate, RoomReply, RoomReserve};
use unibus_proto::row::{ClusterRow, DirectoryRow, SubjectRow};
use unibus_proto::v1::{ActorProof, Reject, Signed, UserStatus};

use crate::event::Event;
use crate::fields::{invalid, parse, reject, require, room_not_found};
use crate::key::Key;
use crate::roster::{Creation, verify_create};
use crate::rows::{self, Rows};
use crate::step::{Answer, Step, done};
use crate::user;

pub(crate) fn reserve<R: Rows>(step: &mut Step<'_, R>, reserve: RoomReserve) -> Result<Answer, Reject> {
    let event = reserve.event.unwrap_or_default();
    let actor = reserve.actor.unwrap_or_default();
    let creation = verify_create(step.cluster, &event, &actor)?;
    let room = creation.room;
    if let Some(row) = rows::get::<DirectoryRow>(step.rows, &Key::Directory(room)) {
        require(row.event_hash == creation.hash[..], || {
            reject(ErrorCode::AlreadyExists, format!("room id {room} belongs to another room; mint a new id"))
        })?;
        return Ok(answer(room, false, row.shard));
    }
    check_shard(step.rows, reserve.shard)?;
    check_creator(step, &creation, &actor)?;
    check_free(step, &creation)?;
    insert(step, creation, reserve.shard, event, actor);
    Ok(answer(room, true, reserve.shard))
}

fn check_shard<R: Rows>(rows: &R, shard: u32) -> Result<(), Reject> {
    let shards = rows::get::<ClusterRow>(rows, &Key::Cluster).map_or(0, |cluster| cluster.shards);
    require((1..=shards).contains(&shard), || invalid(format!("shard {shard}: the cluster has shards 1 to {shards}")))
}

/// Any active user may create rooms, with the key and a device that are his now.
fn check_creator<R: Rows>(step: &Step<'_, R>, creation: &Creation, actor: &ActorProof) -> Result<(), Reject> {
    let creator = &creation.creator;
    let user = user::find(step.rows, creator.as_str());
    let active = user.as_ref().is_some_and(|user| user.status() == UserStatus::Active);
    require(active, || {
        reject(ErrorCode::Forbidden, format!("{creator} is no active user of the cluster; ask an admin to add him"))
    })?;
    require(user.is_some_and(|user| user.user_key == actor.user_key), || {
        reject(
            ErrorCode::Forbidden,
            format!("{creator}: the event is proved with another user key than the cluster has"),
        )
    })?;
    creation.device.check_live(step.now())
}

fn check_free<R: Rows>(step: &Step<'_, R>, creation: &Creation) -> Result<(), Reject> {
    let subject = &creation.subject;
    require(!rows::exists(step.rows, &Key::Subject(subject.as_str())), || {
        reject(ErrorCode::AlreadyExists, format!("a room with subject {subject} exists; choose another subject"))
    })?;
    require(step.group.rooms < ROOMS_MAX, || {
        reject(ErrorCode::QuotaExceeded, format!("the cluster has {ROOMS_MAX} rooms, the most it may have"))
    })
}

fn insert<R: Rows>(step: &mut Step<'_, R>, creation: Creation, shard: u32, event: Signed, actor: ActorProof) {
    let Creation { room, subject, hash, .. } = creation;
    let row = DirectoryRow {
        subject: subject.to_string(),
        shard,
        active: false,
        event: Some(event),
        actor: Some(actor),
        event_hash: hash.to_vec().into(),
    };
    rows::put(step.rows, &Key::Directory(room), &row);
    rows::put(step.rows, &Key::Subject(subject.as_str()), &SubjectRow { room_id: room.to_bytes() });
    step.rows.put(Key::PendingRoom(room).encode(), Default::default());
    step.group.rooms += 1;
    step.events.push(Event::DirectoryChanged { room, subject, shard: GroupId(shard), active: false });
}

pub(crate) fn activate<R: Rows>(step: &mut Step<'_, R>, activate: RoomActivate) -> Result<Answer, Reject> {
    let room = RoomId::from_bytes(&activate.room_id).map_err(invalid)?;
    let row: DirectoryRow = rows::get(step.rows, &Key::Directory(room)).ok_or_else(|| room_not_found(room))?;
    if row.active {
        return Ok(done());
    }
    let (subject, shard) = (parse(&row.subject)?, GroupId(row.shard));
    rows::put(step.rows, &Key::Directory(room), &DirectoryRow { active: true, event: None, actor: None, ..row });
    rows::delete(step.rows, &Key::PendingRoom(room));
    step.events.push(Event::DirectoryChanged { room, subject, shard, active: true });
    Ok(done())
}

fn answer(room: RoomId, created: bool, shard: u32) -> Answer {
    Answer::Room(RoomReply { room_id: room.to_bytes(), created, shard })
}
