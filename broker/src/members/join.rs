//! A node that is no member yet asks to be taken in, and every member remembers who asks, so that an admin
//! finds it wherever he asks.
//!
//! The asking node has fsynced a promise before it says which directory is its own: from then on it takes
//! Raft traffic, and only such as names that directory.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use prost::Message;
use unibus_proto::id::{DirectoryId, NodeId};
use unibus_proto::log::PlannedNode;
use unibus_proto::peer::join_response::State;
use unibus_proto::peer::stream_open::Purpose;
use unibus_proto::peer::{JoinRequest, JoinResponse, JoinStream};
use unibus_proto::v1::NodeState;
use unibus_raft_store::Identity;
use unibus_raft_store::env::{Duplex, Env, FrameRx, FrameTx, Instant, InstantOf, Lane, now, timeout};
use unibus_raft_store::stream::{StreamError, open_stream};

use super::{Members, directory_of, id_of, removed_text, state};

/// Nodes that ask at once; more is a mistake in somebody's script.
const ASKERS_MAX: usize = 16;
/// Who has not asked again for so long is forgotten.
const ASKED_LATELY: Duration = Duration::from_secs(5);
/// A member that does not answer within this time is asked again in the next round.
const ASK_PATIENCE: Duration = Duration::from_secs(3);
/// Requests on one stream: a node asks once on each.
const REQUESTS_MAX: usize = 16;

/// The nodes that ask to be taken in, and when each asked last.
pub(super) struct Askers<E: Env>(BTreeMap<NodeId, (PlannedNode, InstantOf<E>)>);

impl<E: Env> Default for Askers<E> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<E: Env> Members<E> {
    /// The nodes that ask to be taken in, by id.
    pub fn askers(&self) -> Vec<PlannedNode> {
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        askers.0.retain(|_, (_, at)| at.elapsed() < ASKED_LATELY);
        askers.0.values().map(|(node, _)| node.clone()).collect()
    }

    /// Answers a join stream that `peer` opened from the directory `directory`.
    pub async fn serve_join(&self, peer: NodeId, directory: DirectoryId, (mut tx, mut rx): Duplex<E::Net>) {
        for _ in 0..REQUESTS_MAX {
            let Ok(Some(frame)) = rx.recv().await else { break };
            let Ok(JoinRequest { node: Some(node) }) = JoinRequest::decode(frame) else { return };
            let is_its_own = node.node_id == peer.0 && node.directory_id == directory.0[..];
            let answer = match is_its_own {
                true => self.answer(peer, node),
                false => refused("the request names another node or directory than the stream".into()),
            };
            if tx.send(vec![answer.encode_to_vec().into()]).await.is_err() {
                return;
            }
        }
        // The peer is done; it does not wait for our end.
        tx.finish().await.ok();
    }

    fn answer(&self, peer: NodeId, node: PlannedNode) -> JoinResponse {
        let registry = self.registry();
        let waiting = |message: String| JoinResponse { state: State::Waiting.into(), message, registry: None };
        if registry.version == 0 {
            return waiting("the cluster that it asks has not formed yet".into());
        }
        match registry.nodes.iter().find(|row| id_of(row) == peer) {
            None => {
                self.remember(peer, &node);
                let name = &node.name;
                waiting(format!(
                    "an admin to take it in: `unibusctl node add {name}`, or `unibusctl node replace OLD --with {name}`"
                ))
            }
            Some(row) if matches!(state(row), NodeState::Removed | NodeState::Removing) => {
                refused(removed_text(peer, row))
            }
            Some(row) if directory_of(row) != DirectoryId::from_bytes(&node.directory_id).ok() => refused(format!(
                "node {peer} is a member with another directory: this one is new or was wiped, and must not vote \
                 under the old id; mint a new node with `unibus-node plan --add`, and put it in the place of this \
                 one: `unibusctl node replace {peer} --with NEW`"
            )),
            Some(_) => {
                let message = String::new();
                JoinResponse { state: State::Accepted.into(), message, registry: Some(registry) }
            }
        }
    }

    fn remember(&self, peer: NodeId, node: &PlannedNode) {
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        askers.0.retain(|_, (_, at)| at.elapsed() < ASKED_LATELY);
        if askers.0.len() >= ASKERS_MAX && !askers.0.contains_key(&peer) {
            return tracing::warn!(%peer, "{ASKERS_MAX} nodes ask to be taken in, this one is not remembered");
        }
        if askers.0.insert(peer, (node.clone(), now::<E>())).is_none() {
            tracing::info!(%peer, name = node.name, "a node asks to be taken in");
        }
    }
}

fn refused(message: String) -> JoinResponse {
    JoinResponse { state: State::Refused.into(), message, registry: None }
}

/// Asks a member to be taken in.
pub(crate) async fn ask<E: Env>(
    env: &E,
    identity: &Identity,
    peer: NodeId,
    node: PlannedNode,
) -> Result<JoinResponse, String> {
    let asking = async {
        let opened = open_stream::<E>(env, identity, peer, Purpose::Join(JoinStream {}), Lane::Control).await;
        let (mut tx, mut rx) = match opened {
            Ok(stream) => stream,
            Err(StreamError::Refused { why, .. }) => return Err(why),
            Err(error) => return Err(error.to_string()),
        };
        let failed = |error: unibus_raft_store::env::NetError| error.to_string();
        tx.send(vec![JoinRequest { node: Some(node) }.encode_to_vec().into()]).await.map_err(failed)?;
        let frame = rx.recv().await.map_err(failed)?.ok_or("the peer ended the stream")?;
        tx.finish().await.ok();
        JoinResponse::decode(frame).map_err(|error| error.to_string())
    };
    timeout::<E, _>(ASK_PATIENCE, asking).await.unwrap_or_else(|| Err("no answer".into()))
}
