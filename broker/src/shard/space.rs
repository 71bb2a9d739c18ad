//! Whether there is disk space for a proposal: on this node, which leads, and on a majority of the voters. What
//! is refused here was certainly not stored.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::log::{Proposal, proposal::Command};
use unibus_raft_store::Group;
use unibus_raft_store::env::Env;
use unibus_raft_store::space::SpaceLevel;

use super::Shards;
use crate::service::Failure;

/// How long a client that is refused is asked to wait.
pub(super) const FULL_HINT: Duration = Duration::from_secs(1);

impl<E: Env> Shards<E> {
    /// Refuses a proposal to a group that this node leads when there is no space for it.
    pub(super) fn check_space(&self, replica: &Group<E>, proposal: &Bytes) -> Result<(), Failure> {
        let space = replica.space();
        let takes = match space.level() {
            SpaceLevel::Enough => true,
            SpaceLevel::Low => takes_little(proposal),
            SpaceLevel::Reserve => false,
        };
        let full = |found: String| {
            let group = replica.id();
            Failure::new(ErrorCode::DiskFull, format!("propose to group {group}: {found}; nothing was stored"))
                .after(FULL_HINT)
        };
        if !takes && let Some(why) = space.refuses_writes() {
            return Err(full(format!("the disk of node {}, which leads it, is full: {why}", self.node())));
        }
        match self.no_space_on_majority(replica) {
            Some(found) => Err(full(found)),
            None => Ok(()),
        }
    }

    /// Whether so many voters of a group take no entries that no leader could have any committed.
    pub(super) fn lacks_majority(&self, group: GroupId) -> bool {
        let Ok(replica) = self.group(group) else { return false };
        let mut refusing = self.peers().refusing_entries();
        if replica.space().refuses_entries().is_some() {
            refusing.insert(self.node());
        }
        let voters = replica.status().voters;
        !refusing.is_empty() && 2 * voters.iter().filter(|voter| !refusing.contains(voter)).count() <= voters.len()
    }

    fn no_space_on_majority(&self, replica: &Group<E>) -> Option<String> {
        let refusing = self.peers().refusing_entries();
        if refusing.is_empty() {
            return None;
        }
        let voters = replica.status().voters;
        let takes = |voter: &&NodeId| {
            **voter == self.node() || (self.peers().is_reachable(**voter) && !refusing.contains(voter))
        };
        let (taking, all) = (voters.iter().filter(takes).count(), voters.len());
        (2 * taking <= all).then(|| {
            format!("{taking} of {all} voters have space for it, {} are needed: {}", all / 2 + 1, self.full(&voters))
        })
    }

    /// Which voters of a group have no space, and why.
    pub(super) fn full_voters(&self, group: GroupId) -> Option<String> {
        let said = self.full(&self.group(group).ok()?.status().voters);
        (!said.is_empty()).then_some(said)
    }

    fn full(&self, voters: &[NodeId]) -> String {
        let said = |voter: &NodeId| match *voter == self.node() {
            true => self.meta().space().refuses_writes(),
            false => self.peers().disk_full(*voter),
        };
        let full = voters.iter().filter_map(|voter| Some(format!("node {voter}: {}", said(voter)?)));
        full.collect::<Vec<_>>().join("; ")
    }
}

/// Whether a proposal is one that operators need when disks run full: what lets retention remove messages, takes
/// access away, or moves nodes. All of it is small, and rare in what clients send.
fn takes_little(proposal: &Bytes) -> bool {
    Proposal::decode(proposal.clone()).is_ok_and(|proposal| proposal.command.is_some_and(|command| is_little(&command)))
}

/// The same of a command.
pub(super) fn is_little(command: &Command) -> bool {
    match command {
        // Without new bundles it only ends devices, which is how a user locks out one that was stolen.
        Command::DeviceListPut(put) => put.bundles.is_empty(),
        Command::ClusterInit(_)
        | Command::UserChange(_)
        | Command::RoomActivate(_)
        | Command::RosterAppend(_)
        | Command::Tick(_)
        | Command::SegmentSealed(_)
        | Command::NodeAdd(_)
        | Command::NodeDrain(_)
        | Command::NodeRemove(_)
        | Command::NodeGone(_) => true,
        Command::CommandBatch(batch) => batch.commands.iter().all(|one| one.command.as_ref().is_some_and(is_little)),
        // A command of a later version is for that one to judge.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use unibus_proto::log::{CommandBatch, DeviceListPut, PublishBatch, Tick};
    use unibus_proto::v1::Signed;

    use super::*;

    fn little(command: Command) -> bool {
        takes_little(&Proposal { at_ms: 0, command: Some(command) }.encode_to_vec().into())
    }

    #[test]
    fn retention_goes_on_while_messages_are_refused() {
        let tick = || Proposal { at_ms: 0, command: Some(Command::Tick(Tick {})) };
        let publish = Command::PublishBatch(PublishBatch::default());
        assert!(little(Command::Tick(Tick {})) && !little(publish.clone()));
        assert!(little(Command::CommandBatch(CommandBatch { commands: vec![tick(), tick()] })));
        let mixed = vec![tick(), Proposal { at_ms: 0, command: Some(publish) }];
        assert!(!little(Command::CommandBatch(CommandBatch { commands: mixed })));
    }

    #[test]
    fn p6_a_device_can_be_ended_on_a_full_disk_but_none_added() {
        let put = |bundles| Command::DeviceListPut(DeviceListPut { device_list: Some(Signed::default()), bundles });
        assert!(little(put(vec![])) && !little(put(vec![Signed::default()])));
    }
}
