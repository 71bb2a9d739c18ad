//! The first admin of a `dev` cluster, and the profile by which `unibusctl` finds it.

use std::path::{Path, PathBuf};

use unibus_proto::files::{self, Identity, Profile};
use unibus_proto::id::{ClusterId, Handle};
use unibus_proto::v1::DeviceKind;
use unibus_raft_store::env::{Clock, Rng};

use super::child::Child;
use crate::env::{SystemClock, SystemRng};
use crate::local::SOCKET_NAME;
use crate::local_admin;

const HANDLE: &str = "admin";
const PROFILE: &str = "dev";
const IDENTITY_FILE: &str = "admin.identity";

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
    let socket = first.folder.join(&first.file.data_dir).join(SOCKET_NAME);
    let added = local_admin::add(&socket, &identity.public_card(), Some(identity.device_list(cluster))).await;
    added.map_err(|why| format!("{why}; --fresh begins anew"))?;
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
