//! `node`: who takes part in the cluster, and how far a change is.

use std::time::Duration;

use serde_json::{Value, json};
use unibus_client::Client;
use unibus_proto::v1::{ListNodesResponse, NodeInfo, NodeState};

use super::room::hex;
use crate::args::{Global, NodeArgs, NodeCommand};
use crate::exit::{Failure, Result};
use crate::output::Output;
use crate::session::{During, Session, confirm, interrupted};
use crate::time::rfc3339;

/// Between two looks at how far a change is.
const LOOK: Duration = Duration::from_millis(300);

/// Runs a `node` command.
pub async fn run(command: &NodeCommand, global: &Global, out: Output) -> Result<()> {
    let client = Session::open(global, out)?.client;
    match command {
        NodeCommand::List { all } => list(&client.list_nodes().await.during("list nodes")?, *all, out),
        NodeCommand::Add(NodeArgs { which: node, no_wait }) => {
            let added = client.add_node(node).await.during(format!("add node {node}"))?;
            finish(&client, added, *no_wait, out).await
        }
        NodeCommand::Drain(NodeArgs { which: node, no_wait }) => {
            let drained = client.drain_node(node).await.during(format!("drain node {node}"))?;
            finish(&client, drained, *no_wait, out).await
        }
        NodeCommand::Undrain { which: node } => {
            let undrained = client.undrain_node(node).await.during(format!("undrain node {node}"))?;
            show(&undrained, "it may lead again\nnext: unibusctl node list", out)
        }
        NodeCommand::Remove(NodeArgs { which: node, no_wait }) => {
            confirm(global, out, &format!("node {node} will leave the cluster for good"), node)?;
            let removed = client.remove_node(node).await.during(format!("remove node {node}"))?;
            finish(&client, removed, *no_wait, out).await
        }
        NodeCommand::Replace { node: NodeArgs { which: node, no_wait }, with } => {
            confirm(global, out, &format!("node {node} will leave the cluster for good"), node)?;
            let new = client.replace_node(node, with).await.during(format!("replace node {node} with {with}"))?;
            finish(&client, new, *no_wait, out).await
        }
    }
}

/// Waits until what was recorded is so, and tells on the way how far it is.
async fn finish(client: &Client, recorded: NodeInfo, no_wait: bool, out: Output) -> Result<()> {
    if no_wait {
        return show(&recorded, "recorded; the cluster carries it out\nnext: unibusctl node list", out);
    }
    let mut told = String::new();
    let watch = async {
        loop {
            let nodes = client.list_nodes().await.during(format!("wait for node {}", recorded.name))?;
            let now = nodes.nodes.iter().find(|node| node.node_id == recorded.node_id).unwrap_or(&recorded);
            if is_done(now, &nodes) {
                return Ok(now.clone());
            }
            let progress = progress(now, &nodes);
            if progress != told {
                out.hint(&progress);
                told = progress;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let done: NodeInfo = tokio::select! {
        done = watch => done.map_err(Failure::partly)?,
        () = interrupted() => {
            out.hint("recorded: the cluster carries it out without you\nnext: unibusctl node list");
            return Err(Failure::interrupted());
        }
    };
    show(&done, done_text(&done), out)
}

/// Whether all groups are as it is wanted of the node, and whom it replaces has left.
fn is_done(node: &NodeInfo, all: &ListNodesResponse) -> bool {
    let replaced = all.nodes.iter().find(|other| other.node_id == node.replaces && node.replaces != 0);
    let has_left = replaced.is_none_or(|replaced| replaced.state() == NodeState::Removed);
    match node.state() {
        NodeState::Removing => false,
        NodeState::Removed => true,
        _ => node.groups_moved == node.groups && has_left,
    }
}

fn progress(node: &NodeInfo, all: &ListNodesResponse) -> String {
    let waits = all.moving.first().map(|why| format!("; {why}")).unwrap_or_default();
    let NodeInfo { name, groups_moved, groups, .. } = node;
    format!("{name} {}: groups {groups_moved} of {groups} moved{waits}", state_name(node.state()))
}

fn done_text(node: &NodeInfo) -> &'static str {
    match node.state() {
        NodeState::Draining => {
            "it leads nothing and votes on: it is safe to stop\nnext, when it is back: unibusctl node undrain NODE"
        }
        NodeState::Removed => "it has left every group and is cut off; its id is never used again",
        _ => "it votes in every group\nnext: unibusctl status",
    }
}

fn list(nodes: &ListNodesResponse, all: bool, out: Output) -> Result<()> {
    let shown = nodes.nodes.iter().filter(|node| all || node.state() != NodeState::Removed);
    if out.json {
        let list: Vec<Value> = shown.map(describe).collect();
        return out.object("node_list", json!({ "nodes": list, "moving": nodes.moving }));
    }
    let row = |node: &NodeInfo| {
        let id = |id: u64| if id == 0 { "-".to_owned() } else { id.to_string() };
        vec![
            node.name.clone(),
            node.node_id.to_string(),
            state_name(node.state()).into(),
            format!("{} of {}", node.groups_moved, node.groups),
            node.leads.to_string(),
            if node.reachable { "yes" } else { "no" }.into(),
            id(node.replaces),
            node.client_address.clone(),
            node.peer_address.clone(),
        ]
    };
    out.table(
        &["node", "id", "state", "groups moved", "leads", "reachable", "replaces", "clients", "peers"],
        &shown.map(row).collect::<Vec<_>>(),
    )?;
    nodes.moving.iter().for_each(|what| out.talk(what));
    for asking in nodes.nodes.iter().filter(|node| node.state() == NodeState::Waiting) {
        out.talk(format!(
            "{0} asks to be taken in: unibusctl node add {0}, or unibusctl node replace OLD --with {0}",
            asking.name
        ));
    }
    Ok(())
}

fn show(node: &NodeInfo, hint: &str, out: Output) -> Result<()> {
    let line = || {
        format!(
            "{}\t{}\t{}\t{} of {}",
            node.name,
            node.node_id,
            state_name(node.state()),
            node.groups_moved,
            node.groups
        )
    };
    out.either("node", || describe(node), line)?;
    out.hint(hint.replace("NODE", &node.name));
    Ok(())
}

/// The JSON shape of a node.
fn describe(node: &NodeInfo) -> Value {
    let id = |id: u64| (id != 0).then_some(id);
    json!({
        "name": node.name,
        "node_id": node.node_id,
        "state": state_name(node.state()),
        "groups_moved": node.groups_moved,
        "groups": node.groups,
        "leads": node.leads,
        "reachable": node.reachable,
        "replaces": id(node.replaces),
        "replaced_by": id(node.replaced_by),
        "changed": (node.changed_ms != 0).then(|| rfc3339(node.changed_ms)),
        "client_address": node.client_address,
        "peer_address": node.peer_address,
        "directory_id": hex(&node.directory_id),
    })
}

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Unspecified | NodeState::Voter => "voter",
        NodeState::Draining => "draining",
        NodeState::Removing => "removing",
        NodeState::Removed => "removed",
        NodeState::Waiting => "waiting",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(node_id: u64, state: NodeState, groups_moved: u32, replaces: u64) -> NodeInfo {
        let name = format!("n{node_id}");
        NodeInfo { node_id, name, state: state.into(), groups_moved, groups: 9, replaces, ..NodeInfo::default() }
    }

    fn all(nodes: &[NodeInfo]) -> ListNodesResponse {
        ListNodesResponse { nodes: nodes.to_vec(), moving: vec!["group s1: node 4 learns".into()] }
    }

    #[test]
    fn a_replacement_is_done_when_the_old_node_has_left() {
        let (new, old) = (node(4, NodeState::Voter, 9, 3), node(3, NodeState::Removing, 9, 0));
        assert!(!is_done(&new, &all(&[new.clone(), old])));
        assert!(is_done(&new, &all(&[new.clone(), node(3, NodeState::Removed, 9, 0)])));
        let behind = node(4, NodeState::Voter, 5, 3);
        assert!(!is_done(&behind, &all(&[behind.clone(), node(3, NodeState::Removed, 9, 0)])));
        let text = progress(&behind, &all(&[]));
        assert_eq!(text, "n4 voter: groups 5 of 9 moved; group s1: node 4 learns");
    }

    #[test]
    fn a_removal_is_done_when_it_is_recorded_as_such() {
        let leaving = node(3, NodeState::Removing, 9, 0);
        assert!(!is_done(&leaving, &all(&[])));
        assert!(is_done(&node(3, NodeState::Removed, 9, 0), &all(&[])));
        assert_eq!(describe(&leaving)["state"], "removing");
        assert_eq!(describe(&leaving)["replaces"], Value::Null);
    }
}
