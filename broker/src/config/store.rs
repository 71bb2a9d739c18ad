//! `[store]`: sizes that are right as they are. They are there for tests that want checkpoints,
//! snapshots, sealing and purge to be frequent, and for unusual disks.

use serde::{Deserialize, Serialize};
use unibus_raft_store::StoreConfig;
use unibus_raft_store::space::SpaceMarks;
use unibus_raft_store::wal::WalConfig;

use super::ConfigError;

/// Less than this is a mistake in the unit, not a size.
const SIZE_MIN: u64 = 64 << 10;

/// A reserve that is not named holds so many files of the log: the next one, and what checkpoints and snapshots
/// take before the oldest goes back.
const RESERVE_FILES: u64 = 2;
/// A low mark that is not named is so many reserves: between the two, operators notice.
const LOW_RESERVES: u64 = 4;

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
    /// replicas cut by it. The nodes refuse each other when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment_bytes: Option<u64>,
    /// Free bytes of the disk below which the node takes no new messages as a leader and gives its leaderships
    /// away. At least four times the reserve unless it is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_low_bytes: Option<u64>,
    /// Free bytes below which it takes no entries from other leaders either: kept for votes, checkpoints and
    /// snapshots, without which the log cannot be cut. Two files of the log at least unless it is named.
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
        let wal = WalConfig { file_bytes: self.wal_file_bytes.unwrap_or(defaults.wal.file_bytes), ..defaults.wal };
        let space = self.marks(wal.file_bytes, defaults.space)?;
        Ok(StoreConfig {
            space,
            wal,
            checkpoint_log_bytes: self.checkpoint_log_bytes.unwrap_or(defaults.checkpoint_log_bytes),
            snapshot_log_bytes: self.snapshot_log_bytes.unwrap_or(defaults.snapshot_log_bytes),
            segment_bytes: self.segment_bytes.unwrap_or(defaults.segment_bytes),
            snapshot_bytes_per_second: self.snapshot_bytes_per_second.unwrap_or(defaults.snapshot_bytes_per_second),
            ..defaults
        })
    }

    /// The marks of a disk that fills up. What is not named follows from what is.
    fn marks(&self, wal_file_bytes: u64, defaults: SpaceMarks) -> Result<SpaceMarks, ConfigError> {
        let follows = |least: u64, of: u64, times| least.max(of.saturating_mul(times));
        let reserve_bytes =
            self.disk_reserve_bytes.unwrap_or(follows(defaults.reserve_bytes, wal_file_bytes, RESERVE_FILES));
        let low_bytes = self.disk_low_bytes.unwrap_or(follows(defaults.low_bytes, reserve_bytes, LOW_RESERVES));
        let wrong = |expected| {
            let (key, found) = ("store.disk_reserve_bytes".into(), reserve_bytes.to_string());
            Err(ConfigError::Value { key, found, expected })
        };
        if reserve_bytes < wal_file_bytes {
            return wrong(format!(
                "at least store.wal_file_bytes, which is {wal_file_bytes}: without room for another file of the log \
                 not even a vote is written; leave it out, and it is {RESERVE_FILES} files or more"
            ));
        }
        if reserve_bytes > low_bytes {
            return wrong(format!("at most store.disk_low_bytes, which is {low_bytes}"));
        }
        Ok(SpaceMarks { low_bytes, reserve_bytes })
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

    fn marks(wal_file: Option<u64>, low: Option<u64>, reserve: Option<u64>) -> Result<(u64, u64), String> {
        let section = StoreSection {
            wal_file_bytes: wal_file,
            disk_low_bytes: low,
            disk_reserve_bytes: reserve,
            ..StoreSection::default()
        };
        let space = section.config().map_err(|error| error.to_string())?.space;
        Ok((space.low_bytes, space.reserve_bytes))
    }

    #[test]
    fn a_reserve_is_part_of_what_is_kept_free() {
        assert_eq!(marks(None, Some(2 << 30), Some(1 << 30)), Ok((2 << 30, 1 << 30)));
        let refused = marks(Some(1 << 20), Some(1 << 20), Some(2 << 20)).unwrap_err();
        assert!(refused.contains("store.disk_reserve_bytes: found 2097152"), "{refused}");
    }

    #[test]
    fn a_reserve_holds_files_of_the_log_and_the_low_mark_some_reserves() {
        let defaults = SpaceMarks::default();
        assert_eq!(marks(None, None, None), Ok((defaults.low_bytes, defaults.reserve_bytes)));
        assert_eq!(marks(Some(1 << 20), None, None), Ok((defaults.low_bytes, defaults.reserve_bytes)));
        assert_eq!(marks(Some(256 << 20), None, None), Ok((2 << 30, 512 << 20)));
        assert_eq!(marks(None, None, Some(1 << 30)), Ok((4 << 30, 1 << 30)));
        assert_eq!(marks(Some(1 << 20), Some(96 << 20), Some(1 << 20)), Ok((96 << 20, 1 << 20)));
        let refused = marks(None, None, Some((64 << 20) - 1)).unwrap_err();
        assert!(
            refused.contains("found 67108863, expected at least store.wal_file_bytes, which is 67108864"),
            "{refused}"
        );
    }

    #[test]
    fn a_size_in_the_wrong_unit_is_refused() {
        let section = StoreSection { wal_file_bytes: Some(64), ..StoreSection::default() };
        let refused = section.config().unwrap_err().to_string();
        assert!(refused.contains("store.wal_file_bytes: found 64, expected 65536"), "{refused}");
    }
}
