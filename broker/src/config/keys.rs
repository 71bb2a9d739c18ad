//! The keys of the configuration files: which there are, which may be set from outside, and which one
//! was meant.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::ConfigError;

/// Prefix of the environment variables that override the file.
pub const ENV_PREFIX: &str = "UNIBUS_NODE_";
/// Keys of `node.toml`; `[]` marks a list of tables.
pub const NODE_KEYS: &[&str] = &[
    "node_id",
    "name",
    "join",
    "data_dir",
    "log",
    "log_format",
    "listen.peer",
    "listen.client",
    "listen.admin",
    "tls.peer_cert",
    "tls.peer_key",
    "tls.peer_ca",
    "tls.client_cert",
    "tls.client_key",
    "tls.client_ca",
    "tls.sign_key",
    "timing.heartbeat_ms",
    "timing.election_min_ms",
    "timing.election_max_ms",
    "quic.initial_mtu",
    "store.wal_file_bytes",
    "store.checkpoint_log_bytes",
    "store.snapshot_log_bytes",
    "store.segment_bytes",
    "store.snapshot_bytes_per_second",
    "store.disk_low_bytes",
    "store.disk_reserve_bytes",
    "cluster.id",
    "cluster.shards",
    "cluster.node[].id",
    "cluster.node[].name",
    "cluster.node[].peer",
    "cluster.node[].client",
    "cluster.node[].sign_key",
];
/// Keys of `cluster.toml`.
pub const CLUSTER_KEYS: &[&str] = &[
    "shards",
    "node[].name",
    "node[].host",
    "node[].peer_port",
    "node[].client_port",
    "node[].admin_port",
    "node[].data_dir",
];
/// Keys that the environment and flags may set: what differs between hosts, never what must agree.
const OVERRIDABLE: &[&str] = &[
    "data_dir",
    "log",
    "log_format",
    "listen.peer",
    "listen.client",
    "listen.admin",
    "timing.heartbeat_ms",
    "timing.election_min_ms",
    "timing.election_max_ms",
    "quic.initial_mtu",
    "store.wal_file_bytes",
    "store.checkpoint_log_bytes",
    "store.snapshot_log_bytes",
    "store.snapshot_bytes_per_second",
    "store.disk_low_bytes",
    "store.disk_reserve_bytes",
];

/// A value that a flag or a variable puts over the file: key and text.
pub type Override = (String, String);

/// The overrides of the environment. `UNIBUS_NODE_CONFIG` belongs to the command line.
pub fn env_overrides(vars: impl Iterator<Item = (String, String)>) -> Result<Vec<Override>, ConfigError> {
    let name = |key: &str| format!("{ENV_PREFIX}{}", key.replace('.', "_").to_uppercase());
    let known: Vec<String> = OVERRIDABLE.iter().map(|key| name(key)).collect();
    let mut overrides = Vec::new();
    for (variable, value) in vars.filter(|(variable, _)| variable.starts_with(ENV_PREFIX)) {
        match OVERRIDABLE.iter().find(|key| name(key) == variable) {
            Some(key) => overrides.push(((*key).into(), value)),
            None if variable == "UNIBUS_NODE_CONFIG" => {}
            None => {
                let suggestion = suggest(&variable, known.iter().map(String::as_str));
                return Err(ConfigError::UnknownKey { place: "environment".into(), key: variable, suggestion });
            }
        }
    }
    Ok(overrides)
}

/// Parses TOML whose keys must all be in `known`.
pub fn parse<T: DeserializeOwned>(
    text: &str,
    path: &Path,
    known: &[&str],
    overrides: &[Override],
) -> Result<T, ConfigError> {
    let wrong = |cause: String| ConfigError::Parse { path: path.into(), cause };
    let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
    check_keys(&table, "", known, path)?;
    for (key, value) in overrides {
        set(&mut table, key, value);
    }
    table.try_into().map_err(|error: toml::de::Error| wrong(error.to_string()))
}

fn check_keys(table: &toml::Table, prefix: &str, known: &[&str], path: &Path) -> Result<(), ConfigError> {
    for (key, value) in table {
        let full = format!("{prefix}{key}");
        let below = |separator: &str| known.iter().any(|known| known.starts_with(&format!("{full}{separator}")));
        match value {
            _ if known.contains(&full.as_str()) => {}
            toml::Value::Table(table) if below(".") => check_keys(table, &format!("{full}."), known, path)?,
            toml::Value::Array(items) if below("[].") => {
                for table in items.iter().filter_map(toml::Value::as_table) {
                    check_keys(table, &format!("{full}[]."), known, path)?;
                }
            }
            // A section that is there but has another shape: serde says what it should be.
            _ if below(".") || below("[].") => {}
            _ => {
                let suggestion = suggest(&full, known.iter().copied());
                return Err(ConfigError::UnknownKey { place: path.display().to_string(), key: full, suggestion });
            }
        }
    }
    Ok(())
}

fn set(table: &mut toml::Table, key: &str, text: &str) {
    let value = text.parse::<i64>().map_or_else(|_| toml::Value::String(text.into()), toml::Value::Integer);
    match key.split_once('.') {
        None => drop(table.insert(key.into(), value)),
        Some((section, key)) => {
            let section = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let Some(section) = section.as_table_mut() {
                section.insert(key.into(), value);
            }
        }
    }
}

fn suggest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let nearest = known.map(|known| (distance(key, known), known)).min();
    match nearest {
        Some((distance, known)) if distance <= key.len() / 3 + 1 => format!("; did you mean {known:?}?"),
        _ => String::new(),
    }
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
