//! Documents and commands that must be refused, by cause; and what the views show.

mod common;

use bytes::Bytes;
use common::{CLUSTER, Log, PLAIN, Person, cluster_init, room_id, user_add};
use unibus_machine::{Machine, MemoryRows, RosterCheck, verify_bundle, verify_create, verify_roster};
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{ClusterId, GroupId, Handle, NodeId};
use unibus_proto::log::proposal::Command;
use unibus_proto::log::reply::Reply as Answer;
use unibus_proto::log::{
    ClusterInit, PublishBatch, RoomActivate, RoomCreate, RoomReserve, RosterAppend, SegmentSealed, UserAttach,
};
use unibus_proto::signed::sha256;
use unibus_proto::v1::{
    ActorProof, DeviceBundle, DeviceKind, RoomRole, RosterEvent, RosterOp, Signed, UserRole, UserStatus,
};

fn alice() -> Person {
    Person::new("alice")
}

fn create_code(edit: impl FnOnce(&mut RosterEvent)) -> ErrorCode {
    let alice = alice();
    let mut event = alice.create_event("a.b", PLAIN);
    edit(&mut event);
    let create = RoomCreate { event: Some(alice.sign(&event)), actor: Some(alice.proof()) };
    Log::shard().refused(Command::RoomCreate(create)).error_code()
}

#[test]
fn a_creation_is_refused_unless_each_field_is_right() {
    use ErrorCode::{Invalid, VersionSkew};
    assert_eq!(create_code(|event| event.room_id = vec![1; 15].into()), Invalid);
    assert_eq!(create_code(|event| event.height = 1), Invalid);
    assert_eq!(create_code(|event| event.previous_hash = vec![1; 32].into()), Invalid);
    assert_eq!(create_code(|event| event.op = 99), Invalid);
    assert_eq!(create_code(|event| event.set_op(RosterOp::Add)), Invalid);
    assert_eq!(create_code(|event| event.subject_user = "bob".into()), Invalid);
    assert_eq!(create_code(|event| event.subject_key_fingerprint = vec![0; 32].into()), Invalid);
    assert_eq!(create_code(|event| event.set_role(RoomRole::Member)), Invalid);
    assert_eq!(create_code(|event| event.actor_user = "bob".into()), Invalid);
    assert_eq!(create_code(|event| event.actor_user = String::new()), Invalid);
    assert_eq!(create_code(|event| event.actor_device = vec![0; 16].into()), Invalid);
    assert_eq!(create_code(|event| event.policy = None), Invalid);
    assert_eq!(create_code(|event| event.policy.as_mut().unwrap().encrypt = true), VersionSkew);
    assert_eq!(create_code(|event| event.subject = "a..b".into()), Invalid);
    assert_eq!(create_code(|event| event.subject = "x".repeat(20_000)), Invalid);
}

#[test]
fn a_creation_needs_the_signatures_of_its_proof() {
    let (alice, mallory) = (alice(), Person::new("mallory"));
    let event = alice.create_event("a.b", PLAIN);
    let other_cluster = Signed::sign(ClusterId([8; 16]), &event, &[&alice.device_key]);
    let by_other_key = mallory.sign(&event);
    let unsigned = Signed { signatures: vec![], ..alice.sign(&event) };
    let altered =
        Signed { payload: [&alice.sign(&event).payload[..], &[0x68, 9]].concat().into(), ..alice.sign(&event) };
    let other_type = Signed { r#type: "device-list".into(), ..alice.sign(&event) };
    for (what, event) in [
        ("another cluster", other_cluster),
        ("another key", by_other_key),
        ("unsigned", unsigned),
        ("altered", altered),
        ("another type", other_type),
    ] {
        let reject = verify_create(CLUSTER, &event, &alice.proof()).unwrap_err();
        assert_eq!(reject.error_code(), ErrorCode::Invalid, "{what}");
    }
    let event = alice.sign(&event);
    for (what, proof) in [
        ("no proof", ActorProof::default()),
        ("another user key", ActorProof { user_key: mallory.public_key(), ..alice.proof() }),
        ("another's bundle", ActorProof { bundle: Some(mallory.signed_bundle()), ..alice.proof() }),
        ("a key that is no point", ActorProof { user_key: vec![2; 32].into(), ..alice.proof() }),
    ] {
        let reject = verify_create(CLUSTER, &event, &proof).unwrap_err();
        assert_eq!(reject.error_code(), ErrorCode::Invalid, "{what}");
    }
    verify_create(CLUSTER, &event, &alice.proof()).unwrap();
}

#[test]
fn a_bundle_is_refused_unless_each_field_is_right() {
    let check = |edit: &dyn Fn(&mut DeviceBundle)| {
        let mut alice = alice();
        edit(&mut alice.bundle);
        verify_bundle(CLUSTER, &alice.signed_bundle(), &alice.handle, &alice.public_key())
    };
    check(&|_| ()).unwrap();
    type Edit<'a> = (&'a str, &'a dyn Fn(&mut DeviceBundle));
    let edits: [Edit; 10] = [
        ("user", &|bundle| bundle.user = "bob".into()),
        ("fingerprint", &|bundle| bundle.user_key_fingerprint = vec![0; 32].into()),
        ("device id", &|bundle| bundle.device_id = vec![0; 16].into()),
        ("curve key of another id", &|bundle| bundle.curve25519_key = vec![0; 32].into()),
        ("short curve key", &|bundle| bundle.curve25519_key = vec![0; 31].into()),
        ("no kind", &|bundle| bundle.kind = 0),
        ("agent without owner", &|bundle| bundle.set_kind(DeviceKind::Agent)),
        ("service with owner", &|bundle| bundle.owner = "bob".into()),
        ("expires before it is made", &|bundle| (bundle.created_ms, bundle.expires_ms) = (5, 5)),
        ("many algorithms", &|bundle| bundle.algorithms = vec!["x".into(); 17]),
    ];
    for (what, edit) in edits {
        assert_eq!(check(edit).unwrap_err().error_code(), ErrorCode::Invalid, "{what}");
    }
    let alice = alice();
    let by_user_only = Signed::sign(CLUSTER, &alice.bundle, &[&alice.user_key]);
    let by_device_only = Signed::sign(CLUSTER, &alice.bundle, &[&alice.device_key]);
    for signed in [by_user_only, by_device_only] {
        verify_bundle(CLUSTER, &signed, &alice.handle, &alice.public_key()).unwrap_err();
    }
}

#[test]
fn an_expired_device_changes_no_roster() {
    let mut alice = alice();
    alice.bundle.expires_ms = 5_000;
    let mut log = Log::shard();
    log.apply(alice.create("a.b"));
    let append = log.roster_command(&alice, "a.b", |event| {
        event.set_op(RosterOp::Policy);
        event.policy = Some(PLAIN);
    });
    log.at_ms = 5_000;
    assert_eq!(log.refused(append.clone()).error_code(), ErrorCode::Forbidden);
    let mut log = Log::shard();
    log.apply(alice.create("a.b"));
    log.at_ms = 4_999;
    assert!(matches!(log.answer(append), Answer::Roster(reply) if reply.sequence == 1));
}

/// The room's shard cannot refuse what meta has reserved, or the directory would wait for ever.
#[test]
fn a_room_of_a_device_that_expired_meanwhile_is_still_created() {
    let mut alice = alice();
    alice.bundle.expires_ms = 5_000;
    let mut meta = Log::new(GroupId::META);
    meta.apply(Command::ClusterInit(cluster_init(3)));
    meta.apply(user_add(&alice, UserRole::Admin, 1));
    let Command::RoomCreate(create) = alice.create("a.b") else { unreachable!() };
    let reserve = RoomReserve { event: create.event.clone(), actor: create.actor.clone(), shard: 1 };
    meta.answer(Command::RoomReserve(reserve.clone()));
    let pending = meta.machine.pending_rooms(10);
    assert_eq!((pending[0].0, &pending[0].1.event), (room_id("a.b"), &create.event));

    let mut shard = Log::shard();
    shard.at_ms = 6_000;
    assert!(matches!(shard.answer(Command::RoomCreate(create)), Answer::Room(reply) if reply.created));
    meta.apply(Command::RoomActivate(RoomActivate { room_id: room_id("a.b").to_bytes() }));
    assert!(meta.machine.pending_rooms(10).is_empty());

    let mut late = Log::new(GroupId::META);
    late.apply(Command::ClusterInit(cluster_init(3)));
    late.apply(user_add(&alice, UserRole::Admin, 1));
    late.at_ms = 5_000;
    assert_eq!(late.refused(Command::RoomReserve(reserve)).error_code(), ErrorCode::Forbidden);
}

#[test]
fn a_user_key_that_the_room_did_not_pin_acts_for_nobody() {
    let alice = alice();
    let mut log = Log::shard();
    log.apply(alice.create("a.b"));
    // The same handle under another user key, with bundles that are right in themselves.
    let mut impostor = alice.clone();
    impostor.user_key = Person::new("mallory").user_key;
    impostor.bundle.user_key_fingerprint = sha256(impostor.user_key.verifying_key().as_bytes()).to_vec().into();
    let append = log.roster_command(&impostor, "a.b", |event| {
        event.set_op(RosterOp::Policy);
        event.policy = Some(PLAIN);
    });
    assert_eq!(log.refused(append).error_code(), ErrorCode::Forbidden);
}

#[test]
fn admission_runs_the_check_that_apply_runs() {
    let (alice, bob) = (alice(), Person::new("bob"));
    let mut log = Log::shard();
    log.apply(alice.create("a.b"));
    let Command::RosterAppend(RosterAppend { event, actor }) = log.roster_command(&alice, "a.b", |event| {
        event.set_op(RosterOp::Add);
        event.subject_user = "bob".into();
        event.subject_key_fingerprint = bob.fingerprint();
        event.set_role(RoomRole::Reader);
    }) else {
        unreachable!()
    };
    let (event, actor) = (event.unwrap(), actor.unwrap());
    let check = |log: &Log| verify_roster(log.machine.rows(), CLUSTER, &event, &actor, log.at_ms);
    assert!(matches!(check(&log), Ok(RosterCheck::Next(change)) if change.height == 1));
    log.apply(Command::RosterAppend(RosterAppend { event: Some(event.clone()), actor: Some(actor.clone()) }));
    assert!(matches!(check(&log), Ok(RosterCheck::Known(sequence)) if sequence.0 == 1));
}

#[test]
fn a_plan_is_refused_unless_each_field_is_right() {
    let refused = |edit: &dyn Fn(&mut ClusterInit)| {
        let mut init = cluster_init(3);
        edit(&mut init);
        let code = Log::new(GroupId::META).refused(Command::ClusterInit(init)).error_code();
        assert_eq!(code, ErrorCode::Invalid);
    };
    refused(&|init| init.cluster_id = vec![8; 16].into());
    refused(&|init| init.shards = 0);
    refused(&|init| init.shards = 65);
    refused(&|init| init.nodes.clear());
    refused(&|init| init.nodes[0].node_id = 0);
    refused(&|init| init.nodes[1].node_id = 1);
    refused(&|init| init.nodes[1].name = "n1".into());
    refused(&|init| init.nodes[1].peer_address.clear());
    refused(&|init| init.nodes[1].sign_key = vec![1; 31].into());
    refused(&|init| init.nodes[1].directory_id = Bytes::new());
}

#[test]
fn commands_of_the_other_kind_of_group_are_refused() {
    let alice = alice();
    let create = alice.create("a.b");
    let attach = Command::UserAttach(UserAttach { handle: "alice".into(), user_key: alice.public_key() });
    let sealed = Command::SegmentSealed(SegmentSealed { segment: 0, length: 1, hash: vec![0; 32].into() });
    for command in [create, attach, sealed, Command::PublishBatch(PublishBatch::default())] {
        assert_eq!(Log::new(GroupId::META).refused(command).error_code(), ErrorCode::Invalid);
    }
    let activate = Command::RoomActivate(RoomActivate { room_id: vec![0; 16].into() });
    for command in [Command::ClusterInit(cluster_init(3)), user_add(&alice, UserRole::Admin, 1), activate] {
        assert_eq!(Log::shard().refused(command).error_code(), ErrorCode::Invalid);
    }
}

#[test]
fn a_proposal_without_a_command_is_refused_and_moves_time() {
    let mut machine = Machine::new(GroupId(1), CLUSTER, MemoryRows::default());
    let entry = unibus_machine::Entry { group: GroupId(1), index: 1, term: 1 };
    let applied = machine.apply(entry, unibus_proto::log::Proposal { at_ms: 9, command: None });
    assert!(matches!(applied.reply.reply, Some(Answer::Rejected(reject)) if reject.code == "INVALID"));
    assert_eq!((applied.reply.at_ms, machine.log_time()), (9, 9));
}

#[test]
fn views_page_through_users_rooms_and_members() {
    let mut meta = Log::new(GroupId::META);
    meta.apply(Command::ClusterInit(cluster_init(3)));
    assert_eq!(meta.machine.cluster().unwrap().shards, 3);
    assert_eq!(meta.machine.nodes().len(), 3);
    assert_eq!(meta.machine.node(NodeId(2)).unwrap().name, "n2");
    let people: Vec<_> = ["alice", "bob", "carol", "dora"].map(Person::new).into();
    for (at, person) in people.iter().enumerate() {
        meta.apply(user_add(person, UserRole::Admin, at as u8));
        let subject = format!("room.{}", person.handle);
        let Command::RoomCreate(create) = person.create(&subject) else { unreachable!() };
        meta.apply(Command::RoomReserve(RoomReserve { event: create.event, actor: create.actor, shard: 1 }));
    }
    let handles = |users: Vec<unibus_proto::v1::User>| users.into_iter().map(|user| user.handle).collect::<Vec<_>>();
    let bob: Handle = "bob".parse().unwrap();
    assert_eq!(handles(meta.machine.users(None, 2)), ["alice", "bob"]);
    assert_eq!(handles(meta.machine.users(Some(&bob), 9)), ["carol", "dora"]);
    assert_eq!(meta.machine.user(&bob).unwrap().status(), UserStatus::Active);
    let page = meta.machine.directory_page(Some(&"room.bob".parse().unwrap()), 1);
    assert_eq!(page, [("room.carol".parse().unwrap(), room_id("room.carol"))]);
    assert_eq!(meta.machine.room_of(&"room.bob".parse().unwrap()), Some(room_id("room.bob")));
    assert_eq!(meta.machine.room_count(), 4);

    let mut shard = Log::shard();
    shard.apply(people[0].create("a.b"));
    shard.add_member(&people[0], "a.b", &people[2], RoomRole::Member);
    shard.add_member(&people[0], "a.b", &people[1], RoomRole::Reader);
    let members = |after: Option<&Handle>| {
        let members = shard.machine.members(room_id("a.b"), after, 9);
        members.into_iter().map(|(user, _)| user.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(members(None), ["alice", "bob", "carol"]);
    assert_eq!(members(Some(&bob)), ["carol"]);
    let roster = shard.machine.roster(room_id("a.b"), 1, 9);
    assert_eq!(roster.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [1, 2]);
}
