//! The floor that scenarios stand on: nodes as processes, each on a disk of its own, made by the same
//! commands that an operator uses, and a user who may do everything. All of it goes when dropped.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use tokio::process::Command;
use unibus_broker::dev::loopback::{LOOPBACK, Ports};
use unibus_client::proto::files::Identity;
use unibus_client::{Client, ClientConfig, TokioPlatform};
use unibus_proto::id::{Handle, NodeId};
use unibus_proto::v1::DeviceKind;

use crate::real::disk::LoopDisk;
use crate::real::process::{self, NodeProcess, Program};
use crate::sim::random::Random;

/// Longer than any fault: the SDK has to get through.
const PATIENCE: Duration = Duration::from_secs(90);
const HANDLE: &str = "chaos";

/// What a floor is made of.
#[derive(Clone, Debug)]
pub struct FloorConfig {
    /// `unibus-node`.
    pub binary: PathBuf,
    /// Where the images are.
    pub dir: PathBuf,
    /// How many nodes.
    pub nodes: u64,
    /// Shard groups.
    pub shards: u32,
    /// Bytes of each disk; the images are sparse.
    pub disk_bytes: u64,
    /// TOML that goes to the end of each `node.toml`.
    pub settings: String,
}

/// A node and its disk. The process goes before the disk.
pub struct RealNode {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// host:port of its gRPC listener.
    pub address: String,
    /// Its process.
    pub process: NodeProcess,
    /// Its disk.
    pub disk: LoopDisk,
}

impl RealNode {
    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        data_dir(self.disk.path())
    }

    /// After a power cut: the process ends and the disk comes back.
    pub async fn restore(&mut self) -> Result<(), String> {
        self.process.kill().await;
        tokio::task::block_in_place(|| self.disk.restore_power())
    }
}

/// All nodes of a cluster. Fields are dropped in this order.
pub struct Floor {
    /// The nodes, by id.
    pub nodes: Vec<RealNode>,
    config: FloorConfig,
    identity: Identity,
    authority: PathBuf,
    scratch: TempDir,
}

impl Floor {
    /// Makes disks, plan and identity. No node runs yet.
    pub async fn build(config: &FloorConfig) -> Result<Self, String> {
        let scratch = tempfile::Builder::new().prefix("unibus-chaos-").tempdir_in(&config.dir);
        let scratch = scratch.map_err(|error| format!("make a directory in {}: {error}", config.dir.display()))?;
        let at = scratch.path();
        let ports = Ports::free(config.nodes).map_err(|error| format!("find free ports: {error}"))?;
        let mut disks = Vec::new();
        for number in 1..=config.nodes {
            disks.push(LoopDisk::create(at, &format!("d{number}"), config.disk_bytes)?);
        }
        let plan = plan_dir(at);
        write(&at.join("cluster.toml"), &cluster_file(config.shards, &disks, &ports))?;
        let mut command = Command::new(&config.binary);
        run(command.arg("plan").arg(at.join("cluster.toml")).arg("--out").arg(&plan)).await?;
        let mut nodes = Vec::new();
        for (number, (disk, port)) in (1..).zip(disks.into_iter().zip(&ports)) {
            nodes.push(node(config, &plan, number, port, disk)?);
        }
        let authority = plan.join("n1/client-ca.crt");
        Ok(Self { nodes, config: config.clone(), identity: identity()?, authority, scratch })
    }

    /// Mints a node in place of node number `at`, which does not run and whose disk is gone for good. The new one
    /// is not started. Answers the name of the old one.
    pub async fn mint_instead_of(&mut self, at: usize) -> Result<String, String> {
        let (root, number) = (self.scratch.path(), self.nodes.iter().map(|node| node.id.0).max().unwrap_or(0) + 1);
        let ports = Ports::free(1).map_err(|error| format!("find free ports: {error}"))?;
        let disk = LoopDisk::create(root, &format!("d{number}"), self.config.disk_bytes)?;
        let (plan, old) = (plan_dir(root), self.nodes[at].name.clone());
        let mut command = Command::new(&self.config.binary);
        command.arg("plan").arg("--out").arg(&plan).args(["--add", &name(number), "--replaces", &old]);
        command.args(["--host", LOOPBACK]).arg("--data-dir").arg(data_dir(disk.path()));
        for (flag, port) in
            [("--peer-port", ports[0].peer), ("--client-port", ports[0].client), ("--admin-port", ports[0].admin)]
        {
            command.arg(flag).arg(port.to_string());
        }
        run(&mut command).await?;
        self.nodes[at] = node(&self.config, &plan, number, &ports[0], disk)?;
        Ok(old)
    }

    /// Starts all nodes, waits until the cluster serves, and adds the user.
    pub async fn form(&mut self, binary: &Path, patience: Duration) -> Result<(), String> {
        for node in &mut self.nodes {
            node.process.start()?;
        }
        for node in &self.nodes {
            let ready = node.process.wait_ready(patience).await;
            let log = || process::last_lines(&node.process.log_path(), 5);
            ready.map_err(|why| format!("{}: {why}; its log ends with:\n{}", node.name, log()))?;
        }
        let card = self.scratch.path().join("chaos.pub");
        self.identity.public_card().save(&card).map_err(|error| error.to_string())?;
        let config = self.scratch.path().join("plan/n1/node.toml");
        let mut command = Command::new(binary);
        run(command.args(["admin", "add", "--config"]).arg(config).arg("--key").arg(card)).await
    }

    /// A client of all nodes, or of one only.
    pub async fn client(&self, pin: Option<&RealNode>) -> Result<Client, String> {
        let platform = TokioPlatform::from_ca_file(&self.authority).map_err(|error| error.to_string())?;
        let nodes = self.nodes.iter().map(|node| node.address.clone());
        let pin = pin.map(|node| node.name.clone());
        let config = ClientConfig::new(nodes).pinned(pin).patience(PATIENCE);
        let connected = Client::connect(platform, config, self.identity.clone()).await;
        connected.map_err(|error| format!("connect: {error}"))
    }

    /// Stops all nodes in order.
    pub async fn stop(&mut self) -> Result<(), String> {
        let stops = self.nodes.iter_mut().map(|node| node.process.stop());
        futures::future::join_all(stops).await.into_iter().collect()
    }

    /// Leaves the images and logs where they are and says where.
    pub fn keep(mut self) -> PathBuf {
        self.scratch.disable_cleanup(true);
        self.scratch.path().to_owned()
    }
}

fn plan_dir(scratch: &Path) -> PathBuf {
    scratch.join("plan")
}

fn name(number: u64) -> String {
    format!("n{number}")
}

/// A node that the plan has, on its disk.
fn node(config: &FloorConfig, plan: &Path, number: u64, port: &Ports, disk: LoopDisk) -> Result<RealNode, String> {
    let (name, binary) = (name(number), config.binary.clone());
    let folder = plan.join(&name);
    append(&folder.join("node.toml"), &config.settings)?;
    let program = Program { binary, folder, admin: format!("{LOOPBACK}:{}", port.admin) };
    let address = format!("{LOOPBACK}:{}", port.client);
    Ok(RealNode { id: NodeId(number), name, address, process: NodeProcess::new(program), disk })
}

/// Where a node keeps its data on its disk, whose root has `lost+found`.
fn data_dir(disk: &Path) -> PathBuf {
    disk.join("data")
}

fn cluster_file(shards: u32, disks: &[LoopDisk], ports: &[Ports]) -> String {
    let mut text = format!("shards = {shards}\n");
    for (number, (disk, Ports { peer, client, admin })) in (1..).zip(disks.iter().zip(ports)) {
        let data = data_dir(disk.path());
        text += &format!(
            "[[node]]\nname = \"n{number}\"\nhost = \"{LOOPBACK}\"\npeer_port = {peer}\nclient_port = {client}\n\
             admin_port = {admin}\ndata_dir = \"{}\"\n",
            data.display()
        );
    }
    text
}

fn identity() -> Result<Identity, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Keys of a cluster that lives for minutes on loopback.
    let mut random = Random::stream(now.as_nanos() as u64, "identity", u64::from(std::process::id()));
    let handle: Handle = HANDLE.parse().map_err(|error| format!("{error}"))?;
    Ok(Identity::generate(handle, DeviceKind::Service, now.as_millis() as u64, |buffer| random.fill(buffer)))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("write {}: {error}", path.display()))
}

fn append(path: &Path, text: &str) -> Result<(), String> {
    let appended = OpenOptions::new().append(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    appended.map_err(|error| format!("append to {}: {error}", path.display()))
}

async fn run(command: &mut Command) -> Result<(), String> {
    let what = format!("{:?}", command.as_std());
    let output = command.stdin(Stdio::null()).output().await.map_err(|error| format!("{what}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{what}: {}, {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}
