//! The node: what stands between the sockets and the replicated log.
//!
//! - [`config`], [`plan`], [`certs`], [`tls`]: from a list of hosts to a folder per node, and from that
//!   folder to a running node;
//! - [`env`]: the production environment (tokio, QUIC, files on I/O threads, system clock);
//! - [`peer`]: streams between the nodes;
//! - [`server`], [`local`], [`admin`]: the ports of a node beside the peer port; [`metrics`],
//!   [`telemetry`]: what it tells about itself.

pub mod admin;
pub mod certs;
pub mod config;
pub mod env;
pub mod local;
pub mod metrics;
pub mod peer;
pub mod plan;
pub mod server;
pub mod telemetry;
pub mod tls;
