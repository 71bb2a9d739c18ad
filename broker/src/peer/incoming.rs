//! The connections that other nodes opened: members, and a few guests.
//!
//! A guest has a certificate of the cluster and is no member: it may ask to be taken in, or be told why
//! not, on few streams. Whoever accepts streams sees to it that it does nothing else.

use std::sync::{PoisonError, RwLock};

use quinn::Connection;
use unibus_proto::id::NodeId;

use super::quic::CLOSED_REFUSED;

/// Connections of guests.
const GUESTS_MAX: usize = 16;
/// Streams of a guest at a time.
pub(super) const GUEST_STREAMS_MAX: u32 = 4;

pub(super) const LEFT: &[u8] = b"no longer a member";
const JOINED: &[u8] = b"a member by now: connect anew";

/// The open connections, and whether each was opened by a member.
pub(super) struct Incoming {
    open: RwLock<Vec<(NodeId, bool, Connection)>>,
    member_streams: u32,
}

impl Incoming {
    /// Nobody yet; a member may open `member_streams` at a time.
    pub fn new(member_streams: u32) -> Self {
        Self { open: RwLock::default(), member_streams }
    }

    /// Takes note of a connection; false when there are too many guests.
    pub fn admit(&self, peer: NodeId, connection: &Connection, is_member: impl FnOnce(NodeId) -> bool) -> bool {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        // Asked under the lock, or a node that is removed meanwhile would stay.
        let is_member = is_member(peer);
        if is_member {
            connection.set_max_concurrent_bi_streams(self.member_streams.into());
        } else if open.iter().filter(|(_, was_member, _)| !was_member).count() >= GUESTS_MAX {
            return false;
        }
        open.push((peer, is_member, connection.clone()));
        true
    }

    /// The connection has ended.
    pub fn forget(&self, connection: &Connection) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, _, other)| other.stable_id() != connection.stable_id());
    }

    /// Ends the connections of members that have left, and of guests that have become members: these
    /// connect anew.
    pub fn cut(&self, is_member: impl Fn(NodeId) -> bool) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(peer, was_member, connection)| {
            let stays = *was_member == is_member(*peer);
            if !stays {
                connection.close(CLOSED_REFUSED, if *was_member { LEFT } else { JOINED });
            }
            stays
        });
    }
}
