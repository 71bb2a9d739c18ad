//! `RoomService`.

use tonic::{Request, Response, Status, async_trait};
use unibus_proto::v1::room_service_server::RoomService;
use unibus_proto::v1::{
    AppendRosterRequest, AppendRosterResponse, CreateRoomRequest, CreateRoomResponse, GetRoomRequest, GetRoomResponse,
    ListMembersRequest, ListMembersResponse, ListRoomsRequest, ListRoomsResponse, ReadRosterRequest,
    ReadRosterResponse,
};
use unibus_raft_store::env::Env;

use super::{Api, answer, caller};

#[async_trait]
impl<E: Env> RoomService for Api<E> {
    async fn create_room(&self, request: Request<CreateRoomRequest>) -> Result<Response<CreateRoomResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.create_room(&caller, request.into_inner()).await)
    }

    async fn get_room(&self, request: Request<GetRoomRequest>) -> Result<Response<GetRoomResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.get_room(&caller, request.into_inner()).await)
    }

    async fn list_rooms(&self, request: Request<ListRoomsRequest>) -> Result<Response<ListRoomsResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.list_rooms(&caller, request.into_inner()).await)
    }

    async fn list_members(
        &self,
        request: Request<ListMembersRequest>,
    ) -> Result<Response<ListMembersResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.list_members(&caller, request.into_inner()).await)
    }

    async fn read_roster(&self, request: Request<ReadRosterRequest>) -> Result<Response<ReadRosterResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.read_roster(&caller, request.into_inner()).await)
    }

    async fn append_roster(
        &self,
        request: Request<AppendRosterRequest>,
    ) -> Result<Response<AppendRosterResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.append_roster(&caller, request.into_inner()).await)
    }
}
