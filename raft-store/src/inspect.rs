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

    /// Reads every sealed segment that is written out, now and as fast as it goes; answers the damaged ones
    /// with what is wrong.
    pub async fn scrub(&self) -> Vec<(u64, String)> {
        let segments = &self.0.replica.segments;
        let mut damaged = vec![];
        for id in segments.scrubbable() {
            let found = segments.scrub(id, |_| std::future::ready(())).await;
            damaged.extend(found.map(|found| (id, found)));
        }
        damaged
    }

    /// The snapshots that are kept, by the index of their last entry, with the BLAKE3 of their manifests: equal
    /// index, equal manifest on every replica.
    pub fn snapshots(&self) -> Vec<(u64, [u8; 32])> {
        self.0.replica.snapshots.manifests()
    }

    /// Bytes of log since a snapshot was last asked for.
    pub fn log_bytes(&self) -> u64 {
        self.0.replica.log_bytes()
    }
}
