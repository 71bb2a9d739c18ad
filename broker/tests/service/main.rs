//! The service of real nodes over an in-process network: what the API promises, without sockets.

#![allow(clippy::disallowed_methods, reason = "these tests run on tokio, not in the simulator")]

mod auth;
mod authorization;
mod cluster;
mod ephemeral;
mod failover;
mod grpc;
mod leaders;
mod members;
mod net;
mod orphan;
mod publish;
mod retention;
mod rooms;
mod settings;
mod space;
mod subscribe;
mod verify;
