//! Verifies sealed files in the background: what nobody reads may be damaged long before it is asked for.

use std::future::Future;
use std::io;

use super::ledger::Sealed;
use super::{SegmentEntry, Segments, segment_path};
use crate::env::{DiskFile, Env, OpenMode};
use crate::sum::{BLOCK_BYTES, FileHasher};

/// Read at once.
const PIECE_BYTES: u64 = 256 << 10;

impl<E: Env> Segments<E> {
    /// The sealed files that are written out, ascending.
    pub fn scrubbable(&self) -> Vec<u64> {
        let ledger = self.ledger();
        let written = |sealed: &&Sealed| ledger.is_written(sealed.entry.id);
        ledger.all_sealed().filter(written).map(|sealed| sealed.entry.id).collect()
    }

    /// The files that were found damaged, and are still there.
    pub fn damaged(&self) -> Vec<u64> {
        let damaged = self.damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        damaged.iter().copied().filter(|id| self.sealed(*id).is_some()).collect()
    }

    /// Verifies a sealed file; `pause` is awaited after each piece, with its bytes. Answers what is wrong
    /// with it, none when it is whole or no longer there.
    pub async fn scrub<F: Future<Output = ()>>(&self, id: u64, pause: impl Fn(u64) -> F) -> Option<String> {
        let sealed = self.ledger().sealed(id).cloned()?;
        let found = self.verify(&sealed, pause).await.unwrap_or_else(|error| Some(format!("read: {error}")));
        // Dropped or exchanged meanwhile: then it says nothing.
        let found = found.filter(|_| self.sealed(id) == Some(sealed.entry))?;
        let path = segment_path(self.dir(), id);
        tracing::error!(group = %self.place.group, path = %path.display(), found, "sealed segment is damaged: what is read from it is checked and not served; read from another node");
        self.damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(id);
        Some(found)
    }

    async fn verify<F: Future<Output = ()>>(
        &self,
        sealed: &Sealed,
        pause: impl Fn(u64) -> F,
    ) -> io::Result<Option<String>> {
        let SegmentEntry { id, length, hash, .. } = sealed.entry;
        let file = self.file(id, OpenMode::Read).await?;
        let mut hasher = FileHasher::default();
        while hasher.length() < length {
            let piece = PIECE_BYTES.min(length - hasher.length());
            hasher.update(&file.read_at(hasher.length(), piece as usize).await?);
            pause(piece).await;
        }
        if hasher.sum().hash == hash {
            return Ok(None);
        }
        let range = sealed.summary.blocks_range();
        let bytes = file.read_at(range.start, (range.end - range.start) as usize).await?;
        Ok(Some(match sealed.summary.decode_blocks(self.place, id, &bytes) {
            Ok(blocks) => first_difference(&blocks, &hasher.blocks(), sealed.summary.data_bytes),
            Err(found) => found,
        }))
    }
}

fn first_difference(expected: &[[u8; 32]], found: &[[u8; 32]], data_bytes: u64) -> String {
    // The last block of the records goes on with the footer in the file.
    let whole = (data_bytes / BLOCK_BYTES) as usize;
    match expected.iter().zip(found).take(whole).position(|(expected, found)| expected != found) {
        Some(block) => format!("the 64 KiB from byte {} have another hash", block as u64 * BLOCK_BYTES),
        None => format!("the bytes from {} on have another hash", whole as u64 * BLOCK_BYTES),
    }
}
