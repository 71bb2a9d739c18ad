//! `Machine::check` notices: each invariant is broken once, by hand, in rows that were sound.

mod common;

use common::{CLUSTER, Log, Person, cluster_init, derive, producer_id, room_id, user_add};
use prost::Message;
use unibus_machine::key::Key;
use unibus_machine::{Machine, MemoryRows, Rows};
use unibus_proto::id::{DeviceId, GroupId, RequestId};
use unibus_proto::log::proposal::Command;
use unibus_proto::log::{DeviceListPut, RoomReserve, UserAttach};
use unibus_proto::row::{
    AnswersRow, DeviceListRow, DirectoryRow, GroupRow, MemberRow, ProducerCountRow, ProducerRow, RoomRow, RosterRow,
    SegmentRow, UserRow,
};
use unibus_proto::v1::{DeviceList, RoomPolicy, RoomRetention, RoomRole, Signed, UserRole, UserStatus};

fn shard() -> MemoryRows {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let mut log = Log::shard();
    log.apply(alice.create("a.b"));
    log.add_member(&alice, "a.b", &bob, RoomRole::Member);
    log.publish(alice.group("a.b", "p", 1, &["one", "two"]));
    log.publish(bob.group("a.b", "q", 1, &["three"]));
    log.publish(alice.group("a.b", "p", 3, &["four"]));
    log.apply(Command::UserAttach(UserAttach { handle: "alice".into(), user_key: alice.public_key() }));
    let bundle = alice.signed_bundle();
    let bundle_hashes = vec![bundle.payload_hash().to_vec().into()];
    let list = DeviceList { user: "alice".into(), version: 1, bundle_hashes, ..DeviceList::default() };
    let device_list = Some(Signed::sign(CLUSTER, &list, &[&alice.user_key]));
    log.apply(Command::DeviceListPut(DeviceListPut { device_list, bundles: vec![bundle] }));
    log.machine.into_rows()
}

fn meta() -> MemoryRows {
    let alice = Person::new("alice");
    let mut log = Log::new(GroupId::META);
    log.apply(Command::ClusterInit(cluster_init(3)));
    log.apply(user_add(&alice, UserRole::Admin, 1));
    let Command::RoomCreate(create) = alice.create("a.b") else { unreachable!() };
    log.apply(Command::RoomReserve(RoomReserve { event: create.event, actor: create.actor, shard: 1 }));
    log.machine.into_rows()
}

/// The rows are sound, and are not any more after `damage`; the problem names `word`.
fn noticed(group: GroupId, mut rows: MemoryRows, word: &str, damage: impl FnOnce(&mut MemoryRows)) {
    let check = |rows: &MemoryRows| Machine::new(group, CLUSTER, rows.clone()).check();
    assert_eq!(check(&rows), Ok(()));
    let before = rows.clone();
    damage(&mut rows);
    assert!(rows != before, "{word}: nothing was damaged");
    let problem = check(&rows).expect_err(word);
    assert!(problem.contains(word), "expected {word:?} in: {problem}");
}

/// Rewrites a row.
fn edit<M: Message + Default>(key: Key<'_>, edit: impl FnOnce(&mut M)) -> impl FnOnce(&mut MemoryRows) {
    let key = key.encode();
    move |rows| {
        let mut row = M::decode(rows.get(&key).expect("the row is there")).unwrap();
        edit(&mut row);
        rows.put(key, row.encode_to_vec().into());
    }
}

fn drop_row(key: Key<'_>) -> impl FnOnce(&mut MemoryRows) {
    let key = key.encode();
    move |rows| rows.delete(&key)
}

fn add_row(key: Key<'_>, row: impl Message) -> impl FnOnce(&mut MemoryRows) {
    let key = key.encode();
    move |rows| rows.put(key, row.encode_to_vec().into())
}

#[test]
fn of_rooms() {
    let (shard_id, room) = (GroupId(1), room_id("a.b"));
    let noticed = |word: &str, damage: Box<dyn FnOnce(&mut MemoryRows)>| noticed(shard_id, shard(), word, damage);
    noticed("rooms", Box::new(edit(Key::Group, |row: &mut GroupRow| row.rooms = 2)));
    noticed("members", Box::new(edit(Key::Room(room), |row: &mut RoomRow| row.members = 3)));
    noticed("admins", Box::new(edit(Key::Room(room), |row: &mut RoomRow| row.admins = 2)));
    noticed("members", Box::new(drop_row(Key::Member(room, "bob"))));
    noticed("members", Box::new(add_row(Key::Member(room, "carol"), MemberRow { role: 1, ..Default::default() })));
    noticed("yet to come", Box::new(edit(Key::Member(room, "bob"), |row: &mut MemberRow| row.since_sequence = 99)));
    noticed("no role", Box::new(edit(Key::Member(room, "bob"), |row: &mut MemberRow| row.role = 0)));
    noticed("roster hash", Box::new(edit(Key::Room(room), |row: &mut RoomRow| row.roster_hash = vec![0; 32].into())));
    noticed("height", Box::new(edit(Key::Room(room), |row: &mut RoomRow| row.roster_height = 5)));
    noticed("expected height 0", Box::new(drop_row(Key::Roster(room, 0))));
    let sequence = |row: &mut RosterRow| row.entry.as_mut().unwrap().sequence = 0;
    noticed("ascend", Box::new(edit(Key::Roster(room, 1), sequence)));
    noticed("floor", Box::new(edit(Key::Room(room), |row: &mut RoomRow| row.floor = 99)));
    noticed("does not belong", Box::new(add_row(Key::User("alice"), UserRow::default())));
}

#[test]
fn of_producers() {
    let (shard_id, room, id) = (GroupId(1), room_id("a.b"), producer_id("p"));
    let noticed = |word: &str, damage: Box<dyn FnOnce(&mut MemoryRows)>| noticed(shard_id, shard(), word, damage);
    let producer = |change: fn(&mut ProducerRow)| Box::new(edit(Key::Producer(room, id), change));
    noticed("head", Box::new(edit(Key::Room(room), |row: &mut RoomRow| row.next_sequence = 4)));
    let answers = |change: fn(&mut AnswersRow)| Box::new(edit(Key::Answers(room, id, 1), change));
    noticed("runs", answers(|row| row.runs[1].first_number = 9));
    noticed("ascend", answers(|row| row.runs[1].first_sequence = 0));
    noticed("last number", producer(|row| row.last_number = 9));
    noticed("answers of", answers(|row| drop(row.runs.remove(0))));
    noticed("digests", answers(|row| row.digests = row.digests.slice(4..)));
    noticed("producer is not there", Box::new(add_row(Key::Answers(room, producer_id("x"), 1), AnswersRow::default())));
    noticed("counted", Box::new(edit(Key::ProducerCount(room, "alice"), |row: &mut ProducerCountRow| row.count = 2)));
    noticed("counted", Box::new(drop_row(Key::ProducerCount(room, "alice"))));
    noticed("deadlines", Box::new(drop_row(Key::ProducerExpiry(1_000 + 86_400_000, room, id))));
    noticed("not before it expires", producer(|row| (row.used_ms, row.opened_ms) = (0, 0)));
}

#[test]
fn of_devices_and_segments() {
    let (shard_id, alice) = (GroupId(1), Person::new("alice"));
    let noticed = |word: &str, damage: Box<dyn FnOnce(&mut MemoryRows)>| noticed(shard_id, shard(), word, damage);
    let list = |change: fn(&mut DeviceListRow)| Box::new(edit(Key::DeviceList("alice"), change));
    noticed("version", list(|row| row.version = 2));
    noticed("hash", list(|row| row.hash = vec![0; 32].into()));
    noticed("live devices", Box::new(drop_row(Key::Device("alice", alice.device()))));
    let other = DeviceId(derive("other"));
    noticed(
        "not live by its list",
        Box::new(move |rows: &mut MemoryRows| {
            let row = rows.get(&Key::Device("alice", alice.device()).encode()).unwrap();
            rows.delete(&Key::Device("alice", alice.device()).encode());
            rows.put(Key::Device("alice", other).encode(), row);
        }),
    );
    let room = room_id("a.b");
    let sealed = SegmentRow { length: 1, hash: vec![0; 32].into(), live: 1 };
    noticed("is the open one", Box::new(add_row(Key::Segment(0), sealed)));
    noticed("live in the open segment", Box::new(edit(Key::Group, |row: &mut GroupRow| row.segment_live = 0)));
    noticed("its spans have", Box::new(edit(Key::Room(room), |row: &mut RoomRow| row.size_bytes += 1)));
    noticed("spans reach", Box::new(edit(Key::Room(room), |row: &mut RoomRow| row.newest = None)));
    noticed("no row says so", Box::new(edit(Key::Room(room), |row: &mut RoomRow| row.retention_due_ms = 9)));
    noticed(
        "rooms are due",
        Box::new(|rows: &mut MemoryRows| {
            rows.put(Key::RetentionDue(9, room).encode(), Default::default());
        }),
    );
    let keeps_one = RoomRetention { max_messages: 1, ..RoomRetention::default() };
    let keeps_one = RoomPolicy { retention: Some(keeps_one), ..common::PLAIN };
    noticed(
        "at most 1 are kept",
        Box::new(edit(Key::Room(room), move |row: &mut RoomRow| row.policy = Some(keeps_one))),
    );
}

#[test]
fn of_meta() {
    let room = room_id("a.b");
    let noticed = |word: &str, damage: Box<dyn FnOnce(&mut MemoryRows)>| noticed(GroupId::META, meta(), word, damage);
    let revoke = |row: &mut UserRow| row.user.as_mut().unwrap().set_status(UserStatus::Revoked);
    noticed("none of them active", Box::new(edit(Key::User("alice"), revoke)));
    noticed(
        "holds",
        Box::new(edit(Key::User("alice"), |row: &mut UserRow| row.user.as_mut().unwrap().handle = "bob".into())),
    );
    noticed("not its own", Box::new(drop_row(Key::Subject("a.b"))));
    noticed(
        "subjects",
        Box::new(|rows: &mut MemoryRows| {
            let row = rows.get(&Key::Subject("a.b").encode()).unwrap();
            rows.put(Key::Subject("c.d").encode(), row);
        }),
    );
    noticed("rooms", Box::new(edit(Key::Group, |row: &mut GroupRow| row.rooms = 0)));
    noticed("event is kept", Box::new(edit(Key::Directory(room), |row: &mut DirectoryRow| row.event = None)));
    noticed("pending", Box::new(drop_row(Key::PendingRoom(room))));
    noticed("no deadline", Box::new(drop_row(Key::RequestExpiry(1_000 + 86_400_000, RequestId([1; 16])))));
    noticed("deadlines", Box::new(drop_row(Key::Request(RequestId([1; 16])))));
    noticed("does not parse", Box::new(|rows: &mut MemoryRows| rows.put(vec![0xc0], Default::default())));
}
