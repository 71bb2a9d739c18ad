//! What lies on the disks at the end: sealed segments and snapshots, which must have the same bytes on every
//! node.

use std::time::Duration;

use openraft_rt::AsyncRuntime;
use unibus_proto::id::NodeId;

use crate::history::FileName;
use crate::invariants::Violation;
use crate::run::Run;
use crate::sim::env::SimEnv;
use crate::sim::runtime::SimRuntime;

const BROKEN: &str = "files can be read";
/// A leader reports the segments that were cut each second.
const REPORTED: Duration = Duration::from_secs(10);

impl Run {
    /// Has every group build a snapshot, reads all sealed segments back, and puts the hashes into the history.
    pub async fn scan_files(&self) -> Result<(), Violation> {
        self.wait_sealed().await?;
        for id in self.cluster.ids() {
            let broken = |what: String| Violation { invariant: BROKEN, what: format!("n{id}: {what}") };
            let node = self.cluster.node(id).ok_or_else(|| broken("does not run".into()))?;
            for group in self.cluster.groups().filter_map(|group| node.store().group(group)) {
                // What is not yet written to the segments is by this.
                let built = group.snapshot().await;
                built.map_err(|error| broken(format!("{}: {error}", group.id())))?;
                if let Some((segment, found)) = group.scrub().await.first() {
                    return Err(broken(format!("{}: segment {segment}: {found}", group.id())));
                }
                self.note_files(id, &group);
            }
        }
        Ok(())
    }

    /// Waits until the log has the hash of every segment that was cut, so that each replica compared its own.
    async fn wait_sealed(&self) -> Result<(), Violation> {
        let pause = Duration::from_millis(100);
        let mut waited = Duration::ZERO;
        while let Some(what) = self.cluster.ids().into_iter().find_map(|id| self.unsealed(id)) {
            if waited > REPORTED {
                return Err(Violation { invariant: BROKEN, what });
            }
            SimRuntime::sleep(pause).await;
            waited += pause;
        }
        Ok(())
    }

    fn unsealed(&self, id: NodeId) -> Option<String> {
        let node = self.cluster.node(id)?;
        self.cluster.groups().filter_map(|group| node.store().group(group)).find_map(|group| {
            let known = |segment| group.view(|machine| machine.sealed_segment(segment).is_some());
            let missing = group.sealed_segments().into_iter().find(|entry| !known(entry.id))?;
            Some(format!("n{id}: {}: the log does not know segment {}, which was cut", group.id(), missing.id))
        })
    }

    fn note_files(&self, node: NodeId, group: &unibus_raft_store::Group<SimEnv>) {
        let segments = group.sealed_segments().into_iter();
        let segments = segments.map(|entry| (FileName::Segment(entry.id), entry.hash));
        let snapshots = group.snapshots().into_iter().map(|(index, hash)| (FileName::Snapshot(index), hash));
        let mut history = self.recorder.history();
        for (name, hash) in segments.chain(snapshots) {
            history.files.entry((group.id(), name)).or_default().push((node, hash));
        }
    }
}
