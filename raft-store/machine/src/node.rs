//! The registry of nodes: what is wanted of each. An id, once used, stays known for ever, so that no other
//! disk ever votes under it. A replacement is one intent: the new node and the leave of the old one are
//! recorded together, and the reconciler carries both out.

use unibus_proto::code::ErrorCode;
use unibus_proto::id::NodeId;
use unibus_proto::limits::NODES_MAX;
use unibus_proto::log::{NodeAdd, NodeDrain, NodeGone, NodeRemove, PlannedNode};
use unibus_proto::row::{ClusterRow, NodeRow};
use unibus_proto::v1::{NodeState, Reject};

use crate::cluster::validate_node;
use crate::fields::{invalid, reject, require};
use crate::key::{Key, ordinal, range_of_kind};
use crate::request::once;
use crate::rows::{self, Rows};
use crate::step::{Answer, Step, done};
use crate::user::check_actor;

pub(crate) fn add<R: Rows>(step: &mut Step<'_, R>, add: NodeAdd) -> Result<Answer, Reject> {
    once(step, &add.request_id, ("NodeAdd", &add), |step| add_new(step, &add))
}

fn add_new<R: Rows>(step: &mut Step<'_, R>, add: &NodeAdd) -> Result<Answer, Reject> {
    check_actor(step.rows, &add.actor)?;
    let node = add.node.as_ref().ok_or_else(|| invalid("node: not set, expected the node to take in"))?;
    validate_node(node)?;
    if let Some(known) = find(step.rows, node.node_id) {
        return added_before(&known, add, node);
    }
    let names_taken = all(step.rows).into_iter().filter(|row| state(row) != NodeState::Removed);
    let mut named = names_taken.filter_map(|row| row.node).filter(|known| known.name == node.name);
    require(named.next().is_none(), || {
        let why = format!("another node is named {:?}; give the new one another name, or remove that one", node.name);
        reject(ErrorCode::AlreadyExists, format!("node {}: {why}", node.node_id))
    })?;
    let replaced = if add.replaces == 0 { None } else { Some(replaceable(step.rows, add.replaces)?) };
    let staying = all(step.rows).iter().filter(|row| stays(row) && id_of(row) != add.replaces).count();
    require(staying < NODES_MAX, || {
        reject(
            ErrorCode::QuotaExceeded,
            format!("node {:?}: the cluster has {staying} nodes, at most {NODES_MAX}; remove one first", node.name),
        )
    })?;
    if let Some(mut replaced) = replaced {
        replaced.replaced_by = node.node_id;
        put(step, NodeState::Removing, replaced);
    }
    let row = NodeRow { node: Some(node.clone()), replaces: add.replaces, ..NodeRow::default() };
    put(step, NodeState::Voter, row);
    Ok(done())
}

/// The same node again is fine; anything else under its id is not.
fn added_before(known: &NodeRow, add: &NodeAdd, node: &PlannedNode) -> Result<Answer, Reject> {
    let id = node.node_id;
    require(stays(known), || {
        let remedy = "a node id is never used again: mint another node with `unibus-node plan --add`";
        reject(ErrorCode::AlreadyExists, format!("node {id} was removed from the cluster; {remedy}"))
    })?;
    require(known.node.as_ref() == Some(node) && known.replaces == add.replaces, || {
        let remedy = "to put another disk in its place, mint a new node and replace this one";
        reject(ErrorCode::AlreadyExists, format!("node {id} is a member already, and otherwise; {remedy}"))
    })?;
    Ok(done())
}

fn replaceable<R: Rows>(rows: &R, id: u64) -> Result<NodeRow, Reject> {
    let row = known(rows, id)?;
    require(state(&row) != NodeState::Removed && row.replaced_by == 0, || {
        let what = if row.replaced_by == 0 { "was removed" } else { "is being replaced" };
        reject(ErrorCode::AlreadyExists, format!("node {id} {what} already; add the new node without replacing one"))
    })?;
    Ok(row)
}

pub(crate) fn drain<R: Rows>(step: &mut Step<'_, R>, drain: NodeDrain) -> Result<Answer, Reject> {
    once(step, &drain.request_id, ("NodeDrain", &drain), |step| {
        check_actor(step.rows, &drain.actor)?;
        let row = known(step.rows, drain.node_id)?;
        require(stays(&row), || leaving(drain.node_id))?;
        let wanted = if drain.draining { NodeState::Draining } else { NodeState::Voter };
        require(!drain.draining || another_may_lead(step.rows, drain.node_id), || {
            let why = "no other node would be left to lead; undrain or add one first";
            reject(ErrorCode::Forbidden, format!("drain node {}: {why}", drain.node_id))
        })?;
        if state(&row) != wanted {
            put(step, wanted, row);
        }
        Ok(done())
    })
}

pub(crate) fn remove<R: Rows>(step: &mut Step<'_, R>, remove: NodeRemove) -> Result<Answer, Reject> {
    once(step, &remove.request_id, ("NodeRemove", &remove), |step| {
        check_actor(step.rows, &remove.actor)?;
        let row = known(step.rows, remove.node_id)?;
        if !stays(&row) {
            return Ok(done());
        }
        let others = all(step.rows).iter().filter(|row| stays(row) && id_of(row) != remove.node_id).count();
        require(others > 0, || {
            let why = "it is the last node of the cluster; add another one first";
            reject(ErrorCode::Forbidden, format!("remove node {}: {why}", remove.node_id))
        })?;
        require(another_may_lead(step.rows, remove.node_id), || {
            let why = "every other node is drained, none could lead in its place; undrain or add one first";
            reject(ErrorCode::Forbidden, format!("remove node {}: {why}", remove.node_id))
        })?;
        put(step, NodeState::Removing, row);
        Ok(done())
    })
}

/// The reconciler has seen that no group has it.
pub(crate) fn gone<R: Rows>(step: &mut Step<'_, R>, gone: &NodeGone) -> Result<Answer, Reject> {
    let row = known(step.rows, gone.node_id)?;
    require(!stays(&row), || invalid(format!("node {}: it is wanted, it cannot be gone", gone.node_id)))?;
    if state(&row) != NodeState::Removed {
        put(step, NodeState::Removed, row);
    }
    Ok(done())
}

fn another_may_lead<R: Rows>(rows: &R, but: u64) -> bool {
    all(rows).iter().any(|row| state(row) == NodeState::Voter && id_of(row) != but)
}

fn known<R: Rows>(rows: &R, id: u64) -> Result<NodeRow, Reject> {
    let unknown = || invalid(format!("node {id}: not known; list the nodes with `unibusctl node list`"));
    find(rows, id).ok_or_else(unknown)
}

fn leaving(id: u64) -> Reject {
    reject(ErrorCode::Forbidden, format!("node {id} leaves or has left the cluster; that cannot be undone"))
}

fn find<R: Rows>(rows: &R, id: u64) -> Option<NodeRow> {
    rows::get(rows, &Key::Node(NodeId(id)))
}

/// All nodes, removed ones included.
pub(crate) fn all<R: Rows>(rows: &R) -> Vec<NodeRow> {
    let (from, to) = range_of_kind(ordinal::NODE);
    rows.scan(&from, &to, usize::MAX).into_iter().map(|(key, value)| rows::decode(&key, value)).collect()
}

/// What is wanted of a node.
pub(crate) fn state(row: &NodeRow) -> NodeState {
    match row.state() {
        NodeState::Unspecified => NodeState::Voter,
        state => state,
    }
}

/// Whether it is to be a member.
pub(crate) fn stays(row: &NodeRow) -> bool {
    matches!(state(row), NodeState::Voter | NodeState::Draining)
}

fn id_of(row: &NodeRow) -> u64 {
    row.node.as_ref().map_or(0, |node| node.node_id)
}

/// Writes a row; the registry is a newer one from here on.
pub(crate) fn put<R: Rows>(step: &mut Step<'_, R>, state: NodeState, row: NodeRow) {
    let row = NodeRow { state: state.into(), changed_ms: step.now(), ..row };
    rows::put(step.rows, &Key::Node(NodeId(id_of(&row))), &row);
    let cluster: ClusterRow = rows::get(step.rows, &Key::Cluster).unwrap_or_default();
    let nodes_version = cluster.nodes_version + 1;
    rows::put(step.rows, &Key::Cluster, &ClusterRow { nodes_version, ..cluster });
}
