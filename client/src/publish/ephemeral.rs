//! The task of a publisher for an ephemeral room: what waits is sent together, once. Only what was certainly
//! not sent is tried again, so nothing is delivered twice; the numbers show subscribers what they missed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use unibus_proto::code::Outcome;
use unibus_proto::id::{ProducerId, RoomId};
use unibus_proto::limits::{BATCH_MESSAGES_MAX, REQUEST_BYTES_TARGET};
use unibus_proto::position::Sequence;
use unibus_proto::v1::publish_outcome::Outcome as Became;
use unibus_proto::v1::{PublishRequest, PublishResponse};

use super::Ack;
use super::actor::{Command, Push};
use super::lane::Answer;
use crate::core::Core;
use crate::nodes::Target;
use crate::platform::{Platform, timeout};
use crate::retry::Backoff;
use crate::{ClientEvent, Error, ErrorCode};

/// A token refused so often in a row is not a matter of age.
const SIGN_INS_MAX: u32 = 2;

pub(super) struct EphemeralActor<P: Platform> {
    core: Arc<Core<P>>,
    room: RoomId,
    producer: ProducerId,
    patience: Duration,
    inbox: mpsc::UnboundedReceiver<Command>,
    /// Number of the next message.
    next: u64,
}

impl<P: Platform> EphemeralActor<P> {
    pub fn new(
        core: Arc<Core<P>>,
        room: RoomId,
        producer: ProducerId,
        patience: Duration,
        inbox: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self { core, room, producer, patience, inbox, next: 1 }
    }

    pub async fn run(mut self) {
        let mut next = self.inbox.recv().await;
        while let Some(command) = next {
            let left = match command {
                Command::Push(push) => self.send_with(push).await,
                Command::Flush(done) => {
                    drop(done.send(Ok(())));
                    None
                }
            };
            next = match left {
                Some(command) => Some(command),
                None => self.inbox.recv().await,
            };
        }
    }

    /// Sends a message with those that wait behind it; a command that is none ends them.
    async fn send_with(&mut self, first: Push) -> Option<Command> {
        let (mut size, mut batch, mut left) = (first.size, vec![first], None);
        while batch.len() < BATCH_MESSAGES_MAX && size < REQUEST_BYTES_TARGET {
            match self.inbox.try_recv() {
                Ok(Command::Push(push)) => {
                    size += push.size;
                    batch.push(push);
                }
                Ok(other) => {
                    left = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let request = PublishRequest {
            request: 0,
            room_id: self.room.to_bytes(),
            producer_id: self.producer.to_bytes(),
            opened_ms: 0,
            first_number: self.next,
            messages: batch.iter_mut().map(|push| std::mem::take(&mut push.message)).collect(),
        };
        self.next += batch.len() as u64;
        match self.send(request).await {
            Ok(response) => resolve(batch, &response),
            Err(error) => batch.into_iter().for_each(|push| drop(push.done.send(Err(error.clone())))),
        }
        left
    }

    /// Sends a request; again only when it was certainly not sent, until the patience ends.
    async fn send(&self, request: PublishRequest) -> Result<PublishResponse, Error> {
        let gives_up = self.core.platform.now() + self.patience;
        let (mut backoff, mut sign_ins) = (Backoff::default(), 0);
        loop {
            let (generation, error) = match self.attempt(request.clone()).await {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            if error.code == ErrorCode::Unauthenticated && sign_ins < SIGN_INS_MAX {
                sign_ins += 1;
                self.core.forget_token(generation).await;
                continue;
            }
            let after = backoff.next(&self.core.platform, &error);
            let is_safe = error.outcome == Outcome::None && error.is_transient();
            if !is_safe || self.core.platform.now() + after > gives_up {
                return Err(error);
            }
            self.core.events.emit(ClientEvent::Retrying { why: error, after });
            self.core.platform.sleep(after).await;
        }
    }

    /// One attempt; an error says under which sign-in it was met.
    async fn attempt(&self, request: PublishRequest) -> Result<PublishResponse, (u64, Error)> {
        let node = self.core.node(&self.core.target(Target::Any)).await.map_err(|error| (0, error))?;
        let lane = match self.core.lane(&node).await {
            Ok(lane) => lane,
            Err((generation, error)) => {
                self.core.note_failure(&node.address, &error);
                // The stream is not open: nothing was sent on it.
                return Err((generation, Error { outcome: Outcome::None, ..error }));
            }
        };
        let failed = |error: Error| {
            self.core.note_failure(&node.address, &error);
            (lane.generation, error)
        };
        let (reply, mut answers) = mpsc::unbounded_channel();
        let unsent = |error| failed(Error::unreachable(&node.address, &error));
        lane.submit(request, &reply).map_err(unsent)?;
        match timeout(&self.core.platform, self.core.config.answer_timeout, answers.recv()).await {
            Some(Some(Answer::Response(_, PublishResponse { failure: Some(failure), leader, .. }))) => {
                Err(failed(Error::from_failure(&failure, leader)))
            }
            Some(Some(Answer::Response(_, response))) => {
                self.core.nodes().note_success(&node.address);
                Ok(response)
            }
            Some(Some(Answer::Broken(error))) => Err(failed(lost(&error))),
            Some(None) | None => {
                lane.abandon();
                Err(failed(lost(&"the node does not answer")))
            }
        }
    }
}

fn lost(why: &dyn std::fmt::Display) -> Error {
    Error::lost(format_args!("publish to an ephemeral room: {why}; the messages may have been sent, or not"))
}

/// Tells each message what became of it.
fn resolve(batch: Vec<Push>, response: &PublishResponse) {
    let each = |outcome: &unibus_proto::v1::PublishOutcome| {
        let (count, became) = (outcome.count as usize, outcome.outcome.clone());
        std::iter::repeat_n(became, count)
    };
    let mut outcomes = response.outcomes.iter().flat_map(each);
    for push in batch {
        let answer = match outcomes.next().flatten() {
            Some(Became::Accepted(accepted)) => Ok(Ack {
                sequence: Sequence(0),
                duplicate: false,
                time_ms: response.time_ms,
                voters: 0,
                sent_to: Some(accepted.nodes),
            }),
            Some(Became::Reject(reject)) => Err(Error::from_reject(&reject)),
            _ => Err(Error::new(ErrorCode::VersionSkew, "publish: the node does not say what became of a message")),
        };
        drop(push.done.send(answer));
    }
}
