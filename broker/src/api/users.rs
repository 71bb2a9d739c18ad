//! `UserService`.

use tonic::{Request, Response, Status, async_trait};
use unibus_proto::v1::user_service_server::UserService;
use unibus_proto::v1::{
    AddUserRequest, AddUserResponse, GetUserRequest, GetUserResponse, ListUsersRequest, ListUsersResponse,
    ReinstateUserRequest, ReinstateUserResponse, RevokeUserRequest, RevokeUserResponse, SetUserRoleRequest,
    SetUserRoleResponse,
};
use unibus_raft_store::env::Env;

use super::{Api, answer, caller};

#[async_trait]
impl<E: Env> UserService for Api<E> {
    async fn add_user(&self, request: Request<AddUserRequest>) -> Result<Response<AddUserResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.add_user(&caller, request.into_inner()).await)
    }

    async fn get_user(&self, request: Request<GetUserRequest>) -> Result<Response<GetUserResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.get_user(&caller, request.into_inner()).await)
    }

    async fn list_users(&self, request: Request<ListUsersRequest>) -> Result<Response<ListUsersResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.list_users(&caller, request.into_inner()).await)
    }

    async fn set_user_role(
        &self,
        request: Request<SetUserRoleRequest>,
    ) -> Result<Response<SetUserRoleResponse>, Status> {
        let caller = caller(&request)?;
        let user = self.service.set_user_role(&caller, request.into_inner()).await;
        answer(user.map(|user| SetUserRoleResponse { user: Some(user) }))
    }

    async fn revoke_user(&self, request: Request<RevokeUserRequest>) -> Result<Response<RevokeUserResponse>, Status> {
        let caller = caller(&request)?;
        let user = self.service.revoke_user(&caller, request.into_inner()).await;
        answer(user.map(|user| RevokeUserResponse { user: Some(user) }))
    }

    async fn reinstate_user(
        &self,
        request: Request<ReinstateUserRequest>,
    ) -> Result<Response<ReinstateUserResponse>, Status> {
        let caller = caller(&request)?;
        let user = self.service.reinstate_user(&caller, request.into_inner()).await;
        answer(user.map(|user| ReinstateUserResponse { user: Some(user) }))
    }
}
