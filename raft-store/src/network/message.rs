//! openraft's requests and responses as messages of the peer protocol, and back.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use unibus_proto::peer::append_response::Result as Outcome;
use unibus_proto::peer::raft_response::Response;
use unibus_proto::{id::NodeId, peer};

use crate::codec::{
    CodecError, decode_entry, decode_log_id, decode_vote, encode_entry, encode_log_id, encode_vote, required,
};
use crate::env::Env;
use crate::types::{Entry, LogId, Payload, TypeConfig};

type C<E> = TypeConfig<E>;

/// A payload that is shorter is copied into the frame: a part of its own costs more.
const SHARED_BYTES_MIN: usize = 1024;
/// Field numbers of `peer.proto`, for the one message that is not left to prost.
const APPEND_IN_REQUEST: u32 = 1;
const ENTRIES_IN_APPEND: u32 = 3;
const LOG_ID_IN_ENTRY: u32 = 1;
const NORMAL_IN_ENTRY: u32 = 3;

/// The frame of an append, byte for byte what prost makes of it; large proposals stay where they are, as
/// parts of their own.
pub fn append_frame<E: Env>(rpc: &AppendEntriesRequest<C<E>>, silent: bool) -> Vec<Bytes> {
    let (vote, previous) = (Some(encode_vote(&rpc.vote)), rpc.prev_log_id.as_ref().map(encode_log_id));
    let opening = peer::AppendRequest { vote, previous, ..peer::AppendRequest::default() };
    let committed = rpc.leader_commit.as_ref().map(encode_log_id);
    let closing = peer::AppendRequest { committed, silent, ..peer::AppendRequest::default() };
    let lengths: Vec<usize> = rpc.entries.iter().map(entry_bytes).collect();
    let entries: usize = lengths.iter().map(|length| field_bytes(ENTRIES_IN_APPEND, *length)).sum();
    let mut frame = Parts::default();
    frame.field(APPEND_IN_REQUEST, opening.encoded_len() + entries + closing.encoded_len());
    opening.encode_raw(&mut frame.open);
    for (entry, length) in rpc.entries.iter().zip(lengths) {
        frame.field(ENTRIES_IN_APPEND, length);
        frame.entry(entry);
    }
    closing.encode_raw(&mut frame.open);
    frame.finish()
}

fn entry_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Normal(proposal) => {
            field_bytes(LOG_ID_IN_ENTRY, encode_log_id(&entry.log_id).encoded_len())
                + field_bytes(NORMAL_IN_ENTRY, proposal.0.len())
        }
        Payload::Blank | Payload::Membership(_) => encode_entry(entry).encoded_len(),
    }
}

/// Bytes of a length-delimited field with its key and length.
fn field_bytes(number: u32, length: usize) -> usize {
    key_len(number) + encoded_len_varint(length as u64) + length
}

/// A frame while it is put together.
#[derive(Default)]
struct Parts {
    closed: Vec<Bytes>,
    open: BytesMut,
}

impl Parts {
    fn field(&mut self, number: u32, length: usize) {
        encode_key(number, WireType::LengthDelimited, &mut self.open);
        encode_varint(length as u64, &mut self.open);
    }

    fn entry(&mut self, entry: &Entry) {
        let Payload::Normal(proposal) = &entry.payload else { return encode_entry(entry).encode_raw(&mut self.open) };
        let log_id = encode_log_id(&entry.log_id);
        self.field(LOG_ID_IN_ENTRY, log_id.encoded_len());
        log_id.encode_raw(&mut self.open);
        self.field(NORMAL_IN_ENTRY, proposal.0.len());
        if proposal.0.len() < SHARED_BYTES_MIN {
            return self.open.put_slice(&proposal.0);
        }
        self.closed.push(self.open.split().freeze());
        self.closed.push(proposal.0.clone());
    }

    fn finish(mut self) -> Vec<Bytes> {
        if !self.open.is_empty() {
            self.closed.push(self.open.freeze());
        }
        self.closed
    }
}

pub fn encode_append<E: Env>(rpc: &AppendEntriesRequest<C<E>>) -> peer::AppendRequest {
    peer::AppendRequest {
        vote: Some(encode_vote(&rpc.vote)),
        previous: rpc.prev_log_id.as_ref().map(encode_log_id),
        entries: rpc.entries.iter().map(encode_entry).collect(),
        committed: rpc.leader_commit.as_ref().map(encode_log_id),
        silent: false,
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
    let answer = |result: Outcome| peer::AppendResponse { result: result.into(), ..peer::AppendResponse::default() };
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

/// An answer on an append stream: it names the entry up to which everything is on disk. `awaited`: somebody here
/// waits for what is committed.
pub fn encode_stream_result<E: Env>(result: &StreamAppendResult<C<E>>, awaited: bool) -> Response {
    let response = match result {
        Ok(upto) => encode_append_response::<E>(&AppendEntriesResponse::PartialSuccess(*upto)),
        Err(StreamAppendError::Conflict(_)) => encode_append_response::<E>(&AppendEntriesResponse::Conflict),
        Err(StreamAppendError::HigherVote(vote)) => {
            encode_append_response::<E>(&AppendEntriesResponse::HigherVote(*vote))
        }
    };
    match response {
        Response::Append(answer) => Response::Append(peer::AppendResponse { awaited, ..answer }),
        other => other,
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

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
