//! The cluster as this node sees it, its configuration, and snapshots on demand.

use std::collections::BTreeMap;

use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::log::PlannedNode;
use unibus_proto::v1::{
    GetConfigResponse, GetStatusResponse, GetTopologyResponse, GroupLeader, NodeEndpoint, NodeStatus, ReplicaStatus,
    SnapshotResponse,
};
use unibus_raft_store::Role;
use unibus_raft_store::env::{Env, Instant};

use super::{Caller, Failure, Outcome, Service, problems};

impl<E: Env> Service<E> {
    /// Where to connect and who leads what.
    pub fn topology(&self) -> GetTopologyResponse {
        let shards = self.shards();
        let leader = |group: GroupId| shards.group(group).ok()?.leader();
        GetTopologyResponse {
            cluster_id: self.inner.parts.identity.cluster.to_bytes(),
            nodes: self.nodes().into_values().map(endpoint).collect(),
            leaders: shards
                .ids()
                .map(|group| GroupLeader { group: group.0, leader: leader(group).map_or(0, |leader| leader.0) })
                .collect(),
            node_id: self.node().0,
        }
    }

    /// What the nodes and groups are doing, put together from what the peers last said.
    pub fn status(&self) -> GetStatusResponse {
        let nodes: Vec<NodeStatus> = self.nodes().into_values().map(|node| self.status_of(node)).collect();
        let problems = problems::of(&nodes, self.shards().ids());
        GetStatusResponse {
            cluster_id: self.inner.parts.identity.cluster.to_bytes(),
            nodes,
            node_id: self.node().0,
            problems,
        }
    }

    /// What this node runs with.
    pub fn config(&self, caller: &Caller) -> Outcome<GetConfigResponse> {
        caller.check_admin("get config")?;
        let values = self.inner.config.get().cloned().unwrap_or_default();
        Ok(GetConfigResponse { node_id: self.node().0, name: self.name_of(self.node()), values })
    }

    /// Builds a snapshot of each group on this node.
    pub async fn snapshot(&self, caller: &Caller) -> Outcome<SnapshotResponse> {
        caller.check_admin("snapshot")?;
        for group in self.shards().ids() {
            let failed = |why: String| {
                Failure::new(unibus_proto::code::ErrorCode::Internal, format!("snapshot of group {group}: {why}"))
            };
            self.shards().group(group)?.snapshot().await.map_err(|error| failed(error.to_string()))?;
        }
        Ok(SnapshotResponse { replicas: self.local_status().replicas })
    }

    /// This node's own status.
    pub fn local_status(&self) -> NodeStatus {
        let parts = &self.inner.parts;
        let node = self.nodes().remove(&self.node()).unwrap_or_default();
        NodeStatus {
            node_id: self.node().0,
            name: node.name,
            client_address: node.client_address,
            peer_address: node.peer_address,
            reachable: true,
            version: parts.version.clone(),
            uptime_ms: self.inner.started.elapsed().as_millis() as u64,
            disk_used_bytes: parts.vitals.disk_used_bytes(),
            disk_free_bytes: parts.vitals.disk_free_bytes(),
            replicas: self.shards().ids().filter_map(|group| self.replica(group)).collect(),
            not_ready: parts.vitals.not_ready(),
            subscriptions: self.subscriptions() as u64,
            last_fsync_us: parts.vitals.last_fsync_us(),
            disk_full: parts.store.space().refuses_writes().unwrap_or_default(),
            refuses_entries: parts.store.space().refuses_entries().is_some(),
            moving: parts.members.moving(),
            ..NodeStatus::default()
        }
    }

    pub(super) fn status_of(&self, node: PlannedNode) -> NodeStatus {
        if node.node_id == self.node().0 {
            return self.local_status();
        }
        let said = self.shards().peers().status_of(NodeId(node.node_id)).unwrap_or_default();
        let PlannedNode { node_id, name, client_address, peer_address, .. } = node;
        NodeStatus { node_id, name, client_address, peer_address, ..said }
    }

    fn replica(&self, group: GroupId) -> Option<ReplicaStatus> {
        let replica = self.shards().group(group).ok()?;
        let status = replica.status();
        let (state_hash_index, state_hash) = status.state_hash;
        Some(ReplicaStatus {
            group: group.0,
            role: role(status.role).into(),
            term: status.term,
            leader: status.leader.map_or(0, |leader| leader.0),
            last_index: status.last_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            state_hash: hex::encode(state_hash),
            state_hash_index,
            purged_index: status.purged_index,
            rooms: replica.view(|machine| machine.room_count()),
            snapshot_index: status.snapshot_index,
            log_bytes: replica.log_bytes(),
        })
    }

    /// What a node is called.
    pub(super) fn name_of(&self, node: NodeId) -> String {
        let known = self.nodes().remove(&node).map(|node| node.name).filter(|name| !name.is_empty());
        known.unwrap_or_else(|| format!("node {node}"))
    }

    /// The nodes by id: as the registry has them, and as planned while there is none.
    pub(super) fn nodes(&self) -> BTreeMap<NodeId, PlannedNode> {
        let registered = self.shards().meta().view(|machine| machine.nodes());
        let by_id = |node: PlannedNode| (NodeId(node.node_id), node);
        match registered.is_empty() {
            true => self.inner.parts.nodes.iter().cloned().map(by_id).collect(),
            false => registered.into_iter().map(by_id).collect(),
        }
    }
}

fn endpoint(node: PlannedNode) -> NodeEndpoint {
    NodeEndpoint { node_id: node.node_id, name: node.name, client_address: node.client_address }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Stopped => "stopped",
    }
}
