//! What all handles of a client share, and the way of every unary call: pick a node, sign in, try,
//! judge the error by its code, try the next node.

use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use tonic::{Request, Response, Status};
use unibus_proto::code::Outcome;
use unibus_proto::files::Identity;
use unibus_proto::id::{ClusterId, GroupId};
use unibus_proto::v1::cluster_service_client::ClusterServiceClient;
use unibus_proto::v1::{GetTopologyRequest, GetTopologyResponse};

use crate::config::ClientConfig;
use crate::event::Events;
use crate::nodes::{Node, NodeBook, Target};
use crate::platform::{Channel, Platform, random, timeout};
use crate::publish::Lanes;
use crate::race::Attempted;
use crate::retry::Backoff;
use crate::signin::{Authorization, Tokens};
use crate::{ClientEvent, Error, ErrorCode};

/// A node that does not take fresh tokens has another problem than an old token.
const SIGN_INS_MAX: u32 = 2;

/// Nodes answer reads within milliseconds, those that look for a leader within 2 s.
const READ_HEDGE: Duration = Duration::from_secs(1);

/// An attempt gets at least so long, however little is left of the patience.
const ATTEMPT_MIN: Duration = Duration::from_millis(100);

/// What all handles of a client share.
pub(crate) struct Core<P: Platform> {
    pub platform: P,
    pub config: ClientConfig,
    pub identity: Identity,
    pub cluster: OnceLock<ClusterId>,
    pub tokens: Tokens,
    pub events: Events,
    pub lanes: Lanes,
    /// The version of the caller's device list, with when it was read.
    pub list_version: Mutex<Option<(Duration, u64)>>,
    nodes: Mutex<NodeBook>,
}

/// The answer to one attempt, on its way. Boxed, as the compiler cannot see through the generic one.
pub(crate) type Answer<T> = BoxFuture<'static, Result<Response<T>, Status>>;

/// One attempt's connection and token.
pub(crate) struct Rpc {
    pub channel: Channel,
    pub authorization: Authorization,
}

impl Rpc {
    /// A request that carries the token.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.authorization.value.clone());
        request
    }
}

impl<P: Platform> Core<P> {
    pub fn new(platform: P, config: ClientConfig, identity: Identity) -> Self {
        let nodes = NodeBook::new(&config.nodes, u64::from_le_bytes(random(&platform)));
        let cluster = config.cluster_id.map_or_else(OnceLock::new, OnceLock::from);
        Self {
            platform,
            config,
            identity,
            cluster,
            tokens: Tokens::default(),
            events: Events::default(),
            lanes: Lanes::default(),
            list_version: Mutex::default(),
            nodes: Mutex::new(nodes),
        }
    }

    pub fn nodes(&self) -> MutexGuard<'_, NodeBook> {
        self.nodes.lock().expect("nobody panics while holding it")
    }

    /// The cluster's id; known from the first sign-in on.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster.get().copied().unwrap_or_default()
    }

    /// The configured pin, else what the caller prefers.
    pub fn target(&self, preferred: Target) -> Target {
        self.config.pin.clone().map_or(preferred, Target::Only)
    }

    /// Where calls about a group go first.
    pub fn leader_target(&self, group: GroupId) -> Target {
        let leader = self.nodes().leader(group);
        self.target(leader.map_or(Target::Any, Target::Prefer))
    }

    /// A node for `target`. A name is looked up in the topology, which any node tells.
    pub fn node<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Node, Error>> {
        Box::pin(async move {
            if matches!(target, Target::Only(name) if !name.contains(':')) && !self.nodes().learnt() {
                self.read(&Target::Any, topology).await.map(|topology| self.nodes().learn(&topology))?;
            }
            self.nodes().pick(&self.platform, target)
        })
    }

    /// Asks a node about the others.
    pub async fn refresh_topology(&self) -> Result<GetTopologyResponse, Error> {
        let topology = self.read(&self.target(Target::Any), topology).await?;
        self.nodes().learn(&topology);
        Ok(topology)
    }

    /// A call to whichever node works, tried again until it is answered for good or patience ends.
    /// Every call of the API is safe to repeat.
    pub fn call<'a, T: Send + 'static>(
        &'a self,
        target: &'a Target,
        attempt: impl Fn(Rpc) -> Answer<T> + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<T, Error>> {
        Box::pin(self.call_until_final(self.config.patience, target, false, attempt))
    }

    /// A call that changes nothing: while a node is silent, another one is asked beside it.
    pub fn read<'a, T: Send + 'static>(
        &'a self,
        target: &'a Target,
        attempt: impl Fn(Rpc) -> Answer<T> + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<T, Error>> {
        Box::pin(self.call_until_final(self.config.patience, target, true, attempt))
    }

    /// A call with a patience of its own, no longer than the client's.
    pub fn call_within<'a, T: Send + 'static>(
        &'a self,
        patience: Duration,
        target: &'a Target,
        attempt: impl Fn(Rpc) -> Answer<T> + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<T, Error>> {
        Box::pin(self.call_until_final(self.config.patience.min(patience), target, false, attempt))
    }

    async fn call_until_final<T: Send>(
        &self,
        patience: Duration,
        target: &Target,
        reads: bool,
        attempt: impl Fn(Rpc) -> Answer<T> + Send + Sync,
    ) -> Result<T, Error> {
        let gives_up = self.platform.now() + patience;
        let (mut backoff, mut lost, mut sign_ins) = (Backoff::default(), false, 0);
        let mut target = target.clone();
        let mut failed_at: Option<(String, Error)> = None;
        let mut said = None;
        loop {
            let node = self.node(&target).await?;
            self.tell_failover(&mut failed_at, &node);
            let begun = self.platform.now();
            let beside = reads && !matches!(target, Target::Only(_));
            let ask = |node| -> BoxFuture<'_, _> {
                let attempt = &attempt;
                Box::pin(async move { self.attempt(&node, gives_up, attempt).await })
            };
            let (node, answer) = self.race(node, READ_HEDGE, beside, "the call", ask).await;
            let (generation, error) = match answer {
                Ok(value) => {
                    self.nodes().note_success(&node.address);
                    return Ok(value);
                }
                Err(failed) => failed,
            };
            lost |= error.outcome == Outcome::Unknown;
            if error.code == ErrorCode::Unauthenticated && sign_ins < SIGN_INS_MAX {
                sign_ins += 1;
                self.forget_token(generation).await;
                continue;
            }
            let pause = backoff.next(&self.platform, &error);
            let now = self.platform.now();
            // A node waits for a leader before it says that there is none; the next answer would take as long.
            let waits = if error.code == ErrorCode::NoLeader { now - begun } else { Duration::ZERO };
            if !error.is_transient() || now + pause + waits > gives_up {
                let error = error.or_said(said);
                return Err(if lost { error.after_lost_attempt() } else { error });
            }
            self.note_failure(&node.address, &error);
            said = Some(error.clone().or_said(said));
            if let (Some(leader), Target::Any | Target::Prefer(_)) = (error.leader, &target) {
                target = Target::Prefer(leader);
            }
            self.events.emit(ClientEvent::Retrying { why: error.clone(), after: pause });
            failed_at = Some((node.address.to_string(), error));
            self.platform.sleep(pause).await;
        }
    }

    async fn attempt<T>(
        &self,
        node: &Node,
        gives_up: Duration,
        attempt: &(impl Fn(Rpc) -> Answer<T> + Sync),
    ) -> Attempted<T> {
        let begun = self.platform.now();
        let ends = gives_up.min(begun + self.config.attempt_timeout).max(begun + ATTEMPT_MIN);
        let signed_in = timeout(&self.platform, ends - begun, self.authorization(node)).await;
        let authorization =
            signed_in.unwrap_or_else(|| Err(silent(node, "the sign-in"))).map_err(|error| (0, error))?;
        let generation = authorization.generation;
        let answer = attempt(Rpc { channel: node.channel.clone(), authorization });
        let left = ends.saturating_sub(self.platform.now()).max(ATTEMPT_MIN);
        match timeout(&self.platform, left, answer).await {
            Some(answer) => answer.map(Response::into_inner).map_err(|status| (generation, status.into())),
            None => {
                let waited = (self.platform.now() - begun).as_secs_f64();
                let message = format_args!("node {} has not answered within {waited:.1} s", node.label);
                Err((generation, Error::lost(message)))
            }
        }
    }

    /// Leaves a node alone that failed in a way that another one may not.
    pub fn note_failure(&self, address: &str, error: &Error) {
        let busy = matches!(error.code, ErrorCode::RateLimited | ErrorCode::Overloaded | ErrorCode::DiskFull);
        if error.is_transient() && !busy && error.leader.is_none() {
            self.nodes().note_failure(address, self.platform.now());
        }
    }

    fn tell_failover(&self, failed_at: &mut Option<(String, Error)>, node: &Node) {
        if let Some((from, why)) = failed_at.take_if(|(from, _)| **from != *node.address) {
            self.events.emit(ClientEvent::FailedOver { from, to: node.address.to_string(), why });
        }
    }
}

/// A node that takes connections and says nothing.
pub(crate) fn silent(node: &Node, step: &str) -> Error {
    Error::unreachable(&node.label.to_string(), &format_args!("no answer to {step}"))
}

pub(crate) fn topology(rpc: Rpc) -> Answer<GetTopologyResponse> {
    let request = rpc.request(GetTopologyRequest {});
    Box::pin(async move { ClusterServiceClient::new(rpc.channel).get_topology(request).await })
}

/// Defines the method of `Core` that makes one kind of unary call; `read` marks those that change nothing.
macro_rules! unary {
    (read $($call:tt)*) => { $crate::core::unary!(@ read, $($call)*); };
    ($name:ident, $($call:tt)*) => { $crate::core::unary!(@ call, $name, $($call)*); };
    (@ $way:ident, $name:ident, $client:ident, $method:ident, $request:ty, $response:ty $(,)?) => {
        impl<P: $crate::Platform> $crate::core::Core<P> {
            pub(crate) async fn $name(
                &self,
                target: &$crate::nodes::Target,
                message: $request,
            ) -> Result<$response, $crate::Error> {
                let attempt = |rpc: $crate::core::Rpc| {
                    let request = rpc.request(message.clone());
                    let client = $client::new(rpc.channel);
                    let mut client = client.max_decoding_message_size(unibus_proto::limits::DECODE_BYTES_MAX);
                    let answer: $crate::core::Answer<_> = Box::pin(async move { client.$method(request).await });
                    answer
                };
                self.$way(target, attempt).await
            }
        }
    };
}
pub(crate) use unary;
