//! The first admin of a `dev` cluster, and the profile by which `unibusctl` finds it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use unibus_proto::files::{self, Identity, Profile};
use unibus_proto::id::{ClusterId, Handle};
use unibus_proto::v1::user_service_client::UserServiceClient;
use unibus_proto::v1::{AddUserRequest, DeviceKind, UserRole};
use unibus_raft_store::env::{Clock, Rng};

use super::child::Child;
use crate::env::{SystemClock, SystemRng};
use crate::local::SOCKET_NAME;

const HANDLE: &str = "admin";
const PROFILE: &str = "dev";
const IDENTITY_FILE: &str = "admin.identity";
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);

/// The first admin.
pub(super) struct Admin {
    pub handle: String,
    pub profile_name: &'static str,
    pub profile_path: PathBuf,
}

/// Creates the admin where he is missing and writes the profile.
pub(super) async fn ensure(dir: &Path, children: &[Child]) -> Result<Admin, String> {
    let first = children.first().ok_or("no nodes")?;
    let identity = identity(&dir.join(IDENTITY_FILE))?;
    let cluster: ClusterId = first.file.cluster.id.parse().map_err(|error| format!("cluster.id: {error}"))?;
    add(&first.folder.join(&first.file.data_dir).join(SOCKET_NAME), &identity, cluster).await?;
    let config = files::config_dir().ok_or("write the profile \"dev\": neither XDG_CONFIG_HOME nor HOME is set")?;
    let profile_path = files::profile_path(&config, PROFILE);
    let nodes = children.iter().map(|child| child.file.listen.client.clone()).collect();
    let ca = first.folder.join(&first.file.tls.client_ca);
    let profile = Profile::new(dir.join(IDENTITY_FILE), ca, nodes);
    profile.save(&profile_path).map_err(|error| error.to_string())?;
    Ok(Admin { handle: identity.handle.to_string(), profile_name: PROFILE, profile_path })
}

fn identity(path: &Path) -> Result<Identity, String> {
    if path.exists() {
        return Identity::load(path).map_err(|error| error.to_string());
    }
    let handle: Handle = HANDLE.parse().map_err(|error| format!("{error}"))?;
    let rng = SystemRng::default();
    let identity = Identity::generate(handle, DeviceKind::Person, SystemClock.now_ms(), |buffer| rng.fill(buffer));
    identity.save(path).map_err(|error| error.to_string())?;
    Ok(identity)
}

async fn add(socket: &Path, identity: &Identity, cluster: ClusterId) -> Result<(), String> {
    let (device_list, bundles) = identity.device_list(cluster);
    let mut request_id = [0; 16];
    SystemRng::default().fill(&mut request_id);
    let request = AddUserRequest {
        request_id: Bytes::copy_from_slice(&request_id),
        handle: identity.handle.to_string(),
        user_key: Bytes::copy_from_slice(identity.user_key.verifying_key().as_bytes()),
        role: UserRole::Admin.into(),
        device_list: Some(device_list),
        bundles,
    };
    let begun = tokio::time::Instant::now();
    let mut client = UserServiceClient::new(channel(socket)?);
    loop {
        match client.add_user(request.clone()).await {
            Ok(_) => return Ok(()),
            Err(status) if may_pass(status.code()) && begun.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
            Err(status) => {
                let (what, why) = (socket.display(), status.message());
                return Err(format!("add the first admin through {what}: {why}; --fresh begins anew"));
            }
        }
    }
}

/// An election may be under way, or the answer was lost; the request id makes it safe to ask again.
fn may_pass(code: tonic::Code) -> bool {
    matches!(code, tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::DeadlineExceeded)
}

fn channel(socket: &Path) -> Result<Channel, String> {
    let socket = socket.to_owned();
    // The name is never looked up: the connector goes to the socket.
    let endpoint = Endpoint::try_from("http://local").map_err(|error| error.to_string())?.timeout(PATIENCE);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    })))
}
