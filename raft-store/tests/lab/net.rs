//! Streams in memory. Those of the bulk lane can be cut after a number of bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::mpsc;
use unibus_proto::id::NodeId;
use unibus_raft_store::env::{Duplex, FrameRx, FrameTx, Lane, Net, NetError};

type Opened = (NodeId, Duplex<MemNet>);

/// Where the nodes find each other.
#[derive(Clone, Default)]
pub struct Hub(Arc<Mutex<BTreeMap<NodeId, mpsc::UnboundedSender<Opened>>>>, Arc<Mutex<Bulk>>);

/// What went over the bulk lane.
#[derive(Default)]
struct Bulk {
    sent: u64,
    opened: u64,
    /// Streams break when so much was sent.
    limit: Option<u64>,
}

#[derive(Clone)]
pub struct MemNet {
    node: NodeId,
    hub: Hub,
    opened: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Opened>>>,
}

impl Hub {
    /// The network of `node`, which takes the place of an earlier one.
    pub fn join(&self, node: NodeId) -> MemNet {
        let (to, opened) = mpsc::unbounded_channel();
        self.0.lock().expect("no panic").insert(node, to);
        MemNet { node, hub: self.clone(), opened: Arc::new(tokio::sync::Mutex::new(opened)) }
    }

    /// Bytes sent over the bulk lane.
    pub fn bulk_sent(&self) -> u64 {
        self.1.lock().expect("no panic").sent
    }

    /// Streams opened on the bulk lane.
    pub fn bulk_opened(&self) -> u64 {
        self.1.lock().expect("no panic").opened
    }

    /// Lets `bytes` more pass on the bulk lane, then breaks every stream of it; none = all pass.
    pub fn limit_bulk(&self, bytes: Option<u64>) {
        let mut bulk = self.1.lock().expect("no panic");
        bulk.limit = bytes.map(|bytes| bulk.sent + bytes);
    }

    /// Whether the limit is reached.
    pub fn bulk_is_cut(&self) -> bool {
        let bulk = self.1.lock().expect("no panic");
        bulk.limit.is_some_and(|limit| bulk.sent >= limit)
    }

    fn pass(&self, bytes: usize) -> bool {
        if self.bulk_is_cut() {
            return false;
        }
        self.1.lock().expect("no panic").sent += bytes as u64;
        true
    }

    pub fn leave(&self, node: NodeId) {
        self.0.lock().expect("no panic").remove(&node);
    }
}

impl Net for MemNet {
    type Tx = MemTx;
    type Rx = MemRx;

    async fn connect(&self, peer: NodeId, lane: Lane) -> Result<Duplex<Self>, NetError> {
        let unreachable = || NetError::Unreachable(format!("node {peer} is not there"));
        let inbox = self.hub.0.lock().expect("no panic").get(&peer).cloned().ok_or_else(unreachable)?;
        let ((here_tx, there_rx), (there_tx, here_rx)) = (mpsc::channel(16), mpsc::channel(16));
        let bulk = (lane == Lane::Bulk).then(|| self.hub.clone());
        if let Some(hub) = &bulk {
            hub.1.lock().expect("no panic").opened += 1;
        }
        let tx = |sender| MemTx { sender: Some(sender), bulk: bulk.clone() };
        inbox.send((self.node, (tx(there_tx), MemRx(there_rx)))).map_err(|_| unreachable())?;
        Ok((tx(here_tx), MemRx(here_rx)))
    }

    async fn accept(&self) -> Result<Opened, NetError> {
        let opened = self.opened.lock().await.recv().await;
        opened.ok_or_else(|| NetError::Closed("the network was shut down".into()))
    }
}

pub struct MemTx {
    /// None = finished.
    sender: Option<mpsc::Sender<Option<Bytes>>>,
    bulk: Option<Hub>,
}

pub struct MemRx(mpsc::Receiver<Option<Bytes>>);

impl FrameTx for MemTx {
    async fn send(&mut self, parts: Vec<Bytes>) -> Result<(), NetError> {
        let frame: Bytes = parts.concat().into();
        let closed = || NetError::Closed("reset".into());
        if self.bulk.as_ref().is_some_and(|hub| !hub.pass(frame.len())) {
            self.sender = None;
        }
        self.sender.as_ref().ok_or_else(closed)?.send(Some(frame)).await.map_err(|_| closed())
    }

    async fn finish(&mut self) -> Result<(), NetError> {
        let Some(sender) = self.sender.take() else { return Ok(()) };
        sender.send(None).await.map_err(|_| NetError::Closed("reset".into()))
    }
}

impl FrameRx for MemRx {
    async fn recv(&mut self) -> Result<Option<Bytes>, NetError> {
        self.0.recv().await.ok_or_else(|| NetError::Closed("reset".into()))
    }
}
