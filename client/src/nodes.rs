//! The nodes that the client knows: where they are, which of them work, who leads what.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use unibus_proto::id::{GroupId, NodeId};
use unibus_proto::v1::GetTopologyResponse;

use crate::platform::{Channel, Platform, erase};
use crate::{Error, ErrorCode};

/// A failed node is left alone for this time, doubled with each failure in a row.
const REST_MIN: Duration = Duration::from_millis(250);
/// A node that was down for long is tried again at least so often.
const REST_MAX: Duration = Duration::from_secs(5);

/// Which node a call wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Any that works.
    Any,
    /// This one if it works, else any.
    Prefer(NodeId),
    /// The one with this name or address, no other.
    Only(String),
}

/// A node to talk to.
#[derive(Clone)]
pub(crate) struct Node {
    pub address: Arc<str>,
    pub label: Arc<Label>,
    pub channel: Channel,
}

/// What a node is called in words: its name, once learnt, and its address.
#[derive(Debug)]
pub(crate) struct Label {
    address: Arc<str>,
    name: OnceLock<String>,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.get() {
            Some(name) => write!(f, "{name} ({})", self.address),
            None => f.write_str(&self.address),
        }
    }
}

struct Entry {
    address: Arc<str>,
    label: Arc<Label>,
    id: Option<NodeId>,
    name: String,
    channel: Option<Channel>,
    failures: u32,
    rests_until: Duration,
}

/// All nodes that were configured or learnt.
pub(crate) struct NodeBook {
    entries: Vec<Entry>,
    preferred: usize,
    leaders: BTreeMap<GroupId, NodeId>,
    learnt: bool,
}

impl NodeBook {
    /// The configured nodes; clients start at different ones, by `spread`.
    pub fn new(addresses: &[String], spread: u64) -> Self {
        let mut book = Self { entries: Vec::new(), preferred: 0, leaders: BTreeMap::new(), learnt: false };
        for address in addresses {
            book.entry(address);
        }
        book.preferred = (spread % book.entries.len().max(1) as u64) as usize;
        book
    }

    fn entry(&mut self, address: &str) -> &mut Entry {
        let known = self.entries.iter().position(|entry| &*entry.address == address);
        let at = known.unwrap_or_else(|| {
            let address: Arc<str> = address.into();
            self.entries.push(Entry {
                label: Arc::new(Label { address: address.clone(), name: OnceLock::new() }),
                address,
                id: None,
                name: String::new(),
                channel: None,
                failures: 0,
                rests_until: Duration::ZERO,
            });
            self.entries.len() - 1
        });
        &mut self.entries[at]
    }

    /// Whether a node has told about the others.
    pub fn learnt(&self) -> bool {
        self.learnt
    }

    /// Takes over what a node told about the cluster.
    pub fn learn(&mut self, topology: &GetTopologyResponse) {
        for node in topology.nodes.iter().filter(|node| !node.client_address.is_empty()) {
            for stale in self.entries.iter_mut().filter(|entry| entry.id == Some(NodeId(node.node_id))) {
                stale.id = None;
            }
            let entry = self.entry(&node.client_address);
            entry.id = Some(NodeId(node.node_id));
            entry.name = node.name.clone();
            // A node that takes over an address keeps the name that it was first known by; the address tells.
            if !node.name.is_empty() {
                entry.label.name.get_or_init(|| node.name.clone());
            }
        }
        for leader in &topology.leaders {
            self.note_leader(GroupId(leader.group), leader.leader);
        }
        self.learnt = true;
    }

    /// Takes over who leads a group; 0 = nobody knows.
    pub fn note_leader(&mut self, group: GroupId, leader: u64) {
        match leader {
            0 => self.leaders.remove(&group),
            id => self.leaders.insert(group, NodeId(id)),
        };
    }

    /// Who leads a group, as far as it was told.
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.leaders.get(&group).copied()
    }

    /// What the node at an address is called.
    pub fn label(&self, address: &str) -> String {
        let entry = self.entries.iter().find(|entry| &*entry.address == address);
        entry.map_or_else(|| address.into(), |entry| entry.label.to_string())
    }

    /// The id of the node at an address, once learnt.
    pub fn id_of(&self, address: &str) -> Option<NodeId> {
        self.entries.iter().find(|entry| &*entry.address == address).and_then(|entry| entry.id)
    }

    /// The node for a call: the wanted one, else the one used before, else the next that works.
    pub fn pick<P: Platform>(&mut self, platform: &P, target: &Target) -> Result<Node, Error> {
        let now = platform.now();
        let works = |entry: &Entry| entry.rests_until <= now;
        let at = match target {
            Target::Only(wanted) => Some(self.only(wanted)?),
            Target::Prefer(id) => self.entries.iter().position(|entry| entry.id == Some(*id) && works(entry)),
            Target::Any => None,
        };
        let at = match at.or_else(|| self.next_working(now)) {
            Some(at) => at,
            None => return Err(Error::new(ErrorCode::Invalid, "no node is configured; name at least one host:port")),
        };
        if *target == Target::Any {
            self.preferred = at;
        }
        Ok(self.connect(platform, at))
    }

    /// A node that was not asked yet, one that works if there is one.
    pub fn pick_beside<P: Platform>(&mut self, platform: &P, is_asked: impl Fn(&Arc<str>) -> bool) -> Option<Node> {
        let (now, count) = (platform.now(), self.entries.len());
        let order = (0..count).map(|step| (self.preferred + step) % count);
        let others = order.filter(|&at| !is_asked(&self.entries[at].address));
        let at = others.min_by_key(|&at| self.entries[at].rests_until.max(now))?;
        Some(self.connect(platform, at))
    }

    fn connect<P: Platform>(&mut self, platform: &P, at: usize) -> Node {
        let entry = &mut self.entries[at];
        let channel =
            entry.channel.get_or_insert_with(|| erase(platform.channel(&entry.address), entry.label.clone())).clone();
        Node { address: entry.address.clone(), label: entry.label.clone(), channel }
    }

    fn only(&mut self, wanted: &str) -> Result<usize, Error> {
        let found = self.entries.iter().position(|entry| entry.name == wanted || &*entry.address == wanted);
        if let Some(at) = found {
            return Ok(at);
        }
        if wanted.contains(':') {
            self.entry(wanted);
            return Ok(self.entries.len() - 1);
        }
        let known: Vec<_> = self.entries.iter().map(|entry| &*entry.name).filter(|name| !name.is_empty()).collect();
        let message = format!("no node is named {wanted:?}; the cluster has {}", known.join(", "));
        Err(Error::new(ErrorCode::Invalid, message))
    }

    fn next_working(&self, now: Duration) -> Option<usize> {
        let count = self.entries.len();
        let order = (0..count).map(|step| (self.preferred + step) % count);
        let working = order.clone().find(|&at| self.entries[at].rests_until <= now);
        working.or_else(|| order.min_by_key(|&at| self.entries[at].rests_until))
    }

    /// Leaves a node alone for a while; the next call goes elsewhere.
    pub fn note_failure(&mut self, address: &str, now: Duration) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| &*entry.address == address) {
            entry.rests_until = now + REST_MAX.min(REST_MIN * 2u32.pow(entry.failures.min(8)));
            entry.failures += 1;
        }
    }

    /// The node works.
    pub fn note_success(&mut self, address: &str) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| &*entry.address == address) {
            (entry.failures, entry.rests_until) = (0, Duration::ZERO);
        }
    }
}
