//! Writing the history while the run goes on, simulated or real.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use prost::Message;
use unibus_client::Item;
use unibus_proto::id::{ProducerId, RoomId};
use unibus_proto::v1::{Delivery, Signed, delivery};

use crate::history::{Entry, EntryId, EphemeralSend, History, Listener, Outcome, Publish, Reader};
use crate::sim::random::hash_bytes;
use crate::sim::runtime::Handle;

/// The history in the making. Clones share it.
#[derive(Clone)]
pub struct Recorder {
    source: Source,
    history: Arc<Mutex<History>>,
}

/// Where times come from.
#[derive(Clone)]
enum Source {
    Simulation(Handle),
    Process(Instant),
}

impl Recorder {
    /// An empty history of the running simulation.
    pub fn new() -> Self {
        Self { source: Source::Simulation(Handle::current()), history: Arc::default() }
    }

    /// An empty history of real processes.
    #[allow(clippy::disallowed_methods, reason = "outside the simulation")]
    pub fn of_processes() -> Self {
        Self { source: Source::Process(Instant::now()), history: Arc::default() }
    }

    /// Now.
    pub fn now_nanos(&self) -> u64 {
        match &self.source {
            Source::Simulation(handle) => handle.now_nanos(),
            Source::Process(began) => began.elapsed().as_nanos() as u64,
        }
    }

    /// The history so far.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A client calls the SDK; answers the number of the publish.
    pub fn begin(&self, room: RoomId, producer: ProducerId, body: &[u8]) -> usize {
        self.begin_at(self.now_nanos(), room, producer, body)
    }

    /// The same for a publish that was due at `began` and could not be sent before.
    pub fn begin_at(&self, began: u64, room: RoomId, producer: ProducerId, body: &[u8]) -> usize {
        let publish = Publish { room, body: hash_bytes(body), producer, began, outcome: Outcome::Unknown };
        let mut history = self.history();
        history.publishes.push(publish);
        history.publishes.len() - 1
    }

    /// A client sends again what publish `number` sent, under the same message id.
    pub fn begin_again(&self, number: usize) -> usize {
        let mut history = self.history();
        let again = Publish { outcome: Outcome::Unknown, ..history.publishes[number].clone() };
        history.publishes.push(again);
        history.publishes.len() - 1
    }

    /// The SDK answered.
    pub fn end(&self, number: usize, outcome: Outcome) {
        if let (Outcome::Acked { sequence, .. }, Source::Simulation(handle)) = (outcome, &self.source) {
            handle.note(&format!("ack {number} as sequence {sequence}"));
        }
        self.history().publishes[number].outcome = outcome;
    }

    /// A new reader; answers its number.
    pub fn reader(&self, name: &str) -> usize {
        let mut history = self.history();
        history.readers.push(Reader { name: name.into(), ..Reader::default() });
        history.readers.len() - 1
    }

    /// A reader was told that a room is kept from there on only.
    pub fn moved(&self, reader: usize, room: RoomId, to: u64) {
        if let Source::Simulation(handle) = &self.source {
            handle.note(&format!("reader {reader} goes on at {to} in {room}"));
        }
        self.history().readers[reader].moved.insert((room, to));
    }

    /// A client of a user sends to the ephemeral room; answers the number of the message.
    pub fn begin_ephemeral(&self, body: &[u8], user: &str) -> usize {
        let (user, body, began) = (user.to_string(), hash_bytes(body), self.now_nanos());
        let send = EphemeralSend { user, body, began, outcome: Outcome::Unknown };
        let mut history = self.history();
        history.ephemeral.sends.push(send);
        history.ephemeral.sends.len() - 1
    }

    /// The SDK answered.
    pub fn end_ephemeral(&self, number: usize, outcome: Outcome) {
        self.history().ephemeral.sends[number].outcome = outcome;
    }

    /// A new subscription of a user to the ephemeral room; answers its number.
    pub fn listener(&self, name: &str, user: &str) -> usize {
        let mut history = self.history();
        history.ephemeral.listeners.push(Listener { name: name.into(), user: user.into(), received: Vec::new() });
        history.ephemeral.listeners.len() - 1
    }

    /// It was given a message.
    pub fn heard(&self, listener: usize, body: &[u8]) {
        self.history().ephemeral.listeners[listener].received.push(hash_bytes(body));
    }

    /// The removal of a member of the ephemeral room was acknowledged.
    pub fn removed(&self, user: &str) {
        let at = self.now_nanos();
        self.history().ephemeral.removed.insert(user.into(), at);
    }

    /// A reader was given something.
    pub fn read(&self, reader: usize, item: &Item) {
        if let Some((room, entry)) = of_item(item) {
            self.history().readers[reader].rooms.entry(room).or_default().push(entry);
        }
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

fn roster_entry(sequence: u64, event: Option<&Signed>) -> Entry {
    let hash = event.map_or(0, |event| hash_bytes(&event.payload));
    Entry { sequence, id: EntryId::Roster(hash), body: hash }
}

/// The entry that a reader was given, if it is one.
pub fn of_item(item: &Item) -> Option<(RoomId, Entry)> {
    match item {
        Item::Message(message) => {
            let id = EntryId::Message(message.producer, message.number);
            Some((message.room_id, Entry { sequence: message.sequence.0, id, body: hash_bytes(&message.body) }))
        }
        Item::Roster(change) => Some((change.room_id, roster_entry(change.sequence.0, change.entry.event.as_ref()))),
        Item::CaughtUp => None,
    }
}

/// The entry that a replica holds as these bytes.
pub fn of_stored(bytes: &[u8]) -> Result<Entry, String> {
    let delivery = Delivery::decode(bytes).map_err(|error| format!("stored delivery: {error}"))?;
    match delivery.entry {
        Some(delivery::Entry::Message(message)) => {
            let producer = ProducerId::from_bytes(&message.producer_id).map_err(|error| error.to_string())?;
            let id = EntryId::Message(producer, message.number);
            Ok(Entry { sequence: delivery.sequence, id, body: hash_bytes(&message.body) })
        }
        Some(delivery::Entry::Roster(roster)) => Ok(roster_entry(delivery.sequence, roster.event.as_ref())),
        None => Err(format!("stored delivery {} has no entry", delivery.sequence)),
    }
}
