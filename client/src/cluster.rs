//! The cluster: nodes, groups, leaders.

use std::time::Duration;

use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::v1;
use unibus_proto::v1::cluster_service_client::ClusterServiceClient;

use crate::core::{Answer, Rpc, unary};
use crate::nodes::Target;
use crate::platform::Platform;
use crate::{Client, Error};

unary!(read status_get, ClusterServiceClient, get_status, v1::GetStatusRequest, v1::GetStatusResponse);
unary!(read groups_list, ClusterServiceClient, list_groups, v1::ListGroupsRequest, v1::ListGroupsResponse);
unary!(replicas_verify, ClusterServiceClient, verify, v1::VerifyRequest, v1::VerifyResponse);
unary!(read config_get, ClusterServiceClient, get_config, v1::GetConfigRequest, v1::GetConfigResponse);
unary!(snapshot_build, ClusterServiceClient, snapshot, v1::SnapshotRequest, v1::SnapshotResponse);

/// Why a leadership cannot move now does not change by asking again and again.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(4);

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

    /// Who leads each group, who should, and how far its members are, as `node` (name or address) or any sees it.
    pub async fn groups(&self, node: Option<&str>) -> Result<v1::ListGroupsResponse, Error> {
        self.core.groups_list(&self.one(node), v1::ListGroupsRequest {}).await
    }

    /// Moves the leadership of a group; returns the leader now, confirmed by a majority. It stays there for
    /// ten minutes, then it goes where the cluster puts it.
    pub async fn transfer_leader(&self, group: GroupId, to: NodeId) -> Result<v1::TransferLeaderResponse, Error> {
        let message = v1::TransferLeaderRequest { group: group.0, to: to.0 };
        let target = self.core.leader_target(group);
        let attempt = |rpc: Rpc| {
            let request = rpc.request(message);
            let answer: Answer<_> =
                Box::pin(async move { ClusterServiceClient::new(rpc.channel).transfer_leader(request).await });
            answer
        };
        self.core.call_within(TRANSFER_PATIENCE, &target, attempt).await
    }

    /// Compares the replicas of every group at one index.
    pub async fn verify(&self) -> Result<v1::VerifyResponse, Error> {
        self.core.replicas_verify(&self.core.target(Target::Any), v1::VerifyRequest {}).await
    }

    /// The configuration of `node` (name or address), or of any.
    pub async fn node_config(&self, node: Option<&str>) -> Result<v1::GetConfigResponse, Error> {
        self.core.config_get(&self.one(node), v1::GetConfigRequest {}).await
    }

    /// Builds a snapshot of each group on `node` (name or address), or on any.
    pub async fn snapshot(&self, node: Option<&str>) -> Result<v1::SnapshotResponse, Error> {
        self.core.snapshot_build(&self.one(node), v1::SnapshotRequest {}).await
    }

    fn one(&self, node: Option<&str>) -> Target {
        node.map_or_else(|| self.core.target(Target::Any), |node| Target::Only(node.into()))
    }
}
