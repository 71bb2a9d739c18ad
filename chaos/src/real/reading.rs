//! Reading timelines back through one node at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use unibus_client::{Client, Start, SubscribeOptions};
use unibus_proto::id::{NodeId, RoomId};
use unibus_proto::position::Sequence;
use unibus_proto::subject::SubjectFilter;

use crate::history::{Entry, History};
use crate::record;

/// A read that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Reads through one node, each time from where it ended the last time.
pub struct NodeReader {
    node: NodeId,
    name: String,
    pin: Option<String>,
    client: Client,
    filter: SubjectFilter,
    positions: BTreeMap<RoomId, Sequence>,
}

impl NodeReader {
    /// A reader of what `filter` selects, from the start; `client` is pinned to `node`.
    pub fn new(node: NodeId, name: &str, client: Client, filter: &SubjectFilter) -> Self {
        Self {
            node,
            name: name.into(),
            pin: Some(name.into()),
            client,
            filter: filter.clone(),
            positions: BTreeMap::new(),
        }
    }

    /// A reader that goes to any node, and on to the next one when it has to.
    pub fn of_any(client: Client, filter: &SubjectFilter) -> Self {
        Self { pin: None, ..Self::new(NodeId(0), "any node", client, filter) }
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Where the next read begins; a room that is not named begins at its start.
    pub fn positions(&self) -> &BTreeMap<RoomId, Sequence> {
        &self.positions
    }

    /// What was added since the last read.
    pub async fn read_new(&mut self) -> Result<BTreeMap<RoomId, Vec<Entry>>, String> {
        let resume = std::mem::take(&mut self.positions);
        let (read, positions) = self.read(resume).await?;
        self.positions = positions;
        Ok(read)
    }

    /// Everything from the start.
    pub async fn read_all(&self) -> Result<BTreeMap<RoomId, Vec<Entry>>, String> {
        Ok(self.read(BTreeMap::new()).await?.0)
    }

    async fn read(&self, resume: BTreeMap<RoomId, Sequence>) -> Result<Slice, String> {
        let read = tokio::time::timeout(PATIENCE, self.read_patiently(resume));
        read.await.unwrap_or_else(|_| Err(format!("read through {}: not at the end after {PATIENCE:?}", self.name)))
    }

    async fn read_patiently(&self, resume: BTreeMap<RoomId, Sequence>) -> Result<Slice, String> {
        let failed = |error: unibus_client::Error| format!("read through {}: {error}", self.name);
        let options =
            SubscribeOptions { until_end: true, pin: self.pin.clone(), resume, ..SubscribeOptions::default() };
        let mut subscription = self.client.subscribe(&self.filter, Start::Earliest, options).await.map_err(failed)?;
        let mut entries: BTreeMap<RoomId, Vec<Entry>> = BTreeMap::new();
        while let Some(item) = subscription.next().await {
            if let Some((room, entry)) = record::of_item(&item.map_err(failed)?) {
                entries.entry(room).or_default().push(entry);
            }
        }
        Ok((entries, subscription.positions()))
    }
}

type Slice = (BTreeMap<RoomId, Vec<Entry>>, BTreeMap<RoomId, Sequence>);

/// What was read through `node` from `begins` on becomes its scan of each of `rooms`: a room of which it gave
/// nothing is an empty timeline, or the judges would take the replica for one that was not asked.
pub fn note(
    history: &mut History,
    node: NodeId,
    begins: &BTreeMap<RoomId, Sequence>,
    mut read: BTreeMap<RoomId, Vec<Entry>>,
    rooms: &[RoomId],
) {
    history.floors.extend(begins.iter().map(|(room, next)| ((node, *room), next.0)));
    history.scans.extend(rooms.iter().map(|room| ((node, *room), read.remove(room).unwrap_or_default())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::{NODES, ROOM, entry, publish};
    use crate::invariants;

    fn history(read: [&[u64]; 2], begins: &BTreeMap<RoomId, Sequence>) -> History {
        let mut history = History { publishes: vec![publish(1)], ..History::default() };
        for (node, sequences) in NODES.into_iter().zip(read) {
            let entries: Vec<_> = sequences.iter().copied().map(entry).collect();
            let read = (!entries.is_empty()).then_some((ROOM, entries)).into_iter().collect();
            note(&mut history, node, begins, read, &[ROOM]);
        }
        history
    }

    #[test]
    fn a_replica_that_gives_nothing_of_a_room_has_lost_what_was_acknowledged() {
        let beginning = BTreeMap::new();
        assert_eq!(invariants::check(&history([&[0, 1], &[0, 1]], &beginning)), []);
        let broken = invariants::check(&history([&[0, 1], &[]], &beginning));
        assert!(
            broken.iter().any(|found| found.invariant.starts_with("I1 ") && found.what.contains("n2")),
            "{broken:?}"
        );
    }

    #[test]
    fn so_has_one_that_gives_nothing_new_and_nothing_new_is_no_loss() {
        let first = [(ROOM, Sequence(1))].into();
        assert_eq!(invariants::check(&history([&[1], &[1]], &first)), []);
        let broken = invariants::check(&history([&[1], &[]], &first));
        assert!(broken.iter().any(|found| found.what.contains("n2")), "{broken:?}");
        let second = [(ROOM, Sequence(2))].into();
        assert_eq!(invariants::check(&history([&[], &[]], &second)), []);
    }
}
