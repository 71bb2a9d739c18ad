//! Real processes on loopback, each with its data on a file system of its own whose power can be cut.
//!
//! A [`stage`] is a cluster on a [`floor`]: [`disk`] and [`process`] make a node, [`deeds`] are done to it,
//! [`load`] publishes through the SDK, [`gap`] judges whether that goes on, [`reading`] reads back through each
//! node, [`inspect`] compares what they hold and [`agreement`] has them compare it. [`power`] cuts power round by
//! round, as [`fault`] draws it; [`away`], [`full`] and [`tree`] are scripted. What was seen goes into the same
//! history as that of the simulator and is judged by the same [`invariants`](crate::invariants).
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "outside the simulation: real processes, real time, tokio's tasks"
)]

pub mod agreement;
pub mod args;
pub mod away;
pub mod deeds;
pub mod disk;
pub mod doctor;
pub mod fault;
pub mod floor;
pub mod full;
pub mod gap;
pub mod inspect;
pub mod load;
pub mod power;
pub mod process;
pub mod reading;
pub mod report;
pub mod stage;
pub mod tree;
