//! Signing in: a challenge signed by the device becomes a token that every node accepts. One sign-in
//! is in flight at a time; tokens are renewed before they end, and when a node does not take one. While a
//! node is silent the next one is asked beside it, and the first that answers counts.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use prost::Message as _;
use tonic::metadata::{Ascii, MetadataValue};
use unibus_proto::id::ClusterId;
use unibus_proto::limits::TOKEN_LIFETIME_MAX;
use unibus_proto::signed::Document;
use unibus_proto::v1::auth_service_client::AuthServiceClient;
use unibus_proto::v1::{ChallengeRequest, ChallengeResponse, SignInRequest, Signed, Token, TokenClaims};

use crate::core::{Core, Rpc, silent, topology};
use crate::nodes::Node;
use crate::platform::{Channel, Platform, timeout};
use crate::{ClientEvent, Error, ErrorCode};

/// The scheme of the `authorization` metadata.
const SCHEME: &str = "Unibus";

/// The topology is answered from memory.
const LEARN_PATIENCE: Duration = Duration::from_millis(500);

/// A node in reach answers sooner; one that hangs costs no more than this. A first sign-in over round trips of
/// 100 ms (connection, TLS, two calls) takes longer: then another node is asked too.
const HEDGE: Duration = Duration::from_millis(300);

/// What a call carries to be let in.
#[derive(Clone)]
pub(crate) struct Authorization {
    pub value: MetadataValue<Ascii>,
    /// Counts sign-ins, so that a refused token is dropped once, not also its successor.
    pub generation: u64,
    /// From then on a fresh one is to be had.
    pub renew_at: Duration,
}

#[derive(Clone)]
struct Current {
    authorization: Authorization,
    ends_at: Duration,
}

/// A sign-in that worked.
struct SignedIn {
    at: Node,
    value: MetadataValue<Ascii>,
    lifetime: Duration,
}

/// The token in use.
#[derive(Default)]
pub(crate) struct Tokens {
    current: tokio::sync::Mutex<(u64, Option<Current>)>,
}

impl<P: Platform> Core<P> {
    /// The token, from `node` when there is none or it is about to end.
    pub fn authorization<'a>(&'a self, node: &'a Node) -> BoxFuture<'a, Result<Authorization, Error>> {
        Box::pin(self.token(node))
    }

    async fn token(&self, node: &Node) -> Result<Authorization, Error> {
        let mut slot = self.tokens.current.lock().await;
        let now = self.platform.now();
        let held = slot.1.clone().filter(|current| now < current.ends_at);
        if let Some(current) = held.as_ref().filter(|current| now < current.authorization.renew_at) {
            return Ok(current.authorization.clone());
        }
        let signed_in = timeout(&self.platform, self.config.attempt_timeout, self.sign_in_beside(node)).await;
        match (signed_in.unwrap_or_else(|| Err(silent(node, "the sign-in"))), held) {
            (Ok(SignedIn { at, value, lifetime }), _) => {
                slot.0 += 1;
                let authorization = Authorization { value, generation: slot.0, renew_at: now + lifetime * 3 / 4 };
                slot.1 = Some(Current { authorization: authorization.clone(), ends_at: now + lifetime });
                self.learn_nodes(&at, &authorization).await;
                self.events.emit(ClientEvent::SignedIn { node: at.address.to_string() });
                // A node that was outrun would let the call wait as well.
                if at.address == node.address { Ok(authorization) } else { Err(silent(node, "the sign-in")) }
            }
            // A failed renewal is no harm as long as the token lasts.
            (Err(error), Some(current)) if error.is_transient() => Ok(current.authorization),
            // The call itself was not sent yet, so its outcome is certain.
            (Err(error), _) if error.code == ErrorCode::OutcomeUnknown => {
                Err(Error::unreachable(&node.label.to_string(), &format_args!("sign-in: {}", error.message)))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Signs in at `node` and, while nobody answers, at the others beside it, unless the client talks to one
    /// node only.
    async fn sign_in_beside(&self, node: &Node) -> Result<SignedIn, Error> {
        let ask = |at: Node| -> BoxFuture<'_, _> {
            Box::pin(async move {
                let (value, lifetime) = self.sign_in(&at).await.map_err(|error| (0, error))?;
                Ok(SignedIn { at, value, lifetime })
            })
        };
        let beside = self.config.pin.is_none();
        self.race(node.clone(), HEDGE, beside, "the sign-in", ask).await.1.map_err(|(_, error)| error)
    }

    /// Asks once who else there is: calls that go to leaders, and failover beyond the configured addresses, rest
    /// on it. A node that does not answer this will not answer the call either, which then says why.
    async fn learn_nodes(&self, node: &Node, authorization: &Authorization) {
        if self.nodes().learnt() {
            return;
        }
        let rpc = Rpc { channel: node.channel.clone(), authorization: authorization.clone() };
        if let Some(Ok(answer)) = timeout(&self.platform, LEARN_PATIENCE, topology(rpc)).await {
            self.nodes().learn(answer.get_ref());
        }
    }

    /// Drops the token of that generation: a node did not take it.
    pub async fn forget_token(&self, generation: u64) {
        let mut slot = self.tokens.current.lock().await;
        slot.1.take_if(|current| current.authorization.generation == generation);
    }

    async fn sign_in(&self, node: &Node) -> Result<(MetadataValue<Ascii>, Duration), Error> {
        let mut auth = AuthServiceClient::new(node.channel.clone());
        let challenge = self.challenge(&mut auth).await?;
        let mut request = SignInRequest { claims: Some(self.claims(&challenge)?), ..SignInRequest::default() };
        let mut answer = auth.sign_in(request.clone()).await.map_err(Error::from);
        if matches!(&answer, Err(error) if error.code == ErrorCode::DeviceNotFound) {
            let challenge = self.challenge(&mut auth).await?;
            let (list, bundles) = self.identity.device_list(self.cluster_of(&challenge)?);
            request = SignInRequest { claims: Some(self.claims(&challenge)?), device_list: Some(list), bundles };
            answer = auth.sign_in(request).await.map_err(Error::from);
        }
        let token = answer?.into_inner().token.unwrap_or_default();
        let lifetime = token_lifetime(&token)?;
        let text = format!("{SCHEME} {}", STANDARD.encode(token.encode_to_vec()));
        Ok((text.parse().expect("base64 is ASCII"), lifetime))
    }

    async fn challenge(&self, auth: &mut AuthServiceClient<Channel>) -> Result<ChallengeResponse, Error> {
        Ok(auth.challenge(ChallengeRequest {}).await?.into_inner())
    }

    /// The cluster of a challenge, which is the expected one, or the one met first.
    fn cluster_of(&self, challenge: &ChallengeResponse) -> Result<ClusterId, Error> {
        let invalid = |error| Error::new(ErrorCode::Invalid, format!("challenge: {error}"));
        let found = ClusterId::from_bytes(&challenge.cluster_id).map_err(invalid)?;
        let expected = *self.cluster.get_or_init(|| found);
        if found == expected {
            return Ok(found);
        }
        let message = format!("sign-in: the node belongs to cluster {found}, expected {expected}; check the addresses");
        Err(Error::new(ErrorCode::Invalid, message))
    }

    fn claims(&self, challenge: &ChallengeResponse) -> Result<Signed, Error> {
        let lifetime_ms = challenge.token_lifetime_ms_max.min(TOKEN_LIFETIME_MAX.as_millis() as u64);
        let claims = TokenClaims {
            user: self.identity.handle.as_str().into(),
            device_id: self.identity.device_id().to_bytes(),
            nonce: challenge.nonce.clone(),
            issued_ms: challenge.now_ms,
            expires_ms: challenge.now_ms + lifetime_ms,
            node_id: challenge.node_id,
        };
        Ok(Signed::sign(self.cluster_of(challenge)?, &claims, &[&self.identity.device_key]))
    }
}

fn token_lifetime(token: &Token) -> Result<Duration, Error> {
    let malformed = || Error::new(ErrorCode::VersionSkew, format!("sign-in: the node sent no {}", TokenClaims::TYPE));
    let claims = token.claims.as_ref().ok_or_else(malformed)?;
    let claims: TokenClaims = claims.decode_unverified().map_err(|_| malformed())?;
    Ok(Duration::from_millis(claims.expires_ms.saturating_sub(claims.issued_ms)))
}
