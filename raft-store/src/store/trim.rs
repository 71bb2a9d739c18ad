//! Keeps the shared log short. Files go back in the order in which they were written, so a group that is
//! idle would hold on to every file since its last entry, and each start would read them all.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;
use unibus_proto::id::GroupId;
use unibus_proto::log::{Proposal, Tick, proposal::Command};

use crate::env::{Env, WatchReceiver, sleep, timeout};
use crate::group::Group;
use crate::wal::Wal;
use crate::watched::WatchReceiverOf;

/// Between two looks at the log's length.
const PERIOD: Duration = Duration::from_secs(1);
/// An idle group's entry is no hurry: without a quorum it is proposed again in the next round.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks every group for a snapshot each time the whole log has grown by `log_bytes`, from what was there
/// at the start on. The log is purged below the older of two snapshots, and an idle group would only ever
/// have one: its leader gives it an entry that changes nothing, so that the next one is another.
pub(super) async fn run<E: Env>(
    wal: Wal<E>,
    groups: Vec<Group<E>>,
    log_bytes: u64,
    file_bytes: u64,
    mut stop: WatchReceiverOf<E, bool>,
) {
    let inherited = wal.stats().files as u64 * file_bytes;
    let mut trimmed_at = 0;
    let mut seen: BTreeMap<GroupId, u64> = BTreeMap::new();
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            () = sleep::<E>(PERIOD) => {}
        }
        let length = inherited + wal.stats().bytes;
        if length < trimmed_at + log_bytes {
            continue;
        }
        trimmed_at = length;
        for group in &groups {
            if group.is_leader() && seen.get(&group.id()) == Some(&group.applied_index()) {
                let tick = Proposal { at_ms: 0, command: Some(Command::Tick(Tick {})) };
                let proposed = timeout::<E, _>(PATIENCE, group.propose(tick.encode_to_vec().into())).await;
                tracing::debug!(group = %group.id(), ?proposed, "idle group moved on, to purge its log");
            }
            seen.insert(group.id(), group.applied_index());
            group.0.replica.ask_snapshot();
        }
    }
}
