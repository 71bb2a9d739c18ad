//! Streams between the nodes: framing, QUIC, what happens to a stream that a peer opened, and the
//! requests that nodes send each other.

pub mod accept;
pub mod exchange;
pub mod frame;
mod incoming;
pub mod link;
pub mod quic;
pub mod stream;
