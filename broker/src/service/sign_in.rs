//! Signing in: a challenge, claims that the device signs over it, this node's countersignature.

use std::net::IpAddr;
use std::sync::{MutexGuard, PoisonError};

use bytes::Bytes;
use unibus_machine::verify_bundle;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{DeviceId, GroupId, Handle};
use unibus_proto::limits::{CLOCK_SKEW_MAX, TOKEN_LIFETIME_MAX};
use unibus_proto::signed::Document;
use unibus_proto::v1::{
    ChallengeResponse, DeviceBundle, SignInRequest, SignInResponse, Signed, Token, TokenClaims, UserStatus,
};
use unibus_raft_store::env::{Env, Rng, now};

use super::challenges::{Challenges, Nonce};
use super::{Failure, Outcome, Service, auth, check};

/// A client's clock may be ahead by so much: it was told ours with the challenge.
const CLAIMS_AHEAD_MS_MAX: u64 = 5 * CLOCK_SKEW_MAX.as_millis() as u64;

impl<E: Env> Service<E> {
    /// A nonce to sign, good for one sign-in at this node within a minute.
    pub fn challenge(&self) -> Outcome<ChallengeResponse> {
        self.challenge_for(None)
    }

    /// The same for a caller of whom only the source is known yet.
    pub fn challenge_for(&self, source: Option<IpAddr>) -> Outcome<ChallengeResponse> {
        self.check_running()?;
        let mut nonce = Nonce::default();
        self.inner.parts.env.rng().fill(&mut nonce);
        self.challenges().give(now::<E>(), nonce, source);
        Ok(ChallengeResponse {
            nonce: Bytes::copy_from_slice(&nonce),
            cluster_id: self.inner.parts.identity.cluster.to_bytes(),
            node_id: self.node().0,
            now_ms: self.now_ms(),
            token_lifetime_ms_max: TOKEN_LIFETIME_MAX.as_millis() as u64,
        })
    }

    /// Exchanges claims over a nonce of this node for a token. The nonce is used up before
    /// anything else is looked at, whatever comes of it.
    pub async fn sign_in(&self, request: SignInRequest) -> Outcome<SignInResponse> {
        let signed_in = self.exchange(request).await;
        match &signed_in {
            // The first sign-in of a device begins like this.
            Err(failure) if failure.code == ErrorCode::DeviceNotFound => {}
            outcome => self.counters().signed_in(outcome.is_ok()),
        }
        signed_in
    }

    async fn exchange(&self, request: SignInRequest) -> Outcome<SignInResponse> {
        self.check_running()?;
        let signed = check::signed("claims", &request.claims)?;
        let claims: TokenClaims = signed.decode_unverified()?;
        if !self.challenges().take(now::<E>(), &claims.nonce) {
            return Err(Failure::unauthenticated(format!(
                "sign-in: the nonce is not, or no longer, open at node {}; ask for a new challenge",
                self.node()
            )));
        }
        let (user, device) = self.check_claims(&claims)?;
        self.check_user(&user).await?;
        if request.device_list.is_some() && self.bundle(&user, device).is_err() {
            self.check_first_list(&user, device, signed, &request)?;
            self.put_first_list(&user, &request).await?;
        }
        let bundle = self.device_or_barrier(&user, device).await?;
        self.countersign(signed, &bundle)
    }

    fn check_claims(&self, claims: &TokenClaims) -> Outcome<(Handle, DeviceId)> {
        let named = auth::named(claims)?;
        if claims.node_id != self.node().0 {
            let (found, own) = (claims.node_id, self.node());
            return Err(Failure::unauthenticated(format!(
                "claims: found node {found}, expected {own}, which gave the nonce"
            )));
        }
        check_lifetime(claims.issued_ms, claims.expires_ms)?;
        let now_ms = self.now_ms();
        if claims.issued_ms > now_ms + CLAIMS_AHEAD_MS_MAX || claims.expires_ms <= now_ms {
            return Err(Failure::unauthenticated(format!(
                "claims: found a token from {} to {}, expected one that holds now ({now_ms} by this node's clock); \
                 use the challenge's now_ms when your clock is off",
                claims.issued_ms, claims.expires_ms
            )));
        }
        Ok(named)
    }

    async fn check_user(&self, user: &Handle) -> Outcome<()> {
        let look = || self.shards().meta().view(|machine| machine.user(user));
        let is_active = |row: &unibus_proto::v1::User| row.status() == UserStatus::Active;
        let row = match look().filter(is_active) {
            Some(row) => Some(row),
            None => {
                self.shards().barrier(GroupId::META).await?;
                look()
            }
        };
        match row {
            Some(row) if is_active(&row) => Ok(()),
            Some(_) => Err(Failure::forbidden(format!("sign-in: user {user} is revoked; an admin can reinstate it"))),
            None => Err(Failure::unauthenticated(format!("sign-in: user {user} is unknown; ask an admin to add it"))),
        }
    }

    /// Nobody has signed in yet: only whoever holds the key of a device that comes along may cost the
    /// cluster a log entry. Lists and bundles are no secret, so having them proves nothing.
    fn check_first_list(
        &self,
        user: &Handle,
        device: DeviceId,
        claims: &Signed,
        request: &SignInRequest,
    ) -> Outcome<()> {
        let (cluster, user_key) = (self.inner.parts.identity.cluster, self.known_user(user)?.user_key);
        let found = request.bundles.iter().find_map(|bundle| {
            let named: DeviceBundle = bundle.decode_unverified().ok()?;
            (named.device_id == device.0[..]).then_some(bundle)
        });
        let bundle = found.ok_or_else(|| {
            Failure::invalid(format!(
                "bundles: none is of device {device}, which signs in; send its bundle with the list"
            ))
        })?;
        let key = verify_bundle(cluster, bundle, user, &user_key)?.bundle.ed25519_key;
        let proved = claims.verify::<TokenClaims>(cluster, &[&key]).map(drop);
        proved.map_err(|error| Failure::unauthenticated(format!("sign-in: {error}; sign with the device's key")))
    }

    async fn put_first_list(&self, user: &Handle, request: &SignInRequest) -> Outcome<()> {
        let list = check::signed("device_list", &request.device_list)?;
        self.put_devices(user, list, &request.bundles).await.map(drop)
    }

    async fn device_or_barrier(&self, user: &Handle, device: DeviceId) -> Outcome<DeviceBundle> {
        let bundle = match self.bundle(user, device) {
            Ok(bundle) => bundle,
            Err(_) => {
                self.shards().barrier(self.shards().of_user(user)).await?;
                self.bundle(user, device).map_err(|_| {
                    let message = format!(
                        "sign-in: device {device} is not on the list of user {user}; publish a list that names it, or \
                         sign in with the first list"
                    );
                    Failure::new(ErrorCode::DeviceNotFound, message)
                })?
            }
        };
        Ok(bundle.decode_unverified()?)
    }

    fn countersign(&self, claims: &Signed, bundle: &DeviceBundle) -> Outcome<SignInResponse> {
        if bundle.expires_ms != 0 && bundle.expires_ms <= self.now_ms() {
            return Err(Failure::unauthenticated("sign-in: the device has expired; use another one"));
        }
        let parts = &self.inner.parts;
        claims
            .verify::<TokenClaims>(parts.identity.cluster, &[&bundle.ed25519_key])
            .map_err(|error| Failure::unauthenticated(format!("sign-in: {error}; sign with the device's key")))?;
        // Only the signature that was verified goes on: a token carries nothing unchecked.
        let own = |signature: &unibus_proto::v1::Signature| signature.public_key == bundle.ed25519_key;
        let signatures = claims.signatures.iter().find(|signature| own(signature)).cloned().into_iter().collect();
        let mut claims = Signed { r#type: TokenClaims::TYPE.into(), payload: claims.payload.clone(), signatures };
        claims.add_signature::<TokenClaims>(parts.identity.cluster, &parts.sign_key);
        Ok(SignInResponse { token: Some(Token { claims: Some(claims) }) })
    }

    fn challenges(&self) -> MutexGuard<'_, Challenges<E>> {
        self.inner.challenges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token must end after it starts, and within the bound.
pub(super) fn check_lifetime(issued_ms: u64, expires_ms: u64) -> Outcome<()> {
    let longest = TOKEN_LIFETIME_MAX.as_millis() as u64;
    match expires_ms.checked_sub(issued_ms) {
        Some(1..) if expires_ms - issued_ms <= longest => Ok(()),
        _ => Err(Failure::unauthenticated(format!(
            "claims: found a token from {issued_ms} to {expires_ms}, expected a life of 1 to {longest} ms"
        ))),
    }
}
