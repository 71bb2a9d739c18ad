//! Device lists: signed by the users, kept in their shards.

use unibus_machine::verify_device_list;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, Handle};
use unibus_proto::log::{DeviceListPut, UserAttach, proposal::Command, reply::Reply};
use unibus_proto::row::DeviceListRow;
use unibus_proto::v1::{
    DeviceList, GetDeviceListRequest, GetDeviceListResponse, PublishDeviceListRequest, PublishDeviceListResponse,
    Signed, User,
};
use unibus_raft_store::env::Env;

use super::{Caller, Failure, Outcome, Service, check};

impl<E: Env> Service<E> {
    /// Publishes the next version of the caller's device list.
    pub async fn publish_device_list(
        &self,
        caller: &Caller,
        request: PublishDeviceListRequest,
    ) -> Outcome<PublishDeviceListResponse> {
        let (user, _) = caller.user()?;
        check::request_id(&request.request_id)?;
        let list = check::signed("device_list", &request.device_list)?;
        let version = self.put_devices(user, list, &request.bundles).await?;
        Ok(PublishDeviceListResponse { version })
    }

    /// The newest device list of a user.
    pub async fn get_device_list(
        &self,
        caller: &Caller,
        request: GetDeviceListRequest,
    ) -> Outcome<GetDeviceListResponse> {
        let user = check::handle(&request.user)?;
        if caller != &Caller::Local {
            caller.user()?;
        }
        let shard = self.shards().of_user(&user);
        self.shards().barriers([GroupId::META, shard]).await?;
        let user_key = self.known_user(&user)?.user_key;
        Ok(self.shards().group(shard)?.view(|machine| GetDeviceListResponse {
            user_key,
            device_list: machine.devices(&user).and_then(|row| row.device_list),
            bundles: machine.device_bundles(&user),
        }))
    }

    /// Pins the user's key in his shard when it is not yet, and puts the next list; its version.
    pub(super) async fn put_devices(&self, user: &Handle, list: &Signed, bundles: &[Signed]) -> Outcome<u64> {
        let user_key = self.known_user(user)?.user_key;
        let put = DeviceListPut { device_list: Some(list.clone()), bundles: bundles.to_vec() };
        self.admit_list(user, &user_key, &put)?;
        let shard = self.shards().of_user(user);
        let is_attached = self.shards().group(shard)?.view(|machine| machine.devices(user)).is_some();
        if !is_attached {
            let attach = UserAttach { handle: user.to_string(), user_key };
            self.shards().propose(shard, Command::UserAttach(attach)).await?;
        }
        match self.shards().propose_and_see(shard, Command::DeviceListPut(put)).await? {
            (_, Reply::DeviceList(reply)) => Ok(reply.version),
            (_, other) => Err(unexpected("device list", &other)),
        }
    }

    /// Refuses what `apply` would refuse on any state; what depends on the newest list is left to it.
    fn admit_list(&self, user: &Handle, user_key: &[u8], put: &DeviceListPut) -> Outcome<()> {
        let cluster = self.inner.parts.identity.cluster;
        if let Some(list) = &put.device_list {
            list.verify::<DeviceList>(cluster, &[user_key])?;
        }
        let shard = self.shards().group(self.shards().of_user(user))?;
        let (row, live) = shard.view(|machine| (machine.devices(user), machine.device_bundles(user)));
        let row = row.unwrap_or_else(|| DeviceListRow { user_key: user_key.to_vec().into(), ..Default::default() });
        match verify_device_list(cluster, user, &row, &live, put) {
            Err(reject) if reject.error_code() == ErrorCode::Invalid => Err(reject.into()),
            _ => Ok(()),
        }
    }

    /// A user of the local replica.
    pub(super) fn known_user(&self, user: &Handle) -> Outcome<User> {
        let row = self.shards().meta().view(|machine| machine.user(user));
        row.ok_or_else(|| {
            Failure::new(ErrorCode::UserNotFound, format!("user {user}: not found; ask an admin to add it"))
        })
    }
}

/// A reply of another kind than the command's: a bug, or a machine of another version.
pub(super) fn unexpected(command: &str, reply: &Reply) -> Failure {
    Failure::new(ErrorCode::Internal, format!("{command}: the reply {reply:?} does not belong to the command"))
}
