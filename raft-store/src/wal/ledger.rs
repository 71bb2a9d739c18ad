//! What the records of a WAL add up to, in the order in which they stand there: vote, log ends and
//! purge position of each group, and which files still hold live entries. The writer keeps one while it
//! writes, recovery builds the same from the files.

use std::collections::BTreeMap;

use unibus_proto::id::GroupId;

use super::frame::{Record, Row};
use crate::types::{LogId, Vote};

/// What a group's records add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The vote.
    pub vote: Option<Vote>,
    /// Committed up to here.
    pub committed: Option<LogId>,
    /// Purged up to here.
    pub purged: Option<LogId>,
    /// The last entry; the purged one when the log is empty.
    pub last: Option<LogId>,
}

impl HardState {
    fn record(&mut self, record: Record) {
        match record {
            Record::Entry(id, _) | Record::Last(id) => self.last = Some(id),
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Committed(id) => self.committed = Some(id),
            Record::Truncate(id) => {
                let kept = self.last.filter(|last| id.is_some_and(|id| last.index <= id.index));
                self.last = kept.or(id.filter(|id| self.purged.is_none_or(|purged| id.index > purged.index)));
                self.last = self.last.or(self.purged);
            }
            Record::Purge(id) => {
                self.purged = Some(id);
                self.last = self.last.filter(|last| last.index > id.index).or(Some(id));
            }
            Record::File(_) => {}
        }
    }
}

/// The state of all groups and the liveness of all files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    groups: BTreeMap<GroupId, HardState>,
    /// Per file (generation), the highest index of each group that it holds and that was not truncated.
    files: BTreeMap<u64, BTreeMap<GroupId, u64>>,
}

impl Ledger {
    /// A group's state.
    pub fn group(&self, group: GroupId) -> HardState {
        self.groups.get(&group).copied().unwrap_or_default()
    }

    /// The state of all groups.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, HardState)> + '_ {
        self.groups.iter().map(|(group, state)| (*group, *state))
    }

    /// Takes in a row that stands in the file `generation`.
    pub fn record(&mut self, generation: u64, row: &Row) {
        if matches!(row.record, Record::File(_)) {
            return;
        }
        self.groups.entry(row.group).or_default().record(row.record);
        match row.record {
            Record::Entry(id, _) => {
                self.files.entry(generation).or_default().insert(row.group, id.index);
            }
            Record::Truncate(after) => self.truncate(row.group, after.map(|id| id.index)),
            _ => {}
        }
    }

    fn truncate(&mut self, group: GroupId, after: Option<u64>) {
        for file in self.files.values_mut() {
            let Some(highest) = file.get_mut(&group) else { continue };
            match after {
                Some(after) => *highest = after.min(*highest),
                None => drop(file.remove(&group)),
            }
        }
    }

    /// Whether every entry in the file `generation` was purged or replaced.
    pub fn is_dead(&self, generation: u64) -> bool {
        let Some(file) = self.files.get(&generation) else { return true };
        file.iter().all(|(group, highest)| self.group(*group).purged.is_some_and(|purged| purged.index >= *highest))
    }

    /// Forgets a file.
    pub fn forget_file(&mut self, generation: u64) {
        self.files.remove(&generation);
    }

    /// The rows that restate the state of all groups, for the start of a file of `file_bytes`.
    pub fn checkpoint(&self, file_bytes: u64) -> Vec<Row> {
        let mut rows = vec![Row::bare(GroupId::META, Record::File(file_bytes))];
        for (group, state) in self.groups() {
            rows.extend(state.vote.map(|vote| Row::bare(group, Record::Vote(vote))));
            rows.extend(state.committed.map(|id| Row::bare(group, Record::Committed(id))));
            rows.extend(state.purged.map(|id| Row::bare(group, Record::Purge(id))));
            rows.extend(state.last.map(|id| Row::bare(group, Record::Last(id))));
        }
        rows
    }

    /// The state that the rows of a start frame restate, and the bytes of its file.
    pub fn from_checkpoint(rows: &[Row]) -> Option<(Self, u64)> {
        let Some((Row { record: Record::File(bytes), .. }, rest)) = rows.split_first() else { return None };
        let mut ledger = Self::default();
        rest.iter().for_each(|row| ledger.record(0, row));
        Some((ledger, *bytes))
    }

    /// Whether both hold the same state of all groups.
    pub fn same_groups(&self, other: &Self) -> bool {
        let known =
            |ledger: &Self| ledger.groups().filter(|(_, state)| *state != HardState::default()).collect::<Vec<_>>();
        known(self) == known(other)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::Form;
    use super::*;
    use crate::types::log_id;
    use unibus_proto::id::NodeId;

    const G: GroupId = GroupId(3);

    fn at(index: u64) -> LogId {
        log_id(1, NodeId(1), index)
    }

    fn play(records: &[Record]) -> Ledger {
        let mut ledger = Ledger::default();
        records.iter().for_each(|record| ledger.record(1, &Row::bare(G, *record)));
        ledger
    }

    #[test]
    fn truncate_and_purge_move_the_ends() {
        let entries: Vec<_> = (1..=5).map(|index| Record::Entry(at(index), Form::Blank)).collect();
        let with = |more: &[Record]| play(&[&entries, more].concat()).group(G);
        assert_eq!(with(&[]).last, Some(at(5)));
        assert_eq!(with(&[Record::Truncate(Some(at(3)))]).last, Some(at(3)));
        assert_eq!(with(&[Record::Truncate(Some(at(9)))]).last, Some(at(5)));
        assert_eq!(with(&[Record::Truncate(None)]).last, None);
        assert_eq!(with(&[Record::Purge(at(2)), Record::Truncate(None)]).last, Some(at(2)));
        assert_eq!(with(&[Record::Purge(at(9))]).last, Some(at(9)));
        assert_eq!(with(&[Record::Purge(at(2))]).last, Some(at(5)));
    }

    #[test]
    fn a_file_dies_with_its_last_live_entry() {
        let mut ledger = play(&[Record::Entry(at(1), Form::Blank), Record::Entry(at(2), Form::Blank)]);
        assert!(!ledger.is_dead(1));
        ledger.record(2, &Row::bare(G, Record::Purge(at(1))));
        assert!(!ledger.is_dead(1));
        ledger.record(2, &Row::bare(G, Record::Truncate(Some(at(1)))));
        assert!(ledger.is_dead(1));
    }

    #[test]
    fn checkpoints_restate_everything() {
        let vote = Vote { leader_id: at(1).leader_id, committed: true };
        let ledger = play(&[Record::Vote(vote), Record::Entry(at(1), Form::Blank), Record::Committed(at(1))]);
        let (back, bytes) = Ledger::from_checkpoint(&ledger.checkpoint(77)).expect("starts with the size");
        assert!(back.same_groups(&ledger));
        assert_eq!(bytes, 77);
        assert_eq!(Ledger::from_checkpoint(&[]), None);
        assert!(play(&[Record::Truncate(None)]).same_groups(&Ledger::default()), "nothing is known of either");
    }
}
