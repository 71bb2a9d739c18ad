//! Subscribing: history from a position on, then live, without a gap or a duplicate in any room, over
//! the death of any node.
//!
//! After a break the next node is told the next sequence of each room that was read; `track` checks each
//! entry against it, so that the promise does not rest on the node. Rooms that a later connection brings
//! and that had no position when history was done are newer than the subscription and start at their
//! first sequence.
//!
//! Messages of ephemeral rooms come live or never, and only after [`Item::CaughtUp`] can nobody have been too
//! early; a change of node may miss some and delivers none twice (`seen`).
//!
//! **Until the end.** Before subscribing, the client asks the cluster for the head of each room. The
//! subscription ends when a node has delivered everything that it knows *and* each room has reached that
//! head: a node that lags, or a failover half way, never makes it end early. What was stored meanwhile
//! may be delivered too.

mod entry;
mod item;
mod seen;
mod track;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::Streaming;
use unibus_proto::id::RoomId;
use unibus_proto::limits::DECODE_BYTES_MAX;
use unibus_proto::position::Sequence;
use unibus_proto::subject::SubjectFilter;
use unibus_proto::v1;
use unibus_proto::v1::message_service_client::MessageServiceClient;
use unibus_proto::v1::subscribe_response::Item as Wire;
use unibus_proto::v1::{SubscribeResponse, start_from};

pub use item::{Item, Received, RosterChange};

use crate::core::{Answer, Core, Rpc};
use crate::nodes::{Node, Target};
use crate::platform::{Platform, timeout};
use crate::retry::Backoff;
use crate::{Client, ClientEvent, Error, ErrorCode};
use track::{Queue, Track};

/// A token refused so often in a row is not a matter of age.
const SIGN_INS_MAX: u32 = 2;
/// A gap that every voter (at most five) shows is not a matter of one node.
const GAPS_MAX: u32 = 6;

/// Where a subscription starts in rooms that [`SubscribeOptions::resume`] does not name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Only what is stored after the subscription.
    #[default]
    Latest,
    /// The lowest sequence that can be read.
    Earliest,
    /// This sequence.
    Sequence(Sequence),
    /// The first entry stored at or after this log time, milliseconds since the Unix epoch.
    TimeMs(u64),
}

impl Start {
    fn wire(self) -> v1::StartFrom {
        let from = match self {
            Self::Latest => start_from::From::Latest(v1::Latest {}),
            Self::Earliest => start_from::From::Earliest(v1::Earliest {}),
            Self::Sequence(sequence) => start_from::From::Sequence(sequence.0),
            Self::TimeMs(time) => start_from::From::TimeMs(time),
        };
        v1::StartFrom { from: Some(from) }
    }
}

/// What may be asked of a subscription beside filter and start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// End when each room's head at the moment of subscribing has been delivered.
    pub until_end: bool,
    /// Only from this node, by name or address; no failover.
    pub pin: Option<String>,
    /// The next sequence wanted in rooms that were read before, as [`Subscription::positions`] told.
    pub resume: BTreeMap<RoomId, Sequence>,
    /// Give up when no node serves the subscription for so long; never, when `None`. The first
    /// connection is given up after the client's patience in any case.
    pub patience: Option<Duration>,
}

struct Connection {
    stream: Streaming<SubscribeResponse>,
    node: Node,
    generation: u64,
}

/// A running subscription. It makes progress while [`Subscription::next`] is awaited; dropping that
/// future loses nothing.
pub struct Subscription<P: Platform> {
    core: Arc<Core<P>>,
    client: Client<P>,
    filter: SubjectFilter,
    options: SubscribeOptions,
    track: Track,
    /// Heads that must be reached; only with `until_end`.
    ends: BTreeMap<RoomId, u64>,
    queue: Queue,
    connection: Option<Connection>,
    /// No node has more to deliver.
    over: bool,
    /// An error was returned: nothing follows it.
    failed: bool,
    backoff: Backoff,
    /// The pause before the next connection.
    pause: Option<Duration>,
    trouble_since: Option<Duration>,
    failed_at: Option<(String, Error)>,
    sign_ins: u32,
    gaps: u32,
}

impl<P: Platform> Client<P> {
    /// Subscribes to the rooms that `filter` selects and the caller may read, those created later
    /// included.
    pub async fn subscribe(
        &self,
        filter: &SubjectFilter,
        start: Start,
        options: SubscribeOptions,
    ) -> Result<Subscription<P>, Error> {
        let ends = if options.until_end { self.heads(filter).await? } else { BTreeMap::new() };
        let mut subscription = Subscription {
            core: self.core.clone(),
            client: self.clone(),
            filter: filter.clone(),
            track: Track::new(start, &options.resume),
            options,
            ends,
            queue: Queue::new(),
            connection: None,
            over: false,
            failed: false,
            backoff: Backoff::default(),
            pause: None,
            trouble_since: None,
            failed_at: None,
            sign_ins: 0,
            gaps: 0,
        };
        let patience = Some(self.core.config.patience);
        subscription.connect(patience).await?;
        // Where "latest" was, only the node's first word says: unheard, a break would move it.
        while start == Start::Latest && subscription.options.resume.is_empty() && !subscription.track.is_caught_up() {
            subscription.advance(patience).await?;
        }
        Ok(subscription)
    }

    async fn heads(&self, filter: &SubjectFilter) -> Result<BTreeMap<RoomId, u64>, Error> {
        let rooms = match filter.as_subject() {
            Some(subject) => vec![self.room(subject).await?],
            None => self.list_rooms(Some(filter)).await?,
        };
        let invalid = |error| Error::new(ErrorCode::VersionSkew, format!("rooms: {error}"));
        rooms.iter().map(|room| Ok((RoomId::from_bytes(&room.room_id).map_err(invalid)?, room.head))).collect()
    }
}

impl<P: Platform> Subscription<P> {
    /// The next element. After an error or the end, `None`.
    pub async fn next(&mut self) -> Option<Result<Item, Error>> {
        loop {
            if let Some(item) = self.received() {
                return Some(item);
            }
            if self.over || self.failed {
                return None;
            }
            let patience = self.options.patience;
            // A node that never catches up must not make a subscription with an end go on for ever.
            let patience = patience.or_else(|| self.options.until_end.then_some(self.core.config.patience));
            if let Err(error) = self.advance(patience).await {
                self.failed = true;
                return Some(Err(error));
            }
        }
    }

    /// The next element, if it is here already: whoever reads many needs to wait only when there is none.
    pub fn received(&mut self) -> Option<Result<Item, Error>> {
        if self.failed {
            return None;
        }
        let item = self.track.take(&mut self.queue)?;
        self.failed = item.is_err();
        Some(item)
    }

    /// The next sequence of each room, after what [`Subscription::next`] has returned: for
    /// [`SubscribeOptions::resume`].
    pub fn positions(&self) -> BTreeMap<RoomId, Sequence> {
        self.track.positions(&self.queue)
    }

    /// The node that serves the subscription.
    pub fn node(&self) -> Option<&str> {
        self.connection.as_ref().map(|connection| &*connection.node.address)
    }

    async fn advance(&mut self, patience: Option<Duration>) -> Result<(), Error> {
        self.connect(patience).await?;
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let heard = timeout(&self.core.platform, self.core.config.silence_timeout, connection.stream.message()).await;
        match heard {
            Some(Ok(Some(response))) => self.take(response),
            Some(Ok(None)) => self.ended().await,
            Some(Err(status)) => self.broken(status.into()).await,
            None => self.broken(Error::new(ErrorCode::Unreachable, "subscription: the node is silent")).await,
        }
    }

    fn take(&mut self, response: SubscribeResponse) -> Result<(), Error> {
        let accepted = match response.item {
            Some(Wire::Batch(batch)) => self.track.accept(batch, &mut self.queue),
            Some(Wire::Ephemeral(batch)) => self.track.accept_ephemeral(batch, &mut self.queue),
            Some(Wire::CaughtUp(caught_up)) => self.track.catch_up(caught_up, &mut self.queue),
            Some(Wire::Heartbeat(_)) | None => Ok(()),
        };
        match accepted {
            Ok(()) => {
                self.note_progress();
                Ok(())
            }
            Err(error) if error.code == ErrorCode::Corrupt && self.gaps + 1 < GAPS_MAX => {
                self.gaps += 1;
                self.avoid_node();
                self.lose(error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn note_progress(&mut self) {
        self.backoff.reset();
        self.sign_ins = 0;
        if !self.queue.is_empty() {
            (self.trouble_since, self.gaps) = (None, 0);
        }
        if let Some(connection) = &self.connection {
            self.core.nodes().note_success(&connection.node.address);
        }
    }

    /// The node has closed the stream without an error.
    async fn ended(&mut self) -> Result<(), Error> {
        if !self.options.until_end {
            self.lose(Error::new(ErrorCode::Draining, "subscription: the node has closed the stream"));
            return Ok(());
        }
        if !self.track.reached(&self.ends) {
            // A room that cannot be read any more has no end to wait for.
            let heads = self.client.heads(&self.filter).await?;
            self.ends.retain(|room, _| heads.contains_key(room));
        }
        if self.track.reached(&self.ends) {
            self.over = true;
            self.connection = None;
        } else {
            self.avoid_node();
            self.lose(Error::new(ErrorCode::Overloaded, "subscription: the node is behind the head of a room"));
        }
        Ok(())
    }

    /// The stream broke: go on at the next node, unless the error is final.
    async fn broken(&mut self, error: Error) -> Result<(), Error> {
        if error.code == ErrorCode::Unauthenticated && self.sign_ins < SIGN_INS_MAX {
            self.sign_ins += 1;
            if let Some(connection) = self.connection.take() {
                self.core.forget_token(connection.generation).await;
            }
            return Ok(());
        }
        if !error.is_transient() {
            return Err(error);
        }
        self.lose(error);
        Ok(())
    }

    /// Another node may do better.
    fn avoid_node(&self) {
        if let Some(node) = self.node() {
            self.core.nodes().note_failure(node, self.core.platform.now());
        }
    }

    fn lose(&mut self, error: Error) {
        if let Some(connection) = self.connection.take() {
            self.fail_at(&connection.node, error);
        }
    }

    fn fail_at(&mut self, node: &Node, error: Error) {
        self.core.note_failure(&node.address, &error);
        self.trouble_since.get_or_insert_with(|| self.core.platform.now());
        let after = self.backoff.next(&self.core.platform, &error);
        self.pause = Some(after);
        self.core.events.emit(ClientEvent::Retrying { why: error.clone(), after });
        self.failed_at = Some((node.address.to_string(), error));
    }

    /// Makes a connection if there is none.
    async fn connect(&mut self, patience: Option<Duration>) -> Result<(), Error> {
        while self.connection.is_none() {
            if let Some(pause) = self.pause {
                self.check_patience(patience)?;
                self.core.platform.sleep(pause).await;
                self.pause = None;
            }
            let target = self.options.pin.clone().map_or_else(|| self.core.target(Target::Any), Target::Only);
            let node = self.core.node(&target).await?;
            match self.open(&node).await {
                Ok(connection) => self.use_connection(connection),
                Err((generation, error))
                    if error.code == ErrorCode::Unauthenticated && self.sign_ins < SIGN_INS_MAX =>
                {
                    self.sign_ins += 1;
                    self.core.forget_token(generation).await;
                }
                Err((_, error)) if error.is_transient() => self.fail_at(&node, error),
                Err((_, error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn check_patience(&self, patience: Option<Duration>) -> Result<(), Error> {
        let (Some(patience), Some(since)) = (patience, self.trouble_since) else { return Ok(()) };
        match &self.failed_at {
            Some((_, error)) if self.core.platform.now() >= since + patience => Err(error.clone()),
            _ => Ok(()),
        }
    }

    async fn open(&self, node: &Node) -> Result<Connection, (u64, Error)> {
        let authorization = self.core.authorization(node).await.map_err(|error| (0, error))?;
        let generation = authorization.generation;
        let rpc = Rpc { channel: node.channel.clone(), authorization };
        let request = rpc.request(self.track.request(&self.filter, self.options.until_end));
        let mut client = MessageServiceClient::new(rpc.channel).max_decoding_message_size(DECODE_BYTES_MAX);
        let opening: Answer<_> = Box::pin(async move { client.subscribe(request).await });
        match timeout(&self.core.platform, self.core.config.attempt_timeout, opening).await {
            Some(Ok(answer)) => Ok(Connection { stream: answer.into_inner(), node: node.clone(), generation }),
            Some(Err(status)) => Err((generation, status.into())),
            None => Err((generation, Error::unreachable(&node.address, &"no answer to the subscription"))),
        }
    }

    fn use_connection(&mut self, connection: Connection) {
        let to = &connection.node.address;
        if let Some((from, why)) = self.failed_at.take_if(|(from, _)| **from != **to) {
            self.core.events.emit(ClientEvent::FailedOver { from, to: to.to_string(), why });
        }
        self.track.change_node();
        self.connection = Some(connection);
    }
}
