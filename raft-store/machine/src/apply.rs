//! The machine and its dispatch: which command is handled where. Nothing else is decided here.

use unibus_proto::id::{ClusterId, GroupId};
use unibus_proto::limits::SEGMENT_BYTES;
use unibus_proto::log::Proposal;
use unibus_proto::log::proposal::Command;
use unibus_proto::v1::Reject;

use crate::event::{Applied, Entry};
use crate::fields::invalid;
use crate::rows::Rows;
use crate::step::{Answer, Step};
use crate::{batch, check, cluster, device, directory, expiry, node, publish, room, timeline, user};

/// The replicated rules of one group over its rows.
#[derive(Clone, Debug)]
pub struct Machine<R> {
    pub(crate) group: GroupId,
    pub(crate) cluster: ClusterId,
    pub(crate) rows: R,
    pub(crate) segment_bytes_max: u64,
}

impl<R: Rows> Machine<R> {
    /// The machine of a group of a cluster. All its state is in the rows.
    pub fn new(group: GroupId, cluster: ClusterId, rows: R) -> Self {
        Self { group, cluster, rows, segment_bytes_max: SEGMENT_BYTES }
    }

    /// Cuts segments at another size. All replicas of a cluster must use the same one.
    pub fn with_segment_bytes(self, segment_bytes_max: u64) -> Self {
        Self { segment_bytes_max, ..self }
    }

    /// Applies the next entry of the group's log. A command that is refused changes nothing but log time.
    pub fn apply(&mut self, entry: Entry, proposal: Proposal) -> Applied {
        debug_assert_eq!(entry.group, self.group, "an entry of another group's log");
        let mut step = Step::begin(self, proposal.at_ms);
        let answer = dispatch(&mut step, proposal.command).unwrap_or_else(Answer::Rejected);
        step.finish(answer)
    }

    /// The invariants that the rows must satisfy; the error names the first that does not hold. Reads all rows.
    pub fn check(&self) -> Result<(), String> {
        check::check(self)
    }

    /// Log time from which on a `Tick` has something to do; none when nothing can expire.
    pub fn next_deadline(&self) -> Option<u64> {
        expiry::next_deadline(&self.rows)
    }

    /// The rows.
    pub fn rows(&self) -> &R {
        &self.rows
    }

    /// The rows, for who stores them: nobody else writes them.
    pub fn rows_mut(&mut self) -> &mut R {
        &mut self.rows
    }

    /// The rows back.
    pub fn into_rows(self) -> R {
        self.rows
    }
}

pub(crate) fn dispatch<R: Rows>(step: &mut Step<'_, R>, command: Option<Command>) -> Result<Answer, Reject> {
    let command = command.ok_or_else(|| invalid("proposal without a command, or of a kind unknown to this version"))?;
    check_group(step.id, &command)?;
    match command {
        Command::ClusterInit(init) => cluster::init(step, init),
        Command::UserAdd(add) => user::add(step, add),
        Command::UserChange(change) => user::change(step, change),
        Command::RoomReserve(reserve) => directory::reserve(step, reserve),
        Command::RoomActivate(activate) => directory::activate(step, activate),
        Command::RoomCreate(create) => room::create(step, create),
        Command::RosterAppend(append) => room::append_roster(step, append),
        Command::PublishBatch(batch) => publish::batch(step, batch),
        Command::UserAttach(attach) => device::attach(step, attach),
        Command::DeviceListPut(put) => device::put_list(step, put),
        Command::Tick(_) => expiry::tick(step),
        Command::SegmentSealed(sealed) => timeline::seal(step, sealed),
        Command::CommandBatch(commands) => batch::apply(step, commands),
        Command::NodeAdd(add) => node::add(step, add),
        Command::NodeDrain(drain) => node::drain(step, drain),
        Command::NodeRemove(remove) => node::remove(step, remove),
        Command::NodeGone(gone) => node::gone(step, &gone),
    }
}

/// Which groups take a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Meta,
    Shard,
    Any,
}

fn check_group(group: GroupId, command: &Command) -> Result<(), Reject> {
    let (name, place) = match command {
        Command::ClusterInit(_) => ("ClusterInit", Place::Meta),
        Command::UserAdd(_) => ("UserAdd", Place::Meta),
        Command::UserChange(_) => ("UserChange", Place::Meta),
        Command::RoomReserve(_) => ("RoomReserve", Place::Meta),
        Command::RoomActivate(_) => ("RoomActivate", Place::Meta),
        Command::RoomCreate(_) => ("RoomCreate", Place::Shard),
        Command::RosterAppend(_) => ("RosterAppend", Place::Shard),
        Command::PublishBatch(_) => ("PublishBatch", Place::Shard),
        Command::UserAttach(_) => ("UserAttach", Place::Shard),
        Command::DeviceListPut(_) => ("DeviceListPut", Place::Shard),
        Command::Tick(_) => ("Tick", Place::Any),
        Command::SegmentSealed(_) => ("SegmentSealed", Place::Shard),
        Command::CommandBatch(_) => ("CommandBatch", Place::Any),
        Command::NodeAdd(_) => ("NodeAdd", Place::Meta),
        Command::NodeDrain(_) => ("NodeDrain", Place::Meta),
        Command::NodeRemove(_) => ("NodeRemove", Place::Meta),
        Command::NodeGone(_) => ("NodeGone", Place::Meta),
    };
    match (place, group.is_meta()) {
        (Place::Any, _) | (Place::Meta, true) | (Place::Shard, false) => Ok(()),
        (Place::Meta, false) => Err(invalid(format!("{name} in group {group}: it belongs to meta"))),
        (Place::Shard, true) => Err(invalid(format!("{name} in group meta: it belongs to a shard"))),
    }
}
