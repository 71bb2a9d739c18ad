//! Rooms: created once, found by members only.

use unibus_broker::service::Caller;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::RoomId;
use unibus_proto::v1::*;

use crate::cluster::{Cluster, by_subject, eventually, id_of, identity};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_is_created_once() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 2).await;
    let request = alice.create_request("ops.dpkg");
    let first = alice.service.create_room(&alice.caller, request.clone()).await.unwrap();
    assert!(first.created);
    let there = alice.at(cluster.service(3)).await;
    let again = there.service.create_room(&there.caller, request).await.unwrap();
    assert!(!again.created, "the very same event");
    assert_eq!(again.room.unwrap().room_id, first.room.unwrap().room_id);
    let other = alice.create_request("ops.dpkg");
    let taken = alice.service.create_room(&alice.caller, other).await.expect_err("the subject is taken").code;
    assert_eq!(taken, ErrorCode::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_without_access_looks_like_one_that_is_not_there() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster.user("alice", 1).await, cluster.user("bob", 1).await);
    let room = alice.create("ops.secret").await;
    let hidden = bob.get(&room).await.expect_err("no member");
    let absent = bob.get(&Room { subject: "ops.absent".into(), ..room.clone() }).await.expect_err("no room");
    assert_eq!((hidden.code, absent.code), (ErrorCode::RoomNotFound, ErrorCode::RoomNotFound));
    assert_eq!(hidden.message.replace("ops.secret", "ops.absent"), absent.message);
    assert_eq!(bob.publish(&room, 1, &["x"]).await.expect_err("no member").code, ErrorCode::RoomNotFound);
    let list = |filter: &str| ListRoomsRequest { filter: filter.into(), ..ListRoomsRequest::default() };
    assert!(bob.service.list_rooms(&bob.caller, list("")).await.unwrap().rooms.is_empty());
    assert_eq!(alice.service.list_rooms(&alice.caller, list("ops.>")).await.unwrap().rooms.len(), 1);
    assert!(alice.service.list_rooms(&alice.caller, list("other.>")).await.unwrap().rooms.is_empty());

    let local = alice.service.get_room(&Caller::Local, GetRoomRequest { room: Some(by_subject("ops.secret")) }).await;
    assert_eq!(local.expect_err("the local socket is no member").code, ErrorCode::Forbidden);

    alice.change(&room, &bob.identity, Some(RoomRole::Reader)).await;
    assert_eq!(bob.get(&room).await.unwrap().own_role(), RoomRole::Reader);
    assert_eq!(bob.publish(&room, 1, &["x"]).await.expect_err("a reader").code, ErrorCode::Forbidden);
    alice.change(&room, &bob.identity, None).await;
    assert_eq!(bob.get(&room).await.expect_err("removed").code, ErrorCode::RoomNotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roster_event_is_checked_before_it_is_proposed() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster.user("alice", 1).await, cluster.user("bob", 1).await);
    let request = alice.create_request("ops.a");
    let stolen = bob.service.create_room(&bob.caller, request.clone()).await.expect_err("alice's event").code;
    assert_eq!(stolen, ErrorCode::Forbidden);
    let mut altered = request.clone();
    let event = altered.event.as_mut().unwrap();
    event.payload = [&event.payload[..], &[0x78, 1]].concat().into();
    let refused = alice.service.create_room(&alice.caller, altered).await.expect_err("altered").code;
    assert_eq!(refused, ErrorCode::Invalid);
    let unset = CreateRoomRequest { event: None, ..request };
    assert_eq!(alice.service.create_room(&alice.caller, unset).await.expect_err("unset").code, ErrorCode::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_creation_is_finished_by_the_reconciler() {
    let cluster = Cluster::start(1).await;
    let alice = cluster.user("alice", 1).await;
    let CreateRoomRequest { event, actor } = alice.create_request("ops.half");
    let room: RosterEvent = event.as_ref().unwrap().decode_unverified().unwrap();
    let room = id_of(&Room { room_id: room.room_id, ..Room::default() });
    let shards = alice.service.shards().clone();
    let reserve = unibus_proto::log::RoomReserve { event, actor, shard: shards.place_room(room).0 };
    let command = unibus_proto::log::proposal::Command::RoomReserve(reserve);
    shards.propose(unibus_proto::id::GroupId::META, command).await.unwrap();
    eventually("the room becomes active", || {
        shards.meta().view(|meta| meta.directory(room)).is_some_and(|row| row.active)
    })
    .await;
    let found = Room { subject: "ops.half".into(), ..Room::default() };
    assert_eq!(alice.get(&found).await.unwrap().members, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_listed_in_pages_and_only_users_can_be_added() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster.user("alice", 1).await, cluster.user("bob", 1).await);
    let room = alice.create("ops.members").await;
    alice.change(&room, &bob.identity, Some(RoomRole::Member)).await;
    let page = |page_token: &str| ListMembersRequest {
        room: Some(by_subject("ops.members")),
        page_size: 1,
        page_token: page_token.into(),
    };
    let first = bob.service.list_members(&bob.caller, page("")).await.unwrap();
    let second = bob.service.list_members(&bob.caller, page(&first.next_page_token)).await.unwrap();
    let names: Vec<_> = first.members.iter().chain(&second.members).map(|member| member.user.as_str()).collect();
    assert_eq!((names, second.next_page_token.as_str()), (vec!["alice", "bob"], ""));
    let roster = ReadRosterRequest { room: Some(by_subject("ops.members")), from_height: 1, page_size: 0 };
    let roster = bob.service.read_roster(&bob.caller, roster).await.unwrap();
    assert_eq!(roster.entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [1]);

    let stranger = identity("stranger");
    let newest = alice.get(&room).await.unwrap();
    let event = RosterEvent {
        room_id: room.room_id.clone(),
        height: newest.roster_height + 1,
        previous_hash: newest.roster_hash,
        op: RosterOp::Add.into(),
        subject_user: "stranger".into(),
        subject_key_fingerprint: unibus_proto::signed::sha256(stranger.user_key.verifying_key().as_bytes())
            .to_vec()
            .into(),
        role: RoomRole::Member.into(),
        actor_user: "alice".into(),
        actor_device: alice.identity.device_id().to_bytes(),
        actor_list_version: 1,
        ..RosterEvent::default()
    };
    let signed = Signed::sign(crate::cluster::CLUSTER, &event, &[&alice.identity.device_key]);
    let append =
        AppendRosterRequest { event: Some(signed), actor: Some(alice.identity.actor_proof(crate::cluster::CLUSTER)) };
    let refused = alice.service.append_roster(&alice.caller, append).await.expect_err("no user").code;
    assert_eq!(refused, ErrorCode::UserNotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_rooms_name_no_subject_in_their_tokens() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster.user("alice", 1).await, cluster.user("bob", 1).await);
    for subject in ["a.one", "a.three", "a.two"] {
        alice.create(subject).await;
    }
    bob.create("a.secret").await;
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListRoomsRequest { page_size: 1, page_token, ..ListRoomsRequest::default() };
        let page = alice.service.list_rooms(&alice.caller, request).await.unwrap();
        found.extend(page.rooms.into_iter().map(|room| room.subject));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        page_token.parse::<RoomId>().expect("a room id");
    }
    assert_eq!(found, ["a.one", "a.three", "a.two"]);
    for wrong in ["a.one".to_string(), RoomId([9; 16]).to_string()] {
        let request = ListRoomsRequest { page_token: wrong, ..ListRoomsRequest::default() };
        assert_eq!(alice.service.list_rooms(&alice.caller, request).await.expect_err("wrong").code, ErrorCode::Invalid);
    }
}
