//! `[store]`: sizes that are right as they are. They are there for tests that want checkpoints,
//! snapshots, sealing and purge to be frequent, and for unusual disks.

use serde::{Deserialize, Serialize};
use unibus_raft_store::StoreConfig;
use unibus_raft_store::space::SpaceMarks;
use unibus_raft_store::wal::WalConfig;

use super::ConfigError;

/// Less than this is a mistake in the unit, not a size.
const SIZE_MIN: u64 = 64 << 10;

/// Sizes of the store, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSection {
    /// Of a file of the write-ahead log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal_file_bytes: Option<u64>,
    /// Of log after which the tables of a group get a checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_log_bytes: Option<u64>,
    /// Of log after which a group gets a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_log_bytes: Option<u64>,
    /// At which a shard's segment is sealed: the same on all nodes, and never changed, because the
    /// replicas cut by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment_bytes: Option<u64>,
    /// Free bytes of the disk below which the node takes no new messages as a leader and gives its leaderships
    /// away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_low_bytes: Option<u64>,
    /// Free bytes below which it takes no entries from other leaders either: kept for votes, checkpoints and
    /// snapshots, without which the log cannot be cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_reserve_bytes: Option<u64>,
    /// At which the node sends snapshots to other nodes at most, all together, in bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_bytes_per_second: Option<u64>,
}

impl StoreSection {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What the store is opened with.
    pub fn config(&self) -> Result<StoreConfig, ConfigError> {
        let sizes = [
            ("wal_file_bytes", self.wal_file_bytes),
            ("checkpoint_log_bytes", self.checkpoint_log_bytes),
            ("snapshot_log_bytes", self.snapshot_log_bytes),
            ("segment_bytes", self.segment_bytes),
            ("snapshot_bytes_per_second", self.snapshot_bytes_per_second),
        ];
        for (key, found) in sizes {
            if let Some(found) = found.filter(|found| !(SIZE_MIN..=u64::from(u32::MAX)).contains(found)) {
                return Err(ConfigError::Value {
                    key: format!("store.{key}"),
                    found: found.to_string(),
                    expected: format!("{SIZE_MIN} to {} bytes", u32::MAX),
                });
            }
        }
        let defaults = StoreConfig::default();
        let space = SpaceMarks {
            low_bytes: self.disk_low_bytes.unwrap_or(defaults.space.low_bytes),
            reserve_bytes: self.disk_reserve_bytes.unwrap_or(defaults.space.reserve_bytes),
        };
        if space.reserve_bytes > space.low_bytes {
            return Err(ConfigError::Value {
                key: "store.disk_reserve_bytes".into(),
                found: space.reserve_bytes.to_string(),
                expected: format!("at most store.disk_low_bytes, which is {}", space.low_bytes),
            });
        }
        Ok(StoreConfig {
            space,
            wal: WalConfig { file_bytes: self.wal_file_bytes.unwrap_or(defaults.wal.file_bytes), ..defaults.wal },
            checkpoint_log_bytes: self.checkpoint_log_bytes.unwrap_or(defaults.checkpoint_log_bytes),
            snapshot_log_bytes: self.snapshot_log_bytes.unwrap_or(defaults.snapshot_log_bytes),
            segment_bytes: self.segment_bytes.unwrap_or(defaults.segment_bytes),
            snapshot_bytes_per_second: self.snapshot_bytes_per_second.unwrap_or(defaults.snapshot_bytes_per_second),
            ..defaults
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_are_named_rule_and_the_others_stay() {
        let section = StoreSection { segment_bytes: Some(1 << 20), ..StoreSection::default() };
        let expected = StoreConfig { segment_bytes: 1 << 20, ..StoreConfig::default() };
        assert_eq!(section.config().unwrap(), expected);
    }

    #[test]
    fn a_reserve_is_part_of_what_is_kept_free() {
        let marks = |low, reserve| StoreSection {
            disk_low_bytes: Some(low),
            disk_reserve_bytes: Some(reserve),
            ..StoreSection::default()
        };
        let space = marks(2 << 30, 1 << 30).config().unwrap().space;
        assert_eq!((space.low_bytes, space.reserve_bytes), (2 << 30, 1 << 30));
        let refused = marks(1 << 20, 2 << 20).config().unwrap_err().to_string();
        assert!(refused.contains("store.disk_reserve_bytes: found 2097152"), "{refused}");
    }

    #[test]
    fn a_size_in_the_wrong_unit_is_refused() {
        let section = StoreSection { wal_file_bytes: Some(64), ..StoreSection::default() };
        let refused = section.config().unwrap_err().to_string();
        assert!(refused.contains("store.wal_file_bytes: found 64, expected 65536"), "{refused}");
    }
}
