//! Raft between the nodes: what openraft sends, over the streams of [`Net`](crate::env::Net).
//!
//! Per group and peer: one long-lived append stream with a bounded window, control streams for votes,
//! heartbeats and hand-overs (the small must not wait behind the large), and a bulk stream for each
//! snapshot. Failures are `Unreachable`, so that openraft backs off.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::Stream;
use openraft::base::{BoxFuture, BoxStream};
use openraft::error::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::peer;
use unibus_proto::peer::raft_request::Request;
use unibus_proto::peer::raft_response::Response;
use unibus_proto::peer::stream_open::Purpose;

use crate::env::{Duplex, Env, Lane};
use crate::identity::Identity;
use crate::snapshot::SnapshotData;
use crate::state::Snapshot;
use crate::stream::{StreamError, open_stream_to};
use crate::types::{Member, TypeConfig, Vote};

mod append;
mod control;
mod message;
mod pace;
mod receive;
mod serve;
mod transfer;

pub(crate) use pace::Pace;
pub(crate) use serve::serve;

use control::ControlLink;

/// Requests on an append stream that may wait for their answer. More brings nothing at the latencies of
/// a LAN and holds more memory.
const WINDOW: usize = 4;

type RpcResult<E, T> = Result<T, RPCError<TypeConfig<E>>>;

/// Makes the clients of one group.
pub struct Network<E: Env> {
    shared: Arc<Shared<E>>,
}

type Links<E> = BTreeMap<(NodeId, StreamKind), Arc<ControlLink<E>>>;

struct Shared<E: Env> {
    env: E,
    identity: Identity,
    group: GroupId,
    /// An append stream without an answer for so long is dead.
    progress: Duration,
    /// Of all snapshots that this node sends.
    pace: Arc<Pace<E>>,
    /// Votes, and apart from them heartbeats: a lost answer must not delay the other.
    links: Mutex<Links<E>>,
}

/// What a stream of a group carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StreamKind {
    /// Appends; a client of this kind also votes.
    Replication,
    /// Small requests in turn.
    Heartbeat,
    /// One snapshot.
    Snapshot,
}

/// A client of one group to one peer.
pub struct Client<E: Env> {
    shared: Arc<Shared<E>>,
    peer: NodeId,
    member: Member,
    kind: StreamKind,
}

impl<E: Env> Network<E> {
    /// The network of `group`.
    pub fn new(env: E, identity: Identity, group: GroupId, progress: Duration, pace: Arc<Pace<E>>) -> Self {
        let links = Mutex::new(BTreeMap::new());
        Self { shared: Arc::new(Shared { env, identity, group, progress, pace, links }) }
    }

    fn client(&self, peer: NodeId, member: Member, kind: StreamKind) -> Client<E> {
        Client { shared: self.shared.clone(), peer, member, kind }
    }
}

impl<E: Env> RaftNetworkFactory<TypeConfig<E>> for Network<E> {
    type Network = Client<E>;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Client<E> {
        self.client(target, *node, StreamKind::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> Client<E> {
        self.client(target, *node, StreamKind::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &Member) -> Client<E> {
        self.client(target, *node, StreamKind::Snapshot)
    }
}

impl<E: Env> Client<E> {
    async fn open(&self, purpose: fn(peer::GroupStream) -> Purpose, lane: Lane) -> Result<Duplex<E::Net>, StreamError> {
        let purpose = purpose(peer::GroupStream { group: self.shared.group.0 });
        let to = (self.peer, self.member.directory);
        open_stream_to(&self.shared.env, &self.shared.identity, to, purpose, lane).await
    }

    fn link(&self) -> Arc<ControlLink<E>> {
        let mut links = self.shared.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.entry((self.peer, self.kind)).or_default().clone()
    }

    async fn call(&self, request: Request, option: &RPCOption) -> RpcResult<E, Response> {
        let open = || self.open(Purpose::Control, Lane::Control);
        self.link().call(open, request, option.soft_ttl()).await.map_err(unreachable)
    }
}

impl<E: Env> RaftNetworkV2<TypeConfig<E>> for Client<E> {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig<E>>,
        option: RPCOption,
    ) -> RpcResult<E, AppendEntriesResponse<TypeConfig<E>>> {
        let response = self.call(Request::Append(message::encode_append(&rpc)), &option).await?;
        message::decode_append_response(response).map_err(unreachable)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, RpcResult<E, BoxStream<'s, RpcResult<E, StreamAppendResult<TypeConfig<E>>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig<E>>> + OptionalSend + Unpin + 'static,
    {
        if self.kind == StreamKind::Heartbeat {
            return openraft::network::stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let duplex = self.open(Purpose::Append, Lane::Log).await.map_err(unreachable)?;
            let stream: BoxStream<'s, _> = Box::pin(append::stream::<E, S>(duplex, input, self.shared.progress));
            Ok(stream)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<E>>,
        option: RPCOption,
    ) -> RpcResult<E, VoteResponse<TypeConfig<E>>> {
        let response = self.call(Request::Vote(message::encode_vote_request(&rpc)), &option).await?;
        message::decode_vote_response(response).map_err(unreachable)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<E>>,
        option: RPCOption,
    ) -> RpcResult<E, VoteResponse<TypeConfig<E>>> {
        // An error, never a grant, when the peer is not reached: an isolated node would elect itself on.
        let response = self.call(Request::PreVote(message::encode_vote_request(&rpc)), &option).await?;
        message::decode_vote_response(response).map_err(unreachable)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<E>>, StreamingError<TypeConfig<E>>> {
        let cancel = std::pin::pin!(cancel);
        let send = std::pin::pin!(async {
            let duplex = self.open(Purpose::Snapshot, Lane::Bulk).await.map_err(|e| e.to_string())?;
            transfer::send(&self.shared.env, &self.shared.pace, duplex, &vote, &snapshot.snapshot).await
        });
        match futures::future::select(cancel, send).await {
            futures::future::Either::Left((closed, _)) => Err(closed.into()),
            futures::future::Either::Right((sent, _)) => {
                sent.map(SnapshotResponse::new).map_err(|why| Unreachable::from_string(why).into())
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig<E>>,
        option: RPCOption,
    ) -> RpcResult<E, TransferLeaderResponse<TypeConfig<E>>> {
        let response = self.call(Request::Transfer(message::encode_transfer(&req)), &option).await?;
        message::decode_transfer_response(&req, response).map_err(unreachable)
    }

    fn backoff(&self) -> Option<Backoff> {
        let steps = [50, 100, 200, 400].into_iter().chain(std::iter::repeat(500));
        Some(Backoff::new(steps.map(Duration::from_millis)))
    }
}

fn unreachable<E: Env>(why: impl std::fmt::Display) -> RPCError<TypeConfig<E>> {
    RPCError::Unreachable(Unreachable::from_string(why))
}
