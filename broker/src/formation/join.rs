//! A blank node joins a cluster that has formed long ago (`join = true` in its configuration).
//!
//! It promises its directory to nobody but itself, fsynced, and asks the members to be taken in until an
//! admin has said so. Then the groups' leaders send it their logs, and it is ready when it votes in all.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use unibus_proto::id::{DirectoryId, NodeId};
use unibus_proto::log::PlannedNode;
use unibus_proto::peer::join_response::State;
use unibus_raft_store::Group;
use unibus_raft_store::env::{Env, sleep, timeout};
use unibus_raft_store::identity::Promise;
use unibus_raft_store::stream::SETTINGS;

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

    /// Asks each member on its own, again and again: one that says nothing for a while, perhaps the lost one in
    /// whose place this node is to come, holds up neither the others nor what they answer.
    async fn ask_until_accepted(&self, members: &Members<E>) -> Result<(), FormationError> {
        let Some(own) = self.own() else { return Err(FormationError::OtherPlan(self.dir.clone())) };
        let ask = async |peer, pause| {
            sleep::<E>(pause).await;
            (peer, join::ask(&self.env, &self.identity, peer, own.clone()).await)
        };
        // One question to each peer is on its way, or about to be asked.
        let (mut asked, mut answers) = (BTreeSet::new(), FuturesUnordered::new());
        // What each member said last.
        let mut said = BTreeMap::new();
        // Once accepted, it need not ask again after a restart: its own log tells it.
        while !members.has_us() {
            let peers: BTreeSet<NodeId> =
                members.present().into_keys().filter(|node| *node != self.identity.node).collect();
            said.retain(|peer, _| peers.contains(peer));
            for &peer in peers.iter().filter(|peer| asked.insert(**peer)) {
                answers.push(ask(peer, Duration::ZERO));
            }
            let Some((peer, answer)) = self.next_answer(&mut answers).await else { continue };
            if peers.contains(&peer) {
                answers.push(ask(peer, PAUSE));
            } else {
                asked.remove(&peer);
            }
            match answer.map(|answer| (answer.state(), answer.message, answer.registry)) {
                Ok((State::Accepted, _, registry)) => members.learn(registry.as_ref()),
                Ok((State::Refused, why, _)) => {
                    return Err(FormationError::Refused { node: self.identity.node, by: peer, why });
                }
                Err(why) if why.starts_with(SETTINGS) => {
                    return Err(FormationError::Refused { node: self.identity.node, by: peer, why });
                }
                Ok((_, why, _)) => drop(said.insert(peer, why)),
                Err(why) => drop(said.insert(peer, format!("{}: {why}", self.describe(peer)))),
            }
            let distinct: BTreeSet<&str> = said.values().map(String::as_str).collect();
            self.wait_for(Some(distinct.into_iter().collect::<Vec<_>>().join("; ")));
        }
        Ok(())
    }

    /// The next answer; none when there is none for a while, as the log may know more by then.
    async fn next_answer<T: Send>(&self, answers: &mut FuturesUnordered<impl Future<Output = T> + Send>) -> Option<T> {
        if answers.is_empty() {
            sleep::<E>(PAUSE).await;
        }
        timeout::<E, _>(PAUSE, answers.next()).await.flatten()
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
