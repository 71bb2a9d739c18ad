//! What a store is opened with.

use std::path::PathBuf;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use unibus_proto::limits::SEGMENT_BYTES;

use crate::checkpoint::TreeConfig;
use crate::error::StoreError;
use crate::identity::Identity;
use crate::replica::ReplicaConfig;
use crate::space::SpaceMarks;
use crate::wal::WalConfig;

/// Raft's clockwork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftTiming {
    /// A leader lets hear from it this often.
    pub heartbeat: Duration,
    /// A follower waits at least so long before it stands for election.
    pub election_min: Duration,
    /// And at most so long; also the leader's lease.
    pub election_max: Duration,
}

impl Default for RaftTiming {
    fn default() -> Self {
        // Fails over in about a second on a LAN; a longer log or a slow disk adds to it.
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
        }
    }
}

/// How a store is made.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    /// The node's data directory.
    pub dir: PathBuf,
    /// Number of groups: shards + 1. Fixed when the cluster is formed ([`Agreed`](crate::identity::Agreed)).
    pub groups: u32,
    /// The write-ahead log.
    pub wal: WalConfig,
    /// Raft's clockwork, the same on all nodes.
    pub raft: RaftTiming,
    /// Build a snapshot of a group after so many bytes of its log.
    pub snapshot_log_bytes: u64,
    /// Write a checkpoint of a group's tables after so many bytes of its log: a start replays no more.
    pub checkpoint_log_bytes: u64,
    /// Write one when the rows of a group that changed since the last take so many bytes of memory; the
    /// group waits for it at twice as many.
    pub overlay_bytes: usize,
    /// Memory of the node for rows that were read from the trees, shared by all groups.
    pub row_cache_bytes: usize,
    /// Memory of the node for pages of the trees, shared by all groups.
    pub tree_cache_bytes: u64,
    /// Trees of groups with at most so many bytes of rows are summed up before the node starts; larger ones
    /// meanwhile.
    pub tree_check_bytes: u64,
    /// The newest bytes of each shard's timeline that are kept in memory.
    pub timeline_tail_bytes: u64,
    /// Segments are cut at this size, the same on all nodes for ever ([`Agreed`](crate::identity::Agreed)).
    pub segment_bytes: u64,
    /// Snapshots are sent to other nodes at this rate at most, all together: publishing goes on meanwhile.
    pub snapshot_bytes_per_second: u64,
    /// Sealed segments are verified in the background at this rate; 0 = never.
    pub scrub_bytes_per_second: u64,
    /// A write of the log that takes longer means that the disk hangs: the process must end.
    pub disk_patience: Duration,
    /// Free bytes of the disk below which the node takes less.
    pub space: SpaceMarks,
    /// Lets a restarted leader go on leading without a vote, which loses acknowledged data
    /// (ARCHITECTURE section 8). Only to show that the checkers see it.
    pub danger_enable_leader_restore: bool,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("data"),
            groups: 9,
            wal: WalConfig::default(),
            raft: RaftTiming::default(),
            snapshot_log_bytes: 64 << 20,
            checkpoint_log_bytes: 16 << 20,
            overlay_bytes: 8 << 20,
            row_cache_bytes: 32 << 20,
            tree_cache_bytes: 16 << 20,
            tree_check_bytes: 4 << 20,
            timeline_tail_bytes: 8 << 20,
            segment_bytes: SEGMENT_BYTES,
            snapshot_bytes_per_second: 16 << 20,
            scrub_bytes_per_second: 2 << 20,
            disk_patience: Duration::from_secs(30),
            space: SpaceMarks::default(),
            danger_enable_leader_restore: false,
        }
    }
}

impl StoreConfig {
    /// All groups are asked for a snapshot when the log of all together has grown by so much: some busy
    /// groups have had theirs by then.
    pub(super) fn trim_log_bytes(&self) -> u64 {
        self.snapshot_log_bytes.saturating_mul(4)
    }

    /// The share of one group.
    pub(crate) fn replica(&self) -> ReplicaConfig {
        let groups = self.groups.max(1);
        ReplicaConfig {
            snapshot_log_bytes: self.snapshot_log_bytes,
            segment_bytes: self.segment_bytes,
            timeline_tail_bytes: self.timeline_tail_bytes,
            checkpoint_log_bytes: self.checkpoint_log_bytes,
            overlay_bytes: self.overlay_bytes,
            row_cache_bytes: self.row_cache_bytes / groups as usize,
            tree: TreeConfig {
                cache_bytes: self.tree_cache_bytes / u64::from(groups),
                check_bytes: self.tree_check_bytes,
            },
        }
    }

    /// The same for openraft.
    pub(super) fn raft_config(&self, identity: &Identity) -> Result<Config, StoreError> {
        if self.groups == 0 {
            return Err(StoreError::Config("0 groups, expected at least the meta group".into()));
        }
        let millis = |duration: Duration| duration.as_millis() as u64;
        let config = Config {
            cluster_name: identity.cluster.to_string(),
            // Ticks may be held to multiples of the heartbeat (`NodeRuntime`): due a little before one, a heartbeat
            // goes out at that one; due at the same moment, jitter would put every other one off to the next.
            heartbeat_interval: millis(self.raft.heartbeat * 9 / 10),
            election_timeout_min: millis(self.raft.election_min),
            election_timeout_max: millis(self.raft.election_max),
            enable_pre_vote: Some(true),
            enable_leader_restore: Some(self.danger_enable_leader_restore),
            // Without it an old leader that reaches one member of a majority blocks elections for ever.
            quorum_loss_probe_interval: Some(2000),
            max_payload_entries: 1024,
            purge_batch_size: 1024,
            install_snapshot_timeout: 30_000,
            // Both are triggered by bytes (`replica.rs`), not by entries.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            ..Config::default()
        };
        let config = config.validate().map_err(|e| StoreError::Config(e.to_string()))?;
        assert_eq!(config.enable_leader_restore, Some(self.danger_enable_leader_restore), "a leader must be elected");
        Ok(config)
    }
}
