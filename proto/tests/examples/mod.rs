//! One value of each durable message, every field set to something other than its default.

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use unibus_proto::id::ClusterId;
use unibus_proto::log::proposal::Command;
use unibus_proto::log::reply::Reply;
use unibus_proto::signed::Document;
use unibus_proto::v1::{
    ActorProof, Delivery, DeviceBundle, DeviceEnd, DeviceKind, DeviceList, EndedDevice, Header, NodeState,
    OutgoingMessage, PublishOutcome, Reject, RoomPolicy, RoomRetention, RoomRole, RosterEntry, RosterEvent, RosterOp,
    Signature, Signed, Stored, StoredMessage, TokenClaims, User, UserRole, UserStatus, delivery, publish_outcome,
};
use unibus_proto::{log, peer, row};

pub const AT: u64 = 1_800_000_000_000;
pub const CLUSTER: ClusterId = ClusterId([1; 16]);
const POLICY: RoomPolicy = RoomPolicy { encrypt: true, persist: true, sign: true, retention: None };
pub const RETENTION: RoomRetention = RoomRetention { max_age_ms: 1, max_bytes: 2, max_messages: 3 };

pub fn id(seed: u8) -> Bytes {
    vec![seed; 16].into()
}

pub fn hash(seed: u8) -> Bytes {
    vec![seed; 32].into()
}

fn producer() -> Bytes {
    vec![8; 8].into()
}

pub fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[42; 32])
}

pub fn sign<D: Document>(document: &D) -> Signed {
    Signed::sign(CLUSTER, document, &[&signing_key()])
}

pub fn signed() -> Signed {
    let signatures = vec![Signature { public_key: hash(1), signature: vec![2; 64].into() }];
    Signed { r#type: "device-bundle".into(), payload: Bytes::from_static(b"payload"), signatures }
}

fn proof() -> ActorProof {
    ActorProof { user_key: hash(3), bundle: Some(signed()) }
}

pub fn bundle() -> DeviceBundle {
    DeviceBundle {
        user: "scout".into(),
        user_key_fingerprint: hash(1),
        device_id: id(2),
        ed25519_key: hash(3),
        curve25519_key: hash(4),
        kind: DeviceKind::Agent.into(),
        owner: "alice".into(),
        algorithms: vec!["olm1".into(), "megolm1".into()],
        created_ms: AT,
        expires_ms: AT + 1,
    }
}

pub fn device_list() -> DeviceList {
    let ended = vec![EndedDevice { device_id: id(4), reason: DeviceEnd::Revoked.into() }];
    let bundle_hashes = vec![hash(2), hash(3)];
    DeviceList { user: "alice".into(), version: 2, previous_hash: hash(1), bundle_hashes, ended }
}

pub fn roster_event() -> RosterEvent {
    RosterEvent {
        room_id: id(1),
        height: 2,
        previous_hash: hash(3),
        op: RosterOp::Add.into(),
        subject_user: "bob".into(),
        subject_key_fingerprint: hash(4),
        role: RoomRole::Reader.into(),
        actor_user: "alice".into(),
        actor_device: id(5),
        actor_list_version: 6,
        policy: Some(POLICY),
        subject: "ops.dpkg".into(),
        created_ms: AT,
    }
}

pub fn claims() -> TokenClaims {
    let (issued_ms, expires_ms) = (AT, AT + 900_000);
    TokenClaims { user: "alice".into(), device_id: id(1), nonce: hash(2), issued_ms, expires_ms, node_id: 3 }
}

pub fn node() -> log::PlannedNode {
    log::PlannedNode {
        node_id: 1,
        name: "n1".into(),
        peer_address: "10.0.0.1:7400".into(),
        client_address: "10.0.0.1:7500".into(),
        sign_key: hash(5),
        directory_id: id(6),
    }
}

pub fn node_row() -> row::NodeRow {
    let state = NodeState::Removing.into();
    row::NodeRow { node: Some(node()), state, replaces: 2, replaced_by: 3, changed_ms: AT }
}

pub fn user() -> User {
    User {
        handle: "alice".into(),
        user_key: hash(7),
        role: UserRole::Admin.into(),
        status: UserStatus::Revoked.into(),
        created_ms: AT,
    }
}

fn tick() -> log::Proposal {
    log::Proposal { at_ms: AT, command: Some(Command::Tick(log::Tick {})) }
}

pub fn commands() -> Vec<Command> {
    let (event, actor) = (Some(signed()), Some(proof()));
    vec![
        Command::ClusterInit(log::ClusterInit { cluster_id: id(1), shards: 8, nodes: vec![node()] }),
        Command::UserAdd(log::UserAdd {
            request_id: id(2),
            handle: "alice".into(),
            user_key: hash(3),
            role: UserRole::Admin.into(),
            actor: "local".into(),
        }),
        Command::UserChange(log::UserChange {
            request_id: id(2),
            handle: "alice".into(),
            role: UserRole::Member.into(),
            status: UserStatus::Active.into(),
            actor: "bob".into(),
        }),
        Command::RoomReserve(log::RoomReserve { event: event.clone(), actor: actor.clone(), shard: 3 }),
        Command::RoomActivate(log::RoomActivate { room_id: id(4) }),
        Command::RoomCreate(log::RoomCreate { event: event.clone(), actor: actor.clone() }),
        Command::RosterAppend(log::RosterAppend { event: event.clone(), actor }),
        Command::PublishBatch(log::PublishBatch { groups: vec![publish_group()] }),
        Command::UserAttach(log::UserAttach { handle: "alice".into(), user_key: hash(5) }),
        Command::DeviceListPut(log::DeviceListPut { device_list: event, bundles: vec![signed()] }),
        Command::Tick(log::Tick {}),
        Command::SegmentSealed(log::SegmentSealed { segment: 6, length: 7, hash: hash(8) }),
        Command::CommandBatch(log::CommandBatch { commands: vec![tick(), tick()] }),
        Command::NodeAdd(log::NodeAdd { request_id: id(2), node: Some(node()), replaces: 3, actor: "alice".into() }),
        Command::NodeDrain(log::NodeDrain { request_id: id(2), node_id: 3, draining: true, actor: "alice".into() }),
        Command::NodeRemove(log::NodeRemove { request_id: id(2), node_id: 3, actor: "alice".into() }),
        Command::NodeGone(log::NodeGone { node_id: 3 }),
    ]
}

fn headers() -> Vec<Header> {
    vec![Header { name: "lang".into(), value: "en".into() }]
}

fn publish_group() -> log::PublishGroup {
    log::PublishGroup {
        room_id: id(1),
        user: "alice".into(),
        device_id: id(2),
        producer_id: producer(),
        opened_ms: AT,
        first_number: 5,
        messages: vec![OutgoingMessage { headers: headers(), body: Bytes::from_static(b"hello") }],
    }
}

pub fn replies() -> Vec<Reply> {
    let stored = |first_sequence| Stored { first_sequence };
    let outcome = |outcome| PublishOutcome { first_number: 5, count: 2, outcome: Some(outcome) };
    let outcomes = vec![
        outcome(publish_outcome::Outcome::Stored(stored(9))),
        outcome(publish_outcome::Outcome::Duplicate(stored(7))),
        outcome(publish_outcome::Outcome::Reject(reject())),
    ];
    vec![
        Reply::Rejected(reject()),
        Reply::Done(log::Done {}),
        Reply::User(log::UserReply { user: Some(user()), created: true }),
        Reply::Room(log::RoomReply { room_id: id(1), created: true, shard: 2 }),
        Reply::Roster(log::RosterReply { sequence: 3 }),
        Reply::Publish(log::PublishReply { groups: vec![log::GroupOutcome { outcomes }] }),
        Reply::DeviceList(log::DeviceListReply { version: 4 }),
        Reply::CommandBatch(log::CommandBatchReply {
            replies: vec![log::Reply { at_ms: AT, reply: Some(Reply::Done(log::Done {})) }],
        }),
    ]
}

fn reject() -> Reject {
    Reject { code: "OUT_OF_ORDER".into(), message: "resend from 3".into(), expected: 3, floor: 4, head: 5 }
}

pub fn directory_row() -> row::DirectoryRow {
    row::DirectoryRow {
        subject: "ops.dpkg".into(),
        shard: 2,
        active: true,
        event: Some(signed()),
        actor: Some(proof()),
        event_hash: hash(3),
    }
}

pub fn request_row() -> row::RequestRow {
    let reply = log::Reply { at_ms: AT, reply: Some(Reply::Done(log::Done {})) };
    row::RequestRow { reply: Some(reply), at_ms: AT, command_hash: hash(4) }
}

pub fn room_row() -> row::RoomRow {
    row::RoomRow {
        subject: "ops.dpkg".into(),
        policy: Some(POLICY),
        next_sequence: 3,
        floor: 1,
        roster_height: 2,
        roster_hash: hash(4),
        epoch: 5,
        created_ms: AT,
        size_bytes: 6,
        members: 7,
        admins: 8,
        ..row::RoomRow::default()
    }
}

pub fn span_row() -> row::SpanRow {
    row::SpanRow { first_sequence: 1, count: 2, bytes: 3, segment: 4, first_ms: AT, last_ms: AT + 1 }
}

pub fn retained_room_row() -> row::RoomRow {
    let policy = RoomPolicy { retention: Some(RETENTION), ..POLICY };
    let (oldest, newest) = (Some(span_row()), Some(row::SpanRow { first_sequence: 3, ..span_row() }));
    row::RoomRow { policy: Some(policy), oldest, newest, retention_due_ms: AT, ..room_row() }
}

pub fn producer_row() -> row::ProducerRow {
    let (opened_ms, used_ms) = (AT, AT + 1);
    row::ProducerRow { device_id: id(1), user: "alice".into(), opened_ms, last_number: 3, used_ms }
}

pub fn answers_row() -> row::AnswersRow {
    let runs = vec![
        row::AnswerRun { first_number: 1, count: 2, first_sequence: 3, reject: String::new() },
        row::AnswerRun { first_number: 3, count: 1, first_sequence: 0, reject: "FORBIDDEN".into() },
    ];
    row::AnswersRow { runs, digests: vec![1; 12].into() }
}

pub fn device_list_row() -> row::DeviceListRow {
    row::DeviceListRow { user_key: hash(1), version: 2, hash: hash(3), device_list: Some(signed()) }
}

pub fn roster_entry() -> RosterEntry {
    RosterEntry { event: Some(signed()), actor: Some(proof()), sequence: 4 }
}

pub fn stored_message() -> StoredMessage {
    StoredMessage {
        user: "alice".into(),
        device_id: id(1),
        producer_id: producer(),
        number: 2,
        headers: headers(),
        body: Bytes::from_static(b"hello"),
    }
}

pub fn delivery(entry: delivery::Entry) -> Delivery {
    Delivery { sequence: 3, time_ms: AT, entry: Some(entry) }
}

fn log_id(index: u64) -> peer::LogId {
    peer::LogId { term: 2, node_id: 3, index }
}

fn stored_membership() -> peer::StoredMembership {
    let membership = peer::Membership {
        configs: vec![peer::VoterSet { node_ids: vec![1, 2, 3] }],
        nodes: vec![peer::Member { node_id: 1, directory_id: id(4) }],
    };
    peer::StoredMembership { log_id: Some(log_id(60)), membership: Some(membership) }
}

pub fn checkpoint_head() -> peer::CheckpointHead {
    let marker = peer::CheckpointMarker {
        log_id: Some(log_id(70)),
        membership: Some(stored_membership()),
        state_hash: hash(5),
        rows: 6,
        bytes: 7,
        segments: vec![peer::SnapshotSegment { id: 8, length: 9, hash: hash(10), sealed: true }],
    };
    peer::CheckpointHead { cluster_id: id(1), group: 2, tree: 3, base: hash(4), marker: Some(marker) }
}

pub fn snapshot_manifest() -> peer::SnapshotManifest {
    peer::SnapshotManifest {
        cluster_id: id(1),
        group: 5,
        last: Some(log_id(400)),
        membership: Some(stored_membership()),
        state_hash: hash(6),
        rows: vec![peer::SnapshotRows { first_key: Bytes::from_static(b"key"), rows: 7, length: 8, hash: hash(9) }],
        segments: vec![peer::SnapshotSegment { id: 10, length: 11, hash: hash(12), sealed: true }],
    }
}
