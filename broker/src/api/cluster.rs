//! `ClusterService`.

use tonic::{Request, Response, Status, async_trait};
use unibus_proto::v1::cluster_service_server::ClusterService;
use unibus_proto::v1::{
    AddNodeRequest, AddNodeResponse, DrainNodeRequest, DrainNodeResponse, GetConfigRequest, GetConfigResponse,
    GetStatusRequest, GetStatusResponse, GetTopologyRequest, GetTopologyResponse, ListGroupsRequest,
    ListGroupsResponse, ListNodesRequest, ListNodesResponse, RemoveNodeRequest, RemoveNodeResponse, ReplaceNodeRequest,
    ReplaceNodeResponse, SnapshotRequest, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    UndrainNodeRequest, UndrainNodeResponse, VerifyRequest, VerifyResponse,
};
use unibus_raft_store::env::Env;

use super::{Api, answer, caller};

#[async_trait]
impl<E: Env> ClusterService for Api<E> {
    async fn get_topology(
        &self,
        request: Request<GetTopologyRequest>,
    ) -> Result<Response<GetTopologyResponse>, Status> {
        caller(&request)?;
        Ok(Response::new(self.service.topology()))
    }

    async fn get_status(&self, request: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        caller(&request)?;
        Ok(Response::new(self.service.status()))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.transfer_leader(&caller, request.into_inner()).await)
    }

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<SnapshotResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.snapshot(&caller).await)
    }

    async fn list_groups(&self, request: Request<ListGroupsRequest>) -> Result<Response<ListGroupsResponse>, Status> {
        caller(&request)?;
        Ok(Response::new(self.service.list_groups()))
    }

    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<VerifyResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.verify(&caller).await)
    }

    async fn get_config(&self, request: Request<GetConfigRequest>) -> Result<Response<GetConfigResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.config(&caller))
    }

    async fn list_nodes(&self, request: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        answer(self.service.list_nodes(&caller(&request)?).await)
    }

    async fn add_node(&self, request: Request<AddNodeRequest>) -> Result<Response<AddNodeResponse>, Status> {
        let caller = caller(&request)?;
        let node = self.service.add_node(&caller, request.into_inner()).await;
        answer(node.map(|node| AddNodeResponse { node: Some(node) }))
    }

    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        let caller = caller(&request)?;
        let DrainNodeRequest { request_id, node } = request.into_inner();
        let node = self.service.drain_node(&caller, request_id, &node, true).await;
        answer(node.map(|node| DrainNodeResponse { node: Some(node) }))
    }

    async fn undrain_node(
        &self,
        request: Request<UndrainNodeRequest>,
    ) -> Result<Response<UndrainNodeResponse>, Status> {
        let caller = caller(&request)?;
        let UndrainNodeRequest { request_id, node } = request.into_inner();
        let node = self.service.drain_node(&caller, request_id, &node, false).await;
        answer(node.map(|node| UndrainNodeResponse { node: Some(node) }))
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Result<Response<RemoveNodeResponse>, Status> {
        let caller = caller(&request)?;
        let node = self.service.remove_node(&caller, request.into_inner()).await;
        answer(node.map(|node| RemoveNodeResponse { node: Some(node) }))
    }

    async fn replace_node(
        &self,
        request: Request<ReplaceNodeRequest>,
    ) -> Result<Response<ReplaceNodeResponse>, Status> {
        let caller = caller(&request)?;
        let node = self.service.replace_node(&caller, request.into_inner()).await;
        answer(node.map(|node| ReplaceNodeResponse { node: Some(node) }))
    }
}
