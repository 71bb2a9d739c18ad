//! Spreads the leaderships: each node hands what it leads to the node that should lead it, one at a time.
//!
//! Who should is a ranking of the voters that all nodes compute alike ([`placement::ranking`]). A leader
//! hands a group only to a node that ranks before itself, so nodes that see different peers never hand it
//! to and fro.

use std::collections::BTreeMap;
use std::time::Duration;

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::peer::{LeadAnswer, LeadOffer, node_request::Request, node_response::Response};
use unibus_proto::row::NodeRow;
use unibus_proto::v1::NodeState;
use unibus_raft_store::env::{Env, Instant, InstantOf, Rng, now, sleep};

use super::{Shards, placement};
use crate::members::{id_of, state};
use crate::service::Failure;

/// Between two looks, at least; at most twice as long.
const PERIOD: Duration = Duration::from_millis(200);
/// A leadership that is younger may still be part of an election storm.
const STEADY: Duration = Duration::from_secs(1);
/// A node that runs for less is not trusted to go on, unless this one is as young: then they start together.
const SETTLED: Duration = Duration::from_secs(3);
/// A node that declined, or to which a hand-over failed, is left alone for so long, doubled each time.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(30);
/// A node that does not answer an offer within this time is not one to lead.
const OFFER_PATIENCE: Duration = Duration::from_millis(500);

/// What the task remembers from look to look.
struct Spread<E: Env> {
    /// Groups that this node leads: in which term, since when.
    led: BTreeMap<GroupId, (u64, InstantOf<E>)>,
    /// Nodes that are left alone: failures in a row, until when.
    resting: BTreeMap<NodeId, (u32, InstantOf<E>)>,
}

/// Spreads for ever.
pub(super) async fn run<E: Env>(shards: Shards<E>) {
    let mut spread = Spread { led: BTreeMap::new(), resting: BTreeMap::new() };
    loop {
        let jitter = shards.inner.env.rng().next_u64() % PERIOD.as_millis() as u64;
        sleep::<E>(PERIOD + Duration::from_millis(jitter)).await;
        shards.examine();
        let all_led = spread.look(&shards);
        while let Some((group, to)) = spread.choose(&shards, all_led) {
            spread.hand_over(&shards, group, to).await;
            // One by one, unless it is urgent.
            if shards.unfit().is_none() {
                break;
            }
        }
    }
}

impl<E: Env> Spread<E> {
    /// Takes note of what this node leads; whether every group has a leader.
    fn look(&mut self, shards: &Shards<E>) -> bool {
        let mut all_led = true;
        for group in shards.ids() {
            let Ok(replica) = shards.group(group) else { continue };
            let leader = replica.leader();
            all_led &= leader.is_some();
            if leader != Some(shards.node()) {
                self.led.remove(&group);
                continue;
            }
            let term = replica.status().term;
            let known = self.led.get(&group).filter(|(known, _)| *known == term).copied();
            self.led.insert(group, known.unwrap_or_else(|| (term, now::<E>())));
        }
        all_led
    }

    /// What is to be handed over next, and to whom.
    fn choose(&self, shards: &Shards<E>, all_led: bool) -> Option<(GroupId, NodeId)> {
        let unfit = shards.unfit().is_some();
        if !unfit && !all_led {
            return None;
        }
        let steady = self.led.iter().filter(|(_, (_, since))| unfit || since.elapsed() >= STEADY);
        let movable = steady.filter(|(group, _)| unfit || !shards.keeps(**group));
        // The next leader would need a majority for its first entry; this one can still answer reads.
        let movable = movable.filter(|(group, _)| !shards.lacks_majority(**group));
        movable.map(|(group, _)| *group).find_map(|group| {
            let ranking = shards.ranking(group)?;
            let better = ranking.into_iter().take_while(|&node| unfit || node != shards.node());
            let mut able = better.filter(|&node| node != shards.node() && self.is_able(shards, node));
            able.next().map(|to| (group, to))
        })
    }

    fn is_able(&self, shards: &Shards<E>, node: NodeId) -> bool {
        let peers = shards.peers();
        peers.is_reachable(node)
            && peers.disk_full(node).is_none()
            && self.resting.get(&node).is_none_or(|(_, until)| now::<E>() >= *until)
    }

    async fn hand_over(&mut self, shards: &Shards<E>, group: GroupId, to: NodeId) {
        let begun = now::<E>();
        match shards.offer_and_transfer(group, to).await {
            Ok(()) => {
                tracing::info!(%group, %to, took = ?begun.elapsed(), "leadership handed to the node that should lead");
                self.resting.remove(&to);
                self.led.remove(&group);
            }
            Err(why) => {
                tracing::debug!(%group, %to, %why, "leadership not handed over");
                let failures = self.resting.get(&to).map_or(0, |(failures, _)| failures + 1);
                let rest = REST_MAX.min(REST_MIN * 2u32.pow(failures.min(8)));
                self.resting.insert(to, (failures, now::<E>() + rest));
            }
        }
    }
}

/// The voters that are registered to stay and lead.
fn eligible(rows: &[NodeRow], mut voters: Vec<NodeId>) -> Vec<NodeId> {
    voters.retain(|voter| rows.iter().any(|row| id_of(row) == *voter) && !steps_back(rows, *voter));
    voters
}

/// Whether a node is registered to lead nothing: it is drained, leaves or has left.
pub(super) fn steps_back(rows: &[NodeRow], node: NodeId) -> bool {
    rows.iter().any(|row| id_of(row) == node && state(row) != NodeState::Voter)
}

impl<E: Env> Shards<E> {
    /// The voters of a group in the order in which they should lead it, without those that are drained or
    /// leave; none while the nodes are not registered, as then the cluster is still being formed.
    pub fn ranking(&self, group: GroupId) -> Option<Vec<NodeId>> {
        let rows = self.meta().view(|machine| machine.node_rows());
        let eligible = eligible(&rows, self.group(group).ok()?.status().voters);
        (!eligible.is_empty()).then(|| placement::ranking(group, &eligible))
    }

    async fn offer_and_transfer(&self, group: GroupId, to: NodeId) -> Result<(), String> {
        let answer = self.offer(group, to, Duration::ZERO).await?;
        let up = Duration::from_millis(answer.uptime_ms);
        if up < SETTLED && self.uptime() >= SETTLED {
            return Err(format!("it runs for {up:?} only"));
        }
        self.transfer(group, to).await.map_err(|failure| failure.message)
    }

    /// Asks a node whether it would lead a group, and to keep it for a time if that is not zero.
    pub(super) async fn offer(&self, group: GroupId, to: NodeId, keep: Duration) -> Result<LeadAnswer, String> {
        let link = self.peers().link(to).ok_or("it is no peer")?;
        let offer = LeadOffer { group: group.0, keep_ms: keep.as_millis() as u64 };
        match link.request::<E>(Request::LeadOffer(offer), OFFER_PATIENCE).await {
            Ok(Response::LeadAnswer(answer)) if answer.declined.is_empty() => Ok(answer),
            Ok(Response::LeadAnswer(LeadAnswer { declined, .. })) => Err(declined),
            Ok(_) => Err("it gave an answer to another question".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Answers an offer.
    pub(crate) fn serve_lead_offer(&self, LeadOffer { group, keep_ms }: LeadOffer) -> Response {
        let group = GroupId(group);
        let declined = self.declines(group).unwrap_or_default();
        if declined.is_empty() && keep_ms > 0 {
            self.keep(group, Duration::from_millis(keep_ms));
        }
        Response::LeadAnswer(LeadAnswer { declined, uptime_ms: self.uptime().as_millis() as u64 })
    }

    /// Hands a group that this node leads to `to` because somebody asked for it; there it stays for `keep`.
    pub async fn transfer_on_request(&self, group: GroupId, to: NodeId, keep: Duration) -> Result<(), Failure> {
        if self.group(group)?.leader() == Some(to) {
            return Ok(());
        }
        self.may_lead(group, to)?;
        if steps_back(&self.meta().view(|machine| machine.node_rows()), to) {
            let why = "it is drained or leaves; `unibusctl node undrain` it first, or name another one";
            let message = format!("transfer of group {group} to node {to}: {why}");
            return Err(Failure::new(ErrorCode::Forbidden, message));
        }
        let declined = |why: String| {
            Failure::new(ErrorCode::Overloaded, format!("transfer of group {group} to node {to}: it declines: {why}"))
        };
        self.offer(group, to, keep).await.map_err(declined)?;
        self.transfer(group, to).await
    }
}

#[cfg(test)]
mod tests {
    use unibus_proto::log::PlannedNode;

    use super::*;

    fn row(node_id: u64, state: NodeState) -> NodeRow {
        let node = Some(PlannedNode { node_id, ..PlannedNode::default() });
        NodeRow { node, state: state.into(), ..NodeRow::default() }
    }

    #[test]
    fn who_is_drained_leaves_or_is_not_registered_leads_nothing() {
        let states = [NodeState::Voter, NodeState::Draining, NodeState::Removing, NodeState::Removed];
        let mut rows: Vec<NodeRow> = (1..).zip(states).map(|(node, state)| row(node, state)).collect();
        rows.push(row(5, NodeState::Unspecified));
        let voters = || (1..=6).map(NodeId).collect();
        assert_eq!(eligible(&rows, voters()), [NodeId(1), NodeId(5)], "an older row says nothing and is a voter's");
        assert_eq!(eligible(&[], voters()), [], "the cluster is still being formed");
        let back: Vec<u64> = (1..=6).filter(|&node| steps_back(&rows, NodeId(node))).collect();
        assert_eq!(back, [2, 3, 4], "before the registration anybody may succeed");
    }
}
