//! `unibus-node run`: a node over the production environment, with all its ports.
#![allow(clippy::disallowed_methods)] // Production only: sockets, signals, tokio's tasks and time.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic_health::ServingStatus;
use unibus_raft_store::{RaftTiming, StoreConfig};

use crate::admin::{self, Probe, Probed};
use crate::api;
use crate::env::{ProductionEnv, align_ticks};
use crate::local::LocalSocket;
use crate::metrics::Sample;
use crate::node::{Node, NodeConfig};
use crate::peer::quic::{QuicNet, QuicSettings};
use crate::plan::Plan;
use crate::resolve::{Resolved, bind_remedy};
use crate::server::{self, ClientPort, ConnectionCount};

/// After the streams were told to end, requests have so long to be answered.
const DRAIN_PATIENCE: Duration = Duration::from_secs(3);
const HEALTH_EVERY: Duration = Duration::from_millis(500);

/// Runs a node until it is told to stop (`Ok`) or must (`Err`, with the reason).
pub async fn run(resolved: Resolved, stop: impl Future<Output = ()>) -> Result<(), String> {
    forbid_core_dumps().map_err(|error| format!("switch core dumps off: {error}"))?;
    let data_dir = resolved.data_dir.clone();
    let ports = Ports::open(&resolved).await?;
    let net = bind_peer_port(&resolved)?;
    let (stopping, stopped) = watch::channel(false);
    let probed = Probed::default();
    let mut admin = tokio::spawn(admin::serve(ports.admin, probed.clone(), until(stopped.clone())));
    let env = ProductionEnv::new(net.0.clone()).map_err(|error| format!("start the I/O threads: {error}"))?;
    let name = resolved.name.clone();
    tracing::info!(
        node = %resolved.node, %name, cluster = %net.1.cluster, peer = %resolved.listen_peer,
        client = %resolved.listen_client, admin = %resolved.listen_admin, data = %data_dir.display(), "starting"
    );
    let config = node_config(&resolved, net.1);
    align_ticks(config.store.raft.heartbeat);
    let node = Node::start(env, config, resolved.sign_key).await.map_err(|error| error.to_string())?;
    node.service().set_config(resolved.effective);
    let certificates = resolved.certificates_expire;
    probed.set(NodeProbe { node: node.clone(), connections: ports.client.connections(), certificates });
    let local = open_local(&data_dir)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(node.clone(), health));
    let router = server::limited().add_routes(api::routes(node.service()).add_service(health_service));
    let mut local =
        tokio::spawn(local.serve(server::limited().add_routes(api::routes(node.service())), until(stopped.clone())));
    let mut client = tokio::spawn(ports.client.serve(router, until(stopped)));
    let outcome = tokio::select! {
        biased;
        fault = node.fault() => Err(fault),
        () = stop => Ok(()),
        // A node without one of its ports is half dead: it must not go on looking well.
        _ = &mut client => Err("the client port ended; the process stops so that it is started anew".into()),
        _ = &mut local => Err("the local socket ended; the process stops so that it is started anew".into()),
        _ = &mut admin => Err("the admin port ended; the process stops so that it is started anew".into()),
    };
    if outcome.is_ok() {
        tracing::info!("stopping");
        node.shutdown().await;
        stopping.send(true).ok();
        let served = async { (local.await.ok(), client.await.ok()) };
        if tokio::time::timeout(DRAIN_PATIENCE, served).await.is_err() {
            tracing::info!("requests were still open after {} s", DRAIN_PATIENCE.as_secs());
        }
        net.0.close().await;
        tracing::info!("stopped");
    }
    outcome
}

/// A core dump would hold the node's keys and its users' messages. The limit is for plain files and is kept
/// by child processes; a handler that the kernel pipes dumps to may ignore it, so the process is made
/// undumpable as well: attaching a debugger or `strace -p` then needs root.
fn forbid_core_dumps() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

struct Ports {
    client: ClientPort,
    admin: TcpListener,
}

impl Ports {
    async fn open(resolved: &Resolved) -> Result<Self, String> {
        let taken = |what: &str, address: SocketAddr, error: io::Error| {
            format!("open the {what} port {address} (TCP): {error}; {}", bind_remedy(&error))
        };
        let (at, tls) = (resolved.listen_client, resolved.client_tls.clone());
        let client = ClientPort::bind(at, tls).await.map_err(|error| taken("client", at, error))?;
        let at = resolved.listen_admin;
        let admin = admin::bind(at).await.map_err(|error| taken("admin", at, error))?;
        Ok(Self { client, admin })
    }
}

fn bind_peer_port(resolved: &Resolved) -> Result<(QuicNet, Plan), String> {
    let plan = resolved.plan.clone();
    let others = plan.nodes.iter().filter(|node| node.id != resolved.node);
    let peers = others.map(|node| (node.id, node.peer_address.clone())).collect();
    let settings = QuicSettings {
        listen: resolved.listen_peer,
        cluster: plan.cluster,
        node: resolved.node,
        peers,
        tls: resolved.peer_tls.share(),
        groups: plan.groups(),
        initial_mtu: resolved.initial_mtu,
    };
    let net =
        QuicNet::bind(settings).map_err(|error| format!("{error}; stop what listens there, or choose another port"))?;
    Ok((net, plan))
}

fn node_config(resolved: &Resolved, plan: Plan) -> NodeConfig {
    let raft = resolved.timing.map_or_else(RaftTiming::default, |[heartbeat, election_min, election_max]| RaftTiming {
        heartbeat,
        election_min,
        election_max,
    });
    NodeConfig {
        node: resolved.node,
        plan,
        join: resolved.join,
        data_dir: resolved.data_dir.clone(),
        store: StoreConfig { raft, ..resolved.store.clone() },
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

fn open_local(data_dir: &Path) -> Result<LocalSocket, String> {
    LocalSocket::bind(data_dir).map_err(|error| {
        let path = data_dir.join(crate::local::SOCKET_NAME);
        format!("open the local socket {}: {error}; a socket's path has at most 107 bytes", path.display())
    })
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone: stop as well.
    stopped.wait_for(|stopped| *stopped).await.ok();
}

/// Keeps the standard health service in step with readiness.
async fn report_health(node: Node<ProductionEnv>, health: tonic_health::server::HealthReporter) {
    loop {
        let ready = node.not_ready().is_empty();
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status("", status).await;
        tokio::time::sleep(HEALTH_EVERY).await;
    }
}

struct NodeProbe {
    node: Node<ProductionEnv>,
    connections: ConnectionCount,
    /// When each expires, in seconds since the Unix epoch.
    certificates: Vec<(&'static str, i64)>,
}

impl Probe for NodeProbe {
    fn not_ready(&self) -> Vec<String> {
        self.node.not_ready()
    }

    fn sample(&self) -> Sample {
        let wal = self.node.store().wal().stats();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed();
        Sample {
            status: self.node.service().local_status(),
            wal_rounds_total: wal.rounds,
            wal_bytes_total: wal.bytes,
            connections: self.connections.open() as u64,
            counted: self.node.service().counters().now(),
            certificates: self.certificates.iter().map(|&(name, expires)| (name, expires - now)).collect(),
        }
    }
}

/// Resolves on SIGTERM, on SIGINT, and, if asked for, when standard input ends.
pub async fn stop_requested(with_stdin: bool) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stdin_ends = async {
        if !with_stdin {
            return std::future::pending().await;
        }
        let (mut stdin, mut ignored) = (tokio::io::stdin(), [0; 64]);
        while stdin.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
    };
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stdin_ends => {}
    }
    Ok(())
}
