//! Who calls: tokens are verified once, whom they name is checked against the replicated state at each
//! operation.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError};

use prost::Message;
use unibus_proto::id::{DeviceId, Handle, NodeId};
use unibus_proto::signed::sha256;
use unibus_proto::v1::{DeviceBundle, Signed, Token, TokenClaims, UserRole, UserStatus, WhoAmIResponse};
use unibus_raft_store::env::Env;

use super::{Failure, Outcome, Service};

/// Verified tokens that are remembered; more than there are connections.
const TOKENS_MAX: usize = 10_000;
/// Bytes of an encoded token; real ones have some 350.
const TOKEN_BYTES_MAX: usize = 4 << 10;

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A user who signed in with one of his devices.
    User {
        /// His name.
        handle: Handle,
        /// The device that signed the token.
        device: DeviceId,
        /// His role in the cluster when the token was last checked.
        role: UserRole,
        /// When the token ends, milliseconds since the Unix epoch.
        expires_ms: u64,
    },
    /// Whoever may open the node's Unix socket. Manages users; is no member of any room.
    Local,
}

impl Caller {
    /// The user and his device, or a refusal for the local socket.
    pub fn user(&self) -> Outcome<(&Handle, DeviceId)> {
        match self {
            Self::User { handle, device, .. } => Ok((handle, *device)),
            Self::Local => Err(Failure::forbidden("this needs a user; the local socket has none: sign in")),
        }
    }

    /// Refuses everybody but the cluster's admins and the local socket.
    pub fn check_admin(&self, what: &str) -> Outcome<()> {
        match self {
            Self::Local | Self::User { role: UserRole::Admin, .. } => Ok(()),
            Self::User { handle, .. } => {
                Err(Failure::forbidden(format!("{what}: {handle} is no admin of the cluster; ask one")))
            }
        }
    }

    /// The name for the log: handle, or "local".
    pub fn actor(&self) -> String {
        match self {
            Self::User { handle, .. } => handle.to_string(),
            Self::Local => "local".into(),
        }
    }
}

/// What a verified token says.
#[derive(Clone, Debug)]
struct SignedIn {
    user: Handle,
    device: DeviceId,
    device_expires_ms: u64,
    issued_ms: u64,
    expires_ms: u64,
}

/// Tokens whose two signatures were verified, by hash. The oldest goes first.
#[derive(Default)]
pub(super) struct Tokens {
    verified: BTreeMap<[u8; 32], Arc<SignedIn>>,
    order: VecDeque<[u8; 32]>,
}

impl Tokens {
    fn insert(&mut self, hash: [u8; 32], token: Arc<SignedIn>) {
        if self.verified.insert(hash, token).is_none() {
            self.order.push_back(hash);
        }
        if self.order.len() > TOKENS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.verified.remove(&oldest);
        }
    }
}

impl<E: Env> Service<E> {
    /// Whom an encoded token names, if it holds now.
    pub async fn authenticate(&self, token: &[u8]) -> Outcome<Caller> {
        self.check_running()?;
        let hash = sha256(token);
        let known = self.tokens().verified.get(&hash).cloned();
        let signed_in = match known {
            Some(signed_in) => signed_in,
            None => {
                let verified = Arc::new(self.verify_token(token).await?);
                self.tokens().insert(hash, Arc::clone(&verified));
                verified
            }
        };
        let now_ms = self.now_ms();
        if now_ms >= signed_in.expires_ms {
            return Err(expired("token", signed_in.expires_ms, now_ms));
        }
        if signed_in.device_expires_ms != 0 && now_ms >= signed_in.device_expires_ms {
            return Err(expired("device", signed_in.device_expires_ms, now_ms));
        }
        let role = self.standing(&signed_in.user, signed_in.device).await?;
        let SignedIn { user, device, expires_ms, .. } = &*signed_in;
        Ok(Caller::User { handle: user.clone(), device: *device, role, expires_ms: *expires_ms })
    }

    /// Checks again that a caller's sign-in holds, for operations on open streams.
    pub async fn reauthenticate(&self, caller: &Caller) -> Outcome<()> {
        self.check_running()?;
        let Caller::User { handle, device, expires_ms, .. } = caller else { return Ok(()) };
        let now_ms = self.now_ms();
        if now_ms >= *expires_ms {
            return Err(expired("token", *expires_ms, now_ms));
        }
        self.standing(handle, *device).await.map(drop)
    }

    /// Checks again that a caller's user and device still hold. The end of the token does not end an open
    /// stream: it is for signing in, what it gave is checked here.
    pub(super) async fn reauthenticate_stream(&self, caller: &Caller) -> Outcome<()> {
        self.check_running()?;
        let (user, device) = caller.user()?;
        self.standing(user, device).await.map(drop)
    }

    /// Who the caller is.
    pub fn who_am_i(&self, caller: &Caller) -> Outcome<WhoAmIResponse> {
        let node_id = self.node().0;
        Ok(match caller {
            Caller::User { handle, device, role, expires_ms } => WhoAmIResponse {
                user: handle.to_string(),
                device_id: device.to_bytes(),
                role: if *role == UserRole::Admin { "admin" } else { "member" }.into(),
                expires_ms: *expires_ms,
                node_id,
            },
            Caller::Local => {
                WhoAmIResponse { user: "local".into(), role: "admin".into(), node_id, ..Default::default() }
            }
        })
    }

    /// The cluster role of a user whose device is live; what is missing locally is looked for once more
    /// behind a read barrier before it is refused.
    pub(super) async fn standing(&self, user: &Handle, device: DeviceId) -> Outcome<UserRole> {
        if let Ok(role) = self.local_standing(user, device) {
            return Ok(role);
        }
        let shards = self.shards();
        shards.barriers([unibus_proto::id::GroupId::META, shards.of_user(user)]).await?;
        self.local_standing(user, device)
    }

    fn local_standing(&self, user: &Handle, device: DeviceId) -> Outcome<UserRole> {
        let row = self.shards().meta().view(|machine| machine.user(user));
        let row =
            row.ok_or_else(|| Failure::unauthenticated(format!("user {user} is unknown; ask an admin to add it")))?;
        if row.status() != UserStatus::Active {
            return Err(Failure::forbidden(format!("user {user} is revoked; an admin can reinstate it")));
        }
        self.bundle(user, device)?;
        Ok(row.role())
    }

    /// The bundle of a live device, from the local replica.
    pub(super) fn bundle(&self, user: &Handle, device: DeviceId) -> Outcome<Signed> {
        let shard = self.shards().group(self.shards().of_user(user))?;
        shard.view(|machine| machine.device(user, device)).ok_or_else(|| {
            Failure::unauthenticated(format!(
                "device {device} is not, or no longer, on the list of user {user}; sign in again"
            ))
        })
    }

    async fn verify_token(&self, token: &[u8]) -> Outcome<SignedIn> {
        if token.len() > TOKEN_BYTES_MAX {
            let found = token.len();
            return Err(Failure::unauthenticated(format!(
                "token: found {found} bytes, at most {TOKEN_BYTES_MAX} are allowed"
            )));
        }
        let claims = Token::decode(token).ok().and_then(|token| token.claims);
        let claims = claims.ok_or_else(|| Failure::unauthenticated("token: cannot be decoded; sign in"))?;
        match self.verify_claims(&claims) {
            Err(_) => {
                let user = unverified_user(&claims)?;
                let groups = [unibus_proto::id::GroupId::META, self.shards().of_user(&user)];
                self.shards().barriers(groups).await?;
                self.verify_claims(&claims)
            }
            verified => verified,
        }
    }

    /// Checks the device's and the node's signature against this node's replicas.
    fn verify_claims(&self, signed: &Signed) -> Outcome<SignedIn> {
        let claims: TokenClaims =
            signed.decode_unverified().map_err(|error| Failure::unauthenticated(format!("token: {error}")))?;
        let (user, device) = named(&claims)?;
        let bundle: DeviceBundle = self.bundle(&user, device)?.decode_unverified()?;
        let node = self.shards().meta().view(|machine| machine.node(NodeId(claims.node_id)));
        let node = node.ok_or_else(|| {
            Failure::unauthenticated(format!("token: node {} is unknown; sign in again", claims.node_id))
        })?;
        let cluster = self.inner.parts.identity.cluster;
        signed
            .verify::<TokenClaims>(cluster, &[&bundle.ed25519_key, &node.sign_key])
            .map_err(|error| Failure::unauthenticated(format!("token of user {user}: {error}; sign in again")))?;
        let TokenClaims { issued_ms, expires_ms, .. } = claims;
        Ok(SignedIn { user, device, device_expires_ms: bundle.expires_ms, issued_ms, expires_ms }).and_then(plausible)
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Tokens> {
        self.inner.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A node that countersigned a life beyond the bound is not believed.
fn plausible(signed_in: SignedIn) -> Outcome<SignedIn> {
    super::sign_in::check_lifetime(signed_in.issued_ms, signed_in.expires_ms)?;
    Ok(signed_in)
}

/// The user and device that claims name.
pub(super) fn named(claims: &TokenClaims) -> Outcome<(Handle, DeviceId)> {
    let malformed = |error| Failure::unauthenticated(format!("token: {error}"));
    Ok((claims.user.parse().map_err(malformed)?, DeviceId::from_bytes(&claims.device_id).map_err(malformed)?))
}

fn unverified_user(claims: &Signed) -> Outcome<Handle> {
    let claims = claims.decode_unverified().map_err(|error| Failure::unauthenticated(format!("token: {error}")))?;
    named(&claims).map(|(user, _)| user)
}

fn expired(what: &str, expires_ms: u64, now_ms: u64) -> Failure {
    let ago = now_ms - expires_ms;
    Failure::unauthenticated(format!("{what} expired {ago} ms ago by this node's clock; sign in again"))
}
