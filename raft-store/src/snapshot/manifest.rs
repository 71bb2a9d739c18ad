//! What a snapshot covers and which files belong to it: the manifest, as a file and on the wire.
//!
//! ```text
//! magic, version, length, SnapshotManifest (protobuf), BLAKE3 of everything before
//! ```

use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use unibus_proto::peer;

use crate::codec::{
    CodecError, decode_hash, decode_log_id, decode_message, decode_segment, decode_stored_membership, encode_log_id,
    encode_segment, encode_stored_membership, required,
};
use crate::env::{Disk, DiskFile, Env, OpenMode};
use crate::error::{Damage, StoreError, io_at};
use crate::segment::{Place, SegmentEntry};
use crate::sum::FileSum;
use crate::tables::StateHash;
use crate::types::SnapshotMeta;

const MAGIC: &[u8; 8] = b"UNIBSNAP";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

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

impl Manifest {
    /// Index of the last entry that it covers.
    pub fn index(&self) -> Option<u64> {
        self.meta.last_log_id.map(|id| id.index)
    }
}

/// A file with the rows from a key on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsFile {
    /// Key of its first row.
    pub first_key: Bytes,
    /// How many rows it holds.
    pub rows: u64,
    /// Length and hash.
    pub sum: FileSum,
}

impl RowsFile {
    /// Its name: by its hash, so that equal files are one.
    pub fn name(&self) -> String {
        let mut name: String = self.sum.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        name.push_str(super::files::ROWS_SUFFIX);
        name
    }
}

/// The manifest file, byte by byte; the same on every replica at the same index.
pub fn encode(place: Place, manifest: &Manifest, rows: &[RowsFile]) -> Bytes {
    let file = |file: &RowsFile| peer::SnapshotRows {
        first_key: file.first_key.clone(),
        rows: file.rows,
        length: file.sum.length,
        hash: file.sum.hash.to_vec().into(),
    };
    let message = peer::SnapshotManifest {
        cluster_id: place.cluster.0.to_vec().into(),
        group: place.group.0,
        last: manifest.meta.last_log_id.as_ref().map(encode_log_id),
        membership: Some(encode_stored_membership(&manifest.meta.last_membership)),
        state_hash: manifest.state_hash.0.to_vec().into(),
        rows: rows.iter().map(file).collect(),
        segments: manifest.segments.iter().map(encode_segment).collect(),
    };
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + message.encoded_len() + HASH_BYTES);
    out.put_slice(MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(message.encoded_len() as u32);
    message.encode(&mut out).expect("a buffer grows");
    let hash = blake3::hash(&out);
    out.put_slice(hash.as_bytes());
    out.freeze()
}

/// Reads a manifest file; nothing is believed before its hash was found right.
pub async fn read<E: Env>(env: &E, path: &Path, place: Place) -> Result<(Manifest, Vec<RowsFile>, Bytes), StoreError> {
    let file = env.disk().open(path, OpenMode::Read).await.map_err(io_at("open", path))?;
    let length = file.len().await.map_err(io_at("measure", path))?;
    let bytes = file.read_at(0, length as usize).await.map_err(io_at("read", path))?;
    let expected = || format!("a snapshot of {} of this cluster", place.group);
    let (manifest, rows) = decode(place, &bytes).map_err(|found| Damage::new(path, 0, found, expected()))?;
    Ok((manifest, rows, bytes))
}

/// The manifest that `bytes` hold.
pub fn decode(place: Place, bytes: &Bytes) -> Result<(Manifest, Vec<RowsFile>), String> {
    let body = bytes.len().checked_sub(HASH_BYTES).filter(|body| *body >= PREFIX_BYTES);
    let body = body.ok_or_else(|| format!("{} bytes", bytes.len()))?;
    let mut prefix = &bytes[..PREFIX_BYTES];
    if &prefix[..8] != MAGIC {
        return Err("another kind of file".into());
    }
    prefix.advance(8);
    let (version, length) = (prefix.get_u32_le(), prefix.get_u32_le() as usize);
    if version > VERSION {
        return Err(format!("format version {version}, newer than {VERSION}"));
    }
    if length != body - PREFIX_BYTES || blake3::hash(&bytes[..body]).as_bytes() != &bytes[body..] {
        return Err("bytes that do not match their hash".into());
    }
    let message: peer::SnapshotManifest =
        decode_message(bytes.slice(PREFIX_BYTES..body), "manifest").map_err(|e| e.to_string())?;
    if message.cluster_id != place.cluster.0[..] || message.group != place.group.0 {
        return Err(format!("a snapshot of group {} of cluster {:02x?}", message.group, &message.cluster_id[..]));
    }
    from_message(message).map_err(|error| error.to_string())
}

fn from_message(message: peer::SnapshotManifest) -> Result<(Manifest, Vec<RowsFile>), CodecError> {
    let membership = required(message.membership.as_ref(), "membership of a snapshot")?;
    let last_membership = decode_stored_membership(membership)?;
    let meta = SnapshotMeta { last_log_id: message.last.as_ref().map(decode_log_id), last_membership };
    let state_hash = StateHash(decode_hash(&message.state_hash, "state hash of a snapshot")?);
    let segments = message.segments.iter().map(decode_segment).collect::<Result<_, _>>()?;
    let file = |file: peer::SnapshotRows| {
        let sum = FileSum { length: file.length, hash: decode_hash(&file.hash, "hash of a file of rows")? };
        Ok(RowsFile { first_key: file.first_key, rows: file.rows, sum })
    };
    let rows = message.rows.into_iter().map(file).collect::<Result<_, CodecError>>()?;
    Ok((Manifest { meta, state_hash, segments }, rows))
}
