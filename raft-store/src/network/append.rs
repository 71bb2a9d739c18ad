//! The append stream: requests go out while at most [`WINDOW`] wait for their answers, which come back
//! in order.

use std::collections::VecDeque;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::error::{RPCError, Unreachable};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use tokio::sync::mpsc;
use unibus_proto::peer;

use super::control::response;
use super::message::{append_frame, decode_stream_result};
use super::{RpcResult, WINDOW};
use crate::env::{AsyncRuntime, Duplex, Env, FrameRx, FrameTx, Net, NetError, spawn};
use crate::stream::decode;
use crate::types::{LogId, TypeConfig};

type Answer = Result<peer::RaftResponse, NetError>;
type Item<E> = RpcResult<E, StreamAppendResult<TypeConfig<E>>>;

struct Pipeline<E: Env, S> {
    tx: <E::Net as Net>::Tx,
    answers: mpsc::Receiver<Answer>,
    input: S,
    input_ended: bool,
    /// What comes before the entries of each request under way, and their last.
    in_flight: VecDeque<(Option<LogId>, Option<LogId>)>,
    progress: Duration,
}

/// The answers to the requests of `input`, in order. Ends when the input does, or with an error.
pub fn stream<E: Env, S>((tx, rx): Duplex<E::Net>, input: S, progress: Duration) -> impl Stream<Item = Item<E>> + Send
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig<E>>> + Unpin + Send + 'static,
{
    let (to, answers) = mpsc::channel(WINDOW);
    spawn::<E>(read_answers::<E>(rx, to));
    let in_flight = VecDeque::with_capacity(WINDOW);
    let pipeline: Pipeline<E, S> = Pipeline { tx, answers, input, input_ended: false, in_flight, progress };
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
            let idle = self.in_flight.is_empty();
            if idle && self.input_ended {
                return None;
            }
            let may_send = !self.input_ended && self.in_flight.len() < WINDOW;
            let request = tokio::select! {
                biased;
                answer = self.answers.recv(), if !idle => return Some(self.answered(answer)),
                request = self.input.next(), if may_send => request,
                () = <E::Rt as AsyncRuntime>::sleep(self.progress), if !idle => {
                    return Some(Err(lost(format!("no answer within {} ms", self.progress.as_millis()))));
                }
            };
            match request {
                Some(request) => {
                    if let Err(error) = self.send(&request).await {
                        return Some(Err(lost(error)));
                    }
                }
                None => self.input_ended = true,
            }
        }
    }

    async fn send(&mut self, request: &AppendEntriesRequest<TypeConfig<E>>) -> Result<(), NetError> {
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        self.in_flight.push_back((request.prev_log_id, last));
        let frame = append_frame::<E>(request);
        let sent = crate::env::timeout::<E, _>(self.progress, self.tx.send(frame)).await;
        sent.unwrap_or_else(|| Err(NetError::Closed("the peer takes nothing".into())))
    }

    fn answered(&mut self, answer: Option<Answer>) -> Item<E> {
        let answer = answer.unwrap_or_else(|| Err(NetError::Closed("the stream ended".into()))).map_err(lost)?;
        let (previous, last) = self.in_flight.pop_front().expect("an answer is awaited only for a request");
        let response = response(answer).map_err(lost)?;
        decode_stream_result(response, previous, last).map_err(lost)
    }
}

fn lost<E: Env>(why: impl std::fmt::Display) -> RPCError<TypeConfig<E>> {
    RPCError::Unreachable(Unreachable::from_string(why))
}
