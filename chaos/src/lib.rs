//! The simulator of whole clusters: the real broker and the real SDK on a seeded runtime, an
//! in-memory network and a disk that forgets, judged by checkers over one history.
//!
//! Beside it, [`real`]: real processes on disks whose power is cut, under the same judges.
//!
//! [`plan`] turns a seed into data, [`run`] does it to a [`cluster`] under a [`workload`], and
//! [`invariants`] judge the [`history`].

pub mod cluster;
mod ephemeral;
pub mod files;
pub mod history;
mod inflict;
pub mod invariants;
pub mod plan;
pub mod real;
pub mod record;
pub mod run;
pub mod scenario;
mod settle;
pub mod sim;
pub mod workload;
