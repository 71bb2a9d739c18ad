//! A node as a child process. Its standard input is a pipe that we hold: when we end, however we end,
//! it ends too.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZero;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child as Process, Command};

use super::loopback;
use crate::config::{ENV_PREFIX, NodeFile};

/// Long enough to watch the others go on.
const RESTART_PAUSE: Duration = Duration::from_secs(5);
/// A node hands its leaderships over first.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
const WATCH_EVERY: Duration = Duration::from_millis(100);
const LOG_LINES: usize = 5;
/// Where tokio looks for the number of its threads.
const WORKERS_ENV: &str = "TOKIO_WORKER_THREADS";
/// Where the C library looks for the number of its heaps. By default each thread gets one and keeps what was freed
/// in it: a node with 100,000 rooms takes a fifth more memory (docs/PERFORMANCE.md).
const HEAPS_ENV: &str = "MALLOC_ARENA_MAX";
/// One for the workers, one for the threads of the disk.
const HEAPS: &str = "2";

/// A node of `dev`.
pub(super) struct Child {
    /// Where its configuration lies.
    pub folder: PathBuf,
    /// Its configuration.
    pub file: NodeFile,
    process: Process,
    restart_at: Option<tokio::time::Instant>,
}

impl Child {
    pub fn start(folder: PathBuf, file: NodeFile) -> io::Result<Self> {
        let process = spawn(&folder, &file)?;
        Ok(Self { folder, file, process, restart_at: None })
    }

    pub fn name(&self) -> &str {
        &self.file.name
    }

    pub fn pid(&self) -> u32 {
        self.process.id().unwrap_or_default()
    }

    pub fn log_path(&self) -> String {
        self.folder.join("log").display().to_string()
    }

    /// How it ended, if it did.
    pub fn try_ended(&mut self) -> Option<String> {
        self.process.try_wait().ok().flatten().map(explain)
    }

    /// The end of its log.
    pub fn last_log_lines(&self) -> String {
        let text = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Whether it is ready; else why not.
    pub async fn ready(&self) -> Result<(), String> {
        loopback::ready(&self.file.listen.admin).await
    }

    fn watch(&mut self) -> io::Result<()> {
        match self.restart_at {
            None => {
                if let Some(ended) = self.process.try_wait()? {
                    let name = self.name();
                    eprintln!("{name} ended ({}); it starts again in {} s", explain(ended), RESTART_PAUSE.as_secs());
                    self.restart_at = Some(tokio::time::Instant::now() + RESTART_PAUSE);
                }
            }
            Some(at) if at <= tokio::time::Instant::now() => {
                self.process = spawn(&self.folder, &self.file)?;
                self.restart_at = None;
                eprintln!("{} is running again, pid {}", self.name(), self.pid());
            }
            Some(_) => {}
        }
        Ok(())
    }
}

/// Starts again what ends; returns only when that fails.
pub(super) async fn supervise(children: &mut [Child]) -> Result<(), String> {
    loop {
        for child in children.iter_mut() {
            child.watch().map_err(|error| format!("start {} again: {error}", child.name()))?;
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Lets all nodes shut down; those that do not are killed.
pub(super) async fn stop_all(mut children: Vec<Child>) {
    for child in &mut children {
        drop(child.process.stdin.take());
    }
    for mut child in children {
        if tokio::time::timeout(STOP_PATIENCE, child.process.wait()).await.is_err() {
            eprintln!("{} did not stop within {} s and is killed", child.name(), STOP_PATIENCE.as_secs());
            child.process.kill().await.ok();
        }
        fs::remove_file(child.folder.join("pid")).ok();
    }
}

fn spawn(folder: &Path, file: &NodeFile) -> io::Result<Process> {
    let log: File = OpenOptions::new().create(true).append(true).open(folder.join("log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("run").arg("--config").arg(folder.join("node.toml")).arg("--exit-with-stdin");
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        // What sets one node's address would set that of all.
        if name.starts_with(ENV_PREFIX) && !name.starts_with("UNIBUS_NODE_LOG") {
            command.env_remove(name);
        }
    }
    // They share this machine: more threads than cores would only wake each other.
    if std::env::var_os(WORKERS_ENV).is_none() {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let nodes = file.cluster.node.len().max(1);
        command.env(WORKERS_ENV, (cores / nodes).max(1).to_string());
    }
    if std::env::var_os(HEAPS_ENV).is_none() {
        command.env(HEAPS_ENV, HEAPS);
    }
    // A process group of its own: Ctrl-C reaches us, and we stop the nodes in order.
    command.process_group(0).kill_on_drop(true).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
    let process = command.spawn()?;
    fs::write(folder.join("pid"), format!("{}\n", process.id().unwrap_or_default()))?;
    Ok(process)
}

fn explain(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
