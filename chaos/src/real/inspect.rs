//! What the nodes hold, compared: state hashes over the API, sealed segments as files.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use unibus_client::Client;
use unibus_proto::id::{GroupId, NodeId};

use crate::history::Status;
use crate::invariants::Violation;
use crate::record::Recorder;

/// After everything has healed, replicas stand at one index within this time (RELIABILITY section 2).
const CONVERGE: Duration = Duration::from_secs(30);
const SAMPLE: Duration = Duration::from_millis(150);
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// What was applied reaches the segment files within this time.
const WRITTEN: Duration = Duration::from_secs(5);

/// Asks one node what its replicas are doing.
#[derive(Clone)]
pub struct Watcher {
    node: NodeId,
    name: String,
    /// Pinned to the node.
    client: Client,
    life: Arc<AtomicU64>,
}

impl Watcher {
    /// A watcher of `node`.
    pub fn new(node: NodeId, name: &str, client: Client) -> Self {
        Self { node, name: name.into(), client, life: Arc::default() }
    }

    /// The node has begun another life.
    pub fn lives(&self, life: u64) {
        self.life.store(life, Ordering::SeqCst);
    }

    /// What its replicas say now; empty when there is no answer from one life of it.
    pub async fn statuses(&self, recorder: &Recorder) -> Vec<Status> {
        let life = self.life.load(Ordering::SeqCst);
        let asked = tokio::time::timeout(ANSWER_PATIENCE, self.client.status(Some(&self.name))).await;
        let Ok(Ok(answer)) = asked else { return Vec::new() };
        if self.life.load(Ordering::SeqCst) != life || answer.node_id != self.node.0 {
            return Vec::new();
        }
        let at = recorder.now_nanos();
        let own = answer.nodes.into_iter().filter(|node| node.node_id == self.node.0);
        own.flat_map(|node| node.replicas)
            .map(|replica| Status {
                at,
                node: self.node,
                life,
                group: GroupId(replica.group),
                term: replica.term,
                leads: replica.role == "leader" && replica.leader == self.node.0,
                committed: replica.committed_index,
                applied: replica.applied_index,
                state_hash: hash_of(&replica.state_hash).map(|hash| (replica.state_hash_index, hash)),
            })
            .filter(|status| status.applied > 0)
            .collect()
    }

    /// Up to which index its log has been purged, by group.
    pub async fn purged(&self) -> BTreeMap<GroupId, u64> {
        let Ok(answer) = self.client.status(Some(&self.name)).await else { return BTreeMap::new() };
        let own = answer.nodes.into_iter().filter(|node| node.node_id == self.node.0);
        own.flat_map(|node| node.replicas).map(|replica| (GroupId(replica.group), replica.purged_index)).collect()
    }

    /// Writes statuses into the history until dropped.
    pub fn sample(&self, recorder: &Recorder) -> Sampling {
        let (watcher, recorder) = (self.clone(), recorder.clone());
        Sampling(tokio::spawn(async move {
            loop {
                let statuses = watcher.statuses(&recorder).await;
                recorder.history().statuses.extend(statuses);
                tokio::time::sleep(SAMPLE).await;
            }
        }))
    }
}

/// A task that ends when dropped.
pub struct Sampling(JoinHandle<()>);

impl Drop for Sampling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn hash_of(hex: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    let digits = hex.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// Waits until each group's replicas have applied up to one index.
pub async fn converge(watchers: &[Watcher], recorder: &Recorder) -> Result<(), Violation> {
    let began = Instant::now();
    loop {
        let asked = watchers.iter().map(|watcher| watcher.statuses(recorder));
        let statuses: Vec<Status> = futures::future::join_all(asked).await.into_iter().flatten().collect();
        recorder.history().statuses.extend(statuses.iter().cloned());
        let mut groups: BTreeMap<GroupId, Vec<&Status>> = BTreeMap::new();
        statuses.iter().for_each(|status| groups.entry(status.group).or_default().push(status));
        let level = |replicas: &Vec<&Status>| {
            replicas.len() == watchers.len() && replicas.iter().all(|replica| replica.applied == replicas[0].applied)
        };
        if !groups.is_empty() && groups.values().all(level) {
            return Ok(());
        }
        if began.elapsed() > CONVERGE {
            let of = |replica: &&Status| format!("n{} {}", replica.node, replica.applied);
            let groups = groups
                .iter()
                .map(|(group, replicas)| format!("{group}: {}", replicas.iter().map(of).collect::<Vec<_>>().join(" ")));
            let what = format!("replicas do not meet in {CONVERGE:?}: {}", groups.collect::<Vec<_>>().join("; "));
            return Err(Violation { invariant: "I14 liveness", what });
        }
        tokio::time::sleep(SAMPLE / 3).await;
    }
}

/// A segment file: its group and its name.
type Key = (String, String);
type Files = BTreeMap<Key, PathBuf>;

/// A node at rest may have so much of a group's timeline only in its log: it writes segments out piece by piece,
/// and an ordered stop does not hurry that.
const UNWRITTEN_BYTES_MAX: u64 = 256 << 10;

/// A node's segment files.
struct Held {
    node: NodeId,
    /// In each group all but the newest.
    sealed: Files,
    /// The newest of each group, which may be open.
    newest: BTreeMap<String, String>,
}

impl Held {
    fn of(node: NodeId, data_dir: &Path) -> io::Result<Self> {
        let (mut sealed, mut newest) = (Files::new(), BTreeMap::new());
        for group in names(&data_dir.join("groups"))? {
            let dir = data_dir.join("groups").join(&group).join("segments");
            let mut segments = names(&dir).unwrap_or_default();
            segments.retain(|name| name.ends_with(".segment"));
            segments.sort_unstable();
            newest.extend(segments.pop().map(|name| (group.clone(), name)));
            sealed.extend(segments.into_iter().map(|name| ((group.clone(), name.clone()), dir.join(name))));
        }
        Ok(Self { node, sealed, newest })
    }

    /// What it lacks of the sealed files of all, that cannot be in its memory still.
    fn lost(&self, all: &BTreeMap<Key, u64>) -> Option<String> {
        let mut unwritten = BTreeMap::new();
        for ((group, name), bytes) in all {
            let newest = self.newest.get(group);
            if self.sealed.contains_key(&(group.clone(), name.clone())) || newest == Some(name) {
                continue;
            }
            let waits = unwritten.entry(group).or_insert(0);
            *waits += bytes;
            if newest > Some(name) || *waits > UNWRITTEN_BYTES_MAX {
                let Self { node, .. } = self;
                return Some(format!("group {group}: n{node} lacks {name}, which others have sealed"));
            }
        }
        None
    }
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Compares sealed segments, each file once unless asked for all.
#[derive(Default)]
pub struct SegmentCheck {
    /// Files that were equal on all nodes, with the length that they had.
    equal: BTreeMap<Key, u64>,
    /// Bytes compared so far.
    pub bytes: u64,
}

impl SegmentCheck {
    /// Files compared so far.
    pub fn files(&self) -> usize {
        self.equal.len()
    }

    /// Compares what all nodes have sealed; with `all`, also what was compared before, and nobody may lack any.
    /// What nodes that run are still writing is waited for.
    pub async fn compare(&mut self, dirs: &[(NodeId, PathBuf)], all: bool) -> Result<(), Violation> {
        let began = Instant::now();
        loop {
            match tokio::task::block_in_place(|| self.compare_once(dirs, all)) {
                Ok(()) => return Ok(()),
                Err(violation) if began.elapsed() > WRITTEN => return Err(violation),
                Err(_) => tokio::time::sleep(SAMPLE).await,
            }
        }
    }

    fn compare_once(&mut self, dirs: &[(NodeId, PathBuf)], all: bool) -> Result<(), Violation> {
        let broken = |what: String| Violation { invariant: "I10 sealed segments are byte-equal", what };
        let mut of_nodes = Vec::new();
        for (node, dir) in dirs {
            let held = Held::of(*node, dir).map_err(|error| broken(format!("n{node}: {}: {error}", dir.display())))?;
            of_nodes.push(held);
        }
        if all {
            let sealed = of_nodes.iter().flat_map(|held| &held.sealed);
            let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |found| found.len());
            let sealed = sealed.map(|(key, path)| (key.clone(), bytes(path))).collect();
            of_nodes.iter().try_for_each(|held| held.lost(&sealed).map_or(Ok(()), |what| Err(broken(what))))?;
        }
        let Some((Held { node: first, sealed, .. }, others)) = of_nodes.split_first() else { return Ok(()) };
        for (key, path) in sealed {
            if !all && self.equal.contains_key(key) {
                continue;
            }
            let others: Option<Vec<_>> =
                others.iter().map(|held| held.sealed.get(key).map(|path| (held.node, path))).collect();
            // Not sealed everywhere yet.
            let Some(others) = others else { continue };
            let read = |node: &NodeId, path: &Path| fs::read(path).map_err(|error| broken(format!("n{node}: {error}")));
            let bytes = read(first, path)?;
            for (node, path) in others {
                let theirs = read(&node, path)?;
                if theirs != bytes {
                    let at = theirs.iter().zip(&bytes).position(|(a, b)| a != b);
                    let (a, b) = (bytes.len(), theirs.len());
                    let what = format!(
                        "group {}, {}: n{first} has {a} bytes, n{node} has {b}, first difference at {at:?}",
                        key.0, key.1
                    );
                    return Err(broken(what));
                }
            }
            self.equal.insert(key.clone(), bytes.len() as u64);
            self.bytes += bytes.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, files: &[(&str, &str)]) -> (tempfile::TempDir, (NodeId, PathBuf)) {
        let dir = tempfile::tempdir().unwrap();
        let segments = dir.path().join("groups/1/segments");
        fs::create_dir_all(&segments).unwrap();
        for (name, bytes) in files {
            fs::write(segments.join(name), bytes).unwrap();
        }
        let at = (NodeId(id), dir.path().to_owned());
        (dir, at)
    }

    #[test]
    fn a_sealed_segment_that_differs_is_caught_and_the_open_one_may() {
        let one = node(1, &[("1.segment", "same"), ("2.segment", "open")]);
        let two = node(2, &[("1.segment", "same"), ("2.segment", "op")]);
        let mut check = SegmentCheck::default();
        check.compare_once(&[one.1.clone(), two.1.clone()], false).unwrap();
        assert_eq!((check.files(), check.bytes), (1, 4));
        fs::write(two.1.1.join("groups/1/segments/1.segment"), "sAme").unwrap();
        check.compare_once(&[one.1.clone(), two.1.clone()], false).unwrap();
        let found = check.compare_once(&[one.1.clone(), two.1.clone()], true).unwrap_err();
        assert!(found.what.contains("first difference at Some(1)"), "{found}");
    }

    #[test]
    fn a_sealed_segment_that_a_node_lacks_is_caught_unless_it_may_wait_in_memory() {
        let large = "x".repeat(300 << 10);
        let whole = node(1, &[("1.segment", &large), ("2.segment", "b"), ("3.segment", "open")]);
        let all_of =
            |two: &(NodeId, PathBuf)| SegmentCheck::default().compare_once(&[whole.1.clone(), two.clone()], true);
        let holds = |files: &[(&str, &str)]| node(2, files);
        // A hole, on the side of either node.
        let hole = holds(&[("2.segment", "b"), ("3.segment", "open")]);
        let found = all_of(&hole.1).unwrap_err();
        assert!(found.what.contains("n2 lacks 1.segment"), "{found}");
        let found = SegmentCheck::default().compare_once(&[hole.1.clone(), whole.1.clone()], true).unwrap_err();
        assert!(found.what.contains("n2 lacks 1.segment"), "{found}");
        // The end: little may wait in memory, much not.
        assert_eq!(all_of(&holds(&[("1.segment", &large)]).1), Ok(()));
        assert_eq!(all_of(&holds(&[("1.segment", &large), ("2.segment", "b")]).1), Ok(()));
        assert!(all_of(&holds(&[]).1).is_err());
    }

    #[test]
    fn hashes_are_read_from_hex() {
        assert_eq!(hash_of(&"0f".repeat(32)), Some([15; 32]));
        assert_eq!(hash_of(""), None);
        assert_eq!(hash_of(&"zz".repeat(32)), None);
    }
}
