//! The cluster: nodes, groups, leaders.

use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::v1;
use unibus_proto::v1::cluster_service_client::ClusterServiceClient;

use crate::core::unary;
use crate::nodes::Target;
use crate::platform::Platform;
use crate::{Client, Error};

unary!(status_get, ClusterServiceClient, get_status, v1::GetStatusRequest, v1::GetStatusResponse);
unary!(transfer, ClusterServiceClient, transfer_leader, v1::TransferLeaderRequest, v1::TransferLeaderResponse);
unary!(snapshot_build, ClusterServiceClient, snapshot, v1::SnapshotRequest, v1::SnapshotResponse);

impl<P: Platform> Client<P> {
    /// Where the nodes are and who leads what.
    pub async fn topology(&self) -> Result<v1::GetTopologyResponse, Error> {
        self.core.refresh_topology().await
    }

    /// What the node at `address` is called: "n1 (10.0.0.1:7400)", or its address while its name is not known.
    pub fn node_label(&self, address: &str) -> String {
        self.core.nodes().label(address)
    }

    /// What the nodes and groups are doing, as `node` (name or address) sees them; else as any sees them.
    pub async fn status(&self, node: Option<&str>) -> Result<v1::GetStatusResponse, Error> {
        self.core.status_get(&self.one(node), v1::GetStatusRequest {}).await
    }

    /// Moves the leadership of a group; returns the leader now.
    pub async fn transfer_leader(&self, group: GroupId, to: NodeId) -> Result<NodeId, Error> {
        let request = v1::TransferLeaderRequest { group: group.0, to: to.0 };
        let target = self.core.leader_target(group);
        Ok(NodeId(self.core.transfer(&target, request).await?.leader))
    }

    /// Builds a snapshot of each group on `node` (name or address), or on any.
    pub async fn snapshot(&self, node: Option<&str>) -> Result<v1::SnapshotResponse, Error> {
        self.core.snapshot_build(&self.one(node), v1::SnapshotRequest {}).await
    }

    fn one(&self, node: Option<&str>) -> Target {
        node.map_or_else(|| self.core.target(Target::Any), |node| Target::Only(node.into()))
    }
}
