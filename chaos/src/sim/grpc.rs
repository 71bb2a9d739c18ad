//! gRPC without sockets: [`SimPlatform`] gives the real SDK channels that lead, through the simulated
//! network, into the routes of a node. The call runs as a task of the node, so it dies with it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, poll_fn};
use http_body::{Body as _, Frame};
use openraft_rt::{AsyncRuntime, Instant};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{ConnectError, Status};
use tower::Service;
use unibus_broker::api::LocalCaller;
use unibus_client::{BoxError, Platform};
use unibus_proto::id::NodeId;
use unibus_raft_store::env::{Clock, Rng};

use crate::sim::clock::SimClock;
use crate::sim::env::SimRng;
use crate::sim::executor::Domain;
use crate::sim::hub::{Endpoint, Hub};
use crate::sim::net::connect;
use crate::sim::pipe::{PipeRx, PipeTx, pipe};
use crate::sim::runtime::{Handle, SimRuntime};
use crate::sim::timer::SimInstant;

/// What a node listens with.
#[derive(Clone)]
struct Listener {
    node: NodeId,
    domain: Domain,
    routes: Option<Routes>,
}

/// Who listens at which address.
#[derive(Clone, Default)]
pub struct Listeners(Arc<Mutex<BTreeMap<String, Listener>>>);

impl Listeners {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Listener>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A node begins to listen; its calls run in `domain`.
    pub fn listen(&self, address: &str, node: NodeId, domain: Domain, routes: Routes) {
        self.lock().insert(address.into(), Listener { node, domain, routes: Some(routes) });
    }

    /// A node is gone.
    pub fn close(&self, address: &str) {
        let closed = self.lock().get_mut(address).and_then(|listener| listener.routes.take());
        drop(closed);
    }

    fn find(&self, address: &str) -> Option<Listener> {
        self.lock().get(address).cloned()
    }
}

/// What one client takes from outside.
#[derive(Clone)]
pub struct SimPlatform {
    endpoint: Endpoint,
    hub: Arc<Hub>,
    listeners: Listeners,
    clock: SimClock,
    rng: SimRng,
    local: bool,
}

impl SimPlatform {
    /// The platform of client `number`.
    pub fn new(seed: u64, number: u64, hub: Arc<Hub>, listeners: Listeners) -> Self {
        let endpoint = Endpoint::client(number);
        hub.start(endpoint);
        let rng = SimRng::stream(seed, "client", number);
        Self { endpoint, hub, listeners, clock: SimClock::default(), rng, local: false }
    }

    /// The same through the nodes' local sockets.
    pub fn local(mut self) -> Self {
        self.local = true;
        self
    }

    /// Where the client is in the network.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }
}

impl Platform for SimPlatform {
    type Channel = SimChannel;

    fn channel(&self, address: &str) -> SimChannel {
        SimChannel { platform: self.clone(), address: address.into(), connected: Arc::default() }
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(SimRuntime::spawn(task));
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(SimRuntime::sleep(duration))
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(SimInstant::now().nanos())
    }

    fn wall_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    fn fill_random(&self, buffer: &mut [u8]) {
        self.rng.fill(buffer);
    }
}

/// A connection to an address.
#[derive(Clone)]
pub struct SimChannel {
    platform: SimPlatform,
    address: Arc<str>,
    /// The life of the node that the connection leads to.
    connected: Arc<Mutex<Option<u64>>>,
}

impl SimChannel {
    async fn call(self, request: http::Request<Body>) -> Result<http::Response<PipeBody>, BoxError> {
        let refused = || ConnectError("connection refused".into());
        let (hub, here) = (&self.platform.hub, self.platform.endpoint);
        let there = self.platform.listeners.find(&self.address).map(|listener| Endpoint::node(listener.node));
        let there = there.ok_or_else(refused)?;
        let life = hub.life(there);
        let known = *self.connected.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) == Some(life);
        if !known || !hub.is_up(there) {
            connect(hub, here, there).await.map_err(|why| ConnectError(why.into()))?;
        }
        let listener = self.platform.listeners.find(&self.address).ok_or_else(refused)?;
        let routes = listener.routes.ok_or_else(refused)?;
        *self.connected.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(hub.life(there));
        let (up, body) = pipe(hub, here, there);
        let (down, mut answer) = pipe(hub, there, here);
        let (mut head, sent) = request.into_parts();
        if self.platform.local {
            head.extensions.insert(LocalCaller);
        }
        drop(SimRuntime::spawn(pump(sent, up)));
        let received = http::Request::from_parts(head, Body::new(PipeBody(body)));
        let _detached = Handle::current().spawn_in(listener.domain, serve(routes, received, down));
        match answer.recv().await {
            Some(Ok(Part::Head(head))) => Ok(http::Response::from_parts(*head, PipeBody(answer))),
            Some(Ok(Part::Frame(_))) | None => Err(Status::unavailable("the node ended the call").into()),
            Some(Err(why)) => Err(Status::unavailable(why).into()),
        }
    }
}

impl Service<http::Request<Body>> for SimChannel {
    type Response = http::Response<PipeBody>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().call(request))
    }
}

/// What travels in one direction of a call.
enum Part {
    Head(Box<http::response::Parts>),
    Frame(Frame<Bytes>),
}

/// Runs the call in the node and sends the answer back.
async fn serve(mut routes: Routes, request: http::Request<Body>, mut down: PipeTx<Part>) {
    let response = tokio::select! {
        biased;
        response = routes.call(request) => response,
        // The client gave up: a server drops the call then.
        () = down.broken() => return,
    };
    let Ok(response) = response;
    let (head, body) = response.into_parts();
    if down.send(0, Part::Head(Box::new(head))).await.is_ok() {
        pump(body, down).await;
    }
}

/// Sends a body's frames until its end, or until nobody wants them.
async fn pump(mut body: Body, mut pipe: PipeTx<Part>) {
    loop {
        let frame = tokio::select! {
            biased;
            frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context)) => frame,
            () = pipe.broken() => return,
        };
        match frame {
            Some(Ok(frame)) => {
                let size = frame.data_ref().map_or(64, Bytes::len);
                if pipe.send(size, Part::Frame(frame)).await.is_err() {
                    return;
                }
            }
            // Dropping the pipe resets the stream.
            Some(Err(_)) => return,
            None => return pipe.finish(),
        }
    }
}

/// A body that comes through the network.
pub struct PipeBody(PipeRx<Part>);

impl http_body::Body for PipeBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_recv(context).map(|part| match part? {
            Ok(Part::Frame(frame)) => Some(Ok(frame)),
            Ok(Part::Head(_)) => Some(Err(Status::internal("a second head"))),
            Err(why) => Some(Err(Status::unavailable(why))),
        })
    }
}
