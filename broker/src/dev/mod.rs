//! `unibus-node dev`: real nodes as child processes on loopback, made by the same code as `plan`.
//!
//! The directory holds what `plan` writes, each node's data, log and pid, and the first admin's
//! identity. It is resumed at the next start.
#![allow(clippy::disallowed_methods)] // A tool on a developer's machine: processes, sockets, time.

mod admin;
mod child;
pub mod loopback;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::cli::Dev;
use crate::config::{self, NodeFile};
use crate::env::SystemRng;
use crate::plan::{self, ClusterFile, Host, Tuning};
use child::Child;
use loopback::{LOOPBACK, Ports};

/// Until all nodes are ready; a debug build on a busy machine is slow.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// After so long we say what is missing.
const READY_USUAL: Duration = Duration::from_secs(5);
const POLL_EVERY: Duration = Duration::from_millis(50);
/// The loopback interface carries more; ten of these are what the kernel takes at once.
const LOOPBACK_MTU: u16 = 6_500;

/// Runs until Ctrl-C.
pub async fn run(args: &Dev) -> Result<(), String> {
    let dir = std::path::absolute(&args.dir).map_err(|error| format!("--dir {}: {error}", args.dir.display()))?;
    if args.fresh {
        wipe(&dir)?;
    }
    if !dir.exists() {
        create(&dir, args.nodes)?;
    }
    let _lock = lock(&dir)?;
    let nodes = load(&dir, args.nodes)?;
    let mut children = Vec::new();
    for (folder, file) in nodes {
        children.push(Child::start(folder, file).map_err(|error| format!("start a node: {error}"))?);
    }
    let mut stop = Stop::new().map_err(|error| format!("listen for signals: {error}"))?;
    let outcome = tokio::select! {
        biased;
        () = stop.wait() => Ok(()),
        outcome = serve(&dir, &mut children) => outcome,
    };
    eprintln!("stopping {} nodes", children.len());
    child::stop_all(children).await;
    outcome
}

async fn serve(dir: &Path, children: &mut [Child]) -> Result<(), String> {
    let begun = Instant::now();
    wait_until_ready(children).await?;
    let ready = begun.elapsed();
    let admin = admin::ensure(dir, children).await?;
    print_table(children, &admin, ready);
    child::supervise(children).await
}

async fn wait_until_ready(children: &mut [Child]) -> Result<(), String> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let mut missing = Vec::new();
        for child in children.iter_mut() {
            if let Some(ended) = child.try_ended() {
                let log = child.last_log_lines();
                return Err(format!(
                    "{} ended at its start ({ended}); {} says:\n{log}",
                    child.name(),
                    child.log_path()
                ));
            }
            if let Err(why) = child.ready().await {
                missing.push(format!("{}: {}", child.name(), why.trim().replace('\n', "; ")));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > READY_PATIENCE {
            return Err(format!("not ready after {} s:\n  {}", READY_PATIENCE.as_secs(), missing.join("\n  ")));
        }
        if begun.elapsed() > READY_USUAL && !told {
            told = true;
            eprintln!("still waiting:\n  {}", missing.join("\n  "));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// Removes a directory that `dev` made, and nothing else.
fn wipe(dir: &Path) -> Result<(), String> {
    if !dir.exists() {
        return Ok(());
    }
    if !dir.join("ca/peer-ca.crt").exists() || !dir.join("n1/node.toml").exists() {
        return Err(format!("--fresh: {} was not made by `unibus-node dev`; it is not wiped", dir.display()));
    }
    let _lock = lock(dir)?;
    fs::remove_dir_all(dir).map_err(|error| format!("wipe {}: {error}", dir.display()))
}

/// Makes the directory whole or not at all.
fn create(dir: &Path, nodes: u8) -> Result<(), String> {
    let mut name = dir.file_name().ok_or_else(|| format!("--dir {}: expected a name", dir.display()))?.to_owned();
    name.push(".making");
    let making = dir.with_file_name(name);
    let failed = |error: io::Error| format!("create {}: {error}", dir.display());
    if making.exists() {
        fs::remove_dir_all(&making).map_err(failed)?;
    }
    let cluster = cluster_file(nodes).map_err(|error| format!("find free ports: {error}"))?;
    let tuning = Tuning { initial_mtu: Some(LOOPBACK_MTU) };
    plan::write(&cluster, &making, &SystemRng::default(), &tuning).map_err(|error| error.to_string())?;
    fs::rename(&making, dir).map_err(failed)
}

fn cluster_file(nodes: u8) -> io::Result<ClusterFile> {
    let host = |(number, ports): (usize, Ports)| Host {
        name: format!("n{number}"),
        host: LOOPBACK.into(),
        peer_port: ports.peer,
        client_port: ports.client,
        admin_port: ports.admin,
        data_dir: "data".into(),
    };
    let hosts = (1..).zip(Ports::free(nodes.into())?).map(host).collect();
    Ok(ClusterFile { shards: unibus_proto::limits::SHARDS_DEFAULT, node: hosts })
}

fn lock(dir: &Path) -> Result<File, String> {
    let path = dir.join("dev.lock");
    let open = File::options().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(|error| format!("open {}: {error}", path.display()))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        format!("{} is in use by another `unibus-node dev`: stop it, or name another --dir", dir.display())
    })?;
    Ok(file)
}

fn load(dir: &Path, nodes: u8) -> Result<Vec<(PathBuf, NodeFile)>, String> {
    let entries = fs::read_dir(dir).map_err(|error| format!("read {}: {error}", dir.display()))?;
    let folders: BTreeSet<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.join("node.toml").exists()).collect();
    if folders.is_empty() {
        return Err(format!("{} was not made by `unibus-node dev`: name another --dir", dir.display()));
    }
    if folders.len() != usize::from(nodes) {
        eprintln!("{} has {} nodes; --fresh makes {nodes}", dir.display(), folders.len());
    }
    let load = |folder: PathBuf| {
        let file = config::load(&folder.join("node.toml"), &[]).map_err(|error| error.to_string())?;
        Ok((folder, file))
    };
    folders.into_iter().map(load).collect()
}

fn print_table(children: &[Child], admin: &admin::Admin, ready: Duration) {
    println!("{} nodes, ready after {:.1} s\n", children.len(), ready.as_secs_f64());
    println!("{:<6}{:<9}{:<23}{:<30}DATA", "NODE", "PID", "CLIENT", "ADMIN");
    for child in children {
        let admin = format!("http://{}", child.file.listen.admin);
        let data = child.folder.join(&child.file.data_dir);
        println!(
            "{:<6}{:<9}{:<23}{:<30}{}",
            child.name(),
            child.pid(),
            child.file.listen.client,
            admin,
            data.display()
        );
    }
    println!("\nAdmin {:?}, profile {} ({})\n", admin.handle, admin.profile_name, admin.profile_path.display());
    println!("From another terminal:");
    for command in [
        "unibusctl status",
        "unibusctl room create ops.dpkg --plaintext",
        "unibusctl pub ops.dpkg --lines < /var/log/dpkg.log",
        "unibusctl sub ops.dpkg --from earliest --until-end --raw | sha256sum",
    ] {
        println!("  {command}");
    }
    if let Some(child) = children.first() {
        println!("  kill -9 {}    # and watch `unibusctl check --loop --for 45s` go on", child.pid());
    }
    println!("\nCtrl-C stops the nodes; the next `unibus-node dev` resumes them, --fresh begins anew.");
}

struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
