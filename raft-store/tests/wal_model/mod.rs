//! What a WAL must hold, kept beside it: a script of random operations, each awaited, and the state after
//! each of them.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::oneshot;
use unibus_proto::id::{ClusterId, GroupId, NodeId};
use unibus_raft_store::env::{Env, Rng};
use unibus_raft_store::testing::SeededRng;
use unibus_raft_store::testing::crash::CrashEnv;
use unibus_raft_store::types::{LogId, Vote, log_id};
use unibus_raft_store::wal::recover::Recovered;
use unibus_raft_store::wal::{Done, Form, GroupLog, LogEntry, Wal, WalConfig, WalError};

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
pub const DIR: &str = "/node/wal";
const GROUPS: u64 = 3;

/// A group's log: everything but the commit index, which nobody is promised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    pub entries: BTreeMap<u64, (LogId, Bytes)>,
}

impl Log {
    pub fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, (id, _))| *id).or(self.purged)
    }
}

pub type Logs = BTreeMap<GroupId, Log>;

/// The state after each step; `states[0]` is the empty one.
#[derive(Clone, Debug)]
pub struct History {
    pub states: Vec<Logs>,
}

impl History {
    pub fn newest(&self) -> &Logs {
        self.states.last().expect("starts with the empty state")
    }
}

/// An operation on a group.
#[derive(Clone, Debug)]
pub enum Step {
    Append { term: u64, sizes: Vec<usize> },
    Vote(Vote),
    Truncate { back: u64 },
    Purge { ahead: i64 },
}

/// Runs random steps against a WAL on a disk in memory.
pub struct Script {
    pub env: CrashEnv,
    pub config: WalConfig,
    pub wal: Wal<CrashEnv>,
    pub rng: SeededRng,
    pub history: History,
    /// Whether steps purge: then files are recycled.
    pub purges: bool,
}

impl Script {
    pub async fn create(seed: u64, config: WalConfig) -> Self {
        let env = CrashEnv::new(seed);
        Wal::create(&env, Path::new(DIR), CLUSTER, &config).await.expect("create");
        let wal = open(&env, &config).await.expect("open");
        let history = History { states: vec![Logs::new()] };
        Self { env, config, wal, rng: SeededRng::new(seed), history, purges: true }
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    /// One random step on one random group; its outcome joins the history, acknowledged or not.
    pub async fn step(&mut self) -> io::Result<()> {
        let group = GroupId(self.below(GROUPS) as u32);
        let step = match self.below(16) {
            0..10 => {
                let sizes = (0..1 + self.below(3)).map(|_| self.below(200) as usize).collect();
                Step::Append { term: self.history.states.len() as u64 / 10, sizes }
            }
            10 | 11 => Step::Vote(vote(self.history.states.len() as u64, self.below(2) == 0)),
            12 | 13 => Step::Truncate { back: self.below(4) },
            _ if !self.purges => Step::Truncate { back: 0 },
            _ => Step::Purge { ahead: self.below(8) as i64 - 6 },
        };
        let expected = expect(self.history.newest(), group, &step, &self.rng);
        let result = perform(
            &self.wal.group(group),
            &self.history.newest().get(&group).cloned(),
            &expected.get(&group).cloned().unwrap_or_default(),
        )
        .await;
        self.history.states.push(expected);
        result
    }

    /// The bytes of the files in use.
    pub fn images(&self) -> BTreeMap<u64, Vec<u8>> {
        let files = (1..10_000).filter_map(|generation| {
            let path = PathBuf::from(DIR).join(unibus_raft_store::wal::recover::file_name(generation));
            Some((generation, self.env.disk().bytes(&path)?))
        });
        files.collect()
    }
}

pub async fn open(env: &CrashEnv, config: &WalConfig) -> Result<Wal<CrashEnv>, WalError> {
    Wal::open(env, Path::new(DIR), CLUSTER, config.clone()).await
}

pub fn vote(term: u64, committed: bool) -> Vote {
    Vote { leader_id: log_id(term, NodeId(1 + term % 3), 0).leader_id, committed }
}

/// The state after `step` on `group`.
pub fn expect(before: &Logs, group: GroupId, step: &Step, rng: &SeededRng) -> Logs {
    let mut after = before.clone();
    let log = after.entry(group).or_default();
    let next = log.last().map_or(0, |last| last.index + 1);
    match step {
        Step::Append { term, sizes } => {
            for (index, size) in (next..).zip(sizes) {
                let mut payload = vec![0; *size];
                rng.fill(&mut payload);
                log.entries.insert(index, (log_id(*term, NodeId(1 + term % 3), index), payload.into()));
            }
        }
        Step::Vote(vote) => log.vote = Some(*vote),
        Step::Truncate { back } => {
            let keep = next.saturating_sub(*back);
            log.entries.retain(|index, _| *index < keep);
        }
        Step::Purge { ahead } => {
            let upto = (next as i64 + ahead).max(0) as u64;
            if log.purged.is_none_or(|purged| purged.index < upto) {
                let id = log.entries.get(&upto).map_or(log_id(99, NodeId(1), upto), |(id, _)| *id);
                log.purged = Some(id);
                log.entries.retain(|index, _| *index > upto);
            }
        }
    }
    after.retain(|_, log| *log != Log::default());
    after
}

/// Does to the WAL what leads from `before` to `after`, and waits until it is on disk.
pub async fn perform(log: &GroupLog<CrashEnv>, before: &Option<Log>, after: &Log) -> io::Result<()> {
    let before = before.clone().unwrap_or_default();
    if before.vote != after.vote {
        return log.save_vote(after.vote.expect("votes are not taken back")).await;
    }
    if before.purged != after.purged {
        log.purge(after.purged.expect("purges are not taken back"))?;
        return log.barrier().await;
    }
    let new: Vec<_> = after.entries.iter().filter(|(index, _)| !before.entries.contains_key(index)).collect();
    if new.is_empty() {
        log.truncate_after(after.last())?;
        return log.barrier().await;
    }
    let entries = new.into_iter().map(|(_, (id, payload))| LogEntry::new(*id, Form::Normal, payload.clone())).collect();
    let (done, written) = completion();
    log.append(entries, done).await?;
    written.await.expect("the callback is called")
}

pub fn completion() -> (Done, oneshot::Receiver<io::Result<()>>) {
    let (sender, receiver) = oneshot::channel();
    (Box::new(move |result| drop(sender.send(result))), receiver)
}

/// What the handles of an open WAL show.
pub async fn logs_shown(wal: &Wal<CrashEnv>) -> Logs {
    let mut logs = Logs::new();
    for group in wal.groups() {
        let handle = wal.group(group);
        let state = handle.state();
        let entries = handle.read(0..u64::MAX, u64::MAX).await.expect("is readable");
        let entries = entries.into_iter().map(|entry| (entry.log_id.index, (entry.log_id, entry.payload))).collect();
        let log = Log { vote: state.vote, purged: state.purged, entries };
        assert_eq!(log.last(), state.last, "group {group}");
        if log != Log::default() {
            logs.insert(group, log);
        }
    }
    logs
}

/// What recovery found in the images.
pub fn logs_of(images: &BTreeMap<u64, Vec<u8>>, recovered: &Recovered) -> Logs {
    let mut logs = Logs::new();
    for (group, index) in &recovered.indexes {
        let found = index.find(0..u64::MAX, u64::MAX);
        let payload = |place: unibus_raft_store::wal::index::Place| {
            let start = place.offset as usize;
            Bytes::copy_from_slice(&images[&place.generation][start..start + place.length as usize])
        };
        let entries =
            found.into_iter().map(|found| (found.log_id.index, (found.log_id, payload(found.place)))).collect();
        let log = Log { vote: index.vote, purged: index.purged(), entries };
        assert_eq!(log.last(), index.last(), "group {group}");
        if log != Log::default() {
            logs.insert(*group, log);
        }
    }
    logs
}
