//! `ClusterService`.

use tonic::{Request, Response, Status, async_trait};
use unibus_proto::v1::cluster_service_server::ClusterService;
use unibus_proto::v1::{
    GetConfigRequest, GetConfigResponse, GetStatusRequest, GetStatusResponse, GetTopologyRequest, GetTopologyResponse,
    ListGroupsRequest, ListGroupsResponse, SnapshotRequest, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VerifyRequest, VerifyResponse,
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
}
