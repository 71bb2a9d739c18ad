//! What happens to the tables of a node between two starts: noticed, discarded, rebuilt, said in the log,
//! and nobody else sees a difference.

#[path = "../machine/tests/common/mod.rs"]
mod common;
mod lab;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Person, publish, room_id};
use lab::{Lab, LabEnv, SHARD};
use tracing_subscriber::fmt::MakeWriter;
use unibus_raft_store::StoreConfig;
use unibus_raft_store::env::{Instant, now};

const ROOM: &str = "agent.scout.in";

/// Collects what is logged.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Said {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Said {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().expect("no panic"))).expect("text")
    }
}

fn frequent() -> StoreConfig {
    StoreConfig { checkpoint_log_bytes: 4_000, snapshot_log_bytes: 40_000, ..Lab::small() }
}

async fn publish_all(lab: &Lab, ada: &Person, numbers: std::ops::Range<u64>) -> u64 {
    let mut index = 0;
    for number in numbers {
        let body = format!("{number} {}", "x".repeat(200));
        index = lab.propose(SHARD, publish(vec![ada.group(ROOM, "p", number, &[&body])])).await.index;
    }
    index
}

/// The directory of the shard's tree; there is one.
fn tree_of(lab: &Lab, node: u64) -> PathBuf {
    let group = lab.dir_of(node).join("groups/s1");
    let entries = fs::read_dir(group).expect("lists").map(|entry| entry.expect("entry").path());
    let mut trees = entries
        .filter(|path| path.is_dir() && path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("tree-")));
    let tree = trees.next().expect("a tree");
    assert_eq!(trees.next(), None, "only one");
    tree
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("creates");
    for entry in fs::read_dir(from).expect("lists") {
        let path = entry.expect("entry").path();
        let target = to.join(path.file_name().expect("named"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copies");
        }
    }
}

/// A tree closes on a thread of its own.
fn wait_until_closed(tree: &Path) {
    let begun = now::<LabEnv>();
    let file = fs::File::open(tree.join("db")).expect("there");
    while file.try_lock().is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not close");
        std::thread::yield_now();
    }
}

fn cut(tree: &Path, flip: bool) {
    let path = tree.join("db");
    let mut bytes = fs::read(&path).expect("reads");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("not empty");
    match flip {
        // In every sector: some of it is row data.
        true => (0..used).step_by(512).for_each(|at| bytes[at] ^= 1),
        false => bytes.truncate(used / 2),
    }
    fs::write(&path, bytes).expect("writes");
}

type Accident = fn(tree: &Path, older: &Path);

/// P9: damage is noticed and mended before anything is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_or_altered_tree_is_rebuilt_and_nobody_sees_a_difference() {
    let said = Said::default();
    let subscriber = tracing_subscriber::fmt().with_writer(said.clone()).with_ansi(false);
    subscriber.with_max_level(tracing::Level::INFO).init();
    let mut lab = Lab::formed(frequent()).await;
    let ada = Person::new("ada");
    lab.propose(SHARD, ada.create(ROOM)).await;
    let mut next = 1;
    let accidents: [(&str, Accident); 5] = [
        ("deleted", |tree, _| fs::remove_dir_all(tree).expect("deletes")),
        ("cut", |tree, _| cut(tree, false)),
        ("flipped", |tree, _| cut(tree, true)),
        ("an older copy", |tree, older| {
            fs::remove_dir_all(tree).expect("deletes");
            fs::rename(older, tree).expect("moves");
        }),
        ("its checkpoint file deleted", |tree, _| fs::remove_file(tree.with_file_name("checkpoint")).expect("deletes")),
    ];
    for (name, accident) in accidents {
        let older = lab.dir_of(1).join("older");
        lab.kill(1).await;
        wait_until_closed(&tree_of(&lab, 1));
        copy(&tree_of(&lab, 1), &older);
        lab.start(1).await;
        let before = lab.nodes[&1].group(SHARD).status().checkpoint_index;
        let index = publish_all(&lab, &ada, next..next + 60).await;
        next += 60;
        lab.agree(SHARD, index).await;
        let group = lab.nodes[&1].group(SHARD);
        // Two later ones: the copy is neither the newest nor the one before.
        lab::eventually("checkpoints", || (group.status().checkpoint_index > before + 40).then_some(())).await;
        drop(group);
        lab.kill(1).await;
        let tree = tree_of(&lab, 1);
        wait_until_closed(&tree);
        accident(&tree, &older);
        // Of a tree that is gone the name is free.
        let is_there = tree.exists();
        said.take();
        lab.start(1).await;
        lab.agree(SHARD, index).await;
        let text = said.take();
        assert!(text.contains("tables are discarded and rebuilt"), "{name} is not said: {text}");
        assert!(!is_there || tree_of(&lab, 1) != tree, "{name}: it is a new tree");
        let group = lab.nodes[&1].group(SHARD);
        group.view(|machine| machine.check()).unwrap_or_else(|broken| panic!("{name}: {broken}"));
        assert_eq!(lab.timeline(1, room_id(ROOM)).await, lab.timeline(2, room_id(ROOM)).await, "{name}");
        fs::remove_dir_all(&older).ok();
    }
}

/// A start goes on from the newest checkpoint, not from the newest snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_replays_what_is_above_the_checkpoint_only() {
    let mut lab = Lab::formed(StoreConfig { snapshot_log_bytes: u64::MAX, ..frequent() }).await;
    let ada = Person::new("ada");
    lab.propose(SHARD, ada.create(ROOM)).await;
    let index = publish_all(&lab, &ada, 1..200).await;
    lab.agree(SHARD, index).await;
    let group = lab.nodes[&2].group(SHARD);
    let checkpoint = lab::eventually("a checkpoint", || {
        let at = group.status().checkpoint_index;
        (at + 40 > index).then_some(at)
    })
    .await;
    assert_eq!(group.status().snapshot_index, 0, "no snapshot");
    drop(group);
    lab.kill(2).await;
    lab.start(2).await;
    let group = lab.nodes[&2].group(SHARD);
    assert!(group.status().checkpoint_index >= checkpoint, "it starts from the tree");
    lab.agree(SHARD, index).await;
    assert_eq!(lab.timeline(2, room_id(ROOM)).await.len(), 200);
}

/// That `apply` waits when it does not come is shown in `stuck_disk.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overlay_that_grows_makes_a_checkpoint_due() {
    let config = StoreConfig { overlay_bytes: 4_000, checkpoint_log_bytes: u64::MAX, ..frequent() };
    let lab = Lab::formed(config).await;
    let ada = Person::new("ada");
    lab.propose(SHARD, ada.create(ROOM)).await;
    for number in 1..150u64 {
        let name = format!("p{number}");
        lab.propose(SHARD, publish(vec![ada.group(ROOM, &name, 1, &["x"])])).await;
        for node in lab.nodes.values() {
            let bytes = node.group(SHARD).view(|machine| machine.rows().open_bytes());
            assert!(bytes < 2 * 4_000 + 4_000, "an overlay of {bytes} bytes");
        }
    }
    let status = lab.nodes[&1].group(SHARD).status();
    assert!(status.checkpoint_index > 0, "{status:?}");
}
