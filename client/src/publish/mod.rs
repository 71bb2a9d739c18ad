//! Publishing: ordered, pipelined, never twice.
//!
//! A [`Publisher`] numbers the messages of one producer for one room. Up to
//! [`PRODUCER_WINDOW`](unibus_proto::limits::PRODUCER_WINDOW) of them are on their way at a time, in
//! batches, on the one publish stream to the node that leads the room's shard. When an answer is lost, a
//! node dies or another one leads, the same numbers are sent again in order from the first that has no
//! answer; the room stores each number once. `window` decides what to send and what an answer means,
//! `actor` does it, `lane` is the stream to a node.
//!
//! Rooms whose policy has `persist = false` are ephemeral: a message is sent once to whoever is subscribed
//! (`ephemeral`), and one whose answer is lost fails.

mod actor;
mod ephemeral;
mod lane;
mod message;
mod window;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use unibus_proto::id::{GroupId, ProducerId, RoomId};
use unibus_proto::limits::{BATCH_BYTES_MAX, PRODUCER_WINDOW};
use unibus_proto::position::Sequence;
use unibus_proto::signed::sha256;
use unibus_proto::v1;

pub(crate) use lane::Lanes;
pub use message::Message;

use crate::platform::{Platform, random};
use crate::rooms::RoomKey;
use crate::{Client, Error, ErrorCode};
use actor::{Actor, Command, Push};
use ephemeral::EphemeralActor;

/// Bytes of unresolved messages of a publisher: two full requests, so that the next is ready while one
/// is on its way.
const WINDOW_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;

/// What became of a message: stored, fsynced on a majority of the shard's voters; or sent, if the room is
/// ephemeral.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Its place on the room's timeline; 0 for a duplicate so old that its place is not kept.
    pub sequence: Sequence,
    /// It was stored by an earlier attempt, or by an earlier run of a named producer.
    pub duplicate: bool,
    /// Log time of the answer, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Nodes of the room's shard that vote; 0 for an ephemeral room.
    pub voters: u32,
    /// Of an ephemeral room, which stores nothing and has no sequence but 0: how many nodes with subscribers it
    /// was sent to.
    pub sent_to: Option<u32>,
}

/// The answer to a message that was enqueued. Answers of a publisher resolve in order.
#[derive(Debug)]
pub struct Receipt {
    answer: oneshot::Receiver<Result<Ack, Error>>,
}

impl Future for Receipt {
    type Output = Result<Ack, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let gone = |_| Err(Error::lost("the publisher was dropped before the message was answered"));
        Pin::new(&mut self.answer).poll(context).map(|answer| answer.unwrap_or_else(gone))
    }
}

/// Opens a [`Publisher`].
pub struct PublisherBuilder<P: Platform> {
    client: Client<P>,
    room: RoomKey,
    producer_id: Option<ProducerId>,
    patience: Duration,
}

impl<P: Platform> Client<P> {
    /// A publisher for a room, with a producer id of its own.
    pub fn publisher(&self, room: impl Into<RoomKey>) -> PublisherBuilder<P> {
        let patience = self.core.config.patience;
        PublisherBuilder { client: self.clone(), room: room.into(), producer_id: None, patience }
    }
}

impl<P: Platform> PublisherBuilder<P> {
    /// Continues this producer. Nobody else may use it at the same time.
    pub fn producer_id(mut self, id: ProducerId) -> Self {
        self.producer_id = Some(id);
        self
    }

    /// The producer of this name on this device: a later run that sends the same messages from the
    /// first on gets the answers of the earlier run, and nothing is stored twice.
    pub fn named(self, name: &str) -> Self {
        let device = self.client.identity().device_id();
        let hash = sha256(&[name.as_bytes(), &device.0].concat());
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        self.producer_id(ProducerId(id))
    }

    /// Gives up when the oldest message has no answer for so long; else as configured for the client.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Looks up the room and starts the publisher.
    pub async fn open(self) -> Result<Publisher, Error> {
        let room = self.client.room(self.room).await?;
        let core = self.client.core;
        let invalid = |error| Error::new(ErrorCode::VersionSkew, format!("get room: {error}"));
        let room_id = RoomId::from_bytes(&room.room_id).map_err(invalid)?;
        let producer_id = self.producer_id.unwrap_or_else(|| ProducerId(random(&core.platform)));
        if room.leader != 0 {
            core.nodes().note_leader(GroupId(room.shard), room.leader);
        }
        // Bounded by the window: each message in it holds a permit.
        let (commands, inbox) = mpsc::unbounded_channel();
        let (platform, named) = (core.platform.clone(), self.producer_id.is_some());
        if room.policy.is_some_and(|policy| !policy.persist) {
            if named {
                return Err(not_resumable(&room));
            }
            let actor = EphemeralActor::new(core, room_id, producer_id, self.patience, inbox);
            platform.spawn(Box::pin(actor.run()));
        } else {
            let actor = Actor::new(core, room_id, GroupId(room.shard), producer_id, named, self.patience, inbox);
            platform.spawn(Box::pin(actor.run()));
        }
        Ok(Publisher {
            room,
            producer_id,
            commands,
            count: Arc::new(Semaphore::new(PRODUCER_WINDOW as usize)),
            bytes: Arc::new(Semaphore::new(WINDOW_BYTES_MAX)),
        })
    }
}

/// Publishes to one room as one producer. Dropping it lets what was enqueued be sent; [`Publisher::close`]
/// waits for that.
///
/// When a message finds no answer within the patience, it is not known what became of it, and as the
/// order is kept nothing after it can be sent: all unresolved messages fail, and the publisher with them. In
/// an ephemeral room only those fail that may or may not have been sent.
#[derive(Debug)]
pub struct Publisher {
    room: v1::Room,
    producer_id: ProducerId,
    commands: mpsc::UnboundedSender<Command>,
    count: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Publisher {
    /// The room, as it stood when the publisher was opened.
    pub fn room(&self) -> &v1::Room {
        &self.room
    }

    /// The producer.
    pub fn producer_id(&self) -> ProducerId {
        self.producer_id
    }

    /// Publishes a message and waits until it is stored, or sent.
    pub async fn send(&self, message: impl Into<Message>) -> Result<Ack, Error> {
        self.enqueue(message).await?.await
    }

    /// Puts a message on its way and returns the future of its answer. Waits only while the window is
    /// full. Messages are stored, or sent, in the order of these calls.
    pub async fn enqueue(&self, message: impl Into<Message>) -> Result<Receipt, Error> {
        let message = message.into();
        message.check()?;
        let size = message.size();
        let (count, bytes) = (self.count.clone().acquire_owned(), self.bytes.clone());
        let count = count.await.map_err(|_| closed())?;
        let bytes = bytes.acquire_many_owned(size as u32).await.map_err(|_| closed())?;
        let (done, answer) = oneshot::channel();
        let push = Push { message: message.into_wire(), size, done, permits: (count, bytes) };
        self.commands.send(Command::Push(push)).map_err(|_| closed())?;
        Ok(Receipt { answer })
    }

    /// Waits until every message enqueued so far has its answer; fails when the publisher has.
    pub async fn flush(&self) -> Result<(), Error> {
        let (done, flushed) = oneshot::channel();
        self.commands.send(Command::Flush(done)).map_err(|_| closed())?;
        flushed.await.map_err(|_| closed())?
    }

    /// Flushes and ends.
    pub async fn close(self) -> Result<(), Error> {
        self.flush().await
    }
}

fn not_resumable(room: &v1::Room) -> Error {
    let message = format!(
        "publish to {}: found a producer of an earlier run, but the room is ephemeral and remembers none; publish \
         without it",
        room.subject
    );
    Error::new(ErrorCode::Invalid, message)
}

fn closed() -> Error {
    Error::new(ErrorCode::Invalid, "the publisher has ended; open a new one")
}
