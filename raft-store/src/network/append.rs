//! The append stream: requests go out while at most [`WINDOW`] wait for their answers, which come back
//! in order.
//!
//! A commit index alone is told without an answer: what comes later is answered for it as well, and heartbeats
//! tell it again. A follower on which nobody waits for it gets it with the next entries, if they come within
//! [`COMMIT_HOLD`]: a message then takes two datagrams per follower instead of four.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::error::{RPCError, Unreachable};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use tokio::sync::mpsc;
use unibus_proto::peer;
use unibus_proto::peer::raft_response::Response;

use super::control::response;
use super::message::{append_frame, decode_stream_result};
use super::{RpcResult, WINDOW};
use crate::env::{AsyncRuntime, Duplex, Env, FrameRx, FrameTx, Instant, InstantOf, Net, NetError, now, spawn};
use crate::stream::decode;
use crate::types::{LogId, TypeConfig};

/// How long a commit index waits for entries to go with.
const COMMIT_HOLD: Duration = Duration::from_millis(10);

type Answer = Result<peer::RaftResponse, NetError>;
type Request<E> = AppendEntriesRequest<TypeConfig<E>>;
type Item<E> = RpcResult<E, StreamAppendResult<TypeConfig<E>>>;

struct Pipeline<E: Env, S> {
    tx: <E::Net as Net>::Tx,
    answers: mpsc::Receiver<Answer>,
    input: S,
    input_ended: bool,
    /// What comes before the entries of each request under way, and their last.
    in_flight: VecDeque<(Option<LogId>, Option<LogId>)>,
    /// A commit index that waits for entries to go with, and until when.
    held: Option<(Request<E>, InstantOf<E>)>,
    /// Somebody at the follower waits for what is committed, as it said last; nothing while it has said nothing.
    awaited: Option<bool>,
    progress: Duration,
}

/// What comes next.
enum Step<E: Env> {
    Answer(Option<Answer>),
    Request(Option<Request<E>>),
    HeldLongEnough,
    Silence,
}

/// The answers to the requests of `input`, in order. Ends when the input does, or with an error.
pub fn stream<E: Env, S>((tx, rx): Duplex<E::Net>, input: S, progress: Duration) -> impl Stream<Item = Item<E>> + Send
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig<E>>> + Unpin + Send + 'static,
{
    let (to, answers) = mpsc::channel(WINDOW);
    spawn::<E>(read_answers::<E>(rx, to));
    let in_flight = VecDeque::with_capacity(WINDOW);
    let pipeline: Pipeline<E, S> =
        Pipeline { tx, answers, input, input_ended: false, in_flight, held: None, awaited: None, progress };
    futures::stream::unfold(Some(pipeline), |pipeline| async {
        let mut pipeline = pipeline?;
        let item = pipeline.next().await?;
        let go_on = matches!(item, Ok(Ok(_)));
        Some((item, go_on.then_some(pipeline)))
    })
}

/// Reading a frame must not be interrupted half-way, so it has a task of its own.
async fn read_answers<E: Env>(mut rx: <E::Net as Net>::Rx, to: mpsc::Sender<Answer>) {
    loop {
        let answer = tokio::select! {
            biased;
            () = to.closed() => return,
            frame = rx.recv() => frame.and_then(decode::<peer::RaftResponse>),
        };
        let failed = answer.is_err();
        if to.send(answer).await.is_err() || failed {
            return;
        }
    }
}

impl<E: Env, S> Pipeline<E, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig<E>>> + Unpin + Send + 'static,
{
    /// The next answer; requests are sent while there is room.
    async fn next(&mut self) -> Option<Item<E>> {
        loop {
            if self.in_flight.is_empty() && self.input_ended {
                return None;
            }
            let sent = match self.step().await {
                Step::Answer(answer) => return Some(self.answered(answer)),
                Step::Silence => Err(NetError::Closed(format!("no answer within {} ms", self.progress.as_millis()))),
                Step::HeldLongEnough => self.tell_commit().await,
                Step::Request(Some(request)) => self.take(request).await,
                Step::Request(None) => {
                    self.input_ended = true;
                    self.tell_commit().await
                }
            };
            if let Err(error) = sent {
                return Some(Err(lost(error)));
            }
        }
    }

    async fn step(&mut self) -> Step<E> {
        let idle = self.in_flight.is_empty();
        let may_send = !self.input_ended && self.in_flight.len() < WINDOW;
        let held = self.held.as_ref().map(|(_, until)| *until);
        tokio::select! {
            biased;
            answer = self.answers.recv(), if !idle => Step::Answer(answer),
            request = self.input.next(), if may_send => Step::Request(request),
            () = sleep_until::<E>(held), if held.is_some() => Step::HeldLongEnough,
            () = <E::Rt as AsyncRuntime>::sleep(self.progress), if !idle => Step::Silence,
        }
    }

    /// Sends a request, now or, when it has no entries, with the next that has.
    async fn take(&mut self, request: Request<E>) -> Result<(), NetError> {
        let awaited = match self.awaited {
            Some(awaited) if request.entries.is_empty() => awaited,
            // The first of a stream may be a probe: it has to be answered, with or without entries.
            _ => {
                self.held = None;
                return self.ask(&request).await;
            }
        };
        let until = self.held.take().map_or_else(|| now::<E>() + COMMIT_HOLD, |(_, until)| until);
        self.held = Some((request, until));
        if awaited { self.tell_commit().await } else { Ok(()) }
    }

    async fn ask(&mut self, request: &Request<E>) -> Result<(), NetError> {
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        self.in_flight.push_back((request.prev_log_id, last));
        self.send(append_frame::<E>(request, false)).await
    }

    /// Sends the commit index that is held, if one is.
    async fn tell_commit(&mut self) -> Result<(), NetError> {
        match self.held.take() {
            Some((request, _)) => self.send(append_frame::<E>(&request, true)).await,
            None => Ok(()),
        }
    }

    async fn send(&mut self, frame: Vec<Bytes>) -> Result<(), NetError> {
        let sent = crate::env::timeout::<E, _>(self.progress, self.tx.send(frame)).await;
        sent.unwrap_or_else(|| Err(NetError::Closed("the peer takes nothing".into())))
    }

    fn answered(&mut self, answer: Option<Answer>) -> Item<E> {
        let answer = answer.unwrap_or_else(|| Err(NetError::Closed("the stream ended".into()))).map_err(lost)?;
        let (previous, last) = self.in_flight.pop_front().expect("an answer is awaited only for a request");
        let response = response(answer).map_err(lost)?;
        if let Response::Append(answer) = &response {
            self.awaited = Some(answer.awaited);
        }
        decode_stream_result(response, previous, last).map_err(lost)
    }
}

async fn sleep_until<E: Env>(moment: Option<InstantOf<E>>) {
    let left = moment.map_or(Duration::ZERO, |moment| moment.saturating_duration_since(now::<E>()));
    <E::Rt as AsyncRuntime>::sleep(left).await;
}

fn lost<E: Env>(why: impl std::fmt::Display) -> RPCError<TypeConfig<E>> {
    RPCError::Unreachable(Unreachable::from_string(why))
}

#[cfg(test)]
#[path = "append_tests.rs"]
mod tests;
