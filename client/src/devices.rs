//! The users' devices: hash-chained lists that the users sign.

use unibus_proto::id::Handle;
use unibus_proto::v1::device_service_client::DeviceServiceClient;
use unibus_proto::v1::{self, DeviceList, Signed};

use crate::core::unary;
use crate::nodes::Target;
use crate::platform::Platform;
use crate::{Client, Error, ErrorCode};

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
        let request = v1::PublishDeviceListRequest { request_id: self.request_id(), device_list: Some(list), bundles };
        Ok(self.core.devices_publish(&self.core.target(Target::Any), request).await?.version)
    }

    /// The version of the caller's own list, which each roster event names.
    pub(crate) async fn own_list_version(&self) -> Result<u64, Error> {
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
