//! Nodes on loopback: free ports for them, and what their admin listeners answer.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The host of all of them.
pub const LOOPBACK: &str = "127.0.0.1";
const PROBE_PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of a readiness answer that we read.
const ANSWER_BYTES_MAX: u64 = 16 << 10;

/// The ports of one node.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// QUIC, between nodes.
    pub peer: u16,
    /// gRPC, for clients.
    pub client: u16,
    /// HTTP, for who watches.
    pub admin: u16,
}

impl Ports {
    /// Ports that nobody listens on, for each of `nodes`.
    ///
    /// # Errors
    /// When a socket cannot be bound.
    pub fn free(nodes: u64) -> io::Result<Vec<Self>> {
        // All sockets stay open until the last port is found, so that none is found twice.
        let (mut held_tcp, mut held_udp) = (Vec::new(), Vec::new());
        let mut tcp = || {
            let listener = TcpListener::bind((LOOPBACK, 0))?;
            let port = listener.local_addr()?.port();
            held_tcp.push(listener);
            io::Result::Ok(port)
        };
        let mut found = Vec::new();
        for _ in 0..nodes {
            let socket = UdpSocket::bind((LOOPBACK, 0))?;
            found.push(Self { peer: socket.local_addr()?.port(), client: tcp()?, admin: tcp()? });
            held_udp.push(socket);
        }
        Ok(found)
    }
}

/// Asks the node whose admin listener is at `admin` whether it is ready.
///
/// # Errors
/// Why it is not, in its own words where it answers.
pub async fn ready(admin: &str) -> Result<(), String> {
    let probe = tokio::time::timeout(PROBE_PATIENCE, get(admin, "/readyz"));
    let answer = probe.await.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.0 200") { Ok(()) } else { Err(body.into()) }
}

async fn get(address: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
