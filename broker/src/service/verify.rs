//! Comparing the replicas of every group at one index. Every replica takes its state hash where it applies a
//! tick, so a tick is proposed, and each node is asked for the hash at that tick's index.

use std::collections::BTreeMap;
use std::time::Duration;

use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::log::{Tick, proposal::Command};
use unibus_proto::peer::{Inspect, Inspected, node_request::Request, node_response::Response};
use unibus_proto::v1::{GroupVerification, ReplicaContent, SealedSegment, VerifyResponse};
use unibus_raft_store::env::Env;

use super::{Caller, Outcome, Service};

/// A replica that is behind gets so long to reach the index.
const PATIENCE: Duration = Duration::from_secs(2);
/// The answer's way back.
const WAY_BACK: Duration = Duration::from_millis(500);

impl<E: Env> Service<E> {
    /// Compares state hashes and sealed segments of all replicas.
    pub async fn verify(&self, caller: &Caller) -> Outcome<VerifyResponse> {
        caller.check_admin("verify")?;
        let groups = self.shards().ids().map(|group| self.verify_group(group));
        Ok(VerifyResponse { groups: futures::future::join_all(groups).await })
    }

    async fn verify_group(&self, group: GroupId) -> GroupVerification {
        let index = match self.shards().propose(group, Command::Tick(Tick {})).await {
            Ok((index, _)) => index,
            Err(failure) => {
                let missing = vec![format!("group {group}: no index to compare at: {}", failure.message)];
                return GroupVerification { group: group.0, missing, ..GroupVerification::default() };
            }
        };
        let voters = self.shards().group(group).map(|replica| replica.status().voters).unwrap_or_default();
        let asked = voters.into_iter().map(|node| self.ask_content(node, group, index));
        let mut replicas = futures::future::join_all(asked).await;
        let differences = differences(group, index, &replicas);
        let missing = replicas.iter().filter(|replica| !replica.missing.is_empty());
        let missing = missing.map(|replica| format!("group {group}: {}: {}", replica.name, replica.missing)).collect();
        // A large timeline has more segments than one answer should carry; they are compared here.
        replicas.iter_mut().for_each(|replica| replica.segments.truncate(SEGMENTS_TOLD));
        GroupVerification { group: group.0, index, differences, missing, replicas }
    }

    async fn ask_content(&self, node: NodeId, group: GroupId, index: u64) -> ReplicaContent {
        let content = match self.shards().peers().link(node) {
            _ if node == self.node() => self.content(group, index).await,
            None => absent("it is no peer of the node that asks".into()),
            Some(link) => {
                let inspect = Request::Inspect(Inspect { group: group.0, index });
                match link.request::<E>(inspect, PATIENCE + WAY_BACK).await {
                    Ok(Response::Inspected(Inspected { content: Some(content) })) => content,
                    Ok(Response::Error(error)) => absent(error.message),
                    Ok(_) => absent("it gave an answer to another question".into()),
                    Err(error) => absent(format!("it could not be asked: {error}")),
                }
            }
        };
        ReplicaContent { node_id: node.0, name: self.name_of(node), ..content }
    }

    pub(super) async fn serve_inspect(&self, Inspect { group, index }: Inspect) -> Response {
        Response::Inspected(Inspected { content: Some(self.content(GroupId(group), index).await) })
    }

    /// What this node's replica holds.
    async fn content(&self, group: GroupId, index: u64) -> ReplicaContent {
        let Ok(replica) = self.shards().group(group) else { return absent("it does not have the group".into()) };
        if let Err(behind) = replica.wait_applied(index, PATIENCE).await {
            return absent(format!("it has applied entry {}, expected {index} within {PATIENCE:?}", behind.applied));
        }
        let Some(hash) = replica.state_hash_at(index) else {
            return absent(format!("it went past entry {index} by a snapshot; verify again"));
        };
        let segments = replica.sealed_segments().into_iter().map(|segment| SealedSegment {
            id: segment.id,
            length: segment.length,
            hash: segment.hash.to_vec().into(),
        });
        ReplicaContent { state_hash: hash.0.to_vec().into(), segments: segments.collect(), ..ReplicaContent::default() }
    }
}

/// Segments of a replica that an answer names, the oldest ones.
const SEGMENTS_TOLD: usize = 1_000;

fn absent(missing: String) -> ReplicaContent {
    ReplicaContent { missing, ..ReplicaContent::default() }
}

/// What the replicas that could be asked do not hold alike. A segment that one of them does not have sealed
/// (yet, or any more) is not a difference: the state hash covers which there are.
fn differences(group: GroupId, index: u64, replicas: &[ReplicaContent]) -> Vec<String> {
    let mut hashes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut segments: BTreeMap<u64, BTreeMap<String, Vec<&str>>> = BTreeMap::new();
    for replica in replicas.iter().filter(|replica| replica.missing.is_empty()) {
        hashes.entry(hex::encode(&replica.state_hash)).or_default().push(&replica.name);
        for SealedSegment { id, length, hash } in &replica.segments {
            let content = format!("{length} bytes, hash {}", hex::encode(hash));
            segments.entry(*id).or_default().entry(content).or_default().push(&replica.name);
        }
    }
    let hashes = sides(&hashes).map(|sides| format!("group {group} at entry {index}: state hash {sides}"));
    let segments =
        segments.iter().filter_map(|(id, contents)| Some(format!("group {group} segment {id}: {}", sides(contents)?)));
    hashes.into_iter().chain(segments).collect()
}

/// Who holds what, the most frequent first; none when all hold the same.
fn sides(contents: &BTreeMap<String, Vec<&str>>) -> Option<String> {
    if contents.len() < 2 {
        return None;
    }
    let mut sides: Vec<_> = contents.iter().collect();
    sides.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    let texts = sides.into_iter().map(|(content, names)| format!("{} on {}", shortened(content), names.join(", ")));
    Some(texts.collect::<Vec<_>>().join(" against "))
}

/// Hashes are told by their beginning, which tells them apart.
fn shortened(content: &str) -> String {
    const DIGITS: usize = 16;
    match content.rsplit_once(' ') {
        Some((before, hash)) => format!("{before} {}", &hash[..hash.len().min(DIGITS)]),
        None => content[..content.len().min(DIGITS)].to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(name: &str, hash: u8, segments: &[(u64, u8)]) -> ReplicaContent {
        let segment = |&(id, hash): &(u64, u8)| SealedSegment { id, length: 9, hash: vec![hash; 32].into() };
        let segments = segments.iter().map(segment).collect();
        ReplicaContent { name: name.into(), state_hash: vec![hash; 32].into(), segments, ..ReplicaContent::default() }
    }

    #[test]
    fn equal_replicas_and_those_that_could_not_be_asked_make_no_difference() {
        let silent = ReplicaContent { name: "n3".into(), ..absent("it could not be asked".into()) };
        let same = [replica("n1", 1, &[(0, 7), (1, 8)]), replica("n2", 1, &[(0, 7)]), silent];
        assert_eq!(differences(GroupId(1), 512, &same), Vec::<String>::new());
    }

    #[test]
    fn a_difference_names_node_group_index_and_segment() {
        let replicas = [replica("n1", 1, &[(4, 7)]), replica("n2", 2, &[(4, 7)]), replica("n3", 1, &[(4, 6)])];
        assert_eq!(
            differences(GroupId(2), 300, &replicas),
            [
                "group s2 at entry 300: state hash 0101010101010101 on n1, n3 against 0202020202020202 on n2",
                "group s2 segment 4: 9 bytes, hash 0707070707070707 on n1, n2 against 9 bytes, hash 0606060606060606 on n3",
            ]
        );
    }
}
