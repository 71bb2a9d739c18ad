//! The replicated rules of unibus: users, rooms, devices, timelines, producers.
//!
//! Pure: no I/O, no clock, no randomness, no threads. Every replica applies the same log and gets the same
//! rows, byte for byte. Time is in the proposal; ids ride in the command; a refusal is a reply like any other.
//!
//! ```
//! use unibus_machine::{Entry, Event, Machine, MemoryRows};
//! use unibus_proto::id::{ClusterId, GroupId};
//! use unibus_proto::log::{Proposal, UserAdd, proposal::Command, reply::Reply};
//! use unibus_proto::v1::UserRole;
//!
//! let alice = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
//!
//! // One machine per Raft group, over any ordered map.
//! let mut meta = Machine::new(GroupId::META, ClusterId([7; 16]), MemoryRows::default());
//!
//! // The store hands it each committed entry, in order.
//! let add = UserAdd {
//!     request_id: vec![1; 16].into(),
//!     handle: "alice".into(),
//!     user_key: alice.verifying_key().to_bytes().to_vec().into(),
//!     role: UserRole::Admin.into(),
//!     actor: "local".into(),
//! };
//! let proposal = Proposal { at_ms: 1_000, command: Some(Command::UserAdd(add)) };
//! let entry = Entry { group: GroupId::META, index: 1, term: 1 };
//! let applied = meta.apply(entry, proposal.clone());
//!
//! // The reply goes to who proposed it; the events tell this node what happened.
//! assert!(matches!(&applied.reply.reply, Some(Reply::User(user)) if user.created));
//! assert!(matches!(&applied.events[..], [Event::UserChanged { user }] if user.as_str() == "alice"));
//!
//! // A retry gets the first answer again, and changes nothing.
//! let again = meta.apply(Entry { index: 2, ..entry }, proposal);
//! assert_eq!((again.reply, again.events), (applied.reply, vec![]));
//! assert_eq!(meta.check(), Ok(()));
//! ```
//!
//! Where to look: [`key`] is the table of every row; `apply.rs` says which command is handled where; one file
//! per subject (`cluster.rs`, `node.rs`, `user.rs`, `device.rs`, `directory.rs`, `roster.rs` and `room.rs`,
//! `publish.rs` with `producer.rs`, `answers.rs` and `timeline.rs`, `retention.rs`, `expiry.rs`); `check.rs` and
//! `check_retention.rs` hold the invariants. Admission runs the public
//! checks ([`verify_create`], [`verify_roster`], [`verify_bundle`], [`verify_device_list`]) before it proposes.

mod answers;
mod apply;
mod batch;
mod check;
mod check_retention;
mod cluster;
mod device;
mod directory;
mod event;
mod expiry;
mod fields;
pub mod key;
pub mod mutants;
mod node;
mod producer;
mod publish;
mod request;
mod retention;
mod room;
mod roster;
mod rows;
mod signatures;
mod step;
mod timeline;
mod user;
mod views;

pub use apply::Machine;
pub use device::{DeviceListChange, VerifiedDevice, verify_bundle, verify_device_list};
pub use event::{Applied, Entry, Event, StoredDelivery};
pub use publish::bad_size;
pub use room::is_ephemeral;
pub use roster::{Creation, RosterChange, RosterCheck, RosterEffect, verify_create, verify_roster};
pub use rows::{MemoryRows, Rows};
pub use user::LOCAL_ACTOR;
