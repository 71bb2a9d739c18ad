//! Durability and consensus.

pub mod codec;
pub mod env;
pub mod mutants;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod types;
