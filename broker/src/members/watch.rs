//! What each node does with a new registry: talks to new nodes, cuts off removed ones, leads nothing while
//! it is drained, and stops when it was removed itself.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::v1::NodeState;
use unibus_raft_store::env::{Env, Net, sleep};

use super::{Members, REMOVED, id_of, removed_text};
use crate::service::Service;

/// Between two looks: a removed node is cut off within this time.
const PERIOD: Duration = Duration::from_millis(100);

/// Looks for ever, or until this node is removed; says then why.
pub async fn run<E: Env>(env: E, members: Arc<Members<E>>, service: Service<E>) -> String {
    let (mut version, mut own) = (None, None);
    loop {
        let found = members.version();
        if version != Some(found) {
            (version, own) = (Some(found), members.state_of(members.identity.node));
            apply(&env, &members, &service);
        }
        if let Some(why) = removal(&members, &service, own) {
            *members.removed.write().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
            return why;
        }
        if matches!(own, Some(NodeState::Draining | NodeState::Removing)) {
            lead_nothing(&members, &service).await;
        }
        sleep::<E>(PERIOD).await;
    }
}

fn apply<E: Env>(env: &E, members: &Members<E>, service: &Service<E>) {
    let mut present = members.present();
    present.remove(&members.identity.node);
    service.shards().peers().set(present.keys().copied());
    let addresses: BTreeMap<NodeId, String> = present.into_iter().map(|(id, node)| (id, node.peer_address)).collect();
    env.net().set_peers(addresses);
}

/// Why this node is no member any more: by the registry, or by the word of a member, which is only ever
/// said of who was removed for good.
fn removal<E: Env>(members: &Members<E>, service: &Service<E>, state: Option<NodeState>) -> Option<String> {
    let own = members.identity.node;
    let peers = service.shards().peers();
    let told = peers.refusals().into_iter().find_map(|why| why.split_once(REMOVED).map(|(_, text)| text.to_owned()));
    if state != Some(NodeState::Removed) {
        return told;
    }
    let rows = members.registry().nodes;
    rows.iter().find(|row| id_of(row) == own).map(|row| removed_text(own, row))
}

async fn lead_nothing<E: Env>(members: &Members<E>, service: &Service<E>) {
    let (own, shards) = (members.identity.node, service.shards());
    let led = shards.ids().filter(|&group| shards.group(group).is_ok_and(|it| it.leader() == Some(own)));
    let transfers = led.filter_map(|group| Some(hand_over(service, group, shards.best_successor(group)?)));
    futures::future::join_all(transfers).await;
}

async fn hand_over<E: Env>(service: &Service<E>, group: GroupId, to: NodeId) {
    match service.shards().transfer(group, to).await {
        Ok(()) => tracing::info!(%group, %to, "leadership handed over: this node is drained"),
        Err(failure) => tracing::debug!(%group, %to, %failure, "leadership not handed over yet"),
    }
}
