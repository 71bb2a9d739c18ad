//! A blank node joins a cluster that has formed long ago (`join = true` in its configuration).
//!
//! It promises its directory to nobody but itself, fsynced, and asks the members to be taken in until an
//! admin has said so. Then the groups' leaders send it their logs, and it is ready when it votes in all.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use unibus_proto::id::{DirectoryId, NodeId};
use unibus_proto::log::PlannedNode;
use unibus_proto::peer::join_response::State;
use unibus_raft_store::Group;
use unibus_raft_store::env::{Env, sleep};
use unibus_raft_store::identity::Promise;

use super::{Formation, FormationError, PAUSE};
use crate::members::{Members, join};

impl<E: Env> Formation<E> {
    /// Takes part in a cluster that is there already; returns when this node votes in every group.
    pub(crate) async fn run_join(&self, groups: &[Group<E>], members: &Members<E>) -> Result<(), FormationError> {
        if self.promise().is_none() {
            let initializer = self.identity.directory;
            self.save(Promise { plan_hash: self.plan.hash(), initializer, formed: None }).await?;
        }
        if self.promise().is_some_and(|promise| promise.formed.is_none()) {
            self.ask_until_accepted(members).await?;
            self.vote_everywhere(groups).await;
            let formed = groups.first().map(|meta| meta.members().collect());
            let _writing = self.writing.lock().await;
            if let Some(promise) = self.promise() {
                self.save(Promise { formed, ..promise }).await?;
            }
        }
        self.wait_for(None);
        Ok(())
    }

    async fn ask_until_accepted(&self, members: &Members<E>) -> Result<(), FormationError> {
        let Some(own) = self.own() else { return Err(FormationError::OtherPlan(self.dir.clone())) };
        // Accepted once and heard of by the log, it need not ask again after a restart.
        // What each member said last.
        let mut said = BTreeMap::new();
        while !members.has_us() {
            let peers: Vec<NodeId> = members.present().into_keys().filter(|node| *node != self.identity.node).collect();
            said.retain(|peer, _| peers.contains(peer));
            let ask = async |peer| (peer, join::ask(&self.env, &self.identity, peer, own.clone()).await);
            // One at a time as they come: a lost member, which may be why this node is here, keeps nobody waiting.
            let mut answers: FuturesUnordered<_> = peers.into_iter().map(ask).collect();
            while let Some((peer, answer)) = answers.next().await {
                match answer.map(|answer| (answer.state(), answer.message, answer.registry)) {
                    Ok((State::Accepted, _, registry)) => {
                        members.learn(registry.as_ref());
                        break;
                    }
                    Ok((State::Refused, why, _)) => {
                        return Err(FormationError::Refused { node: self.identity.node, by: peer, why });
                    }
                    Ok((_, why, _)) => drop(said.insert(peer, why)),
                    Err(why) => drop(said.insert(peer, format!("{}: {why}", self.describe(peer)))),
                }
                let distinct: BTreeSet<&str> = said.values().map(String::as_str).collect();
                self.wait_for(Some(distinct.into_iter().collect::<Vec<_>>().join("; ")));
            }
            sleep::<E>(PAUSE).await;
        }
        Ok(())
    }

    async fn vote_everywhere(&self, groups: &[Group<E>]) {
        loop {
            let votes = |group: &&Group<E>| group.membership().target_voters().contains(&self.identity.node);
            let moved = groups.iter().filter(votes).count();
            if moved == groups.len() {
                return;
            }
            self.wait_for(Some(format!("the groups to catch up: this node votes in {moved} of {}", groups.len())));
            sleep::<E>(PAUSE).await;
        }
    }

    fn own(&self) -> Option<PlannedNode> {
        let planned = self.plan.planned_nodes().into_iter().find(|node| node.node_id == self.identity.node.0)?;
        let directory: DirectoryId = self.identity.directory;
        Some(PlannedNode { directory_id: directory.to_bytes(), ..planned })
    }
}
