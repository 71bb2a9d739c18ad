//! The Rust SDK of unibus.

mod client;
mod cluster;
mod config;
mod core;
mod devices;
mod error;
mod event;
mod nodes;
mod platform;
mod publish;
mod retry;
mod rooms;
mod signin;
mod subscribe;
mod tokio_platform;
mod users;

pub use client::Client;
pub use config::ClientConfig;
pub use error::{Error, ErrorCode};
pub use event::ClientEvent;
pub use platform::{BoxError, Platform, TokioPlatform};
pub use publish::{Ack, Message, Publisher, PublisherBuilder, Receipt};
pub use rooms::{CreatedRoom, RoomKey};
pub use subscribe::{Item, Received, RosterChange, Start, SubscribeOptions, Subscription};
pub use unibus_proto as proto;
