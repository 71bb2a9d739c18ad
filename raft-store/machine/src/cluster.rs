//! The cluster as planned.

use std::collections::BTreeSet;

use unibus_proto::code::ErrorCode;
use unibus_proto::id::{ClusterId, DirectoryId, NodeId};
use unibus_proto::limits::{NODES_MAX, SHARDS_MAX};
use unibus_proto::log::{ClusterInit, PlannedNode};
use unibus_proto::row::{ClusterRow, NodeRow};
use unibus_proto::v1::{NodeState, Reject};

use crate::fields::{at_most, invalid, public_key, reject, require};
use crate::key::{Key, ordinal, range_of_kind};
use crate::node;
use crate::rows::{self, Rows};
use crate::step::{Answer, Step, done};

/// The level that new clusters start at: the commands of this version.
const FEATURE_LEVEL: u32 = 1;
/// A name or an address longer than this is a mistake.
const NAME_BYTES_MAX: usize = 255;

pub(crate) fn init<R: Rows>(step: &mut Step<'_, R>, init: ClusterInit) -> Result<Answer, Reject> {
    validate(step.cluster, &init)?;
    if let Some(cluster) = rows::get::<ClusterRow>(step.rows, &Key::Cluster) {
        return again(step, &cluster, init);
    }
    let ClusterInit { cluster_id, shards, nodes } = init;
    let cluster = ClusterRow { cluster_id, shards, feature_level: FEATURE_LEVEL, ..ClusterRow::default() };
    rows::put(step.rows, &Key::Cluster, &cluster);
    for planned in nodes {
        node::put(step, NodeState::Voter, NodeRow { node: Some(planned), ..NodeRow::default() });
    }
    Ok(done())
}

/// A retry is fine; another plan is not.
fn again<R: Rows>(step: &Step<'_, R>, cluster: &ClusterRow, init: ClusterInit) -> Result<Answer, Reject> {
    let (from, to) = range_of_kind(ordinal::NODE);
    let count = step.rows.scan(&from, &to, usize::MAX).len();
    // Nodes that came later have changed the registry since.
    let is_changed = cluster.nodes_version != init.nodes.len() as u64;
    let same = cluster.shards == init.shards
        && (count == init.nodes.len() || is_changed)
        && init.nodes.into_iter().all(|node| {
            let key = Key::Node(NodeId(node.node_id));
            rows::get::<NodeRow>(step.rows, &key).and_then(|row| row.node) == Some(node)
        });
    require(same, || {
        reject(
            ErrorCode::AlreadyExists,
            format!("cluster {} is initialised from another plan; start these nodes on its plan", step.cluster),
        )
    })?;
    Ok(done())
}

fn validate(cluster: ClusterId, init: &ClusterInit) -> Result<(), Reject> {
    let found = ClusterId::from_bytes(&init.cluster_id).map_err(invalid)?;
    require(found == cluster, || invalid(format!("cluster id: found {found}, expected {cluster}")))?;
    require((1..=SHARDS_MAX).contains(&init.shards), || {
        invalid(format!("shards: found {}, expected 1 to {SHARDS_MAX}", init.shards))
    })?;
    require(!init.nodes.is_empty(), || invalid("a plan without nodes"))?;
    at_most(init.nodes.len(), NODES_MAX, "nodes of the plan")?;
    let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
    for node in &init.nodes {
        validate_node(node)?;
        let unique = ids.insert(node.node_id) && names.insert(&node.name);
        require(unique, || invalid(format!("node {} {:?}: id or name is planned twice", node.node_id, node.name)))?;
    }
    Ok(())
}

pub(crate) fn validate_node(node: &PlannedNode) -> Result<(), Reject> {
    require(node.node_id != 0, || invalid(format!("node {:?}: id 0 is no node", node.name)))?;
    for (what, text) in
        [("name", &node.name), ("peer address", &node.peer_address), ("client address", &node.client_address)]
    {
        require(!text.is_empty(), || invalid(format!("node {}: its {what} is empty", node.node_id)))?;
        at_most(text.len(), NAME_BYTES_MAX, &format!("bytes of the {what} of node {}", node.node_id))?;
    }
    public_key(&node.sign_key, &format!("sign key of node {}", node.node_id))?;
    DirectoryId::from_bytes(&node.directory_id).map_err(invalid)?;
    Ok(())
}
