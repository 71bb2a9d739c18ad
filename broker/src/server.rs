//! The client port: gRPC over TLS 1.3, with every limit that neither tonic nor hyper sets by itself
//! (RELIABILITY section 6).
#![allow(clippy::disallowed_methods)] // Production only: sockets, tokio's tasks and time.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, Router, Server};
use unibus_proto::limits::CONNECTIONS_MAX;

const STREAMS_MAX: u32 = 100;
const REQUESTS_PER_CONNECTION_MAX: usize = 64;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEPALIVE_PATIENCE: Duration = Duration::from_secs(10);
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(3600);
/// After that age streams have so long to end by themselves; SDKs resume on a new connection.
const CONNECTION_AGE_GRACE: Duration = Duration::from_secs(60);
const PENDING_RESETS_MAX: usize = 20;
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// Handshakes at once: each costs a signature.
const HANDSHAKES_MAX: usize = 128;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// After running out of file descriptors and the like.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a request came from; tonic puts it into the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAddress(pub SocketAddr);

/// All limits of HTTP/2, the same on each listener.
pub fn limited() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION_MAX)
        .load_shed(true)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_PATIENCE))
        .max_connection_age(CONNECTION_AGE_MAX)
        .max_connection_age_grace(CONNECTION_AGE_GRACE)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(PENDING_RESETS_MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .tcp_nodelay(true)
}

/// A client port that is open.
pub struct ClientPort {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connections: Arc<Semaphore>,
}

impl ClientPort {
    /// Opens it.
    pub async fn bind(address: SocketAddr, tls: rustls::ServerConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(tls)), connections })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Counts the connections.
    pub fn connections(&self) -> ConnectionCount {
        ConnectionCount(self.connections.clone())
    }

    /// Serves until `stop` resolves, then lets open requests end.
    pub async fn serve(
        self,
        router: Router,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), tonic::transport::Error> {
        let (sender, incoming) = mpsc::channel(HANDSHAKES_MAX);
        let accept = tokio::spawn(self.accept(sender));
        let served = router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop).await;
        accept.abort();
        served
    }

    async fn accept(self, sender: mpsc::Sender<io::Result<ClientStream>>) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        loop {
            let Ok(handshake) = handshakes.clone().acquire_owned().await else { return };
            let (tcp, address) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = self.connections.clone().try_acquire_owned() else {
                tracing::warn!(%address, "client refused: {CONNECTIONS_MAX} connections are open");
                continue;
            };
            let (acceptor, sender) = (self.acceptor.clone(), sender.clone());
            tokio::spawn(async move {
                let stream = shake(acceptor, tcp, address, permit).await;
                drop(handshake);
                if let Some(stream) = stream {
                    drop(sender.send(Ok(stream)).await);
                }
            });
        }
    }
}

async fn shake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    address: SocketAddr,
    permit: OwnedSemaphorePermit,
) -> Option<ClientStream> {
    drop(tcp.set_nodelay(true));
    match tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) if tls.get_ref().1.alpn_protocol() == Some(b"h2") => {
            Some(ClientStream { tls, address, _permit: permit })
        }
        Ok(Ok(_)) => {
            tracing::info!(%address, "client refused: it did not ask for HTTP/2");
            None
        }
        Ok(Err(error)) => {
            tracing::info!(%address, %error, "client refused: TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::info!(%address, "client refused: TLS handshake took longer than {HANDSHAKE_PATIENCE:?}");
            None
        }
    }
}

/// How many clients are connected.
#[derive(Clone)]
pub struct ConnectionCount(Arc<Semaphore>);

impl ConnectionCount {
    /// Now.
    pub fn open(&self) -> usize {
        CONNECTIONS_MAX - self.0.available_permits()
    }
}

/// A client's connection; counted while it is open.
struct ClientStream {
    tls: TlsStream<TcpStream>,
    address: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

impl Connected for ClientStream {
    type ConnectInfo = RemoteAddress;

    fn connect_info(&self) -> RemoteAddress {
        RemoteAddress(self.address)
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tls).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_shutdown(cx)
    }
}
