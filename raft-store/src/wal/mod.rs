//! The write-ahead log: what every acknowledgement rests on.
//!
//! One WAL serves all groups of a node. Handles ([`GroupLog`]) put appends, votes, truncations and purges
//! into one ordered queue; one writer task makes a *round* of whatever waits there, writes it as one frame
//! with one sync, and only then completes the callbacks and starts the next round.
//!
//! - [`frame`]: the layout; [`recover`]: bytes to state, a pure function; [`ledger`]: what records add up to;
//! - [`index`]: a group's log in memory, with the newest payloads; `reader`: older ones from disk;
//! - `writer`: rounds; `files`: files of fixed size, recycled under a new generation when every group
//!   has purged past them, and the pool of spare ones.
//!
//! A file named `<generation>.wal` always starts with a whole frame that restates votes and log ends of all
//! groups: it gets its name only after that frame was synced.

mod error;
mod files;
pub mod frame;
mod handle;
pub mod index;
pub mod ledger;
mod open;
mod reader;
pub mod recover;
mod shared;
mod writer;

use std::io;
use std::time::Duration;

use bytes::Bytes;

pub use error::WalError;
pub use frame::Form;
pub use handle::{GroupLog, LogState};
pub use open::Wal;
pub use shared::WalStats;

use crate::types::LogId;

/// Sizes and delays of a WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Bytes of a file. Larger files mean fewer directory syncs, smaller ones are recycled sooner.
    pub file_bytes: u64,
    /// Bytes that may wait for the disk; appends beyond wait for room.
    pub queue_bytes: usize,
    /// A round takes no further request when it has so many payload bytes: bounds the delay of a vote.
    pub round_bytes: u64,
    /// Bytes of the newest payloads kept in memory, for all groups together.
    pub tail_bytes: usize,
    /// Zero-filled files kept ready.
    pub spare_files: usize,
    /// Files kept for use again when all groups have purged past them: as many as go back at once, or the
    /// next ones would have to be allocated under load.
    pub kept_files: usize,
    /// When nothing was written for so long, an empty frame covers the last one with its watermark.
    pub cover_after: Duration,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            file_bytes: 64 << 20,
            queue_bytes: 64 << 20,
            round_bytes: 8 << 20,
            tail_bytes: 32 << 20,
            spare_files: 2,
            kept_files: 8,
            cover_after: Duration::from_millis(5),
        }
    }
}

/// Called once, after the sync of what it was given with, or with the error that stopped the WAL.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A log entry as the WAL sees it: a position and bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its position.
    pub log_id: LogId,
    /// How to read the payload.
    pub form: Form,
    /// The payload, shared with memory and write.
    pub payload: Bytes,
    /// Checksum of the payload.
    pub crc: u32,
}

impl LogEntry {
    /// An entry.
    pub fn new(log_id: LogId, form: Form, payload: Bytes) -> Self {
        let crc = crc32c::crc32c(&payload);
        Self { log_id, form, payload, crc }
    }
}
