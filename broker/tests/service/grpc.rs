//! The gRPC adapters in process: metadata, statuses, streams.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt, stream};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};
use tonic_types::StatusExt;
use tower::Service as _;
use unibus_broker::api::connection::{Connection, Connections};
use unibus_broker::api::{self, LocalCaller};
use unibus_broker::service::Caller;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::v1::auth_service_client::AuthServiceClient;
use unibus_proto::v1::cluster_service_client::ClusterServiceClient;
use unibus_proto::v1::message_service_client::MessageServiceClient;
use unibus_proto::v1::user_service_client::UserServiceClient;
use unibus_proto::v1::*;
use unibus_raft_store::env::timeout;

use crate::cluster::{Cluster, User, add_user, identity, shard_of};
use crate::net::HubEnv;

/// A body that never ends.
struct Endless;

impl http_body::Body for Endless {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Poll::Pending
    }
}

fn authorized<T>(user: &User, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Unibus {}", STANDARD.encode(&user.token));
    request.metadata_mut().insert("authorization", MetadataValue::try_from(value).unwrap());
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_carries_reason_domain_and_outcome() {
    let cluster = Cluster::start(1).await;
    let routes = api::routes(cluster.service(1));
    let status = AuthServiceClient::new(routes.clone()).who_am_i(WhoAmIRequest {}).await.expect_err("no token");
    assert_eq!(status.code(), Code::Unauthenticated);
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("UNAUTHENTICATED", "unibus"));
    assert_eq!(info.metadata["outcome"], "none");

    let mut local = Request::new(ListUsersRequest::default());
    local.extensions_mut().insert(LocalCaller);
    UserServiceClient::new(routes.clone()).list_users(local).await.expect("the local socket's caller");
    let remote = UserServiceClient::new(routes).list_users(ListUsersRequest::default()).await;
    assert_eq!(remote.expect_err("nobody").code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topology_and_status_name_nodes_and_groups() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let mut client = ClusterServiceClient::new(api::routes(cluster.service(1)));
    let topology = client.get_topology(authorized(&alice, GetTopologyRequest {})).await.unwrap().into_inner();
    assert_eq!(topology.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["n1", "n2", "n3"]);
    assert_eq!(topology.leaders.len(), 3, "meta and two shards");
    let status = client.get_status(authorized(&alice, GetStatusRequest {})).await.unwrap().into_inner();
    assert_eq!(status.nodes[0].replicas.len(), 3);
    let refused = client.snapshot(authorized(&alice, SnapshotRequest {})).await.expect_err("a member");
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_stream_answers_in_order_and_survives_a_bad_request() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 2).await;
    let room = alice.create("ops.stream").await;
    let mut requests: Vec<_> = (1..=100).map(|number| alice.publish_request(&room, number, &["m"])).collect();
    requests.insert(50, PublishRequest { request: 999, room_id: vec![1].into(), ..requests[0].clone() });
    let mut client = MessageServiceClient::new(api::routes(cluster.service(2)));
    let stream = client.publish_stream(authorized(&alice, stream::iter(requests))).await.unwrap().into_inner();
    let answers: Vec<PublishResponse> = stream.map(Result::unwrap).collect().await;
    let (bad, good): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.request == 999);
    assert_eq!(good.iter().map(|answer| answer.request).collect::<Vec<_>>(), (1..=100).collect::<Vec<_>>());
    assert!(good.iter().all(|answer| answer.failure.is_none() && answer.outcomes.len() == 1));
    let failure = bad[0].failure.as_ref().expect("the bad one's failure");
    assert_eq!((failure.code.as_str(), failure.outcome.as_str()), ("INVALID", "none"));

    let counted = cluster.service(2).counters().now();
    assert_eq!((counted.published, counted.rejected), (100, [(ErrorCode::Invalid, 1)].into()));

    let subscribe = SubscribeRequest {
        filter: "ops.stream".into(),
        start: Some(StartFrom { from: Some(crate::cluster::earliest()) }),
        until_end: true,
        ..SubscribeRequest::default()
    };
    let elements = client.subscribe(authorized(&alice, subscribe)).await.unwrap().into_inner();
    let deliveries = elements.map(Result::unwrap).filter_map(async |element| match element.item {
        Some(subscribe_response::Item::Batch(batch)) => Some(batch.deliveries().unwrap().len()),
        _ => None,
    });
    assert_eq!(deliveries.collect::<Vec<_>>().await.into_iter().sum::<usize>(), 101);
    assert_eq!(cluster.service(2).counters().now().delivered, 101);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_takes_long_to_look_at_does_not_hold_up_the_answer_to_the_one_before() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 3).await;
    let stored = alice.create("ops.stored").await;
    let ephemeral = alice.create_with("live.cpu", RoomPolicy::default()).await;
    let there = cluster.service(3);
    assert_ne!(there.shards().meta().leader(), Some(NodeId(3)), "it would not be held");
    // A read barrier of meta waits at n3 for what does not come.
    cluster.hub.hold(NodeId(3), GroupId::META);
    let bob = add_user(&identity("bob"), UserRole::Member);
    cluster.service(1).add_user(&Caller::Local, bob).await.unwrap();

    let requests = [&stored, &ephemeral].map(|room| alice.publish_request(room, 1, &["m"]));
    let requests = [1, 2].into_iter().zip(requests).map(|(request, rest)| PublishRequest { request, ..rest });
    let mut client = MessageServiceClient::new(api::routes(there));
    let requests: Vec<_> = requests.collect();
    let answers = client.publish_stream(authorized(&alice, stream::iter(requests))).await.unwrap().into_inner();
    let answers = answers.map(|answer| (answer.unwrap(), std::time::Instant::now()));
    let answers: Vec<(PublishResponse, std::time::Instant)> = answers.collect().await;
    let [(first, answered), (second, refused)] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!((first.request, &first.failure, first.outcomes.len()), (1, &None, 1));
    let failure = second.failure.as_ref().expect("a refusal");
    assert_eq!((second.request, failure.code.as_str()), (2, "NO_LEADER"), "{failure:?}");
    let between = refused.duration_since(*answered);
    assert!(between >= Duration::from_millis(500), "only {between:?} between the two answers");
}

/// The requests that a connection carries.
fn on<T>(connection: &Connection, mut request: Request<T>) -> Request<T> {
    request.extensions_mut().insert(connection.clone());
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_message_is_read_before_the_caller_is_known() {
    let cluster = Cluster::start(1).await;
    let mut routes = api::routes(cluster.service(1));
    // The body never ends: whoever waits for it would wait for ever.
    let call = |token: Option<&str>| {
        let body = tonic::body::Body::new(Endless);
        let mut request = http::Request::post("/unibus.v1.RoomService/ListRooms").body(body).unwrap();
        if let Some(token) = token {
            request.headers_mut().insert("authorization", token.parse().unwrap());
        }
        routes.call(request)
    };
    let answers = [None, Some("Unibus cnViYmlzaA==")].map(call);
    for answer in answers {
        let answer = timeout::<HubEnv, _>(Duration::from_secs(5), answer).await.expect("answered at once").unwrap();
        assert_eq!(answer.headers()["grpc-status"], "16");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_ends_at_the_callers_deadline() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    let room = alice.create("ops.late").await;
    cluster.spread().await;
    let leader = cluster.service(1).shards().group(shard_of(&room)).unwrap().leader().expect("a leader");
    let leading = cluster.service(leader.0 as usize);
    let alice = alice.at(leading.clone()).await;
    (1..=3).map(NodeId).filter(|node| *node != leader).for_each(|node| cluster.hub.cut(node));
    let mut client = MessageServiceClient::new(api::routes(leading));
    let mut request = authorized(&alice, alice.publish_request(&room, 1, &["m"]));
    request.set_timeout(Duration::from_millis(300));
    let begun = std::time::Instant::now();
    let status = client.publish(request).await.expect_err("there is no majority");
    assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((info.reason.as_str(), info.metadata["outcome"].as_str()), ("OUTCOME_UNKNOWN", "unknown"), "{status}");
    assert!(status.message().contains("deadline"), "{status}");

    let mut passed = authorized(&alice, WhoAmIRequest {});
    passed.metadata_mut().insert("grpc-timeout", "0n".parse().unwrap());
    let status = AuthServiceClient::new(api::routes(cluster.service(1))).who_am_i(passed).await.expect_err("too late");
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_has_64_connections_and_what_is_refused_is_counted() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster.user("alice", 1).await, cluster.user("bob", 1).await);
    let table = std::sync::Arc::new(Connections::default());
    let open = || table.open("10.0.0.1".parse().unwrap()).unwrap();
    let mut client = AuthServiceClient::new(api::routes(cluster.service(1)));
    let held: Vec<Connection> = (0..64).map(|_| open()).collect();
    for connection in &held {
        client.who_am_i(on(connection, authorized(&alice, WhoAmIRequest {}))).await.unwrap();
        assert!(connection.is_signed_in());
    }
    let another = open();
    let nobody = client.who_am_i(on(&another, Request::new(WhoAmIRequest {}))).await.expect_err("no token");
    assert_eq!((nobody.code(), another.is_signed_in()), (Code::Unauthenticated, false));
    let refused = client.who_am_i(on(&another, authorized(&alice, WhoAmIRequest {}))).await.expect_err("the 65th");
    assert_eq!(refused.get_details_error_info().unwrap().reason, "QUOTA_EXCEEDED");
    client.who_am_i(on(&another, authorized(&bob, WhoAmIRequest {}))).await.expect("another user");
    let counted = cluster.service(1).counters().now();
    assert_eq!(counted.rejected, [(ErrorCode::Unauthenticated, 1), (ErrorCode::QuotaExceeded, 1)].into());
    assert_eq!((counted.sign_ins, counted.sign_ins_failed), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_lead_names_the_leader() {
    let cluster = Cluster::start(3).await;
    let led_elsewhere = |node: &u64| cluster.service(*node as usize).shards().meta().leader() != Some(NodeId(*node));
    let node = (1..=3).find(led_elsewhere).expect("two of three follow");
    let leader = cluster.service(node as usize).shards().meta().leader().expect("a leader");
    let mut request = Request::new(TransferLeaderRequest { group: 0, to: node });
    request.extensions_mut().insert(LocalCaller);
    let mut client = ClusterServiceClient::new(api::routes(cluster.service(node as usize)));
    let status = client.transfer_leader(request).await.expect_err("it does not lead");
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((info.reason.as_str(), &info.metadata["leader"]), ("NOT_LEADER", &leader.to_string()), "{status}");
}
