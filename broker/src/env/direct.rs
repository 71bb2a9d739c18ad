//! Writes past the page cache.
//!
//! What is synced at once and not read back gains nothing from the cache: it would be copied into pages,
//! page by page be found dirty again, and stand behind everything else that waits for writeback.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Offset and length of a direct write are multiples of the disk's sector; a disk with larger ones refuses,
/// and the cache is used.
const SECTOR_BYTES: u64 = 512;
/// Memory starts at a page, which satisfies any disk.
const ALIGN: usize = 4096;
/// Bytes of one write: large enough that more would not be faster.
const PIECE_BYTES: usize = 1 << 20;

thread_local! {
    static PIECE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A file's second descriptor, which goes past the cache. Opened when it is first used.
#[derive(Default)]
pub struct Direct {
    file: OnceLock<Option<File>>,
    refused: AtomicBool,
}

impl Direct {
    /// Writes `parts` to `file` from `offset` on; false when that cannot be done past the cache, and has to be
    /// done through it.
    pub fn write(&self, file: &File, offset: u64, parts: &[Bytes]) -> io::Result<bool> {
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        let whole_sectors = offset.is_multiple_of(SECTOR_BYTES) && (bytes as u64).is_multiple_of(SECTOR_BYTES);
        if bytes == 0 || !whole_sectors || self.refused.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let Some(direct) = self.file.get_or_init(|| open(file).ok()) else { return Ok(false) };
        match PIECE.with_borrow_mut(|piece| write(direct, offset, parts, piece)) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.refused.store(true, Ordering::Relaxed);
                Ok(false)
            }
            result => result.map(|()| true),
        }
    }
}

fn open(file: &File) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    Ok(rustix::fs::open(format!("/proc/self/fd/{}", file.as_raw_fd()), flags, Mode::empty())?.into())
}

fn write(file: &File, mut offset: u64, parts: &[Bytes], memory: &mut Vec<u8>) -> io::Result<()> {
    memory.resize(PIECE_BYTES + ALIGN, 0);
    let start = memory.as_ptr().align_offset(ALIGN);
    let piece = &mut memory[start..start + PIECE_BYTES];
    let mut filled = 0;
    for part in parts {
        let mut rest = &part[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(PIECE_BYTES - filled));
            piece[filled..filled + now.len()].copy_from_slice(now);
            (filled, rest) = (filled + now.len(), later);
            if filled == PIECE_BYTES {
                file.write_all_at(piece, offset)?;
                (offset, filled) = (offset + filled as u64, 0);
            }
        }
    }
    if filled > 0 { file.write_all_at(&piece[..filled], offset) } else { Ok(()) }
}
