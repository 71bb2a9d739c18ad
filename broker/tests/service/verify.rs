//! `Verify`: all replicas at one index, under load and idle, and who could not be asked.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use unibus_broker::service::Caller;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::NodeId;

use crate::cluster::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_compared_at_one_index_idle_and_under_load() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.verify").await;
    let load = async {
        for number in 1..=600 {
            alice.publish(&room, number, &["under load"]).await.unwrap();
        }
    };
    let verify = async {
        let mut found = Vec::new();
        for node in 1..=3 {
            found.push(cluster.service(node).verify(&Caller::Local).await.unwrap());
        }
        found
    };
    let ((), found) = tokio::join!(load, verify);
    for (node, found) in (1..).zip(found) {
        assert_eq!(found.groups.len(), 3);
        for group in found.groups {
            assert_eq!((&group.differences, &group.missing), (&vec![], &vec![]), "asked node {node}");
            assert!(group.index > 0);
            let hashes: Vec<_> = group.replicas.iter().map(|replica| &replica.state_hash).collect();
            assert!(hashes.len() == 3 && hashes[0].len() == 32 && hashes.iter().all(|hash| *hash == hashes[0]));
        }
    }
    let refused = cluster.service(1).verify(&alice.caller).await.expect_err("no admin").code;
    assert_eq!(refused, ErrorCode::Forbidden);
}

/// P10: what is compared is there also where the log entry that asks for it holds other commands too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_replicas_are_compared_while_rooms_are_made() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let (made, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let maker = async |number: u64| {
        while !ended.load(Ordering::Relaxed) {
            alice.create(&format!("ops.r{number}x{}", made.fetch_add(1, Ordering::Relaxed))).await;
        }
    };
    let verify = async {
        for _ in 0..5 {
            let found = cluster.service(1).verify(&Caller::Local).await.unwrap();
            let missing: Vec<_> = found.groups.iter().flat_map(|group| &group.missing).collect();
            assert!(missing.is_empty(), "{missing:?}");
        }
        ended.store(true, Ordering::Relaxed);
    };
    tokio::join!(verify, futures::future::join_all((0..32).map(maker)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_be_asked_is_named() {
    let cluster = Cluster::start(3).await;
    cluster.hub.cut(NodeId(3));
    eventually("it is out", || {
        (0..3).all(|group| {
            let leader = cluster.service(1).shards().group(unibus_proto::id::GroupId(group)).unwrap().leader();
            leader.is_some_and(|leader| leader != NodeId(3))
        })
    })
    .await;
    let found = cluster.service(1).verify(&Caller::Local).await.unwrap();
    for group in found.groups {
        assert_eq!(group.differences, Vec::<String>::new());
        assert!(group.missing.len() == 1 && group.missing[0].contains("n3"), "{:?}", group.missing);
    }
}
