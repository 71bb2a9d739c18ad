//! The membership of a group, and its change by one guarded step at a time.
//!
//! openraft makes every change of voters a joint one, in two entries. A crash in between leaves a joint
//! membership, which is valid, and which somebody must end ([`MembershipStep::FinishJoint`]). Each step
//! names the membership that it was decided on; on any other one it is refused.

use std::collections::{BTreeMap, BTreeSet};

use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Precondition};
use unibus_proto::id::{DirectoryId, NodeId};
use unibus_proto::peer;

use crate::codec::{self, CodecError};
use crate::env::{Env, WatchReceiver};
use crate::group::{Group, not_leader_of};
use crate::types::{LogId, Member, StoredMembership};

/// The membership of a group, as its leader has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMembership {
    /// Where it was proposed; none before the group is formed.
    pub at: Option<LogId>,
    /// One set of voters; two while it is joint, the second one being where it goes.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Voters and learners, with their directories.
    pub members: BTreeMap<NodeId, DirectoryId>,
    /// Whether it is committed.
    pub committed: bool,
    /// Last entry of the log.
    pub last_index: u64,
    /// On the leader: up to where the log of each other member is known to agree.
    pub matched: BTreeMap<NodeId, u64>,
}

/// One step from a membership to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipStep {
    /// A new learner.
    AddLearner(NodeId, DirectoryId),
    /// Learners who vote from now on, and voters who leave the group, at once.
    ChangeVoters {
        /// Who votes.
        add: BTreeSet<NodeId>,
        /// Who leaves.
        remove: BTreeSet<NodeId>,
    },
    /// Ends a joint membership that a crash has left.
    FinishJoint,
    /// A learner leaves.
    RemoveLearner(NodeId),
}

/// Why a step was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// This node does not lead the group. Nothing was changed.
    #[error("this node does not lead the group; the leader is {leader:?}")]
    NotLeader {
        /// Who does, if known and not in doubt.
        leader: Option<NodeId>,
    },
    /// The membership is another one by now, or a change is under way. Nothing was changed.
    #[error("the membership is no longer the one that the step was decided on: {0}")]
    Changed(String),
    /// The answer was lost: it may or may not have been changed.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

impl<E: Env> Group<E> {
    /// The membership as this node knows it.
    pub fn membership(&self) -> GroupMembership {
        let metrics = self.0.raft.metrics().borrow_watched().clone();
        let stored = &metrics.membership_config;
        let replication = metrics.replication.iter().flatten();
        GroupMembership {
            committed: metrics.membership_config == metrics.committed_membership_config,
            last_index: metrics.last_log_index.unwrap_or(0),
            matched: replication.map(|(id, matched)| (*id, matched.map_or(0, |id| id.index))).collect(),
            ..GroupMembership::of(stored)
        }
    }

    /// Changes the membership by one step, if it is still the one at `expected`. Returns when the change
    /// is committed.
    pub async fn change_membership(
        &self,
        expected: Option<LogId>,
        step: MembershipStep,
    ) -> Result<(), MembershipError> {
        // A learner that is asked for is no voter that leaves.
        let retain = matches!(step, MembershipStep::AddLearner(..));
        let still = Precondition::LastMembershipLogId { last_membership_log_id: expected };
        match self.0.raft.change_membership_if(changes(step), retain, [still]).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(MembershipError::NotLeader { leader: not_leader_of(&forward) })
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(
                why,
            )))) => Err(MembershipError::Changed(why.to_string())),
            Err(RaftError::APIError(ClientWriteError::PreconditionFailed(why))) => {
                Err(MembershipError::Changed(why.to_string()))
            }
            Err(other) => Err(MembershipError::Unknown(other.to_string())),
        }
    }
}

fn changes(step: MembershipStep) -> ChangeMembers<NodeId, Member> {
    match step {
        MembershipStep::AddLearner(node, directory) => ChangeMembers::AddNodes([(node, Member { directory })].into()),
        MembershipStep::ChangeVoters { add, remove } => {
            ChangeMembers::Batch(vec![ChangeMembers::AddVoterIds(add), ChangeMembers::RemoveVoters(remove)])
        }
        MembershipStep::FinishJoint => ChangeMembers::AddVoterIds(BTreeSet::new()),
        MembershipStep::RemoveLearner(node) => ChangeMembers::RemoveNodes([node].into()),
    }
}

impl GroupMembership {
    fn of(stored: &StoredMembership) -> Self {
        Self {
            at: *stored.log_id(),
            voters: stored.membership().get_joint_config().clone(),
            members: stored.nodes().map(|(id, member)| (*id, member.directory)).collect(),
            committed: false,
            last_index: 0,
            matched: BTreeMap::new(),
        }
    }

    /// Who votes when the change that is under way is over.
    pub fn target_voters(&self) -> BTreeSet<NodeId> {
        self.voters.last().cloned().unwrap_or_default()
    }

    /// Whether nothing is under way.
    pub fn is_settled(&self) -> bool {
        self.committed && self.voters.len() == 1
    }

    /// As a message.
    pub fn encode(&self) -> peer::MembershipReport {
        let voters = |set: &BTreeSet<NodeId>| peer::VoterSet { node_ids: set.iter().map(|id| id.0).collect() };
        let member = |(id, directory): (&NodeId, &DirectoryId)| peer::Member {
            node_id: id.0,
            directory_id: directory.to_bytes(),
        };
        let membership = peer::Membership {
            configs: self.voters.iter().map(voters).collect(),
            nodes: self.members.iter().map(member).collect(),
        };
        let matched = self.matched.iter().map(|(id, index)| peer::MatchedIndex { node_id: id.0, index: *index });
        let log_id = self.at.as_ref().map(codec::encode_log_id);
        peer::MembershipReport {
            membership: Some(peer::StoredMembership { log_id, membership: Some(membership) }),
            committed: self.committed,
            last_index: self.last_index,
            matched: matched.collect(),
        }
    }

    /// From a message.
    pub fn decode(report: &peer::MembershipReport) -> Result<Self, CodecError> {
        let stored = codec::required(report.membership.as_ref(), "membership of a report")?;
        let matched = report.matched.iter().map(|matched| (NodeId(matched.node_id), matched.index));
        Ok(Self {
            committed: report.committed,
            last_index: report.last_index,
            matched: matched.collect(),
            ..Self::of(&codec::decode_stored_membership(stored)?)
        })
    }
}

impl MembershipStep {
    /// As a message, for the group's leader.
    pub fn encode(&self, group: u32, expected: Option<LogId>) -> peer::MembershipChange {
        use peer::membership_change::Step;
        let ids = |set: &BTreeSet<NodeId>| set.iter().map(|id| id.0).collect();
        let step = match self {
            Self::AddLearner(node, directory) => {
                Step::AddLearner(peer::Member { node_id: node.0, directory_id: directory.to_bytes() })
            }
            Self::ChangeVoters { add, remove } => {
                Step::ChangeVoters(peer::VoterChange { add: ids(add), remove: ids(remove) })
            }
            Self::FinishJoint => Step::FinishJoint(peer::FinishJoint {}),
            Self::RemoveLearner(node) => Step::RemoveLearner(node.0),
        };
        peer::MembershipChange { group, expected: expected.as_ref().map(codec::encode_log_id), step: Some(step) }
    }

    /// From a message: where it was decided, and the step.
    pub fn decode(change: &peer::MembershipChange) -> Result<(Option<LogId>, Self), CodecError> {
        use peer::membership_change::Step;
        let ids = |ids: &[u64]| ids.iter().map(|id| NodeId(*id)).collect();
        let step = match codec::required(change.step.as_ref(), "step of a membership change")? {
            Step::AddLearner(member) => {
                let (node, member) = codec::decode_member(member)?;
                Self::AddLearner(node, member.directory)
            }
            Step::ChangeVoters(change) => Self::ChangeVoters { add: ids(&change.add), remove: ids(&change.remove) },
            Step::FinishJoint(_) => Self::FinishJoint,
            Step::RemoveLearner(node) => Self::RemoveLearner(NodeId(*node)),
        };
        Ok((change.expected.as_ref().map(codec::decode_log_id), step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::log_id;

    #[test]
    fn steps_and_memberships_come_back_as_they_went() {
        let at = Some(log_id(3, NodeId(2), 7));
        let directory = DirectoryId([4; 16]);
        let steps = [
            MembershipStep::AddLearner(NodeId(4), directory),
            MembershipStep::ChangeVoters { add: [NodeId(4)].into(), remove: [NodeId(3)].into() },
            MembershipStep::FinishJoint,
            MembershipStep::RemoveLearner(NodeId(4)),
        ];
        for step in steps {
            assert_eq!(MembershipStep::decode(&step.encode(5, at)).expect("decodes"), (at, step));
        }
        let membership = GroupMembership {
            at,
            voters: vec![[1, 2].map(NodeId).into(), [1, 4].map(NodeId).into()],
            members: [1, 2, 4].map(|id| (NodeId(id), directory)).into(),
            committed: true,
            last_index: 9,
            matched: [(NodeId(4), 8)].into(),
        };
        assert_eq!(GroupMembership::decode(&membership.encode()).expect("decodes"), membership);
        assert!(!membership.is_settled());
        assert_eq!(membership.target_voters(), [1, 4].map(NodeId).into());
        assert!(MembershipStep::decode(&peer::MembershipChange::default()).is_err());
    }
}
