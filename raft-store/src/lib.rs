//! Durability and consensus.

pub mod env;
