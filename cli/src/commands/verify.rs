//! `verify`: do all replicas hold the same?

use serde_json::{Value, json};
use unibus_proto::id::GroupId;
use unibus_proto::v1::{GroupVerification, ReplicaContent, VerifyResponse};

use crate::args::Global;
use crate::exit::{Exit, Result};
use crate::output::{Output, count};
use crate::session::{During, Session};

use super::room::hex;

/// Runs `verify`; the exit code is the verdict.
pub async fn run(global: &Global, out: Output) -> Result<u8> {
    let client = Session::open(global, out)?.client;
    let found = client.verify().await.during("verify")?;
    let exit = verdict(&found);
    if out.json {
        out.object("verify", describe(&found, exit))?;
        return Ok(exit.number());
    }
    out.table(&["group", "index", "replicas", "segments", "hash", "verdict"], &rows(&found))?;
    for group in &found.groups {
        group.differences.iter().for_each(|what| out.talk(format!("DIFFERS: {what}")));
        group.missing.iter().for_each(|what| out.talk(format!("not compared: {what}")));
    }
    out.hint(conclusion(&found, exit));
    Ok(exit.number())
}

fn verdict(found: &VerifyResponse) -> Exit {
    match () {
        () if found.groups.iter().any(|group| !group.differences.is_empty()) => Exit::Failed,
        () if found.groups.iter().any(|group| !group.missing.is_empty()) => Exit::Partly,
        () => Exit::Done,
    }
}

fn conclusion(found: &VerifyResponse, exit: Exit) -> String {
    match exit {
        Exit::Done => format!("all replicas of {} hold the same", count(found.groups.len() as u64, "group")),
        Exit::Partly => "what could be compared holds the same; the rest is named above".into(),
        _ => "replicas DIFFER: stop the node in the minority and keep its directory".into(),
    }
}

fn compared(group: &GroupVerification) -> impl Iterator<Item = &ReplicaContent> {
    group.replicas.iter().filter(|replica| replica.missing.is_empty())
}

fn rows(found: &VerifyResponse) -> Vec<Vec<String>> {
    let row = |group: &GroupVerification| {
        let first = compared(group).next();
        let word = match (group.differences.is_empty(), group.missing.is_empty()) {
            (false, _) => "DIFFERS",
            (true, false) => "not all compared",
            (true, true) => "same",
        };
        vec![
            GroupId(group.group).to_string(),
            group.index.to_string(),
            format!("{} of {}", compared(group).count(), group.replicas.len()),
            first.map_or(0, |replica| replica.segments.len()).to_string(),
            first.map_or_else(|| "-".into(), |replica| hex(&replica.state_hash).chars().take(16).collect()),
            word.into(),
        ]
    };
    found.groups.iter().map(row).collect()
}

fn describe(found: &VerifyResponse, exit: Exit) -> Value {
    let segments = |replica: &ReplicaContent| -> Vec<Value> {
        let segments = replica.segments.iter();
        segments.map(|it| json!({ "id": it.id, "length": it.length, "hash": hex(&it.hash) })).collect()
    };
    let replica = |replica: &ReplicaContent| {
        json!({
            "node_id": replica.node_id,
            "name": replica.name,
            "missing": if replica.missing.is_empty() { Value::Null } else { replica.missing.as_str().into() },
            "state_hash": hex(&replica.state_hash),
            "segments": segments(replica),
        })
    };
    json!({
        "same": exit == Exit::Done,
        "differs": exit == Exit::Failed,
        "groups": found.groups.iter().map(|group| json!({
            "group": group.group,
            "name": GroupId(group.group).to_string(),
            "index": group.index,
            "differences": group.differences,
            "missing": group.missing,
            "replicas": group.replicas.iter().map(replica).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(differences: &[&str], missing: &[&str]) -> GroupVerification {
        let texts = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        let replica = |id: u64| ReplicaContent {
            node_id: id,
            name: format!("n{id}"),
            state_hash: vec![0xab; 32].into(),
            ..ReplicaContent::default()
        };
        let silent = ReplicaContent { missing: "silent".into(), ..replica(3) };
        GroupVerification {
            group: 1,
            index: 300,
            differences: texts(differences),
            missing: texts(missing),
            replicas: vec![replica(1), replica(2), silent],
        }
    }

    #[test]
    fn a_difference_outweighs_a_node_that_could_not_be_asked() {
        let found = |groups| VerifyResponse { groups };
        assert_eq!(verdict(&found(vec![group(&[], &[])])), Exit::Done);
        assert_eq!(verdict(&found(vec![group(&[], &[]), group(&[], &["n3"])])), Exit::Partly);
        assert_eq!(verdict(&found(vec![group(&[], &["n3"]), group(&["n2"], &[])])), Exit::Failed);
    }

    #[test]
    fn a_row_tells_index_replicas_and_hash() {
        let found = VerifyResponse { groups: vec![group(&["x"], &[])] };
        assert_eq!(rows(&found)[0], ["s1", "300", "2 of 3", "0", "abababababababab", "DIFFERS"]);
        let value = describe(&found, Exit::Failed);
        assert_eq!((&value["same"], &value["differs"]), (&false.into(), &true.into()));
        assert_eq!(value["groups"][0]["replicas"][2]["missing"], "silent");
        assert_eq!(value["groups"][0]["replicas"][0]["missing"], Value::Null);
    }
}
