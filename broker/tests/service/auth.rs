//! Signing in, and what is refused.

use prost::Message;
use unibus_broker::service::Caller;
use unibus_proto::code::ErrorCode;
use unibus_proto::v1::*;

use crate::cluster::{CLUSTER, Cluster, User, add_user, claims, identity, sign_in_with_list, signed, unique};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_signs_in_and_every_node_accepts_the_token() {
    let cluster = Cluster::start(3).await;
    let alice = cluster.user("alice", 1).await;
    for node in 1..=3 {
        let there = alice.at(cluster.service(node)).await;
        let me = there.service.who_am_i(&there.caller).unwrap();
        assert_eq!((me.user.as_str(), me.role.as_str(), me.node_id), ("alice", "member", node as u64));
        assert_eq!(me.device_id, alice.identity.device_id().to_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sign_in_refuses_what_it_must() {
    let cluster = Cluster::start(1).await;
    let service = cluster.service(1);
    let (alice, mallory) = (identity("alice"), identity("mallory"));
    service.add_user(&Caller::Local, add_user(&alice, UserRole::Member)).await.unwrap();
    let sign_in = async |request| service.sign_in(request).await.expect_err("it must be refused").code;
    let bare = |claims: Signed| SignInRequest { claims: Some(claims), ..SignInRequest::default() };

    let unknown_device = bare(signed(&alice, &claims(&service, &alice)));
    assert_eq!(sign_in(unknown_device.clone()).await, ErrorCode::DeviceNotFound);
    assert_eq!(sign_in(unknown_device).await, ErrorCode::Unauthenticated, "the nonce is used up");

    let with_list = sign_in_with_list(&alice, &claims(&service, &alice));
    service.sign_in(with_list.clone()).await.unwrap();
    assert_eq!(sign_in(with_list).await, ErrorCode::Unauthenticated, "a replayed challenge");

    let unknown_user = sign_in_with_list(&mallory, &claims(&service, &mallory));
    assert_eq!(sign_in(unknown_user).await, ErrorCode::Unauthenticated);

    let mut altered = signed(&alice, &claims(&service, &alice));
    altered.payload = [&altered.payload[..], &[0x30, 1]].concat().into();
    assert_eq!(sign_in(bare(altered)).await, ErrorCode::Unauthenticated, "altered claims");

    let forged = Signed::sign(CLUSTER, &claims(&service, &alice), &[&mallory.device_key]);
    assert_eq!(sign_in(bare(forged)).await, ErrorCode::Unauthenticated, "another device's signature");

    let good = claims(&service, &alice);
    let invented = TokenClaims { nonce: unique(32), ..good.clone() };
    assert_eq!(sign_in(bare(signed(&alice, &invented))).await, ErrorCode::Unauthenticated, "an invented nonce");
    let too_long = TokenClaims { expires_ms: good.expires_ms + 1, ..claims(&service, &alice) };
    let too_long = TokenClaims { issued_ms: too_long.issued_ms - 60_000, ..too_long };
    assert_eq!(sign_in(bare(signed(&alice, &too_long))).await, ErrorCode::Unauthenticated, "16 minutes");
    let past = claims(&service, &alice);
    let past = TokenClaims { issued_ms: past.issued_ms - 600_000, expires_ms: past.issued_ms - 1, ..past };
    assert_eq!(sign_in(bare(signed(&alice, &past))).await, ErrorCode::Unauthenticated, "expired");
    let elsewhere = TokenClaims { node_id: 9, ..claims(&service, &alice) };
    assert_eq!(sign_in(bare(signed(&alice, &elsewhere))).await, ErrorCode::Unauthenticated, "another node");
    service.sign_in(bare(signed(&alice, &good))).await.expect("untouched by all this");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_worth_nothing_when_altered_or_when_its_user_is_revoked() {
    let cluster = Cluster::start(1).await;
    let service = cluster.service(1);
    let alice = cluster.user("alice", 1).await;
    let code = async |token: &[u8]| service.authenticate(token).await.expect_err("it must be refused").code;

    let mut token = Token::decode(alice.token.clone()).unwrap();
    let claims = token.claims.as_mut().unwrap();
    let uncountersigned = Signed { signatures: claims.signatures[..1].to_vec(), ..claims.clone() };
    let uncountersigned = Token { claims: Some(uncountersigned) }.encode_to_vec();
    assert_eq!(code(&uncountersigned).await, ErrorCode::Unauthenticated, "without the node's signature");
    claims.payload = [&claims.payload[..], &[0x30, 1]].concat().into();
    assert_eq!(code(&token.encode_to_vec()).await, ErrorCode::Unauthenticated, "altered");
    assert_eq!(code(b"rubbish").await, ErrorCode::Unauthenticated);

    let handle = alice.identity.handle.to_string();
    let revoke = RevokeUserRequest { request_id: unique(16), handle: handle.clone() };
    service.revoke_user(&Caller::Local, revoke).await.unwrap();
    assert_eq!(code(&alice.token).await, ErrorCode::Forbidden, "a token that was verified before");
    let refused = User::sign_in(service.clone(), alice.identity.clone()).await.err().expect("revoked").code;
    assert_eq!(refused, ErrorCode::Forbidden);

    let reinstate = ReinstateUserRequest { request_id: unique(16), handle };
    service.reinstate_user(&Caller::Local, reinstate).await.unwrap();
    service.authenticate(&alice.token).await.expect("he is back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_managed_by_admins_only_and_never_overwritten() {
    let cluster = Cluster::start(1).await;
    let service = cluster.service(1);
    let alice = cluster.user("alice", 1).await;
    let bob = add_user(&identity("bob"), UserRole::Member);
    let refused = service.add_user(&alice.caller, bob.clone()).await.expect_err("a member").code;
    assert_eq!(refused, ErrorCode::Forbidden);
    assert!(service.add_user(&Caller::Local, bob.clone()).await.unwrap().created);
    let again = AddUserRequest { request_id: unique(16), ..bob.clone() };
    assert!(!service.add_user(&Caller::Local, again).await.unwrap().created, "the same user again");
    let other_key = AddUserRequest {
        request_id: unique(16),
        user_key: add_user(&identity("eve"), UserRole::Member).user_key,
        ..bob
    };
    let refused = service.add_user(&Caller::Local, other_key).await.expect_err("another key").code;
    assert_eq!(refused, ErrorCode::AlreadyExists);
    let page = |page_size, page_token: &str| ListUsersRequest { page_size, page_token: page_token.into() };
    let first = service.list_users(&Caller::Local, page(1, "")).await.unwrap();
    assert_eq!((first.users[0].handle.as_str(), first.next_page_token.as_str()), ("alice", "alice"));
    let second = service.list_users(&Caller::Local, page(1, &first.next_page_token)).await.unwrap();
    assert_eq!((second.users[0].handle.as_str(), second.next_page_token.as_str()), ("bob", ""));
    let too_many = service.list_users(&Caller::Local, page(1_001, "")).await.expect_err("a page of 1,001").code;
    assert_eq!(too_many, ErrorCode::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_list_costs_nothing_without_the_key_of_its_device() {
    let cluster = Cluster::start(1).await;
    let service = cluster.service(1);
    let (alice, mallory) = (identity("alice"), identity("mallory"));
    service.add_user(&Caller::Local, add_user(&alice, UserRole::Member)).await.unwrap();
    let entries = || -> u64 {
        let indexes = service.shards().ids().map(|group| service.shards().group(group).unwrap().status().last_index);
        indexes.sum()
    };
    let before = entries();
    let stolen = sign_in_with_list(&alice, &claims(&service, &alice));
    let forged = Signed::sign(CLUSTER, &claims(&service, &alice), &[&mallory.device_key]);
    let forged = SignInRequest { claims: Some(forged), ..stolen.clone() };
    assert_eq!(service.sign_in(forged).await.expect_err("forged").code, ErrorCode::Unauthenticated);
    let without = SignInRequest { claims: Some(signed(&alice, &claims(&service, &alice))), bundles: vec![], ..stolen };
    assert_eq!(service.sign_in(without).await.expect_err("no bundle").code, ErrorCode::Invalid);
    assert_eq!(entries(), before, "nothing was proposed");
    service.sign_in(sign_in_with_list(&alice, &claims(&service, &alice))).await.unwrap();
    let listed = entries();
    assert!(listed > before);
    service.sign_in(sign_in_with_list(&alice, &claims(&service, &alice))).await.unwrap();
    assert_eq!(entries(), listed, "a list that is there already costs nothing");
}
