//! The checkpoint file of a group: the newest checkpoint, and the rows that it changed. It is whole on disk
//! before the tree hears of any of them, so a checkpoint is atomic whatever the tree makes of a crash.
//!
//! ```text
//! magic, version, length of the head
//! head     CheckpointHead: cluster, group, tree, the checkpoint before, marker
//! rows     key length, value length or 2^32 - 1 for a deleted row, key, value      (repeated, ascending)
//! BLAKE3 of everything before
//! ```
//! Everything is little-endian.

use std::path::{Path, PathBuf};

use blake3::Hasher;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use unibus_proto::peer;

use super::marker::Marker;
use crate::codec::decode_hash;
use crate::env::{Disk, DiskFile, Env, OpenMode};
use crate::error::{Damage, StoreError, io_at};
use crate::segment::Place;
use crate::tables::Overlay;
use crate::tree::TreeWrite;

const MAGIC: &[u8; 8] = b"UNIBCKP1";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// The value length of a deleted row.
const DELETED: u32 = u32::MAX;
/// Written at once.
const PIECE_BYTES: usize = 1 << 20;

/// A checkpoint file.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointFile {
    /// The tree that it belongs to.
    pub tree: u64,
    /// The checkpoint that the tree was at before, by name.
    pub base: [u8; 32],
    /// The checkpoint.
    pub marker: Marker,
    /// What changed between the two.
    pub rows: Vec<TreeWrite>,
}

/// Where the file of a group is.
pub fn path_in(dir: &Path) -> PathBuf {
    dir.join("checkpoint")
}

/// Replaces the file durably; the one before is whole until then.
pub async fn write<E: Env>(
    env: &E,
    dir: &Path,
    place: Place,
    (tree, base, marker): (u64, [u8; 32], &Marker),
    rows: &Overlay,
) -> Result<(), StoreError> {
    let path = path_in(dir);
    let tmp = path.with_extension("tmp");
    let file = env.disk().open(&tmp, OpenMode::Truncate).await.map_err(io_at("create", &tmp))?;
    let mut writer =
        Writer { file, path: &tmp, piece: encode_head(place, tree, base, marker), at: 0, hasher: Hasher::new() };
    for (key, value) in rows.iter() {
        put_row(&mut writer.piece, key, value);
        if writer.piece.len() >= PIECE_BYTES {
            writer.flush().await?;
        }
    }
    writer.finish().await?;
    env.disk().rename(&tmp, &path).await.map_err(io_at("rename", &path))?;
    env.disk().sync_dir(dir).await.map_err(io_at("sync", dir))
}

struct Writer<'a, F> {
    file: F,
    path: &'a Path,
    piece: BytesMut,
    at: u64,
    hasher: Hasher,
}

impl<F: DiskFile> Writer<'_, F> {
    async fn flush(&mut self) -> Result<(), StoreError> {
        let bytes = self.piece.split().freeze();
        self.hasher.update(&bytes);
        let at = self.at;
        self.at += bytes.len() as u64;
        self.file.write_at(at, vec![bytes]).await.map_err(io_at("write", self.path))
    }

    async fn finish(mut self) -> Result<(), StoreError> {
        self.hasher.update(&self.piece);
        self.piece.put_slice(self.hasher.finalize().as_bytes());
        let last = self.piece.split().freeze();
        self.file.write_at_sync(self.at, vec![last]).await.map_err(io_at("write", self.path))
    }
}

fn encode_head(place: Place, tree: u64, base: [u8; 32], marker: &Marker) -> BytesMut {
    let head = peer::CheckpointHead {
        cluster_id: Bytes::copy_from_slice(&place.cluster.0),
        group: place.group.0,
        tree,
        base: Bytes::copy_from_slice(&base),
        marker: Some(marker.to_message()),
    };
    let head = head.encode_to_vec();
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + head.len());
    out.put_slice(MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(head.len() as u32);
    out.put_slice(&head);
    out
}

fn put_row(out: &mut BytesMut, key: &Bytes, value: Option<&Bytes>) {
    out.put_u32_le(key.len() as u32);
    out.put_u32_le(value.map_or(DELETED, |value| value.len() as u32));
    out.put_slice(key);
    out.put_slice(value.map_or(&[], |value| value));
}

/// Reads the file; none when there is none.
pub async fn read<E: Env>(env: &E, dir: &Path, place: Place) -> Result<Option<CheckpointFile>, StoreError> {
    let path = &path_in(dir);
    if !env.disk().exists(path).await.map_err(io_at("look for", path))? {
        return Ok(None);
    }
    let file = env.disk().open(path, OpenMode::Read).await.map_err(io_at("open", path))?;
    let length = file.len().await.map_err(io_at("measure", path))?;
    let bytes = file.read_at(0, length as usize).await.map_err(io_at("read", path))?;
    let damaged = |found: String| Damage::new(path, 0, found, format!("a whole checkpoint of {}", place.group));
    parse(place, bytes).map(Some).map_err(|found| damaged(found).into())
}

fn parse(place: Place, mut bytes: Bytes) -> Result<CheckpointFile, String> {
    let short = || "a file that is cut off".to_string();
    let body = bytes.len().checked_sub(HASH_BYTES).filter(|body| *body >= PREFIX_BYTES).ok_or_else(short)?;
    if blake3::hash(&bytes[..body]).as_bytes() != &bytes[body..] {
        return Err("bytes that do not match their hash".into());
    }
    bytes.truncate(body);
    if bytes.split_to(MAGIC.len()) != MAGIC[..] {
        return Err("another kind of file".into());
    }
    let (version, head) = (bytes.get_u32_le(), bytes.get_u32_le() as usize);
    if version > VERSION {
        return Err(format!("format version {version}, newer than {VERSION}"));
    }
    let head = (head <= bytes.len()).then(|| bytes.split_to(head)).ok_or_else(short)?;
    let head = peer::CheckpointHead::decode(head).map_err(|error| error.to_string())?;
    if head.cluster_id[..] != place.cluster.0 || head.group != place.group.0 {
        return Err(format!("a checkpoint of group {} of another cluster or group", head.group));
    }
    let marker = head.marker.ok_or("a head without a marker")?;
    let marker = Marker::from_message(&marker).map_err(|error| error.to_string())?;
    let base = decode_hash(&head.base, "checkpoint before").map_err(|error| error.to_string())?;
    Ok(CheckpointFile { tree: head.tree, base, marker, rows: parse_rows(bytes).ok_or_else(short)? })
}

fn parse_rows(mut bytes: Bytes) -> Option<Vec<TreeWrite>> {
    let mut rows = vec![];
    while !bytes.is_empty() {
        let key = bytes.try_get_u32_le().ok()? as usize;
        let value = Some(bytes.try_get_u32_le().ok()?).filter(|length| *length != DELETED);
        let stored = value.unwrap_or(0) as usize;
        if bytes.len() < key.checked_add(stored)? {
            return None;
        }
        let key = bytes.split_to(key);
        let stored = bytes.split_to(stored);
        rows.push((key, value.map(|_| stored)));
    }
    Some(rows)
}
