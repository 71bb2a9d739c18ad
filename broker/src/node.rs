//! The composition root: a node over any environment.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use tokio::sync::{Mutex, mpsc};
use unibus_proto::id::NodeId;
use unibus_raft_store::env::{Env, spawn, timeout};
use unibus_raft_store::error::StoreError;
use unibus_raft_store::identity::{Agreed, DirectoryLock, IdentityError};
use unibus_raft_store::{Identity, Store, StoreConfig};

use crate::formation::{Formation, FormationError};
use crate::members::{Members, reconcile, watch};
use crate::peer::accept::Acceptor;
use crate::plan::Plan;
use crate::service::{Service, ServiceParts};
use crate::vitals::NodeVitals;

/// Leaderships move within one election; what has not moved by then, the others elect anew.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(3);

/// What makes a node this one.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its id in the plan.
    pub node: NodeId,
    /// What all nodes agree on.
    pub plan: Plan,
    /// The cluster is there already, and is asked to take this node in.
    pub join: bool,
    /// Its data. `store.dir` is set to it, `store.groups` to what the plan says.
    pub data_dir: PathBuf,
    /// Raft's timing and sizes.
    pub store: StoreConfig,
    /// Version of the program, as shown to operators.
    pub version: String,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its directory is not its own.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its data cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It takes no part in the cluster.
    #[error(transparent)]
    Formation(#[from] FormationError),
}

/// A running node. Clones share it.
pub struct Node<E: Env> {
    inner: Arc<Inner<E>>,
}

impl<E: Env> Clone for Node<E> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<E: Env> {
    identity: Identity,
    store: Store<E>,
    service: Service<E>,
    vitals: Arc<NodeVitals<E>>,
    report: mpsc::Sender<String>,
    reported: Mutex<mpsc::Receiver<String>>,
    _lock: DirectoryLock<E>,
}

impl<E: Env> Node<E> {
    /// Opens the node's directory and starts all its tasks. It returns while the node may still wait for
    /// the others; [`not_ready`](Self::not_ready) says for what, [`fault`](Self::fault) when it gives up.
    pub async fn start(env: E, config: NodeConfig, sign_key: SigningKey) -> Result<Self, NodeError> {
        // Opening the store makes a large future; callers need not carry it.
        Box::pin(Self::open(env, config, sign_key)).await
    }

    async fn open(env: E, config: NodeConfig, sign_key: SigningKey) -> Result<Self, NodeError> {
        let NodeConfig { node, plan, join, data_dir, store, version } = config;
        let (identity, lock) = Identity::open(&env, &data_dir, plan.cluster, node).await?;
        let store = StoreConfig { dir: data_dir.clone(), groups: plan.groups(), ..store };
        let identity = identity.agreeing(Agreed::of(&store));
        let store = Store::open(env.clone(), identity, store).await?;
        let formation = Formation::load(env.clone(), data_dir.clone(), identity, plan.clone(), join).await?;
        let formation = Arc::new(formation);
        let members = Members::new(identity, &store, plan.planned_nodes());
        let members = Arc::new(members.ok_or_else(|| StoreError::Config("a store without groups".into()))?);
        let vitals = NodeVitals::new(env.clone(), data_dir, store.clone(), formation.clone(), members.clone());
        let vitals = Arc::new(vitals);
        let service = Service::new(ServiceParts {
            env: env.clone(),
            store: store.clone(),
            identity,
            nodes: plan.planned_nodes(),
            sign_key,
            version,
            members: members.clone(),
            vitals: vitals.clone(),
        });
        let (report, reported) = mpsc::channel(1);
        let inner = Inner { identity, store, service, vitals, report, reported: Mutex::new(reported), _lock: lock };
        let node = Self { inner: Arc::new(inner) };
        node.spawn_tasks(env.clone(), formation, members.clone(), join);
        node.spawn_membership(env, members);
        Ok(node)
    }

    fn spawn_tasks(&self, env: E, formation: Arc<Formation<E>>, members: Arc<Members<E>>, join: bool) {
        let Inner { identity, store, service, vitals, report, .. } = &*self.inner;
        let acceptor = Arc::new(Acceptor {
            env,
            identity: *identity,
            store: store.clone(),
            service: service.clone(),
            formation: formation.clone(),
            members: members.clone(),
        });
        let accept_report = report.clone();
        spawn::<E>(async move {
            let error = acceptor.run().await;
            accept_report.try_send(format!("accept the peers' streams: {error}")).ok();
        });
        let (groups, shards, form_report) =
            (store.groups().collect::<Vec<_>>(), service.shards().clone(), report.clone());
        spawn::<E>(async move {
            let ran = match join {
                true => formation.run_join(&groups, &members).await,
                false => formation.run(&groups, &shards).await,
            };
            if let Err(error) = ran {
                form_report.try_send(error.to_string()).ok();
            }
        });
        let (faults, store_report) = (store.faults(), report.clone());
        spawn::<E>(async move {
            store_report.try_send(faults.await).ok();
        });
        spawn::<E>(vitals.clone().watch());
    }

    /// Keeps the memberships as the registry wants them, and takes this node out of service when it is
    /// removed. The process goes on, and says why on `/readyz`: started anew it could say no more.
    fn spawn_membership(&self, env: E, members: Arc<Members<E>>) {
        let Inner { store, service, .. } = &*self.inner;
        spawn::<E>(reconcile::run(members.clone(), service.clone()));
        let (store, service) = (store.clone(), service.clone());
        spawn::<E>(async move {
            let why = watch::run(env, members, service.clone()).await;
            tracing::error!(why, "this node is no member any more and serves nothing");
            service.stop();
            store.shutdown().await;
        });
    }

    /// The API.
    pub fn service(&self) -> Service<E> {
        self.inner.service.clone()
    }

    /// The groups.
    pub fn store(&self) -> &Store<E> {
        &self.inner.store
    }

    /// The cluster, the node and its directory.
    pub fn identity(&self) -> Identity {
        self.inner.identity
    }

    /// Why the node is not ready; empty when it is.
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = crate::service::Vitals::not_ready(&*self.inner.vitals);
        reasons.extend(self.inner.service.not_heard());
        reasons
    }

    /// Resolves with the first reason for which the process must end.
    pub async fn fault(&self) -> String {
        let fault = self.inner.reported.lock().await.recv().await;
        fault.unwrap_or_else(|| "the node's tasks have ended".into())
    }

    /// Hands its leaderships over, ends the clients' streams, and stops.
    pub async fn shutdown(&self) {
        let Inner { service, store, .. } = &*self.inner;
        match timeout::<E, _>(HAND_OVER_PATIENCE, service.hand_over()).await {
            Some(kept) => kept.iter().for_each(|why| tracing::info!(%why, "leadership kept to the end")),
            None => tracing::info!("leaderships were not handed over within {HAND_OVER_PATIENCE:?}"),
        }
        service.stop();
        store.shutdown().await;
    }
}
