//! The cluster's users. Changing them takes the cluster's admin role.

use unibus_proto::files::PublicCard;
use unibus_proto::id::{Handle, RequestId};
use unibus_proto::limits::PAGE_MAX;
use unibus_proto::v1::user_service_client::UserServiceClient;
use unibus_proto::v1::{self, UserRole};

use crate::core::unary;
use crate::nodes::Target;
use crate::platform::{Platform, random};
use crate::{Client, Error};

unary!(user_add, UserServiceClient, add_user, v1::AddUserRequest, v1::AddUserResponse);
unary!(read user_get, UserServiceClient, get_user, v1::GetUserRequest, v1::GetUserResponse);
unary!(read users_page, UserServiceClient, list_users, v1::ListUsersRequest, v1::ListUsersResponse);
unary!(user_set_role, UserServiceClient, set_user_role, v1::SetUserRoleRequest, v1::SetUserRoleResponse);
unary!(user_revoke, UserServiceClient, revoke_user, v1::RevokeUserRequest, v1::RevokeUserResponse);
unary!(user_reinstate, UserServiceClient, reinstate_user, v1::ReinstateUserRequest, v1::ReinstateUserResponse);

impl<P: Platform> Client<P> {
    /// Adds a user by his public card. The same user again is answered with the user as it stands.
    pub async fn add_user(&self, card: &PublicCard, role: UserRole) -> Result<v1::AddUserResponse, Error> {
        let request = v1::AddUserRequest {
            request_id: self.request_id(),
            handle: card.handle.as_str().into(),
            user_key: card.user_key.to_vec().into(),
            role: role.into(),
            ..v1::AddUserRequest::default()
        };
        self.core.user_add(&self.core.target(Target::Any), request).await
    }

    /// One user.
    pub async fn user(&self, handle: &Handle) -> Result<v1::User, Error> {
        let request = v1::GetUserRequest { handle: handle.as_str().into() };
        Ok(self.core.user_get(&self.core.target(Target::Any), request).await?.user.unwrap_or_default())
    }

    /// All users, by handle.
    pub async fn list_users(&self) -> Result<Vec<v1::User>, Error> {
        let (mut users, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListUsersRequest { page_size: PAGE_MAX, page_token };
            let page = self.core.users_page(&self.core.target(Target::Any), request).await?;
            users.extend(page.users);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(users);
            }
        }
    }

    /// Changes a user's role in the cluster.
    pub async fn set_user_role(&self, handle: &Handle, role: UserRole) -> Result<v1::User, Error> {
        let (request_id, handle) = (self.request_id(), handle.as_str().into());
        let request = v1::SetUserRoleRequest { request_id, handle, role: role.into() };
        Ok(self.core.user_set_role(&self.core.target(Target::Any), request).await?.user.unwrap_or_default())
    }

    /// Ends a user's access.
    pub async fn revoke_user(&self, handle: &Handle) -> Result<v1::User, Error> {
        let request = v1::RevokeUserRequest { request_id: self.request_id(), handle: handle.as_str().into() };
        Ok(self.core.user_revoke(&self.core.target(Target::Any), request).await?.user.unwrap_or_default())
    }

    /// Gives a revoked user access again.
    pub async fn reinstate_user(&self, handle: &Handle) -> Result<v1::User, Error> {
        let request = v1::ReinstateUserRequest { request_id: self.request_id(), handle: handle.as_str().into() };
        Ok(self.core.user_reinstate(&self.core.target(Target::Any), request).await?.user.unwrap_or_default())
    }

    /// One id for all attempts of a mutation.
    pub(crate) fn request_id(&self) -> bytes::Bytes {
        RequestId(random(&self.core.platform)).to_bytes()
    }
}
