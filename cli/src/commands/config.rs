//! `config`: what a node runs with.

use serde_json::json;
use unibus_proto::v1::ConfigValue;

use crate::args::{ConfigCommand, Global};
use crate::exit::Result;
use crate::output::Output;
use crate::session::{During, Session};

/// Runs a command of `config`.
pub async fn run(command: &ConfigCommand, global: &Global, out: Output) -> Result<()> {
    let ConfigCommand::Effective = command;
    let client = Session::open(global, out)?.client;
    let found = client.node_config(None).await.during("get config")?;
    if out.json {
        let value = |value: &ConfigValue| json!({ "key": value.key, "value": value.value, "origin": value.origin });
        let values: Vec<_> = found.values.iter().map(value).collect();
        return out.object("config", json!({ "node_id": found.node_id, "name": found.name, "values": values }));
    }
    out.hint(format!("configuration of {}", found.name));
    let row = |value: &ConfigValue| vec![value.key.clone(), value.value.clone(), value.origin.clone()];
    out.table(&["key", "value", "origin"], &found.values.iter().map(row).collect::<Vec<_>>())
}
