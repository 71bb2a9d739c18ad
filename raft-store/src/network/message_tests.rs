use proptest::prelude::*;
use unibus_proto::id::{DirectoryId, NodeId};
use unibus_proto::peer::raft_request::Request;

use super::*;
use crate::testing::TestEnv;
use crate::types::{Member, Membership, Proposal, Vote, log_id};

fn ids() -> impl Strategy<Value = LogId> {
    (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(term, node, index)| log_id(term, NodeId(node), index))
}

fn entries() -> impl Strategy<Value = Entry> {
    let payload = prop_oneof![
        Just(Payload::Blank),
        (0..3 * SHARED_BYTES_MIN).prop_map(|bytes| Payload::Normal(Proposal(vec![7; bytes].into()))),
        any::<[u8; 16]>().prop_map(|uuid| {
            let nodes = std::collections::BTreeMap::from([(NodeId(3), Member { directory: DirectoryId(uuid) })]);
            Payload::Membership(Membership::new(vec![nodes.keys().copied().collect()], nodes).expect("a voter"))
        }),
    ];
    (ids(), payload).prop_map(|(log_id, payload)| Entry { log_id, payload })
}

proptest! {
    #[test]
    fn a_frame_is_what_prost_makes_of_it(
        id in ids(),
        committed: bool,
        silent: bool,
        previous in proptest::option::of(ids()),
        leader_commit in proptest::option::of(ids()),
        entries in proptest::collection::vec(entries(), 0..6),
    ) {
        let vote = Vote { leader_id: id.leader_id, committed };
        let rpc = AppendEntriesRequest::<C<TestEnv>> { vote, prev_log_id: previous, entries, leader_commit };
        let append = peer::AppendRequest { silent, ..encode_append::<TestEnv>(&rpc) };
        let request = peer::RaftRequest { request: Some(Request::Append(append)) };
        prop_assert_eq!(append_frame::<TestEnv>(&rpc, silent).concat(), request.encode_to_vec());
    }
}
