//! What a node runs with: every key with its value and where that comes from. Keys and certificates are
//! paths here, so nothing secret can be in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use unibus_proto::v1::ConfigValue;
use unibus_raft_store::RaftTiming;

use super::keys::{NODE_KEYS, Override};
use super::{ConfigError, NodeFile};

/// All keys of `file`, which was read from `path` with these overrides.
pub fn effective(
    path: &Path,
    file: &NodeFile,
    from_env: &[Override],
    from_flags: &[Override],
) -> Result<Vec<ConfigValue>, ConfigError> {
    let wrong = |cause: String| ConfigError::Parse { path: path.into(), cause };
    let text = fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.into(), cause })?;
    let written = flatten(&text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?);
    let used = flatten(&toml::Table::try_from(file).map_err(|error| wrong(error.to_string()))?);
    let overridden = |overrides: &[Override], key: &str| overrides.iter().any(|(set, _)| set == key);
    let origin = |key: &str| match key {
        _ if overridden(from_flags, key) => "flag",
        _ if overridden(from_env, key) => "env",
        _ if written.contains_key(key) => "file",
        _ => "default",
    };
    let value = |key: &str| ConfigValue {
        key: key.into(),
        value: used.get(key).cloned().unwrap_or_else(|| default_of(key, file)),
        origin: origin(key).into(),
    };
    let expanded = NODE_KEYS.iter().flat_map(|key| expand(key, &used));
    Ok(expanded.map(|key| value(&key)).collect())
}

/// The keys of a list, one per item; any other key itself.
fn expand(key: &str, used: &BTreeMap<String, String>) -> Vec<String> {
    let Some((list, field)) = key.split_once("[].") else { return vec![key.into()] };
    let items = (0..).map(|at| format!("{list}[{at}].{field}"));
    items.take_while(|item| used.contains_key(item)).collect()
}

/// What quinn begins with where nobody says otherwise (RFC 9000, section 14).
const QUINN_INITIAL_MTU: u16 = 1_200;

/// What is used when nobody sets the key.
fn default_of(key: &str, file: &NodeFile) -> String {
    let timing = || {
        let RaftTiming { heartbeat, election_min, election_max } = RaftTiming::default();
        file.timing().ok().flatten().unwrap_or([heartbeat, election_min, election_max])
    };
    let store = || file.store.config().unwrap_or_default();
    match key {
        "log" => crate::telemetry::DEFAULT_FILTER.into(),
        "log_format" => "text".into(),
        "join" => file.join.to_string(),
        "quic.initial_mtu" => QUINN_INITIAL_MTU.to_string(),
        "store.wal_file_bytes" => store().wal.file_bytes.to_string(),
        "store.checkpoint_log_bytes" => store().checkpoint_log_bytes.to_string(),
        "store.snapshot_log_bytes" => store().snapshot_log_bytes.to_string(),
        "store.segment_bytes" => store().segment_bytes.to_string(),
        "store.snapshot_bytes_per_second" => store().snapshot_bytes_per_second.to_string(),
        "timing.heartbeat_ms" => timing()[0].as_millis().to_string(),
        "timing.election_min_ms" => timing()[1].as_millis().to_string(),
        "timing.election_max_ms" => timing()[2].as_millis().to_string(),
        "store.disk_low_bytes" => store().space.low_bytes.to_string(),
        "store.disk_reserve_bytes" => store().space.reserve_bytes.to_string(),
        _ => String::new(),
    }
}

fn flatten(table: &toml::Table) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    table.iter().for_each(|(key, value)| flatten_into(key.clone(), value, &mut flat));
    flat
}

fn flatten_into(key: String, value: &toml::Value, flat: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            table.iter().for_each(|(name, value)| flatten_into(format!("{key}.{name}"), value, flat));
        }
        toml::Value::Array(items) => {
            (0..).zip(items).for_each(|(at, item): (usize, _)| flatten_into(format!("{key}[{at}]"), item, flat));
        }
        toml::Value::String(text) => drop(flat.insert(key, text.clone())),
        other => drop(flat.insert(key, other.to_string())),
    }
}
