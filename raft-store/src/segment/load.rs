//! Opening the files that a manifest lists.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::{Bytes, BytesMut};

use super::footer::{Summary, TRAILER_BYTES};
use super::format::{HEADER_BYTES, Place};
use super::ledger::{Ledger, OpenSegment};
use super::{SegmentEntry, segment_path};
use crate::env::{Disk, DiskFile, Env, OpenMode, create_dir_durable};
use crate::error::{Damage, StoreError, io_at};
use crate::sum::open_whole;

/// Read at once while scanning.
const PIECE_BYTES: u64 = 1 << 20;

/// Checks every file of the manifest, then cuts the open one to its length and removes the others.
pub async fn load<E: Env>(
    env: &E,
    dir: &Path,
    place: Place,
    manifest: &[SegmentEntry],
    keep: &BTreeSet<u64>,
) -> Result<Ledger, StoreError> {
    create_dir_durable(env.disk(), dir).await.map_err(io_at("create", dir))?;
    let mut ledger = Ledger::new(place);
    for entry in manifest {
        if entry.sealed {
            load_sealed(env, dir, place, entry, &mut ledger).await?;
        } else {
            load_open(env, dir, place, entry, &mut ledger).await?;
        }
    }
    trim(env, dir, manifest, keep).await?;
    Ok(ledger)
}

/// Header, length and footer of a sealed file. Its records are verified whenever they are read.
async fn load_sealed<E: Env>(
    env: &E,
    dir: &Path,
    place: Place,
    entry: &SegmentEntry,
    ledger: &mut Ledger,
) -> Result<(), StoreError> {
    let path = &segment_path(dir, entry.id);
    let file = open_whole(env, path, entry.length.max(HEADER_BYTES)).await?;
    let length = file.len().await.map_err(io_at("measure", path))?;
    if length != entry.length {
        return Err(
            Damage::new(path, entry.length, format!("{length} bytes"), format!("{} bytes", entry.length)).into()
        );
    }
    check_header(&file, path, place, entry.id).await?;
    let damaged = |found: String| Damage::new(path, length, found, "the footer of a sealed segment");
    let trailer = file.read_at(length - TRAILER_BYTES, TRAILER_BYTES as usize).await.map_err(io_at("read", path))?;
    let range = Summary::find(length, &trailer).map_err(damaged)?;
    let bytes = file.read_at(range.start, (range.end - range.start) as usize).await.map_err(io_at("read", path))?;
    let summary = Summary::decode(place, entry.id, range.start, &bytes).map_err(damaged)?;
    ledger.adopt_sealed(*entry, summary);
    Ok(())
}

/// Every record of the open file's prefix, and its hash.
async fn load_open<E: Env>(
    env: &E,
    dir: &Path,
    place: Place,
    entry: &SegmentEntry,
    ledger: &mut Ledger,
) -> Result<(), StoreError> {
    let path = &segment_path(dir, entry.id);
    let file = open_whole(env, path, entry.length.max(HEADER_BYTES)).await?;
    check_header(&file, path, place, entry.id).await?;
    let mut open = OpenSegment::new(entry.id);
    open.extend(&place.encode_header(entry.id));
    let mut rest = Bytes::new();
    while open.length() < entry.length {
        let at = open.length();
        match place.decode_record(entry.id, at, &rest).map_err(|found| Damage::new(path, at, found, "a record"))? {
            Some(record) => {
                let size = record.size as u32;
                open.index(record.room, record.delivery.sequence, at, size)
                    .map_err(|found| Damage::new(path, at, found, "consecutive records of each room"))?;
                open.extend(&rest.split_to(record.size as usize));
            }
            None => rest = more(&file, path, at, rest, entry.length).await?,
        }
    }
    if open.entry(false) != *entry {
        return Err(Damage::new(path, 0, "bytes with another hash", "the hash in the snapshot's manifest").into());
    }
    ledger.adopt_open(open);
    Ok(())
}

/// `rest` (which begins at `at`) with the piece of the file that follows it.
async fn more<F: DiskFile>(file: &F, path: &Path, at: u64, rest: Bytes, end: u64) -> Result<Bytes, StoreError> {
    let from = at + rest.len() as u64;
    if from >= end {
        return Err(Damage::new(path, at, "a record that is cut off", "a whole record").into());
    }
    let piece = file.read_at(from, PIECE_BYTES.min(end - from) as usize).await.map_err(io_at("read", path))?;
    if rest.is_empty() {
        return Ok(piece);
    }
    let mut joined = BytesMut::with_capacity(rest.len() + piece.len());
    joined.extend_from_slice(&rest);
    joined.extend_from_slice(&piece);
    Ok(joined.freeze())
}

async fn check_header<F: DiskFile>(file: &F, path: &Path, place: Place, segment: u64) -> Result<(), StoreError> {
    let header = file.read_at(0, HEADER_BYTES as usize).await.map_err(io_at("read", path))?;
    let damaged = |found| Damage::new(path, 0, found, format!("the header of segment {segment} of {}", place.group));
    place.check_header(segment, &header).map_err(|found| damaged(found).into())
}

/// Removes what the manifest does not list: replay writes it again.
async fn trim<E: Env>(env: &E, dir: &Path, manifest: &[SegmentEntry], keep: &BTreeSet<u64>) -> Result<(), StoreError> {
    // What is newer than the base is written again from its beginning.
    let last = manifest.iter().map(|entry| entry.id).max().unwrap_or(0);
    let keep: BTreeSet<_> = keep.range(..last).map(|id| segment_path(dir, *id)).collect();
    for name in env.disk().list(dir).await.map_err(io_at("list", dir))? {
        let path = &dir.join(&name);
        match manifest.iter().find(|entry| segment_path(dir, entry.id) == *path) {
            None if keep.contains(path) => {}
            None => env.disk().remove_file(path).await.map_err(io_at("remove", path))?,
            Some(entry) if !entry.sealed => {
                let file = env.disk().open(path, OpenMode::Write).await.map_err(io_at("open", path))?;
                file.set_len(entry.length).await.map_err(io_at("cut", path))?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}
