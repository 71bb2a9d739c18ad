//! The production environment: tokio, QUIC, files on I/O threads, the system's clock and randomness.
#![allow(clippy::disallowed_methods)] // This is where production's time and threads come from.

mod direct;
mod disk;
mod runtime;

use std::time::{SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom, SystemRandom};
use unibus_raft_store::env::{Clock, Env, Rng};
use unibus_raft_store::tree::SledTrees;

pub use disk::{FileDisk, FileLock, OpenedFile};
pub use runtime::{NodeRuntime, align_ticks};

use crate::peer::quic::QuicNet;

/// Everything that a real node takes from outside.
#[derive(Clone)]
pub struct ProductionEnv {
    net: QuicNet,
    disk: FileDisk,
    clock: SystemClock,
    rng: SystemRng,
}

impl ProductionEnv {
    /// An environment over a bound QUIC endpoint.
    pub fn new(net: QuicNet) -> std::io::Result<Self> {
        Ok(Self { net, disk: FileDisk::start()?, clock: SystemClock, rng: SystemRng::default() })
    }
}

impl Env for ProductionEnv {
    type Rt = NodeRuntime;
    type Net = QuicNet;
    type Disk = FileDisk;
    type Trees = SledTrees;
    type Clock = SystemClock;
    type Rng = SystemRng;

    fn net(&self) -> &QuicNet {
        &self.net
    }
    fn disk(&self) -> &FileDisk {
        &self.disk
    }
    fn trees(&self) -> SledTrees {
        SledTrees
    }
    fn clock(&self) -> &SystemClock {
        &self.clock
    }
    fn rng(&self) -> &SystemRng {
        &self.rng
    }
}

/// The system's wall clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The operating system's random bytes.
#[derive(Clone, Debug)]
pub struct SystemRng(SystemRandom);

impl Default for SystemRng {
    fn default() -> Self {
        Self(SystemRandom::new())
    }
}

impl Rng for SystemRng {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.fill(buffer).expect("the operating system gives random bytes; without them no key is safe");
    }
}
