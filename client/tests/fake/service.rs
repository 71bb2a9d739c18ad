//! The gRPC services of a node of the fake.

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use prost::Message as _;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};
use unibus_client::ErrorCode;
use unibus_client::proto::id::RoomId;
use unibus_client::proto::v1;

use super::feed::Feed;
use super::state::{Fault, failure};
use super::{CLUSTER, Cluster};

#[derive(Clone)]
pub struct Server {
    pub cluster: Cluster,
    pub node: u64,
}

pub fn routes(cluster: Cluster, node: u64) -> Routes {
    let server = Server { cluster, node };
    Routes::new(v1::auth_service_server::AuthServiceServer::new(server.clone()))
        .add_service(v1::cluster_service_server::ClusterServiceServer::new(server.clone()))
        .add_service(v1::room_service_server::RoomServiceServer::new(server.clone()))
        .add_service(v1::device_service_server::DeviceServiceServer::new(server.clone()))
        .add_service(v1::message_service_server::MessageServiceServer::new(server))
}

/// A status as nodes send it.
pub fn status(code: ErrorCode, leader: u64) -> Status {
    let mut details = ErrorDetails::new();
    let outcome = ("outcome".to_owned(), code.outcome().as_str().to_owned());
    let leader = ("leader".to_owned(), leader.to_string());
    details.set_error_info(code.as_str(), "unibus", [outcome, leader]);
    Status::with_error_details(Code::from_i32(code.grpc() as i32), "failed on demand", details)
}

impl Server {
    /// Checks the token; returns when it ends.
    fn admit(&self, metadata: &MetadataMap) -> Result<u64, Status> {
        let refused = |_| status(ErrorCode::Unauthenticated, 0);
        let text = metadata.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let token = base64::engine::general_purpose::STANDARD.decode(text.trim_start_matches("Unibus "));
        let token = v1::Token::decode(Bytes::from(token.map_err(|_| refused(()))?)).map_err(|_| refused(()))?;
        let device = super::alice().device_key.verifying_key();
        let claims = token.claims.unwrap_or_default();
        let claims: v1::TokenClaims = claims.verify(CLUSTER, &[device.as_bytes()]).map_err(|_| refused(()))?;
        if claims.expires_ms <= self.cluster.now_ms() {
            return Err(refused(()));
        }
        let mut state = self.cluster.lock();
        let node = state.node(self.node);
        if node.refuse_tokens > 0 {
            node.refuse_tokens -= 1;
            return Err(refused(()));
        }
        node.call_faults.pop_front().map_or(Ok(claims.expires_ms), |(code, leader)| Err(status(code, leader)))
    }

    fn boot(&self) -> u64 {
        self.cluster.lock().node(self.node).boot
    }

    /// Waits until the node was killed.
    async fn killed(&self, boot: u64) {
        while self.boot() == boot {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub fn broken<T>() -> Result<T, Status> {
    Err(Status::unavailable("h2: connection reset"))
}

#[tonic::async_trait]
impl v1::auth_service_server::AuthService for Server {
    async fn challenge(&self, _: Request<v1::ChallengeRequest>) -> Result<Response<v1::ChallengeResponse>, Status> {
        let now_ms = self.cluster.now_ms();
        let mut state = self.cluster.lock();
        state.nonce_count += 1;
        let nonce = Bytes::from(state.nonce_count.to_be_bytes().repeat(4));
        state.nonces.insert(nonce.clone(), self.node);
        Ok(Response::new(v1::ChallengeResponse {
            nonce,
            cluster_id: CLUSTER.to_bytes(),
            node_id: self.node,
            now_ms,
            token_lifetime_ms_max: state.token_lifetime_ms,
        }))
    }

    async fn sign_in(&self, request: Request<v1::SignInRequest>) -> Result<Response<v1::SignInResponse>, Status> {
        let takes = self.cluster.lock().node(self.node).sign_in_takes;
        tokio::time::sleep(takes).await;
        let request = request.into_inner();
        let alice = super::alice();
        let signed = request.claims.unwrap();
        let claims: v1::TokenClaims = signed
            .verify(CLUSTER, &[alice.device_key.verifying_key().as_bytes()])
            .map_err(|error| Status::internal(error.to_string()))?;
        let mut state = self.cluster.lock();
        if state.nonces.remove(&claims.nonce) != Some(claims.node_id) || claims.user != "alice" {
            return Err(status(ErrorCode::Unauthenticated, 0));
        }
        if let Some(list) = request.device_list {
            state.device_list = Some((list, request.bundles));
        }
        if state.device_list.is_none() {
            return Err(status(ErrorCode::DeviceNotFound, 0));
        }
        state.sign_ins += 1;
        Ok(Response::new(v1::SignInResponse { token: Some(v1::Token { claims: Some(signed) }) }))
    }

    async fn who_am_i(&self, request: Request<v1::WhoAmIRequest>) -> Result<Response<v1::WhoAmIResponse>, Status> {
        self.admit(request.metadata())?;
        Ok(Response::new(v1::WhoAmIResponse { user: "alice".into(), node_id: self.node, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl v1::cluster_service_server::ClusterService for Server {
    async fn get_topology(
        &self,
        request: Request<v1::GetTopologyRequest>,
    ) -> Result<Response<v1::GetTopologyResponse>, Status> {
        self.admit(request.metadata())?;
        let state = self.cluster.lock();
        let endpoint = |&node_id: &u64| v1::NodeEndpoint {
            node_id,
            name: format!("n{node_id}"),
            client_address: format!("n{node_id}:1"),
        };
        Ok(Response::new(v1::GetTopologyResponse {
            cluster_id: CLUSTER.to_bytes(),
            nodes: state.nodes.keys().map(endpoint).collect(),
            leaders: vec![v1::GroupLeader { group: 1, leader: state.leader }],
            node_id: self.node,
        }))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(v1::GetStatusResponse { node_id: self.node, ..Default::default() }))
    }

    async fn transfer_leader(
        &self,
        _: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_groups(&self, _: Request<v1::ListGroupsRequest>) -> Result<Response<v1::ListGroupsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn verify(&self, _: Request<v1::VerifyRequest>) -> Result<Response<v1::VerifyResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_config(
        &self,
        request: Request<v1::GetConfigRequest>,
    ) -> Result<Response<v1::GetConfigResponse>, Status> {
        self.admit(request.metadata())?;
        Ok(Response::new(v1::GetConfigResponse::default()))
    }

    async fn snapshot(&self, _: Request<v1::SnapshotRequest>) -> Result<Response<v1::SnapshotResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        self.admit(request.metadata())?;
        Ok(Response::new(v1::ListNodesResponse::default()))
    }

    async fn add_node(&self, _: Request<v1::AddNodeRequest>) -> Result<Response<v1::AddNodeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn drain_node(&self, _: Request<v1::DrainNodeRequest>) -> Result<Response<v1::DrainNodeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn undrain_node(
        &self,
        _: Request<v1::UndrainNodeRequest>,
    ) -> Result<Response<v1::UndrainNodeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn remove_node(&self, _: Request<v1::RemoveNodeRequest>) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn replace_node(
        &self,
        _: Request<v1::ReplaceNodeRequest>,
    ) -> Result<Response<v1::ReplaceNodeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl v1::room_service_server::RoomService for Server {
    async fn create_room(
        &self,
        request: Request<v1::CreateRoomRequest>,
    ) -> Result<Response<v1::CreateRoomResponse>, Status> {
        self.admit(request.metadata())?;
        let event = request.into_inner().event.unwrap();
        let device = super::alice().device_key.verifying_key();
        let event: v1::RosterEvent = event.verify(CLUSTER, &[device.as_bytes()]).unwrap();
        assert_eq!((event.height, event.actor_list_version), (0, 1));
        let id = RoomId::from_bytes(&event.room_id).unwrap();
        let mut state = self.cluster.lock();
        let created = !state.rooms.contains_key(&id);
        if created {
            state.add_room(id, &event.subject);
        }
        Ok(Response::new(v1::CreateRoomResponse { room: Some(state.room(id)), created }))
    }

    async fn get_room(&self, request: Request<v1::GetRoomRequest>) -> Result<Response<v1::GetRoomResponse>, Status> {
        self.admit(request.metadata())?;
        let leaderless_after = self.cluster.lock().node(self.node).leaderless_after;
        if let Some(after) = leaderless_after {
            tokio::time::sleep(after).await;
            return Err(status(ErrorCode::NoLeader, 0));
        }
        let state = self.cluster.lock();
        let id = match request.into_inner().room.unwrap().room.unwrap() {
            v1::room_ref::Room::RoomId(id) => RoomId::from_bytes(&id).ok(),
            v1::room_ref::Room::Subject(subject) => {
                state.rooms.iter().find(|(_, room)| room.room.subject == subject).map(|(&id, _)| id)
            }
        };
        let id = id.filter(|id| state.rooms.contains_key(id)).ok_or_else(|| status(ErrorCode::RoomNotFound, 0))?;
        Ok(Response::new(v1::GetRoomResponse { room: Some(state.room(id)) }))
    }

    async fn list_rooms(
        &self,
        request: Request<v1::ListRoomsRequest>,
    ) -> Result<Response<v1::ListRoomsResponse>, Status> {
        self.admit(request.metadata())?;
        let state = self.cluster.lock();
        let ids: Vec<RoomId> = state.rooms.keys().copied().collect();
        // One room per page, so that paging is walked.
        let at: usize = request.into_inner().page_token.parse().unwrap_or(0);
        let next_page_token = if at + 1 < ids.len() { (at + 1).to_string() } else { String::new() };
        Ok(Response::new(v1::ListRoomsResponse { rooms: vec![state.room(ids[at])], next_page_token }))
    }

    async fn list_members(
        &self,
        _: Request<v1::ListMembersRequest>,
    ) -> Result<Response<v1::ListMembersResponse>, Status> {
        Ok(Response::new(v1::ListMembersResponse::default()))
    }

    async fn read_roster(
        &self,
        request: Request<v1::ReadRosterRequest>,
    ) -> Result<Response<v1::ReadRosterResponse>, Status> {
        self.admit(request.metadata())?;
        let state = self.cluster.lock();
        Ok(Response::new(v1::ReadRosterResponse { entries: state.rooms[&super::ROOM].roster.clone() }))
    }

    async fn append_roster(
        &self,
        request: Request<v1::AppendRosterRequest>,
    ) -> Result<Response<v1::AppendRosterResponse>, Status> {
        self.admit(request.metadata())?;
        let event = request.into_inner().event.unwrap();
        let decoded: v1::RosterEvent = event.decode_unverified().unwrap();
        let id = RoomId::from_bytes(&decoded.room_id).unwrap();
        let answer = {
            let mut state = self.cluster.lock();
            let room = state.rooms.get_mut(&id).unwrap();
            if decoded.height != room.room.roster_height + 1 || decoded.previous_hash != room.room.roster_hash {
                return Err(status(ErrorCode::SequenceMismatch, 0));
            }
            room.room.roster_height += 1;
            room.room.roster_hash = Bytes::copy_from_slice(&event.payload_hash());
            room.room.policy = decoded.policy.or(room.room.policy);
            let sequence = room.timeline.len() as u64;
            room.roster.push(v1::RosterEntry { event: Some(event), actor: None, sequence });
            let entry = Some(v1::delivery::Entry::Roster(v1::RosterEntry::default()));
            room.timeline.push(v1::Delivery { sequence, time_ms: 0, entry });
            v1::AppendRosterResponse { sequence, room: Some(state.room(id)) }
        };
        let mut state = self.cluster.lock();
        if state.lose_append_answers > 0 {
            state.lose_append_answers -= 1;
            return broken();
        }
        Ok(Response::new(answer))
    }
}

#[tonic::async_trait]
impl v1::device_service_server::DeviceService for Server {
    async fn publish_device_list(
        &self,
        _: Request<v1::PublishDeviceListRequest>,
    ) -> Result<Response<v1::PublishDeviceListResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_device_list(
        &self,
        _: Request<v1::GetDeviceListRequest>,
    ) -> Result<Response<v1::GetDeviceListResponse>, Status> {
        let (list, bundles) = self.cluster.lock().device_list.clone().unwrap();
        let user_key = Bytes::copy_from_slice(super::alice().user_key.verifying_key().as_bytes());
        Ok(Response::new(v1::GetDeviceListResponse { user_key, device_list: Some(list), bundles }))
    }
}

type Stream<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl v1::message_service_server::MessageService for Server {
    type PublishStreamStream = Stream<v1::PublishResponse>;
    type SubscribeStream = Stream<v1::SubscribeResponse>;

    async fn publish(&self, _: Request<v1::PublishRequest>) -> Result<Response<v1::PublishResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<v1::PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let expires_ms = self.admit(request.metadata())?;
        let (server, boot) = (self.clone(), self.boot());
        let answers = stream::unfold(Some((server, request.into_inner())), move |live| async move {
            let (server, mut requests) = live?;
            let heard = futures::select_biased! {
                () = server.killed(boot).fuse() => return Some((broken(), None)),
                request = requests.next().fuse() => request?,
            };
            let Ok(request) = heard else { return None };
            let fault = {
                let mut state = server.cluster.lock();
                state.node(server.node).requests.push((request.first_number, request.messages.len()));
                state.next_fault(server.node)
            };
            // A round trip, so that requests overlap.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let tag = request.request;
            let apply = || server.cluster.lock().apply(&request);
            let answer = match fault {
                None if server.cluster.now_ms() >= expires_ms => {
                    server.cluster.lock().expired_requests += 1;
                    failure(tag, ErrorCode::Unauthenticated)
                }
                None => apply(),
                Some(Fault::BreakBefore) => return Some((broken(), None)),
                Some(Fault::BreakAfter) => {
                    apply();
                    return Some((broken(), None));
                }
                Some(Fault::HangAfter) => {
                    apply();
                    std::future::pending().await
                }
                Some(Fault::Fail(code, stored)) => {
                    if stored {
                        apply();
                    }
                    failure(tag, code)
                }
                Some(Fault::End(code)) => return Some((Err(status(code, 0)), None)),
            };
            Some((Ok(answer), Some((server, requests))))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        self.admit(request.metadata())?;
        let boot = self.boot();
        let fault = {
            let mut state = self.cluster.lock();
            let node = state.node(self.node);
            node.subscriptions += 1;
            node.subscribe_faults.pop_front()
        };
        let feed = Feed::new(self.clone(), request.into_inner(), fault)?;
        let items = stream::unfold(Some(feed), move |live| async move {
            let mut feed = live?;
            let server = feed.server.clone();
            futures::select_biased! {
                () = server.killed(boot).fuse() => Some((broken(), None)),
                item = feed.next().fuse() => match item? {
                    Ok(item) => Some((Ok(v1::SubscribeResponse { item: Some(item) }), Some(feed))),
                    Err(status) => Some((Err(status), None)),
                },
            }
        });
        Ok(Response::new(items.boxed()))
    }

    async fn fetch_range(&self, _: Request<v1::FetchRangeRequest>) -> Result<Response<v1::FetchRangeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
