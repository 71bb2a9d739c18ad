//! Log time: what the leader stamps on a proposal.
//!
//! Never decreasing on this node, never beyond the median of the voters' wall clocks + 1 s, so that one
//! clock that is ahead cannot expire what others still use.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use unibus_proto::limits::CLOCK_SKEW_MAX;

/// The log clock of one group on this node.
#[derive(Debug, Default)]
pub struct LogClock {
    last_ms: AtomicU64,
}

impl LogClock {
    /// The next stamp, from this node's wall clock and the other voters' (those that are known).
    pub fn stamp(&self, own_ms: u64, others_ms: &[u64]) -> u64 {
        let at = own_ms.min(latest_allowed(own_ms, others_ms));
        self.last_ms.fetch_max(at, Ordering::Relaxed).max(at)
    }
}

/// Whether a wall clock is so far ahead of the other voters' that its node should not lead.
pub fn is_outlier(own_ms: u64, others_ms: &[u64]) -> bool {
    own_ms > latest_allowed(own_ms, others_ms)
}

fn latest_allowed(own_ms: u64, others_ms: &[u64]) -> u64 {
    let mut clocks: Vec<u64> = others_ms.iter().copied().chain([own_ms]).collect();
    clocks.sort_unstable();
    // Of an even number the lower one of the middle: with two clocks nobody knows which is ahead.
    clocks[(clocks.len() - 1) / 2].saturating_add(CLOCK_SKEW_MAX.as_millis() as u64)
}

/// Puts the stamp in front of an encoded proposal that carries none (`at_ms` is field 1).
pub fn stamped(at_ms: u64, proposal: impl Buf) -> Bytes {
    let mut bytes = BytesMut::with_capacity(proposal.remaining() + 11);
    prost::encoding::uint64::encode(1, &at_ms, &mut bytes);
    bytes.put(proposal);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use unibus_proto::log::{Proposal, Tick, proposal::Command};

    use super::*;

    #[test]
    fn follows_the_wall_clock_and_never_goes_back() {
        let clock = LogClock::default();
        assert_eq!(clock.stamp(5_000, &[5_010, 4_990]), 5_000);
        assert_eq!(clock.stamp(4_000, &[5_010, 4_990]), 5_000);
        assert_eq!(clock.stamp(5_500, &[5_010, 4_990]), 5_500);
    }

    #[test]
    fn a_clock_that_is_ahead_is_held_at_the_median() {
        assert_eq!(LogClock::default().stamp(90_000, &[5_000, 5_200]), 6_200);
        assert_eq!(LogClock::default().stamp(90_000, &[5_000]), 6_000);
        assert!(is_outlier(90_000, &[5_000, 5_200]));
        assert!(!is_outlier(5_900, &[5_000, 5_200]));
        assert!(!is_outlier(90_000, &[]));
    }

    #[test]
    fn a_stamped_proposal_decodes_to_the_same_command() {
        let bare = Proposal { at_ms: 0, command: Some(Command::Tick(Tick {})) };
        let bytes = stamped(1_700_000_000_000, &bare.encode_to_vec()[..]);
        assert_eq!(bytes.as_ref(), Proposal { at_ms: 1_700_000_000_000, ..bare }.encode_to_vec());
    }
}
