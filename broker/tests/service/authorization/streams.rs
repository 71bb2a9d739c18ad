//! Streams that are open while the right goes away: what they answer next, by the design's fences.

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc::{self, UnboundedSender};
use prost::Message;
use tonic::codec::Streaming;
use unibus_broker::api;
use unibus_broker::service::Caller;
use unibus_proto::v1::*;
use unibus_raft_store::env::timeout;

use super::code;
use super::wire::{Credential, open};
use crate::cluster::{Cluster, PATIENCE, User, latest, unique};
use crate::ephemeral::revoke_device;
use crate::net::HubEnv;

#[derive(Clone, Copy, Debug)]
enum Loss {
    Removed,
    MadeReader,
    UserRevoked,
    DeviceRevoked,
}

/// What an open subscription ends with ("OK": it goes on), and what the next request of an open publish
/// stream is answered.
const POLICY: [(Loss, &str, &str); 4] = [
    (Loss::Removed, "ROOM_NOT_FOUND", "ROOM_NOT_FOUND"),
    (Loss::MadeReader, "OK", "FORBIDDEN"),
    (Loss::UserRevoked, "FORBIDDEN", "FORBIDDEN"),
    (Loss::DeviceRevoked, "UNAUTHENTICATED", "UNAUTHENTICATED"),
];

async fn next(stream: &mut Streaming<Bytes>) -> Result<Option<Bytes>, tonic::Status> {
    timeout::<HubEnv, _>(PATIENCE, stream.message()).await.expect("an element in time")
}

async fn lose(host: &User, bob: &User, room: &Room, loss: Loss) {
    match loss {
        Loss::Removed => drop(host.change(room, &bob.identity, None).await),
        Loss::MadeReader => {
            let newest = host.get(room).await.unwrap();
            let event = RosterEvent {
                room_id: newest.room_id,
                height: newest.roster_height + 1,
                previous_hash: newest.roster_hash,
                subject_user: bob.identity.handle.to_string(),
                role: RoomRole::Reader.into(),
                ..host.event(RosterOp::Role)
            };
            let (event, actor) = host.sign(&event);
            host.service.append_roster(&host.caller, AppendRosterRequest { event, actor }).await.unwrap();
        }
        Loss::UserRevoked => {
            let revoke = RevokeUserRequest { request_id: unique(16), handle: bob.identity.handle.to_string() };
            bob.service.revoke_user(&Caller::Local, revoke).await.unwrap();
        }
        Loss::DeviceRevoked => drop(bob.service.publish_device_list(&bob.caller, revoke_device(bob)).await.unwrap()),
    }
}

/// Reads until the stream ends or `last` was delivered; how it ended, and the bodies that came.
async fn read_on(stream: &mut Streaming<Bytes>, last: &str) -> (String, Vec<String>) {
    let mut bodies = Vec::new();
    loop {
        let element = match next(stream).await {
            Ok(element) => element.expect("it ends with a reason"),
            Err(status) => return (code("MessageService/Subscribe", &Err(status)), bodies),
        };
        let Some(subscribe_response::Item::Batch(batch)) = SubscribeResponse::decode(element).unwrap().item else {
            continue;
        };
        for delivery in batch.deliveries().unwrap() {
            if let Some(delivery::Entry::Message(message)) = delivery.entry {
                bodies.push(String::from_utf8(message.body.to_vec()).unwrap());
            }
        }
        if bodies.iter().any(|body| body == last) {
            return ("OK".into(), bodies);
        }
    }
}

fn send(requests: &UnboundedSender<Bytes>, request: PublishRequest) {
    requests.unbounded_send(request.encode_to_vec().into()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_streams_lose_the_right_when_their_caller_does() {
    let cluster = Cluster::start(1).await;
    let host = cluster.user("host", 1).await;
    let routes = api::routes(cluster.service(1));
    for (at, (loss, subscription, publish)) in POLICY.into_iter().enumerate() {
        let bob = cluster.user(&format!("bob{at}"), 1).await;
        let room = host.create(&format!("ops.r{at}")).await;
        host.change(&room, &bob.identity, Some(RoomRole::Member)).await;
        let credential = Credential::Token(bob.token.clone());
        let start = Some(StartFrom { from: Some(latest()) });
        let subscribe = SubscribeRequest { filter: room.subject.clone(), start, ..SubscribeRequest::default() };
        let subscribe = futures::stream::iter([Bytes::from(subscribe.encode_to_vec())]).boxed();
        let mut deliveries = open(&routes, "MessageService/Subscribe", &credential, subscribe).await.unwrap();
        let (requests, sent) = mpsc::unbounded();
        send(&requests, bob.publish_request(&room, 1, &["mine"]));
        let mut answers = open(&routes, "MessageService/PublishStream", &credential, sent.boxed()).await.unwrap();
        let answer = next(&mut answers).await.map(Option::unwrap);
        assert_eq!(code("MessageService/PublishStream", &answer), "OK", "{loss:?}: before it");
        assert_eq!(read_on(&mut deliveries, "mine").await.0, "OK", "{loss:?}: before it");

        lose(&host, &bob, &room, loss).await;
        let numbered = host.publish_request(&room, 1, &["after"]);
        let numbered = PublishRequest { producer_id: unique(8), ..numbered };
        host.service.publish(&host.caller, numbered).await.unwrap();
        send(&requests, bob.publish_request(&room, 2, &["too late"]));
        let answer = next(&mut answers).await.map(Option::unwrap);
        assert_eq!(code("MessageService/PublishStream", &answer), publish, "{loss:?}: the publish stream");
        let (ended, bodies) = read_on(&mut deliveries, "after").await;
        assert_eq!(ended, subscription, "{loss:?}: the subscription");
        assert!(!bodies.iter().any(|body| body == "too late"), "{loss:?}: {bodies:?}");
        assert_eq!(bodies.contains(&"after".into()), subscription == "OK", "{loss:?}: {bodies:?}");
    }
}
