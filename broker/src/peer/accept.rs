//! What happens to a stream that a peer opened: checked, then handed to whom it is for.

use std::sync::Arc;

use unibus_proto::id::NodeId;
use unibus_proto::peer::stream_open::Purpose;
use unibus_raft_store::env::{Duplex, Env, Net, NetError, spawn};
use unibus_raft_store::stream::accept_stream;
use unibus_raft_store::{Identity, Store};

use crate::formation::Formation;
use crate::members::{Members, Standing};
use crate::service::Service;

/// Who takes the streams of the peers.
pub struct Acceptor<E: Env> {
    /// The environment, for its network.
    pub env: E,
    /// Who this node is.
    pub identity: Identity,
    /// Raft's streams.
    pub store: Store<E>,
    /// Forwarded commands and reads.
    pub service: Service<E>,
    /// Formation, and who may open anything while there is no registry of nodes.
    pub formation: Arc<Formation<E>>,
    /// Who may open anything once there is one.
    pub members: Arc<Members<E>>,
}

impl<E: Env> Acceptor<E> {
    /// Accepts streams until the network is shut down.
    pub async fn run(self: Arc<Self>) -> NetError {
        loop {
            match self.env.net().accept().await {
                Ok((peer, duplex)) => spawn::<E>(self.clone().serve(peer, duplex)),
                Err(error) => return error,
            }
        }
    }

    async fn serve(self: Arc<Self>, peer: NodeId, duplex: Duplex<E::Net>) {
        let accepted = accept_stream::<E>(&self.identity, peer, duplex, |directory, purpose| {
            match self.members.judge(peer, directory, purpose) {
                Standing::Member => Ok(()),
                Standing::Refused(why) => Err(why),
                Standing::Unformed => {
                    self.formation.admit(peer, directory, purpose, self.store.knows_peer(peer, directory))
                }
            }
        });
        let accepted = match accepted.await {
            Ok(accepted) => accepted,
            Err(error) => return tracing::debug!(%peer, %error, "stream not accepted"),
        };
        match accepted.purpose {
            Purpose::Join(_) => self.members.serve_join(peer, accepted.directory, accepted.duplex).await,
            Purpose::Formation(_) => self.formation.serve(peer, accepted.duplex).await,
            Purpose::Node(_) => self.service.serve_link(peer, accepted.duplex).await,
            Purpose::Ephemeral(_) => self.service.serve_ephemeral(peer, accepted.duplex).await,
            purpose @ (Purpose::Append(_) | Purpose::Control(_) | Purpose::Snapshot(_)) => {
                self.store.serve_raft(peer, purpose, accepted.duplex).await;
            }
        }
    }
}
