//! What can go wrong with a store. Each error names the step, the object, what was found, what was
//! expected and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use unibus_proto::id::GroupId;

use crate::identity::IdentityError;
use crate::wal::WalError;

/// What to do about a damaged file that this node alone cannot rebuild.
pub const REPLACE_NODE: &str = "keep the directory for analysis and put a new node in this one's place, the others \
     go on while they are a majority: `unibus-node plan --add`, then `unibusctl node replace`";

/// Why a store cannot be opened or go on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory is not this node's, or not whole.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The operating system refused.
    #[error("{step} {}: {source}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// A file does not hold what it must.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The write-ahead log cannot be opened.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The tables of a group cannot be used.
    #[error("group {group}: tables: {why}; start the node again, which rebuilds them")]
    Tables {
        /// The group.
        group: GroupId,
        /// The reason.
        why: String,
    },
    /// A setting that cannot work.
    #[error("store configuration: {0}")]
    Config(String),
    /// Raft refused to start or stopped.
    #[error("group {group}: {why}")]
    Raft {
        /// The group.
        group: GroupId,
        /// The reason.
        why: String,
    },
}

/// A file that does not hold what it must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// The first byte of what is wrong.
    pub offset: u64,
    /// What was found.
    pub found: String,
    /// What was expected.
    pub expected: String,
}

impl Damage {
    /// Damage in the file `path` at `offset`.
    pub fn new(path: &Path, offset: u64, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { path: path.to_path_buf(), offset, found: found.into(), expected: expected.into() }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, offset, found, expected } = self;
        write!(f, "{} is damaged at byte {offset}: found {found}, expected {expected}; {REPLACE_NODE}", path.display())
    }
}

impl std::error::Error for Damage {}

/// Names step and file of an I/O error.
pub(crate) fn io_at<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { step, path: path.to_path_buf(), source }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Io { source, .. } => source.kind(),
            StoreError::Damaged(_) => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error.to_string())
    }
}
