//! Stories of one group: what is wanted, who is alive, and the steps until nothing is left to do.

use unibus_proto::log::PlannedNode;

use super::*;

fn directory(node: u64) -> DirectoryId {
    DirectoryId([node as u8; 16])
}

fn row(node: u64, state: NodeState, replaced_by: u64) -> NodeRow {
    let node = PlannedNode { node_id: node, directory_id: directory(node).to_bytes(), ..PlannedNode::default() };
    NodeRow { node: Some(node), state: state.into(), replaced_by, ..NodeRow::default() }
}

fn ids<const N: usize>(ids: [u64; N]) -> BTreeSet<NodeId> {
    ids.into_iter().map(NodeId).collect()
}

fn group<const N: usize>(voters: [u64; N]) -> GroupMembership {
    GroupMembership {
        at: None,
        voters: vec![ids(voters)],
        members: voters.into_iter().map(|id| (NodeId(id), directory(id))).collect(),
        committed: true,
        last_index: 1_000,
        matched: BTreeMap::new(),
    }
}

/// Takes a step as openraft does, with both of its entries.
fn take(group: &mut GroupMembership, step: &MembershipStep) {
    match step {
        MembershipStep::AddLearner(node, directory) => {
            group.members.insert(*node, *directory);
            group.matched.insert(*node, 0);
        }
        MembershipStep::ChangeVoters { add, remove } => {
            let voters = group.target_voters();
            group.voters = vec![voters.union(add).filter(|node| !remove.contains(*node)).copied().collect()];
            group.members.retain(|node, _| !remove.contains(node));
        }
        MembershipStep::FinishJoint => drop(group.voters.remove(0)),
        MembershipStep::RemoveLearner(node) => drop(group.members.remove(node)),
    }
}

/// Steps and waits until the group is settled; learners catch up when they are waited for.
fn story(rows: &[NodeRow], mut group: GroupMembership, leader: u64, alive: &BTreeSet<NodeId>) -> Vec<String> {
    let (wanted, mut told) = (Wanted::new(rows), vec![]);
    for _ in 0..20 {
        match next(&wanted, &group, NodeId(leader), alive) {
            Decision::Settled => return told,
            Decision::Step(step) => {
                take(&mut group, &step);
                assert!(has_live_majority(&group.target_voters(), alive), "{step:?} leaves no live majority");
                told.push(match step {
                    MembershipStep::AddLearner(node, _) => format!("learner {node}"),
                    MembershipStep::ChangeVoters { add, remove } => format!("+[{}] -[{}]", join(&add), join(&remove)),
                    MembershipStep::FinishJoint => "finish".into(),
                    MembershipStep::RemoveLearner(node) => format!("no learner {node}"),
                });
            }
            Decision::Wait(why) => {
                let behind = group.matched.values().any(|matched| *matched < group.last_index);
                told.push(why);
                if !behind {
                    return told;
                }
                let last = group.last_index;
                group.matched.values_mut().for_each(|matched| *matched = last);
            }
        }
    }
    panic!("it never settles: {told:?}");
}

const VOTER: NodeState = NodeState::Voter;

#[test]
fn a_new_node_learns_then_votes() {
    let rows = [1, 2, 3, 4].map(|id| row(id, VOTER, 0));
    let told = story(&rows, group([1, 2, 3]), 1, &ids([1, 2, 3, 4]));
    assert_eq!(told, ["learner 4", "node 4 is at entry 0 of 1000", "+[4] -[]"]);
}

#[test]
fn a_dead_node_leaves_when_its_replacement_votes() {
    let rows = [row(1, VOTER, 0), row(2, VOTER, 0), row(3, NodeState::Removing, 4), row(4, VOTER, 0)];
    let told = story(&rows, group([1, 2, 3]), 1, &ids([1, 2, 4]));
    assert_eq!(told, ["learner 4", "node 4 is at entry 0 of 1000", "+[4] -[3]"]);
}

#[test]
fn a_replacement_that_died_is_replaced_in_turn() {
    let rows = [
        row(1, VOTER, 0),
        row(2, VOTER, 0),
        row(3, NodeState::Removing, 4),
        row(4, NodeState::Removing, 5),
        row(5, VOTER, 0),
    ];
    let mut before = group([1, 2, 3]);
    take(&mut before, &MembershipStep::AddLearner(NodeId(4), directory(4)));
    let told = story(&rows, before, 1, &ids([1, 2, 5]));
    assert_eq!(told.first().map(String::as_str), Some("learner 5"));
    assert!(told.contains(&"no learner 4".into()) && told.contains(&"+[5] -[3]".into()), "{told:?}");
}

#[test]
fn what_a_crash_left_joint_is_ended_first() {
    let rows = [row(1, VOTER, 0), row(2, VOTER, 0), row(3, NodeState::Removing, 4), row(4, VOTER, 0)];
    let mut before = group([1, 2, 4]);
    before.voters.insert(0, ids([1, 2, 3]));
    before.members.remove(&NodeId(3));
    assert_eq!(story(&rows, before.clone(), 1, &ids([1, 2, 4])), ["finish"]);
    before.committed = false;
    let decision = next(&Wanted::new(&rows), &before, NodeId(1), &ids([1, 2, 4]));
    assert!(matches!(decision, Decision::Wait(_)), "{decision:?}");
}

#[test]
fn no_change_leaves_a_group_without_a_live_majority() {
    let rows = [row(1, VOTER, 0), row(2, NodeState::Removing, 0), row(3, VOTER, 0)];
    let told = story(&rows, group([1, 2, 3]), 1, &ids([1, 2]));
    assert_eq!(told, ["only 1 of the voters 1, 3 are reachable, 2 are needed; start the others"]);
    let rows = [row(1, VOTER, 0), row(2, VOTER, 0), row(3, NodeState::Removing, 0)];
    assert_eq!(story(&rows, group([1, 2, 3]), 1, &ids([1, 2])), ["+[] -[3]"]);
}

#[test]
fn who_leads_hands_over_before_it_leaves() {
    let rows = [row(1, NodeState::Removing, 0), row(2, VOTER, 0), row(3, VOTER, 0)];
    let told = story(&rows, group([1, 2, 3]), 1, &ids([1, 2, 3]));
    assert_eq!(told, ["node 1 leads it still, and hands over first"]);
    assert_eq!(story(&rows, group([1, 2, 3]), 2, &ids([1, 2, 3])), ["+[] -[1]"]);
}

#[test]
fn a_drained_node_goes_on_voting() {
    let rows = [row(1, NodeState::Draining, 0), row(2, VOTER, 0), row(3, VOTER, 0)];
    assert!(Wanted::new(&rows).is_met(&group([1, 2, 3])));
}
