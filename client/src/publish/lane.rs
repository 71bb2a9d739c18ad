//! The one publish stream to a node, shared by all publishers of a client.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream;
use tokio::sync::mpsc;
use tonic::Streaming;
use unibus_proto::limits::DECODE_BYTES_MAX;
use unibus_proto::v1::message_service_client::MessageServiceClient;
use unibus_proto::v1::{PublishRequest, PublishResponse};

use crate::core::{Answer as Answering, Core, Rpc};
use crate::nodes::Node;
use crate::platform::{Platform, timeout};
use crate::signin::Authorization;
use crate::{Error, ErrorCode};

/// A node opens a stream without asking anybody: one that takes longer hangs.
const OPEN_PATIENCE: Duration = Duration::from_secs(1);

/// What comes back for a request.
pub(super) enum Answer {
    /// The node's answer to the request with this tag.
    Response(u64, PublishResponse),
    /// The stream broke before.
    Broken(Error),
}

/// An open stream.
#[derive(Clone)]
pub(super) struct Lane {
    pub node: Arc<str>,
    /// The sign-in under which it was opened.
    pub generation: u64,
    /// Nodes check the token with each request: use a stream with a fresh one from then on.
    pub renew_at: Duration,
    /// Bounded by the windows of the publishers.
    requests: mpsc::UnboundedSender<PublishRequest>,
    routes: Arc<Mutex<Routes>>,
    /// When nobody has the stream any more, its reader closes it, even if the node says nothing.
    _used: mpsc::Sender<()>,
}

#[derive(Default)]
struct Routes {
    last_tag: u64,
    waiting: BTreeMap<u64, mpsc::UnboundedSender<Answer>>,
    broken: Option<Error>,
    abandoned: bool,
}

type Slot = Arc<tokio::sync::Mutex<Option<Lane>>>;

/// The streams of a client, one per node.
#[derive(Default)]
pub(crate) struct Lanes {
    slots: Mutex<BTreeMap<Arc<str>, Slot>>,
}

impl Lanes {
    fn slot(&self, address: &Arc<str>) -> Slot {
        let mut slots = self.slots.lock().expect("nobody panics while holding it");
        slots.entry(address.clone()).or_default().clone()
    }
}

impl Lane {
    /// Sends a request; its answer, or the news that there is none, comes to `reply`.
    pub fn submit(&self, mut request: PublishRequest, reply: &mpsc::UnboundedSender<Answer>) -> Result<u64, Error> {
        let mut routes = lock(&self.routes);
        if let Some(error) = &routes.broken {
            return Err(error.clone());
        }
        routes.last_tag += 1;
        let tag = routes.last_tag;
        request.request = tag;
        routes.waiting.insert(tag, reply.clone());
        // When the stream has ended its reader is about to tell all who wait.
        let _ = self.requests.send(request);
        Ok(tag)
    }

    /// Who comes next opens another stream; those who wait for answers here may go on waiting.
    pub fn abandon(&self) {
        lock(&self.routes).abandoned = true;
    }

    fn is_usable(&self) -> bool {
        let routes = lock(&self.routes);
        routes.broken.is_none() && !routes.abandoned
    }
}

fn lock(routes: &Mutex<Routes>) -> MutexGuard<'_, Routes> {
    routes.lock().expect("nobody panics while holding it")
}

impl<P: Platform> Core<P> {
    /// The stream to a node, opened if there is none. An error says under which sign-in it was met.
    pub(super) fn lane<'a>(&'a self, node: &'a Node) -> BoxFuture<'a, Result<Lane, (u64, Error)>> {
        Box::pin(async move {
            let slot = self.lanes.slot(&node.address);
            let mut slot = slot.lock().await;
            let authorization = self.authorization(node).await.map_err(|error| (0, error))?;
            let usable = |lane: &&Lane| lane.is_usable() && lane.generation == authorization.generation;
            if let Some(lane) = slot.as_ref().filter(usable) {
                return Ok(lane.clone());
            }
            *slot = None;
            let lane = self.open_lane(node, authorization).await?;
            *slot = Some(lane.clone());
            Ok(lane)
        })
    }

    async fn open_lane(&self, node: &Node, authorization: Authorization) -> Result<Lane, (u64, Error)> {
        let (generation, renew_at) = (authorization.generation, authorization.renew_at);
        let (requests, mut outgoing) = mpsc::unbounded_channel();
        let outgoing = stream::poll_fn(move |context| outgoing.poll_recv(context));
        let rpc = Rpc { channel: node.channel.clone(), authorization };
        let request = rpc.request(outgoing);
        let mut client = MessageServiceClient::new(rpc.channel).max_decoding_message_size(DECODE_BYTES_MAX);
        let opening: Answering<_> = Box::pin(async move { client.publish_stream(request).await });
        let opened = timeout(&self.platform, self.config.answer_timeout.min(OPEN_PATIENCE), opening).await;
        let answers = match opened {
            Some(Ok(answer)) => answer.into_inner(),
            Some(Err(status)) => return Err((generation, status.into())),
            None => return Err((generation, Error::unreachable(&node.address, &"no answer to the publish stream"))),
        };
        let routes = Arc::<Mutex<Routes>>::default();
        let (used, unused) = mpsc::channel(1);
        self.platform.spawn(Box::pin(read(answers, routes.clone(), unused)));
        Ok(Lane { node: node.address.clone(), generation, renew_at, requests, routes, _used: used })
    }
}

/// Hands each answer to whom it belongs, and the end to all who wait.
async fn read(mut answers: Streaming<PublishResponse>, routes: Arc<Mutex<Routes>>, mut unused: mpsc::Receiver<()>) {
    let error = loop {
        let answer = tokio::select! {
            biased;
            answer = answers.message() => answer,
            _ = unused.recv() => return,
        };
        match answer {
            Ok(Some(response)) => {
                let tag = response.request;
                if let Some(reply) = lock(&routes).waiting.remove(&tag) {
                    // A publisher that went to another stream does not want it any more.
                    let _ = reply.send(Answer::Response(tag, response));
                }
            }
            Ok(None) => break Error::lost("the node has closed the publish stream"),
            Err(status) => break Error::from_status(&status),
        }
    };
    tracing::debug!(code = %error.code, "publish stream ended");
    let mut routes = lock(&routes);
    routes.broken = Some(error.clone());
    for reply in std::mem::take(&mut routes.waiting).into_values() {
        let _ = reply.send(Answer::Broken(error.clone()));
    }
}

/// A stream that broke for a reason that a fresh sign-in repairs.
pub(super) fn wants_sign_in(error: &Error) -> bool {
    error.code == ErrorCode::Unauthenticated
}
