//! Leaderships: spread over the nodes, moved on request, kept away from a node that declines.

use std::time::Duration;

use unibus_broker::service::Caller;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::v1::*;
use unibus_raft_store::env::{Instant, now};

use crate::cluster::{Cluster, TestService, eventually, shard_of};
use crate::net::HubEnv;

fn leader(service: &TestService, group: u32) -> Option<NodeId> {
    service.shards().group(GroupId(group)).unwrap().leader()
}

fn at_leader(cluster: &Cluster, group: u32) -> TestService {
    cluster.service(leader(&cluster.service(1), group).expect("a leader").0 as usize)
}

fn to(group: u32, to: u64) -> TransferLeaderRequest {
    TransferLeaderRequest { group, to }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_leads_its_share_and_a_node_that_comes_back_gets_it_again() {
    let cluster = Cluster::start(3).await;
    let led = |node: u64| (0..3).filter(|&group| leader(&cluster.service(1), group) == Some(NodeId(node))).count();
    assert_eq!([led(1), led(2), led(3)], [1, 1, 1]);
    cluster.hub.cut(NodeId(3));
    eventually("the others take over", || led(3) == 0 && led(1) + led(2) == 3).await;
    cluster.hub.heal(NodeId(3));
    cluster.spread().await;
    assert_eq!([led(1), led(2), led(3)], [1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_sees_no_error_while_leaderships_move() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.moves").await;
    let shard = shard_of(&room).0;
    let (mut number, mut moves, mut longest) = (0, 0, Duration::ZERO);
    while moves < 8 {
        let there = alice.at(cluster.service(moves % 3 + 1)).await;
        let from = leader(&there.service, shard).unwrap_or(NodeId(1));
        let moving = cluster.service(from.0 as usize);
        let moved = tokio::spawn(async move { moving.shards().transfer(GroupId(shard), NodeId(from.0 % 3 + 1)).await });
        while !moved.is_finished() {
            number += 1;
            let begun = now::<HubEnv>();
            let stored = there.publish(&room, number, &[&number.to_string()]).await;
            stored.unwrap_or_else(|failure| panic!("message {number} after {moves} moves: {failure}"));
            longest = longest.max(begun.elapsed());
        }
        // The spreading moves it too: then this node does not lead any more, and is refused.
        moves += usize::from(moved.await.unwrap().is_ok());
    }
    // Some 50 ms on a quiet machine; much more only where something else is built at the same time.
    assert!(longest < Duration::from_millis(1_500), "a publish took {longest:?} while the leader moved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_moved_on_request_is_confirmed_and_stays() {
    let cluster = Cluster::start(3).await;
    let (group, other) = (1, 2);
    let from = leader(&cluster.service(1), group).unwrap().0;
    let wanted = from % 3 + 1;
    let moved = at_leader(&cluster, group).transfer_leader(&Caller::Local, to(group, wanted)).await.unwrap();
    assert_eq!(moved.leader, wanted);
    assert!(moved.took_us > 0);
    // Another one that nobody asked for goes back: the spreading has been at work.
    let home = leader(&cluster.service(1), other).unwrap();
    let astray = NodeId(home.0 % 3 + 1);
    at_leader(&cluster, other).shards().transfer(GroupId(other), astray).await.unwrap();
    eventually("it goes back", || leader(&cluster.service(1), other) == Some(home)).await;
    assert_eq!(leader(&cluster.service(1), group), Some(NodeId(wanted)));
    let info = cluster.service(1).list_groups().groups.remove(group as usize);
    assert_eq!((info.leader, info.preferred, info.members.len()), (wanted, from, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_declines_leads_nothing_until_it_is_well() {
    let cluster = Cluster::start(3).await;
    let led = |node: u64| (0..3).any(|group| leader(&cluster.service(1), group) == Some(NodeId(node)));
    cluster.service(2).shards().decline_leadership(Some("its disk is full".into()));
    eventually("it hands over", || !led(2)).await;
    let refused = at_leader(&cluster, 0).transfer_leader(&Caller::Local, to(0, 2)).await.expect_err("it declines");
    assert!(refused.message.contains("its disk is full"), "{refused}");
    cluster.service(2).shards().decline_leadership(None);
    cluster.spread().await;
    assert!(led(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_cannot_be_is_refused_in_words() {
    let cluster = Cluster::start(3).await;
    let refused = at_leader(&cluster, 1).transfer_leader(&Caller::Local, to(1, 9)).await.expect_err("no voter");
    assert_eq!(refused.code, ErrorCode::Invalid);
    assert!(refused.message.contains("it is no voter of the group, expected one of 1, 2, 3"), "{refused}");
    let refused = at_leader(&cluster, 1).transfer_leader(&Caller::Local, to(7, 1)).await.expect_err("no group");
    assert_eq!(refused.code, ErrorCode::Invalid);
    let leads = leader(&cluster.service(1), 1).unwrap().0;
    let silent = leads % 3 + 1;
    cluster.hub.cut(NodeId(silent));
    let at_leader = cluster.service(leads as usize);
    eventually("its silence is noticed", || !at_leader.shards().peers().is_reachable(NodeId(silent))).await;
    let refused = at_leader.transfer_leader(&Caller::Local, to(1, silent)).await.expect_err("silent");
    assert!(refused.message.contains("nothing was heard from it for 2 s"), "{refused}");
    let alice = cluster.user("alice", leads as usize).await;
    let refused = at_leader.transfer_leader(&alice.caller, to(1, 1)).await.expect_err("no admin");
    assert_eq!(refused.code, ErrorCode::Forbidden);
}
