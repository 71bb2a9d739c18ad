//! Every byte that leaves a process, and the types that make it safe.
//!
//! - [`v1`] the client API, [`peer`] what nodes say to each other, [`log`] what stands in the Raft
//!   logs, [`row`] what the machine stores;
//! - [`id`], [`subject`], [`position`]: domain types that cannot hold a bad value;
//! - [`limits`]: every bound of the system;
//! - [`code`]: the one [`ErrorCode`](code::ErrorCode) and its three answers;
//! - [`delivery`]: batches of entries that stay encoded on their way to the subscribers;
//! - [`signed`]: signed documents.

pub mod code;
pub mod delivery;
#[cfg(feature = "files")]
pub mod files;
pub mod id;
pub mod limits;
pub mod position;
pub mod signed;
pub mod subject;
mod wire;

pub use wire::log::v1 as log;
pub use wire::peer::v1 as peer;
pub use wire::row::v1 as row;
pub use wire::{DESCRIPTORS, v1};
