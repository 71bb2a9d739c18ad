//! Payloads that left memory, read back from the files and checked.

use std::io;

use bytes::Bytes;
use unibus_proto::id::GroupId;

use super::LogEntry;
use super::index::{Found, Place};
use super::recover::file_name;
use super::shared::{Shared, lock};
use crate::env::{DiskFile, Env};
use crate::types::LogId;

/// Neighbours on disk are read together up to so many bytes.
const READ_BYTES_MAX: u32 = 1 << 20;
/// What may lie between neighbours (headers, other groups' entries): a read costs more than reading past it.
const GAP_BYTES_MAX: u32 = 64 << 10;

/// The payloads of `found`.
pub(super) async fn fetch<E: Env>(shared: &Shared<E>, group: GroupId, found: Vec<Found>) -> io::Result<Vec<LogEntry>> {
    let mut entries = Vec::with_capacity(found.len());
    let mut found = found.into_iter().peekable();
    while let Some(first) = found.next() {
        if let Some(payload) = first.payload {
            entries.push(entry(first.log_id, first.place, payload));
            continue;
        }
        let (mut run, mut last) = (vec![(first.log_id, first.place)], first.place);
        while let Some(next) = found.next_if(|next| is_neighbour(&first.place, &last, next)) {
            last = next.place;
            run.push((next.log_id, last));
        }
        let start = first.place.offset;
        let block = read(shared, &first.place, (last.offset - start + last.length) as usize).await?;
        for (log_id, place) in run {
            let at = (place.offset - start) as usize;
            let payload = block.slice(at..at + place.length as usize);
            check(group, log_id.index, &place, &payload)?;
            entries.push(entry(log_id, place, payload));
        }
    }
    Ok(entries)
}

fn entry(log_id: LogId, place: Place, payload: Bytes) -> LogEntry {
    LogEntry { log_id, form: place.form, payload, crc: place.crc }
}

/// Whether `next` lies close behind `last` and is worth reading together with what starts at `first`.
fn is_neighbour(first: &Place, last: &Place, next: &Found) -> bool {
    let place = &next.place;
    let gap = place.offset.checked_sub(last.offset + last.length);
    next.payload.is_none()
        && place.generation == last.generation
        && gap.is_some_and(|gap| gap <= GAP_BYTES_MAX)
        && place.offset - first.offset + place.length <= READ_BYTES_MAX
}

async fn read<E: Env>(shared: &Shared<E>, place: &Place, length: usize) -> io::Result<Bytes> {
    let file = lock(&shared.files).get(&place.generation).cloned();
    let Some(file) = file else {
        let what = format!("read WAL: {} is not in use", file_name(place.generation));
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    };
    file.read_at(place.offset.into(), length).await
}

fn check(group: GroupId, index: u64, place: &Place, payload: &[u8]) -> io::Result<()> {
    let computed = crc32c::crc32c(payload);
    if computed == place.crc {
        return Ok(());
    }
    let Place { generation, offset, crc, .. } = place;
    let file = file_name(*generation);
    let what = format!(
        "read WAL: {file} at byte {offset}: entry {index} of group {group}: checksum {crc:#010x}, computed \
         {computed:#010x}; stop this node and put a new one in its place, the others go on while they are a majority: \
         `unibus-node plan --add`, then `unibusctl node replace`"
    );
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}
