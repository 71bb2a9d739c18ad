//! Streams in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::mpsc;
use unibus_proto::id::NodeId;
use unibus_raft_store::env::{Duplex, FrameRx, FrameTx, Lane, Net, NetError};

type Opened = (NodeId, Duplex<MemNet>);

/// Where the nodes find each other.
#[derive(Clone, Default)]
pub struct Hub(Arc<Mutex<BTreeMap<NodeId, mpsc::UnboundedSender<Opened>>>>);

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

    pub fn leave(&self, node: NodeId) {
        self.0.lock().expect("no panic").remove(&node);
    }
}

impl Net for MemNet {
    type Tx = MemTx;
    type Rx = MemRx;

    async fn connect(&self, peer: NodeId, _lane: Lane) -> Result<Duplex<Self>, NetError> {
        let unreachable = || NetError::Unreachable(format!("node {peer} is not there"));
        let inbox = self.hub.0.lock().expect("no panic").get(&peer).cloned().ok_or_else(unreachable)?;
        let ((here_tx, there_rx), (there_tx, here_rx)) = (mpsc::channel(16), mpsc::channel(16));
        inbox.send((self.node, (MemTx(Some(there_tx)), MemRx(there_rx)))).map_err(|_| unreachable())?;
        Ok((MemTx(Some(here_tx)), MemRx(here_rx)))
    }

    async fn accept(&self) -> Result<Opened, NetError> {
        let opened = self.opened.lock().await.recv().await;
        opened.ok_or_else(|| NetError::Closed("the network was shut down".into()))
    }
}

/// None = finished.
pub struct MemTx(Option<mpsc::Sender<Option<Bytes>>>);
pub struct MemRx(mpsc::Receiver<Option<Bytes>>);

impl FrameTx for MemTx {
    async fn send(&mut self, parts: Vec<Bytes>) -> Result<(), NetError> {
        let frame: Bytes = parts.concat().into();
        let closed = || NetError::Closed("reset".into());
        self.0.as_ref().ok_or_else(closed)?.send(Some(frame)).await.map_err(|_| closed())
    }

    async fn finish(&mut self) -> Result<(), NetError> {
        let Some(sender) = self.0.take() else { return Ok(()) };
        sender.send(None).await.map_err(|_| NetError::Closed("reset".into()))
    }
}

impl FrameRx for MemRx {
    async fn recv(&mut self) -> Result<Option<Bytes>, NetError> {
        self.0.recv().await.ok_or_else(|| NetError::Closed("reset".into()))
    }
}
