//! The client handle.

use std::sync::Arc;

use tokio::sync::mpsc;
use unibus_proto::files::Identity;
use unibus_proto::id::ClusterId;
use unibus_proto::v1;
use unibus_proto::v1::auth_service_client::AuthServiceClient;

use crate::core::{Core, unary};
use crate::nodes::Target;
use crate::platform::{Platform, TokioPlatform};
use crate::{ClientConfig, ClientEvent, Error};

/// A signed-in client of a cluster. Cheap to clone; all clones share connections and token.
///
/// Calls go to any node that works and are tried again elsewhere when it does not, with the same ids,
/// until [`ClientConfig::patience`] ends.
pub struct Client<P: Platform = TokioPlatform> {
    pub(crate) core: Arc<Core<P>>,
}

impl<P: Platform> Clone for Client<P> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone() }
    }
}

impl<P: Platform> std::fmt::Debug for Client<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("identity", &self.core.identity)
            .field("cluster", &self.core.cluster_id())
            .finish_non_exhaustive()
    }
}

unary!(read who, AuthServiceClient, who_am_i, v1::WhoAmIRequest, v1::WhoAmIResponse);

impl<P: Platform> Client<P> {
    /// Signs in at one of the nodes and learns about the others.
    pub async fn connect(platform: P, config: ClientConfig, identity: Identity) -> Result<Self, Error> {
        let client = Self::unconnected(platform, config, identity);
        client.core.refresh_topology().await?;
        Ok(client)
    }

    /// A client that signs in with its first call, for those who watch [`Client::events`] from the start.
    pub fn unconnected(platform: P, config: ClientConfig, identity: Identity) -> Self {
        Self { core: Arc::new(Core::new(platform, config, identity)) }
    }

    /// Who signs in.
    pub fn identity(&self) -> &Identity {
        &self.core.identity
    }

    /// The cluster, known from the first sign-in on.
    pub fn cluster_id(&self) -> ClusterId {
        self.core.cluster_id()
    }

    /// What the SDK does on its own from now on. A watcher that does not keep up misses some.
    pub fn events(&self) -> mpsc::Receiver<ClientEvent> {
        self.core.events.watch()
    }

    /// Whom the cluster takes the caller for.
    pub async fn who_am_i(&self) -> Result<v1::WhoAmIResponse, Error> {
        self.core.who(&self.core.target(Target::Any), v1::WhoAmIRequest {}).await
    }
}
