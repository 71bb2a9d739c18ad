//! The state machine that openraft drives: entries in, answers and events out.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};

use crate::env::Env;
use crate::replica::{LogSynced, Replica, log_synced};
use crate::snapshot::SnapshotData;
use crate::types::{LeaderId, LogId, Member, SnapshotMeta, StoredMembership, TypeConfig};
use crate::wal::GroupLog;

/// A snapshot with what it covers, as openraft carries it.
pub(crate) type Snapshot = openraft::Snapshot<LeaderId, unibus_proto::id::NodeId, Member, SnapshotData>;

/// Drives a [`Replica`]. Clones share it.
pub struct StateMachine<E: Env> {
    replica: Arc<Replica<E>>,
    log: GroupLog<E>,
}

impl<E: Env> StateMachine<E> {
    /// Drives `replica`, whose entries are in `log`.
    pub fn new(replica: Arc<Replica<E>>, log: GroupLog<E>) -> Self {
        Self { replica, log }
    }

    fn builder(&self, build: bool) -> SnapshotBuilder<E> {
        SnapshotBuilder { replica: self.replica.clone(), synced: log_synced(self.log.clone()), build }
    }
}

impl<E: Env> RaftStateMachine<TypeConfig<E>> for StateMachine<E> {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder<E>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let meta = self.replica.coverage();
        Ok((meta.last_log_id, meta.last_membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig<E>>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let (answer, events) = match self.replica.apply(&entry) {
                Ok(applied) => applied,
                Err(error) => return Err(self.replica.explain(error).await),
            };
            if let Some(responder) = responder {
                responder.send(answer);
            }
            if !events.is_empty() {
                self.replica.tell(entry.log_id.index, events, false).await;
            }
            self.replica.room().await;
            self.replica.segments.flush().await?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder<E>> {
        // Snapshots are built beside openraft, where a full disk is not fatal; it only learns of them.
        let known = self.replica.snapshots.current();
        (force || known.is_some()).then(|| self.builder(force))
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder<E> {
        self.builder(true)
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        // A truncation of what contradicts the snapshot may still be on its way to the disk: a base beside
        // entries that it contradicts does not start.
        self.log.barrier().await?;
        Ok(self.replica.install(&snapshot).await?)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.replica.snapshots.current().map(as_snapshot))
    }
}

/// Hands the newest snapshot to openraft.
pub struct SnapshotBuilder<E: Env> {
    replica: Arc<Replica<E>>,
    synced: LogSynced,
    build: bool,
}

impl<E: Env> RaftSnapshotBuilder<TypeConfig<E>> for SnapshotBuilder<E> {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        if !self.build
            && let Some(current) = self.replica.snapshots.current()
        {
            return Ok(as_snapshot(current));
        }
        Ok(as_snapshot(self.replica.build_snapshot(&self.synced).await?))
    }
}

fn as_snapshot(data: SnapshotData) -> Snapshot {
    Snapshot { meta: data.meta().clone(), snapshot: data }
}

#[cfg(test)]
mod tests;
