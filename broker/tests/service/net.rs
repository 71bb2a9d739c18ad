//! Nodes of one process: streams through channels, which a test can cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use openraft_rt_tokio::TokioRuntime;
use prost::Message;
use tokio::sync::mpsc;
use unibus_broker::env::SystemClock;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::peer::{GroupStream, StreamOpen, stream_open::Purpose};
use unibus_raft_store::env::{Duplex, Env, FrameRx, FrameTx, Lane, Net, NetError};
use unibus_raft_store::testing::{FsDisk, SeededRng};
use unibus_raft_store::tree::LogTrees;

/// Frames on their way in one direction of a stream.
const WINDOW: usize = 64;

type Opened = (NodeId, Duplex<HubNet>);

/// Where the nodes meet.
#[derive(Default)]
pub struct Hub {
    inboxes: Mutex<BTreeMap<NodeId, mpsc::UnboundedSender<Opened>>>,
    cut: Mutex<BTreeSet<NodeId>>,
    held: Mutex<BTreeSet<(NodeId, GroupId)>>,
    mute: Mutex<BTreeSet<NodeId>>,
    unanswered: Mutex<Vec<Opened>>,
}

impl Hub {
    /// Nothing goes to or from the node any more.
    pub fn cut(&self, node: NodeId) {
        self.cut.lock().unwrap().insert(node);
    }

    /// The opposite.
    pub fn heal(&self, node: NodeId) {
        self.cut.lock().unwrap().remove(&node);
    }

    /// No entries of a group reach the node any more, and nothing else is different.
    pub fn hold(&self, node: NodeId, group: GroupId) {
        self.held.lock().unwrap().insert((node, group));
    }

    /// Streams to the node are opened from now on, and it answers nothing on them.
    pub fn mute(&self, node: NodeId) {
        self.mute.lock().unwrap().insert(node);
    }

    fn is_cut(&self, nodes: [NodeId; 2]) -> bool {
        nodes.iter().any(|node| self.cut.lock().unwrap().contains(node))
    }

    /// The environment of a node.
    pub fn env(self: &Arc<Self>, node: NodeId) -> HubEnv {
        let (tx, rx) = mpsc::unbounded_channel();
        self.inboxes.lock().unwrap().insert(node, tx);
        let inbox = Arc::new(tokio::sync::Mutex::new(rx));
        HubEnv { net: HubNet { node, hub: Arc::clone(self), inbox }, rng: SeededRng::new(node.0) }
    }
}

/// Tokio, files, the system clock, and the hub.
#[derive(Clone)]
pub struct HubEnv {
    net: HubNet,
    rng: SeededRng,
}

impl Env for HubEnv {
    type Rt = TokioRuntime;
    type Net = HubNet;
    type Disk = FsDisk;
    type Trees = LogTrees<FsDisk>;
    type Clock = SystemClock;
    type Rng = SeededRng;

    fn net(&self) -> &HubNet {
        &self.net
    }
    fn disk(&self) -> &FsDisk {
        &FsDisk
    }
    fn trees(&self) -> LogTrees<FsDisk> {
        LogTrees(FsDisk)
    }
    fn clock(&self) -> &SystemClock {
        &SystemClock
    }
    fn rng(&self) -> &SeededRng {
        &self.rng
    }
}

/// A node's end of the hub.
#[derive(Clone)]
pub struct HubNet {
    node: NodeId,
    hub: Arc<Hub>,
    inbox: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Opened>>>,
}

impl Net for HubNet {
    type Tx = HubTx;
    type Rx = HubRx;

    async fn connect(&self, peer: NodeId, _: Lane) -> Result<Duplex<Self>, NetError> {
        let unreachable = || NetError::Unreachable(format!("node {peer} is not there"));
        if self.hub.is_cut([self.node, peer]) {
            return Err(unreachable());
        }
        let ((tx, their_rx), (their_tx, rx)) = (mpsc::channel(WINDOW), mpsc::channel(WINDOW));
        let half = |to, tx| HubTx { ends: [self.node, peer], to, hub: Arc::clone(&self.hub), tx, entries: None };
        let theirs = (self.node, (half(self.node, their_tx), HubRx(their_rx)));
        if self.hub.mute.lock().unwrap().contains(&peer) {
            self.hub.unanswered.lock().unwrap().push(theirs);
            return Ok((half(peer, tx), HubRx(rx)));
        }
        let inbox = self.hub.inboxes.lock().unwrap().get(&peer).cloned().ok_or_else(unreachable)?;
        inbox.send(theirs).map_err(|_| unreachable())?;
        Ok((half(peer, tx), HubRx(rx)))
    }

    async fn accept(&self) -> Result<Opened, NetError> {
        self.inbox.lock().await.recv().await.ok_or_else(|| NetError::Closed("the hub is gone".into()))
    }
}

pub struct HubTx {
    ends: [NodeId; 2],
    to: NodeId,
    hub: Arc<Hub>,
    tx: mpsc::Sender<Option<Bytes>>,
    /// Known from the first frame on: the group whose entries go here, if any do.
    entries: Option<Option<GroupId>>,
}

impl HubTx {
    async fn put(&mut self, frame: Option<Bytes>) -> Result<(), NetError> {
        let closed = || NetError::Closed("cut".into());
        let entries = *self.entries.get_or_insert_with(|| entries_of(frame.as_ref()?));
        let is_held = entries.is_some_and(|group| self.hub.held.lock().unwrap().contains(&(self.to, group)));
        if is_held || self.hub.is_cut(self.ends) {
            return Err(closed());
        }
        self.tx.send(frame).await.map_err(|_| closed())
    }
}

/// The group whose log a stream carries, by its first frame.
fn entries_of(first: &Bytes) -> Option<GroupId> {
    match StreamOpen::decode(first.clone()).ok()?.purpose? {
        Purpose::Append(GroupStream { group }) | Purpose::Snapshot(GroupStream { group }) => Some(GroupId(group)),
        _ => None,
    }
}

impl FrameTx for HubTx {
    async fn send(&mut self, parts: Vec<Bytes>) -> Result<(), NetError> {
        let mut frame = BytesMut::new();
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        self.put(Some(frame.freeze())).await
    }

    async fn finish(&mut self) -> Result<(), NetError> {
        self.put(None).await
    }
}

pub struct HubRx(mpsc::Receiver<Option<Bytes>>);

impl FrameRx for HubRx {
    async fn recv(&mut self) -> Result<Option<Bytes>, NetError> {
        self.0.recv().await.ok_or_else(|| NetError::Closed("the peer dropped the stream".into()))
    }
}
