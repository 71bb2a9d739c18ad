//! The network over QUIC: mutual TLS from the peer authority, one connection per peer and direction
//! for all groups and a second one for bulk, streams with a priority by lane.
//!
//! A connection's node id is the one in its certificate. It is compared with the plan before any byte
//! of a stream is read.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // Production only: tokio's tasks and time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, IdleTimeout, MtuDiscoveryConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, mpsc};
use unibus_proto::id::{ClusterId, NodeId};
use unibus_raft_store::env::{Duplex, Lane, Net, NetError};

use super::incoming::{GUEST_STREAMS_MAX, Incoming, LEFT};
use super::stream::{QuicRx, QuicTx};
use crate::certs;
use crate::tls::{self, Material, TlsError};

/// Bytes on the way on one connection; a frame is at most as long.
const RECEIVE_WINDOW: u32 = 16 << 20;
/// Smaller than the connection's, so that one stream cannot starve the others.
const STREAM_RECEIVE_WINDOW: u32 = 4 << 20;
const SEND_WINDOW: u64 = 16 << 20;
const UNI_STREAMS_MAX: u32 = 8;
/// Streams per group: append, control, snapshot, and as many again while a leader changes.
const BIDI_STREAMS_PER_GROUP: u32 = 8;
/// Beside the groups' streams: forwarding and formation.
const BIDI_STREAMS_EXTRA: u32 = 64;
const INCOMING_MAX: usize = 64;
const INCOMING_BYTES_MAX: u64 = 1 << 20;
/// Above so many handshakes at once an address must prove itself first.
const UNVALIDATED_MAX: usize = 32;
const IDLE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// A dial that takes longer is begun anew: the peer may have started after our first packet.
const DIAL_PATIENCE: Duration = Duration::from_secs(2);
/// Nodes are near each other; quinn's own guess (333 ms) makes a lost first packet cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(60);
/// As quinn's default window has of its default datagrams.
const INITIAL_WINDOW_DATAGRAMS: u64 = 10;
/// Datagrams that quinn hands to the kernel at once, at most.
const OFFLOADED_MAX: usize = 10;
/// The length of a handshake packet has 14 bits (RFC 9000, section 17.2; quinn writes it in two bytes).
const FIRST_DATAGRAM_MAX: u16 = 16_000;
/// Bytes of UDP that fit into an IP packet.
const UDP_BYTES_MAX: usize = 65_507;
/// The kernel gives what it can (net.core.rmem_max).
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Streams that peers opened and nobody has taken yet.
const ACCEPTED_MAX: usize = 256;

const CLOSED_DONE: VarInt = VarInt::from_u32(0);
pub(super) const CLOSED_REFUSED: VarInt = VarInt::from_u32(1);

/// What a node needs for its peer port.
pub struct QuicSettings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// host:port of the other nodes, until `set_peers` names others.
    pub peers: BTreeMap<NodeId, String>,
    /// Certificate, key and peer authority.
    pub tls: Material,
    /// Raft groups, for the number of streams.
    pub groups: u32,
    /// Bytes of datagrams; larger than the default where the path is known to carry them.
    pub initial_mtu: Option<u16>,
}

/// Why the peer port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The address is taken or not ours.
    #[error("open the peer port {address} (UDP): {cause}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: io::Error,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A setting is out of range.
    #[error("peer port: {0}")]
    Setting(String),
}

/// The network of a real node.
#[derive(Clone)]
pub struct QuicNet {
    inner: Arc<Inner>,
}

type Accepted = (NodeId, (QuicTx, QuicRx));
type Slot = Arc<Mutex<Option<Connection>>>;

struct Inner {
    endpoint: Endpoint,
    client: quinn::ClientConfig,
    cluster: ClusterId,
    node: NodeId,
    peers: RwLock<BTreeMap<NodeId, String>>,
    slots: RwLock<BTreeMap<(NodeId, bool), Slot>>,
    accepted: Mutex<mpsc::Receiver<Accepted>>,
    handshakes: AtomicUsize,
    incoming: Incoming,
}

impl QuicNet {
    /// Opens the peer port. Must be called within the runtime.
    pub fn bind(settings: QuicSettings) -> Result<Self, QuicError> {
        let setting = |error: &dyn std::fmt::Display| QuicError::Setting(error.to_string());
        let transport = Arc::new(transport(&settings)?);
        let crypto = QuicServerConfig::try_from(tls::peer_server(&settings.tls)?).map_err(|e| setting(&e))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(transport.clone()).migration(false).max_incoming(INCOMING_MAX);
        server.incoming_buffer_size(INCOMING_BYTES_MAX / 4).incoming_buffer_size_total(INCOMING_BYTES_MAX);
        let crypto = QuicClientConfig::try_from(tls::peer_client(&settings.tls)?).map_err(|e| setting(&e))?;
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        client.transport_config(transport);
        let socket = socket(settings.listen).map_err(|cause| QuicError::Bind { address: settings.listen, cause })?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(endpoint(&settings)?, Some(server), socket, runtime)
            .map_err(|cause| QuicError::Bind { address: settings.listen, cause })?;
        let (sender, accepted) = mpsc::channel(ACCEPTED_MAX);
        let inner = Arc::new(Inner {
            endpoint,
            client,
            cluster: settings.cluster,
            node: settings.node,
            peers: RwLock::new(settings.peers),
            slots: RwLock::default(),
            accepted: Mutex::new(accepted),
            handshakes: AtomicUsize::new(0),
            incoming: Incoming::new(member_streams(settings.groups)),
        });
        tokio::spawn(listen(inner.clone(), sender));
        Ok(Self { inner })
    }

    /// Where the peer port listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.endpoint.local_addr()
    }

    /// Closes all connections and the port.
    pub async fn close(&self) {
        self.inner.endpoint.close(CLOSED_DONE, b"the node is shutting down");
        // The peers learn of it at once if the last packets get out; they would time out otherwise.
        drop(tokio::time::timeout(Duration::from_millis(500), self.inner.endpoint.wait_idle()).await);
    }
}

fn member_streams(groups: u32) -> u32 {
    groups.saturating_mul(BIDI_STREAMS_PER_GROUP).saturating_add(BIDI_STREAMS_EXTRA)
}

fn transport(settings: &QuicSettings) -> Result<quinn::TransportConfig, QuicError> {
    let idle = IdleTimeout::try_from(IDLE).map_err(|error| QuicError::Setting(error.to_string()))?;
    let mut transport = quinn::TransportConfig::default();
    transport
        // Whoever connects is a guest at first: what was once granted cannot be taken back.
        .max_concurrent_bidi_streams(GUEST_STREAMS_MAX.into())
        .max_concurrent_uni_streams(UNI_STREAMS_MAX.into())
        .receive_window(RECEIVE_WINDOW.into())
        .stream_receive_window(STREAM_RECEIVE_WINDOW.into())
        .send_window(SEND_WINDOW)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .datagram_receive_buffer_size(None);
    if let Some(mtu) = settings.initial_mtu {
        let (mut discovery, mut congestion) = (MtuDiscoveryConfig::default(), CubicConfig::default());
        discovery.upper_bound(mtu);
        let first = mtu.min(FIRST_DATAGRAM_MAX);
        if settings.listen.ip().is_loopback() {
            // Carried for certain: what is lost was lost in a full buffer, and smaller datagrams do not help.
            transport.min_mtu(first);
        }
        // The kernel takes 64 KiB at once. quinn hands it ten datagrams and takes its refusal for a loss, then
        // for a path that carries no large ones, and would send 1,200 bytes at a time from then on.
        transport.enable_segmentation_offload(usize::from(mtu) * OFFLOADED_MAX <= UDP_BYTES_MAX);
        // A window below one datagram would never send it.
        congestion.initial_window(INITIAL_WINDOW_DATAGRAMS * u64::from(mtu));
        transport.initial_mtu(first).mtu_discovery_config(Some(discovery));
        transport.congestion_controller_factory(Arc::new(congestion));
    }
    Ok(transport)
}

/// Stateless resets and connection ids are keyed by the node's own key, so that a peer of a restarted
/// node learns at once, and not after the idle timeout, that its connection is gone.
fn endpoint(settings: &QuicSettings) -> Result<quinn::EndpointConfig, QuicError> {
    let derive = |what: &[u8]| Sha256::new().chain_update(what).chain_update(settings.tls.key.secret_der()).finalize();
    let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &derive(b"unibus quic reset v1\0"));
    let mut config = quinn::EndpointConfig::new(Arc::new(reset));
    let key = derive(b"unibus quic connection id v1\0");
    let key = u64::from_le_bytes(*key.first_chunk().expect("32 bytes hold 8"));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(key)));
    if let Some(mtu) = settings.initial_mtu {
        config.max_udp_payload_size(mtu).map_err(|error| QuicError::Setting(format!("initial_mtu: {error}")))?;
    }
    Ok(config)
}

fn socket(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(listen)?;
    // What the kernel allows is enough to work; a larger buffer only loses fewer packets in a burst.
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES).ok();
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES).ok();
    Ok(socket)
}

async fn listen(inner: Arc<Inner>, accepted: mpsc::Sender<Accepted>) {
    while let Some(incoming) = inner.endpoint.accept().await {
        let busy = inner.handshakes.load(Ordering::Relaxed) >= UNVALIDATED_MAX;
        if busy && !incoming.remote_address_validated() && incoming.may_retry() {
            drop(incoming.retry());
            continue;
        }
        inner.handshakes.fetch_add(1, Ordering::Relaxed);
        let (inner, accepted) = (inner.clone(), accepted.clone());
        tokio::spawn(async move {
            let from = incoming.remote_address();
            let handshake = tokio::time::timeout(HANDSHAKE_PATIENCE, async { incoming.accept()?.await }).await;
            inner.handshakes.fetch_sub(1, Ordering::Relaxed);
            match handshake {
                Ok(Ok(connection)) => serve(&inner, connection, accepted).await,
                Ok(Err(error)) => tracing::warn!(%from, %error, "peer refused: handshake failed"),
                Err(_) => tracing::warn!(%from, "peer refused: handshake took longer than {HANDSHAKE_PATIENCE:?}"),
            }
        });
    }
}

async fn serve(inner: &Inner, connection: Connection, accepted: mpsc::Sender<Accepted>) {
    let from = connection.remote_address();
    let peer = match inner.authenticate(&connection) {
        Ok(peer) => peer,
        Err(why) => {
            tracing::warn!(%from, %why, "peer refused");
            return connection.close(CLOSED_REFUSED, why.as_bytes());
        }
    };
    if !inner.incoming.admit(peer, &connection, |peer| inner.knows(peer)) {
        tracing::warn!(%from, %peer, "peer refused: too many nodes that are no members are connected");
        return connection.close(CLOSED_REFUSED, b"too many nodes that are no members");
    }
    tracing::debug!(%peer, %from, "peer connected");
    while let Ok((send, receive)) = connection.accept_bi().await {
        if accepted.send((peer, (QuicTx::new(send), QuicRx::new(receive)))).await.is_err() {
            break;
        }
    }
    inner.incoming.forget(&connection);
}

impl Inner {
    fn knows(&self, peer: NodeId) -> bool {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).contains_key(&peer)
    }

    /// Who is at the other end.
    fn authenticate(&self, connection: &Connection) -> Result<NodeId, String> {
        let identity = connection.peer_identity().ok_or("no certificate")?;
        let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| "no X.509 certificate")?;
        let name = certs::peer_name(chain.first().ok_or("no certificate")?).map_err(|error| error.to_string())?;
        if name.cluster != self.cluster {
            return Err(format!("certificate of cluster {}, expected {}", name.cluster, self.cluster));
        }
        if name.node == self.node {
            return Err(format!("certificate of node {}, which is this one", name.node));
        }
        Ok(name.node)
    }

    fn slot(&self, peer: NodeId, bulk: bool) -> Slot {
        self.slots.write().unwrap_or_else(PoisonError::into_inner).entry((peer, bulk)).or_default().clone()
    }

    async fn connection(self: &Arc<Self>, peer: NodeId, bulk: bool) -> Result<Connection, NetError> {
        let slot = self.slot(peer, bulk);
        let mut connection = slot.clone().lock_owned().await;
        if let Some(open) = connection.as_ref().filter(|open| open.close_reason().is_none()) {
            return Ok(open.clone());
        }
        // In a task of its own, so that a caller who gives up does not undo the handshake of the others.
        let inner = self.clone();
        let dial = tokio::spawn(async move {
            let dialed = inner.dial(peer).await?;
            *connection = Some(dialed.clone());
            Ok(dialed)
        });
        dial.await.unwrap_or_else(|_| Err(NetError::Unreachable("the dial was cancelled".into())))
    }

    async fn dial(&self, peer: NodeId) -> Result<Connection, NetError> {
        let address = self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&peer).cloned();
        let address = address.ok_or_else(|| NetError::Unreachable(format!("node {peer} is not in the plan")))?;
        let unreachable = |why: String| NetError::Unreachable(format!("node {peer} at {address}: {why}"));
        let dial = async {
            let mut addresses =
                tokio::net::lookup_host(&address).await.map_err(|error| unreachable(format!("look up: {error}")))?;
            let to = addresses.next().ok_or_else(|| unreachable("look up: no address".into()))?;
            let name = certs::peer_server_name(self.cluster, peer);
            let connecting = self
                .endpoint
                .connect_with(self.client.clone(), to, &name)
                .map_err(|error| unreachable(error.to_string()))?;
            connecting.await.map_err(|error| unreachable(error.to_string()))
        };
        let connection = tokio::time::timeout(DIAL_PATIENCE, dial)
            .await
            .map_err(|_| unreachable(format!("no answer within {DIAL_PATIENCE:?}")))??;
        match self.authenticate(&connection) {
            Ok(node) if node == peer => Ok(connection),
            Ok(node) => Err(refuse(&connection, &unreachable(format!("node {node} answers there")).to_string())),
            Err(why) => Err(refuse(&connection, &unreachable(why).to_string())),
        }
    }
}

fn refuse(connection: &Connection, why: &str) -> NetError {
    connection.close(CLOSED_REFUSED, why.as_bytes());
    NetError::Unreachable(why.into())
}

impl Net for QuicNet {
    type Tx = QuicTx;
    type Rx = QuicRx;

    async fn connect(&self, peer: NodeId, lane: Lane) -> Result<Duplex<Self>, NetError> {
        let connection = self.inner.connection(peer, lane == Lane::Bulk).await?;
        let (send, receive) =
            connection.open_bi().await.map_err(|error| NetError::Unreachable(format!("node {peer}: {error}")))?;
        let priority = match lane {
            Lane::Control => 2,
            Lane::Log => 1,
            Lane::Bulk => 0,
        };
        send.set_priority(priority).map_err(|error| NetError::Closed(error.to_string()))?;
        Ok((QuicTx::new(send), QuicRx::new(receive)))
    }

    fn set_peers(&self, peers: BTreeMap<NodeId, String>) {
        let known: BTreeSet<NodeId> = peers.keys().copied().collect();
        *self.inner.peers.write().unwrap_or_else(PoisonError::into_inner) = peers;
        self.inner.slots.write().unwrap_or_else(PoisonError::into_inner).retain(|(node, _), slot| {
            // A slot that is locked is being dialled; without a known peer it is not used.
            if !known.contains(node)
                && let Ok(slot) = slot.try_lock()
                && let Some(connection) = &*slot
            {
                connection.close(CLOSED_REFUSED, LEFT);
            }
            known.contains(node)
        });
        self.inner.incoming.cut(|peer| self.inner.knows(peer));
    }

    async fn accept(&self) -> Result<(NodeId, Duplex<Self>), NetError> {
        let closed = || NetError::Closed("the peer port was closed".into());
        self.inner.accepted.lock().await.recv().await.ok_or_else(closed)
    }
}
