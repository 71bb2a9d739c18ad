//! Entries on their way to the subscribers of a room: encoded once for all of them.

use bytes::Bytes;
use unibus_machine::StoredDelivery;
use unibus_proto::delivery::{ChunkWriter, cut_chunk, entry_bytes};
use unibus_proto::id::RoomId;

/// Bytes of entries that travel together, as far as one is not larger.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Consecutive entries of a room. Cheap to clone; holds on to nothing but these entries: with the log entry
/// that brought them, a slow subscriber of a quiet room would hold on to the bodies of all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// The room.
    pub room: RoomId,
    /// Sequence of the first.
    pub first: u64,
    /// How many; at least one.
    pub count: u64,
    /// As a chunk of a `DeliveryBatch`.
    pub bytes: Bytes,
}

impl Entries {
    /// One past the sequence of the last.
    pub fn end(&self) -> u64 {
        self.first + self.count
    }

    /// Those from `from` up to before `end`.
    pub fn within(&self, from: u64, end: u64) -> Option<Self> {
        let (first, end) = (self.first.max(from), self.end().min(end));
        if first >= end {
            return None;
        }
        let wanted = (first - self.first) as usize..(end - self.first) as usize;
        let bytes = match end - first == self.count {
            true => self.bytes.clone(),
            false => cut_chunk(&self.bytes, wanted).expect("this process joined them"),
        };
        Some(Self { room: self.room, first, count: end - first, bytes })
    }
}

/// Messages of one ephemeral room that travel together. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Burst {
    /// The room.
    pub room: RoomId,
    /// How many; at least one.
    pub count: u32,
    /// As a chunk of a `DeliveryBatch`.
    pub bytes: Bytes,
}

/// Joins entries of one room that follow each other.
#[derive(Debug, Default)]
pub struct Joiner<'a> {
    room: RoomId,
    waiting: Vec<&'a StoredDelivery>,
    bytes: usize,
}

impl<'a> Joiner<'a> {
    /// Adds an entry; answers those before it when it does not go with them.
    pub fn add(&mut self, room: RoomId, delivery: &'a StoredDelivery) -> Option<Entries> {
        let bytes = entry_bytes(delivery.bytes.len());
        let follows = self.waiting.last().is_some_and(|last| last.sequence.next() == delivery.sequence);
        let before = match follows && room == self.room && self.bytes + bytes <= CHUNK_BYTES {
            true => None,
            false => self.finish(),
        };
        self.room = room;
        self.bytes += bytes;
        self.waiting.push(delivery);
        before
    }

    /// Those that wait.
    pub fn finish(&mut self) -> Option<Entries> {
        let first = self.waiting.first()?.sequence.0;
        let mut chunk = ChunkWriter::with_capacity(std::mem::take(&mut self.bytes));
        let count = self.waiting.len() as u64;
        self.waiting.drain(..).for_each(|delivery| chunk.push(&delivery.bytes));
        Some(Entries { room: self.room, first, count, bytes: chunk.finish() })
    }

    /// All entries of a room that were read.
    pub fn join(room: RoomId, deliveries: &'a [StoredDelivery]) -> Vec<Entries> {
        let mut joiner = Self::default();
        let mut joined: Vec<_> = deliveries.iter().filter_map(|delivery| joiner.add(room, delivery)).collect();
        joined.extend(joiner.finish());
        joined
    }
}

#[cfg(test)]
mod tests {
    use unibus_proto::position::Sequence;

    use super::*;

    const ROOM: RoomId = RoomId([1; 16]);

    fn deliveries(first: u64, sizes: &[usize]) -> Vec<StoredDelivery> {
        let delivery = |(n, &size): (u64, &usize)| StoredDelivery {
            sequence: Sequence(first + n),
            at_ms: 1,
            bytes: vec![n as u8; size].into(),
        };
        (0..).zip(sizes).map(delivery).collect()
    }

    #[test]
    fn chunks_hold_everything_once_and_are_of_bounded_size() {
        let sizes = [10, CHUNK_BYTES - 100, 10, CHUNK_BYTES - 20, 10, 1 << 20, 1];
        let joined = Joiner::join(ROOM, &deliveries(5, &sizes)).into_iter();
        let joined: Vec<_> = joined.map(|entries| (entries.first, entries.count, entries.bytes.len())).collect();
        let size = |length: usize| entry_bytes(length);
        let first: usize = sizes[..3].iter().copied().map(size).sum();
        let second: usize = sizes[3..5].iter().copied().map(size).sum();
        assert_eq!(joined, [(5, 3, first), (8, 2, second), (10, 1, size(1 << 20)), (11, 1, size(1))]);
        assert!(Joiner::join(ROOM, &[]).is_empty());
    }

    #[test]
    fn only_what_follows_in_the_same_room_is_joined() {
        let (first, gap) = (deliveries(1, &[1, 2]), deliveries(9, &[3]));
        let mut joiner = Joiner::default();
        assert_eq!(joiner.add(ROOM, &first[0]), None);
        assert_eq!(joiner.add(ROOM, &first[1]), None);
        assert_eq!(joiner.add(ROOM, &gap[0]).map(|entries| (entries.first, entries.count)), Some((1, 2)));
        let other = joiner.add(RoomId([2; 16]), &gap[0]).expect("another room");
        assert_eq!((other.room, other.first, other.end()), (ROOM, 9, 10));
        assert_eq!(joiner.finish().expect("one waits").room, RoomId([2; 16]));
        assert_eq!(joiner.finish(), None);
    }

    #[test]
    fn a_part_is_what_lies_within() {
        let all = Joiner::join(ROOM, &deliveries(5, &[1, 200, 3])).remove(0);
        assert_eq!(all.within(0, u64::MAX), Some(all.clone()));
        assert_eq!(all.within(8, u64::MAX), None);
        assert_eq!(all.within(0, 5), None);
        let middle = all.within(6, 7).expect("one lies within");
        assert_eq!((middle.first, middle.count, middle.bytes.len()), (6, 1, entry_bytes(200)));
        assert_eq!(middle.within(6, 7), Some(middle.clone()));
    }
}
