//! Random commands of the meta group: the invariants hold, the same log makes the same bytes, an answer is
//! given again to its request, and from the first admin on the cluster has one.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Log, Person, cluster_init, room_id};
use proptest::prelude::*;
use unibus_machine::{Applied, Entry, Machine, MemoryRows};
use unibus_proto::id::GroupId;
use unibus_proto::log::proposal::Command;
use unibus_proto::log::reply::Reply as Answer;
use unibus_proto::log::{
    NodeAdd, NodeDrain, NodeGone, NodeRemove, RoomActivate, RoomReserve, Tick, UserAdd, UserChange,
};
use unibus_proto::v1::{NodeState, UserRole, UserStatus};

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const ROOMS: [&str; 3] = ["a", "a.b", "c"];
const LIFETIME_MS: u64 = 24 * 3600 * 1_000;

#[derive(Clone, Debug)]
enum Op {
    Add { request: u8, user: usize, key: usize, role: i32, actor: usize },
    Change { request: u8, user: usize, role: i32, status: i32, actor: usize },
    Reserve { user: usize, room: usize, id_of: usize, shard: u32 },
    Activate { room: usize },
    NodeAdd { request: u8, node: u64, replaces: u64, actor: usize },
    NodeDrain { request: u8, node: u64, draining: bool },
    NodeRemove { request: u8, node: u64 },
    NodeGone { node: u64 },
    Tick { hours: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let (request, user) = (0..12_u8, 0..3_usize);
    prop_oneof![
        (request.clone(), user.clone(), user.clone(), 0..4_i32, 0..4_usize)
            .prop_map(|(request, user, key, role, actor)| Op::Add { request, user, key, role, actor }),
        (request.clone(), user.clone(), 0..4_i32, 0..4_i32, 0..4_usize)
            .prop_map(|(request, user, role, status, actor)| Op::Change { request, user, role, status, actor }),
        (user, 0..3_usize, 0..3_usize, 0..5_u32).prop_map(|(user, room, id_of, shard)| Op::Reserve {
            user,
            room,
            id_of,
            shard
        }),
        (0..3_usize).prop_map(|room| Op::Activate { room }),
        (request.clone(), 0..9_u64, 0..7_u64, 0..4_usize).prop_map(|(request, node, replaces, actor)| Op::NodeAdd {
            request,
            node,
            replaces,
            actor
        }),
        (request.clone(), 0..9_u64, any::<bool>()).prop_map(|(request, node, draining)| Op::NodeDrain {
            request,
            node,
            draining
        }),
        (request, 0..9_u64).prop_map(|(request, node)| Op::NodeRemove { request, node }),
        (0..9_u64).prop_map(|node| Op::NodeGone { node }),
        (0..30_u64).prop_map(|hours| Op::Tick { hours }),
    ]
}

fn actor(at: usize) -> String {
    USERS.get(at).copied().unwrap_or("local").into()
}

fn command(op: &Op) -> Command {
    match *op {
        Op::Add { request, user, key, role, actor: by } => Command::UserAdd(UserAdd {
            request_id: vec![request; 16].into(),
            handle: USERS[user].into(),
            user_key: Person::new(USERS[key]).public_key(),
            role,
            actor: actor(by),
        }),
        Op::Change { request, user, role, status, actor: by } => Command::UserChange(UserChange {
            request_id: vec![request; 16].into(),
            handle: USERS[user].into(),
            role,
            status,
            actor: actor(by),
        }),
        Op::Reserve { user, room, id_of, shard } => {
            let person = Person::new(USERS[user]);
            let mut event = person.create_event(ROOMS[room], common::PLAIN);
            event.room_id = room_id(ROOMS[id_of]).to_bytes();
            Command::RoomReserve(RoomReserve { event: Some(person.sign(&event)), actor: Some(person.proof()), shard })
        }
        Op::Activate { room } => Command::RoomActivate(RoomActivate { room_id: room_id(ROOMS[room]).to_bytes() }),
        Op::NodeAdd { request, node, replaces, actor: by } => Command::NodeAdd(NodeAdd {
            request_id: vec![request; 16].into(),
            node: Some(common::planned_node(node)),
            replaces,
            actor: actor(by),
        }),
        Op::NodeDrain { request, node, draining } => Command::NodeDrain(NodeDrain {
            request_id: vec![request; 16].into(),
            node_id: node,
            draining,
            actor: "local".into(),
        }),
        Op::NodeRemove { request, node } => Command::NodeRemove(NodeRemove {
            request_id: vec![request; 16].into(),
            node_id: node,
            actor: "local".into(),
        }),
        Op::NodeGone { node } => Command::NodeGone(NodeGone { node_id: node }),
        Op::Tick { .. } => Command::Tick(Tick {}),
    }
}

fn request_of(op: &Op) -> Option<u8> {
    match *op {
        Op::Add { request, .. }
        | Op::Change { request, .. }
        | Op::NodeAdd { request, .. }
        | Op::NodeDrain { request, .. }
        | Op::NodeRemove { request, .. } => Some(request),
        _ => None,
    }
}

fn removed_nodes(log: &Log) -> BTreeSet<u64> {
    let rows = log.machine.node_rows().into_iter();
    rows.filter(|row| row.state() == NodeState::Removed).filter_map(|row| Some(row.node?.node_id)).collect()
}

fn replay(log: &Log) -> (MemoryRows, Vec<Applied>) {
    let mut machine = Machine::new(GroupId::META, common::CLUSTER, MemoryRows::default());
    let entry = |index| Entry { group: GroupId::META, index, term: 1 };
    let entries = log.entries.iter().zip(1..);
    let applied = entries.map(|(proposal, index)| machine.apply(entry(index), proposal.clone())).collect();
    (machine.into_rows(), applied)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn meta_keeps_its_promises(ops in prop::collection::vec(op(), 1..60)) {
        let mut log = Log::new(GroupId::META);
        let mut applied = vec![log.apply(Command::ClusterInit(cluster_init(3)))];
        let mut had_admin = false;
        let mut removed = BTreeSet::new();
        // The first answer to each request, the command, and when.
        let mut told: BTreeMap<u8, (Command, Answer, u64)> = BTreeMap::new();
        for op in &ops {
            if let Op::Tick { hours } = op {
                log.at_ms += hours * 3_600_000;
                let now = log.at_ms;
                told.retain(|_, (_, _, at)| *at + LIFETIME_MS > now);
            }
            let command = command(op);
            let result = log.apply(command.clone());
            let answer = result.reply.reply.clone().unwrap();
            applied.push(result);
            if let Some(request) = request_of(op) {
                let (first, first_answer, _) = told.entry(request).or_insert((command.clone(), answer.clone(), log.at_ms));
                if *first == command {
                    prop_assert_eq!(&answer, &*first_answer);
                } else {
                    prop_assert!(matches!(&answer, Answer::Rejected(reject) if reject.code == "ID_REUSED"));
                }
            }
            let now_removed: BTreeSet<_> = removed_nodes(&log);
            prop_assert!(removed.is_subset(&now_removed), "a removed node came back: {removed:?}");
            removed = now_removed;
            let users = log.machine.users(None, 10);
            let has_admin = users.iter().any(|user| user.role() == UserRole::Admin && user.status() == UserStatus::Active);
            prop_assert!(has_admin || !had_admin, "the last active admin was lost");
            had_admin = has_admin;
        }
        let (rows, again) = replay(&log);
        prop_assert!(&rows == log.machine.rows(), "rows differ");
        prop_assert!(again == applied, "replies or events differ");
    }
}

/// One tick looks at so many rows and no more; the deadline stays due until all are done.
#[test]
fn a_tick_is_bounded() {
    let mut machine = Machine::new(GroupId::META, common::CLUSTER, MemoryRows::default());
    let mut index = 0;
    let mut apply = |machine: &mut Machine<MemoryRows>, at_ms, command| {
        index += 1;
        let proposal = unibus_proto::log::Proposal { at_ms, command: Some(command) };
        machine.apply(Entry { group: GroupId::META, index, term: 1 }, proposal)
    };
    for at in 0..2_500_u32 {
        let mut change = UserChange { handle: "nobody".into(), actor: "local".into(), ..UserChange::default() };
        change.request_id = [&at.to_be_bytes()[..], &[0; 12]].concat().into();
        apply(&mut machine, 1_000, Command::UserChange(change));
    }
    for is_due in [true, true, false] {
        assert_eq!(machine.next_deadline(), Some(1_000 + LIFETIME_MS));
        apply(&mut machine, 1_000 + LIFETIME_MS, Command::Tick(Tick {}));
        assert_eq!(machine.next_deadline().is_some(), is_due);
    }
    machine.check().unwrap();
}
