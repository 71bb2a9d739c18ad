//! Entries of a timeline as they were received, taken apart only when they are asked for.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use prost::encoding::decode_varint;
use unibus_proto::delivery::entry_at;
use unibus_proto::id::{DeviceId, ProducerId, RoomId};
use unibus_proto::position::Sequence;
use unibus_proto::v1::{Delivery, Header, RosterEvent, delivery};

use super::item::{Item, Received, RosterChange};
use crate::{Error, ErrorCode};

/// Consecutive entries of a room that have not been asked for yet.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub room: RoomId,
    pub subject: Arc<str>,
    /// Whole entries, as `unibus_proto::delivery` joins them.
    pub chunk: Bytes,
    /// Where in the chunk the next one begins, and the last one ends.
    pub place: Range<usize>,
    /// Sequence of the next one; without meaning in an ephemeral room.
    pub next: u64,
    /// They are messages of an ephemeral room.
    pub ephemeral: bool,
}

impl Run {
    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.place.is_empty()
    }

    /// Takes the next one; one that cannot be read stays. `user` is who published the one before: often he
    /// is the same.
    pub fn take(&mut self, user: &mut Arc<str>) -> Result<Item, Error> {
        let entry = entry_at(&self.chunk, self.place.start).map_err(malformed)?;
        let end = entry.end;
        let item = match self.message(entry.clone(), user) {
            Some(message) => Item::Message(message),
            None => self.any(self.chunk.slice(entry), user)?,
        };
        (self.place.start, self.next) = (end, self.next + 1);
        Ok(item)
    }

    /// A message as nodes encode it, which is nearly every entry: no copy, no allocation.
    fn message(&self, entry: Range<usize>, user: &mut Arc<str>) -> Option<Received> {
        let mut fields = Fields::new(&self.chunk, entry);
        let sequence = Sequence(fields.number(1)?);
        let time_ms = fields.number(2)?;
        let mut message = fields.nested(3)?;
        set_user(user, &self.chunk[message.bytes(1)?])?;
        Some(Received {
            room_id: self.room,
            subject: self.subject.clone(),
            sequence,
            ephemeral: self.ephemeral,
            time_ms,
            user: user.clone(),
            device: DeviceId(self.chunk[message.bytes(2)?].try_into().ok()?),
            producer: ProducerId(self.chunk[message.bytes(3)?].try_into().ok()?),
            number: message.number(4)?,
            headers: message.headers()?,
            body: message.last_bytes(6).map(|body| self.chunk.slice(body))?,
        })
    }

    fn any(&self, entry: Bytes, user: &mut Arc<str>) -> Result<Item, Error> {
        let delivery = Delivery::decode(entry).map_err(malformed)?;
        let (room_id, subject) = (self.room, self.subject.clone());
        let (sequence, time_ms) = (Sequence(delivery.sequence), delivery.time_ms);
        match delivery.entry {
            Some(delivery::Entry::Message(message)) => {
                set_user(user, message.user.as_bytes());
                Ok(Item::Message(Received {
                    room_id,
                    subject,
                    sequence,
                    ephemeral: self.ephemeral,
                    time_ms,
                    user: user.clone(),
                    device: DeviceId::from_bytes(&message.device_id).map_err(malformed)?,
                    producer: ProducerId::from_bytes(&message.producer_id).map_err(malformed)?,
                    number: message.number,
                    headers: message.headers,
                    body: message.body,
                }))
            }
            Some(delivery::Entry::Roster(entry)) => {
                let event = entry.event.as_ref().and_then(|event| RosterEvent::decode(event.payload.clone()).ok());
                Ok(Item::Roster(RosterChange { room_id, subject, sequence, time_ms, entry, event }))
            }
            None => {
                Err(malformed(format!("sequence {sequence} holds an entry of an unknown kind; upgrade this client")))
            }
        }
    }
}

/// What a node sent and this client does not understand.
pub(super) fn malformed(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::VersionSkew, format!("subscription: {error}"))
}

fn set_user(user: &mut Arc<str>, name: &[u8]) -> Option<()> {
    if user.as_bytes() != name {
        *user = std::str::from_utf8(name).ok()?.into();
    }
    Some(())
}

/// Reads fields that stand in their order; `None` at anything else, which prost then judges.
struct Fields<'a> {
    chunk: &'a [u8],
    at: usize,
    end: usize,
}

const VARINT: u8 = 0;
const LENGTH_DELIMITED: u8 = 2;

impl<'a> Fields<'a> {
    fn new(chunk: &'a [u8], place: Range<usize>) -> Self {
        Self { chunk, at: place.start, end: place.end }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut rest = self.chunk.get(self.at..self.end)?;
        let value = decode_varint(&mut rest).ok()?;
        self.at = self.end - rest.len();
        Some(value)
    }

    /// Whether this field comes next; then its key is passed.
    fn is_next(&mut self, field: u8, kind: u8) -> bool {
        let is_next = self.at < self.end && self.chunk.get(self.at) == Some(&(field << 3 | kind));
        self.at += usize::from(is_next);
        is_next
    }

    fn number(&mut self, field: u8) -> Option<u64> {
        if self.is_next(field, VARINT) { self.varint() } else { None }
    }

    fn bytes(&mut self, field: u8) -> Option<Range<usize>> {
        if !self.is_next(field, LENGTH_DELIMITED) {
            return None;
        }
        let length = usize::try_from(self.varint()?).ok()?;
        let place = self.at..self.at.checked_add(length).filter(|end| *end <= self.end)?;
        self.at = place.end;
        Some(place)
    }

    /// The field that ends the message; empty when it is not there.
    fn last_bytes(&mut self, field: u8) -> Option<Range<usize>> {
        let place = if self.at == self.end { Some(self.at..self.at) } else { self.bytes(field) };
        place.filter(|_| self.at == self.end)
    }

    /// A message that ends the one around it.
    fn nested(&mut self, field: u8) -> Option<Fields<'a>> {
        let place = self.bytes(field)?;
        (self.at == self.end).then(|| Fields::new(self.chunk, place))
    }

    fn headers(&mut self) -> Option<Vec<Header>> {
        let mut headers = Vec::new();
        while let Some(place) = self.bytes(5) {
            headers.push(Header::decode(&self.chunk[place]).ok()?);
        }
        Some(headers)
    }
}

#[cfg(test)]
mod tests {
    use unibus_proto::v1::{DeliveryBatch, RosterEntry, StoredMessage};

    use super::*;

    fn stored(body: &[u8], headers: Vec<Header>) -> Delivery {
        let message = StoredMessage {
            user: "alice".into(),
            device_id: vec![1; 16].into(),
            producer_id: vec![2; 8].into(),
            number: 300,
            headers,
            body: Bytes::copy_from_slice(body),
        };
        Delivery { sequence: 7, time_ms: 1_709_210_096_789, entry: Some(delivery::Entry::Message(message)) }
    }

    fn run(delivery: &Delivery) -> Run {
        let chunk = DeliveryBatch::of(Bytes::new(), "", std::slice::from_ref(delivery)).into_chunks().remove(0);
        Run {
            room: RoomId([9; 16]),
            subject: "ops.log".into(),
            place: 0..chunk.len(),
            chunk,
            next: 7,
            ephemeral: false,
        }
    }

    /// Both ways to read the entry.
    fn both(delivery: &Delivery) -> (Option<Item>, Result<Item, Error>) {
        let run = run(delivery);
        let entry = entry_at(&run.chunk, 0).unwrap();
        let mut user = Arc::from("bob");
        (run.message(entry.clone(), &mut user).map(Item::Message), run.any(run.chunk.slice(entry), &mut user))
    }

    #[test]
    fn the_short_way_reads_what_prost_reads() {
        let header = |name: &str| Header { name: name.into(), value: "value".into() };
        for delivery in [
            stored(b"body", vec![]),
            stored(b"", vec![]),
            stored(&[0x32; 70_000], vec![header("a"), header("b")]),
            stored(b"", vec![header("")]),
        ] {
            let (short, long) = both(&delivery);
            assert_eq!(short.expect("as nodes encode it"), long.unwrap());
        }
    }

    #[test]
    fn what_is_unusual_goes_the_long_way() {
        let with = |change: fn(&mut StoredMessage)| {
            let mut delivery = stored(b"body", vec![]);
            let Some(delivery::Entry::Message(message)) = &mut delivery.entry else { panic!("a message") };
            change(message);
            delivery
        };
        let odd = [
            with(|message| message.number = 0),
            with(|message| message.device_id = vec![1; 15].into()),
            Delivery { sequence: 0, ..stored(b"", vec![]) },
            Delivery { entry: Some(delivery::Entry::Roster(RosterEntry::default())), ..stored(b"", vec![]) },
            Delivery { entry: None, ..stored(b"", vec![]) },
        ];
        let answers = odd.map(|delivery| {
            let (short, long) = both(&delivery);
            assert_eq!(short, None, "{delivery:?}");
            long.map_err(|error| error.code)
        });
        assert!(matches!(&answers[0], Ok(Item::Message(message)) if message.number == 0));
        assert_eq!(answers[1], Err(ErrorCode::VersionSkew));
        assert!(matches!(&answers[2], Ok(Item::Message(message)) if message.sequence == Sequence(0)));
        assert!(matches!(&answers[3], Ok(Item::Roster(_))));
        assert_eq!(answers[4], Err(ErrorCode::VersionSkew));
    }

    #[test]
    fn a_run_is_taken_to_its_end() {
        let deliveries = [stored(b"a", vec![]), Delivery { sequence: 8, ..stored(b"b", vec![]) }];
        let chunk = DeliveryBatch::of(Bytes::new(), "", &deliveries).into_chunks().remove(0);
        let mut run = Run { place: 0..chunk.len(), chunk, ..run(&deliveries[0]) };
        let mut user = Arc::default();
        let mut bodies = Vec::new();
        while !run.is_empty() {
            let Ok(Item::Message(message)) = run.take(&mut user) else { panic!("a message") };
            bodies.push((message.sequence.0, message.body, run.next));
        }
        assert_eq!(bodies, [(7, Bytes::from("a"), 8), (8, Bytes::from("b"), 9)]);
    }
}
