//! The callers, the rooms and users that they ask for, and the request of each RPC.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use tonic::service::Routes;
use unibus_broker::api;
use unibus_broker::env::SystemClock;
use unibus_broker::service::Caller;
use unibus_proto::files::Identity;
use unibus_proto::v1::*;
use unibus_raft_store::env::Clock;

use super::wire::Credential;
use crate::cluster::{
    CLUSTER, Cluster, User, add_user, by_subject, earliest, fingerprint, identity, sign_key, signed, unique,
};
use crate::ephemeral::revoke_device;

/// A room that was never made. As long as [`OTHER`], so that answers can be compared byte for byte.
pub const ABSENT: &str = "secret.void";
/// A room of which no caller is a member.
pub const OTHER: &str = "secret.room";
const OWN: &str = "common.room";

pub struct World {
    pub cluster: Cluster,
    pub routes: Routes,
    /// Made both rooms.
    pub host: User,
    callers: BTreeMap<&'static str, User>,
    own: Room,
    other: Room,
    absent: Room,
}

impl World {
    pub async fn new() -> Self {
        let cluster = Cluster::start(1).await;
        let host = cluster.user("host", 1).await;
        let (own, other) = (host.create(OWN).await, host.create(OTHER).await);
        let absent = Room { room_id: unique(16), subject: ABSENT.into(), ..other.clone() };
        let roles = [
            ("expired", RoomRole::Admin),
            ("rev-dev", RoomRole::Admin),
            ("rev-user", RoomRole::Admin),
            ("reader", RoomRole::Reader),
            ("member", RoomRole::Member),
            ("room-adm", RoomRole::Admin),
        ];
        let mut callers = BTreeMap::new();
        for name in ["stranger", "clu-adm", "victim"].into_iter().chain(roles.iter().map(|(name, _)| *name)) {
            callers.insert(name, cluster.user(name, 1).await);
        }
        for (name, role) in roles {
            host.change(&own, &callers[name].identity, Some(role)).await;
        }
        let routes = api::routes(cluster.service(1));
        let world = Self { cluster, routes, host, callers, own, other, absent };
        world.take_away_and_give().await;
        world
    }

    async fn take_away_and_give(&self) {
        let service = self.cluster.service(1);
        let device = &self.callers["rev-dev"];
        service.publish_device_list(&device.caller, revoke_device(device)).await.unwrap();
        let revoke = RevokeUserRequest { request_id: unique(16), handle: "rev-user".into() };
        service.revoke_user(&Caller::Local, revoke).await.unwrap();
        let (request_id, handle) = (unique(16), "clu-adm".into());
        let promote = SetUserRoleRequest { request_id, handle, role: UserRole::Admin.into() };
        service.set_user_role(&Caller::Local, promote).await.unwrap();
    }

    pub fn credential(&self, caller: &str) -> Credential {
        match caller {
            "nobody" => Credential::Nothing,
            "garbage" => Credential::Token(Bytes::from_static(b"rubbish")),
            "expired" => Credential::Token(self.expired_token()),
            "local" => Credential::Local,
            user => Credential::Token(self.callers[user].token.clone()),
        }
    }

    /// With both signatures good: nothing but its end is wrong with it.
    fn expired_token(&self) -> Bytes {
        let identity = &self.callers["expired"].identity;
        let now_ms = SystemClock.now_ms();
        let (issued_ms, expires_ms) = (now_ms - 600_000, now_ms - 1);
        let claims = TokenClaims { issued_ms, expires_ms, ..self.claims(identity) };
        let claims = Signed::sign(CLUSTER, &claims, &[&identity.device_key, &sign_key(1)]);
        Token { claims: Some(claims) }.encode_to_vec().into()
    }

    /// Claims over a nonce that no node gave.
    fn claims(&self, identity: &Identity) -> TokenClaims {
        let issued_ms = SystemClock.now_ms();
        TokenClaims {
            user: identity.handle.to_string(),
            device_id: identity.device_id().to_bytes(),
            nonce: unique(32),
            issued_ms,
            expires_ms: issued_ms + 60_000,
            node_id: 1,
        }
    }

    /// Who signs a caller's documents: himself, or the host for those who are nobody.
    fn actor(&self, caller: &str) -> &User {
        self.callers.get(caller).unwrap_or(&self.host)
    }

    fn room(&self, object: &str) -> &Room {
        match object {
            "own" => &self.own,
            "other" => &self.other,
            _ => &self.absent,
        }
    }

    fn handle(caller: &str, object: &str) -> String {
        match object {
            "own" => caller,
            "other" => "victim",
            _ => "ghost",
        }
        .into()
    }

    /// What an allowed call has changed and the next ones need.
    pub async fn restore(&self, rpc: &str, caller: &str, object: &str) {
        if rpc == "UserService/RevokeUser" {
            let reinstate = ReinstateUserRequest { request_id: unique(16), handle: Self::handle(caller, object) };
            self.cluster.service(1).reinstate_user(&Caller::Local, reinstate).await.unwrap();
        }
    }

    pub async fn request(&self, rpc: &str, caller: &str, object: &str) -> Bytes {
        let (service, method) = rpc.split_once('/').unwrap();
        let bytes = match service {
            "AuthService" | "DeviceService" => self.identity_request(method, caller, object),
            "UserService" => self.user_request(method, caller, object),
            "RoomService" => self.room_request(method, caller, object).await,
            "MessageService" => self.message_request(method, caller, object),
            "ClusterService" => cluster_request(method),
            _ => panic!("{rpc}: no request is known for it"),
        };
        bytes.into()
    }

    fn identity_request(&self, method: &str, caller: &str, object: &str) -> Vec<u8> {
        let actor = self.actor(caller);
        let listed = if object == "own" { actor } else { &self.callers["victim"] };
        let (list, bundles) = listed.identity.device_list(CLUSTER);
        match method {
            "Challenge" | "WhoAmI" => vec![],
            "SignIn" => {
                let claims = signed(&actor.identity, &self.claims(&actor.identity));
                SignInRequest { claims: Some(claims), ..SignInRequest::default() }.encode_to_vec()
            }
            "PublishDeviceList" => {
                PublishDeviceListRequest { request_id: unique(16), device_list: Some(list), bundles }.encode_to_vec()
            }
            "GetDeviceList" => GetDeviceListRequest { user: Self::handle(caller, object) }.encode_to_vec(),
            _ => panic!("{method}: no request is known for it"),
        }
    }

    fn user_request(&self, method: &str, caller: &str, object: &str) -> Vec<u8> {
        let (request_id, handle) = (unique(16), Self::handle(caller, object));
        match method {
            "AddUser" if object == "absent" => {
                add_user(&identity(&format!("new-{caller}")), UserRole::Member).encode_to_vec()
            }
            "AddUser" => add_user(&self.callers["victim"].identity, UserRole::Member).encode_to_vec(),
            "GetUser" => GetUserRequest { handle }.encode_to_vec(),
            "ListUsers" => vec![],
            "SetUserRole" => {
                let is_admin = caller == "clu-adm" && object == "own";
                let role = if is_admin { UserRole::Admin } else { UserRole::Member }.into();
                SetUserRoleRequest { request_id, handle, role }.encode_to_vec()
            }
            "RevokeUser" => RevokeUserRequest { request_id, handle }.encode_to_vec(),
            "ReinstateUser" => ReinstateUserRequest { request_id, handle }.encode_to_vec(),
            _ => panic!("{method}: no request is known for it"),
        }
    }

    async fn room_request(&self, method: &str, caller: &str, object: &str) -> Vec<u8> {
        let actor = self.actor(caller);
        let room = Some(by_subject(&self.room(object).subject));
        match method {
            "CreateRoom" => {
                let creator = if object == "own" { actor } else { &self.host };
                creator.create_request(&format!("made.{caller}.{object}")).encode_to_vec()
            }
            "GetRoom" => GetRoomRequest { room }.encode_to_vec(),
            "ListRooms" => vec![],
            "ListMembers" => ListMembersRequest { room, ..ListMembersRequest::default() }.encode_to_vec(),
            "ReadRoster" => ReadRosterRequest { room, ..ReadRosterRequest::default() }.encode_to_vec(),
            "AppendRoster" => self.add_victim(actor, object).await.encode_to_vec(),
            _ => panic!("{method}: no request is known for it"),
        }
    }

    /// Adds a member: an event that would be accepted of an admin.
    async fn add_victim(&self, actor: &User, object: &str) -> AppendRosterRequest {
        let newest = self.host.get(self.room(object)).await.unwrap_or_else(|_| self.absent.clone());
        let victim = &self.callers["victim"].identity;
        let event = RosterEvent {
            room_id: newest.room_id,
            height: newest.roster_height + 1,
            previous_hash: newest.roster_hash,
            subject_user: victim.handle.to_string(),
            subject_key_fingerprint: fingerprint(victim),
            role: RoomRole::Reader.into(),
            ..actor.event(RosterOp::Add)
        };
        let (event, actor) = actor.sign(&event);
        AppendRosterRequest { event, actor }
    }

    fn message_request(&self, method: &str, caller: &str, object: &str) -> Vec<u8> {
        let room = self.room(object);
        match method {
            "Publish" | "PublishStream" => {
                let request = self.actor(caller).publish_request(room, 1, &["m"]);
                // A producer of its own, so that its first number is 1.
                PublishRequest { producer_id: unique(8), ..request }.encode_to_vec()
            }
            "Subscribe" => {
                let start = Some(StartFrom { from: Some(earliest()) });
                let filter = room.subject.clone();
                SubscribeRequest { filter, start, until_end: true, ..SubscribeRequest::default() }.encode_to_vec()
            }
            "FetchRange" => {
                let room = Some(by_subject(&room.subject));
                FetchRangeRequest { room, from_sequence: 0, count_max: 1 }.encode_to_vec()
            }
            _ => panic!("{method}: no request is known for it"),
        }
    }

    /// A text with the names of the forbidden room made those of the absent one.
    pub fn as_if_absent(&self, text: &str) -> String {
        let id = |room: &Room| crate::cluster::id_of(room).to_string();
        text.replace(&id(&self.other), &id(&self.absent)).replace(OTHER, ABSENT)
    }
}

fn cluster_request(method: &str) -> Vec<u8> {
    let (request_id, node) = (unique(16), String::from("n9"));
    match method {
        "GetTopology" | "GetStatus" | "Snapshot" | "ListGroups" | "Verify" | "GetConfig" | "ListNodes" => vec![],
        "TransferLeader" => TransferLeaderRequest { group: 0, to: 9 }.encode_to_vec(),
        "AddNode" => AddNodeRequest { request_id, node }.encode_to_vec(),
        "DrainNode" => DrainNodeRequest { request_id, node }.encode_to_vec(),
        "UndrainNode" => UndrainNodeRequest { request_id, node }.encode_to_vec(),
        "RemoveNode" => RemoveNodeRequest { request_id, node }.encode_to_vec(),
        "ReplaceNode" => ReplaceNodeRequest { request_id, node, with: "n10".into() }.encode_to_vec(),
        _ => panic!("{method}: no request is known for it"),
    }
}
