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
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, Router, Server};

use crate::api::connection::{Connection, Connections, NOT_SIGNED_IN_MAX};

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
/// Handshakes at once: each costs a signature. Far more than one source may have open, so that one that
/// opens connections and says nothing holds up nobody else.
const HANDSHAKES_MAX: usize = 4 * NOT_SIGNED_IN_MAX;
/// Whoever has not signed in by then is cut off: HTTP/2 itself has no such bound, not even for its preface.
const SIGN_IN_PATIENCE: Duration = Duration::from_secs(15);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// After running out of file descriptors and the like.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Until somebody has signed in on it.
    pub sign_in: Duration,
    /// Until it is cut off, whatever is still open on it.
    pub whole: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { sign_in: SIGN_IN_PATIENCE, whole: CONNECTION_AGE_MAX + CONNECTION_AGE_GRACE }
    }
}

/// All limits of HTTP/2, the same on each listener. The grace after the greatest age is kept by
/// `ClientStream`: given one, tonic 0.14.9 never says goodbye and only cuts off at its end.
pub fn limited() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION_MAX)
        .load_shed(true)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_PATIENCE))
        .max_connection_age(CONNECTION_AGE_MAX)
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
    connections: Arc<Connections>,
    lifetimes: Lifetimes,
}

impl ClientPort {
    /// Opens it.
    pub async fn bind(address: SocketAddr, tls: rustls::ServerConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (acceptor, connections) = (TlsAcceptor::from(Arc::new(tls)), Arc::default());
        Ok(Self { listener, acceptor, connections, lifetimes: Lifetimes::default() })
    }

    /// The same with other lifetimes.
    #[must_use]
    pub fn with_lifetimes(self, lifetimes: Lifetimes) -> Self {
        Self { lifetimes, ..self }
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
            let connection = match self.connections.open(address.ip()) {
                Ok(connection) => connection,
                Err(why) => {
                    tracing::debug!(%address, why, "client refused");
                    continue;
                }
            };
            let (acceptor, sender, lifetimes) = (self.acceptor.clone(), sender.clone(), self.lifetimes);
            tokio::spawn(async move {
                let tls = shake(acceptor, tcp, address).await;
                let stream = tls.map(|tls| ClientStream::new(tls, connection, lifetimes));
                drop(handshake);
                if let Some(stream) = stream {
                    drop(sender.send(Ok(stream)).await);
                }
            });
        }
    }
}

async fn shake(acceptor: TlsAcceptor, tcp: TcpStream, address: SocketAddr) -> Option<TlsStream<TcpStream>> {
    drop(tcp.set_nodelay(true));
    match tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) if tls.get_ref().1.alpn_protocol() == Some(b"h2") => Some(tls),
        Ok(Ok(_)) => {
            tracing::debug!(%address, "client refused: it did not ask for HTTP/2");
            None
        }
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "client refused: TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(%address, "client refused: TLS handshake took longer than {HANDSHAKE_PATIENCE:?}");
            None
        }
    }
}

/// How many clients are connected.
#[derive(Clone)]
pub struct ConnectionCount(Arc<Connections>);

impl ConnectionCount {
    /// Now.
    pub fn open(&self) -> usize {
        self.0.count()
    }
}

/// A client's connection; counted while it is open, cut off when its time is over.
struct ClientStream {
    tls: TlsStream<TcpStream>,
    connection: Connection,
    ends: Instant,
    is_bounded: bool,
    timer: Pin<Box<Sleep>>,
}

impl ClientStream {
    fn new(tls: TlsStream<TcpStream>, connection: Connection, lifetimes: Lifetimes) -> Self {
        let now = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(now + lifetimes.sign_in));
        Self { tls, connection, ends: now + lifetimes.whole, is_bounded: false, timer }
    }

    /// Asked at each read and write: a client that does not read is cut off as well.
    fn check_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            if self.is_bounded || !self.connection.is_signed_in() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.is_bounded = true;
            self.timer.as_mut().reset(self.ends);
        }
        Ok(())
    }
}

impl Connected for ClientStream {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_time(cx)?;
        Pin::new(&mut this.tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_time(cx)?;
        Pin::new(&mut this.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_time(cx)?;
        Pin::new(&mut this.tls).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_time(cx)?;
        Pin::new(&mut this.tls).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_shutdown(cx)
    }
}
