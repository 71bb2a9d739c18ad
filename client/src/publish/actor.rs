//! The task of a publisher: takes messages, sends batches, waits, fails over.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use unibus_proto::code::Retry;
use unibus_proto::id::{GroupId, ProducerId, RoomId};
use unibus_proto::v1::{PublishRequest, PublishResponse};

use super::lane::{Answer, Lane, wants_sign_in};
pub(super) use super::window::Push;
use super::window::{Verdict, Window};
use crate::core::Core;
use crate::nodes::Target;
use crate::platform::{Platform, random};
use crate::retry::Backoff;
use crate::{ClientEvent, Error, ErrorCode};

/// A request leaves at once while fewer are on their way, else when it is full: latency when idle,
/// full batches under load.
const EAGER_REQUESTS: usize = 2;
/// Full requests on their way at a time.
const REQUESTS_MAX: usize = 8;
/// Resending without an answer in between so often means that something else than order is wrong.
const RESENDS_MAX: u32 = 3;
/// A token refused so often in a row is not a matter of age.
const SIGN_INS_MAX: u32 = 2;

/// What a [`Publisher`](super::Publisher) asks for.
pub(super) enum Command {
    /// Send this.
    Push(Push),
    /// Tell when everything before has its answer.
    Flush(oneshot::Sender<Result<(), Error>>),
}

enum Event {
    Command(Option<Command>),
    Answer(Answer),
    Time,
}

pub(super) struct Actor<P: Platform> {
    core: Arc<Core<P>>,
    room: RoomId,
    shard: GroupId,
    producer: ProducerId,
    named: bool,
    /// Stamped when number 1 is first sent.
    opened_ms: Option<u64>,
    patience: Duration,
    window: Window,
    inbox: mpsc::UnboundedReceiver<Command>,
    inbox_open: bool,
    lane: Option<Lane>,
    reply: mpsc::UnboundedSender<Answer>,
    answers: mpsc::UnboundedReceiver<Answer>,
    flushes: VecDeque<(u64, oneshot::Sender<Result<(), Error>>)>,
    failed: Option<Error>,
    failed_at: Option<(String, Error)>,
    last_error: Option<Error>,
    backoff: Backoff,
    paused_until: Duration,
    /// When the oldest unresolved message became the oldest.
    waiting_since: Duration,
    /// When something was last sent or answered.
    heard_at: Duration,
    /// The leader is elsewhere, or the stream's token is about to end: leave when nothing is on its way.
    moving: bool,
    resends: u32,
    sign_ins: u32,
    alarm: Option<(Duration, BoxFuture<'static, ()>)>,
}

impl<P: Platform> Actor<P> {
    pub fn new(
        core: Arc<Core<P>>,
        room: RoomId,
        shard: GroupId,
        producer: ProducerId,
        named: bool,
        patience: Duration,
        inbox: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        let (reply, answers) = mpsc::unbounded_channel();
        Self {
            core,
            room,
            shard,
            producer,
            named,
            opened_ms: None,
            patience,
            window: Window::new(),
            inbox,
            inbox_open: true,
            lane: None,
            reply,
            answers,
            flushes: VecDeque::new(),
            failed: None,
            failed_at: None,
            last_error: None,
            backoff: Backoff::default(),
            paused_until: Duration::ZERO,
            waiting_since: Duration::ZERO,
            heard_at: Duration::ZERO,
            moving: false,
            resends: 0,
            sign_ins: 0,
            alarm: None,
        }
    }

    pub async fn run(mut self) {
        while self.inbox_open || !self.window.is_empty() {
            while let Ok(command) = self.inbox.try_recv() {
                self.take(command);
            }
            self.pump().await;
            self.answer_flushes();
            match self.wait().await {
                Event::Command(Some(command)) => self.take(command),
                Event::Command(None) => self.inbox_open = false,
                Event::Answer(Answer::Response(tag, response)) => self.heard(tag, &response).await,
                Event::Answer(Answer::Broken(error)) => self.lose_lane(error).await,
                Event::Time => self.check_time().await,
            }
        }
        self.answer_flushes();
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Push(push) => match &self.failed {
                Some(error) => drop(push.done.send(Err(never_sent(error)))),
                None => {
                    if self.window.is_empty() {
                        self.waiting_since = self.core.platform.now();
                    }
                    self.window.push(push);
                }
            },
            Command::Flush(done) => self.flushes.push_back((self.window.end(), done)),
        }
    }

    fn answer_flushes(&mut self) {
        let resolved = |window: &Window, end: u64| window.is_empty() || window.first() >= end;
        while let Some((_, done)) = self.flushes.pop_front_if(|(end, _)| resolved(&self.window, *end)) {
            let _ = done.send(self.failed.clone().map_or(Ok(()), Err));
        }
    }

    /// Sends what can be sent now.
    async fn pump(&mut self) {
        if self.window.is_empty() || self.core.platform.now() < self.paused_until {
            return;
        }
        let now = self.core.platform.now();
        self.moving |= self.lane.as_ref().is_some_and(|lane| now >= lane.renew_at);
        if self.moving && self.window.in_flight() == 0 {
            self.drop_lane();
        }
        if self.lane.is_none() && !self.open_lane().await {
            return;
        }
        while !self.moving && self.window.in_flight() < REQUESTS_MAX {
            let Some(batch) = self.window.batch(self.window.in_flight() >= EAGER_REQUESTS) else { return };
            if batch.resent > 0 {
                self.core.events.emit(ClientEvent::Resent { count: batch.resent });
            }
            let count = batch.messages.len();
            let request = PublishRequest {
                request: 0,
                room_id: self.room.to_bytes(),
                producer_id: self.producer.to_bytes(),
                opened_ms: *self.opened_ms.get_or_insert_with(|| self.core.platform.wall_ms()),
                first_number: batch.first,
                messages: batch.messages,
            };
            let Some(lane) = &self.lane else { return };
            if self.window.in_flight() == 0 {
                self.heard_at = self.core.platform.now();
            }
            match lane.submit(request, &self.reply) {
                Ok(tag) => self.window.note_sent(tag, batch.first, count),
                Err(error) => return self.lose_lane(error).await,
            }
        }
    }

    /// Chooses a node and opens the stream to it; on failure, says when to try again.
    async fn open_lane(&mut self) -> bool {
        let node = match self.core.node(&self.core.leader_target(self.shard)).await {
            Ok(node) => node,
            Err(error) => {
                self.pause(error);
                return false;
            }
        };
        match self.core.lane(&node).await {
            Ok(lane) => {
                if let Some((from, why)) = self.failed_at.take_if(|(from, _)| **from != *lane.node) {
                    self.core.events.emit(ClientEvent::FailedOver { from, to: lane.node.to_string(), why });
                }
                self.lane = Some(lane);
                true
            }
            Err((generation, error)) => {
                self.fail_at(node.address.to_string(), generation, error).await;
                false
            }
        }
    }

    async fn wait(&mut self) -> Event {
        let wake_at = self.wake_at();
        if self.alarm.as_ref().is_none_or(|(at, _)| wake_at.is_some_and(|wanted| *at > wanted)) {
            let after = |at: Duration| at.saturating_sub(self.core.platform.now());
            self.alarm = wake_at.map(|at| (at, self.core.platform.sleep(after(at))));
        }
        let alarm = async {
            match &mut self.alarm {
                Some((_, sleep)) => sleep.await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            biased;
            Some(answer) = self.answers.recv() => Event::Answer(answer),
            command = self.inbox.recv(), if self.inbox_open => Event::Command(command),
            () = alarm => Event::Time,
        };
        if matches!(event, Event::Time) {
            self.alarm = None;
        }
        event
    }

    /// When time alone asks for something to be done.
    fn wake_at(&self) -> Option<Duration> {
        if self.window.is_empty() {
            return None;
        }
        let gives_up = self.waiting_since + self.patience;
        let next = match self.window.in_flight() {
            0 => self.paused_until,
            _ => self.heard_at + self.core.config.answer_timeout,
        };
        Some(gives_up.min(next))
    }

    async fn check_time(&mut self) {
        let now = self.core.platform.now();
        if self.window.is_empty() {
            return;
        }
        if now >= self.waiting_since + self.patience {
            let lost = || Error::lost("publish: no answer within the patience");
            let error = self.last_error.clone().unwrap_or_else(lost);
            self.fail(error);
        } else if self.window.in_flight() > 0 && now >= self.heard_at + self.core.config.answer_timeout {
            if let Some(lane) = &self.lane {
                lane.abandon();
            }
            self.lose_lane(Error::lost("publish: the node does not answer")).await;
        } else if self.window.in_flight() == 0 && now >= self.paused_until {
            self.window.rewind();
        }
    }

    async fn heard(&mut self, tag: u64, response: &PublishResponse) {
        let (first, now) = (self.window.first(), self.core.platform.now());
        self.heard_at = now;
        let verdict = self.window.answer(tag, response);
        if self.window.first() > first {
            self.waiting_since = now;
            (self.resends, self.sign_ins, self.last_error) = (0, 0, None);
            self.backoff.reset();
            if let Some(lane) = &self.lane {
                self.core.nodes().note_success(&lane.node);
            }
        }
        match verdict {
            Verdict::Go => self.follow_leader(response.leader),
            Verdict::Resend(_) if self.resends < RESENDS_MAX => self.resends += 1,
            Verdict::Resend(error) => self.pause(error),
            Verdict::Retry(error) => self.retry(error).await,
            Verdict::Reopen if !self.named => {
                self.window.reopen();
                self.producer = ProducerId(random(&self.core.platform));
                self.opened_ms = None;
            }
            Verdict::Reopen => self.fail(Error::new(
                ErrorCode::UnknownProducer,
                "publish: the room has forgotten the named producer; open a new one",
            )),
            Verdict::Fatal(error) => self.fail(error),
        }
    }

    /// The node failed the request, not the stream.
    async fn retry(&mut self, error: Error) {
        if let Some(leader) = error.leader {
            self.core.nodes().note_leader(self.shard, leader.0);
        }
        // The leader's disk, which is no reason to leave this node: it forwards to the next leader.
        if matches!(error.code, ErrorCode::RateLimited | ErrorCode::Overloaded | ErrorCode::DiskFull) {
            return self.pause(error);
        }
        self.lose_lane(error).await;
    }

    fn follow_leader(&mut self, leader: u64) {
        let Some(lane) = &self.lane else { return };
        if leader == 0 || self.core.config.pin.is_some() {
            return;
        }
        let mut nodes = self.core.nodes();
        nodes.note_leader(self.shard, leader);
        if nodes.id_of(&lane.node).is_none_or(|id| id.0 == leader) {
            return;
        }
        let better = nodes.pick(&self.core.platform, &Target::Prefer(leader.into()));
        self.moving |= better.is_ok_and(|node| node.address != lane.node);
    }

    fn drop_lane(&mut self) {
        self.lane = None;
        self.moving = false;
        self.window.lose_connection();
        // What still comes from the old stream has no meaning any more.
        (self.reply, self.answers) = mpsc::unbounded_channel();
    }

    async fn lose_lane(&mut self, error: Error) {
        let lane = self.lane.take();
        self.drop_lane();
        if let Some(lane) = lane {
            self.fail_at(lane.node.to_string(), lane.generation, error).await;
        }
    }

    async fn fail_at(&mut self, address: String, generation: u64, error: Error) {
        if wants_sign_in(&error) && self.sign_ins < SIGN_INS_MAX {
            self.sign_ins += 1;
            self.core.forget_token(generation).await;
            return;
        }
        self.core.note_failure(&address, &error);
        self.failed_at = Some((address, error.clone()));
        self.pause(error);
    }

    /// Waits before the next attempt, unless the error is final.
    fn pause(&mut self, error: Error) {
        if matches!(error.code.retry(), Retry::Never) || (wants_sign_in(&error) && self.sign_ins >= SIGN_INS_MAX) {
            return self.fail(error);
        }
        let after = self.backoff.next(&self.core.platform, &error);
        self.paused_until = self.core.platform.now() + after;
        self.core.events.emit(ClientEvent::Retrying { why: error.clone(), after });
        self.last_error = Some(error.or_said(self.last_error.take()));
    }

    fn fail(&mut self, error: Error) {
        self.window.fail_all(&error);
        self.failed = Some(error);
    }
}

/// The publisher's error, for a message that was not even sent.
fn never_sent(error: &Error) -> Error {
    let code = if error.code == ErrorCode::OutcomeUnknown { ErrorCode::Invalid } else { error.code };
    Error::new(code, format!("the publisher has ended, open a new one; it ended with {error}"))
}
