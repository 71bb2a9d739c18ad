//! The invariants that the rows must satisfy. They are checked after each apply in tests and chaos: each
//! function here is one property.

use std::collections::BTreeSet;

use prost::Message;
use unibus_proto::id::{DeviceId, Handle, RoomId};
use unibus_proto::limits::{NODES_MAX, PRODUCER_WINDOW, PRODUCERS_PER_USER_MAX, ROOM_MEMBERS_MAX};
use unibus_proto::row::{
    AnswersRow, DeviceListRow, DeviceRow, DirectoryRow, MemberRow, ProducerCountRow, ProducerRow, RequestRow, RoomRow,
    RosterRow, SubjectRow, UserRow,
};
use unibus_proto::subject::Subject;
use unibus_proto::v1::{DeviceBundle, DeviceList, NodeState, RoomRole, RosterEvent, Signed, UserRole};

use crate::apply::Machine;
use crate::key::{self, Key, ordinal};
use crate::rows::{self, Rows};
use crate::{answers, check_retention, node, producer, request, user};

pub(crate) type Result = std::result::Result<(), String>;

pub(crate) fn check<R: Rows>(machine: &Machine<R>) -> Result {
    let rows = &machine.rows;
    every_row_belongs_to_the_group(machine)?;
    rooms_are_counted(machine)?;
    one_active_admin_stays(rows)?;
    nodes_are_sound(rows)?;
    subjects_and_directory_agree(rows)?;
    pending_rooms_are_the_inactive_ones(rows)?;
    remembered_answers_expire(rows)?;
    each_row::<_, RoomRow>(rows, &[ordinal::ROOM], |key, room| match key {
        Key::Room(id) => room_is_sound(rows, id, &room),
        _ => Ok(()),
    })?;
    each_row::<_, ProducerRow>(rows, &[ordinal::PRODUCER], |key, row| producer_is_sound(rows, key, &row))?;
    producers_are_counted(rows)?;
    answers_have_their_producer(rows)?;
    deadlines_have_their_producer(rows)?;
    each_row::<_, DeviceListRow>(rows, &[ordinal::DEVICE_LIST], |key, row| devices_match_their_list(rows, key, &row))?;
    check_retention::check(machine)
}

pub(crate) fn ensure(holds: bool, problem: impl FnOnce() -> String) -> Result {
    if holds { Ok(()) } else { Err(problem()) }
}

/// Checks each row whose key starts with `prefix`.
pub(crate) fn each_row<R: Rows, M: Message + Default>(
    rows: &R,
    prefix: &[u8],
    mut check: impl FnMut(Key<'_>, M) -> Result,
) -> Result {
    let (from, to) = key::range_of(prefix);
    for (bytes, value) in rows.scan(&from, &to, usize::MAX) {
        let key = Key::parse(&bytes).ok_or_else(|| format!("key {bytes:?} does not parse"))?;
        let row = M::decode(value).map_err(|error| format!("{key:?}: {error}"))?;
        check(key, row).map_err(|problem| format!("{key:?}: {problem}"))?;
    }
    Ok(())
}

pub(crate) fn count<R: Rows>(rows: &R, prefix: &[u8]) -> u64 {
    let (from, to) = key::range_of(prefix);
    rows.scan(&from, &to, usize::MAX).len() as u64
}

fn every_row_belongs_to_the_group<R: Rows>(machine: &Machine<R>) -> Result {
    for (bytes, _) in machine.rows.scan(&[], &[u8::MAX], usize::MAX) {
        let key = Key::parse(&bytes).ok_or_else(|| format!("key {bytes:?} does not parse"))?;
        let is_shard_key = key.ordinal() >= ordinal::ROOM;
        let belongs = key == Key::Group || is_shard_key != machine.group.is_meta();
        ensure(belongs, || format!("{key:?}: does not belong to group {}", machine.group))?;
    }
    Ok(())
}

fn rooms_are_counted<R: Rows>(machine: &Machine<R>) -> Result {
    let kind = if machine.group.is_meta() { ordinal::DIRECTORY } else { ordinal::ROOM };
    let (found, counted) = (count(&machine.rows, &[kind]), machine.room_count());
    ensure(found == counted, || format!("{found} rooms, but the group counts {counted}"))
}

/// From the first admin on, one stays active.
fn one_active_admin_stays<R: Rows>(rows: &R) -> Result {
    let (mut admins, mut active) = (0, 0);
    each_row::<_, UserRow>(rows, &[ordinal::USER], |key, row| {
        let user = row.user.ok_or("no user")?;
        ensure(key == Key::User(&user.handle), || format!("it holds {:?}", user.handle))?;
        admins += u64::from(user.role() == UserRole::Admin);
        active += u64::from(user::is_active_admin(&user));
        Ok(())
    })?;
    ensure(admins == 0 || active > 0, || format!("{admins} admins, none of them active"))
}

/// From the first node on, one stays; names are unique; who replaces and who is replaced know each other.
fn nodes_are_sound<R: Rows>(rows: &R) -> Result {
    let nodes = node::all(rows);
    let by_id = |id: u64| nodes.iter().find(|row| row.node.as_ref().is_some_and(|node| node.node_id == id));
    let mut names = BTreeSet::new();
    for row in &nodes {
        let node = row.node.as_ref().ok_or("a node row without a node")?;
        let id = node.node_id;
        let state = node::state(row);
        ensure(state != NodeState::Waiting, || format!("node {id} waits, and is registered"))?;
        ensure(state == NodeState::Removed || names.insert(&node.name), || {
            format!("two nodes are named {:?}", node.name)
        })?;
        let agrees =
            row.replaced_by == 0 || (!node::stays(row) && by_id(row.replaced_by).is_some_and(|by| by.replaces == id));
        ensure(agrees, || format!("node {id} is replaced by {}, which does not know it", row.replaced_by))?;
        let agrees = row.replaces == 0 || by_id(row.replaces).is_some_and(|replaced| replaced.replaced_by == id);
        ensure(agrees, || format!("node {id} replaces {}, which does not know it", row.replaces))?;
    }
    let staying = nodes.iter().filter(|row| node::stays(row)).count();
    ensure(nodes.is_empty() || (1..=NODES_MAX).contains(&staying), || format!("{staying} nodes stay"))?;
    let may_lead = nodes.iter().any(|row| node::state(row) == NodeState::Voter);
    ensure(nodes.is_empty() || may_lead, || "no node may lead".into())
}

fn subjects_and_directory_agree<R: Rows>(rows: &R) -> Result {
    each_row::<_, DirectoryRow>(rows, &[ordinal::DIRECTORY], |key, row| {
        let Key::Directory(room) = key else { return Ok(()) };
        row.subject.parse::<Subject>().map_err(|error| error.to_string())?;
        let subject: Option<SubjectRow> = rows::get(rows, &Key::Subject(&row.subject));
        let agrees = subject.is_some_and(|subject| subject.room_id == room.0[..]);
        ensure(agrees, || format!("subject {:?} is not its own", row.subject))?;
        ensure(row.active == row.event.is_none(), || "the event is kept exactly until it is active".into())
    })?;
    let (rooms, subjects) = (count(rows, &[ordinal::DIRECTORY]), count(rows, &[ordinal::SUBJECT]));
    ensure(rooms == subjects, || format!("{rooms} rooms in the directory, but {subjects} subjects"))
}

fn pending_rooms_are_the_inactive_ones<R: Rows>(rows: &R) -> Result {
    let mut inactive = 0;
    each_row::<_, DirectoryRow>(rows, &[ordinal::DIRECTORY], |key, row| {
        let Key::Directory(room) = key else { return Ok(()) };
        inactive += u64::from(!row.active);
        let is_pending = rows::exists(rows, &Key::PendingRoom(room));
        ensure(is_pending != row.active, || "pending and active must differ".into())
    })?;
    let pending = count(rows, &[ordinal::PENDING_ROOM]);
    ensure(pending == inactive, || format!("{pending} rooms are pending, but {inactive} are inactive"))
}

fn remembered_answers_expire<R: Rows>(rows: &R) -> Result {
    each_row::<_, RequestRow>(rows, &[ordinal::REQUEST], |key, row| {
        let Key::Request(id) = key else { return Ok(()) };
        ensure(rows::exists(rows, &Key::RequestExpiry(request::expires(row.at_ms), id)), || "no deadline".into())
    })?;
    let (answers, deadlines) = (count(rows, &[ordinal::REQUEST]), count(rows, &[ordinal::REQUEST_EXPIRY]));
    ensure(answers == deadlines, || format!("{answers} remembered answers, but {deadlines} deadlines"))
}

fn room_is_sound<R: Rows>(rows: &R, room: RoomId, row: &RoomRow) -> Result {
    let (mut members, mut admins) = (0, 0);
    each_row::<_, MemberRow>(rows, &[&[ordinal::MEMBER], &room.0[..]].concat(), |key, member| {
        let Key::Member(_, user) = key else { return Ok(()) };
        user.parse::<Handle>().map_err(|error| error.to_string())?;
        members += 1;
        admins += u32::from(member.role() == RoomRole::Admin);
        ensure(member.role() != RoomRole::Unspecified, || "no role".into())?;
        ensure(member.since_sequence < row.next_sequence, || "since a sequence that is yet to come".into())
    })?;
    ensure((members, admins) == (row.members, row.admins), || {
        format!("{members} members, {admins} admins; the room counts {} and {}", row.members, row.admins)
    })?;
    ensure(admins >= 1 && members <= ROOM_MEMBERS_MAX, || format!("{admins} admins of {members} members"))?;
    roster_is_a_chain(rows, room, row)
}

fn roster_is_a_chain<R: Rows>(rows: &R, room: RoomId, row: &RoomRow) -> Result {
    let (mut next_height, mut previous, mut newest) = (0, Vec::new(), None);
    each_row::<_, RosterRow>(rows, &[&[ordinal::ROSTER], &room.0[..]].concat(), |key, roster| {
        let Key::Roster(_, height) = key else { return Ok(()) };
        let entry = roster.entry.ok_or("no entry")?;
        let event = entry.event.ok_or("no event")?;
        let document: RosterEvent = event.decode_unverified().map_err(|error| error.to_string())?;
        ensure(height == next_height && document.height == height, || format!("expected height {next_height}"))?;
        ensure(document.previous_hash == previous, || "does not name the event before it".into())?;
        ensure(newest.is_none_or(|newest| newest < entry.sequence), || "sequences do not ascend".into())?;
        next_height += 1;
        newest = Some(entry.sequence);
        previous = event.payload_hash().to_vec();
        Ok(())
    })?;
    ensure(next_height == row.roster_height + 1, || format!("{next_height} events, height {}", row.roster_height))?;
    ensure(row.roster_hash == previous, || "its roster hash is not that of the newest event".into())?;
    ensure(newest < Some(row.next_sequence), || "next sequence is not above the roster's".into())
}

fn producer_is_sound<R: Rows>(rows: &R, key: Key<'_>, row: &ProducerRow) -> Result {
    let Key::Producer(room, id) = key else { return Ok(()) };
    let (runs, digests) = answers::all(rows, room, id);
    let room: RoomRow = rows::get(rows, &Key::Room(room)).ok_or("its room is not there")?;
    DeviceId::from_bytes(&row.device_id).map_err(|error| error.to_string())?;
    let mut next = runs.first().map_or(row.last_number + 1, |run| run.first_number);
    let mut next_sequence = 0;
    ensure(next >= 1, || "numbers start at 1".into())?;
    for run in &runs {
        ensure(run.first_number == next && run.count > 0, || format!("runs: expected number {next}"))?;
        next += u64::from(run.count);
        if run.reject.is_empty() {
            ensure(run.first_sequence >= next_sequence, || "sequences of its runs do not ascend".into())?;
            next_sequence = run.first_sequence + u64::from(run.count);
        }
    }
    ensure(next == row.last_number + 1, || format!("runs end before {next}, last number {}", row.last_number))?;
    ensure(next_sequence <= room.next_sequence, || "a run ends above the room's head".into())?;
    let window = row.last_number.min(PRODUCER_WINDOW);
    let kept: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
    ensure(kept >= window, || format!("answers of {kept} numbers, expected those of the last {window}"))?;
    ensure(digests.len() as u64 >= 4 * window, || format!("{} bytes of digests", digests.len()))
}

fn producers_are_counted<R: Rows>(rows: &R) -> Result {
    let mut counted = 0;
    each_row::<_, ProducerCountRow>(rows, &[ordinal::PRODUCER_COUNT], |key, row| {
        let Key::ProducerCount(room, user) = key else { return Ok(()) };
        let (from, to) = key::range_of(&[&[ordinal::PRODUCER], &room.0[..]].concat());
        let producers = rows.scan(&from, &to, usize::MAX).into_iter();
        let owners = producers.map(|(key, value)| rows::decode::<ProducerRow>(&key, value).user);
        let found = owners.filter(|owner| owner == user).count() as u32;
        counted += u64::from(row.count);
        let holds = row.count == found && (1..=PRODUCERS_PER_USER_MAX).contains(&found);
        ensure(holds, || format!("{found} producers, counted {}", row.count))
    })?;
    let producers = count(rows, &[ordinal::PRODUCER]);
    ensure(producers == counted, || format!("{producers} producers, {counted} counted"))
}

fn answers_have_their_producer<R: Rows>(rows: &R) -> Result {
    each_row::<_, AnswersRow>(rows, &[ordinal::ANSWERS], |key, _| {
        let Key::Answers(room, producer, _) = key else { return Ok(()) };
        ensure(rows::exists(rows, &Key::Producer(room, producer)), || "its producer is not there".into())
    })
}

fn deadlines_have_their_producer<R: Rows>(rows: &R) -> Result {
    let (from, to) = key::range_of_kind(ordinal::PRODUCER_EXPIRY);
    let deadlines = rows.scan(&from, &to, usize::MAX);
    for (bytes, _) in &deadlines {
        let Some(Key::ProducerExpiry(at, room, id)) = Key::parse(bytes) else { continue };
        let row: Option<ProducerRow> = rows::get(rows, &Key::Producer(room, id));
        let holds = row.is_some_and(|row| at <= producer::deadline(&row));
        ensure(holds, || format!("deadline {at} of producer {id} in room {room}: not before it expires"))?;
    }
    let producers = count(rows, &[ordinal::PRODUCER]);
    ensure(producers == deadlines.len() as u64, || format!("{producers} producers, {} deadlines", deadlines.len()))
}

fn devices_match_their_list<R: Rows>(rows: &R, key: Key<'_>, row: &DeviceListRow) -> Result {
    let Key::DeviceList(user) = key else { return Ok(()) };
    let list = match &row.device_list {
        Some(signed) => {
            ensure(row.hash == signed.payload_hash()[..], || "its hash is not that of its list".into())?;
            signed.decode_unverified::<DeviceList>().map_err(|error| error.to_string())?
        }
        None => DeviceList::default(),
    };
    ensure(list.version == row.version, || format!("version {}, list of version {}", row.version, list.version))?;
    let (from, to) = key::range_of_devices(user);
    let devices = rows.scan(&from, &to, usize::MAX);
    ensure(devices.len() == list.bundle_hashes.len(), || format!("{} live devices", devices.len()))?;
    for (key, value) in devices {
        let bundle = rows::decode::<DeviceRow>(&key, value).bundle;
        device_is_listed(&key, &bundle.ok_or("no bundle")?, &list)?;
    }
    Ok(())
}

fn device_is_listed(key: &[u8], signed: &Signed, list: &DeviceList) -> Result {
    let bundle: DeviceBundle = signed.decode_unverified().map_err(|error| error.to_string())?;
    let is_named = list.bundle_hashes.iter().any(|hash| *hash == signed.payload_hash()[..]);
    let has_ended = list.ended.iter().any(|ended| ended.device_id == bundle.device_id);
    let is_its_own = matches!(Key::parse(key), Some(Key::Device(_, id)) if bundle.device_id == id.0[..]);
    ensure(is_named && !has_ended && is_its_own, || format!("device of bundle {bundle:?}: not live by its list"))
}
