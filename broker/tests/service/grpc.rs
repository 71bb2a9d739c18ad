//! The gRPC adapters in process: metadata, statuses, streams.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt, stream};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};
use tonic_types::StatusExt;
use unibus_broker::api::{self, LocalCaller};
use unibus_proto::v1::auth_service_client::AuthServiceClient;
use unibus_proto::v1::cluster_service_client::ClusterServiceClient;
use unibus_proto::v1::message_service_client::MessageServiceClient;
use unibus_proto::v1::user_service_client::UserServiceClient;
use unibus_proto::v1::*;

use crate::cluster::{Cluster, User};

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

    let subscribe = SubscribeRequest {
        filter: "ops.stream".into(),
        start: Some(StartFrom { from: Some(crate::cluster::earliest()) }),
        until_end: true,
        ..SubscribeRequest::default()
    };
    let elements = client.subscribe(authorized(&alice, subscribe)).await.unwrap().into_inner();
    let deliveries = elements.map(Result::unwrap).filter_map(async |element| match element.item {
        Some(subscribe_response::Item::Batch(batch)) => Some(batch.deliveries.len()),
        _ => None,
    });
    assert_eq!(deliveries.collect::<Vec<_>>().await.into_iter().sum::<usize>(), 101);
}
