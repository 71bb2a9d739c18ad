//! What a node answers while the cluster forms: whom it lets in, and to whom it promises itself.

use prost::Message;
use unibus_proto::id::{DirectoryId, NodeId};
use unibus_proto::peer::formation_response::State;
use unibus_proto::peer::{FormationRequest, FormationResponse, stream_open::Purpose};
use unibus_raft_store::env::{Duplex, Env, FrameRx, FrameTx};
use unibus_raft_store::identity::{IdentityError, Promise};

use super::Formation;

impl<E: Env> Formation<E> {
    /// Whether a stream of `peer`, whose data directory is `directory`, may be accepted. `known` is what
    /// the membership says of the two, if this node knows one.
    pub fn admit(
        &self,
        peer: NodeId,
        directory: DirectoryId,
        purpose: &Purpose,
        known: Option<bool>,
    ) -> Result<(), String> {
        let other = |expected: &str| Err(format!("directory: node {peer} has {directory}, expected {expected}"));
        match (purpose, known, self.promise()) {
            (Purpose::Formation(_) | Purpose::Join(_), ..) | (_, Some(true), _) => Ok(()),
            (.., None, _) if !self.join && self.plan.node(peer).is_none() => {
                Err(format!("unknown: node {peer} is not in the plan by which this cluster forms"))
            }
            // It has promised its disk to whichever cluster takes it in; the leaders name this very directory.
            (.., Some(_)) if self.join => Ok(()),
            (_, Some(false), _) => other("the one in the membership: its disk is not the one we know"),
            // The initializer writes down the members before any group exists.
            (.., None, Some(promise)) if self.initializes() && promise.formed.is_none() => {
                Err("forming: the cluster is not initialized yet".into())
            }
            (.., None, Some(promise)) if peer == self.plan.initializer() && promise.initializer != directory => {
                other(&format!("{}, to which this node has promised itself", promise.initializer))
            }
            (.., None, Some(_)) => Ok(()),
            (.., None, None) => Err("blank: this node has not promised itself to a cluster yet".into()),
        }
    }

    /// Answers a formation stream that a peer opened.
    pub async fn serve(&self, peer: NodeId, (mut tx, mut rx): Duplex<E::Net>) {
        while let Ok(Some(frame)) = rx.recv().await {
            let Ok(request) = FormationRequest::decode(frame) else { return };
            let response = match self.answer(peer, &request).await {
                Ok(response) => response,
                Err(error) => {
                    tracing::error!(%peer, %error, "promise this node to a cluster");
                    return;
                }
            };
            if tx.send(vec![response.encode_to_vec().into()]).await.is_err() {
                return;
            }
        }
        // The peer is done; it does not wait for our end.
        tx.finish().await.ok();
    }

    async fn answer(&self, peer: NodeId, request: &FormationRequest) -> Result<FormationResponse, IdentityError> {
        let answer = |state: State, message: String| FormationResponse {
            state: state.into(),
            directory_id: self.identity.directory.to_bytes(),
            message,
        };
        let _writing = self.writing.lock().await;
        let promise = self.promise();
        if promise.as_ref().is_some_and(|promise| promise.formed.is_some()) {
            return Ok(answer(State::Formed, String::new()));
        }
        let refused = |why: String| Ok(answer(State::Refused, why));
        if self.join {
            return refused("it joins a cluster that is there already".into());
        }
        if request.plan_hash != self.plan.hash()[..] {
            return refused("it was started with another plan: give all nodes folders of one plan".into());
        }
        if peer != self.plan.initializer() {
            return refused(format!("it waits for node {}, which initializes", self.plan.initializer()));
        }
        let Ok(initializer) = DirectoryId::from_bytes(&request.initializer) else {
            return refused("the request names no directory".into());
        };
        match promise {
            Some(promise) if promise.initializer == initializer => {}
            Some(promise) => {
                return refused(format!(
                    "it has promised itself to node {peer} with directory {}, not {initializer}: put the lost directory \
                     back, or empty the directories of all nodes if the cluster never formed",
                    promise.initializer
                ));
            }
            None => self.save(Promise { plan_hash: self.plan.hash(), initializer, formed: None }).await?,
        }
        Ok(answer(State::Promised, String::new()))
    }
}
