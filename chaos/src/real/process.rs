//! A node as a process: started, watched, stopped for a while, killed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

const POLL_EVERY: Duration = Duration::from_millis(10);
const PROBE_PATIENCE: Duration = Duration::from_millis(500);
const STOP_PATIENCE: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 16 << 10;

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
                let Some(why) = not_ready(&admin).await else { return Ok(Instant::now()) };
                if began.elapsed() > patience {
                    return Err(format!("not ready {:.1} s after its start: {why}", began.elapsed().as_secs_f64()));
                }
                tokio::time::sleep(POLL_EVERY).await;
            }
        }
    }

    /// What it says on `/readyz` while it is not ready.
    pub async fn not_ready(&self) -> Option<String> {
        not_ready(&self.program.admin).await
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

async fn not_ready(admin: &str) -> Option<String> {
    match tokio::time::timeout(PROBE_PATIENCE, get(admin, "/readyz")).await {
        Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") => None,
        Ok(Ok(answer)) => Some(answer.split_once("\r\n\r\n").unwrap_or_default().1.trim().to_owned()),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("no answer".to_owned()),
    }
}

async fn get(address: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
