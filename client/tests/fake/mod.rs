//! A cluster in this process: real gRPC bytes through tonic's router, a model of the rules behind it,
//! and faults on demand. Time is tokio's, paused: an hour of timeouts passes in a moment.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "the tests own the runtime; its clock is virtual")]

mod feed;
mod platform;
mod service;
mod state;

use std::sync::{Arc, Mutex, MutexGuard};

pub use platform::FakePlatform;
use state::State;
#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub use state::{Fault, SubscribeFault};
use unibus_client::proto::files::Identity;
use unibus_client::proto::id::{ClusterId, RoomId};
use unibus_client::proto::v1::DeviceKind;
use unibus_client::{Client, ClientConfig};

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
pub const ROOM: RoomId = RoomId([9; 16]);

/// A cluster of three nodes "n1", "n2", "n3" at "n1:1", "n2:1", "n3:1", with a room "ops.log".
#[derive(Clone)]
pub struct Cluster {
    state: Arc<Mutex<State>>,
    started: tokio::time::Instant,
}

impl Cluster {
    pub fn new() -> Self {
        let cluster = Self { state: Arc::new(Mutex::new(State::new())), started: tokio::time::Instant::now() };
        cluster.lock().add_room(ROOM, "ops.log");
        cluster
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.started.elapsed().as_millis() as u64
    }

    /// A client that starts at n1 and knows the others from it.
    pub async fn client(&self) -> Client<FakePlatform> {
        self.client_with(|config| config).await.unwrap()
    }

    pub async fn client_with(
        &self,
        change: impl FnOnce(ClientConfig) -> ClientConfig,
    ) -> Result<Client<FakePlatform>, unibus_client::Error> {
        let config = change(ClientConfig::new(["n1:1"]));
        Client::connect(FakePlatform::new(self.clone()), config, alice()).await
    }

    /// Bodies of the room, by sequence.
    pub fn bodies(&self) -> Vec<String> {
        self.lock().rooms[&ROOM].messages().map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect()
    }
}

pub fn alice() -> Identity {
    let mut next = 0;
    Identity::generate("alice".parse().unwrap(), DeviceKind::Person, 7, |bytes| {
        next += 1;
        bytes.fill(next);
    })
}
