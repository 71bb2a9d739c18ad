//! Length and hash of a file: BLAKE3 over the BLAKE3 of each of its blocks. Each byte is hashed once,
//! and the same pass gives what locates damage later.

use std::io;
use std::path::Path;

use bytes::{BufMut, BytesMut};

use crate::env::{Disk, DiskFile, Env, OpenMode};
use crate::error::{Damage, StoreError, io_at};

/// Files are hashed in blocks of this size.
pub const BLOCK_BYTES: u64 = 64 << 10;

/// Read at once.
const PIECE_BYTES: u64 = 1 << 20;
const KEY: &[u8; 32] = b"unibus hash of a file, v1       ";

/// Length and hash of a file, or of its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileSum {
    /// Bytes.
    pub length: u64,
    /// BLAKE3 over length and the hashes of all blocks.
    pub hash: [u8; 32],
}

/// Takes the bytes of a file from the first one on.
#[derive(Clone, Debug, Default)]
pub struct FileHasher {
    length: u64,
    blocks: Vec<[u8; 32]>,
    /// The bytes of the block that is not full yet: hashing whole blocks at once is several times faster.
    rest: BytesMut,
}

impl FileHasher {
    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Takes the bytes that follow.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let missing = BLOCK_BYTES as usize - self.rest.len();
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            bytes = later;
            if now.len() == BLOCK_BYTES as usize {
                self.blocks.push(blake3::hash(now).into());
                continue;
            }
            self.rest.put_slice(now);
            if self.rest.len() == BLOCK_BYTES as usize {
                self.blocks.push(blake3::hash(&self.rest).into());
                self.rest.clear();
            }
        }
    }

    /// Takes what follows in `file`, up to `length`.
    pub async fn read<F: DiskFile>(&mut self, file: &F, length: u64) -> io::Result<()> {
        while self.length < length {
            let piece = PIECE_BYTES.min(length - self.length);
            self.update(&file.read_at(self.length, piece as usize).await?);
        }
        Ok(())
    }

    /// The hash of each block; the last one may be short.
    pub fn blocks(&self) -> Vec<[u8; 32]> {
        let rest = (!self.rest.is_empty()).then(|| blake3::hash(&self.rest).into());
        self.blocks.iter().copied().chain(rest).collect()
    }

    /// The hashes of the blocks that are full.
    pub fn whole_blocks(&self) -> &[[u8; 32]] {
        &self.blocks
    }

    /// Forgets everything from `length` on, which must be the end of a full block.
    pub fn cut(&mut self, length: u64) -> Result<(), String> {
        let blocks = length / BLOCK_BYTES;
        if length != blocks * BLOCK_BYTES || blocks > self.blocks.len() as u64 {
            return Err(format!("byte {length} is not the end of one of the {} full blocks", self.blocks.len()));
        }
        self.blocks.truncate(blocks as usize);
        self.rest.clear();
        self.length = length;
        Ok(())
    }

    /// Length and hash of what was taken so far.
    pub fn sum(&self) -> FileSum {
        let mut whole = blake3::Hasher::new_keyed(KEY);
        whole.update(&self.length.to_le_bytes());
        for block in self.blocks() {
            whole.update(&block);
        }
        FileSum { length: self.length, hash: whole.finalize().into() }
    }
}

impl FileSum {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = FileHasher::default();
        hasher.update(bytes);
        hasher.sum()
    }
}

/// Opens a file that must be there with at least `length` bytes.
pub async fn open_whole<E: Env>(env: &E, path: &Path, length: u64) -> Result<<E::Disk as Disk>::File, StoreError> {
    if !env.disk().exists(path).await.map_err(io_at("look for", path))? {
        return Err(Damage::new(path, 0, "no file", format!("{length} bytes")).into());
    }
    let file = env.disk().open(path, OpenMode::Read).await.map_err(io_at("open", path))?;
    let found = file.len().await.map_err(io_at("measure", path))?;
    if found < length {
        return Err(Damage::new(path, found, format!("{found} bytes"), format!("at least {length} bytes")).into());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_do_not_matter(cuts in proptest::collection::vec(0..200_000usize, 0..6), length in 0..200_000usize) {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(length)).collect();
            cuts.extend([0, length]);
            cuts.sort_unstable();
            let mut hasher = FileHasher::default();
            cuts.windows(2).for_each(|pair| hasher.update(&bytes[pair[0]..pair[1]]));
            prop_assert_eq!(hasher.sum(), FileSum::of(&bytes));
            prop_assert_eq!(hasher.blocks().len(), length.div_ceil(BLOCK_BYTES as usize));
        }
    }

    #[test]
    fn length_and_every_byte_count() {
        assert_ne!(FileSum::of(&[]).hash, FileSum::of(&[0]).hash);
        let mut bytes = vec![0; 3 * BLOCK_BYTES as usize];
        let whole = FileSum::of(&bytes);
        bytes[BLOCK_BYTES as usize] = 1;
        assert_ne!(FileSum::of(&bytes).hash, whole.hash);
    }
}
