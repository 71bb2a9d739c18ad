//! Durability and consensus.

pub mod codec;
pub mod env;
pub mod error;
pub mod identity;
pub mod log;
pub mod mutants;
pub mod segment;
pub mod tables;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod types;
pub mod wal;
