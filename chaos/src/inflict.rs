//! Faults as data become deeds.

use std::time::Duration;

use openraft_rt::AsyncRuntime;

use unibus_proto::id::NodeId;

use crate::plan::Fault;
use crate::run::{Run, locked};
use crate::sim::disk::FileKind;
use crate::sim::hub::Endpoint;
use crate::sim::runtime::SimRuntime;

/// A sync that is to fail is waited for so long: segments are synced with checkpoints only.
const BAD_SYNC_PATIENCE: Duration = Duration::from_secs(2);
/// A node whose disk has failed ends within this time.
const EXIT_PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

impl Run {
    /// Does a fault, ends it after its time, and counts it when it hit.
    pub(crate) async fn inflict(&self, fault: Fault) {
        let (kind, hit) = (kind(&fault), self.apply(fault).await);
        if hit {
            *locked(&self.fired).entry(kind).or_default() += 1;
        }
    }

    /// Applies a fault and ends it; false when it had no target.
    async fn apply(&self, fault: Fault) -> bool {
        let cluster = &self.cluster;
        let sleep = |millis| SimRuntime::sleep(Duration::from_millis(millis));
        match fault {
            Fault::Kill { target, down_ms } | Fault::PowerCut { target, down_ms } => {
                let power = matches!(fault, Fault::PowerCut { .. });
                let Some(id) = cluster.resolve(target) else { return false };
                cluster.kill(id, power);
                sleep(down_ms).await;
                cluster.start(id);
            }
            Fault::PowerCutAll { down_ms } => {
                cluster.ids().into_iter().for_each(|id| cluster.kill(id, true));
                let mut order: Vec<_> = cluster.ids().into_iter().zip(down_ms).collect();
                order.sort_by_key(|(_, down)| *down);
                let mut slept = 0;
                for (id, down) in order {
                    sleep(down - slept).await;
                    slept = down;
                    cluster.start(id);
                }
            }
            Fault::Isolate { target, clients, for_ms } => {
                let Some(id) = cluster.resolve(target) else { return false };
                self.handle.note(&format!("n{id} is isolated"));
                let mut others: Vec<_> =
                    cluster.ids().into_iter().filter(|other| *other != id).map(Endpoint::node).collect();
                if clients {
                    others.extend(locked(&self.clients).iter());
                }
                let (hub, here) = (cluster.hub(), Endpoint::node(id));
                for other in &others {
                    hub.cut(here, *other);
                    hub.cut(*other, here);
                }
                sleep(for_ms).await;
                for other in &others {
                    hub.heal(here, *other);
                    hub.heal(*other, here);
                }
            }
            Fault::OneWay { from, to, for_ms } => {
                self.handle.note(&format!("n{from} -> n{to} is cut"));
                cluster.hub().cut(Endpoint::node(from), Endpoint::node(to));
                sleep(for_ms).await;
                cluster.hub().heal(Endpoint::node(from), Endpoint::node(to));
            }
            Fault::Break { a, b } => cluster.hub().break_pair(Endpoint::node(a), Endpoint::node(b), "connection lost"),
            Fault::SlowDisk { target, for_ms } => {
                let Some(id) = cluster.resolve(target) else { return false };
                self.handle.note(&format!("n{id} has a slow disk"));
                cluster.set_slow(id, true);
                sleep(for_ms).await;
                cluster.set_slow(id, false);
            }
            Fault::DiskFull { targets, leave_bytes, for_ms } => {
                let ids: Vec<_> = targets.into_iter().filter_map(|target| cluster.resolve(target)).collect();
                self.fill(&ids, Some(leave_bytes));
                sleep(for_ms).await;
                self.fill(&ids, None);
                return !ids.is_empty();
            }
            Fault::BadSync { target, segment, down_ms } => {
                let Some(id) = cluster.resolve(target) else { return false };
                let kind = if segment { FileKind::Segment } else { FileKind::Wal };
                return self.fail_sync(id, kind, Duration::from_millis(down_ms)).await;
            }
            Fault::Clock { target, error_ms } => {
                let Some(id) = cluster.resolve(target) else { return false };
                self.handle.note(&format!("n{id}'s clock is wrong by {error_ms} ms"));
                cluster.set_clock(id, error_ms);
            }
        }
        true
    }
}

impl Run {
    /// Leaves so many bytes on the disks; with space again, nodes that did not start do.
    pub(crate) fn fill(&self, ids: &[NodeId], leave: Option<u64>) {
        for id in ids {
            let Some(disk) = self.cluster.disk(*id) else { continue };
            self.handle.note(&match leave {
                Some(leave) => format!("n{id}'s disk has {leave} bytes left"),
                None => format!("n{id}'s disk has space"),
            });
            disk.fill(leave);
            if leave.is_none() {
                self.cluster.start(*id);
            }
        }
    }

    /// A sync fails, if there is one in time: the node must end at once, and comes back. False when none did.
    async fn fail_sync(&self, id: NodeId, kind: FileKind, down: Duration) -> bool {
        let Some((disk, life)) = self.cluster.disk(id).zip(self.cluster.life(id)) else { return false };
        let before = disk.bad_syncs();
        disk.fail_sync(Some(kind));
        let mut waited = Duration::ZERO;
        while disk.bad_syncs() == before && waited < BAD_SYNC_PATIENCE {
            SimRuntime::sleep(LOOK).await;
            waited += LOOK;
        }
        disk.fail_sync(None);
        if disk.bad_syncs() == before {
            return false;
        }
        self.handle.note(&format!("a sync of n{id}'s {kind:?} failed"));
        SimRuntime::sleep(EXIT_PATIENCE).await;
        if self.cluster.life(id) == Some(life) {
            self.cluster.blame(format!("n{id} goes on {EXIT_PATIENCE:?} after a failed sync of its {kind:?}"));
        }
        SimRuntime::sleep(down).await;
        self.cluster.start(id);
        true
    }
}

fn kind(fault: &Fault) -> &'static str {
    match fault {
        Fault::Kill { .. } => "kill",
        Fault::PowerCut { .. } => "power-cut",
        Fault::PowerCutAll { .. } => "power-cut-all",
        Fault::Isolate { .. } => "isolate",
        Fault::OneWay { .. } => "one-way",
        Fault::Break { .. } => "break",
        Fault::SlowDisk { .. } => "slow-disk",
        Fault::DiskFull { .. } => "disk-full",
        Fault::BadSync { .. } => "bad-sync",
        Fault::Clock { .. } => "clock",
    }
}
