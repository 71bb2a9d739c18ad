//! One application of a command: what the handlers work on.

use unibus_proto::id::{ClusterId, GroupId};
use unibus_proto::log;
use unibus_proto::row::GroupRow;

use crate::apply::Machine;
use crate::event::{Applied, Event};
use crate::key::Key;
use crate::rows::{self, Rows};

/// What a command that was not refused is answered with.
pub(crate) type Answer = log::reply::Reply;

/// The rows, the group's own row, and the events so far.
pub(crate) struct Step<'a, R> {
    pub(crate) rows: &'a mut R,
    pub(crate) id: GroupId,
    pub(crate) cluster: ClusterId,
    pub(crate) segment_bytes_max: u64,
    /// Written back once, at the end.
    pub(crate) group: GroupRow,
    pub(crate) events: Vec<Event>,
    before: GroupRow,
}

impl<'a, R: Rows> Step<'a, R> {
    /// Begins; log time goes on to `at_ms`, never back.
    pub(crate) fn begin(machine: &'a mut Machine<R>, at_ms: u64) -> Self {
        let before = machine.group_row();
        let group = GroupRow { at_ms: at_ms.max(before.at_ms), ..before };
        Self {
            rows: &mut machine.rows,
            id: machine.group,
            cluster: machine.cluster,
            segment_bytes_max: machine.segment_bytes_max,
            group,
            events: Vec::new(),
            before,
        }
    }

    /// Log time of this entry.
    pub(crate) fn now(&self) -> u64 {
        self.group.at_ms
    }

    /// Writes the group's row and hands out the answer.
    pub(crate) fn finish(self, answer: Answer) -> Applied {
        if self.group != self.before {
            rows::put(self.rows, &Key::Group, &self.group);
        }
        let reply = log::Reply { at_ms: self.group.at_ms, reply: Some(answer) };
        Applied { reply, events: self.events }
    }
}

/// The answer of a command that has nothing to tell.
pub(crate) fn done() -> Answer {
    Answer::Done(log::Done {})
}
