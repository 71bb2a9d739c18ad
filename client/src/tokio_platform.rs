//! The platform of production: tonic over TLS with a pinned certificate authority, tokio's tasks and
//! timers, the system's clock and randomness.

// The one place of the crate that names tokio's tasks and the real clocks.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use ring::rand::{SecureRandom, SystemRandom};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::{Error, ErrorCode, Platform};

/// A dead host does not answer a SYN: give up early enough to try the next node within the 3 s promise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A stalled connection is noticed within interval + timeout.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Enough for a full subscriber queue in flight (4 MiB), with room for answers beside it.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// A batch of a subscription comes in few frames; an answer on the same connection waits for no more than one.
const FRAME_BYTES_MAX: u32 = 64 << 10;

/// Tokio, TLS with a pinned certificate authority, and the system's clock and randomness.
///
/// Must be used within a tokio runtime.
#[derive(Clone)]
pub struct TokioPlatform {
    inner: Arc<Inner>,
}

struct Inner {
    authority: Option<Certificate>,
    random: SystemRandom,
    started: Instant,
}

impl TokioPlatform {
    /// Trusts nodes whose certificate descends from the authority in `pem`, and no other.
    pub fn new(pem: impl AsRef<[u8]>) -> Self {
        Self::with(Some(Certificate::from_pem(pem)))
    }

    /// Reads the authority from a PEM file.
    pub fn from_ca_file(path: &Path) -> Result<Self, Error> {
        let pem = std::fs::read(path).map_err(|error| {
            let message = format!("certificate authority {}: {error}; give the cluster's client CA", path.display());
            Error::new(ErrorCode::Invalid, message)
        })?;
        Ok(Self::new(pem))
    }

    /// No TLS: for nodes in the same process, in tests.
    #[doc(hidden)]
    pub fn without_tls() -> Self {
        Self::with(None)
    }

    fn with(authority: Option<Certificate>) -> Self {
        let inner = Inner { authority, random: SystemRandom::new(), started: Instant::now() };
        Self { inner: Arc::new(inner) }
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, tonic::transport::Error> {
        let scheme = if self.inner.authority.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX);
        match &self.inner.authority {
            Some(authority) => endpoint.tls_config(ClientTlsConfig::new().ca_certificate(authority.clone())),
            None => Ok(endpoint),
        }
    }
}

impl std::fmt::Debug for TokioPlatform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokioPlatform").field("tls", &self.inner.authority.is_some()).finish_non_exhaustive()
    }
}

impl Platform for TokioPlatform {
    type Channel = Channel;

    fn channel(&self, address: &str) -> Channel {
        match self.endpoint(address) {
            Ok(endpoint) => endpoint.connect_lazy(),
            Err(error) => refuse(format!("node address {address:?}: {error}")),
        }
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(tokio::spawn(task));
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn now(&self) -> Duration {
        self.inner.started.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    fn fill_random(&self, buffer: &mut [u8]) {
        self.inner.random.fill(buffer).expect("the operating system has randomness");
    }
}

/// A connection that fails with `why`, as an address that cannot be parsed has no other place to say so.
fn refuse(why: String) -> Channel {
    let connector = tower::service_fn(move |_: http::Uri| {
        let why = why.clone();
        async move { Err::<hyper_util::rt::TokioIo<tokio::net::TcpStream>, _>(std::io::Error::other(why)) }
    });
    Endpoint::from_static("http://invalid.invalid").connect_with_connector_lazy(connector)
}
