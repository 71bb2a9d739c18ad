//! The initializer formed meta and never came back.

use std::collections::BTreeMap;

use prost::Message;
use unibus_broker::node::Node;
use unibus_proto::id::{DirectoryId, GroupId, NodeId};
use unibus_proto::peer::formation_response::State;
use unibus_proto::peer::stream_open::Purpose;
use unibus_proto::peer::{FormationRequest, FormationResponse, FormationStream};
use unibus_raft_store::env::{FrameRx, FrameTx, Lane};
use unibus_raft_store::stream::open_stream;
use unibus_raft_store::types::Member;
use unibus_raft_store::{Identity, Store};

use crate::cluster::{CLUSTER, eventually, node_config, plan, sign_key};
use crate::net::{Hub, HubEnv};

const INITIALIZER: NodeId = NodeId(1);

/// Asks a node for its promise until it gives it; answers its directory.
async fn promise(env: &HubEnv, identity: &Identity, peer: NodeId) -> DirectoryId {
    loop {
        let purpose = Purpose::Formation(FormationStream {});
        let opened = open_stream::<HubEnv>(env, identity, peer, purpose, Lane::Control).await;
        let (mut tx, mut rx) = opened.expect("it is there");
        let plan_hash = plan(3).hash().to_vec().into();
        let request = FormationRequest { plan_hash, initializer: identity.directory.to_bytes() };
        tx.send(vec![request.encode_to_vec().into()]).await.unwrap();
        let answer = FormationResponse::decode(rx.recv().await.unwrap().unwrap()).unwrap();
        if answer.state() == State::Promised {
            return DirectoryId::from_bytes(&answer.directory_id).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_finish_what_the_initializer_began() {
    let hub = std::sync::Arc::new(Hub::default());
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut nodes = Vec::new();
    for id in [2, 3] {
        let config = node_config(NodeId(id), plan(3), dirs[id as usize - 1].path());
        nodes.push(Box::pin(Node::start(hub.env(NodeId(id)), config, sign_key(id))).await.unwrap());
    }
    let env = hub.env(INITIALIZER);
    let config = node_config(INITIALIZER, plan(3), dirs[0].path());
    let (identity, _lock) = Identity::open(&env, dirs[0].path(), CLUSTER, INITIALIZER).await.unwrap();
    let mut store = config.store;
    (store.dir, store.groups) = (dirs[0].path().into(), 3);
    let store = Box::pin(Store::open(env.clone(), identity, store)).await.unwrap();
    let mut members = BTreeMap::from([(INITIALIZER, Member { directory: identity.directory })]);
    for peer in [2, 3].map(NodeId) {
        members.insert(peer, Member { directory: promise(&env, &identity, peer).await });
    }
    store.group(GroupId::META).unwrap().initialize(members).await.unwrap();
    eventually("meta reaches another node", || {
        nodes.iter().any(|node| node.store().group(GroupId::META).unwrap().is_initialized())
    })
    .await;
    hub.cut(INITIALIZER);

    eventually("the others are ready", || nodes.iter().all(|node| node.not_ready().is_empty())).await;
    for node in &nodes {
        for group in node.store().groups() {
            assert_eq!(group.members().count(), 3, "group {}", group.id());
        }
        let registered = node.store().group(GroupId::META).unwrap().view(|machine| machine.nodes());
        assert_eq!(registered[0].directory_id, identity.directory.to_bytes());
    }
}
