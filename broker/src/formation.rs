//! How blank nodes become one cluster, in any order, over any crash (ARCHITECTURE section 9).
//!
//! A blank node promises its directory to one plan and one initializer, fsynced, before it says so.
//! The node with the lowest id initializes once all planned nodes have promised in one round; it writes
//! down with which directories before it does, so that a crash in between is finished and never begun
//! anew. A node without a promise takes no Raft traffic: should it meet a formed cluster, then its disk
//! was lost, and voting again could undo what was acknowledged.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::Mutex;
use unibus_proto::id::{DirectoryId, GroupId, NodeId};
use unibus_proto::log::{ClusterInit, proposal::Command};
use unibus_proto::peer::formation_response::State;
use unibus_proto::peer::{FormationRequest, FormationResponse, FormationStream, stream_open::Purpose};
use unibus_raft_store::env::{Env, FrameRx, FrameTx, Lane, sleep, timeout};
use unibus_raft_store::identity::{IdentityError, Promise};
use unibus_raft_store::stream::{SETTINGS, open_stream};
use unibus_raft_store::types::Member;
use unibus_raft_store::{Group, Identity};

use crate::plan::Plan;
use crate::shard::Shards;

mod join;
mod serve;

/// Between two rounds of asking, and between two looks whether it is done.
const PAUSE: Duration = Duration::from_millis(100);
/// A node that does not answer within this time is asked again in the next round.
const ASK_PATIENCE: Duration = Duration::from_secs(3);

/// Why this node takes no part.
#[derive(Debug, thiserror::Error)]
pub enum FormationError {
    /// Its promise cannot be read or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its directory is not the one that the cluster knows.
    #[error(
        "data directory {}: node {formed_by} belongs to a formed cluster in which node {node} has another directory; \
         this one is new or was wiped, and must not vote under the old id: put the lost directory back, or mint a \
         new node with `unibus-node plan --add` and run `unibusctl node replace {node} --with NEW`; the others go \
         on while they are a majority",
        path.display()
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// This node.
        node: NodeId,
        /// Who said so.
        formed_by: NodeId,
    },
    /// Another plan than the one that it promised itself to.
    #[error(
        "data directory {}: it was promised to another plan; start the node with the configuration that it was \
         first started with, or give it an empty directory if that cluster never formed",
        .0.display()
    )]
    OtherPlan(PathBuf),
    /// The cluster does not take it in.
    #[error("node {node} asked to be taken in, node {by} refused: {why}")]
    Refused {
        /// This node.
        node: NodeId,
        /// Who said so.
        by: NodeId,
        /// Why.
        why: String,
    },
}

/// This node's part in the formation of its cluster.
pub struct Formation<E: Env> {
    env: E,
    dir: PathBuf,
    identity: Identity,
    plan: Plan,
    /// The cluster is there already: this node takes no part in forming one.
    join: bool,
    /// Held while the promise is being written.
    writing: Mutex<()>,
    promise: RwLock<Option<Promise>>,
    waiting_for: RwLock<Option<String>>,
}

impl<E: Env> Formation<E> {
    /// Reads what the directory was promised to.
    pub async fn load(
        env: E,
        dir: PathBuf,
        identity: Identity,
        plan: Plan,
        join: bool,
    ) -> Result<Self, FormationError> {
        let promise = Promise::load(&env, &dir).await?;
        let foreign = |promise: &Promise| promise.formed.is_none() && promise.plan_hash != plan.hash();
        if promise.as_ref().is_some_and(foreign) {
            return Err(FormationError::OtherPlan(dir));
        }
        let formed = promise.as_ref().is_some_and(|promise| promise.formed.is_some());
        let others = if join { "an answer of the cluster's members" } else { "the other nodes of the plan" };
        let waiting_for = (!formed).then(|| others.to_owned());
        Ok(Self {
            env,
            dir,
            identity,
            plan,
            join,
            writing: Mutex::new(()),
            promise: RwLock::new(promise),
            waiting_for: RwLock::new(waiting_for),
        })
    }

    /// What the node waits for; nothing once it belongs to a cluster.
    pub fn waiting_for(&self) -> Option<String> {
        self.waiting_for.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes part until this node belongs to the formed cluster and has seen its first command.
    pub async fn run(&self, groups: &[Group<E>], shards: &Shards<E>) -> Result<(), FormationError> {
        if self.initializes() {
            let members = self.collect_promises().await?;
            self.initialize(groups, &members).await;
            self.register(shards, &members).await;
        } else {
            self.await_formation(groups, shards).await?;
        }
        self.wait_for(None);
        Ok(())
    }

    /// The directories of all nodes, written down: from now on there is no other cluster.
    async fn collect_promises(&self) -> Result<BTreeMap<NodeId, DirectoryId>, FormationError> {
        let own = Promise { plan_hash: self.plan.hash(), initializer: self.identity.directory, formed: None };
        if self.promise().is_none() {
            // A wiped initializer asks first: its cluster may have formed long ago.
            self.refuse_if_formed().await?;
            self.save(own.clone()).await?;
        }
        loop {
            if let Some(members) = self.promise().and_then(|promise| promise.formed) {
                return Ok(members);
            }
            let (mut members, mut missing) = (BTreeMap::from([(self.identity.node, own.initializer)]), Vec::new());
            for (peer, answer) in self.ask_all(own.initializer.to_bytes()).await {
                match answer.and_then(|answer| read_promise(&answer)) {
                    Ok(Said::Promised(directory)) => drop(members.insert(peer, directory)),
                    Ok(Said::Formed) => return Err(self.not_ours(peer)),
                    Ok(Said::Refused(why)) | Err(why) => missing.push(format!("{}: {why}", self.describe(peer))),
                }
            }
            if missing.is_empty() {
                let _writing = self.writing.lock().await;
                self.save(Promise { formed: Some(members), ..own.clone() }).await?;
            } else {
                self.wait_for(Some(missing.join("; ")));
                sleep::<E>(PAUSE).await;
            }
        }
    }

    async fn initialize(&self, groups: &[Group<E>], members: &BTreeMap<NodeId, DirectoryId>) {
        for group in groups {
            while !group.is_initialized() {
                self.wait_for(Some("its groups to be initialized".into()));
                let members = members.iter().map(|(&node, &directory)| (node, Member { directory })).collect();
                match group.initialize(members).await {
                    Ok(()) => break,
                    Err(error) => tracing::warn!(%error, "initialize a group"),
                }
                sleep::<E>(PAUSE).await;
            }
        }
    }

    /// Puts the nodes into the registry, through whoever leads meta.
    async fn register(&self, shards: &Shards<E>, members: &BTreeMap<NodeId, DirectoryId>) {
        let mut nodes = self.plan.planned_nodes();
        for node in &mut nodes {
            node.directory_id = members.get(&NodeId(node.node_id)).map(|id| id.to_bytes()).unwrap_or_default();
        }
        let init = ClusterInit { cluster_id: self.plan.cluster.to_bytes(), shards: self.plan.shards, nodes };
        while !registered(shards) {
            self.wait_for(Some("a majority of the nodes, to register the cluster".into()));
            if let Err(error) = shards.propose_and_see(GroupId::META, Command::ClusterInit(init.clone())).await {
                tracing::debug!(?error, "register the cluster");
                sleep::<E>(PAUSE).await;
            }
        }
    }

    async fn await_formation(&self, groups: &[Group<E>], shards: &Shards<E>) -> Result<(), FormationError> {
        let initializer = self.describe(self.plan.initializer());
        let mut refused = String::new();
        while !registered(shards) {
            match self.promise() {
                None => {
                    self.wait_for(Some(format!("{initializer} to ask for this node's promise{refused}")));
                    let said = self.refuse_if_formed().await?;
                    refused = said.map_or_else(String::new, |why| format!(", but {why}"));
                }
                Some(_) if self.leads_members(shards) => {
                    let members = shards.meta().members().collect();
                    self.initialize(groups, &members).await;
                    self.register(shards, &members).await;
                }
                Some(_) => {
                    self.wait_for(Some(format!("{initializer} to form the cluster, for which it needs all nodes")))
                }
            }
            sleep::<E>(PAUSE).await;
        }
        self.confirm(shards).await
    }

    /// Whether this node leads meta, and with the nodes of the plan: then the initializer got so far and no
    /// further, and may never come back. What it left open is the same whoever does it, and however often.
    fn leads_members(&self, shards: &Shards<E>) -> bool {
        let members: BTreeMap<_, _> = shards.meta().members().collect();
        let is_own = members.get(&self.identity.node) == Some(&self.identity.directory);
        is_own && shards.meta().is_leader() && self.plan.nodes.iter().map(|node| &node.id).eq(members.keys())
    }

    /// Compares the membership with this directory and writes the members down.
    async fn confirm(&self, shards: &Shards<E>) -> Result<(), FormationError> {
        let members: BTreeMap<_, _> = shards.meta().members().collect();
        if members.get(&self.identity.node) != Some(&self.identity.directory) {
            return Err(self.not_ours(self.plan.initializer()));
        }
        let _writing = self.writing.lock().await;
        match self.promise() {
            Some(promise) if promise.formed.is_none() => {
                self.save(Promise { formed: Some(members), ..promise }).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends the node when a cluster has formed without it; answers who refuses it for its settings, and why.
    async fn refuse_if_formed(&self) -> Result<Option<String>, FormationError> {
        let mut refused = None;
        for (peer, answer) in self.ask_all(Bytes::new()).await {
            match answer.and_then(|answer| read_promise(&answer)) {
                // While we asked, this node may have been asked, have promised, and have become a member.
                Ok(Said::Formed) if self.promise().is_none() => return Err(self.not_ours(peer)),
                Err(why) if why.contains(SETTINGS) => drop(refused.get_or_insert(why)),
                _ => {}
            }
        }
        Ok(refused)
    }

    async fn ask_all(&self, initializer: Bytes) -> Vec<(NodeId, Result<FormationResponse, String>)> {
        let request = FormationRequest { plan_hash: Bytes::copy_from_slice(&self.plan.hash()), initializer };
        let others = self.plan.nodes.iter().map(|node| node.id).filter(|&node| node != self.identity.node);
        let asked = others.map(|peer| {
            let request = request.clone();
            async move {
                let answer = timeout::<E, _>(ASK_PATIENCE, self.ask(peer, request)).await;
                (peer, answer.unwrap_or_else(|| Err("no answer".into())))
            }
        });
        futures::future::join_all(asked).await
    }

    async fn ask(&self, peer: NodeId, request: FormationRequest) -> Result<FormationResponse, String> {
        let purpose = Purpose::Formation(FormationStream {});
        let opened = open_stream::<E>(&self.env, &self.identity, peer, purpose, Lane::Control).await;
        let (mut tx, mut rx) = opened.map_err(|error| error.to_string())?;
        let failed = |error: unibus_raft_store::env::NetError| error.to_string();
        tx.send(vec![request.encode_to_vec().into()]).await.map_err(failed)?;
        let frame = rx.recv().await.map_err(failed)?.ok_or("the peer ended the stream")?;
        tx.finish().await.ok();
        FormationResponse::decode(frame).map_err(|error| error.to_string())
    }

    fn initializes(&self) -> bool {
        self.identity.node == self.plan.initializer()
    }

    fn promise(&self) -> Option<Promise> {
        self.promise.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn save(&self, promise: Promise) -> Result<(), IdentityError> {
        promise.save(&self.env, &self.dir).await?;
        *self.promise.write().unwrap_or_else(PoisonError::into_inner) = Some(promise);
        Ok(())
    }

    fn wait_for(&self, what: Option<String>) {
        let mut waiting_for = self.waiting_for.write().unwrap_or_else(PoisonError::into_inner);
        if *waiting_for != what {
            match &what {
                Some(what) => tracing::info!("waiting for {what}"),
                None => tracing::info!(cluster = %self.plan.cluster, "this node belongs to its cluster"),
            }
            *waiting_for = what;
        }
    }

    fn describe(&self, node: NodeId) -> String {
        match self.plan.node(node) {
            Some(planned) => format!("{} (node {node} at {})", planned.name, planned.peer_address),
            None => format!("node {node}"),
        }
    }

    fn not_ours(&self, formed_by: NodeId) -> FormationError {
        FormationError::NotOurs { path: self.dir.clone(), node: self.identity.node, formed_by }
    }
}

/// Whether this node has applied the registration, and Raft has told it of the members.
fn registered<E: Env>(shards: &Shards<E>) -> bool {
    shards.meta().view(|machine| machine.cluster().is_some()) && shards.meta().is_initialized()
}

enum Said {
    Promised(DirectoryId),
    Formed,
    Refused(String),
}

fn read_promise(answer: &FormationResponse) -> Result<Said, String> {
    match answer.state() {
        State::Promised => DirectoryId::from_bytes(&answer.directory_id).map(Said::Promised).map_err(|e| e.to_string()),
        State::Formed => Ok(Said::Formed),
        State::Refused => Ok(Said::Refused(answer.message.clone())),
        State::Unspecified => Err("it answered in a way that this version does not know".into()),
    }
}
