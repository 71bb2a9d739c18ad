//! The users' devices: hash-chained lists that the users sign.

use std::sync::MutexGuard;
use std::time::Duration;

use unibus_proto::id::Handle;
use unibus_proto::v1::device_service_client::DeviceServiceClient;
use unibus_proto::v1::{self, DeviceList, Signed};

use crate::core::unary;
use crate::nodes::Target;
use crate::platform::Platform;
use crate::{Client, Error, ErrorCode};

/// How long the version of the own list is taken for the newest.
const LIST_VERSION_HOLDS: Duration = Duration::from_secs(10);

unary!(
    devices_publish,
    DeviceServiceClient,
    publish_device_list,
    v1::PublishDeviceListRequest,
    v1::PublishDeviceListResponse
);
unary!(read devices_get, DeviceServiceClient, get_device_list, v1::GetDeviceListRequest, v1::GetDeviceListResponse);

impl<P: Platform> Client<P> {
    /// A user's key, newest device list and the bundles of his live devices. Nothing is verified.
    pub async fn device_list(&self, user: &Handle) -> Result<v1::GetDeviceListResponse, Error> {
        let request = v1::GetDeviceListRequest { user: user.as_str().into() };
        self.core.devices_get(&self.core.target(Target::Any), request).await
    }

    /// Publishes the next version of the caller's device list; returns the newest version.
    pub async fn publish_device_list(&self, list: Signed, bundles: Vec<Signed>) -> Result<u64, Error> {
        *self.list_version() = None;
        let request = v1::PublishDeviceListRequest { request_id: self.request_id(), device_list: Some(list), bundles };
        Ok(self.core.devices_publish(&self.core.target(Target::Any), request).await?.version)
    }

    /// The version of the caller's own list, which each roster event names. It is a version in which the
    /// device that signs is live, and the newest of a short while ago.
    pub(crate) async fn own_list_version(&self) -> Result<u64, Error> {
        let now = self.core.platform.now();
        let known = self.list_version().filter(|(read, _)| now.saturating_sub(*read) < LIST_VERSION_HOLDS);
        if let Some((_, version)) = known {
            return Ok(version);
        }
        let version = self.read_list_version().await?;
        *self.list_version() = Some((now, version));
        Ok(version)
    }

    fn list_version(&self) -> MutexGuard<'_, Option<(Duration, u64)>> {
        self.core.list_version.lock().expect("nobody panics while holding it")
    }

    async fn read_list_version(&self) -> Result<u64, Error> {
        let handle = &self.identity().handle;
        let missing =
            || Error::new(ErrorCode::DeviceNotFound, format!("user {handle} has no device list; sign in first"));
        let list = self.device_list(handle).await?.device_list.ok_or_else(missing)?;
        let list: DeviceList = list
            .verify(self.cluster_id(), &[self.identity().user_key.verifying_key().as_bytes()])
            .map_err(|error| Error::new(ErrorCode::Invalid, format!("own device list: {error}")))?;
        Ok(list.version)
    }
}
