//! The nodes: what is wanted of each, recorded in meta by admins; the reconciler carries it out.

use std::collections::BTreeSet;

use bytes::Bytes;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::log::{NodeAdd, NodeDrain, NodeRemove, PlannedNode, proposal::Command};
use unibus_proto::row::NodeRow;
use unibus_proto::v1::{AddNodeRequest, ListNodesResponse, NodeInfo, NodeState, RemoveNodeRequest, ReplaceNodeRequest};
use unibus_raft_store::env::Env;

use super::{Caller, Failure, Outcome, Service, check};
use crate::members::decide::{has_live_majority, join};
use crate::members::{id_of, state};

impl<E: Env> Service<E> {
    /// The nodes, those that ask to be taken in, and those that were removed.
    pub async fn list_nodes(&self, caller: &Caller) -> Outcome<ListNodesResponse> {
        caller.check_admin("list nodes")?;
        self.shards().barrier(GroupId::META).await?;
        let rows = self.node_rows();
        let known: BTreeSet<NodeId> = rows.iter().map(id_of).collect();
        let waiting = self.askers().into_iter().filter(|node| !known.contains(&NodeId(node.node_id)));
        let waiting = waiting.map(|node| NodeInfo { state: NodeState::Waiting.into(), ..self.address_card(node) });
        let mut nodes: Vec<NodeInfo> = rows.into_iter().map(|row| self.info(row)).collect();
        nodes.extend(waiting.collect::<Vec<_>>());
        Ok(ListNodesResponse { nodes, moving: self.all_moving() })
    }

    /// Takes in a node that asks for it.
    pub async fn add_node(&self, caller: &Caller, request: AddNodeRequest) -> Outcome<NodeInfo> {
        caller.check_admin("add node")?;
        self.take_in(caller, "add node", request.request_id, &request.node, 0).await
    }

    /// A node that asks for it takes the place of another one.
    pub async fn replace_node(&self, caller: &Caller, request: ReplaceNodeRequest) -> Outcome<NodeInfo> {
        let what = "replace node";
        caller.check_admin(what)?;
        self.shards().barrier(GroupId::META).await?;
        let replaced = self.find(what, &request.node)?;
        self.take_in(caller, what, request.request_id, &request.with, id_of(&replaced).0).await
    }

    /// A node leads nothing from now on, or may lead again.
    pub async fn drain_node(
        &self,
        caller: &Caller,
        request_id: Bytes,
        node: &str,
        draining: bool,
    ) -> Outcome<NodeInfo> {
        let what = if draining { "drain node" } else { "undrain node" };
        caller.check_admin(what)?;
        check::request_id(&request_id)?;
        self.shards().barrier(GroupId::META).await?;
        let row = self.find(what, node)?;
        let node_id = id_of(&row).0;
        let drain = NodeDrain { request_id, node_id, draining, actor: caller.actor() };
        self.record(Command::NodeDrain(drain), node_id).await
    }

    /// A node leaves for good.
    pub async fn remove_node(&self, caller: &Caller, request: RemoveNodeRequest) -> Outcome<NodeInfo> {
        let what = "remove node";
        caller.check_admin(what)?;
        check::request_id(&request.request_id)?;
        self.shards().barrier(GroupId::META).await?;
        let row = self.find(what, &request.node)?;
        self.check_quorum_without(id_of(&row))?;
        let node_id = id_of(&row).0;
        let remove = NodeRemove { request_id: request.request_id, node_id, actor: caller.actor() };
        self.record(Command::NodeRemove(remove), node_id).await
    }

    async fn take_in(
        &self,
        caller: &Caller,
        what: &str,
        request_id: Bytes,
        node: &str,
        replaces: u64,
    ) -> Outcome<NodeInfo> {
        check::request_id(&request_id)?;
        self.shards().barrier(GroupId::META).await?;
        let named = |found: &PlannedNode| is_named(found, node);
        // A retry finds it among the nodes already.
        let known = self.node_rows().into_iter().filter_map(|row| row.node).find(named);
        let found = self.askers().into_iter().find(named).or(known);
        let found = found.ok_or_else(|| self.nobody_asks(what, node))?;
        let node_id = found.node_id;
        let add = NodeAdd { request_id, node: Some(found), replaces, actor: caller.actor() };
        self.record(Command::NodeAdd(add), node_id).await
    }

    async fn record(&self, command: Command, node: u64) -> Outcome<NodeInfo> {
        self.shards().propose_and_see(GroupId::META, command).await?;
        let row = self.node_rows().into_iter().find(|row| id_of(row) == NodeId(node));
        Ok(row.map(|row| self.info(row)).unwrap_or_default())
    }

    /// What the reconciler would never do is refused at once, so that nobody waits for it.
    fn check_quorum_without(&self, leaving: NodeId) -> Outcome<()> {
        let stays =
            |row: &&NodeRow| matches!(state(row), NodeState::Voter | NodeState::Draining) && id_of(row) != leaving;
        let after: BTreeSet<NodeId> = self.node_rows().iter().filter(stays).map(id_of).collect();
        let alive = |node: &NodeId| *node == self.node() || self.shards().peers().is_reachable(*node);
        let alive: BTreeSet<NodeId> = after.iter().copied().filter(alive).collect();
        if after.is_empty() || has_live_majority(&after, &alive) {
            return Ok(());
        }
        Err(Failure::forbidden(format!(
            "remove node {leaving}: of the nodes {} that would be left only {} are reachable, a majority is needed; \
             start the others first, or put a new node in its place: `unibusctl node replace`",
            join(&after),
            alive.len()
        )))
    }

    fn find(&self, what: &str, node: &str) -> Outcome<NodeRow> {
        let rows = self.node_rows();
        let named = |row: &&NodeRow| row.node.as_ref().is_some_and(|found| is_named(found, node));
        // A name may be that of a removed node as well; who is there rules.
        let present = rows.iter().filter(named).find(|row| state(row) != NodeState::Removed);
        let found = present.or_else(|| rows.iter().find(named)).cloned();
        found.ok_or_else(|| {
            let names: Vec<String> = rows.into_iter().filter_map(|row| Some(row.node?.name)).collect();
            Failure::invalid(format!("{what}: no node {node:?}; the cluster has {}", names.join(", ")))
        })
    }

    fn nobody_asks(&self, what: &str, node: &str) -> Failure {
        let names: Vec<String> = self.askers().into_iter().map(|node| node.name).collect();
        let asking = if names.is_empty() { "none does".into() } else { format!("these do: {}", names.join(", ")) };
        Failure::new(
            ErrorCode::Invalid,
            format!(
                "{what}: node {node:?} does not ask to be taken in, {asking}; mint it with `unibus-node plan --add \
                 {node}`, start it with its folder, and run this again"
            ),
        )
    }

    fn node_rows(&self) -> Vec<NodeRow> {
        self.shards().meta().view(|machine| machine.node_rows())
    }

    fn askers(&self) -> Vec<PlannedNode> {
        self.inner.parts.members.askers()
    }

    /// What the changes under way wait for, by the word of whoever leads meta.
    fn all_moving(&self) -> Vec<String> {
        match self.shards().meta().leader() {
            Some(leader) if leader != self.node() => {
                self.shards().peers().status_of(leader).map(|status| status.moving).unwrap_or_default()
            }
            _ => self.inner.parts.members.moving(),
        }
    }

    fn address_card(&self, node: PlannedNode) -> NodeInfo {
        let id = NodeId(node.node_id);
        NodeInfo {
            node_id: node.node_id,
            name: node.name,
            client_address: node.client_address,
            peer_address: node.peer_address,
            directory_id: node.directory_id,
            reachable: id == self.node() || self.shards().peers().is_reachable(id),
            groups: self.shards().count() + 1,
            ..NodeInfo::default()
        }
    }

    fn info(&self, row: NodeRow) -> NodeInfo {
        let (id, wanted) = (id_of(&row), state(&row));
        let (replaces, replaced_by, changed_ms) = (row.replaces, row.replaced_by, row.changed_ms);
        let count = |holds: &dyn Fn(GroupId) -> bool| self.shards().ids().filter(|&group| holds(group)).count() as u32;
        let leads = |group: GroupId| self.shards().group(group).is_ok_and(|replica| replica.leader() == Some(id));
        let moved = |group: GroupId| self.has_moved(group, id, wanted);
        NodeInfo {
            state: wanted.into(),
            replaces,
            replaced_by,
            changed_ms,
            groups_moved: count(&moved),
            leads: count(&leads),
            ..self.address_card(row.node.unwrap_or_default())
        }
    }

    /// Whether a group is, as this node's replica sees it, as it is wanted of a node.
    fn has_moved(&self, group: GroupId, node: NodeId, wanted: NodeState) -> bool {
        let Ok(replica) = self.shards().group(group) else { return false };
        let membership = replica.membership();
        let votes = membership.is_settled() && membership.target_voters().contains(&node);
        match wanted {
            NodeState::Draining => votes && replica.leader().is_some_and(|leader| leader != node),
            NodeState::Removing | NodeState::Removed => membership.committed && !membership.members.contains_key(&node),
            _ => votes,
        }
    }
}

fn is_named(node: &PlannedNode, wanted: &str) -> bool {
    node.name == wanted || wanted.parse() == Ok(node.node_id)
}
