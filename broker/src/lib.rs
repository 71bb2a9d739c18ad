//! The node: what stands between the sockets and the replicated log.
//!
//! - [`config`], [`plan`], [`certs`], [`tls`], [`resolve`]: from a list of hosts to a folder per node,
//!   and from that folder to everything that a node starts with;
//! - [`node`]: the composition root, over any environment: [`formation`] of the cluster, [`shard`] (the
//!   groups of this node), [`service`] (what the API does), [`fanout`], [`vitals`];
//! - [`members`]: who belongs to the cluster, and how that changes;
//! - [`peer`]: streams between the nodes;
//! - [`api`]: the gRPC surface without sockets; [`server`], [`local`], [`admin`]: the ports of a node
//!   beside the peer port; [`metrics`], [`telemetry`]: what it tells about itself;
//! - [`env`](mod@env): the production environment; [`run`], [`dev`], [`local_admin`], [`cli`]: the program.

pub mod admin;
pub mod api;
pub mod certs;
pub mod cli;
pub mod config;
pub mod dev;
pub mod env;
pub mod ephemeral;
pub mod fanout;
pub mod formation;
pub mod local;
pub mod local_admin;
pub mod members;
pub mod metrics;
pub mod node;
pub mod peer;
pub mod plan;
pub mod resolve;
pub mod run;
pub mod server;
pub mod service;
pub mod shard;
pub mod telemetry;
pub mod tls;
pub mod vitals;
