//! `MessageService`.

use std::collections::BTreeMap;
use std::pin::Pin;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, FuturesUnordered, Stream};
use futures::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming, async_trait};
use unibus_proto::v1::message_service_server::MessageService;
use unibus_proto::v1::{
    FetchRangeRequest, FetchRangeResponse, PublishRequest, PublishResponse, SubscribeRequest, SubscribeResponse,
};
use unibus_raft_store::env::Env;

use super::{Api, answer, to_status};
use crate::service::{Caller, Failure, Outcome, Service};

/// Requests of a publish stream that are not answered yet; beyond it the stream is not read.
const UNANSWERED_MAX: usize = 256;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl<E: Env> MessageService for Api<E> {
    type PublishStreamStream = Answers<PublishResponse>;
    type SubscribeStream = Answers<SubscribeResponse>;

    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        let caller = self.caller(&request).await?;
        answer(self.service.publish(&caller, request.into_inner()).await)
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let caller = self.caller(&request).await?;
        let publishing = PublishStream::new(self.service.clone(), caller, request.into_inner());
        let answers =
            stream::unfold(publishing, |mut publishing| async { Some((publishing.next().await?, publishing)) });
        Ok(Response::new(answers.boxed()))
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = self.caller(&request).await?;
        let subscription = self.service.subscribe(&caller, request.into_inner()).await.map_err(to_status)?;
        let elements = stream::unfold(subscription, |mut subscription| async {
            Some((subscription.next().await?.map_err(to_status), subscription))
        });
        Ok(Response::new(elements.boxed()))
    }

    async fn fetch_range(&self, request: Request<FetchRangeRequest>) -> Result<Response<FetchRangeResponse>, Status> {
        let caller = self.caller(&request).await?;
        answer(self.service.fetch_range(&caller, request.into_inner()).await)
    }
}

/// A publish stream: requests are admitted in their order, those of a room are answered in theirs.
struct PublishStream<E: Env> {
    service: Service<E>,
    caller: Caller,
    requests: Streaming<PublishRequest>,
    ended: bool,
    unanswered: FuturesUnordered<BoxFuture<'static, PublishResponse>>,
    /// Per room, resolves when its last admitted request is answered.
    last_of_room: BTreeMap<Bytes, oneshot::Receiver<()>>,
}

impl<E: Env> PublishStream<E> {
    fn new(service: Service<E>, caller: Caller, requests: Streaming<PublishRequest>) -> Self {
        let (unanswered, last_of_room) = (FuturesUnordered::new(), BTreeMap::new());
        Self { service, caller, requests, ended: false, unanswered, last_of_room }
    }

    async fn next(&mut self) -> Option<Result<PublishResponse, Status>> {
        loop {
            if self.unanswered.is_empty() {
                self.last_of_room.clear();
                if self.ended {
                    return None;
                }
            }
            tokio::select! {
                biased;
                Some(response) = self.unanswered.next(), if !self.unanswered.is_empty() => return Some(Ok(response)),
                request = self.requests.next(), if !self.ended && self.unanswered.len() < UNANSWERED_MAX => {
                    match request {
                        Some(Ok(request)) => self.admit(request).await,
                        Some(Err(status)) => return Some(Err(self.end(status))),
                        None => self.ended = true,
                    }
                }
            }
        }
    }

    fn end(&mut self, status: Status) -> Status {
        self.ended = true;
        self.unanswered.clear();
        status
    }

    async fn admit(&mut self, request: PublishRequest) {
        let (tag, room) = (request.request, request.room_id.clone());
        let outcome = match self.service.reauthenticate(&self.caller).await {
            Ok(()) => self.service.admit_publish(&self.caller, request).await.map(FutureExt::boxed),
            Err(failure) => Err(failure),
        };
        let (done, answered) = oneshot::channel();
        let before = self.last_of_room.insert(room, answered);
        self.unanswered.push(in_turn(tag, outcome, before, done).boxed());
    }
}

/// Answers a request after the one before it in its room.
async fn in_turn(
    tag: u64,
    outcome: Outcome<BoxFuture<'static, Outcome<PublishResponse>>>,
    before: Option<oneshot::Receiver<()>>,
    done: oneshot::Sender<()>,
) -> PublishResponse {
    let outcome = match outcome {
        Ok(published) => published.await,
        Err(failure) => Err(failure),
    };
    if let Some(before) = before {
        // An error means that the one before was answered and dropped.
        drop(before.await);
    }
    done.send(()).ok();
    outcome.unwrap_or_else(|failure: Failure| PublishResponse {
        request: tag,
        failure: Some(failure.to_message()),
        ..PublishResponse::default()
    })
}
