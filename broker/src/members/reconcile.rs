//! The one reconciler: on the leader of meta it compares what the registry wants with each group's
//! membership, and has the groups' leaders take one step at a time. It keeps nothing in memory that
//! matters: whoever leads meta next goes on from the registry and the memberships.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::log::{NodeGone, proposal::Command};
use unibus_proto::peer::{
    MembershipChange, MembershipChanged, MembershipQuery, node_request::Request, node_response::Response,
};
use unibus_raft_store::env::{Env, Instant, InstantOf, now, sleep, timeout};
use unibus_raft_store::membership::{GroupMembership, MembershipError, MembershipStep};

use super::Members;
use super::decide::{Decision, Wanted, next};
use crate::service::{Failure, Service};
use crate::shard::Shards;
use crate::shard::propose::{node_error, not_leader};

/// Between two rounds while something moves.
const PERIOD: Duration = Duration::from_millis(100);
/// Between two looks while nothing does.
const IDLE: Duration = Duration::from_millis(500);
/// What is left to do changes with every entry that a learner gets: the log is told so often, and of each step.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// A leader that does not answer within this time is asked again in the next round.
const ASK_PATIENCE: Duration = Duration::from_secs(2);
/// A step is two committed entries; after this time its outcome is looked at anew.
const STEP_PATIENCE: Duration = Duration::from_secs(5);

/// Reconciles for ever, while this node leads meta.
pub async fn run<E: Env>(members: Arc<Members<E>>, service: Service<E>) {
    let mut told: Option<InstantOf<E>> = None;
    loop {
        let moving = round(&members, service.shards()).await;
        let pause = if moving.is_empty() { IDLE } else { PERIOD };
        if members.moving() != moving {
            if moving.is_empty() {
                told = None;
            } else if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                moving.iter().for_each(|what| tracing::info!(what, "membership: left to do"));
                told = Some(now::<E>());
            }
            members.set_moving(moving);
        }
        sleep::<E>(pause).await;
    }
}

/// One step of each group that needs one; what is left to do, in words.
async fn round<E: Env>(members: &Members<E>, shards: &Shards<E>) -> Vec<String> {
    let meta = shards.meta();
    if meta.leader() != Some(shards.node()) || members.registry().version == 0 || is_met_here(members, shards) {
        return Vec::new();
    }
    // What is decided on must not be older than what another leader of meta has decided.
    if let Err(failure) = shards.barrier(GroupId::META).await {
        return vec![format!("meta: {failure}")];
    }
    let wanted = Wanted::new(&meta.view(|machine| machine.node_rows()));
    let alive = shards.alive();
    let steps = shards.ids().map(|group| move_group(shards, group, &wanted, &alive));
    let outcomes = futures::future::join_all(steps).await;
    let mut moving: Vec<String> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err().cloned()).collect();
    let present: BTreeSet<NodeId> = outcomes.into_iter().filter_map(Result::ok).flatten().collect();
    let left: Vec<NodeId> = wanted.leaving().filter(|node| moving.is_empty() && !present.contains(node)).collect();
    for node in left {
        let gone = Command::NodeGone(NodeGone { node_id: node.0 });
        match shards.propose_and_see(GroupId::META, gone).await {
            Ok(_) => tracing::info!(%node, "no group has the node any more"),
            Err(failure) => moving.push(format!("meta: node {node} is gone, to be recorded: {failure}")),
        }
    }
    moving
}

/// Whether nothing is to be done, as far as this node's own replicas tell: they are asked first, as that
/// costs nothing.
fn is_met_here<E: Env>(members: &Members<E>, shards: &Shards<E>) -> bool {
    let wanted = Wanted::new(&members.registry().nodes);
    let met = |group: GroupId| shards.group(group).is_ok_and(|replica| wanted.is_met(&replica.membership()));
    wanted.leaving().next().is_none() && shards.ids().all(met)
}

/// Takes a group one step further. Its members when it is as it should be, else what is left to do.
async fn move_group<E: Env>(
    shards: &Shards<E>,
    group: GroupId,
    wanted: &Wanted,
    alive: &BTreeSet<NodeId>,
) -> Result<Vec<NodeId>, String> {
    let leader = shards.leader_of(group, alive).ok_or_else(|| format!("group {group}: no leader"))?;
    let membership = shards.membership_of(group, leader).await.map_err(|why| format!("group {group}: {why}"))?;
    match next(wanted, &membership, leader, alive) {
        Decision::Settled => Ok(membership.members.into_keys().collect()),
        Decision::Wait(why) => Err(format!("group {group}: {why}")),
        Decision::Step(step) => {
            let told = describe(&step);
            match shards.change_membership(group, leader, &membership, step).await {
                Ok(()) => tracing::info!(%group, told, "membership changed"),
                Err(why) => return Err(format!("group {group}: {told}: {why}")),
            }
            Err(format!("group {group}: {told}"))
        }
    }
}

fn describe(step: &MembershipStep) -> String {
    use super::decide::join;
    match step {
        MembershipStep::AddLearner(node, _) => format!("node {node} learns"),
        MembershipStep::ChangeVoters { add, remove } if remove.is_empty() => format!("node {} votes", join(add)),
        MembershipStep::ChangeVoters { add, remove } if add.is_empty() => format!("node {} leaves", join(remove)),
        MembershipStep::ChangeVoters { add, remove } => format!("node {} in place of {}", join(add), join(remove)),
        MembershipStep::FinishJoint => "ends a change that was interrupted".into(),
        MembershipStep::RemoveLearner(node) => format!("node {node} leaves"),
    }
}

impl<E: Env> Shards<E> {
    /// This node and those that it heard from lately.
    fn alive(&self) -> BTreeSet<NodeId> {
        let others = self.peers().ids().into_iter().filter(|&node| self.peers().is_reachable(node));
        others.chain([self.node()]).collect()
    }

    /// Who leads a group. A node that is new may lead meta before it is taken into the group, and then hears of
    /// the group's leader from the peers alone.
    fn leader_of(&self, group: GroupId, alive: &BTreeSet<NodeId>) -> Option<NodeId> {
        let own = self.group(group).ok().and_then(|replica| replica.leader());
        own.or_else(|| {
            let said = alive.iter().filter_map(|&node| Some((node, self.peers().status_of(node)?)));
            let led = said.flat_map(|(node, status)| status.replicas.into_iter().map(move |replica| (node, replica)));
            let leads = led.filter(|(node, replica)| replica.group == group.0 && replica.leader == node.0);
            leads.max_by_key(|(_, replica)| replica.term).map(|(node, _)| node)
        })
    }

    async fn membership_of(&self, group: GroupId, leader: NodeId) -> Result<GroupMembership, String> {
        let query = Request::MembershipQuery(MembershipQuery { group: group.0 });
        let answer = match leader == self.node() {
            true => self.serve_membership_query(group),
            false => self.ask_leader(group, leader, query, ASK_PATIENCE).await.map_err(|error| error.to_string())?,
        };
        match answer {
            Response::MembershipReport(report) => GroupMembership::decode(&report).map_err(|error| error.to_string()),
            other => Err(unexpected(leader, other)),
        }
    }

    async fn change_membership(
        &self,
        group: GroupId,
        leader: NodeId,
        decided_on: &GroupMembership,
        step: MembershipStep,
    ) -> Result<(), String> {
        let change = step.encode(group.0, decided_on.at);
        let answer = match leader == self.node() {
            true => self.serve_membership_change(change).await,
            false => {
                let request = Request::MembershipChange(change);
                self.ask_leader(group, leader, request, STEP_PATIENCE).await.map_err(|error| error.to_string())?
            }
        };
        match answer {
            Response::MembershipChanged(_) => Ok(()),
            other => Err(unexpected(leader, other)),
        }
    }

    /// Tells the membership of a group that this node leads.
    pub(crate) fn serve_membership_query(&self, group: GroupId) -> Response {
        match self.group(group) {
            Ok(replica) if replica.is_leader() => Response::MembershipReport(replica.membership().encode()),
            Ok(replica) => not_leader(replica.leader(), self.node()),
            Err(failure) => node_error(&failure),
        }
    }

    /// Changes the membership of a group that this node leads, by one step.
    pub(crate) async fn serve_membership_change(&self, change: MembershipChange) -> Response {
        let (expected, step) = match MembershipStep::decode(&change) {
            Ok(decoded) => decoded,
            Err(error) => return node_error(&Failure::new(ErrorCode::Invalid, error.to_string())),
        };
        let replica = match self.group(GroupId(change.group)) {
            Ok(replica) => replica,
            Err(failure) => return node_error(&failure),
        };
        let unknown = |why: String| node_error(&Failure::new(ErrorCode::OutcomeUnknown, why));
        match timeout::<E, _>(STEP_PATIENCE, replica.change_membership(expected, step)).await {
            Some(Ok(())) => Response::MembershipChanged(MembershipChanged {}),
            Some(Err(MembershipError::NotLeader { leader })) => not_leader(leader, self.node()),
            Some(Err(error @ MembershipError::Changed(_))) => {
                node_error(&Failure::new(ErrorCode::SequenceMismatch, error.to_string()))
            }
            Some(Err(error @ MembershipError::Unknown(_))) => unknown(error.to_string()),
            None => unknown(format!("not committed within {STEP_PATIENCE:?}")),
        }
    }
}

fn unexpected(node: NodeId, answer: Response) -> String {
    match answer {
        Response::Error(error) => format!("node {node}: {}", error.message),
        _ => format!("node {node} gave an answer to another question"),
    }
}
