//! `group`: who leads what.

use std::time::Duration;

use serde_json::{Value, json};
use unibus_client::Client;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::v1::{GroupInfo, GroupMember, ListGroupsResponse};

use crate::args::{Global, GroupCommand};
use crate::exit::{Failure, Result};
use crate::output::{Output, bytes};
use crate::session::{During, Session};
use crate::time::human;

/// Runs a command of `group`.
pub async fn run(command: &GroupCommand, global: &Global, out: Output) -> Result<()> {
    let client = Session::open(global, out)?.client;
    match command {
        GroupCommand::List => list(&client, out).await,
        GroupCommand::Transfer { group, which } => transfer(&client, *group, which, out).await,
    }
}

const HEAD: [&str; 7] = ["group", "leader", "preferred", "term", "members (applied)", "lag", "log/snapshot"];

async fn list(client: &Client, out: Output) -> Result<()> {
    let found = client.groups(None).await.during("list groups")?;
    if out.json {
        return out.object("group_list", describe(&found));
    }
    out.table(&HEAD, &found.groups.iter().map(row).collect::<Vec<_>>())?;
    let astray = found.groups.iter().filter(|group| group.leader != group.preferred && group.preferred != 0).count();
    if astray > 0 {
        out.hint(format!("{astray} of {} groups are not led by the preferred node", found.groups.len()));
    }
    Ok(())
}

fn name(group: &GroupInfo, node: u64) -> String {
    let member = group.members.iter().find(|member| member.node_id == node);
    match member.filter(|member| !member.name.is_empty()) {
        Some(member) => member.name.clone(),
        None if node == 0 => "NONE".into(),
        None => node.to_string(),
    }
}

fn row(group: &GroupInfo) -> Vec<String> {
    let of_members = |text: &dyn Fn(&GroupMember) -> String| {
        let silent = |member: &GroupMember| if member.reachable { text(member) } else { "?".into() };
        group.members.iter().map(silent).collect::<Vec<_>>().join(" ")
    };
    vec![
        GroupId(group.group).to_string(),
        name(group, group.leader),
        name(group, group.preferred),
        group.term.to_string(),
        group
            .members
            .iter()
            .map(|member| match member.reachable {
                true => format!("{} ({})", member.name, member.applied_index),
                false => format!("{} (UNREACHABLE)", member.name),
            })
            .collect::<Vec<_>>()
            .join(" "),
        of_members(&|member| member.lag.to_string()),
        of_members(&|member| format!("{}/{}", bytes(member.log_bytes).replace(' ', ""), member.snapshot_index)),
    ]
}

fn describe(found: &ListGroupsResponse) -> Value {
    let known = |id: u64| if id == 0 { Value::Null } else { id.into() };
    json!({
        "answered_by": found.node_id,
        "groups": found.groups.iter().map(|group| json!({
            "group": group.group,
            "name": GroupId(group.group).to_string(),
            "leader": known(group.leader),
            "preferred": known(group.preferred),
            "term": group.term,
            "members": group.members.iter().map(|member| json!({
                "node_id": member.node_id,
                "name": member.name,
                "reachable": member.reachable,
                "role": member.role,
                "applied_index": member.applied_index,
                "lag_entries": member.lag,
                "log_bytes": member.log_bytes,
                "snapshot_index": member.snapshot_index,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

async fn transfer(client: &Client, group: GroupId, wanted: &str, out: Output) -> Result<()> {
    let step = format!("transfer group {group} to {wanted}");
    let topology = client.topology().await.during(&step)?;
    let found = topology.nodes.iter().find(|node| node.name == wanted || node.node_id.to_string() == wanted);
    let to = found.ok_or_else(|| {
        let names: Vec<_> = topology.nodes.iter().map(|node| node.name.as_str()).collect();
        Failure::local(format!("{step}: no node is called {wanted:?}; the cluster has {}", names.join(", ")))
    })?;
    let before = topology.leaders.iter().find(|leader| leader.group == group.0).map(|leader| leader.leader);
    let before = before.ok_or_else(|| {
        let last = topology.leaders.iter().map(|leader| leader.group).max().unwrap_or(0);
        Failure::local(format!("{step}: no such group; the cluster has meta and s1 to s{last}"))
    })?;
    let done = client.transfer_leader(group, NodeId(to.node_id)).await.during(&step)?;
    let took = Duration::from_micros(done.took_us);
    out.either(
        "group_transfer",
        || {
            let before = if before == 0 { Value::Null } else { before.into() };
            json!({ "group": group.0, "name": group.to_string(), "before": before, "leader": done.leader, "took_us": done.took_us })
        },
        || match before == to.node_id {
            true => format!("{} leads group {group} already", to.name),
            false => format!("{} leads group {group}, confirmed by a majority after {}", to.name, human(took)),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, reachable: bool, lag: u64) -> GroupMember {
        let role = if id == 2 { "leader" } else { "follower" };
        GroupMember {
            node_id: id,
            name: format!("n{id}"),
            reachable,
            role: role.into(),
            applied_index: 100 - lag,
            lag,
            log_bytes: 2048,
            snapshot_index: 7,
        }
    }

    fn group() -> GroupInfo {
        let members = vec![member(1, true, 3), member(2, true, 0), member(3, false, 50)];
        GroupInfo { group: 4, leader: 2, preferred: 3, term: 9, members }
    }

    #[test]
    fn a_row_tells_leader_preference_and_lag() {
        let expected = ["s4", "n2", "n3", "9", "n1 (97) n2 (100) n3 (UNREACHABLE)", "3 0 ?", "2.0KiB/7 2.0KiB/7 ?"];
        assert_eq!(row(&group()), expected);
        let leaderless = GroupInfo { leader: 0, ..group() };
        assert_eq!(row(&leaderless)[1], "NONE");
    }

    #[test]
    fn json_has_every_member_and_null_for_no_leader() {
        let found = ListGroupsResponse { groups: vec![GroupInfo { leader: 0, ..group() }], node_id: 1 };
        let value = describe(&found);
        assert_eq!(value["groups"][0]["leader"], Value::Null);
        assert_eq!(value["groups"][0]["preferred"], 3);
        assert_eq!(value["groups"][0]["members"][2]["reachable"], false);
        assert_eq!(value["groups"][0]["members"][0]["lag_entries"], 3);
    }
}
