//! The names of the files, and which of them may go.

use std::collections::BTreeSet;
use std::path::Path;

use super::SnapshotData;
use crate::env::{Disk, Env};
use crate::error::{StoreError, io_at};
use crate::segment::segment_id;
use crate::types::LogId;

/// Ends the name of a manifest.
pub const SUFFIX: &str = ".snapshot";
/// Ends the name of a file of rows.
pub const ROWS_SUFFIX: &str = ".rows";
/// Ends the name of a file that is being written.
pub const TMP_SUFFIX: &str = ".tmp";

/// The name of a manifest; names sort by index.
pub fn manifest_name(last: Option<LogId>) -> String {
    match last {
        Some(id) => format!("{:020}-{}-{}{SUFFIX}", id.index + 1, id.leader_id.term, id.leader_id.node_id),
        None => format!("{:020}-0-0{SUFFIX}", 0),
    }
}

/// The manifests in a directory, oldest first.
pub async fn manifests<E: Env>(env: &E, dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = env.disk().list(dir).await.map_err(io_at("list", dir))?;
    names.retain(|name| name.ends_with(SUFFIX));
    Ok(names)
}

/// Removes the manifests, files of rows and remainders that none of `listed` needs. A file that cannot be
/// removed only takes space; the next snapshot tries again.
pub async fn sweep_rows<E: Env>(env: &E, dir: &Path, listed: &[SnapshotData]) -> Result<(), StoreError> {
    let needed: BTreeSet<&Path> = listed
        .iter()
        .flat_map(|data| data.rows.iter().map(|(_, path)| path.as_path()).chain([data.path.as_path()]))
        .collect();
    for name in env.disk().list(dir).await.map_err(io_at("list", dir))? {
        let path = dir.join(&name);
        let is_ours = [SUFFIX, ROWS_SUFFIX, TMP_SUFFIX].iter().any(|suffix| name.ends_with(suffix));
        if is_ours && !needed.contains(path.as_path()) {
            remove(env, &path).await;
        }
    }
    Ok(())
}

/// Removes the segment files that were dropped: those that neither `newest`, the manifest of the newest
/// snapshot, nor any of `listed` names. What is newer than the newest snapshot is not judged.
pub async fn sweep_segments<E: Env>(
    env: &E,
    dir: &Path,
    newest: &SnapshotData,
    listed: &[SnapshotData],
) -> Result<(), StoreError> {
    let Some(last) = newest.manifest.segments.iter().map(|entry| entry.id).max() else { return Ok(()) };
    let needed = segments_of(listed.iter().chain([newest]));
    for name in env.disk().list(dir).await.map_err(io_at("list", dir))? {
        if segment_id(&name).is_some_and(|id| id < last && !needed.contains(&id)) {
            remove(env, &dir.join(&name)).await;
        }
    }
    Ok(())
}

/// The segment files that snapshots list.
pub fn segments_of<'a>(listed: impl IntoIterator<Item = &'a SnapshotData>) -> BTreeSet<u64> {
    listed.into_iter().flat_map(|data| data.manifest.segments.iter().map(|entry| entry.id)).collect()
}

async fn remove<E: Env>(env: &E, path: &Path) {
    if let Err(error) = env.disk().remove_file(path).await {
        tracing::warn!(path = %path.display(), %error, "a file that nothing lists is not removed");
    }
}
