//! `status`: one screen that tells whether the cluster is well, and what is not.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use unibus_client::Client;
use unibus_proto::id::GroupId;
use unibus_proto::v1::{GetStatusResponse, NodeStatus};

use super::room::hex;
use crate::args::{Global, StatusArgs};
use crate::exit::{Failure, Result};
use crate::output::{Output, bytes, count, render, thousands};
use crate::session::{During, Session, interrupted};
use crate::time::{human, now_ms, rfc3339};

/// Runs `status`.
pub async fn run(args: &StatusArgs, global: &Global, out: Output) -> Result<()> {
    let client = Session::open(global, out)?.client;
    if !args.watch {
        return print(&fetch(&client).await?, args, out);
    }
    tokio::select! {
        ended = watch(&client, args, out) => ended,
        () = interrupted() => Err(Failure::interrupted()),
    }
}

async fn fetch(client: &Client) -> Result<GetStatusResponse> {
    client.status(None).await.during("status")
}

async fn watch(client: &Client, args: &StatusArgs, out: Output) -> Result<()> {
    loop {
        match fetch(client).await {
            Ok(status) if out.out_tty && !out.json => {
                let text = screen(&status, args.groups);
                out.line(&format!(
                    "\x1b[H\x1b[2J{}  every {}, Ctrl-C ends\n{text}",
                    rfc3339(now_ms()),
                    human(args.every)
                ))?;
            }
            Ok(status) => print(&status, args, out)?,
            // While the cluster is away, the watcher stays.
            Err(failure) => out.failure(&failure),
        }
        tokio::time::sleep(args.every).await;
    }
}

fn print(status: &GetStatusResponse, args: &StatusArgs, out: Output) -> Result<()> {
    if out.json {
        return out.object("status", describe(status));
    }
    if out.out_tty {
        return out.line(&screen(status, args.groups));
    }
    out.talk(headline(status));
    for problem in &status.problems {
        out.talk(format!("problem: {problem}"));
    }
    let rows = if args.groups { group_rows(status) } else { node_rows(status) };
    out.table(&[], &rows)
}

const NODE_HEAD: [&str; 9] = ["node", "state", "leads", "applied", "lag", "fsync", "disk used/free", "up", "address"];
const GROUP_HEAD: [&str; 8] = ["group", "leader", "term", "committed", "applied", "rooms", "hash", "snapshot"];

/// Everything, for a terminal.
fn screen(status: &GetStatusResponse, groups: bool) -> String {
    let mut text = headline(status);
    for problem in &status.problems {
        text.push_str(&format!("\n  ! {problem}"));
    }
    text.push_str(&format!("\n\n{}", render(&NODE_HEAD, &node_rows(status))));
    if groups {
        text.push_str(&format!("\n\n{}", render(&GROUP_HEAD, &group_rows(status))));
    }
    text
}

fn headline(status: &GetStatusResponse) -> String {
    let ready = status.nodes.iter().filter(|node| is_ready(node)).count();
    let groups = groups(status);
    let led = groups.values().filter(|group| group.leader.is_some()).count();
    format!(
        "cluster {}: {} - {ready} of {} nodes ready, {led} of {} groups have a leader, {}",
        &hex(&status.cluster_id).get(..8).unwrap_or("unknown"),
        if status.problems.is_empty() && ready == status.nodes.len() { "ok" } else { "NOT OK" },
        status.nodes.len(),
        groups.len(),
        agreement(&groups),
    )
}

fn is_ready(node: &NodeStatus) -> bool {
    node.reachable && node.not_ready.is_empty()
}

/// What all nodes together say about a group.
#[derive(Debug, Default, PartialEq)]
struct Group {
    leader: Option<u64>,
    term: u64,
    committed: u64,
    applied: Vec<u64>,
    rooms: u64,
    snapshot: u64,
    hash: Hash,
}

/// Whether the replicas of a group hold the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hash {
    /// No two replicas have a hash at the same index yet.
    #[default]
    NotCompared,
    /// Equal wherever it can be compared.
    Same,
    /// Different at the same index: a defect or damage.
    Differs,
}

impl Hash {
    fn word(self) -> &'static str {
        match self {
            Self::NotCompared => "-",
            Self::Same => "same",
            Self::Differs => "DIFFERS",
        }
    }
}

fn groups(status: &GetStatusResponse) -> BTreeMap<u32, Group> {
    let mut groups: BTreeMap<u32, Group> = BTreeMap::new();
    let mut hashes: BTreeMap<(u32, u64), Vec<&str>> = BTreeMap::new();
    for (node, replica) in reachable(status).flat_map(|node| node.replicas.iter().map(move |replica| (node, replica))) {
        let group = groups.entry(replica.group).or_default();
        let leader = if replica.role == "leader" { node.node_id } else { replica.leader };
        // Of two that are called leader, the one of the higher term is; a leader may be out of reach from here.
        if leader != 0 && (group.leader.is_none() || replica.term > group.term) {
            group.leader = Some(leader);
        }
        group.term = group.term.max(replica.term);
        group.committed = group.committed.max(replica.committed_index);
        group.applied.push(replica.applied_index);
        group.rooms = group.rooms.max(replica.rooms);
        group.snapshot = group.snapshot.max(replica.snapshot_index);
        if replica.state_hash_index > 0 && !replica.state_hash.is_empty() {
            hashes.entry((replica.group, replica.state_hash_index)).or_default().push(&replica.state_hash);
        }
    }
    // Without a majority a leader is one in name only.
    for group in groups.values_mut().filter(|group| 2 * group.applied.len() <= status.nodes.len()) {
        group.leader = None;
    }
    for ((id, _), hashes) in hashes {
        let Some(group) = groups.get_mut(&id) else { continue };
        if hashes.iter().any(|hash| *hash != hashes[0]) {
            group.hash = Hash::Differs;
        } else if hashes.len() > 1 && group.hash == Hash::NotCompared {
            group.hash = Hash::Same;
        }
    }
    groups
}

fn reachable(status: &GetStatusResponse) -> impl Iterator<Item = &NodeStatus> {
    status.nodes.iter().filter(|node| node.reachable)
}

fn agreement(groups: &BTreeMap<u32, Group>) -> String {
    let with = |hash| groups.iter().filter(move |(_, group)| group.hash == hash);
    let differing: Vec<_> = with(Hash::Differs).map(|(&id, _)| GroupId(id).to_string()).collect();
    if !differing.is_empty() {
        return format!("replicas DIFFER in {}", differing.join(", "));
    }
    match with(Hash::Same).count() {
        0 => "replicas not compared yet".into(),
        compared => format!("replicas agree ({} compared)", count(compared as u64, "group")),
    }
}

fn node_rows(status: &GetStatusResponse) -> Vec<Vec<String>> {
    let groups = groups(status);
    status.nodes.iter().map(|node| node_row(node, &groups)).collect()
}

fn node_row(node: &NodeStatus, groups: &BTreeMap<u32, Group>) -> Vec<String> {
    let name = if node.name.is_empty() { node.node_id.to_string() } else { node.name.clone() };
    if !node.reachable {
        let mut row = vec![name, "UNREACHABLE".into()];
        row.resize(NODE_HEAD.len() - 1, "-".into());
        row.push(node.client_address.clone());
        return row;
    }
    let state = if node.not_ready.is_empty() { "ready".into() } else { node.not_ready.join("; ") };
    vec![
        name,
        state,
        leads(node, groups).to_string(),
        thousands(node.replicas.iter().map(|replica| replica.applied_index).sum()),
        thousands(lag(node, groups)),
        human(std::time::Duration::from_micros(node.last_fsync_us)),
        format!("{}/{}", bytes(node.disk_used_bytes), bytes(node.disk_free_bytes)),
        human(std::time::Duration::from_millis(node.uptime_ms)),
        node.client_address.clone(),
    ]
}

fn leads(node: &NodeStatus, groups: &BTreeMap<u32, Group>) -> usize {
    groups.values().filter(|group| group.leader == Some(node.node_id)).count()
}

/// Entries that are committed and that the node has not applied, over all groups.
fn lag(node: &NodeStatus, groups: &BTreeMap<u32, Group>) -> u64 {
    let behind = |replica: &unibus_proto::v1::ReplicaStatus| {
        groups.get(&replica.group).map_or(0, |group| group.committed.saturating_sub(replica.applied_index))
    };
    node.replicas.iter().map(behind).sum()
}

fn group_rows(status: &GetStatusResponse) -> Vec<Vec<String>> {
    let name = |id: u64| {
        let node = status.nodes.iter().find(|node| node.node_id == id);
        node.filter(|node| !node.name.is_empty()).map_or_else(|| id.to_string(), |node| node.name.clone())
    };
    groups(status)
        .into_iter()
        .map(|(id, group)| {
            let applied: Vec<_> = group.applied.iter().map(|index| index.to_string()).collect();
            vec![
                GroupId(id).to_string(),
                group.leader.map_or_else(|| "NONE".into(), name),
                group.term.to_string(),
                group.committed.to_string(),
                applied.join("/"),
                group.rooms.to_string(),
                group.hash.word().into(),
                group.snapshot.to_string(),
            ]
        })
        .collect()
}

/// The JSON shape of the status.
fn describe(status: &GetStatusResponse) -> Value {
    let groups = groups(status);
    json!({
        "time": rfc3339(now_ms()),
        "cluster_id": hex(&status.cluster_id),
        "answered_by": status.node_id,
        "ok": status.problems.is_empty() && status.nodes.iter().all(is_ready),
        "problems": status.problems,
        "nodes": status.nodes.iter().map(|node| describe_node(node, &groups)).collect::<Vec<_>>(),
        "groups": groups.iter().map(|(&id, group)| json!({
            "group": id,
            "name": GroupId(id).to_string(),
            "leader": group.leader,
            "term": group.term,
            "committed_index": group.committed,
            "rooms": group.rooms,
            "replicas_agree": match group.hash {
                Hash::NotCompared => Value::Null,
                Hash::Same => true.into(),
                Hash::Differs => false.into(),
            },
        })).collect::<Vec<_>>(),
    })
}

fn describe_node(node: &NodeStatus, groups: &BTreeMap<u32, Group>) -> Value {
    json!({
        "node_id": node.node_id,
        "name": node.name,
        "client_address": node.client_address,
        "peer_address": node.peer_address,
        "reachable": node.reachable,
        "ready": is_ready(node),
        "not_ready": node.not_ready,
        "leads": leads(node, groups),
        "lag_entries": lag(node, groups),
        "round_trip_us": node.round_trip_us,
        "version": node.version,
        "uptime_ms": node.uptime_ms,
        "clock_offset_ms": node.clock_offset_ms,
        "disk_used_bytes": node.disk_used_bytes,
        "disk_free_bytes": node.disk_free_bytes,
        "subscriptions": node.subscriptions,
        "last_fsync_us": node.last_fsync_us,
        "replicas": node.replicas.iter().map(|replica| json!({
            "group": replica.group,
            "role": replica.role,
            "term": replica.term,
            "leader": replica.leader,
            "last_index": replica.last_index,
            "committed_index": replica.committed_index,
            "applied_index": replica.applied_index,
            "purged_index": replica.purged_index,
            "snapshot_index": replica.snapshot_index,
            "state_hash": replica.state_hash,
            "state_hash_index": replica.state_hash_index,
            "rooms": replica.rooms,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
