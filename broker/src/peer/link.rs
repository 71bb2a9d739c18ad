//! Requests to the other nodes: per peer one long-lived stream of `NodeRequest` and `NodeResponse`
//! frames, matched by id, answered in any order.
//!
//! The client side keeps the stream open and reconnects by itself. A request that was certainly not
//! sent fails as [`LinkError::NotSent`]; one whose answer is missing as [`LinkError::Lost`].

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use prost::Message;
use tokio::sync::{Semaphore, mpsc, oneshot};
use unibus_proto::id::NodeId;
use unibus_proto::peer::{
    NodeRequest, NodeResponse, NodeStream, node_request::Request, node_response::Response, stream_open::Purpose,
};
use unibus_raft_store::Identity;
use unibus_raft_store::env::{Duplex, Env, FrameRx, FrameTx, Lane, Net, sleep, timeout};
use unibus_raft_store::stream::open_stream;

/// Requests to one peer that are not answered yet.
const IN_FLIGHT_MAX: usize = 1_024;
/// Requests of one peer that are being served.
const SERVED_MAX: usize = 1_024;
/// An attempt to connect that takes longer is given up.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts: short, because a forwarded publish waits for it.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Why a request to a peer has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It was certainly not delivered.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It may have been carried out.
    #[error("answer lost: {0}")]
    Lost(String),
}

/// The client side of the link to one peer.
pub struct Link {
    peer: NodeId,
    state: Mutex<State>,
    outgoing: mpsc::Sender<(u64, Bytes)>,
    reset: mpsc::Sender<()>,
    /// Closed when the peer is no member any more.
    open: Semaphore,
}

#[derive(Default)]
struct State {
    /// Why there is no stream; `None` while there is one.
    down: Option<String>,
    last_id: u64,
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    sent: bool,
    answer: oneshot::Sender<Result<Response, LinkError>>,
}

/// Forgets a request whose caller no longer waits.
struct Forget<'a>(&'a Link, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.state().waiting.remove(&self.1);
    }
}

impl Link {
    /// The link to `peer` and the future that keeps its stream open, to be spawned.
    pub fn new<E: Env>(
        env: E,
        identity: Identity,
        peer: NodeId,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + 'static) {
        let (outgoing, frames) = mpsc::channel(IN_FLIGHT_MAX);
        let (reset, resets) = mpsc::channel(1);
        let state = State { down: Some("not connected yet".into()), ..State::default() };
        let link = Arc::new(Self { peer, state: Mutex::new(state), outgoing, reset, open: Semaphore::new(0) });
        let run = Arc::clone(&link).run(env, identity, frames, resets);
        (link, run)
    }

    /// The peer.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// Sends a request and waits for its answer, at most for `patience`.
    pub async fn request<E: Env>(&self, request: Request, patience: Duration) -> Result<Response, LinkError> {
        let (answer, answered) = oneshot::channel();
        let id = self.register(answer)?;
        let _forget = Forget(self, id);
        let frame = NodeRequest { id, request: Some(request) }.encode_to_vec();
        if self.outgoing.try_send((id, frame.into())).is_err() {
            return Err(LinkError::NotSent(format!("the queue to node {} is full", self.peer)));
        }
        match timeout::<E, _>(patience, answered).await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) => Err(LinkError::Lost("the link was dropped".into())),
            None => Err(self.overdue(id, patience)),
        }
    }

    /// Drops the present stream and connects again: the peer does not answer on it.
    pub fn reset(&self) {
        self.reset.try_send(()).ok();
    }

    /// Ends the link for good.
    pub fn close(&self) {
        self.open.close();
    }

    /// Whether it was ended for good.
    pub fn is_closed(&self) -> bool {
        self.open.is_closed()
    }

    /// Why there is no stream; none while there is one.
    pub fn down(&self) -> Option<String> {
        self.state().down.clone()
    }

    fn register(&self, answer: oneshot::Sender<Result<Response, LinkError>>) -> Result<u64, LinkError> {
        let mut state = self.state();
        if let Some(why) = &state.down {
            return Err(LinkError::NotSent(why.clone()));
        }
        if state.waiting.len() >= IN_FLIGHT_MAX {
            return Err(LinkError::NotSent(format!("{IN_FLIGHT_MAX} requests to node {} are open", self.peer)));
        }
        state.last_id += 1;
        let id = state.last_id;
        state.waiting.insert(id, Waiting { sent: false, answer });
        Ok(id)
    }

    fn overdue(&self, id: u64, patience: Duration) -> LinkError {
        let why = format!("node {} did not answer within {:.1} s", self.peer, patience.as_secs_f64());
        match self.state().waiting.remove(&id) {
            Some(Waiting { sent: false, .. }) => LinkError::NotSent(why),
            _ => LinkError::Lost(why),
        }
    }

    async fn run<E: Env>(
        self: Arc<Self>,
        env: E,
        identity: Identity,
        mut frames: mpsc::Receiver<(u64, Bytes)>,
        mut resets: mpsc::Receiver<()>,
    ) {
        while !self.open.is_closed() {
            let purpose = Purpose::Node(NodeStream {});
            let opening = open_stream::<E>(&env, &identity, self.peer, purpose, Lane::Log);
            let why = match timeout::<E, _>(CONNECT_PATIENCE, opening).await {
                Some(Ok(stream)) => self.carry::<E>(stream, &mut frames, &mut resets).await,
                Some(Err(error)) => error.to_string(),
                None => format!("no connection within {CONNECT_PATIENCE:?}"),
            };
            self.went_down(&why);
            sleep::<E>(RECONNECT_PAUSE).await;
        }
    }

    async fn carry<E: Env>(
        &self,
        (tx, rx): Duplex<E::Net>,
        frames: &mut mpsc::Receiver<(u64, Bytes)>,
        resets: &mut mpsc::Receiver<()>,
    ) -> String {
        while resets.try_recv().is_ok() {}
        self.state().down = None;
        tracing::debug!(peer = %self.peer, "link to peer is up");
        tokio::select! {
            biased;
            why = self.read_answers(rx) => why,
            why = self.write_requests(tx, frames) => why,
            _ = resets.recv() => "the peer did not answer".into(),
            _ = self.open.acquire() => "the peer is no member any more".into(),
        }
    }

    async fn read_answers(&self, mut rx: impl FrameRx) -> String {
        loop {
            let frame = match rx.recv().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return "the peer closed the stream".into(),
                Err(error) => return error.to_string(),
            };
            let Ok(NodeResponse { id, response: Some(response) }) = NodeResponse::decode(frame) else {
                return "a response of the peer cannot be decoded".into();
            };
            if let Some(waiting) = self.state().waiting.remove(&id) {
                drop(waiting.answer.send(Ok(response)));
            }
        }
    }

    async fn write_requests(&self, mut tx: impl FrameTx, frames: &mut mpsc::Receiver<(u64, Bytes)>) -> String {
        while let Some((id, frame)) = frames.recv().await {
            match self.state().waiting.get_mut(&id) {
                Some(waiting) => waiting.sent = true,
                None => continue,
            }
            if let Err(error) = tx.send(vec![frame]).await {
                return error.to_string();
            }
        }
        "the node is stopping".into()
    }

    fn went_down(&self, why: &str) {
        let mut state = self.state();
        if state.down.is_none() {
            tracing::info!(peer = %self.peer, why, "link to peer is down");
        }
        state.down = Some(format!("node {}: {why}", self.peer));
        for (_, waiting) in std::mem::take(&mut state.waiting) {
            let error = if waiting.sent { LinkError::Lost(why.into()) } else { LinkError::NotSent(why.into()) };
            drop(waiting.answer.send(Err(error)));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What answers the requests of peers.
pub trait Answer: Clone + Send + Sync + 'static {
    /// Answers one request.
    fn answer(&self, peer: NodeId, request: Request) -> impl Future<Output = Response> + Send;
}

/// Serves a stream that `peer` opened, until it ends. Requests are first polled in the order of their
/// arrival, so that forwarded batches of one shard are proposed in that order.
pub async fn serve<E: Env>(peer: NodeId, (tx, rx): Duplex<E::Net>, answer: impl Answer) {
    let (requests_tx, requests) = mpsc::channel(64);
    let (responses_tx, responses) = mpsc::channel(64);
    let why = tokio::select! {
        biased;
        why = read_requests::<E>(rx, requests_tx) => why,
        why = write_responses::<E>(tx, responses) => why,
        why = work(peer, answer, requests, responses_tx) => why,
    };
    tracing::debug!(%peer, why, "stream of peer ended");
}

async fn read_requests<E: Env>(mut rx: <E::Net as Net>::Rx, requests: mpsc::Sender<NodeRequest>) -> String {
    loop {
        let frame = match rx.recv().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return "closed by the peer".into(),
            Err(error) => return error.to_string(),
        };
        let Ok(request) = NodeRequest::decode(frame) else { return "a request cannot be decoded".into() };
        if requests.send(request).await.is_err() {
            return "stopped".into();
        }
    }
}

async fn write_responses<E: Env>(mut tx: <E::Net as Net>::Tx, mut responses: mpsc::Receiver<NodeResponse>) -> String {
    while let Some(response) = responses.recv().await {
        if let Err(error) = tx.send(vec![response.encode_to_vec().into()]).await {
            return error.to_string();
        }
    }
    "stopped".into()
}

async fn work(
    peer: NodeId,
    answer: impl Answer,
    mut requests: mpsc::Receiver<NodeRequest>,
    responses: mpsc::Sender<NodeResponse>,
) -> String {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(response) = running.next(), if !running.is_empty() => {
                if responses.send(response).await.is_err() {
                    return "stopped".into();
                }
            }
            request = requests.recv(), if running.len() < SERVED_MAX => {
                let Some(NodeRequest { id, request: Some(request) }) = request else {
                    return "a request is empty".into();
                };
                let answer = answer.clone();
                running.push(async move { NodeResponse { id, response: Some(answer.answer(peer, request).await) } });
            }
        }
    }
}
