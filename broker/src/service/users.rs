//! The cluster's users: changed by admins or through the local socket, read linearizably.

use unibus_proto::id::{GroupId, Handle};
use unibus_proto::limits::PROPOSE_PATIENCE;
use unibus_proto::log::{UserAdd, UserChange, proposal::Command, reply::Reply};
use unibus_proto::v1::{
    AddUserRequest, AddUserResponse, DeviceList, GetUserRequest, GetUserResponse, ListUsersRequest, ListUsersResponse,
    ReinstateUserRequest, RevokeUserRequest, SetUserRoleRequest, User, UserRole, UserStatus,
};
use unibus_raft_store::env::Env;

use super::devices::unexpected;
use super::{Caller, Outcome, Service, check};

impl<E: Env> Service<E> {
    /// Adds a user, with his first device list if he has one.
    pub async fn add_user(&self, caller: &Caller, request: AddUserRequest) -> Outcome<AddUserResponse> {
        caller.check_admin("add user")?;
        let handle = check::handle(&request.handle)?;
        let user_key = check::key("user_key", &request.user_key)?;
        let role = check::role(request.role)?;
        check::request_id(&request.request_id)?;
        if let Some(list) = &request.device_list {
            list.verify::<DeviceList>(self.inner.parts.identity.cluster, &[&user_key])?;
        }
        let add = UserAdd {
            request_id: request.request_id,
            handle: request.handle,
            user_key: request.user_key,
            role: role.into(),
            actor: caller.actor(),
        };
        let (applied_index, user, created) = self.change(Command::UserAdd(add)).await?;
        if let Some(list) = &request.device_list {
            self.put_devices(&handle, list, &request.bundles).await?;
        }
        Ok(AddUserResponse { user: Some(user), created, applied_index })
    }

    /// One user. Any user may ask: whoever adds a member to a room pins the key of that user.
    pub async fn get_user(&self, caller: &Caller, request: GetUserRequest) -> Outcome<GetUserResponse> {
        let handle = check::handle(&request.handle)?;
        self.shards().barrier(GroupId::META).await?;
        tracing::trace!(caller = caller.actor(), %handle, "user read");
        Ok(GetUserResponse { user: Some(self.known_user(&handle)?) })
    }

    /// A page of users.
    pub async fn list_users(&self, caller: &Caller, request: ListUsersRequest) -> Outcome<ListUsersResponse> {
        caller.check_admin("list users")?;
        let size = check::page_size("page_size", request.page_size)?;
        let after: Option<Handle> = check::page_token(&request.page_token)?;
        self.shards().barrier(GroupId::META).await?;
        let mut users = self.shards().meta().view(|machine| machine.users(after.as_ref(), size + 1));
        let next_page_token = if users.len() > size { users[size - 1].handle.clone() } else { String::new() };
        users.truncate(size);
        Ok(ListUsersResponse { users, next_page_token })
    }

    /// Changes a user's role.
    pub async fn set_user_role(&self, caller: &Caller, request: SetUserRoleRequest) -> Outcome<User> {
        let role = check::role(request.role)?;
        self.change_user(caller, "set role", request.request_id, request.handle, role, UserStatus::Unspecified).await
    }

    /// Ends a user's access.
    pub async fn revoke_user(&self, caller: &Caller, request: RevokeUserRequest) -> Outcome<User> {
        let RevokeUserRequest { request_id, handle } = request;
        self.change_user(caller, "revoke user", request_id, handle, UserRole::Unspecified, UserStatus::Revoked).await
    }

    /// Gives a revoked user access again.
    pub async fn reinstate_user(&self, caller: &Caller, request: ReinstateUserRequest) -> Outcome<User> {
        let ReinstateUserRequest { request_id, handle } = request;
        self.change_user(caller, "reinstate user", request_id, handle, UserRole::Unspecified, UserStatus::Active).await
    }

    async fn change_user(
        &self,
        caller: &Caller,
        what: &str,
        request_id: bytes::Bytes,
        handle: String,
        role: UserRole,
        status: UserStatus,
    ) -> Outcome<User> {
        caller.check_admin(what)?;
        check::handle(&handle)?;
        check::request_id(&request_id)?;
        let (role, status) = (role.into(), status.into());
        let change = UserChange { request_id, handle, role, status, actor: caller.actor() };
        self.change(Command::UserChange(change)).await.map(|(_, user, _)| user)
    }

    async fn change(&self, command: Command) -> Outcome<(u64, User, bool)> {
        let (index, reply) = self.shards().propose(GroupId::META, command).await?;
        self.shards().wait_applied(GroupId::META, index, PROPOSE_PATIENCE).await?;
        match reply {
            Reply::User(reply) => Ok((index, reply.user.unwrap_or_default(), reply.created)),
            other => Err(unexpected("user", &other)),
        }
    }
}
