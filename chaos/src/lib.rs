//! The simulator of whole clusters: the real broker and the real SDK on a seeded runtime, an
//! in-memory network and a disk that forgets, judged by checkers over one history.

pub mod history;
pub mod invariants;
pub mod sim;
