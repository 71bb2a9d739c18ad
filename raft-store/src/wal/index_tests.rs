use super::*;
use crate::types::log_id;
use unibus_proto::id::NodeId;

fn entry(term: u64, index: u64) -> LogEntry {
    LogEntry::new(log_id(term, NodeId(1), index), Form::Normal, Bytes::from(vec![index as u8; 10]))
}

fn entries(term: u64, range: Range<u64>) -> Vec<LogEntry> {
    range.map(|index| entry(term, index)).collect()
}

fn indexes(index: &Index) -> Vec<(u64, u64)> {
    let found = index.find(0..u64::MAX, u64::MAX);
    found.iter().map(|found| (found.log_id.leader_id.term, found.log_id.index)).collect()
}

#[test]
fn a_truncated_append_does_not_count_as_flushed() {
    let mut index = Index::default();
    let (old, new) = (entries(1, 0..5), entries(2, 2..4));
    let first = index.append(&old);
    index.truncate_after(Some(1));
    let second = index.append(&new);
    index.written(first, &old, 1, 0);
    assert_eq!(index.flushed(), Some(1), "2.. of the first append are gone, the second is not written");
    assert_eq!(index.evict(usize::MAX), 20, "only what is flushed may leave memory");
    index.written(second, &new, 1, 1000);
    assert_eq!(index.flushed(), Some(3));
    assert_eq!(indexes(&index), [(1, 0), (1, 1), (2, 2), (2, 3)]);
    index.evict(usize::MAX);
    let found = index.find(0..9, u64::MAX);
    assert!(found.iter().all(|found| found.payload.is_none()));
    let offsets = found.iter().map(|found| found.place.offset);
    assert_eq!(offsets.collect::<Vec<_>>(), [0, 10, 1000, 1010]);
}

#[test]
fn an_append_that_was_truncated_whole_flushes_nothing() {
    let mut index = Index::default();
    let (base, old, new) = (entries(1, 0..5), entries(1, 5..10), entries(2, 3..8));
    let tickets = [index.append(&base), index.append(&old)];
    index.written(tickets[0], &base, 1, 0);
    index.truncate_after(Some(2));
    let ticket = index.append(&new);
    index.written(tickets[1], &old, 1, 500);
    assert_eq!(index.flushed(), Some(2), "3.. are new and not written");
    index.written(ticket, &new, 1, 1000);
    assert_eq!(index.flushed(), Some(7));
}

#[test]
fn a_purge_beyond_the_end_empties_the_log() {
    let mut index = Index::default();
    index.append(&entries(1, 0..5));
    let beyond = log_id(3, NodeId(2), 9);
    index.purge(beyond);
    assert_eq!((index.last(), index.next(), index.flushed()), (Some(beyond), Some(10), Some(9)));
    assert_eq!((index.tail_bytes(), indexes(&index)), (0, vec![]));
    index.append(&entries(4, 10..12));
    assert_eq!(indexes(&index), [(4, 10), (4, 11)]);
}

#[test]
fn the_byte_cap_never_empties_an_answer() {
    let mut index = Index::default();
    index.append(&entries(1, 0..5));
    assert_eq!(index.find(0..5, 25).len(), 2);
    assert_eq!(index.find(0..5, 1).len(), 1);
    assert_eq!(index.find(7..9, 1).len(), 0);
}

#[test]
fn key_log_ids_are_the_last_of_each_leader() {
    let mut index = Index::default();
    index.append(&entries(1, 0..3));
    index.append(&entries(2, 3..6));
    index.append(&entries(5, 6..8));
    let keys = |first, last| index.key_log_ids(first, last).iter().map(|id| id.index).collect::<Vec<_>>();
    assert_eq!(keys(0, 7), [2, 5, 7]);
    assert_eq!(keys(1, 3), [2, 3]);
    assert_eq!(keys(3, 5), [5]);
    assert_eq!(keys(4, 4), [4]);
    assert_eq!(keys(8, 9), Vec::<u64>::new());
}

#[test]
fn purge_keeps_the_leader_of_what_stays() {
    let mut index = Index::default();
    index.append(&entries(1, 0..3));
    index.append(&entries(2, 3..6));
    index.purge(log_id(1, NodeId(1), 1));
    assert_eq!(indexes(&index), [(1, 2), (2, 3), (2, 4), (2, 5)]);
    index.purge(log_id(2, NodeId(1), 3));
    assert_eq!(indexes(&index), [(2, 4), (2, 5)]);
    assert_eq!(index.tail_bytes(), 20);
    index.truncate_after(None);
    assert_eq!((index.last().map(|id| id.index), index.next()), (Some(3), Some(4)));
}
