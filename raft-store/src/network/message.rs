//! openraft's requests and responses as messages of the peer protocol, and back.

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use unibus_proto::peer::append_response::Result as Outcome;
use unibus_proto::peer::raft_response::Response;
use unibus_proto::{id::NodeId, peer};

use crate::codec::{
    CodecError, decode_entry, decode_log_id, decode_vote, encode_entry, encode_log_id, encode_vote, required,
};
use crate::env::Env;
use crate::types::{LogId, TypeConfig};

type C<E> = TypeConfig<E>;

pub fn encode_append<E: Env>(rpc: &AppendEntriesRequest<C<E>>) -> peer::AppendRequest {
    peer::AppendRequest {
        vote: Some(encode_vote(&rpc.vote)),
        previous: rpc.prev_log_id.as_ref().map(encode_log_id),
        entries: rpc.entries.iter().map(encode_entry).collect(),
        committed: rpc.leader_commit.as_ref().map(encode_log_id),
    }
}

pub fn decode_append<E: Env>(rpc: peer::AppendRequest) -> Result<AppendEntriesRequest<C<E>>, CodecError> {
    Ok(AppendEntriesRequest {
        vote: decode_vote(required(rpc.vote.as_ref(), "vote of an append")?),
        prev_log_id: rpc.previous.as_ref().map(decode_log_id),
        entries: rpc.entries.into_iter().map(decode_entry).collect::<Result<_, _>>()?,
        leader_commit: rpc.committed.as_ref().map(decode_log_id),
    })
}

pub fn encode_append_response<E: Env>(response: &AppendEntriesResponse<C<E>>) -> Response {
    let answer = |result: Outcome| peer::AppendResponse { result: result.into(), log_id: None, vote: None };
    Response::Append(match response {
        AppendEntriesResponse::Success => answer(Outcome::Success),
        AppendEntriesResponse::PartialSuccess(upto) => {
            peer::AppendResponse { log_id: upto.as_ref().map(encode_log_id), ..answer(Outcome::Partial) }
        }
        AppendEntriesResponse::Conflict => answer(Outcome::Conflict),
        AppendEntriesResponse::HigherVote(vote) => {
            peer::AppendResponse { vote: Some(encode_vote(vote)), ..answer(Outcome::HigherVote) }
        }
    })
}

pub fn decode_append_response<E: Env>(response: Response) -> Result<AppendEntriesResponse<C<E>>, String> {
    let Response::Append(answer) = response else { return Err(other("an append")) };
    Ok(match answer.result() {
        Outcome::Success => AppendEntriesResponse::Success,
        Outcome::Partial => AppendEntriesResponse::PartialSuccess(answer.log_id.as_ref().map(decode_log_id)),
        Outcome::Conflict => AppendEntriesResponse::Conflict,
        Outcome::HigherVote => {
            AppendEntriesResponse::HigherVote(decode_vote(answer.vote.as_ref().ok_or("a higher vote that is not set")?))
        }
        Outcome::Unspecified => return Err("an append response without a result".into()),
    })
}

/// An answer on an append stream: it names the entry up to which everything is on disk.
pub fn encode_stream_result<E: Env>(result: &StreamAppendResult<C<E>>) -> Response {
    match result {
        Ok(upto) => encode_append_response::<E>(&AppendEntriesResponse::PartialSuccess(*upto)),
        Err(StreamAppendError::Conflict(_)) => encode_append_response::<E>(&AppendEntriesResponse::Conflict),
        Err(StreamAppendError::HigherVote(vote)) => {
            encode_append_response::<E>(&AppendEntriesResponse::HigherVote(*vote))
        }
    }
}

/// An answer on an append stream to a request that covers (`previous`, `last`].
pub fn decode_stream_result<E: Env>(
    response: Response,
    previous: Option<LogId>,
    last: Option<LogId>,
) -> Result<StreamAppendResult<C<E>>, String> {
    let response = decode_append_response::<E>(response)?;
    if matches!(response, AppendEntriesResponse::Conflict) && previous.is_none() {
        return Err("a conflict with nothing before the entries".into());
    }
    Ok(response.into_stream_result(previous, last))
}

pub fn encode_vote_request<E: Env>(rpc: &VoteRequest<C<E>>) -> peer::VoteRequest {
    peer::VoteRequest {
        vote: Some(encode_vote(&rpc.vote)),
        last: rpc.last_log_id.as_ref().map(encode_log_id),
        leadership_transfer: rpc.leadership_transfer,
    }
}

pub fn decode_vote_request<E: Env>(rpc: &peer::VoteRequest) -> Result<VoteRequest<C<E>>, CodecError> {
    let vote = decode_vote(required(rpc.vote.as_ref(), "vote of a vote request")?);
    let mut request = VoteRequest::new(vote, rpc.last.as_ref().map(decode_log_id));
    request.leadership_transfer = rpc.leadership_transfer;
    Ok(request)
}

pub fn encode_vote_response<E: Env>(response: &VoteResponse<C<E>>) -> peer::VoteResponse {
    peer::VoteResponse {
        vote: Some(encode_vote(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(encode_log_id),
    }
}

pub fn decode_vote_response<E: Env>(response: Response) -> Result<VoteResponse<C<E>>, String> {
    let Response::Vote(answer) = response else { return Err(other("a vote")) };
    let vote = decode_vote(answer.vote.as_ref().ok_or("a vote that is not set")?);
    Ok(VoteResponse::new(vote, answer.last.as_ref().map(decode_log_id), answer.granted))
}

pub fn encode_transfer<E: Env>(rpc: &TransferLeaderRequest<C<E>>) -> peer::TransferRequest {
    peer::TransferRequest {
        vote: Some(encode_vote(rpc.from_leader())),
        to: rpc.to_node_id().0,
        last: rpc.last_log_id().map(encode_log_id),
    }
}

pub fn decode_transfer<E: Env>(rpc: &peer::TransferRequest) -> Result<TransferLeaderRequest<C<E>>, CodecError> {
    let vote = decode_vote(required(rpc.vote.as_ref(), "vote of a hand-over")?);
    Ok(TransferLeaderRequest::new(vote, NodeId(rpc.to), rpc.last.as_ref().map(decode_log_id)))
}

pub fn encode_transfer_response<E: Env>(response: &TransferLeaderResponse<C<E>>) -> peer::TransferResponse {
    let vote = match response {
        Err(TransferLeaderError::VoteChanged { actual, .. }) => Some(encode_vote(actual)),
        _ => None,
    };
    peer::TransferResponse { accepted: response.is_ok(), vote }
}

pub fn decode_transfer_response<E: Env>(
    request: &TransferLeaderRequest<C<E>>,
    response: Response,
) -> Result<TransferLeaderResponse<C<E>>, String> {
    let Response::Transfer(answer) = response else { return Err(other("a hand-over")) };
    let expected = *request.from_leader();
    Ok(match answer.vote.as_ref().map(decode_vote) {
        _ if answer.accepted => Ok(()),
        Some(actual) => Err(TransferLeaderError::VoteChanged { expected, actual }),
        None => Err(TransferLeaderError::LogNotFlushed { expected: request.last_log_id().copied(), actual: None }),
    })
}

fn other(expected: &str) -> String {
    format!("a response of another kind, expected one to {expected}")
}
