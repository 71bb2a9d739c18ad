//! What `/metrics` shows: a sample of the node, rendered anew for each scrape. The series are few and
//! their labels fixed.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use unibus_proto::id::GroupId;
use unibus_proto::v1::NodeStatus;

use crate::service::Counted;

/// A node at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// As the node tells its clients.
    pub status: NodeStatus,
    /// Writes of the log since the node started, each with one fsync.
    pub wal_rounds_total: u64,
    /// Bytes written to the log since the node started.
    pub wal_bytes_total: u64,
    /// Clients connected over TLS.
    pub connections: u64,
    /// What clients did.
    pub counted: Counted,
    /// Certificates and the seconds until each expires; below 0 when it has.
    pub certificates: Vec<(&'static str, i64)>,
}

type Labels = [(&'static str, String); 1];
type Floats = Gauge<f64, AtomicU64>;
type Integers = Gauge<i64, AtomicI64>;

/// As OpenMetrics text.
pub fn render(sample: &Sample) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("unibus");
    let status = &sample.status;
    let build = Family::<Labels, Integers>::default();
    build.get_or_create(&[("version", status.version.clone())]).set(1);
    registry.register("build_info", "Version of the program", build);
    gauge(&mut registry, "ready", "1 when the node is ready", i64::from(status.not_ready.is_empty()));
    gauge(&mut registry, "connections", "Clients connected over TLS", signed(sample.connections));
    gauge(&mut registry, "subscriptions", "Open subscriptions", signed(status.subscriptions));
    gauge(&mut registry, "disk_used_bytes", "Bytes of the data directory", signed(status.disk_used_bytes));
    gauge(&mut registry, "disk_free_bytes", "Bytes that can still be written", signed(status.disk_free_bytes));
    let full = i64::from(!status.disk_full.is_empty());
    gauge(&mut registry, "disk_full", "1 when the node takes no new messages for want of disk space", full);
    seconds(&mut registry, "fsync_seconds", "Duration of the last fsync of the log", status.last_fsync_us, 1e6);
    seconds(&mut registry, "uptime_seconds", "Time since the process started", status.uptime_ms, 1e3);
    counter(&mut registry, "wal_rounds", "Writes of the log, each with one fsync", sample.wal_rounds_total);
    counter(&mut registry, "wal_bytes", "Bytes written to the log", sample.wal_bytes_total);
    clients(&mut registry, &sample.counted);
    let certificates = Family::<Labels, Integers>::default();
    for (name, seconds) in &sample.certificates {
        certificates.get_or_create(&[("certificate", (*name).into())]).set(*seconds);
    }
    registry.register("certificate_expiry_seconds", "Seconds until a certificate expires", certificates);
    groups(&mut registry, status);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn clients(registry: &mut Registry, counted: &Counted) {
    counter(registry, "published", "Messages stored for clients of this node", counted.published);
    counter(registry, "deliveries", "Timeline entries handed to clients of this node", counted.delivered);
    counter(registry, "forwarded", "Log entries sent to the leader on another node", counted.forwarded);
    counter(registry, "ephemeral_sent", "Ephemeral messages sent by clients of this node", counted.ephemeral_sent);
    let delivered = counted.ephemeral_delivered;
    counter(registry, "ephemeral_deliveries", "Ephemeral messages handed to clients of this node", delivered);
    let dropped = counted.ephemeral_dropped;
    counter(registry, "ephemeral_dropped", "Ephemeral messages dropped by a full queue or a broken stream", dropped);
    let sign_ins = Family::<Labels, Counter>::default();
    for (result, count) in [("ok", counted.sign_ins), ("failed", counted.sign_ins_failed)] {
        sign_ins.get_or_create(&[("result", result.into())]).inc_by(count);
    }
    registry.register("sign_ins", "Sign-ins", sign_ins);
    let rejected = Family::<Labels, Counter>::default();
    for (code, count) in &counted.rejected {
        rejected.get_or_create(&[("code", code.as_str().into())]).inc_by(*count);
    }
    registry.register("rejected", "Requests and messages that were refused", rejected);
}

fn groups(registry: &mut Registry, status: &NodeStatus) {
    let [leader, term, last, committed, applied, snapshot, rooms] =
        std::array::from_fn(|_| Family::<Labels, Integers>::default());
    for replica in &status.replicas {
        let labels = [("group", GroupId(replica.group).to_string())];
        let set = |family: &Family<Labels, Integers>, value| {
            family.get_or_create(&labels).set(signed(value));
        };
        set(&leader, replica.leader);
        set(&term, replica.term);
        set(&last, replica.last_index);
        set(&committed, replica.committed_index);
        set(&applied, replica.applied_index);
        set(&snapshot, replica.snapshot_index);
        set(&rooms, replica.rooms);
    }
    registry.register("group_leader", "The leader that this node knows, 0 when none", leader);
    registry.register("group_term", "Raft term", term);
    registry.register("group_last_index", "Last entry of the log", last);
    registry.register("group_committed_index", "Last committed entry", committed);
    registry.register("group_applied_index", "Last applied entry", applied);
    registry.register("group_snapshot_index", "Entry of the last snapshot", snapshot);
    registry.register("group_rooms", "Rooms of the group", rooms);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: i64) {
    let gauge = Integers::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn seconds(registry: &mut Registry, name: &str, help: &str, value: u64, per_second: f64) {
    let gauge = Floats::default();
    #[allow(clippy::cast_precision_loss)] // Microseconds of centuries are exact enough.
    gauge.set(value as f64 / per_second);
    registry.register(name, help, gauge);
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use unibus_proto::code::ErrorCode;
    use unibus_proto::v1::ReplicaStatus;

    use super::*;

    #[test]
    fn each_group_has_its_series() {
        let replica = |group, applied_index| ReplicaStatus { group, applied_index, leader: 2, ..Default::default() };
        let status = NodeStatus {
            version: "1.2.3".into(),
            last_fsync_us: 1_500,
            replicas: vec![replica(0, 7), replica(1, 9)],
            ..NodeStatus::default()
        };
        let counted = Counted {
            published: 5,
            delivered: 15,
            sign_ins: 2,
            forwarded: 4,
            ephemeral_dropped: 6,
            rejected: [(ErrorCode::Invalid, 3)].into(),
            ..Counted::default()
        };
        let certificates = vec![("peer", 86_400), ("client", -1)];
        let sample = Sample { status, wal_bytes_total: 4711, counted, certificates, ..Sample::default() };
        let text = render(&sample).expect("rendered");
        for line in [
            "unibus_build_info{version=\"1.2.3\"} 1",
            "unibus_group_applied_index{group=\"meta\"} 7",
            "unibus_group_applied_index{group=\"s1\"} 9",
            "unibus_group_leader{group=\"s1\"} 2",
            "unibus_fsync_seconds 0.0015",
            "unibus_wal_bytes_total 4711",
            "unibus_ready 1",
            "unibus_published_total 5",
            "unibus_deliveries_total 15",
            "unibus_forwarded_total 4",
            "unibus_ephemeral_dropped_total 6",
            "unibus_sign_ins_total{result=\"ok\"} 2",
            "unibus_sign_ins_total{result=\"failed\"} 0",
            "unibus_rejected_total{code=\"INVALID\"} 3",
            "unibus_certificate_expiry_seconds{certificate=\"peer\"} 86400",
            "unibus_certificate_expiry_seconds{certificate=\"client\"} -1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
