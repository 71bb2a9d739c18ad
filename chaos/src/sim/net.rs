//! [`SimNet`]: the [`Net`] of a simulated node.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use openraft_rt::AsyncRuntime;
use unibus_proto::id::NodeId;
use unibus_raft_store::env::{Duplex, FrameRx, FrameTx, Lane, Net, NetError};

use crate::sim::hub::{Endpoint, Hub};
use crate::sim::pipe::{PipeRx, PipeTx, pipe};
use crate::sim::runtime::SimRuntime;

/// How long a connection attempt through a cut waits.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Both directions of a stream between nodes.
pub(crate) type NodeStream = (SimTx, SimRx);

/// The network as one node sees it.
#[derive(Clone)]
pub struct SimNet {
    node: NodeId,
    hub: Arc<Hub>,
}

impl SimNet {
    /// The network as `node` sees it.
    pub fn new(hub: Arc<Hub>, node: NodeId) -> Self {
        Self { node, hub }
    }
}

/// Waits for a connection from `from` to `to`, or says why there is none.
pub(crate) async fn connect(hub: &Arc<Hub>, from: Endpoint, to: Endpoint) -> Result<(), String> {
    for (a, b) in [(from, to), (to, from)] {
        if hub.is_cut(a, b) {
            SimRuntime::sleep(CONNECT_TIMEOUT).await;
            return Err("connection timed out".into());
        }
        match hub.draw_delay(a, b, 0) {
            Some(delay) => SimRuntime::sleep(delay).await,
            None => return Err("connection lost".into()),
        }
    }
    if hub.is_up(to) { Ok(()) } else { Err("connection refused".into()) }
}

impl Net for SimNet {
    type Tx = SimTx;
    type Rx = SimRx;

    async fn connect(&self, peer: NodeId, _lane: Lane) -> Result<Duplex<Self>, NetError> {
        let (here, there) = (Endpoint::node(self.node), Endpoint::node(peer));
        connect(&self.hub, here, there).await.map_err(NetError::Unreachable)?;
        let (out, their_in) = pipe(&self.hub, here, there);
        let (their_out, back) = pipe(&self.hub, there, here);
        self.hub.offer(there, self.node, (SimTx(their_out), SimRx(their_in)));
        Ok((SimTx(out), SimRx(back)))
    }

    async fn accept(&self) -> Result<(NodeId, Duplex<Self>), NetError> {
        let here = Endpoint::node(self.node);
        poll_fn(|context| match self.hub.poll_accept(here, context.waker()) {
            Some(stream) => Poll::Ready(Ok(stream)),
            None => Poll::Pending,
        })
        .await
    }
}

/// The sending half of a stream.
pub struct SimTx(PipeTx<Bytes>);

impl FrameTx for SimTx {
    async fn send(&mut self, parts: Vec<Bytes>) -> Result<(), NetError> {
        let mut frame = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        self.0.send(frame.len(), frame.freeze()).await.map_err(NetError::Closed)
    }

    async fn finish(&mut self) -> Result<(), NetError> {
        self.0.finish();
        Ok(())
    }
}

/// The receiving half of a stream.
pub struct SimRx(PipeRx<Bytes>);

impl FrameRx for SimRx {
    async fn recv(&mut self) -> Result<Option<Bytes>, NetError> {
        self.0.recv().await.transpose().map_err(NetError::Closed)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use openraft_rt::Instant as _;

    use super::*;
    use crate::sim::hub::LinkTiming;
    use crate::sim::timer::SimInstant;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn frame(text: &'static str) -> Vec<Bytes> {
        vec![Bytes::from_static(text.as_bytes())]
    }

    struct Pair {
        hub: Arc<Hub>,
        tx: SimTx,
        _back: SimRx,
        _their_tx: SimTx,
        rx: SimRx,
    }

    async fn pair() -> Pair {
        let hub = Hub::new(1);
        hub.start(Endpoint(1));
        hub.start(Endpoint(2));
        let (a, b) = (SimNet::new(hub.clone(), A), SimNet::new(hub.clone(), B));
        let (tx, back) = a.connect(B, Lane::Log).await.unwrap();
        let (peer, (their_tx, rx)) = b.accept().await.unwrap();
        assert_eq!(peer, A);
        Pair { hub, tx, _back: back, _their_tx: their_tx, rx }
    }

    fn in_sim<T>(future: impl Future<Output = T>) -> T {
        SimRuntime::with_seed(1).block_on(future)
    }

    #[test]
    fn frames_arrive_in_order_after_a_delay_and_then_the_end() {
        in_sim(async {
            let mut pair = pair().await;
            let began = SimInstant::now();
            for text in ["one", "two", "three"] {
                pair.tx.send(frame(text)).await.unwrap();
            }
            pair.tx.finish().await.unwrap();
            for text in ["one", "two", "three"] {
                assert_eq!(pair.rx.recv().await.unwrap().unwrap(), text);
            }
            assert!(SimInstant::now() - began >= Duration::from_micros(50));
            assert_eq!(pair.rx.recv().await, Ok(None));
        });
    }

    #[test]
    fn a_cut_holds_frames_back_and_kills_the_connection_when_it_lasts() {
        in_sim(async {
            let mut pair = pair().await;
            pair.hub.cut(Endpoint(1), Endpoint(2));
            pair.tx.send(frame("late")).await.unwrap();
            let early = SimRuntime::timeout(Duration::from_secs(2), pair.rx.recv()).await;
            assert!(early.is_err(), "a frame came through the cut");
            pair.hub.heal(Endpoint(1), Endpoint(2));
            assert_eq!(pair.rx.recv().await.unwrap().unwrap(), "late");
            pair.hub.cut(Endpoint(2), Endpoint(1));
            SimRuntime::sleep(Duration::from_secs(5)).await;
            assert!(matches!(pair.rx.recv().await, Err(NetError::Closed(_))));
        });
    }

    #[test]
    fn a_killed_node_breaks_its_streams_and_refuses_connections() {
        in_sim(async {
            let mut pair = pair().await;
            pair.hub.kill(Endpoint(2));
            let refused = SimNet::new(pair.hub.clone(), A).connect(B, Lane::Log).await;
            assert!(matches!(refused, Err(NetError::Unreachable(_))));
            SimRuntime::sleep(Duration::from_secs(4)).await;
            assert!(matches!(pair.tx.send(frame("gone")).await, Err(NetError::Closed(_))));
        });
    }

    #[test]
    fn a_lost_frame_takes_its_stream_along() {
        in_sim(async {
            let mut pair = pair().await;
            pair.hub.set_timing(LinkTiming { stream_loss_per_million: 1_000_000, ..LinkTiming::default() });
            assert!(matches!(pair.tx.send(frame("lost")).await, Err(NetError::Closed(_))));
            assert!(matches!(pair.rx.recv().await, Err(NetError::Closed(_))));
        });
    }

    #[test]
    fn dropping_a_sender_resets_the_stream() {
        in_sim(async {
            let mut pair = pair().await;
            pair.tx.send(frame("half")).await.unwrap();
            drop(pair.tx);
            assert!(matches!(pair.rx.recv().await, Err(NetError::Closed(_))));
        });
    }
}
