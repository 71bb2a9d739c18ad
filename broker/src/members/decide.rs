//! What the next step of a group's membership is. Pure: the registry, the group as its leader sees it, and
//! who is alive in; one step, a wait, or nothing out.
//!
//! The order keeps a group safe at each point: a new node learns, then votes, and only with its vote the
//! node leaves in whose place it comes. Voters change only where the voters before and after both have a
//! live majority, so that the change can be committed and the group serves on.

use std::collections::{BTreeMap, BTreeSet};

use unibus_proto::id::{DirectoryId, NodeId};
use unibus_proto::row::NodeRow;
use unibus_proto::v1::NodeState;
use unibus_raft_store::membership::{GroupMembership, MembershipStep};

use super::{directory_of, id_of, state};

/// A learner votes once its log ends so close to the leader's: replicating the rest is a matter of
/// milliseconds.
const LAG_MAX: u64 = 256;

/// What is to be done with a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is as it should be.
    Settled,
    /// Take this step.
    Step(MembershipStep),
    /// Nothing can be done now; why.
    Wait(String),
}

/// What is wanted: the registry, in the shape that decisions need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    members: BTreeMap<NodeId, DirectoryId>,
    leaving: BTreeMap<NodeId, Option<NodeId>>,
}

impl Wanted {
    /// Reads the rows of the registry.
    pub fn new(rows: &[NodeRow]) -> Self {
        let by_id: BTreeMap<NodeId, &NodeRow> = rows.iter().map(|row| (id_of(row), row)).collect();
        let mut wanted = Self::default();
        for (&id, row) in &by_id {
            match (state(row), directory_of(row)) {
                (NodeState::Voter | NodeState::Draining, Some(directory)) => {
                    wanted.members.insert(id, directory);
                }
                (NodeState::Removing, _) => drop(wanted.leaving.insert(id, successor(&by_id, row))),
                _ => {}
            }
        }
        wanted
    }

    /// The nodes that leave.
    pub fn leaving(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.leaving.keys().copied()
    }

    /// Whether a membership is what is wanted.
    pub fn is_met(&self, group: &GroupMembership) -> bool {
        group.is_settled() && group.target_voters().iter().eq(self.members.keys()) && group.members == self.members
    }
}

/// Who comes in the place of a node that leaves: a successor that leaves too has its own.
fn successor(rows: &BTreeMap<NodeId, &NodeRow>, row: &NodeRow) -> Option<NodeId> {
    let mut next = row.replaced_by;
    for _ in 0..rows.len() {
        let row = rows.get(&NodeId(next))?;
        if matches!(state(row), NodeState::Voter | NodeState::Draining) {
            return Some(NodeId(next));
        }
        next = row.replaced_by;
    }
    None
}

/// The next step of a group that `leader` leads.
pub fn next(wanted: &Wanted, group: &GroupMembership, leader: NodeId, alive: &BTreeSet<NodeId>) -> Decision {
    if !group.committed {
        return Decision::Wait("a change of its membership is being committed".into());
    }
    if group.voters.len() > 1 {
        return Decision::Step(MembershipStep::FinishJoint);
    }
    if wanted.is_met(group) {
        return Decision::Settled;
    }
    let steps = [to_learn(wanted, group), to_vote(wanted, group, alive), to_leave(wanted, group, leader, alive)];
    // What can be done goes before what must wait.
    let (can, wait): (Vec<_>, Vec<_>) =
        steps.into_iter().flatten().partition(|decision| matches!(decision, Decision::Step(_)));
    can.into_iter().chain(wait).next().unwrap_or(Decision::Settled)
}

/// A wanted node that the group does not know.
fn to_learn(wanted: &Wanted, group: &GroupMembership) -> Option<Decision> {
    let (node, directory) = wanted.members.iter().find(|(node, _)| !group.members.contains_key(*node))?;
    Some(Decision::Step(MembershipStep::AddLearner(*node, *directory)))
}

/// A learner that is wanted as a voter.
fn to_vote(wanted: &Wanted, group: &GroupMembership, alive: &BTreeSet<NodeId>) -> Option<Decision> {
    let voters = group.target_voters();
    let mut waits = None;
    for &node in wanted.members.keys().filter(|node| group.members.contains_key(*node) && !voters.contains(*node)) {
        let matched = group.matched.get(&node).copied().unwrap_or(0);
        if matched + LAG_MAX < group.last_index || !alive.contains(&node) {
            let away = if alive.contains(&node) { "" } else { ", and it is not reachable" };
            let text = format!("node {node} is at entry {matched} of {}{away}", group.last_index);
            waits.get_or_insert(Decision::Wait(text));
            continue;
        }
        let replaces = |(&leaves, by): (&NodeId, &Option<NodeId>)| {
            (*by == Some(node) && voters.contains(&leaves)).then_some(leaves)
        };
        let remove: BTreeSet<NodeId> = wanted.leaving.iter().filter_map(replaces).collect();
        return Some(change(&voters, [node].into(), remove, alive));
    }
    waits
}

/// A node that is to leave.
fn to_leave(wanted: &Wanted, group: &GroupMembership, leader: NodeId, alive: &BTreeSet<NodeId>) -> Option<Decision> {
    let voters = group.target_voters();
    let mut waits = None;
    for node in group.members.keys().filter(|node| !wanted.members.contains_key(*node)) {
        if !voters.contains(node) {
            return Some(Decision::Step(MembershipStep::RemoveLearner(*node)));
        }
        let successor = wanted.leaving.get(node).copied().flatten();
        if let Some(successor) = successor.filter(|successor| !voters.contains(successor)) {
            waits.get_or_insert(Decision::Wait(format!("node {node} stays until node {successor} votes")));
            continue;
        }
        if *node == leader && alive.len() > 1 {
            waits.get_or_insert(Decision::Wait(format!("node {node} leads it still, and hands over first")));
            continue;
        }
        return Some(change(&voters, BTreeSet::new(), [*node].into(), alive));
    }
    waits
}

/// A change of voters, if both the old and the new ones have a live majority.
fn change(
    voters: &BTreeSet<NodeId>,
    add: BTreeSet<NodeId>,
    remove: BTreeSet<NodeId>,
    alive: &BTreeSet<NodeId>,
) -> Decision {
    let after: BTreeSet<NodeId> = voters.union(&add).filter(|node| !remove.contains(*node)).copied().collect();
    for set in [voters, &after] {
        let live = set.intersection(alive).count();
        if !has_live_majority(set, alive) {
            let text = format!(
                "only {live} of the voters {} are reachable, {} are needed; start the others",
                join(set),
                set.len() / 2 + 1
            );
            return Decision::Wait(text);
        }
    }
    Decision::Step(MembershipStep::ChangeVoters { add, remove })
}

/// Whether enough of the voters are alive to commit.
pub fn has_live_majority(voters: &BTreeSet<NodeId>, alive: &BTreeSet<NodeId>) -> bool {
    2 * voters.intersection(alive).count() > voters.len()
}

/// Ids as a list for people.
pub fn join(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
