//! `DeviceService`.

use tonic::{Request, Response, Status, async_trait};
use unibus_proto::v1::device_service_server::DeviceService;
use unibus_proto::v1::{
    GetDeviceListRequest, GetDeviceListResponse, PublishDeviceListRequest, PublishDeviceListResponse,
};
use unibus_raft_store::env::Env;

use super::{Api, answer, caller};

#[async_trait]
impl<E: Env> DeviceService for Api<E> {
    async fn publish_device_list(
        &self,
        request: Request<PublishDeviceListRequest>,
    ) -> Result<Response<PublishDeviceListResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.publish_device_list(&caller, request.into_inner()).await)
    }

    async fn get_device_list(
        &self,
        request: Request<GetDeviceListRequest>,
    ) -> Result<Response<GetDeviceListResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.get_device_list(&caller, request.into_inner()).await)
    }
}
