//! The cluster's nodes: who takes part, and how that changes. Takes the cluster's admin role.

use unibus_proto::v1;
use unibus_proto::v1::cluster_service_client::ClusterServiceClient;

use crate::core::unary;
use crate::nodes::Target;
use crate::platform::Platform;
use crate::{Client, Error};

unary!(read nodes_list, ClusterServiceClient, list_nodes, v1::ListNodesRequest, v1::ListNodesResponse);
unary!(node_add, ClusterServiceClient, add_node, v1::AddNodeRequest, v1::AddNodeResponse);
unary!(node_drain, ClusterServiceClient, drain_node, v1::DrainNodeRequest, v1::DrainNodeResponse);
unary!(node_undrain, ClusterServiceClient, undrain_node, v1::UndrainNodeRequest, v1::UndrainNodeResponse);
unary!(node_remove, ClusterServiceClient, remove_node, v1::RemoveNodeRequest, v1::RemoveNodeResponse);
unary!(node_replace, ClusterServiceClient, replace_node, v1::ReplaceNodeRequest, v1::ReplaceNodeResponse);

impl<P: Platform> Client<P> {
    /// The nodes, those that ask to be taken in, and those that were removed.
    pub async fn list_nodes(&self) -> Result<v1::ListNodesResponse, Error> {
        self.core.nodes_list(&self.core.target(Target::Any), v1::ListNodesRequest {}).await
    }

    /// Takes in a node (name or id) that asks for it. The groups follow.
    pub async fn add_node(&self, node: &str) -> Result<v1::NodeInfo, Error> {
        let request = v1::AddNodeRequest { request_id: self.request_id(), node: node.into() };
        Ok(self.core.node_add(&self.core.target(Target::Any), request).await?.node.unwrap_or_default())
    }

    /// The node (name or id) leads nothing from now on. The leaderships follow.
    pub async fn drain_node(&self, node: &str) -> Result<v1::NodeInfo, Error> {
        let request = v1::DrainNodeRequest { request_id: self.request_id(), node: node.into() };
        Ok(self.core.node_drain(&self.core.target(Target::Any), request).await?.node.unwrap_or_default())
    }

    /// A drained node (name or id) may lead again.
    pub async fn undrain_node(&self, node: &str) -> Result<v1::NodeInfo, Error> {
        let request = v1::UndrainNodeRequest { request_id: self.request_id(), node: node.into() };
        Ok(self.core.node_undrain(&self.core.target(Target::Any), request).await?.node.unwrap_or_default())
    }

    /// The node (name or id) leaves for good. The groups follow.
    pub async fn remove_node(&self, node: &str) -> Result<v1::NodeInfo, Error> {
        let request = v1::RemoveNodeRequest { request_id: self.request_id(), node: node.into() };
        Ok(self.core.node_remove(&self.core.target(Target::Any), request).await?.node.unwrap_or_default())
    }

    /// The node `with`, which asks to be taken in, takes the place of `node` (names or ids). The groups follow.
    pub async fn replace_node(&self, node: &str, with: &str) -> Result<v1::NodeInfo, Error> {
        let request = v1::ReplaceNodeRequest { request_id: self.request_id(), node: node.into(), with: with.into() };
        Ok(self.core.node_replace(&self.core.target(Target::Any), request).await?.node.unwrap_or_default())
    }
}
