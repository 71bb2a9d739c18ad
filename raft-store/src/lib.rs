//! Durability and consensus: the only importer of openraft.
//!
//! A node opens one [`Store`]: all groups of the node over one write-ahead log. Everybody above works
//! with the [`Group`] handles: propose, read barrier, local views, timelines, events.
//!
//! - [`env`](mod@env) everything that is taken from outside; [`identity`] whose directory it is;
//! - [`wal`] the log of all groups; [`log`] openraft's view of it;
//! - [`tree`] an ordered map on disk; [`checkpoint`] how it is kept whole; [`tables`] the rows over it;
//! - [`segment`] message bodies; [`snapshot`] rows and bodies at an index; [`sum`]
//!   hashes of files;
//! - [`replica`] these together: the applied state of a group; [`state`] openraft's view of it;
//! - [`stream`] how a stream between nodes begins; `network` what openraft sends over it;
//! - [`space`] how much room the disk has left, and what the node takes for that;
//! - [`group`], [`membership`], [`store`] what the rest of the node sees.

pub mod checkpoint;
pub mod codec;
pub mod env;
pub mod error;
pub mod faults;
pub mod group;
pub mod identity;
mod inspect;
pub mod log;
pub mod membership;
pub mod mutants;
mod network;
pub mod replica;
pub mod segment;
pub mod snapshot;
pub mod space;
pub mod state;
pub mod store;
pub mod stream;
pub mod sum;
pub mod tables;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tree;
pub mod types;
pub mod waits;
pub mod wal;
mod watched;

pub use group::{Committed, Group, GroupStatus, NotApplied, ProposeError, Role};
pub use identity::Identity;
pub use replica::AppliedEntry;
pub use segment::TimelineError;
pub use store::{RaftTiming, Store, StoreConfig};
