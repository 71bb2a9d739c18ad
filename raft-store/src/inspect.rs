//! What a group tells those who compare its replicas.

use crate::env::Env;
use crate::group::Group;
use crate::segment::SegmentEntry;
use crate::tables::StateHash;

impl<E: Env> Group<E> {
    /// The state hash at `index`: there is one at each multiple of 256 and at each tick, for a while.
    pub fn state_hash_at(&self, index: u64) -> Option<StateHash> {
        self.0.replica.hash_at(index)
    }

    /// The sealed segments, ascending.
    pub fn sealed_segments(&self) -> Vec<SegmentEntry> {
        self.0.replica.segments.manifest().into_iter().filter(|segment| segment.sealed).collect()
    }

    /// Bytes of log since a snapshot was last asked for.
    pub fn log_bytes(&self) -> u64 {
        self.0.replica.log_bytes()
    }
}
