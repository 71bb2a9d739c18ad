//! A node is cut off: the rest goes on, the minority says why it does not.

use std::time::Duration;

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::v1::publish_outcome::Outcome;
use unibus_proto::v1::*;
use unibus_raft_store::env::{Instant, now};

use crate::cluster::{Cluster, PATIENCE, earliest, eventually, shard_of};
use crate::net::HubEnv;

/// Publishes until it is stored, as an SDK does: with the same ids.
async fn publish_through(user: &crate::cluster::User, room: &Room, number: u64) -> Outcome {
    let start = now::<HubEnv>();
    loop {
        match user.publish(room, number, &[&number.to_string()]).await {
            Ok(response) => return response.outcomes[0].outcome.clone().unwrap(),
            Err(failure) => {
                let may_retry = matches!(failure.code, ErrorCode::NoLeader | ErrorCode::OutcomeUnknown);
                assert!(may_retry && start.elapsed() < PATIENCE, "{failure}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_and_reading_go_on_when_the_leader_is_cut_off() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.failover").await;
    let leader = alice.service.shards().group(shard_of(&room)).unwrap().leader().unwrap();
    let other = (1..=3).find(|&node| NodeId(node) != leader).unwrap() as usize;
    let there = alice.at(cluster.service(other)).await;
    let mut reader = there.subscribe("ops.failover", earliest()).await.unwrap();
    assert!(matches!(publish_through(&there, &room, 1).await, Outcome::Stored(_)));
    cluster.hub.cut(leader);
    for number in 2..=20 {
        let outcome = publish_through(&there, &room, number).await;
        assert!(matches!(outcome, Outcome::Stored(_) | Outcome::Duplicate(_)), "{outcome:?}");
    }
    let bodies: Vec<_> = reader.messages(20).await.into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(bodies, (1..=20).map(|n| n.to_string()).collect::<Vec<_>>());

    cluster.hub.heal(leader);
    let back = alice.at(cluster.service(leader.0 as usize)).await;
    let mut reader = back.subscribe("ops.failover", earliest()).await.unwrap();
    let bodies: Vec<_> = reader.messages(20).await.into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(bodies, (1..=20).map(|n| n.to_string()).collect::<Vec<_>>(), "on the node that was cut off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_writes_and_reads_are_refused_in_time_with_the_reason() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.quorum").await;
    cluster.hub.cut(NodeId(2));
    cluster.hub.cut(NodeId(3));
    eventually("the loss is noticed", || cluster.service(1).peers_reachable() == 0).await;
    let (start, failure) = (now::<HubEnv>(), alice.publish(&room, 1, &["x"]).await.expect_err("no quorum"));
    assert!(start.elapsed() <= Duration::from_millis(2_000), "took {:?}", start.elapsed());
    assert!(matches!(failure.code, ErrorCode::NoLeader | ErrorCode::OutcomeUnknown), "{failure}");
    assert!(failure.message.contains("1 of 3 voters are reachable"), "{failure}");
    let (start, failure) = (now::<HubEnv>(), alice.get(&room).await.expect_err("no quorum"));
    assert!(start.elapsed() <= Duration::from_millis(2_100), "took {:?}", start.elapsed());
    assert_eq!(failure.code, ErrorCode::NoLeader, "{failure}");
    let status = alice.service.status();
    assert!(status.problems.iter().any(|problem| problem.contains("n2 is not reachable")), "{:?}", status.problems);
    assert_eq!(status.nodes.iter().filter(|node| node.reachable).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leadership_is_handed_over_to_a_voter_that_can_take_it() {
    let cluster = Cluster::start(3).await;
    eventually("the nodes hear of each other", || (1..=3).all(|node| cluster.service(node).peers_reachable() == 2))
        .await;
    let group = GroupId(1);
    let service = cluster.service(1);
    let leader = service.shards().group(group).unwrap().leader().unwrap();
    let at_leader = cluster.service(leader.0 as usize);
    let to = NodeId(leader.0 % 3 + 1);
    let refused = cluster.service(to.0 as usize).shards().transfer(group, leader).await;
    assert!(refused.is_ok(), "it leads already");
    let refused = at_leader.shards().transfer(group, NodeId(9)).await.expect_err("no voter").code;
    assert_eq!(refused, ErrorCode::Invalid);
    at_leader.shards().transfer(group, to).await.unwrap();
    assert_eq!(at_leader.shards().group(group).unwrap().leader(), Some(to));
    let kept = cluster.service(to.0 as usize).hand_over().await;
    assert_eq!(kept, []);
    assert_ne!(cluster.service(to.0 as usize).shards().group(group).unwrap().leader(), Some(to));
}
