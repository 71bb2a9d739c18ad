//! `AuthService`.

use tonic::{Request, Response, Status, async_trait};
use unibus_proto::v1::auth_service_server::AuthService;
use unibus_proto::v1::{
    ChallengeRequest, ChallengeResponse, SignInRequest, SignInResponse, WhoAmIRequest, WhoAmIResponse,
};
use unibus_raft_store::env::Env;

use super::connection::Connection;
use super::{Api, answer, caller};

#[async_trait]
impl<E: Env> AuthService for Api<E> {
    async fn challenge(&self, request: Request<ChallengeRequest>) -> Result<Response<ChallengeResponse>, Status> {
        let source = request.extensions().get::<Connection>().map(Connection::source);
        answer(self.service.challenge_for(source))
    }

    async fn sign_in(&self, request: Request<SignInRequest>) -> Result<Response<SignInResponse>, Status> {
        answer(self.service.sign_in(request.into_inner()).await)
    }

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        answer(self.service.who_am_i(&caller(&request)?))
    }
}
