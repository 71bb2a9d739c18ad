//! All groups of a node over one write-ahead log: opening, serving peers, snapshots, faults, shutdown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::errors::Fatal;
use tokio::sync::Semaphore;
use unibus_proto::id::{DirectoryId, GroupId, NodeId};
use unibus_proto::peer::stream_open::Purpose;

use crate::env::{Disk, Duplex, Env, WatchReceiver, sleep, spawn};
use crate::error::{StoreError, io_at};
use crate::faults::Faults;
use crate::group::{Group, Inner};
use crate::identity::{Agreed, Identity, WAL_DIR};
use crate::log::LogStore;
use crate::network::{self, Network, Pace, StreamKind};
use crate::replica::{CheckpointTurn, LogSynced, Replica, log_synced};
use crate::segment::Place;
use crate::space::Space;
use crate::state::StateMachine;
use crate::types::Raft;
use crate::waits::Waits;
use crate::wal::{GroupLog, Wal};
use crate::watched::{WatchReceiverOf, Watched};

mod config;
mod scrub;
mod trim;

pub use config::{RaftTiming, StoreConfig};

/// A snapshot that could not be built is tried again after this time.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(5);

/// All groups of a node; cheap to clone.
pub struct Store<E: Env>(Arc<Shared<E>>);

struct Shared<E: Env> {
    groups: BTreeMap<GroupId, Group<E>>,
    wal: Wal<E>,
    faults: Faults,
    space: Arc<Space<E>>,
    waits: Waits,
    stop: Arc<Watched<E, bool>>,
    /// Until the first shutdown, which takes it.
    running: Mutex<bool>,
}

impl<E: Env> Clone for Store<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Env> Store<E> {
    /// Opens the groups in `config.dir`, which must be the directory of `identity`, and takes part in
    /// them from here on. An empty directory gets an empty log first.
    pub async fn open(env: E, identity: Identity, config: StoreConfig) -> Result<Self, StoreError> {
        let raft_config = Arc::new(config.raft_config(&identity)?);
        let wal = open_wal(&env, &identity, &config).await?;
        let is_blank = (0..config.groups).all(|id| wal.group(GroupId(id)).state().last.is_none());
        Agreed::of(&config).keep(&env, &config.dir, is_blank).await?;
        let faults = Faults::default();
        let build = Arc::new(Semaphore::new(1));
        let stop = Arc::new(Watched::<E, bool>::new(false));
        let checkpoint = CheckpointTurn::default();
        let pace = Arc::new(Pace::new(config.snapshot_bytes_per_second));
        let space = Arc::new(Space::measure(env.clone(), config.dir.clone(), config.space).await);
        spawn::<E>(space.clone().watch(wal.clone(), stop.subscribe()));
        let waits = Waits::default();
        let stopped = stop.clone();
        let opening = Opening {
            env,
            identity,
            config,
            raft_config,
            faults,
            build,
            pace,
            checkpoint,
            space,
            waits,
            stop: stopped,
        };
        let mut groups = BTreeMap::new();
        for id in (0..opening.config.groups).map(GroupId) {
            let group = opening.group(id, wal.group(id)).await?;
            spawn::<E>(watch_faults(group.clone(), opening.faults.clone(), stop.subscribe()));
            spawn::<E>(build_snapshots(group.clone(), stop.subscribe()));
            groups.insert(id, group);
        }
        spawn::<E>(watch_wal::<E>(wal.fault(), opening.faults.clone(), stop.subscribe()));
        let (log_bytes, file_bytes) = (opening.config.trim_log_bytes(), opening.config.wal.file_bytes);
        let scrubbed = groups.values().cloned().collect();
        spawn::<E>(scrub::run(scrubbed, opening.config.scrub_bytes_per_second, stop.subscribe()));
        let trimmed = groups.values().cloned().collect();
        spawn::<E>(trim::run(wal.clone(), trimmed, log_bytes, file_bytes, stop.subscribe()));
        let patience = opening.config.disk_patience;
        spawn::<E>(watch_disk(wal.clone(), patience, opening.faults.clone(), stop.subscribe()));
        let Opening { faults, space, waits, .. } = opening;
        Ok(Self(Arc::new(Shared { groups, wal, faults, space, waits, stop, running: Mutex::new(true) })))
    }

    /// A group; none when the id is above the number of shards.
    pub fn group(&self, id: GroupId) -> Option<Group<E>> {
        self.0.groups.get(&id).cloned()
    }

    /// All groups, ascending.
    pub fn groups(&self) -> impl Iterator<Item = Group<E>> + '_ {
        self.0.groups.values().cloned()
    }

    /// The write-ahead log, for its figures.
    pub fn wal(&self) -> &Wal<E> {
        &self.0.wal
    }

    /// The space that the node has left.
    pub fn space(&self) -> &Space<E> {
        &self.0.space
    }

    /// Who waits on this node for what is committed elsewhere.
    pub fn waits(&self) -> &Waits {
        &self.0.waits
    }

    /// Whether `directory` is the one that the membership of the meta group knows for `peer`; none while
    /// this node knows no membership.
    pub fn knows_peer(&self, peer: NodeId, directory: DirectoryId) -> Option<bool> {
        let meta = self.0.groups.get(&GroupId::META)?;
        let members: BTreeMap<_, _> = meta.members().collect();
        (!members.is_empty()).then(|| members.get(&peer) == Some(&directory))
    }

    /// Serves a stream that `peer` opened for Raft until it ends. Cluster, node and directory were
    /// checked when it was accepted.
    pub async fn serve_raft(&self, peer: NodeId, purpose: Purpose, duplex: Duplex<E::Net>) {
        let (kind, group) = match purpose {
            Purpose::Append(group) => (StreamKind::Replication, group.group),
            Purpose::Control(group) => (StreamKind::Heartbeat, group.group),
            Purpose::Snapshot(group) => (StreamKind::Snapshot, group.group),
            Purpose::Node(_) | Purpose::Ephemeral(_) | Purpose::Formation(_) | Purpose::Join(_) => return,
        };
        let Some(group) = self.group(GroupId(group)) else {
            return tracing::warn!(%peer, group, "peer opened a stream of a group that this node does not have");
        };
        if let Err(error) = network::serve(&group.0, kind, duplex).await {
            tracing::debug!(%peer, group = %group.id(), %error, "raft stream ended");
        }
    }

    /// Resolves with the first fatal error of any group: then the process must exit.
    pub fn faults(&self) -> impl Future<Output = String> + Send + 'static {
        self.0.faults.wait()
    }

    /// Stops all groups, then the write-ahead log. Leaderships are to be handed over before.
    pub async fn shutdown(&self) {
        if !std::mem::replace(&mut *self.0.running.lock().unwrap_or_else(PoisonError::into_inner), false) {
            return;
        }
        self.0.stop.update(|stop| *stop = true);
        // What waits for space would wait for ever.
        self.0.wal.give_up_waiting();
        self.0.groups.values().for_each(|group| group.0.replica.segments.give_up_waiting());
        for group in self.0.groups.values() {
            if let Err(error) = group.0.raft.shutdown().await {
                tracing::warn!(group = %group.id(), %error, "raft did not stop in order");
            }
        }
        self.0.wal.shutdown().await;
    }
}

/// What is needed to open a group.
struct Opening<E: Env> {
    env: E,
    identity: Identity,
    config: StoreConfig,
    raft_config: Arc<openraft::Config>,
    faults: Faults,
    build: Arc<Semaphore>,
    pace: Arc<Pace<E>>,
    checkpoint: CheckpointTurn,
    space: Arc<Space<E>>,
    waits: Waits,
    stop: Arc<Watched<E, bool>>,
}

impl<E: Env> Opening<E> {
    async fn group(&self, id: GroupId, log: GroupLog<E>) -> Result<Group<E>, StoreError> {
        let (config, node) = (&self.config, self.identity.node);
        let place = Place { cluster: self.identity.cluster, group: id };
        let purged = log.state().purged.map(|id| id.index);
        let dir = group_dir(&config.dir, id);
        let replica = Replica::open(&self.env, &dir, place, purged, config.replica());
        let replica = Arc::new(Box::pin(replica).await?.with_turn(self.checkpoint.clone()));
        replica.segments.report_to(self.faults.clone());
        let synced = log_synced(log.clone());
        self.tend(&replica, &synced);
        let progress = config.raft.election_max;
        let network = Network::new(self.env.clone(), self.identity, id, progress, self.pace.clone());
        let (store, machine) = (LogStore::new(log.clone()), StateMachine::new(replica.clone(), log.clone()));
        let raft: Raft<E, StateMachine<E>> = Raft::new(node, self.raft_config.clone(), network, store, machine)
            .await
            .map_err(|fatal| StoreError::Raft { group: id, why: fatal.to_string() })?;
        let (build, space, heartbeat) = (self.build.clone(), self.space.clone(), config.raft.heartbeat);
        let waits = self.waits.clone();
        let inner = Inner { id, node, raft, replica, synced, log, build, space, waits, heartbeat };
        let group = Group(Arc::new(inner));
        self.check_directory(&group)?;
        Ok(group)
    }

    /// From before Raft starts on, which replays the log: `apply` may wait for a checkpoint.
    fn tend(&self, replica: &Arc<Replica<E>>, synced: &LogSynced) {
        let (tended, synced) = (replica.clone(), synced.clone());
        let stop = self.stop.subscribe();
        spawn::<E>(async move { tended.tend(synced, stop).await });
        let (watched, faults) = (replica.clone(), self.faults.clone());
        let mut stop = self.stop.subscribe();
        spawn::<E>(async move {
            tokio::select! {
                biased;
                _ = stop.changed() => {}
                () = watched.watch_damage(faults) => {}
            }
        });
    }

    /// The membership must know this very directory: a copy of the identity on another disk is another.
    fn check_directory(&self, group: &Group<E>) -> Result<(), StoreError> {
        let own = self.identity.directory;
        match group.members().find(|(node, _)| *node == self.identity.node) {
            Some((node, member)) if member != own => Err(StoreError::Config(format!(
                "{}: the membership of {} knows directory {member} for node {node}, this is {own}; \
                 point the node at its own directory",
                self.config.dir.display(),
                group.id()
            ))),
            _ => Ok(()),
        }
    }
}

/// Where the snapshots and segments of a group are.
fn group_dir(dir: &Path, group: GroupId) -> PathBuf {
    dir.join("groups").join(group.to_string())
}

async fn open_wal<E: Env>(env: &E, identity: &Identity, config: &StoreConfig) -> Result<Wal<E>, StoreError> {
    let dir = config.dir.join(WAL_DIR);
    let minting = Identity::is_minting(env, &config.dir).await?;
    if minting {
        // Nothing in it counts: nobody was told of this directory yet.
        env.disk().remove_dir_all(&dir).await.map_err(io_at("remove", &dir))?;
        Wal::create(env, &dir, identity.cluster, &config.wal).await?;
        Identity::finish_minting(env, &config.dir).await?;
    }
    Ok(Wal::open(env, &dir, identity.cluster, config.wal.clone()).await?)
}

/// Reports when Raft of a group stops for another reason than shutdown.
async fn watch_faults<E: Env>(group: Group<E>, faults: Faults, mut stop: WatchReceiverOf<E, bool>) {
    let mut watch = group.watch();
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            goes_on = watch.changed() => if goes_on { continue },
        }
        let state = group.0.raft.metrics().borrow_watched().running_state.clone();
        let stopping = *stop.borrow_watched();
        match state {
            Err(Fatal::Stopped) | Ok(()) if stopping => {}
            Err(fatal) => faults.report(format!("group {}: {fatal}", group.id())),
            Ok(()) => faults.report(format!("group {}: raft ended without a reason", group.id())),
        }
        return;
    }
}

async fn watch_wal<E: Env>(
    fault: impl Future<Output = String> + Send,
    faults: Faults,
    mut stop: WatchReceiverOf<E, bool>,
) {
    tokio::select! {
        biased;
        _ = stop.changed() => {}
        error = fault => faults.report(error),
    }
}

/// Reports a disk that hangs. Such a leader goes on leading, as heartbeats need no disk, and serves nobody.
async fn watch_disk<E: Env>(wal: Wal<E>, patience: Duration, faults: Faults, mut stop: WatchReceiverOf<E, bool>) {
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            () = sleep::<E>(patience / 4) => {}
        }
        let waits = wal.stats().in_flight.unwrap_or_default();
        if waits >= patience {
            return faults.report(format!(
                "write-ahead log: a write takes {waits:?} already, expected less than {patience:?}: the disk hangs; \
                 this node stops so that others serve, check the disk before it is started again"
            ));
        }
    }
}

/// Builds snapshots when they are due. A failure is never fatal: the log is kept and it is tried again.
async fn build_snapshots<E: Env>(group: Group<E>, mut stop: WatchReceiverOf<E, bool>) {
    let mut due = group.0.replica.snapshot_due();
    let mut built = 0;
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            // Not `changed`: it may have been asked for while the group was opened.
            asked = due.wait_until(|asked| *asked > built) => match asked {
                Ok(asked) => built = asked,
                Err(_) => return,
            },
        }
        while let Err(error) = group.snapshot().await {
            tracing::warn!(group = %group.id(), %error, "snapshot is not built, it is tried again");
            tokio::select! {
                biased;
                _ = stop.changed() => return,
                () = sleep::<E>(SNAPSHOT_RETRY) => {}
            }
        }
    }
}
