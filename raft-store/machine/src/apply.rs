//! The machine and its dispatch: which command is handled where. Nothing else is decided here.

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{ClusterId, GroupId};
use unibus_proto::limits::SEGMENT_BYTES;
use unibus_proto::log;
use unibus_proto::v1::Reject;

use crate::event::{Applied, Entry};
use crate::rows::Rows;

/// The replicated rules of one group over its rows.
#[derive(Clone, Debug)]
pub struct Machine<R> {
    pub(crate) group: GroupId,
    pub(crate) cluster: ClusterId,
    pub(crate) rows: R,
    pub(crate) segment_bytes_max: u64,
}

impl<R: Rows> Machine<R> {
    /// The machine of a group of a cluster. All its state is in the rows.
    pub fn new(group: GroupId, cluster: ClusterId, rows: R) -> Self {
        Self { group, cluster, rows, segment_bytes_max: SEGMENT_BYTES }
    }

    /// Cuts segments at another size. All replicas of a cluster must use the same one.
    pub fn with_segment_bytes(self, segment_bytes_max: u64) -> Self {
        Self { segment_bytes_max, ..self }
    }

    /// Applies the next entry of the group's log.
    pub fn apply(&mut self, entry: Entry, proposal: log::Proposal) -> Applied {
        let _ = (entry, proposal.command);
        let reject = Reject::new(ErrorCode::VersionSkew, "this build applies no commands");
        let reply = log::Reply { at_ms: proposal.at_ms, reply: Some(log::reply::Reply::Rejected(reject)) };
        Applied { reply, events: Vec::new() }
    }

    /// The invariants that the rows must satisfy; the error names the first that does not hold.
    pub fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Log time from which on a `Tick` removes something.
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// The rows.
    pub fn rows(&self) -> &R {
        &self.rows
    }

    /// The rows, for who stores them: nobody else writes them.
    pub fn rows_mut(&mut self) -> &mut R {
        &mut self.rows
    }

    /// The rows back.
    pub fn into_rows(self) -> R {
        self.rows
    }
}
