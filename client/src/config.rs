//! How a client reaches its cluster, and how patient it is.

use std::time::Duration;

use unibus_proto::id::ClusterId;

/// How a client reaches its cluster, and how patient it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// host:port of nodes' gRPC listeners. Any one that answers will do: the others are learnt from it.
    pub nodes: Vec<String>,
    /// The cluster to expect; another one is refused before anything is signed for it.
    pub cluster_id: Option<ClusterId>,
    /// Talk to this node only, by its name ("n2") or address; no failover.
    pub pin: Option<String>,
    /// A call is tried again for so long; every call is safe to repeat.
    pub patience: Duration,
    /// One attempt of a call may take so long. Nodes answer within 2 s, with or without a quorum.
    pub attempt_timeout: Duration,
    /// A publish without an answer is sent again elsewhere after this time.
    pub answer_timeout: Duration,
    /// A subscription that hears nothing, not even a heartbeat, moves to another node after this time.
    pub silence_timeout: Duration,
}

impl ClientConfig {
    /// The defaults, for these nodes.
    pub fn new(nodes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { nodes: nodes.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Only this node, by name or address.
    pub fn pinned(mut self, node: Option<String>) -> Self {
        self.pin = node;
        self
    }

    /// Gives up a call after this time.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            cluster_id: None,
            pin: None,
            patience: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(3),
            silence_timeout: Duration::from_secs(30),
        }
    }
}
