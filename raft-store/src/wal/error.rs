//! Why a WAL cannot be opened.

use std::io;
use std::path::PathBuf;

use super::recover::Damage;

/// Why a WAL cannot be created or opened. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// There is no WAL.
    #[error(
        "open WAL: {dir} holds no .wal file, but this node has one: its log and votes are gone, and it must not vote \
         again under its id: put a new node in its place, the others go on while they are a majority: `unibus-node \
         plan --add`, then `unibusctl node replace`"
    )]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// There is one already.
    #[error("create WAL: {dir} holds a WAL already, expected an empty directory")]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// Acknowledged data cannot be read back.
    #[error(
        "open WAL: {dir}/{damage}. Acknowledged data is damaged, so this node must not vote again under its id; the \
         other nodes have the data. Keep the directory for analysis and put a new node in its place, the others go \
         on while they are a majority: `unibus-node plan --add`, then `unibusctl node replace`"
    )]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// Where and what.
        damage: Damage,
    },
    /// The disk failed.
    #[error("{step}: {path}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl WalError {
    /// For `map_err`.
    pub(super) fn io(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { step, path, source }
    }
}
