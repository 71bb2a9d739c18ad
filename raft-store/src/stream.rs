//! How a stream between two nodes begins: the opener says who it is and what for, the accepter checks
//! cluster, node and directory before anything else is read.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use unibus_proto::id::{ClusterId, DirectoryId, NodeId};
use unibus_proto::peer::{self, stream_open::Purpose};

use crate::env::{Duplex, Env, FrameRx, FrameTx, Lane, Net, NetError, timeout};
use crate::identity::{Agreed, Differing, Identity};

/// The version of the peer protocol.
pub const PEER_VERSION: u32 = 1;
/// A peer that says nothing for so long is not there.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The stable word with which a node is refused whose settings are not those of the cluster.
pub const SETTINGS: &str = "settings: ";

/// Why a stream did not come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The network failed.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The peer refused.
    #[error("node {peer} refused the stream: {why}")]
    Refused {
        /// The peer.
        peer: NodeId,
        /// Its reason.
        why: String,
    },
    /// This node refused.
    #[error("stream of node {peer} refused: {why}")]
    Rejected {
        /// The peer.
        peer: NodeId,
        /// The reason that it was told.
        why: String,
    },
}

/// A stream that a peer opened, as it was accepted.
pub struct Accepted<E: Env> {
    /// The peer's directory.
    pub directory: DirectoryId,
    /// What the stream is for.
    pub purpose: Purpose,
    /// The stream.
    pub duplex: Duplex<E::Net>,
}

/// Opens a stream to `peer`.
pub async fn open_stream<E: Env>(
    env: &E,
    identity: &Identity,
    peer: NodeId,
    purpose: Purpose,
    lane: Lane,
) -> Result<Duplex<E::Net>, StreamError> {
    open(env, identity, peer, purpose, lane).await.map(|(duplex, _)| duplex)
}

/// Opens a stream to `peer`, whose data directory must be `expected`: the same node id on another disk
/// has forgotten what it voted for.
pub async fn open_stream_to<E: Env>(
    env: &E,
    identity: &Identity,
    (peer, expected): (NodeId, DirectoryId),
    purpose: Purpose,
    lane: Lane,
) -> Result<Duplex<E::Net>, StreamError> {
    let (duplex, found) = open(env, identity, peer, purpose, lane).await?;
    if found == expected {
        return Ok(duplex);
    }
    let why = format!("directory: node {peer} has directory {found}, expected {expected}");
    Err(StreamError::Rejected { peer, why })
}

async fn open<E: Env>(
    env: &E,
    identity: &Identity,
    peer: NodeId,
    purpose: Purpose,
    lane: Lane,
) -> Result<(Duplex<E::Net>, DirectoryId), StreamError> {
    let open = peer::StreamOpen {
        cluster_id: identity.cluster.to_bytes(),
        node_id: identity.node.0,
        directory_id: identity.directory.to_bytes(),
        version: PEER_VERSION,
        agreed: identity.agreed.map(Into::into),
        purpose: Some(purpose),
    };
    let handshake = async {
        let (mut tx, mut rx) = env.net().connect(peer, lane).await?;
        tx.send(vec![open.encode_to_vec().into()]).await?;
        let accept: peer::StreamAccept = decode(rx.recv().await?)?;
        if !accept.refused.is_empty() {
            return Err(StreamError::Refused { peer, why: accept.refused });
        }
        let directory = DirectoryId::from_bytes(&accept.directory_id).map_err(malformed)?;
        Ok(((tx, rx), directory))
    };
    let silent = || NetError::Unreachable(format!("node {peer} did not answer within {} s", HANDSHAKE.as_secs()));
    timeout::<E, _>(HANDSHAKE, handshake).await.ok_or_else(silent)?
}

/// Reads who opened a stream and answers. `peer` is the authenticated node id; `check` says whether the
/// membership knows the directory, as a stable lower-case word, then a text after ": ".
pub async fn accept_stream<E: Env>(
    identity: &Identity,
    peer: NodeId,
    (mut tx, mut rx): Duplex<E::Net>,
    check: impl FnOnce(DirectoryId, &Purpose) -> Result<(), String> + Send,
) -> Result<Accepted<E>, StreamError> {
    let handshake = async {
        let open: peer::StreamOpen = decode(rx.recv().await?)?;
        let checked = check_open(identity, peer, open).and_then(|(directory, purpose)| {
            check(directory, &purpose)?;
            Ok((directory, purpose))
        });
        let refused = checked.as_ref().err().cloned().unwrap_or_default();
        let accept = peer::StreamAccept { refused, directory_id: identity.directory.to_bytes() };
        tx.send(vec![accept.encode_to_vec().into()]).await?;
        if checked.is_err() {
            // The reason must arrive before the stream goes away.
            tx.finish().await?;
        }
        checked.map_err(|why| StreamError::Rejected { peer, why })
    };
    let silent = || NetError::Closed(format!("node {peer} opened a stream and said nothing"));
    let (directory, purpose) = timeout::<E, _>(HANDSHAKE, handshake).await.ok_or_else(silent)??;
    Ok(Accepted { directory, purpose, duplex: (tx, rx) })
}

fn check_open(own: &Identity, peer: NodeId, open: peer::StreamOpen) -> Result<(DirectoryId, Purpose), String> {
    let cluster = ClusterId::from_bytes(&open.cluster_id).map_err(|e| format!("cluster: {e}"))?;
    if open.version != PEER_VERSION {
        return Err(format!("version: peer protocol {}, this node speaks {PEER_VERSION}", open.version));
    }
    if cluster != own.cluster {
        return Err(format!("cluster: this node belongs to {}, not to {cluster}", own.cluster));
    }
    if open.node_id != peer.0 || peer == own.node {
        return Err(format!("node: the certificate says node {peer}, the stream node {}", open.node_id));
    }
    // An earlier version does not say.
    let theirs = open.agreed.map(Agreed::from);
    if let Some(Differing { key, one, other }) = own.agreed.zip(theirs).and_then(|(own, theirs)| own.differs(theirs)) {
        return Err(format!(
            "{SETTINGS}{key} is {other} on node {peer}, {one} on node {}; all nodes have the same for ever, or their \
             replicas differ: correct it in node.toml of the node that is wrong",
            own.node
        ));
    }
    let directory = DirectoryId::from_bytes(&open.directory_id).map_err(|e| format!("directory: {e}"))?;
    Ok((directory, open.purpose.ok_or("purpose: the stream does not say what for")?))
}

/// Decodes a frame that must be there.
pub(crate) fn decode<M: Message + Default>(frame: Option<Bytes>) -> Result<M, NetError> {
    let frame = frame.ok_or_else(|| NetError::Closed("the peer ended the stream".into()))?;
    M::decode(frame).map_err(malformed)
}

/// A frame that is not what it must be.
pub(crate) fn malformed(why: impl std::fmt::Display) -> NetError {
    NetError::Malformed(why.to_string())
}
