//! The simulated world: one thread, one seed, virtual time.

pub mod clock;
pub mod disk;
pub mod env;
pub mod executor;
pub mod filesystem;
pub mod grpc;
pub mod hub;
pub mod join;
pub mod net;
mod pipe;
pub mod random;
pub mod runtime;
pub mod timer;
pub mod trace;
pub mod watch;
