//! The local socket: the same API for who may already do everything on this host, namely the node's
//! user and root. It adds the first admin, because there is nobody yet to ask, and is the break-glass
//! later.
#![allow(clippy::disallowed_methods)] // Production only: sockets and tokio's tasks.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, Router};

use crate::api::LocalCaller;

/// The socket's name in the data directory.
pub const SOCKET_NAME: &str = "admin.sock";
/// Connections that were accepted and are not served yet.
const ACCEPTED_MAX: usize = 16;
/// After running out of file descriptors and the like.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An open local socket; the file goes with it.
pub struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // Left behind, it is replaced at the next start.
        drop(fs::remove_file(&self.path));
    }
}

impl LocalSocket {
    /// Opens it in a data directory that this process has locked: a socket that is there is a left-over.
    pub fn bind(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(SOCKET_NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Serves until `stop` resolves.
    pub async fn serve(
        self,
        router: Router,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), tonic::transport::Error> {
        let (sender, incoming) = mpsc::channel(ACCEPTED_MAX);
        let accept = tokio::spawn(async move {
            loop {
                match self.listener.accept().await.map(|(stream, _)| (check_peer(&stream), stream)) {
                    Ok((Ok(()), stream)) => drop(sender.send(Ok::<_, io::Error>(LocalStream(stream))).await),
                    Ok((Err(why), _)) => tracing::warn!(%why, "local caller refused"),
                    // Out of file descriptors: the way in for emergencies must be there when that is over.
                    Err(error) => {
                        tracing::warn!(%error, "accept a local caller");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
        let served = router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop).await;
        accept.abort();
        served
    }
}

fn check_peer(stream: &UnixStream) -> Result<(), String> {
    let uid = stream.peer_cred().map_err(|error| format!("peer credentials: {error}"))?.uid();
    let own = rustix::process::geteuid().as_raw();
    if uid == own || uid == 0 { Ok(()) } else { Err(format!("uid {uid}, expected {own} or root")) }
}

struct LocalStream(UnixStream);

impl Connected for LocalStream {
    type ConnectInfo = LocalCaller;

    fn connect_info(&self) -> LocalCaller {
        LocalCaller
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
