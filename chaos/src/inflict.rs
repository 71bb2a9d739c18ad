//! Faults as data become deeds.

use std::time::Duration;

use openraft_rt::AsyncRuntime;

use crate::plan::Fault;
use crate::run::{Run, locked};
use crate::sim::hub::Endpoint;
use crate::sim::runtime::SimRuntime;

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
            Fault::Clock { target, error_ms } => {
                let Some(id) = cluster.resolve(target) else { return false };
                self.handle.note(&format!("n{id}'s clock is wrong by {error_ms} ms"));
                cluster.set_clock(id, error_ms);
            }
        }
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
        Fault::Clock { .. } => "clock",
    }
}
