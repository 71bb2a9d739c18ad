//! What the API does, without gRPC: domain and `unibus.v1` types in, [`Failure`] or answer out.
//!
//! The node composes it as follows (all that `node.rs` needs to know):
//! - `Service::new(ServiceParts { .. })` once the groups are open; it starts its own tasks;
//! - `service.serve_link(peer, duplex).await` for each accepted peer stream whose purpose is `node`;
//! - `service.local_status()`, `service.subscriptions()`, `service.peers_reachable()` for the admin port;
//! - `service.hand_over().await`, then `service.stop()` at shutdown;
//! - `api::routes(service)` is the gRPC surface.

mod parts;

pub use parts::{NoVitals, ServiceParts, Vitals};
