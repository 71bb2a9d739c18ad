//! Real processes on loopback, each with its data on a file system of its own whose power can be cut.
//!
//! [`floor`] is what all scenarios stand on: [`disk`] and [`process`] make a node, [`load`] publishes
//! through the SDK, [`reading`] reads back through each node, [`inspect`] compares what the nodes hold.
//! [`power`] cuts power round by round; [`away`] and [`tree`] are scripted. What was seen goes into the
//! same history as that of the simulator and is judged by the same [`invariants`](crate::invariants).
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "outside the simulation: real processes, real time, tokio's tasks"
)]

pub mod args;
pub mod deeds;
pub mod disk;
pub mod doctor;
pub mod fault;
pub mod floor;
pub mod inspect;
pub mod load;
pub mod power;
pub mod process;
pub mod reading;
pub mod report;
