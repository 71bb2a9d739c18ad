//! What is wrong with the cluster, worst first, in words that say what to do. Pure.

use std::collections::{BTreeMap, BTreeSet};

use unibus_proto::id::GroupId;
use unibus_proto::limits::CLOCK_SKEW_MAX;
use unibus_proto::v1::{NodeStatus, ReplicaStatus};

/// Entries by which a replica may be behind before it is worth a word: what a busy group does in a second.
const LAG_MAX: u64 = 5_000;
/// A node with less than this share of its disk free, in percent, needs attention.
const DISK_FREE_PERCENT_MIN: u64 = 10;

/// From the worst to the least bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Damage,
    NoService,
    Degraded,
    Attention,
}

/// The problems that the nodes' statuses show.
pub(super) fn of(nodes: &[NodeStatus], groups: impl Iterator<Item = GroupId>) -> Vec<String> {
    let mut problems = BTreeSet::new();
    for group in groups {
        of_group(nodes, group, &mut problems);
    }
    nodes.iter().for_each(|node| of_node(node, &mut problems));
    problems.into_iter().map(|(_, text)| text).collect()
}

type Problems = BTreeSet<(Severity, String)>;

fn of_group(nodes: &[NodeStatus], group: GroupId, problems: &mut Problems) {
    let replicas: Vec<(&str, &ReplicaStatus)> = nodes
        .iter()
        .filter(|node| node.reachable)
        .flat_map(|node| node.replicas.iter().map(|replica| (node.name.as_str(), replica)))
        .filter(|(_, replica)| replica.group == group.0)
        .collect();
    if !replicas.iter().any(|(_, replica)| replica.leader != 0) {
        let text = format!("group {group} has no leader: its rooms take no messages; start the nodes that are down");
        problems.insert((Severity::NoService, text));
    }
    differing_hashes(group, &replicas, problems);
    let newest = replicas.iter().map(|(_, replica)| replica.committed_index).max().unwrap_or(0);
    for (name, replica) in replicas {
        let lag = newest.saturating_sub(replica.applied_index);
        if lag > LAG_MAX {
            problems.insert((Severity::Degraded, format!("{name} is {lag} entries behind in group {group}")));
        }
    }
}

fn differing_hashes(group: GroupId, replicas: &[(&str, &ReplicaStatus)], problems: &mut Problems) {
    let mut hashes: BTreeMap<u64, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for (name, replica) in replicas.iter().filter(|(_, replica)| replica.state_hash_index != 0) {
        hashes.entry(replica.state_hash_index).or_default().entry(&replica.state_hash).or_default().push(name);
    }
    for (index, by_hash) in hashes.iter().filter(|(_, by_hash)| by_hash.len() > 1) {
        let sides: Vec<String> = by_hash.values().map(|names| names.join("+")).collect();
        let text = format!(
            "replicas of group {group} differ at entry {index}: {}; stop the minority and keep its directory",
            sides.join(" against ")
        );
        problems.insert((Severity::Damage, text));
    }
}

fn of_node(node: &NodeStatus, problems: &mut Problems) {
    let name = &node.name;
    if !node.reachable {
        problems.insert((Severity::Degraded, format!("{name} is not reachable at {}", node.peer_address)));
        return;
    }
    for why in &node.not_ready {
        problems.insert((Severity::Degraded, format!("{name} is not ready: {why}")));
    }
    if node.clock_offset_ms.unsigned_abs() > CLOCK_SKEW_MAX.as_millis() as u64 {
        let text = format!("{name}'s wall clock is off by {} ms; check its time service", node.clock_offset_ms);
        problems.insert((Severity::Attention, text));
    }
    let disk = node.disk_used_bytes.saturating_add(node.disk_free_bytes);
    if disk > 0 && node.disk_free_bytes < disk / 100 * DISK_FREE_PERCENT_MIN {
        let text = format!("{name} has {} MiB of disk left", node.disk_free_bytes >> 20);
        problems.insert((Severity::Attention, text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, leader: u64) -> NodeStatus {
        let replica = ReplicaStatus { leader, state_hash_index: 256, state_hash: "aa".into(), ..Default::default() };
        let replicas = vec![replica];
        NodeStatus { node_id: id, name: format!("n{id}"), reachable: true, replicas, ..Default::default() }
    }

    fn problems(nodes: &[NodeStatus]) -> Vec<String> {
        of(nodes, [GroupId::META].into_iter())
    }

    #[test]
    fn a_healthy_cluster_has_none() {
        assert_eq!(problems(&[node(1, 1), node(2, 1), node(3, 1)]), Vec::<String>::new());
    }

    #[test]
    fn the_worst_comes_first() {
        let mut nodes = [node(1, 0), node(2, 0), node(3, 0)];
        nodes[2].reachable = false;
        nodes[1].replicas[0].state_hash = "bb".into();
        nodes[1].clock_offset_ms = -2_000;
        let found = problems(&nodes);
        let order = ["differ at entry 256: n1 against n2", "no leader", "n3 is not reachable", "wall clock"];
        assert_eq!(found.len(), order.len(), "{found:?}");
        for (found, expected) in found.iter().zip(order) {
            assert!(found.contains(expected), "{found:?} lacks {expected:?}");
        }
    }
}
