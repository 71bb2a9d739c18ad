//! The bytes of a file of rows.
//!
//! ```text
//! header (40 bytes)  magic, version, group, cluster, zeros, CRC
//! block              length, rows, CRC, rows           (repeated; some 64 KiB each)
//! row                key length, value length, key, value
//! ```
//! A block's CRC-32C covers cluster, group and offset as well. Where blocks and files end follows from the
//! rows alone: replicas write the same files.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::rows::RowPage;
use crate::segment::Place;

/// A file ends with the block that reaches this.
pub const FILE_BYTES: u64 = 8 << 20;
/// Bytes before the first block.
pub const HEADER_BYTES: usize = 40;
const BLOCK_BYTES: usize = 64 << 10;
const BLOCK_HEAD_BYTES: usize = 12;
const MAGIC: &[u8; 8] = b"UNIBROWS";
const VERSION: u32 = 1;
/// Stands for "rows" where a segment's checksums have its id.
const ROWS: u64 = u64::MAX;

/// The header of each file.
pub fn header(place: Place) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_BYTES);
    out.put_slice(MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(place.group.0);
    out.put_slice(&place.cluster.0);
    out.resize(HEADER_BYTES - 4, 0);
    out.put_u32_le(crc32c::crc32c(&out));
    out.freeze()
}

/// Checks the header of a file.
pub fn check_header(place: Place, bytes: &[u8]) -> Result<(), String> {
    if bytes == header(place) {
        return Ok(());
    }
    let version = bytes.get(8..12).map_or(0, |version| u32::from_le_bytes(version.try_into().expect("4 bytes")));
    if version > VERSION && &bytes[..8] == MAGIC {
        return Err(format!("format version {version}, newer than {VERSION}"));
    }
    Err("the header of another file, or an altered one".into())
}

/// Collects the rows of a block.
#[derive(Default)]
pub struct BlockBuilder {
    payload: BytesMut,
    rows: u32,
}

impl BlockBuilder {
    /// Adds a row.
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.payload.put_u32_le(key.len() as u32);
        self.payload.put_u32_le(value.len() as u32);
        self.payload.put_slice(key);
        self.payload.put_slice(value);
        self.rows += 1;
    }

    /// Whether it is to be written.
    pub fn is_full(&self) -> bool {
        self.payload.len() >= BLOCK_BYTES
    }

    /// Rows so far.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// The block that is to stand at `offset`; the builder is empty again.
    pub fn take(&mut self, place: Place, offset: u64) -> Bytes {
        let payload = self.payload.split();
        let rows = std::mem::take(&mut self.rows);
        let mut out = BytesMut::with_capacity(BLOCK_HEAD_BYTES + payload.len());
        out.put_u32_le(payload.len() as u32);
        out.put_u32_le(rows);
        out.put_u32_le(crc(place, offset, rows, &payload));
        out.put_slice(&payload);
        out.freeze()
    }
}

fn crc(place: Place, offset: u64, rows: u32, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(place.index_crc(ROWS, offset, &rows.to_le_bytes()), payload)
}

/// The rows of the block at the start of `bytes`, which stand at `offset`, and its size; none when more bytes
/// are needed.
pub fn decode(place: Place, offset: u64, bytes: &Bytes) -> Result<Option<(RowPage, usize)>, String> {
    if bytes.len() < BLOCK_HEAD_BYTES {
        return Ok(None);
    }
    let mut head = &bytes[..BLOCK_HEAD_BYTES];
    let (length, rows, expected) = (head.get_u32_le() as usize, head.get_u32_le(), head.get_u32_le());
    let size = BLOCK_HEAD_BYTES + length;
    if bytes.len() < size {
        return Ok(None);
    }
    let payload = bytes.slice(BLOCK_HEAD_BYTES..size);
    if crc(place, offset, rows, &payload) != expected {
        return Err("a block whose checksum does not match".into());
    }
    let page = decode_rows(payload).filter(|page| page.len() == rows as usize);
    Ok(Some((page.ok_or("a block with rows that are cut off")?, size)))
}

fn decode_rows(mut bytes: Bytes) -> Option<RowPage> {
    let mut page = RowPage::new();
    while !bytes.is_empty() {
        let (key, value) = (bytes.try_get_u32_le().ok()? as usize, bytes.try_get_u32_le().ok()? as usize);
        if key.checked_add(value)? > bytes.len() {
            return None;
        }
        // A copy: a row that is kept must not hold on to its whole block.
        page.push((Bytes::copy_from_slice(&bytes[..key]), Bytes::copy_from_slice(&bytes[key..key + value])));
        bytes.advance(key + value);
    }
    Some(page)
}
