//! Request and response in turn, on a stream that is kept open.

use std::future::Future;
use std::time::Duration;

use prost::Message;
use tokio::sync::Mutex;
use unibus_proto::peer;
use unibus_proto::peer::raft_request::Request;
use unibus_proto::peer::raft_response::Response;

use crate::env::{Duplex, Env, FrameRx, FrameTx, timeout};
use crate::stream::{StreamError, decode};

/// A stream for small requests to one peer. It is put back only after an answer, so that a request that
/// was given up never leaves its answer to the next one.
pub struct ControlLink<E: Env>(Mutex<Option<Duplex<E::Net>>>);

impl<E: Env> Default for ControlLink<E> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<E: Env> ControlLink<E> {
    /// Sends a request and waits for its answer, at most `patience`.
    pub async fn call<F>(
        &self,
        open: impl FnOnce() -> F + Send,
        request: Request,
        patience: Duration,
    ) -> Result<Response, String>
    where
        F: Future<Output = Result<Duplex<E::Net>, StreamError>> + Send,
    {
        let exchange = async {
            // Whoever comes while a request is under way opens a stream of his own.
            let idle = self.0.try_lock().ok().and_then(|mut idle| idle.take());
            let (mut tx, mut rx) = match idle {
                Some(duplex) => duplex,
                None => open().await.map_err(|e| e.to_string())?,
            };
            let frame = peer::RaftRequest { request: Some(request) }.encode_to_vec();
            tx.send(vec![frame.into()]).await.map_err(|e| e.to_string())?;
            let answer = rx.recv().await.and_then(decode::<peer::RaftResponse>).map_err(|e| e.to_string())?;
            if let Ok(mut idle) = self.0.try_lock() {
                *idle = Some((tx, rx));
            }
            response(answer)
        };
        let silent = || format!("no answer within {} ms", patience.as_millis());
        timeout::<E, _>(patience, exchange).await.ok_or_else(silent)?
    }
}

/// What a response says, or why there is none.
pub fn response(answer: peer::RaftResponse) -> Result<Response, String> {
    match answer.response {
        _ if !answer.error.is_empty() => Err(answer.error),
        Some(response) => Ok(response),
        None => Err("an empty response".into()),
    }
}
