//! People with keys and devices, and a log that checks the machine after each entry.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use unibus_machine::{Applied, Entry, Machine, MemoryRows};
use unibus_proto::id::{ClusterId, DeviceId, GroupId, Handle, ProducerId, RoomId};
use unibus_proto::log::proposal::Command;
use unibus_proto::log::reply::Reply as Answer;
use unibus_proto::log::{
    ClusterInit, PlannedNode, Proposal, PublishBatch, PublishGroup, RoomCreate, RosterAppend, UserAdd,
};
use unibus_proto::signed::sha256;
use unibus_proto::v1::publish_outcome::Outcome;
use unibus_proto::v1::{
    ActorProof, DeviceBundle, DeviceKind, Header, OutgoingMessage, PublishOutcome, Reject, RoomPolicy, RoomRole,
    RosterEvent, RosterOp, Signed, UserRole,
};

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
pub const SHARD: GroupId = GroupId(1);
pub const PLAIN: RoomPolicy = RoomPolicy { encrypt: false, persist: true, sign: false, retention: None };

/// The first bytes of a hash of a name: keys and ids that are the same in each run.
pub fn derive<const N: usize>(name: &str) -> [u8; N] {
    sha256(name.as_bytes())[..N].try_into().unwrap()
}

pub fn room_id(subject: &str) -> RoomId {
    RoomId(derive(subject))
}

pub fn producer_id(name: &str) -> ProducerId {
    ProducerId(derive(name))
}

/// A user with one device.
#[derive(Clone)]
pub struct Person {
    pub handle: Handle,
    pub device_name: String,
    pub user_key: SigningKey,
    pub device_key: SigningKey,
    pub bundle: DeviceBundle,
}

impl Person {
    pub fn new(handle: &str) -> Self {
        Self::with_device(handle, "main")
    }

    pub fn with_device(handle: &str, device: &str) -> Self {
        let user_key = SigningKey::from_bytes(&derive(&format!("{handle} user")));
        let device_key = SigningKey::from_bytes(&derive(&format!("{handle} {device}")));
        let ed25519 = device_key.verifying_key().to_bytes();
        let curve25519: [u8; 32] = derive(&format!("{handle} {device} curve"));
        let bundle = DeviceBundle {
            user: handle.into(),
            user_key_fingerprint: sha256(user_key.verifying_key().as_bytes()).to_vec().into(),
            device_id: DeviceId::of_keys(&ed25519, &curve25519).to_bytes(),
            ed25519_key: ed25519.to_vec().into(),
            curve25519_key: curve25519.to_vec().into(),
            kind: DeviceKind::Service.into(),
            created_ms: 1,
            ..DeviceBundle::default()
        };
        Self { handle: handle.parse().unwrap(), device_name: device.into(), user_key, device_key, bundle }
    }

    pub fn public_key(&self) -> Bytes {
        self.user_key.verifying_key().to_bytes().to_vec().into()
    }

    pub fn fingerprint(&self) -> Bytes {
        self.bundle.user_key_fingerprint.clone()
    }

    pub fn device(&self) -> DeviceId {
        DeviceId::from_bytes(&self.bundle.device_id).unwrap()
    }

    pub fn signed_bundle(&self) -> Signed {
        Signed::sign(CLUSTER, &self.bundle, &[&self.device_key, &self.user_key])
    }

    pub fn proof(&self) -> ActorProof {
        ActorProof { user_key: self.public_key(), bundle: Some(self.signed_bundle()) }
    }

    /// An event without its subject: who acts, and where in the chain.
    pub fn event(&self, subject: &str, height: u64, previous_hash: Bytes, op: RosterOp) -> RosterEvent {
        RosterEvent {
            room_id: room_id(subject).to_bytes(),
            height,
            previous_hash,
            op: op.into(),
            actor_user: self.handle.to_string(),
            actor_device: self.bundle.device_id.clone(),
            actor_list_version: 1,
            created_ms: 5,
            ..RosterEvent::default()
        }
    }

    pub fn create_event(&self, subject: &str, policy: RoomPolicy) -> RosterEvent {
        RosterEvent {
            subject_user: self.handle.to_string(),
            subject_key_fingerprint: self.fingerprint(),
            role: RoomRole::Admin.into(),
            policy: Some(policy),
            subject: subject.into(),
            ..self.event(subject, 0, Bytes::new(), RosterOp::Create)
        }
    }

    pub fn sign(&self, event: &RosterEvent) -> Signed {
        Signed::sign(CLUSTER, event, &[&self.device_key])
    }

    pub fn create(&self, subject: &str) -> Command {
        let event = Some(self.sign(&self.create_event(subject, PLAIN)));
        Command::RoomCreate(RoomCreate { event, actor: Some(self.proof()) })
    }

    pub fn group(&self, subject: &str, producer: &str, first_number: u64, bodies: &[&str]) -> PublishGroup {
        PublishGroup {
            room_id: room_id(subject).to_bytes(),
            user: self.handle.to_string(),
            device_id: self.bundle.device_id.clone(),
            producer_id: producer_id(producer).to_bytes(),
            opened_ms: 1_000,
            first_number,
            messages: bodies.iter().map(|body| message(body)).collect(),
        }
    }
}

pub fn message(body: &str) -> OutgoingMessage {
    let headers = vec![Header { name: "lang".into(), value: "en".into() }];
    OutgoingMessage { headers, body: Bytes::copy_from_slice(body.as_bytes()) }
}

pub fn publish(groups: Vec<PublishGroup>) -> Command {
    Command::PublishBatch(PublishBatch { groups })
}

pub fn user_add(person: &Person, role: UserRole, request: u8) -> Command {
    Command::UserAdd(UserAdd {
        request_id: vec![request; 16].into(),
        handle: person.handle.to_string(),
        user_key: person.public_key(),
        role: role.into(),
        actor: "local".into(),
    })
}

pub fn planned_node(id: u64) -> PlannedNode {
    PlannedNode {
        node_id: id,
        name: format!("n{id}"),
        peer_address: format!("10.0.0.{id}:7400"),
        client_address: format!("10.0.0.{id}:7500"),
        sign_key: SigningKey::from_bytes(&derive(&format!("node {id}"))).verifying_key().to_bytes().to_vec().into(),
        directory_id: vec![id as u8; 16].into(),
    }
}

pub fn cluster_init(shards: u32) -> ClusterInit {
    ClusterInit { cluster_id: CLUSTER.to_bytes(), shards, nodes: (1..=3).map(planned_node).collect() }
}

/// A machine with its log: each entry is applied and the invariants are checked after it.
pub struct Log {
    pub machine: Machine<MemoryRows>,
    pub entries: Vec<Proposal>,
    pub at_ms: u64,
    pub index: u64,
}

impl Log {
    pub fn new(group: GroupId) -> Self {
        let machine = Machine::new(group, CLUSTER, MemoryRows::default());
        Self { machine, entries: Vec::new(), at_ms: 1_000, index: 0 }
    }

    pub fn shard() -> Self {
        Self::new(SHARD)
    }

    pub fn apply(&mut self, command: Command) -> Applied {
        let proposal = Proposal { at_ms: self.at_ms, command: Some(command) };
        self.entries.push(proposal.clone());
        self.index += 1;
        let entry = Entry { group: self.machine.group(), index: self.index, term: 1 };
        let applied = self.machine.apply(entry, proposal);
        self.machine.check().unwrap_or_else(|problem| panic!("after entry {}: {problem}", self.index));
        applied
    }

    pub fn answer(&mut self, command: Command) -> Answer {
        self.apply(command).reply.reply.unwrap()
    }

    /// Applies a command that must be refused.
    pub fn refused(&mut self, command: Command) -> Reject {
        let before = self.machine.rows().clone();
        let at = self.machine.log_time();
        let applied = self.apply(command);
        assert!(applied.events.is_empty(), "a refusal has no events: {:?}", applied.events);
        if self.machine.log_time() == at {
            assert!(without_requests(self.machine.rows()) == without_requests(&before), "a refusal changes no rows");
        }
        match applied.reply.reply.unwrap() {
            Answer::Rejected(reject) => reject,
            other => panic!("expected a reject, found {other:?}"),
        }
    }

    /// Publishes one group; its outcomes.
    pub fn publish(&mut self, group: PublishGroup) -> Vec<PublishOutcome> {
        outcomes(self.answer(publish(vec![group]))).remove(0)
    }

    /// Appends the next roster event of a room.
    pub fn roster(&mut self, actor: &Person, subject: &str, edit: impl FnOnce(&mut RosterEvent)) -> Answer {
        let command = self.roster_command(actor, subject, edit);
        self.answer(command)
    }

    pub fn roster_command(&self, actor: &Person, subject: &str, edit: impl FnOnce(&mut RosterEvent)) -> Command {
        let row = self.machine.room(room_id(subject)).unwrap_or_default();
        let mut event = actor.event(subject, row.roster_height + 1, row.roster_hash, RosterOp::Unspecified);
        edit(&mut event);
        Command::RosterAppend(RosterAppend { event: Some(actor.sign(&event)), actor: Some(actor.proof()) })
    }

    pub fn add_member(&mut self, actor: &Person, subject: &str, member: &Person, role: RoomRole) -> Answer {
        self.roster(actor, subject, |event| {
            event.set_op(RosterOp::Add);
            event.subject_user = member.handle.to_string();
            event.subject_key_fingerprint = member.fingerprint();
            event.set_role(role);
        })
    }
}

/// Refusals are remembered by request id; all other rows stay.
fn without_requests(rows: &MemoryRows) -> BTreeMap<Vec<u8>, Bytes> {
    let is_request = |key: &[u8]| matches!(key[0], 7 | 8);
    rows.iter().filter(|(key, _)| !is_request(key)).map(|(key, value)| (key.to_vec(), value.clone())).collect()
}

pub fn outcomes(answer: Answer) -> Vec<Vec<PublishOutcome>> {
    match answer {
        Answer::Publish(reply) => reply.groups.into_iter().map(|group| group.outcomes).collect(),
        other => panic!("expected outcomes, found {other:?}"),
    }
}

/// `5 stored at 7`, `1 duplicate of 7`, `2 OUT_OF_ORDER`: what became of a group, in short.
pub fn short(outcomes: &[PublishOutcome]) -> Vec<String> {
    let one = |outcome: &PublishOutcome| match outcome.outcome.as_ref().unwrap() {
        Outcome::Stored(stored) => format!("{} stored at {}", outcome.count, stored.first_sequence),
        Outcome::Duplicate(stored) => format!("{} duplicate of {}", outcome.count, stored.first_sequence),
        Outcome::Accepted(_) => unreachable!("the log accepts nothing without storing it"),
        Outcome::Reject(reject) => format!("{} {}", outcome.count, reject.code),
    };
    outcomes.iter().map(one).collect()
}
