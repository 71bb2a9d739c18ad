//! Raft's own values on disk and wire: `unibus.peer.v1` messages to openraft types and back.
//!
//! openraft's structs are never serialised: their layout may change with any version.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use unibus_proto::id::{DirectoryId, NodeId};
use unibus_proto::peer;

use crate::segment::SegmentEntry;
use crate::types::{Entry, LeaderId, LogId, Member, Membership, Payload, Proposal, StoredMembership, Vote, log_id};

/// A message that does not say what it must.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {found}, expected {expected}")]
pub struct CodecError {
    /// What was read.
    pub object: &'static str,
    /// What was found.
    pub found: String,
    /// What is allowed.
    pub expected: &'static str,
}

fn wrong(object: &'static str, found: impl Into<String>, expected: &'static str) -> CodecError {
    CodecError { object, found: found.into(), expected }
}

/// A field that must be set.
pub fn required<T>(field: Option<T>, object: &'static str) -> Result<T, CodecError> {
    field.ok_or_else(|| wrong(object, "it is not set", "a value"))
}

fn node_id(id: u64, object: &'static str) -> Result<NodeId, CodecError> {
    match id {
        0 => Err(wrong(object, "node id 0", "a node id above 0")),
        id => Ok(NodeId(id)),
    }
}

/// A vote as a message.
pub fn encode_vote(vote: &Vote) -> peer::Vote {
    peer::Vote { term: vote.leader_id.term, node_id: vote.leader_id.node_id.0, committed: vote.committed }
}

/// A vote. Node 0 is allowed: openraft's initial vote has it.
pub fn decode_vote(vote: &peer::Vote) -> Vote {
    Vote { leader_id: LeaderId { term: vote.term, node_id: NodeId(vote.node_id) }, committed: vote.committed }
}

/// A log id as a message.
pub fn encode_log_id(id: &LogId) -> peer::LogId {
    peer::LogId { term: id.leader_id.term, node_id: id.leader_id.node_id.0, index: id.index }
}

/// A log id. Node 0 is allowed: the entry that initialises a group has it.
pub fn decode_log_id(id: &peer::LogId) -> LogId {
    log_id(id.term, NodeId(id.node_id), id.index)
}

/// A membership as a message.
pub fn encode_membership(membership: &Membership) -> peer::Membership {
    let configs = membership.get_joint_config().iter();
    peer::Membership {
        configs: configs.map(|set| peer::VoterSet { node_ids: set.iter().map(|id| id.0).collect() }).collect(),
        nodes: membership.nodes().map(|(id, member)| encode_member(*id, member)).collect(),
    }
}

/// A membership.
pub fn decode_membership(membership: &peer::Membership) -> Result<Membership, CodecError> {
    let nodes = membership.nodes.iter().map(decode_member).collect::<Result<BTreeMap<_, _>, _>>()?;
    if nodes.len() != membership.nodes.len() {
        return Err(wrong("membership", "a node twice", "each node once"));
    }
    let configs = membership.configs.iter().map(decode_voters).collect::<Result<Vec<_>, _>>()?;
    Membership::new(configs, nodes).map_err(|e| wrong("membership", e.to_string(), "voters that are among the nodes"))
}

fn encode_member(id: NodeId, member: &Member) -> peer::Member {
    peer::Member { node_id: id.0, directory_id: member.directory.to_bytes() }
}

pub(crate) fn decode_member(member: &peer::Member) -> Result<(NodeId, Member), CodecError> {
    let directory = DirectoryId::from_bytes(&member.directory_id)
        .map_err(|e| wrong("directory id of a member", e.found, e.expected))?;
    Ok((node_id(member.node_id, "member")?, Member { directory }))
}

fn decode_voters(set: &peer::VoterSet) -> Result<BTreeSet<NodeId>, CodecError> {
    let voters = set.node_ids.iter().map(|id| node_id(*id, "voter")).collect::<Result<BTreeSet<_>, _>>()?;
    if voters.len() == set.node_ids.len() { Ok(voters) } else { Err(wrong("voters", "a node twice", "each node once")) }
}

/// A stored membership as a message.
pub fn encode_stored_membership(stored: &StoredMembership) -> peer::StoredMembership {
    peer::StoredMembership {
        log_id: stored.log_id().as_ref().map(encode_log_id),
        membership: Some(encode_membership(stored.membership())),
    }
}

/// A stored membership.
pub fn decode_stored_membership(stored: &peer::StoredMembership) -> Result<StoredMembership, CodecError> {
    let membership = required(stored.membership.as_ref(), "membership of a stored membership")?;
    Ok(StoredMembership::new(stored.log_id.as_ref().map(decode_log_id), decode_membership(membership)?))
}

/// A log entry as a message. The proposal's bytes are shared, not copied.
pub fn encode_entry(entry: &Entry) -> peer::LogEntry {
    let payload = match &entry.payload {
        Payload::Blank => peer::log_entry::Payload::Blank(peer::Blank {}),
        Payload::Normal(proposal) => peer::log_entry::Payload::Normal(proposal.0.clone()),
        Payload::Membership(membership) => peer::log_entry::Payload::Membership(encode_membership(membership)),
    };
    peer::LogEntry { log_id: Some(encode_log_id(&entry.log_id)), payload: Some(payload) }
}

/// A log entry.
pub fn decode_entry(entry: peer::LogEntry) -> Result<Entry, CodecError> {
    let log_id = decode_log_id(&required(entry.log_id, "log id of an entry")?);
    let payload = match required(entry.payload, "payload of an entry")? {
        peer::log_entry::Payload::Blank(_) => Payload::Blank,
        peer::log_entry::Payload::Normal(proposal) => Payload::Normal(Proposal(proposal)),
        peer::log_entry::Payload::Membership(membership) => Payload::Membership(decode_membership(&membership)?),
    };
    Ok(Entry { log_id, payload })
}

/// A segment file as a message.
pub fn encode_segment(entry: &SegmentEntry) -> peer::SnapshotSegment {
    let hash = Bytes::copy_from_slice(&entry.hash);
    peer::SnapshotSegment { id: entry.id, length: entry.length, hash, sealed: entry.sealed }
}

/// A segment file.
pub fn decode_segment(entry: &peer::SnapshotSegment) -> Result<SegmentEntry, CodecError> {
    let hash = decode_hash(&entry.hash, "hash of a segment")?;
    Ok(SegmentEntry { id: entry.id, length: entry.length, hash, sealed: entry.sealed })
}

/// A hash of 32 bytes.
pub fn decode_hash(bytes: &[u8], object: &'static str) -> Result<[u8; 32], CodecError> {
    bytes.try_into().map_err(|_| wrong(object, format!("{} bytes", bytes.len()), "32 bytes"))
}

/// Decodes a message, naming it in the error.
pub fn decode_message<M: prost::Message + Default>(bytes: Bytes, object: &'static str) -> Result<M, CodecError> {
    M::decode(bytes).map_err(|e| wrong(object, e.to_string(), "an encoded message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    fn ids() -> impl Strategy<Value = LogId> {
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(term, node, index)| log_id(term, NodeId(node), index))
    }

    fn memberships() -> impl Strategy<Value = Membership> {
        let nodes = proptest::collection::btree_map(1..50u64, any::<[u8; 16]>(), 1..8);
        (nodes, proptest::collection::vec(any::<u8>(), 0..3)).prop_map(|(nodes, masks)| {
            let nodes: BTreeMap<_, _> =
                nodes.into_iter().map(|(id, uuid)| (NodeId(id), Member { directory: DirectoryId(uuid) })).collect();
            let voters = |mask: u8| -> BTreeSet<NodeId> {
                nodes
                    .keys()
                    .enumerate()
                    .filter(|(at, _)| *at == 0 || mask & (1 << at) != 0)
                    .map(|(_, id)| *id)
                    .collect()
            };
            Membership::new(masks.into_iter().map(voters).collect(), nodes.clone()).expect("voters are nodes")
        })
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let payload = prop_oneof![
            Just(Payload::Blank),
            proptest::collection::vec(any::<u8>(), 0..64).prop_map(|bytes| Payload::Normal(Proposal(bytes.into()))),
            memberships().prop_map(Payload::Membership),
        ];
        (ids(), payload).prop_map(|(log_id, payload)| Entry { log_id, payload })
    }

    proptest! {
        #[test]
        fn entries_come_back(entry in entries()) {
            let bytes = Bytes::from(encode_entry(&entry).encode_to_vec());
            let back = decode_entry(decode_message(bytes, "entry").expect("decodes")).expect("is an entry");
            prop_assert_eq!(back, entry);
        }

        #[test]
        fn votes_and_memberships_come_back(id in ids(), committed: bool, membership in memberships()) {
            let vote = Vote { leader_id: id.leader_id, committed };
            prop_assert_eq!(decode_vote(&encode_vote(&vote)), vote);
            let stored = StoredMembership::new(Some(id), membership);
            prop_assert_eq!(decode_stored_membership(&encode_stored_membership(&stored)), Ok(stored));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = decode_message::<peer::LogEntry>(bytes.into(), "entry").and_then(decode_entry);
        }
    }

    #[test]
    fn initial_membership_comes_back() {
        let stored = StoredMembership::default();
        assert_eq!(decode_stored_membership(&encode_stored_membership(&stored)), Ok(stored));
    }

    #[test]
    fn missing_fields_are_named() {
        let error = decode_entry(peer::LogEntry::default()).expect_err("nothing is set");
        assert_eq!(error.object, "log id of an entry");
        let stray = peer::Membership { configs: vec![peer::VoterSet { node_ids: vec![7] }], nodes: vec![] };
        assert!(decode_membership(&stray).is_err(), "a voter that is no node");
        let twice = peer::Membership { configs: vec![peer::VoterSet { node_ids: vec![7, 7] }], nodes: vec![] };
        assert_eq!(decode_membership(&twice).expect_err("twice").object, "voters");
    }
}
