//! A node as a process: started, watched, stopped for a while, killed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use unibus_broker::dev::loopback;

const POLL_EVERY: Duration = Duration::from_millis(10);
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What a node is started from.
#[derive(Clone, Debug)]
pub struct Program {
    /// `unibus-node`.
    pub binary: PathBuf,
    /// The folder that `plan` made for it.
    pub folder: PathBuf,
    /// host:port of its admin listener.
    pub admin: String,
}

/// A node's process, or the place for it.
pub struct NodeProcess {
    program: Program,
    child: Option<Child>,
    began: Instant,
    life: u64,
    /// Up to where its log has been looked at.
    log_seen: u64,
}

impl NodeProcess {
    /// A node that does not run yet.
    pub fn new(program: Program) -> Self {
        Self { program, child: None, began: Instant::now(), life: 0, log_seen: 0 }
    }

    /// Which life of the node this is, from 1.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// Whether it was started and has not been ended by us.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Its log.
    pub fn log_path(&self) -> PathBuf {
        self.program.folder.join("log")
    }

    /// Starts it.
    pub fn start(&mut self) -> Result<(), String> {
        let failed = |error: io::Error| format!("start {}: {error}", self.program.folder.display());
        let log: File = OpenOptions::new().create(true).append(true).open(self.log_path()).map_err(failed)?;
        let mut command = Command::new(&self.program.binary);
        command.arg("run").arg("--config").arg(self.program.folder.join("node.toml")).arg("--exit-with-stdin");
        // A process group of its own: Ctrl-C reaches us, and we end the nodes.
        command.process_group(0).kill_on_drop(true).stdin(Stdio::piped()).env_remove("RUST_LOG");
        command.stdout(log.try_clone().map_err(failed)?).stderr(log);
        self.began = Instant::now();
        self.child = Some(command.spawn().map_err(failed)?);
        self.life += 1;
        Ok(())
    }

    /// Waits until it says that it is ready; answers when it did. The node may be killed meanwhile.
    pub fn wait_ready(&self, patience: Duration) -> impl Future<Output = Result<Instant, String>> + use<> {
        let (admin, began) = (self.program.admin.clone(), self.began);
        async move {
            loop {
                let Err(why) = loopback::ready(&admin).await else { return Ok(Instant::now()) };
                if began.elapsed() > patience {
                    let waited = began.elapsed().as_secs_f64();
                    return Err(format!("not ready {waited:.1} s after its start: {}", why.trim()));
                }
                tokio::time::sleep(POLL_EVERY).await;
            }
        }
    }

    /// What it says on `/readyz` while it is not ready.
    pub async fn not_ready(&self) -> Option<String> {
        loopback::ready(&self.program.admin).await.err()
    }

    /// How it ended, if it did and nobody asked for it.
    pub fn ended_by_itself(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        Some(match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        })
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            child.wait().await.ok();
        }
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Lets it shut down in order; kills it when it does not.
    pub async fn stop(&mut self) -> Result<(), String> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        drop(child.stdin.take());
        if tokio::time::timeout(STOP_PATIENCE, child.wait()).await.is_ok() {
            return Ok(());
        }
        child.kill().await.ok();
        Err(format!("{}: it did not stop within {STOP_PATIENCE:?} and was killed", self.program.folder.display()))
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(Child::id).and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            // It may have ended by itself, which `ended_by_itself` tells.
            kill_process(pid, signal).ok();
        }
    }

    /// The lines of its log since this was called last.
    pub fn new_log_lines(&mut self) -> Vec<String> {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        let from = (self.log_seen as usize).min(bytes.len());
        // A line that is still being written is left for the next call.
        let end = bytes[from..].iter().rposition(|byte| *byte == b'\n').map_or(from, |at| from + at + 1);
        self.log_seen = end as u64;
        String::from_utf8_lossy(&bytes[from..end]).lines().map(String::from).collect()
    }
}

/// The end of a text file.
pub fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
