//! What the SDK takes from outside: connections, tasks, time and randomness. [`TokioPlatform`] is the
//! one that programs use; the simulator brings its own, so that a seed replays the SDK too.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use tonic::Status;
use tonic::client::GrpcService;

use crate::Error;
use crate::cause::cause;
use crate::nodes::Label;
pub use crate::tokio_platform::TokioPlatform;

/// Any error, boxed.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The outside world, as one cheap-to-clone value.
pub trait Platform: Clone + Send + Sync + 'static {
    /// A connection to one node that is made when it is first used, and made again after a break.
    ///
    /// An error that has a [`tonic::ConnectError`] in its chain says that nothing was sent.
    type Channel: GrpcService<
            tonic::body::Body,
            ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
            Error: Into<BoxError>,
            Future: Send,
        > + Clone
        + Send
        + Sync
        + 'static;

    /// A connection to `address` (host:port). Does not wait for it.
    fn channel(&self, address: &str) -> Self::Channel;
    /// Runs a task on its own.
    fn spawn(&self, task: BoxFuture<'static, ()>);
    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
    /// Monotonic time since any fixed moment.
    fn now(&self) -> Duration;
    /// Wall-clock time, milliseconds since the Unix epoch.
    fn wall_ms(&self) -> u64;
    /// Fills `buffer` with random bytes, fit for ids and nonces.
    fn fill_random(&self, buffer: &mut [u8]);
}

/// Runs `future` for at most `duration`; `None` when the time ran out.
pub(crate) async fn timeout<P: Platform, T>(
    platform: &P,
    duration: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let sleep = platform.sleep(duration);
    tokio::select! {
        biased;
        value = future => Some(value),
        () = sleep => None,
    }
}

/// `N` random bytes.
pub(crate) fn random<P: Platform, const N: usize>(platform: &P) -> [u8; N] {
    let mut bytes = [0; N];
    platform.fill_random(&mut bytes);
    bytes
}

/// A connection whose platform does not matter any more. Its error is a status, as a boxed error in a type's
/// name makes futures that the compiler cannot prove to be `Send`.
pub(crate) type Channel =
    tower::util::BoxCloneSyncService<http::Request<tonic::body::Body>, http::Response<tonic::body::Body>, Status>;

/// Hides the platform's type of a connection, and marks errors of connecting as [`crate::ErrorCode::Unreachable`].
pub(crate) fn erase<C>(channel: C, label: Arc<Label>) -> Channel
where
    C: GrpcService<
            tonic::body::Body,
            ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
            Error: Into<BoxError>,
            Future: Send,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    Channel::new(Erased { inner: channel, label })
}

#[derive(Clone)]
struct Erased<C> {
    inner: C,
    label: Arc<Label>,
}

impl<C> tower::Service<http::Request<tonic::body::Body>> for Erased<C>
where
    C: GrpcService<
            tonic::body::Body,
            ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
            Error: Into<BoxError>,
            Future: Send,
        > + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Status>> {
        self.inner.poll_ready(context).map_err(|error| mark(&*error.into(), &self.label))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let (answer, label) = (self.inner.call(request), self.label.clone());
        Box::pin(async move {
            match answer.await {
                Ok(response) => Ok(response
                    .map(|body| tonic::body::Body::new(body.map_err(move |error| mark(&*error.into(), &label))))),
                Err(error) => Err(mark(&*error.into(), &label)),
            }
        })
    }
}

/// A node's status stays; one that was made on the way, and all else, is a connection that cannot be made or
/// that broke.
fn mark(error: &(dyn StdError + Send + Sync + 'static), label: &Label) -> Status {
    let first: &(dyn StdError + 'static) = error;
    let chain = || std::iter::successors(Some(first), |link: &&(dyn StdError + 'static)| (*link).source());
    if let Some(status) = chain().find_map(|link| link.downcast_ref::<Status>())
        && status.source().is_none()
    {
        return status.clone();
    }
    let why = cause(error);
    match chain().any(|link| link.is::<tonic::ConnectError>()) {
        true => Error::unreachable(&label.to_string(), &why).into_status(),
        false => Error::lost(format_args!("the connection to {label} broke: {why}")).into_status(),
    }
}
