//! The bytes of a snapshot's rows file.
//!
//! ```text
//! magic, version, length of the header
//! header   cluster, group, log id, membership, state hash, manifest of segments; CRC
//! rows     key length, value length, key, value        (repeated, ascending)
//! BLAKE3 of everything before
//! ```
//! Everything is little-endian.

use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use unibus_proto::peer;

use crate::codec::{decode_log_id, decode_message, decode_stored_membership, encode_log_id, encode_stored_membership};
use crate::env::{Disk, DiskFile, Env, OpenMode};
use crate::error::{Damage, StoreError, io_at};
use crate::segment::{Place, SegmentEntry};
use crate::sum::{FileHasher, FileSum};
use crate::tables::StateHash;
use crate::types::SnapshotMeta;

use super::rows::{PAGE_ROWS, RowPage, RowSource};

const MAGIC: &[u8; 8] = b"UNIBSNP1";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 16;
const SEGMENT_BYTES: usize = 49;
/// Written or read at once.
pub const PIECE_BYTES: usize = 1 << 20;

/// What a snapshot covers and which segment files belong to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Last entry and membership at it.
    pub meta: SnapshotMeta,
    /// Hash of the rows.
    pub state_hash: StateHash,
    /// The segment files; the open one is a prefix.
    pub segments: Vec<SegmentEntry>,
}

/// Writes the rows file and makes its bytes durable.
pub async fn write<E: Env>(
    env: &E,
    path: &Path,
    place: Place,
    manifest: &Manifest,
    rows: &dyn RowSource,
) -> Result<FileSum, StoreError> {
    let file = env.disk().open(path, OpenMode::Truncate).await.map_err(io_at("create", path))?;
    let mut hasher = blake3::Hasher::new();
    let mut sum = FileHasher::default();
    let mut piece = encode_head(place, manifest);
    let mut last: Option<Bytes> = None;
    loop {
        let page = rows.scan(last.as_deref(), PAGE_ROWS).await?;
        let done = page.is_empty();
        last = page.last().map(|(key, _)| key.clone());
        page.iter().for_each(|row| put_row(&mut piece, row));
        hasher.update(&piece);
        if done {
            let whole: [u8; 32] = hasher.finalize().into();
            piece.put_slice(&whole);
        }
        let bytes = piece.split().freeze();
        let at = sum.length();
        sum.update(&bytes);
        if done {
            file.write_at_sync(at, vec![bytes]).await.map_err(io_at("write", path))?;
            return Ok(sum.sum());
        }
        file.write_at(at, vec![bytes]).await.map_err(io_at("write", path))?;
    }
}

fn put_row(piece: &mut BytesMut, (key, value): &(Bytes, Bytes)) {
    piece.put_u32_le(key.len() as u32);
    piece.put_u32_le(value.len() as u32);
    piece.put_slice(key);
    piece.put_slice(value);
}

fn encode_head(place: Place, manifest: &Manifest) -> BytesMut {
    let mut head = BytesMut::new();
    head.put_slice(&place.cluster.0);
    head.put_u32_le(place.group.0);
    let log_id = manifest.meta.last_log_id.as_ref().map(|id| encode_log_id(id).encode_to_vec());
    put_bytes(&mut head, log_id.as_deref().unwrap_or_default());
    head.put_u8(u8::from(log_id.is_some()));
    put_bytes(&mut head, &encode_stored_membership(&manifest.meta.last_membership).encode_to_vec());
    head.put_slice(&manifest.state_hash.0);
    head.put_u32_le(manifest.segments.len() as u32);
    for entry in &manifest.segments {
        head.put_u64_le(entry.id);
        head.put_u64_le(entry.length);
        head.put_slice(&entry.hash);
        head.put_u8(u8::from(entry.sealed));
    }
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + head.len() + 4);
    out.put_slice(MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(head.len() as u32);
    out.put_slice(&head);
    out.put_u32_le(crc32c::crc32c(&out));
    out
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

/// Reads a rows file whole; nothing is believed before its hash was found right.
pub async fn read<E: Env>(env: &E, path: &Path, place: Place) -> Result<(Manifest, RowPage, FileSum), StoreError> {
    let (bytes, sum) = read_whole(env, path).await?;
    let (manifest, rows) = parse(path, place, &bytes)?;
    if StateHash::of(rows.iter().map(|(key, value)| (key, value))) != manifest.state_hash {
        return Err(Damage::new(path, 0, "rows that do not add up to the state hash", "those that were written").into());
    }
    Ok((manifest, rows, sum))
}

async fn read_whole<E: Env>(env: &E, path: &Path) -> Result<(Bytes, FileSum), StoreError> {
    let file = env.disk().open(path, OpenMode::Read).await.map_err(io_at("open", path))?;
    let length = file.len().await.map_err(io_at("measure", path))?;
    let bytes = file.read_at(0, length as usize).await.map_err(io_at("read", path))?;
    let body = bytes.len().checked_sub(32).filter(|body| *body >= PREFIX_BYTES);
    let body = body.ok_or_else(|| Damage::new(path, length, format!("{length} bytes"), "a whole snapshot"))?;
    if blake3::hash(&bytes[..body]).as_bytes() != &bytes[body..] {
        return Err(Damage::new(path, 0, "bytes that do not match their hash", "a whole, unaltered snapshot").into());
    }
    Ok((bytes.slice(..body), FileSum::of(&bytes)))
}

fn parse(path: &Path, place: Place, bytes: &Bytes) -> Result<(Manifest, RowPage), StoreError> {
    let damaged = |found: &str| Damage::new(path, 0, found, format!("a snapshot of {} of this cluster", place.group));
    let mut prefix = &bytes[..PREFIX_BYTES];
    if &prefix[..8] != MAGIC {
        return Err(damaged("another kind of file").into());
    }
    prefix.advance(8);
    let (version, head) = (prefix.get_u32_le(), prefix.get_u32_le() as usize);
    if version > VERSION {
        return Err(damaged(&format!("format version {version}, newer than {VERSION}")).into());
    }
    let end = PREFIX_BYTES + head;
    if bytes.len() < end + 4 || crc32c::crc32c(&bytes[..end]) != (&bytes[end..end + 4]).get_u32_le() {
        return Err(damaged("a header whose checksum does not match").into());
    }
    let manifest = parse_head(place, &bytes[PREFIX_BYTES..end]).map_err(|found| damaged(&found))?;
    let rows = parse_rows(&bytes[end + 4..]).ok_or_else(|| damaged("rows that are cut off"))?;
    Ok((manifest, rows))
}

fn parse_head(place: Place, mut head: &[u8]) -> Result<Manifest, String> {
    const SHORT: &str = "a header that is cut off";
    if take(&mut head, 16).ok_or(SHORT)? != place.cluster.0 {
        return Err("a snapshot of another cluster".into());
    }
    let group = head.try_get_u32_le().map_err(|_| SHORT)?;
    if group != place.group.0 {
        return Err(format!("a snapshot of group {group}"));
    }
    let log_id = take_bytes(&mut head).ok_or(SHORT)?;
    let last_log_id = match head.try_get_u8().map_err(|_| SHORT)? {
        0 => None,
        _ => Some(decode_log_id(&decode_message(log_id, "log id").map_err(|e| e.to_string())?)),
    };
    let membership: peer::StoredMembership =
        decode_message(take_bytes(&mut head).ok_or(SHORT)?, "membership").map_err(|e| e.to_string())?;
    let last_membership = decode_stored_membership(&membership).map_err(|e| e.to_string())?;
    let state_hash = StateHash(take(&mut head, 32).ok_or(SHORT)?.try_into().expect("32 bytes"));
    let count = head.try_get_u32_le().map_err(|_| SHORT)? as usize;
    let entries = take(&mut head, count.saturating_mul(SEGMENT_BYTES)).ok_or(SHORT)?;
    let segments = entries.chunks_exact(SEGMENT_BYTES).map(parse_segment).collect();
    Ok(Manifest { meta: SnapshotMeta { last_log_id, last_membership }, state_hash, segments })
}

fn parse_segment(mut bytes: &[u8]) -> SegmentEntry {
    let (id, length) = (bytes.get_u64_le(), bytes.get_u64_le());
    let hash = bytes[..32].try_into().expect("32 bytes");
    SegmentEntry { id, length, hash, sealed: bytes[32] == 1 }
}

fn parse_rows(mut bytes: &[u8]) -> Option<RowPage> {
    let mut rows = RowPage::new();
    while !bytes.is_empty() {
        let key = bytes.try_get_u32_le().ok()? as usize;
        let value = bytes.try_get_u32_le().ok()? as usize;
        let key = Bytes::copy_from_slice(take(&mut bytes, key)?);
        rows.push((key, Bytes::copy_from_slice(take(&mut bytes, value)?)));
    }
    Some(rows)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn take_bytes(bytes: &mut &[u8]) -> Option<Bytes> {
    let length = bytes.try_get_u32_le().ok()? as usize;
    take(bytes, length).map(Bytes::copy_from_slice)
}

/// Length and hash of a file, or of its first `length` bytes.
pub async fn sum<E: Env>(env: &E, path: &Path, length: u64) -> Result<FileSum, StoreError> {
    let file = env.disk().open(path, OpenMode::Read).await.map_err(io_at("open", path))?;
    let mut hasher = FileHasher::default();
    while hasher.length() < length {
        let piece = (length - hasher.length()).min(PIECE_BYTES as u64);
        hasher.update(&file.read_at(hasher.length(), piece as usize).await.map_err(io_at("read", path))?);
    }
    Ok(hasher.sum())
}
