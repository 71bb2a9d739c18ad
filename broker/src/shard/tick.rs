//! What the leader of a group does once a second: lets time pass in the log (`Tick`) when something can
//! expire, and reports cut segments.

use std::time::Duration;

use unibus_machine::{Machine, Rows};
use unibus_proto::id::GroupId;
use unibus_proto::log::{SegmentSealed, Tick, proposal::Command};
use unibus_raft_store::env::{Env, sleep};

use super::Shards;

/// How late an expiry may be.
const PERIOD: Duration = Duration::from_secs(1);
/// Ticks of one group in a period, when more expires than one may do.
const TICKS_MAX: usize = 16;
/// Segments that are sealed in one period.
const SEALS_MAX: usize = 64;

pub(super) async fn run<E: Env>(shards: Shards<E>) {
    loop {
        sleep::<E>(PERIOD).await;
        for group in shards.ids() {
            if let Err(failure) = shards.tick(group).await {
                tracing::debug!(%group, %failure, "tick not proposed");
            }
        }
    }
}

impl<E: Env> Shards<E> {
    async fn tick(&self, group: GroupId) -> Result<(), crate::service::Failure> {
        let replica = self.group(group)?;
        if replica.leader() != Some(self.node()) {
            return Ok(());
        }
        self.seal_segments(group).await?;
        for _ in 0..TICKS_MAX {
            let due = replica.view(|machine| machine.next_deadline());
            if !due.is_some_and(|due| self.stamp(group).is_ok_and(|at| at >= due)) {
                break;
            }
            self.propose_and_see(group, Command::Tick(Tick {})).await?;
        }
        Ok(())
    }

    /// Tells the log length and hash of the segments that were cut, so that each replica compares them
    /// with its own files. The oldest first, so that all before a known one are known.
    async fn seal_segments(&self, group: GroupId) -> Result<(), crate::service::Failure> {
        let replica = self.group(group)?;
        for segment in replica.view(unsealed_segments) {
            if let Some(sealed) = replica.sealed_segment(segment) {
                let hash = sealed.hash.to_vec().into();
                let command = Command::SegmentSealed(SegmentSealed { segment, length: sealed.length, hash });
                self.propose(group, command).await?;
            }
        }
        Ok(())
    }
}

/// The complete segments whose hash the log does not know, ascending.
fn unsealed_segments<R: Rows>(machine: &Machine<R>) -> Vec<u64> {
    let Some(&(oldest, _)) = machine.complete_segments(0, 1).first() else { return Vec::new() };
    let mut first = machine.group_row().segment;
    while first > oldest && machine.sealed_segment(first - 1).is_none() {
        first -= 1;
    }
    let complete = machine.complete_segments(first, SEALS_MAX);
    complete.into_iter().filter(|(_, is_sealed)| !is_sealed).map(|(segment, _)| segment).collect()
}
