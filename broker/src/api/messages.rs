//! `MessageService`.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures::future::{BoxFuture, OptionFuture};
use futures::stream::{self, FuturesUnordered, Stream};
use futures::{FutureExt, StreamExt};
use tokio::sync::oneshot::{self, error::TryRecvError};
use tonic::{Request, Response, Status, Streaming, async_trait};
use unibus_proto::id::RoomId;
use unibus_proto::v1::message_service_server::MessageService;
use unibus_proto::v1::{
    FetchRangeRequest, FetchRangeResponse, PublishRequest, PublishResponse, SubscribeRequest, SubscribeResponse,
};
use unibus_raft_store::env::Env;

use super::{Api, answer, caller, to_status};
use crate::service::{Caller, Failure, Outcome, Service};

/// Requests of a publish stream that are not answered yet; beyond it the stream is not read.
const UNANSWERED_MAX: usize = 256;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl<E: Env> MessageService for Api<E> {
    type PublishStreamStream = Answers<PublishResponse>;
    type SubscribeStream = Answers<SubscribeResponse>;

    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.publish(&caller, request.into_inner()).await)
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let caller = caller(&request)?;
        let publishing = PublishStream::new(self.service.clone(), caller, request.into_inner());
        let answers =
            stream::unfold(publishing, |mut publishing| async { Some((publishing.next().await?, publishing)) });
        Ok(Response::new(answers.boxed()))
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = caller(&request)?;
        let subscription = self.service.subscribe(&caller, request.into_inner()).await.map_err(to_status)?;
        let elements = stream::unfold(subscription, |mut subscription| async {
            Some((subscription.next().await?.map_err(to_status), subscription))
        });
        Ok(Response::new(elements.boxed()))
    }

    async fn fetch_range(&self, request: Request<FetchRangeRequest>) -> Result<Response<FetchRangeResponse>, Status> {
        let caller = caller(&request)?;
        answer(self.service.fetch_range(&caller, request.into_inner()).await)
    }
}

/// A request that was looked at: its tag, its room, and what it waits for or why it is refused.
type Admitted = (u64, Option<RoomId>, Outcome<BoxFuture<'static, Outcome<PublishResponse>>>);

/// A publish stream: requests are admitted in their order, those of a room are answered in theirs.
struct PublishStream<E: Env> {
    service: Service<E>,
    caller: Caller,
    requests: Streaming<PublishRequest>,
    ended: bool,
    /// The request that is being looked at: those after it wait for it, answers do not.
    admitting: Option<BoxFuture<'static, Admitted>>,
    unanswered: FuturesUnordered<BoxFuture<'static, PublishResponse>>,
    /// Per room, resolves when its last admitted request is answered.
    last_of_room: BTreeMap<RoomId, oneshot::Receiver<()>>,
}

impl<E: Env> PublishStream<E> {
    fn new(service: Service<E>, caller: Caller, requests: Streaming<PublishRequest>) -> Self {
        let (unanswered, last_of_room) = (FuturesUnordered::new(), BTreeMap::new());
        Self { service, caller, requests, ended: false, admitting: None, unanswered, last_of_room }
    }

    async fn next(&mut self) -> Option<Result<PublishResponse, Status>> {
        loop {
            if self.unanswered.is_empty() && self.admitting.is_none() {
                self.last_of_room.clear();
                if self.ended {
                    return None;
                }
            }
            tokio::select! {
                biased;
                Some(response) = self.unanswered.next(), if !self.unanswered.is_empty() => return Some(Ok(response)),
                Some(admitted) = OptionFuture::from(self.admitting.as_mut()), if self.admitting.is_some() => {
                    self.admitting = None;
                    self.wait_for(admitted);
                }
                request = self.requests.next(), if self.reads() => {
                    match request {
                        Some(Ok(request)) => {
                            let admitted = admit(self.service.clone(), self.caller.clone(), request);
                            self.admitting = Some(admitted.boxed());
                        }
                        Some(Err(status)) => return Some(Err(self.end(status))),
                        None => self.ended = true,
                    }
                }
            }
        }
    }

    fn reads(&self) -> bool {
        !self.ended && self.admitting.is_none() && self.unanswered.len() < UNANSWERED_MAX
    }

    fn end(&mut self, status: Status) -> Status {
        self.ended = true;
        self.admitting = None;
        self.unanswered.clear();
        status
    }

    fn wait_for(&mut self, (tag, room, outcome): Admitted) {
        let (done, answered) = oneshot::channel();
        forget_answered(&mut self.last_of_room);
        let before = room.and_then(|room| self.last_of_room.insert(room, answered));
        self.unanswered.push(in_turn(self.service.clone(), tag, outcome, before, done).boxed());
    }
}

/// Looks at a request, which may take a read barrier.
async fn admit<E: Env>(service: Service<E>, caller: Caller, request: PublishRequest) -> Admitted {
    let (tag, room) = (request.request, RoomId::from_bytes(&request.room_id).ok());
    let outcome = match service.reauthenticate(&caller).await {
        Ok(()) => service.admit_publish(&caller, request).await.map(FutureExt::boxed),
        Err(failure) => Err(failure),
    };
    (tag, room, outcome)
}

/// Whoever names a new room in each request must not make the node remember them all.
fn forget_answered(last_of_room: &mut BTreeMap<RoomId, oneshot::Receiver<()>>) {
    if last_of_room.len() > 2 * UNANSWERED_MAX {
        last_of_room.retain(|_, answered| answered.try_recv() == Err(TryRecvError::Empty));
    }
}

/// Answers a request after the one before it in its room.
async fn in_turn<E: Env>(
    service: Service<E>,
    tag: u64,
    outcome: Outcome<BoxFuture<'static, Outcome<PublishResponse>>>,
    before: Option<oneshot::Receiver<()>>,
    done: oneshot::Sender<()>,
) -> PublishResponse {
    let outcome = match outcome {
        Ok(published) => published.await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = &outcome {
        service.counters().rejected(failure.code);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_whose_requests_were_answered_are_forgotten() {
        let mut last_of_room = BTreeMap::new();
        let mut open = Vec::new();
        for n in 0..100_000_u32 {
            let (done, answered) = oneshot::channel();
            let mut room = RoomId([0; 16]);
            room.0[..4].copy_from_slice(&n.to_le_bytes());
            forget_answered(&mut last_of_room);
            last_of_room.insert(room, answered);
            match n {
                0..UNANSWERED => open.push(done),
                n if n % 2 == 0 => done.send(()).expect("it is remembered"),
                _ => drop(done),
            }
        }
        assert!(last_of_room.len() <= 2 * UNANSWERED_MAX + 1, "{} rooms are remembered", last_of_room.len());
        let open_rooms = last_of_room.values_mut().filter_map(|answered| answered.try_recv().err());
        assert_eq!(open_rooms.filter(|error| *error == TryRecvError::Empty).count(), open.len(), "those still count");
    }

    const UNANSWERED: u32 = UNANSWERED_MAX as u32;
}
