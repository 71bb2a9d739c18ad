//! The environment: everything that a node takes from the outside world.
//!
//! All code between the gRPC adapter and the disk is generic over one [`Env`]. Production is tokio,
//! QUIC, files on an I/O thread and the system clock (`unibus-broker`); the simulation is a seeded
//! runtime, an in-memory network and a disk that forgets unsynced bytes (`unibus-chaos`). That is
//! what lets one seed replay a whole cluster, so nothing in simulated code may name a clock, a random
//! source, a socket or a file in any other way (`clippy.toml` lists what is refused).
//!
//! `tokio::sync::{mpsc, oneshot, Mutex, Semaphore}` are fine (they wake in order); `watch` and
//! `Notify` are not: use `<E::Rt as AsyncRuntime>::Watch`. `select!` must be biased.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use unibus_proto::id::NodeId;

use crate::tree::Trees;

pub use openraft_rt::{
    AsyncRuntime, Instant, Mpsc, MpscReceiver, MpscSender, Oneshot, OneshotSender, Watch, WatchReceiver, WatchSender,
};

/// Everything that a node takes from outside, as one cheap-to-clone value.
pub trait Env: Clone + Send + Sync + 'static {
    /// Tasks, timers and channels.
    type Rt: AsyncRuntime;
    /// Framed streams to the other nodes.
    type Net: Net;
    /// The node's files.
    type Disk: Disk;
    /// The trees under the tables.
    type Trees: Trees;
    /// Wall-clock time.
    type Clock: Clock;
    /// Randomness: ids, nonces, jitter.
    type Rng: Rng;

    /// The network.
    fn net(&self) -> &Self::Net;
    /// The disk.
    fn disk(&self) -> &Self::Disk;
    /// The trees, on the same files as the disk.
    fn trees(&self) -> Self::Trees;
    /// The wall clock.
    fn clock(&self) -> &Self::Clock;
    /// The random source.
    fn rng(&self) -> &Self::Rng;
}

/// The monotonic instant of an environment.
pub type InstantOf<E> = <<E as Env>::Rt as AsyncRuntime>::Instant;

/// Starts a task on the environment's runtime and lets it run on its own.
pub fn spawn<E: Env>(future: impl Future<Output = ()> + Send + 'static) {
    drop(<E::Rt as AsyncRuntime>::spawn(future));
}

/// Sleeps on the environment's clock.
pub async fn sleep<E: Env>(duration: Duration) {
    <E::Rt as AsyncRuntime>::sleep(duration).await;
}

/// Runs `future` for at most `duration`; `None` when the time ran out.
pub async fn timeout<E: Env, T>(duration: Duration, future: impl Future<Output = T> + Send) -> Option<T> {
    <E::Rt as AsyncRuntime>::timeout(duration, future).await.ok()
}

/// Monotonic now.
pub fn now<E: Env>() -> InstantOf<E> {
    <InstantOf<E> as Instant>::now()
}

/// Wall-clock time.
pub trait Clock: Clone + Send + Sync + 'static {
    /// Milliseconds since the Unix epoch. May jump in either direction.
    fn now_ms(&self) -> u64;
}

/// A source of random bytes, fit for keys and nonces in production.
pub trait Rng: Clone + Send + Sync + 'static {
    /// Fills `buffer` with random bytes.
    fn fill(&self, buffer: &mut [u8]);

    /// A random integer.
    fn next_u64(&self) -> u64 {
        let mut buffer = [0; 8];
        self.fill(&mut buffer);
        u64::from_le_bytes(buffer)
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Must exist; reads only.
    Read,
    /// Must exist; reads and writes.
    Write,
    /// Must not exist; reads and writes.
    CreateNew,
    /// Created when missing, kept when there; reads and writes.
    Create,
    /// Created or emptied; reads and writes.
    Truncate,
}

/// The files of one node.
///
/// A new, renamed or removed name is durable only after [`Disk::sync_dir`] on its directory; bytes
/// only after [`DiskFile::sync_data`]. A failed sync is never retried: the caller stops the process,
/// because the kernel may already have forgotten the lost pages (Rebello et al., ATC 2020).
pub trait Disk: Clone + Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;
    /// Held while a directory is in use by this process.
    type Lock: Send + Sync + 'static;

    /// Opens or creates a file.
    fn open(&self, path: &Path, mode: OpenMode) -> impl Future<Output = io::Result<Self::File>> + Send;
    /// Creates a directory (mode 0700) and its parents; no error when it is there.
    fn create_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// The names (not paths) in a directory, sorted.
    fn list(&self, path: &Path) -> impl Future<Output = io::Result<Vec<String>>> + Send;
    /// Whether a file or directory of this name exists.
    fn exists(&self, path: &Path) -> impl Future<Output = io::Result<bool>> + Send;
    /// Renames atomically, replacing a file at `to`.
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// Removes a directory and everything in it; no error when it is not there.
    fn remove_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// Takes an exclusive lock on the file at `path` (created when missing); `WouldBlock` when another
    /// process holds it.
    fn lock(&self, path: &Path) -> impl Future<Output = io::Result<Self::Lock>> + Send;
    /// Bytes that can still be written where `path` lives.
    fn free_bytes(&self, path: &Path) -> impl Future<Output = io::Result<u64>> + Send;
}

/// Creates a directory and its parents so that they survive a power cut: a new name is durable only when
/// the directory that holds it was synced.
pub async fn create_dir_durable(disk: &impl Disk, path: &Path) -> io::Result<()> {
    let mut missing = vec![];
    for dir in path.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
        if disk.exists(dir).await? {
            break;
        }
        missing.push(dir);
    }
    disk.create_dir_all(path).await?;
    for dir in missing.into_iter().rev() {
        if let Some(parent) = dir.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            disk.sync_dir(parent).await?;
        }
    }
    Ok(())
}

/// Writes a small file so that it is there whole or not at all, durably, in place of an earlier one.
pub async fn write_whole(disk: &impl Disk, dir: &Path, name: &str, bytes: Bytes) -> io::Result<()> {
    let tmp = dir.join(format!("{name}.tmp"));
    let file = disk.open(&tmp, OpenMode::Truncate).await?;
    file.write_at_sync(0, vec![bytes]).await?;
    disk.rename(&tmp, &dir.join(name)).await?;
    disk.sync_dir(dir).await
}

/// An open file. Clones share it, also over a rename. Writes to one file must not be issued at the same time.
#[allow(clippy::len_without_is_empty, reason = "asking is I/O, and nobody asks for emptiness")]
pub trait DiskFile: Clone + Send + Sync + 'static {
    /// Writes `parts` one after another, from `offset` on. Durable only after a sync.
    fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> impl Future<Output = io::Result<()>> + Send;
    /// [`write_at`](Self::write_at) and [`sync_data`](Self::sync_data) in one trip to the I/O thread.
    fn write_at_sync(&self, offset: u64, parts: Vec<Bytes>) -> impl Future<Output = io::Result<()>> + Send;
    /// Exactly `len` bytes from `offset`; `UnexpectedEof` when the file is shorter.
    fn read_at(&self, offset: u64, len: usize) -> impl Future<Output = io::Result<Bytes>> + Send;
    /// The file's length in bytes.
    fn len(&self) -> impl Future<Output = io::Result<u64>> + Send;
    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64) -> impl Future<Output = io::Result<()>> + Send;
    /// Reserves space up to `len` bytes and extends the file to it (`fallocate`).
    fn allocate(&self, len: u64) -> impl Future<Output = io::Result<()>> + Send;
    /// Makes the bytes written so far durable (`fdatasync`).
    fn sync_data(&self) -> impl Future<Output = io::Result<()>> + Send;
    /// Has the system begin to write `len` bytes from `offset`, so that a later sync finds little to do.
    /// A hint: nothing is durable by it.
    fn writeback(&self, _offset: u64, _len: u64) -> impl Future<Output = io::Result<()>> + Send {
        std::future::ready(Ok(()))
    }
}

/// The priority class of a stream between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Votes, heartbeats, clock exchange: small and urgent.
    Control,
    /// Log replication and forwarded commands.
    Log,
    /// Snapshots: large and patient; a connection of its own.
    Bulk,
}

/// Why a stream between two nodes failed. The remote side may or may not have seen what was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetError {
    /// No connection to the peer; nothing of this stream was delivered.
    Unreachable(String),
    /// The stream broke; what was sent may or may not have been delivered.
    Closed(String),
    /// A frame above the limit, or otherwise malformed.
    Malformed(String),
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "peer unreachable: {why}"),
            Self::Closed(why) => write!(f, "stream closed: {why}"),
            Self::Malformed(why) => write!(f, "malformed frame: {why}"),
        }
    }
}

impl std::error::Error for NetError {}

/// A bidirectional stream of frames, as its two halves.
pub type Duplex<N> = (<N as Net>::Tx, <N as Net>::Rx);

/// Streams of frames between the nodes, keyed by authenticated node id, above QUIC.
///
/// A frame arrives whole, in order and unaltered, or the stream ends. The first frame of every stream
/// is a `StreamOpen` (see [`crate::stream`]), by which the sides check that they belong together.
pub trait Net: Clone + Send + Sync + 'static {
    /// The sending half.
    type Tx: FrameTx;
    /// The receiving half.
    type Rx: FrameRx;

    /// Opens a stream to `peer`, connecting first when there is no connection.
    fn connect(&self, peer: NodeId, lane: Lane) -> impl Future<Output = Result<Duplex<Self>, NetError>> + Send;
    /// The next stream that a peer opened, with the peer's authenticated node id. An error means that
    /// the network was shut down.
    fn accept(&self) -> impl Future<Output = Result<(NodeId, Duplex<Self>), NetError>> + Send;
    /// The members from now on, with the address of each. Connections of nodes that are members no longer
    /// are cut. A network that finds nodes by their id alone has nothing to do.
    fn set_peers(&self, peers: BTreeMap<NodeId, String>) {
        drop(peers);
    }
}

/// The sending half of a stream.
pub trait FrameTx: Send + Sync + 'static {
    /// Sends one frame made of `parts`; waits while the peer's window is full.
    fn send(&mut self, parts: Vec<Bytes>) -> impl Future<Output = Result<(), NetError>> + Send;
    /// Says that no more frames follow. Dropping without it resets the stream.
    fn finish(&mut self) -> impl Future<Output = Result<(), NetError>> + Send;
}

/// The receiving half of a stream.
pub trait FrameRx: Send + Sync + 'static {
    /// The next frame; `None` after the peer finished the stream.
    fn recv(&mut self) -> impl Future<Output = Result<Option<Bytes>, NetError>> + Send;
}
