//! The Rust SDK of unibus.
//!
//! A [`Client`] signs in with an [identity](proto::files::Identity) and talks to whichever node works.
//! Every call is safe to repeat, so the SDK repeats it elsewhere when a node dies, and asks
//! [`ErrorCode`] whether that helps.
//!
//! ```no_run
//! use unibus_client::proto::files::Identity;
//! use unibus_client::proto::subject::Subject;
//! use unibus_client::proto::v1::RoomPolicy;
//! use unibus_client::{Client, ClientConfig, Item, Start, SubscribeOptions, TokioPlatform};
//!
//! # async fn tour() -> Result<(), Box<dyn std::error::Error>> {
//! let platform = TokioPlatform::from_ca_file("ca.pem".as_ref())?;
//! let identity = Identity::load("alice.identity".as_ref())?;
//! let client = Client::connect(platform, ClientConfig::new(["10.0.0.1:7001", "10.0.0.2:7001"]), identity).await?;
//!
//! // A room; whoever makes it is its first admin.
//! let subject: Subject = "ops.log".parse()?;
//! client.create_room(&subject, RoomPolicy { persist: true, ..RoomPolicy::default() }).await?;
//!
//! // Messages of a publisher keep their order and are stored once, whatever happens on the way.
//! let publisher = client.publisher(&subject).open().await?;
//! let ack = publisher.send("hello").await?;
//! println!("stored at sequence {}, fsynced on a majority of {}", ack.sequence, ack.voters);
//!
//! // Many at a time: enqueue waits only while the window is full, receipts resolve in order.
//! let receipt = publisher.enqueue("and again").await?;
//! receipt.await?;
//!
//! // Read it all, over every room that the filter selects.
//! let options = SubscribeOptions { until_end: true, ..SubscribeOptions::default() };
//! let mut subscription = client.subscribe(&"ops.>".parse()?, Start::Earliest, options).await?;
//! while let Some(item) = subscription.next().await {
//!     if let Item::Message(message) = item? {
//!         println!("{} {}: {:?}", message.subject, message.sequence, message.body);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Where to read on: [`Publisher`] for ordered publishing, [`Subscription`] for reading, [`ClientEvent`]
//! for what happens behind the calls. Everything is generic over a [`Platform`], so that the simulator
//! drives this very code with its own time, randomness and connections; [`TokioPlatform`] is the one that
//! programs use.

mod cause;
mod client;
mod cluster;
mod config;
mod core;
mod devices;
mod error;
mod event;
mod membership;
mod nodes;
mod platform;
mod publish;
mod race;
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
