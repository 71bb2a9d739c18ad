use unibus_proto::v1::ReplicaStatus;

use super::*;

fn replica(group: u32, role: &str, applied: u64, hash: &str) -> ReplicaStatus {
    ReplicaStatus {
        group,
        role: role.into(),
        term: 3,
        committed_index: applied,
        applied_index: applied,
        state_hash: hash.into(),
        state_hash_index: 256,
        ..ReplicaStatus::default()
    }
}

fn node(id: u64, replicas: Vec<ReplicaStatus>) -> NodeStatus {
    NodeStatus {
        node_id: id,
        name: format!("n{id}"),
        client_address: format!("127.0.0.1:740{id}"),
        peer_address: format!("127.0.0.1:750{id}"),
        reachable: true,
        disk_used_bytes: 5 << 20,
        replicas,
        ..NodeStatus::default()
    }
}

fn healthy() -> GetStatusResponse {
    GetStatusResponse {
        cluster_id: vec![0xab; 16].into(),
        nodes: vec![
            node(1, vec![replica(0, "leader", 300, "aa"), replica(1, "follower", 900, "bb")]),
            node(2, vec![replica(0, "follower", 300, "aa"), replica(1, "leader", 1_000, "bb")]),
            node(3, vec![replica(0, "follower", 298, "aa"), replica(1, "follower", 1_000, "bb")]),
        ],
        node_id: 1,
        problems: Vec::new(),
    }
}

#[test]
fn healthy_cluster_reads_at_a_glance() {
    let status = healthy();
    assert_eq!(
        headline(&status),
        "cluster abababab: ok - 3 of 3 nodes ready, 2 of 2 groups have a leader, replicas agree (2 groups compared)"
    );
    let rows = node_rows(&status);
    assert_eq!(rows[0][..5], ["n1", "ready", "1", "1,200", "100"]);
    assert_eq!(rows[2][..5], ["n3", "ready", "0", "1,298", "2"]);
    assert_eq!(group_rows(&status)[1][..5], ["s1", "n2", "3", "1000", "900/1000/1000"]);
    let screen = screen(&status, true);
    assert!(screen.contains("NODE") && screen.contains("GROUP") && screen.contains("5.0 MiB"), "{screen}");
}

#[test]
fn problems_come_first() {
    let mut status = healthy();
    status.problems.push("n3 is unreachable: one more loss stops writes".into());
    status.nodes[2].reachable = false;
    let screen = screen(&status, false);
    let mut lines = screen.lines();
    assert!(lines.next().is_some_and(|line| line.contains("NOT OK - 2 of 3 nodes ready")), "{screen}");
    assert!(lines.next().is_some_and(|line| line.starts_with("  ! n3 is unreachable")), "{screen}");
    assert_eq!(node_rows(&status)[2][1], "UNREACHABLE");
    assert_eq!(node_rows(&status)[2].len(), NODE_HEAD.len());
}

#[test]
fn replicas_are_compared_at_the_same_index_only() {
    let mut status = healthy();
    status.nodes[0].replicas[1].state_hash = "cc".into();
    assert!(headline(&status).ends_with("replicas DIFFER in s1"), "{}", headline(&status));
    assert_eq!(describe(&status)["groups"][1]["replicas_agree"], false);
    status.nodes[0].replicas[1].state_hash_index = 512;
    assert!(headline(&status).contains("replicas agree"), "{}", headline(&status));
    for node in &mut status.nodes {
        node.replicas.iter_mut().for_each(|replica| replica.state_hash_index = 0);
    }
    assert!(headline(&status).ends_with("replicas not compared yet"));
    assert_eq!(describe(&status)["groups"][1]["replicas_agree"], Value::Null);
}

#[test]
fn group_without_a_leader_and_with_two() {
    let mut status = healthy();
    status.nodes[0].replicas[0].role = "candidate".into();
    assert!(headline(&status).contains("1 of 2 groups have a leader"));
    assert_eq!(group_rows(&status)[0][1], "NONE");
    status.nodes[1].replicas[0].leader = 3;
    assert_eq!(group_rows(&status)[0][1], "n3", "the others know a leader that is out of reach");
    status.nodes[1].replicas[0].leader = 0;
    status.nodes[0].replicas[0].role = "leader".into();
    status.nodes[1].replicas[0].role = "leader".into();
    status.nodes[1].replicas[0].term = 4;
    assert_eq!(groups(&status)[&0].leader, Some(2), "the higher term leads");
}

#[test]
fn leader_without_a_majority_is_none() {
    let mut status = healthy();
    status.nodes[2].reachable = false;
    assert!(headline(&status).contains("2 of 2 groups have a leader"));
    status.nodes[1].reachable = false;
    assert!(headline(&status).contains("0 of 2 groups have a leader"), "{}", headline(&status));
    assert_eq!(node_rows(&status)[0][2], "0");
}

#[test]
fn first_address_in_the_json_is_a_client_address() {
    let value = describe(&healthy());
    assert_eq!(value["ok"], true);
    assert_eq!(value["nodes"][0]["lag_entries"], 100);
    let text = value.to_string();
    assert!(text.find("127.0.0.1:7401").unwrap() < text.find("127.0.0.1:7501").unwrap());
}
