//! Reading timelines back through one node at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use unibus_client::{Client, Start, SubscribeOptions};
use unibus_proto::id::{NodeId, RoomId};
use unibus_proto::position::Sequence;
use unibus_proto::subject::SubjectFilter;

use crate::history::Entry;
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
