//! Handing a group's leadership to another node. openraft neither checks the target nor gives up, so
//! the preconditions are checked: here a voter that is reachable, in the group one that is caught up.

use std::time::Duration;

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::limits::PROPOSE_PATIENCE;
use unibus_raft_store::env::{Env, now, sleep};

use super::Shards;
use super::leaders::steps_back;
use crate::service::Failure;

/// An election takes some 300 ms.
const NO_LEADER_HINT: Duration = Duration::from_millis(300);
/// Between two looks whether the leader has changed.
const LOOK: Duration = Duration::from_millis(10);

impl<E: Env> Shards<E> {
    /// Moves the leadership of `group` to `to` and waits until it has moved.
    pub async fn transfer(&self, group: GroupId, to: NodeId) -> Result<(), Failure> {
        let slot = self.slot(group)?;
        let _alone = slot.handing_over.lock().await;
        let replica = &slot.group;
        if replica.leader() == Some(to) {
            return Ok(());
        }
        self.may_lead(group, to)?;
        let refused =
            |why: String| Failure::new(ErrorCode::NoLeader, format!("transfer of group {group} to node {to}: {why}"));
        replica.transfer_leader(to).await.map_err(refused)?;
        let deadline = now::<E>() + PROPOSE_PATIENCE;
        loop {
            match replica.leader() {
                Some(leader) if leader == to => return Ok(()),
                Some(leader) if leader != self.node() => {
                    return Err(refused(format!("node {leader} was elected instead")));
                }
                leader if now::<E>() >= deadline => {
                    return Err(refused(format!("node {leader:?} still leads after {PROPOSE_PATIENCE:?}")));
                }
                _ => sleep::<E>(LOOK).await,
            }
        }
    }

    /// Who can best take over a group that this node leads; nobody who is drained or leaves.
    pub fn best_successor(&self, group: GroupId) -> Option<NodeId> {
        let status = self.group(group).ok()?.status();
        let rows = self.meta().view(|machine| machine.node_rows());
        let able = status.voters.iter().copied().filter(|&voter| self.may_lead(group, voter).is_ok());
        let able = able.filter(|&voter| !steps_back(&rows, voter));
        able.max_by_key(|voter| (self.peers().disk_full(*voter).is_none(), status.matched.get(voter).copied()))
    }

    /// What is known here against `to` as the next leader of a group that this node leads.
    pub(super) fn may_lead(&self, group: GroupId, to: NodeId) -> Result<(), Failure> {
        let refuse =
            |code, why: String| Err(Failure::new(code, format!("transfer of group {group} to node {to}: {why}")));
        let status = self.group(group)?.status();
        if status.leader != Some(self.node()) {
            return Err(not_leader(group, to, status.leader));
        }
        if to == self.node() || !status.voters.contains(&to) {
            let voters: Vec<_> = status.voters.iter().map(NodeId::to_string).collect();
            return refuse(
                ErrorCode::Invalid,
                format!("it is no voter of the group, expected one of {}", voters.join(", ")),
            );
        }
        if !self.peers().is_reachable(to) {
            return refuse(ErrorCode::Unreachable, "nothing was heard from it for 2 s".into());
        }
        Ok(())
    }
}

/// Only the leader can hand its office over: the fact `leader` says where to ask.
fn not_leader(group: GroupId, to: NodeId, leader: Option<NodeId>) -> Failure {
    let refused =
        |why: String| Failure::new(ErrorCode::NotLeader, format!("transfer of group {group} to node {to}: {why}"));
    match leader {
        Some(leader) => refused(format!("node {leader} leads the group; ask there")).fact("leader", leader),
        None => refused("no node leads the group; try again after the election".into()).after(NO_LEADER_HINT),
    }
}
