//! The other side: what peers send is fed into this node's Raft of the group. Entries are refused before Raft
//! hears of them while the disk has no space for them: an error of the log would end the group.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use prost::Message;
use tokio::sync::mpsc;
use unibus_proto::peer;
use unibus_proto::peer::raft_request::Request;
use unibus_proto::peer::raft_response::Response;

use super::message::{
    decode_append, decode_transfer, decode_vote_request, encode_append_response, encode_stream_result,
    encode_transfer_response, encode_vote_response,
};
use super::{StreamKind, WINDOW, receive};
use crate::env::{Duplex, Env, FrameRx, FrameTx, Net, NetError, spawn};
use crate::group::Inner;
use crate::space::Space;
use crate::stream::{decode, malformed};
use crate::types::{Entry, Payload, TypeConfig};
use crate::wal::GroupLog;

/// Serves a stream until it ends.
pub(crate) async fn serve<E: Env>(group: &Inner<E>, kind: StreamKind, duplex: Duplex<E::Net>) -> Result<(), NetError> {
    match kind {
        StreamKind::Replication => serve_append(group, duplex).await,
        StreamKind::Heartbeat => serve_control(group, duplex).await,
        StreamKind::Snapshot => Box::pin(receive::serve(group, duplex)).await,
    }
}

/// Why the reader of a stream ended it.
type Refused = Arc<Mutex<Option<String>>>;
/// Of the requests that Raft has not answered yet, in their order: whether the leader wants no answer.
type Silent = Arc<Mutex<VecDeque<bool>>>;

async fn serve_append<E: Env>(group: &Inner<E>, (mut tx, rx): Duplex<E::Net>) -> Result<(), NetError> {
    let raft = &group.raft;
    // Requests are handed over one by one: Raft takes the next when it has room.
    let (to, from) = mpsc::channel(WINDOW);
    let (refused, silent) = (Refused::default(), Silent::default());
    spawn::<E>(read_requests::<E>(rx, to, Gate::of(group), refused.clone(), silent.clone()));
    let requests = futures::stream::unfold(from, |mut from| async { Some((from.recv().await?, from)) });
    let mut answers = Box::pin(raft.stream_append(requests));
    while let Some(answer) = answers.next().await {
        let is_silent = silent.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or(false);
        let response = match &answer {
            Ok(Ok(_)) if is_silent => continue,
            // The leader waits for no answer to it, and would take this one for another's.
            Ok(Err(why)) if is_silent => error_of(format!("a commit index is refused: {why:?}")),
            Ok(result) => answer_of(encode_stream_result::<E>(result, group.waits.any())),
            Err(fatal) => error_of(fatal),
        };
        tx.send(vec![response.encode_to_vec().into()]).await?;
    }
    let refused = refused.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(why) = refused {
        tx.send(vec![error_of(why).encode_to_vec().into()]).await?;
    }
    tx.finish().await
}

/// What decides whether entries are taken.
struct Gate<E: Env> {
    space: Arc<Space<E>>,
    log: GroupLog<E>,
}

impl<E: Env> Gate<E> {
    fn of(group: &Inner<E>) -> Self {
        Self { space: group.space.clone(), log: group.log.clone() }
    }

    /// Why a request is not for Raft: there is no space for its entries. A new leader needs its first entry, which
    /// is blank, committed before it can serve even reads, and looks for its place among entries that are here:
    /// that is what the reserve is for, as long as the log itself does not wait for space.
    fn refuses(&self, append: &Append<E>) -> Option<String> {
        let why = self.space.refuses_entries()?;
        let last = self.log.state().last.map(|id| id.index);
        let is_news = |entry: &Entry| Some(entry.log_id.index) > last && matches!(entry.payload, Payload::Normal(_));
        let takes = append.entries.is_empty() || (!self.space.has_failed() && !append.entries.iter().any(is_news));
        (!takes).then(|| format!("no space for entries: {why}"))
    }
}

type Append<E> = openraft::raft::AppendEntriesRequest<TypeConfig<E>>;

async fn read_requests<E: Env>(
    mut rx: <E::Net as Net>::Rx,
    to: mpsc::Sender<Append<E>>,
    gate: Gate<E>,
    refused: Refused,
    silent: Silent,
) {
    loop {
        let frame = tokio::select! {
            biased;
            () = to.closed() => return,
            frame = rx.recv() => frame,
        };
        let request = frame.and_then(decode::<peer::RaftRequest>).and_then(|request| match request.request {
            Some(Request::Append(append)) => {
                let is_silent = append.silent;
                Ok((is_silent, decode_append::<E>(append).map_err(malformed)?))
            }
            _ => Err(malformed("a request on an append stream that is no append")),
        });
        match request {
            Ok((is_silent, request)) => {
                if let Some(why) = gate.refuses(&request) {
                    *refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                    return;
                }
                silent.lock().unwrap_or_else(PoisonError::into_inner).push_back(is_silent);
                if to.send(request).await.is_err() {
                    return;
                }
            }
            Err(error) => return tracing::debug!(%error, "append stream ends"),
        }
    }
}

async fn serve_control<E: Env>(group: &Inner<E>, (mut tx, mut rx): Duplex<E::Net>) -> Result<(), NetError> {
    while let Some(frame) = rx.recv().await? {
        let request = decode::<peer::RaftRequest>(Some(frame))?.request;
        let request = request.ok_or_else(|| malformed("an empty request"))?;
        let response = handle(group, request).await?;
        tx.send(vec![response.encode_to_vec().into()]).await?;
    }
    tx.finish().await
}

async fn handle<E: Env>(group: &Inner<E>, request: Request) -> Result<peer::RaftResponse, NetError> {
    let raft = &group.raft;
    Ok(match request {
        Request::Append(append) => {
            let append = decode_append::<E>(append).map_err(malformed)?;
            if let Some(why) = Gate::of(group).refuses(&append) {
                return Ok(error_of(why));
            }
            let answer = raft.append_entries(append).await;
            answer.map_or_else(error_of, |answer| answer_of(encode_append_response::<E>(&answer)))
        }
        Request::Vote(vote) => {
            let answer = raft.vote(decode_vote_request::<E>(&vote).map_err(malformed)?).await;
            answer.map_or_else(error_of, |answer| answer_of(Response::Vote(encode_vote_response::<E>(&answer))))
        }
        Request::PreVote(vote) => {
            let answer = raft.pre_vote(decode_vote_request::<E>(&vote).map_err(malformed)?).await;
            answer.map_or_else(error_of, |answer| answer_of(Response::Vote(encode_vote_response::<E>(&answer))))
        }
        Request::Transfer(transfer) => {
            let answer = raft.handle_transfer_leader(decode_transfer::<E>(&transfer).map_err(malformed)?).await;
            answer.map_or_else(error_of, |answer| answer_of(Response::Transfer(encode_transfer_response::<E>(&answer))))
        }
    })
}

pub(super) fn answer_of(response: Response) -> peer::RaftResponse {
    peer::RaftResponse { error: String::new(), response: Some(response) }
}

pub(super) fn error_of(why: impl std::fmt::Display) -> peer::RaftResponse {
    peer::RaftResponse { error: why.to_string(), response: None }
}
