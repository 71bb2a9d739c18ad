//! The groups as this node sees them, and handing one over on request.

use std::time::Duration;

use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::v1::{
    GroupInfo, GroupMember, ListGroupsResponse, NodeStatus, ReplicaStatus, TransferLeaderRequest,
    TransferLeaderResponse,
};
use unibus_raft_store::env::{Env, Instant, now};

use super::{Caller, Outcome, Service};

/// A group that an admin has moved stays where it is for so long; then it goes where it should be.
const KEPT_FOR: Duration = Duration::from_secs(600);

impl<E: Env> Service<E> {
    /// Who leads each group, who should, and how far its members are, put together from what the peers last said.
    pub fn list_groups(&self) -> ListGroupsResponse {
        let nodes: Vec<NodeStatus> = self.nodes().into_values().map(|node| self.status_of(node)).collect();
        let groups = self.shards().ids().filter_map(|group| self.group_info(group, &nodes)).collect();
        ListGroupsResponse { groups, node_id: self.node().0 }
    }

    fn group_info(&self, group: GroupId, nodes: &[NodeStatus]) -> Option<GroupInfo> {
        let status = self.shards().group(group).ok()?.status();
        let replica_of = |node: &NodeStatus| node.replicas.iter().find(|replica| replica.group == group.0).cloned();
        let voters: Vec<(&NodeStatus, ReplicaStatus)> = nodes
            .iter()
            .filter(|node| status.voters.contains(&NodeId(node.node_id)))
            .map(|node| (node, replica_of(node).unwrap_or_default()))
            .collect();
        let newest = voters.iter().map(|(_, replica)| replica.committed_index).max().unwrap_or(0);
        let preferred = self.shards().ranking(group).and_then(|ranking| ranking.first().copied());
        Some(GroupInfo {
            group: group.0,
            leader: status.leader.map_or(0, |leader| leader.0),
            preferred: preferred.map_or(0, |node| node.0),
            term: status.term,
            members: voters.into_iter().map(|(node, replica)| member(node, replica, newest)).collect(),
        })
    }

    /// Moves the leadership of a group that this node leads, and waits until a majority has confirmed it.
    pub async fn transfer_leader(
        &self,
        caller: &Caller,
        request: TransferLeaderRequest,
    ) -> Outcome<TransferLeaderResponse> {
        caller.check_admin("transfer leader")?;
        let (group, to, begun) = (GroupId(request.group), NodeId(request.to), now::<E>());
        self.shards().transfer_on_request(group, to, KEPT_FOR).await?;
        self.shards().barrier(group).await?;
        let leader = self.shards().group(group)?.leader().map_or(0, |leader| leader.0);
        tracing::info!(actor = caller.actor(), %group, %to, "leadership moved on request");
        Ok(TransferLeaderResponse { leader, took_us: begun.elapsed().as_micros() as u64 })
    }
}

fn member(node: &NodeStatus, replica: ReplicaStatus, newest: u64) -> GroupMember {
    GroupMember {
        node_id: node.node_id,
        name: node.name.clone(),
        reachable: node.reachable,
        role: replica.role,
        applied_index: replica.applied_index,
        lag: newest.saturating_sub(replica.applied_index),
        log_bytes: replica.log_bytes,
        snapshot_index: replica.snapshot_index,
    }
}
