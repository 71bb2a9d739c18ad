//! [`SimEnv`]: everything that a simulated node takes from outside.

use std::fmt;
use std::sync::{Arc, Mutex};

use unibus_raft_store::env::{Env, Rng};
use unibus_raft_store::tree::LogTrees;

use crate::sim::clock::SimClock;
use crate::sim::disk::SimDisk;
use crate::sim::net::SimNet;
use crate::sim::random::Random;
use crate::sim::runtime::SimRuntime;

/// The environment of one life of a node.
#[derive(Clone)]
pub struct SimEnv {
    net: SimNet,
    disk: SimDisk,
    clock: SimClock,
    rng: SimRng,
}

impl SimEnv {
    /// The environment of these parts.
    pub fn new(net: SimNet, disk: SimDisk, clock: SimClock, rng: SimRng) -> Self {
        Self { net, disk, clock, rng }
    }
}

impl Env for SimEnv {
    type Rt = SimRuntime;
    type Net = SimNet;
    type Disk = SimDisk;
    type Trees = LogTrees<SimDisk>;
    type Clock = SimClock;
    type Rng = SimRng;

    fn net(&self) -> &SimNet {
        &self.net
    }

    fn disk(&self) -> &SimDisk {
        &self.disk
    }

    fn trees(&self) -> LogTrees<SimDisk> {
        LogTrees(self.disk.clone())
    }

    fn clock(&self) -> &SimClock {
        &self.clock
    }

    fn rng(&self) -> &SimRng {
        &self.rng
    }
}

/// A random stream that clones share.
#[derive(Clone)]
pub struct SimRng(Arc<Mutex<Random>>);

impl SimRng {
    /// The sub-stream `name`, number `index`, of `seed`.
    pub fn stream(seed: u64, name: &str, index: u64) -> Self {
        Self(Arc::new(Mutex::new(Random::stream(seed, name, index))))
    }
}

impl fmt::Debug for SimRng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimRng")
    }
}

impl Rng for SimRng {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).fill(buffer);
    }
}
