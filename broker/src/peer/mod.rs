//! Streams between the nodes: framing, QUIC, and what happens to a stream that a peer opened.

pub mod exchange;
pub mod frame;
pub mod link;
pub mod quic;
