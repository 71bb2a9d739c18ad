//! Generated code: the protobuf packages, one module each.

#![allow(missing_docs, unused_qualifications, clippy::all)]

/// `unibus.v1`: the client API.
pub mod v1 {
    pub use crate::delivery::DeliveryBatch;
    include!(concat!(env!("OUT_DIR"), "/unibus.v1.rs"));
}
/// `unibus.log.v1`: durable log entries and their replies.
pub mod log {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/unibus.log.v1.rs"));
    }
}
/// `unibus.row.v1`: stored rows.
pub mod row {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/unibus.row.v1.rs"));
    }
}
/// `unibus.peer.v1`: what the nodes say to each other.
pub mod peer {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/unibus.peer.v1.rs"));
    }
}

/// The encoded `FileDescriptorSet` of all packages: for reflection and for tests over all RPCs.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
