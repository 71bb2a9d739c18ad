//! What a host needs, as a folder: configuration, certificates, keys, unit file, and how to install them.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ed25519_dalek::SigningKey;

use super::{Host, Plan, PlanError, PlanNode, Tuning};
use crate::certs::{Authority, Validity};
use crate::config::{self, ClusterSection, Listen, NodeFile, NodeSection, TlsFiles};

/// Where a folder goes on its host.
const INSTALLED: &str = "/etc/unibus";
/// Where systemd makes directories of services.
const STATE_ROOT: &str = "/var/lib";
const UNIT: &str = include_str!("../../../deploy/unibus-node.service");

/// A node whose folder is to be written.
pub(super) struct NewNode<'a> {
    pub plan: &'a Plan,
    pub host: &'a Host,
    pub node: &'a PlanNode,
    pub key: &'a SigningKey,
    /// The cluster is there already.
    pub join: bool,
}

impl NewNode<'_> {
    /// Writes the folder into `out`; it must not exist.
    pub fn write(
        &self,
        out: &Path,
        authorities: &[Authority; 2],
        now: SystemTime,
        tuning: &Tuning,
    ) -> Result<PathBuf, PlanError> {
        let folder = out.join(&self.host.name);
        if folder.symlink_metadata().is_ok() {
            return Err(PlanError::OutputExists(folder));
        }
        create_dir(&folder)?;
        self.write_certificates(&folder, authorities, now)?;
        write_file(&folder.join("sign.key"), format!("{}\n", hex::encode(self.key.as_bytes())).as_bytes())?;
        write_file(&folder.join("node.toml"), self.node_file(tuning).to_toml().as_bytes())?;
        write_file(&folder.join("unibus-node.service"), unit(&self.host.name, &self.host.data_dir).as_bytes())?;
        write_file(&folder.join("README.txt"), self.readme().as_bytes())?;
        Ok(folder)
    }

    fn write_certificates(
        &self,
        folder: &Path,
        [peer_ca, client_ca]: &[Authority; 2],
        now: SystemTime,
    ) -> Result<(), PlanError> {
        let host = &self.host.host;
        let peer = peer_ca.issue_peer(self.plan.cluster, self.node.id, Validity::leaf(now))?;
        let mut names = vec![host.clone()];
        if is_loopback(host) {
            let more = ["localhost", "127.0.0.1", "::1"].map(String::from).into_iter();
            names.extend(more.filter(|name| name != host));
        }
        let client = client_ca.issue_server(&names, Validity::leaf(now))?;
        let files = [
            ("peer.crt", peer.cert_pem.as_bytes()),
            ("peer.key", peer.key_pem.as_bytes()),
            ("peer-ca.crt", peer_ca.cert_pem().as_bytes()),
            ("client.crt", client.cert_pem.as_bytes()),
            ("client.key", client.key_pem.as_bytes()),
            ("client-ca.crt", client_ca.cert_pem().as_bytes()),
        ];
        files.iter().try_for_each(|(name, bytes)| write_file(&folder.join(name), bytes))
    }

    fn node_file(&self, tuning: &Tuning) -> NodeFile {
        let host = self.host;
        let any = match host.host.parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) if host.host == "localhost" => "127.0.0.1".into(),
            Err(_) => "0.0.0.0".into(),
        };
        NodeFile {
            node_id: self.node.id.0,
            name: host.name.clone(),
            join: self.join,
            data_dir: host.data_dir.clone(),
            log: None,
            log_format: None,
            listen: Listen {
                peer: config::join_address(&any, host.peer_port),
                client: config::join_address(&any, host.client_port),
                admin: config::join_address("127.0.0.1", host.admin_port),
            },
            tls: TlsFiles::default(),
            timing: None,
            quic: tuning.initial_mtu.map(|initial_mtu| config::QuicSection { initial_mtu: Some(initial_mtu) }),
            store: config::StoreSection::default(),
            cluster: ClusterSection {
                id: self.plan.cluster.to_string(),
                shards: self.plan.shards,
                node: self.plan.nodes.iter().map(NodeSection::from).collect(),
            },
        }
    }

    fn readme(&self) -> String {
        let Host { name, admin_port, .. } = self.host;
        let then = match self.join {
            true => format!(
                "The node asks the cluster to be taken in, and waits until an admin says so:\n  \
                 unibusctl node add {name}                   beside the others, or\n  \
                 unibusctl node replace OLD --with {name}    in the place of another one\n"
            ),
            false => "The cluster forms once all its nodes run. Then, on one of them, the first admin:\n  \
                      unibus-node admin add --config /etc/unibus/node.toml --key HANDLE.pub\n"
                .into(),
        };
        format!(
            "unibus node {name} of cluster {}. This folder holds private keys.\n\n\
             On its host, as root, with unibus-node in /usr/local/bin and this folder as {INSTALLED}:\n  \
             useradd --system --home-dir {INSTALLED} --shell /usr/sbin/nologin unibus; chown -R unibus: {INSTALLED}\n  \
             unibus-node check-config {INSTALLED}/node.toml\n  \
             systemctl enable --now {INSTALLED}/unibus-node.service\n\n\
             curl -s http://127.0.0.1:{admin_port}/readyz says \"ready\", or what the node waits for.\n\n{then}",
            self.plan.cluster
        )
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// systemd makes the data directory where it makes those of services; elsewhere it is the operator's.
fn unit(name: &str, data_dir: &Path) -> String {
    let data = match data_dir.strip_prefix(STATE_ROOT) {
        Ok(state) => format!("StateDirectory={}\nStateDirectoryMode=0700", state.display()),
        Err(_) => format!("ReadWritePaths={}", Path::new(INSTALLED).join(data_dir).display()),
    };
    UNIT.replace("@NAME@", name).replace("@DATA@", &data)
}

/// Creates a directory that only its owner may enter.
pub(crate) fn create_dir(path: &Path) -> Result<(), PlanError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|cause| PlanError::Write { path: path.into(), cause })
}

/// Writes a new file that only its owner may read.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), PlanError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|cause| PlanError::Write { path: path.into(), cause })
}
