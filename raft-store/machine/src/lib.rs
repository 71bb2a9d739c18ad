//! The replicated rules of unibus. Pure: the same log makes the same bytes on every replica.

mod apply;
mod event;
pub mod key;
mod rows;
mod views;

pub use apply::Machine;
pub use event::{Applied, Entry, Event, StoredDelivery};
pub use rows::{MemoryRows, Rows};
