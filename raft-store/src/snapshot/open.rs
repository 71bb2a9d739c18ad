//! What a group starts from: its tables or a snapshot, with the segments that belong to it.

use std::path::Path;

use super::manifest::{self, Manifest};
use super::rows::RowPages;
use super::{SnapshotData, Snapshots, files, placed, segments_of, stage, verify_rows};
use crate::env::{Disk, Env, create_dir_durable};
use crate::error::{Damage, StoreError, io_at};
use crate::segment::{Place, SegmentEntry, Segments};
use crate::sum::open_whole;

/// What a group starts from.
pub struct Base<E: Env> {
    /// The snapshots that are whole.
    pub snapshots: Snapshots<E>,
    /// Rows and coverage of the newest of them; none when there is none, or the tables are newer.
    pub rows: Option<(Manifest, RowPages<E>)>,
    /// Whether the base is the tree that was offered, not a snapshot.
    pub is_tree: bool,
    /// The segments, cut to the base.
    pub segments: Segments<E>,
}

impl<E: Env> Snapshots<E> {
    /// Takes the tree or the newest snapshot that is whole, whichever is newer, with its segments. `purged`
    /// is the last index that the log no longer has: a base below it would leave a gap. `tree` is what the
    /// tables on disk hold.
    pub async fn open(
        env: &E,
        group_dir: &Path,
        place: Place,
        tail_bytes_max: u64,
        purged: Option<u64>,
        tree: Option<&Manifest>,
    ) -> Result<Base<E>, StoreError> {
        let (dir, segments_dir) = (group_dir.join("snapshots"), group_dir.join("segments"));
        create_dir_durable(env.disk(), &dir).await.map_err(io_at("create", &dir))?;
        create_dir_durable(env.disk(), &segments_dir).await.map_err(io_at("create", &segments_dir))?;
        Box::pin(stage::resume(env, &dir, &segments_dir, place)).await?;
        let opening = Opening { env, place, dir: &dir, segments_dir: &segments_dir, tail: tail_bytes_max };
        let (found, mut damage) = opening.manifests().await?;
        let mut based = opening.tree(tree, &found).await?;
        let is_tree = based.is_some();
        let mut kept: Vec<SnapshotData> = vec![];
        for data in found.iter().rev() {
            match Box::pin(opening.whole(data, based.is_none(), &found)).await {
                Ok(segments) => {
                    based = based.or(segments.map(|segments| (data.manifest.clone(), segments)));
                    kept.insert(0, data.clone());
                }
                Err(StoreError::Damaged(found)) => {
                    opening.discard(data, &found).await?;
                    damage = Some(found);
                }
                Err(error) => return Err(error),
            }
        }
        let index = based.as_ref().and_then(|(manifest, _)| manifest.index());
        if index < purged {
            let found = format!("snapshots up to index {index:?} while the log begins after {:?}", purged);
            let missing = Damage::new(&dir, 0, found, "a snapshot at or above the log's beginning");
            return Err(damage.unwrap_or(missing).into());
        }
        stage::discard_stale(env, &dir, place, index).await?;
        let (manifest, segments) = match based {
            Some((manifest, segments)) => (Some(manifest), segments),
            None => (None, opening.segments(&[], &[]).await?),
        };
        let newest = kept.last().filter(|_| !is_tree);
        let pages = newest.map(|data| RowPages::new(env.clone(), place, data.rows.clone()));
        let rows = manifest.filter(|_| !is_tree).zip(pages);
        let snapshots = Self::new(env.clone(), place, dir, segments_dir, kept);
        files::sweep_rows(env, &snapshots.dir, &snapshots.listed()).await?;
        Ok(Base { snapshots, rows, is_tree, segments })
    }
}

/// What is needed to choose a base.
struct Opening<'a, E: Env> {
    env: &'a E,
    place: Place,
    dir: &'a Path,
    segments_dir: &'a Path,
    tail: u64,
}

impl<E: Env> Opening<'_, E> {
    /// The manifests that are whole, oldest first.
    async fn manifests(&self) -> Result<(Vec<SnapshotData>, Option<Damage>), StoreError> {
        let (mut found, mut damage) = (vec![], None);
        for name in files::manifests(self.env, self.dir).await? {
            let path = self.dir.join(name);
            match manifest::read(self.env, &path, self.place).await {
                Ok(read) => found.push(placed(read, path, self.dir, self.segments_dir)),
                Err(StoreError::Damaged(error)) => {
                    self.set_aside(&path, &error).await?;
                    damage = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((found, damage))
    }

    /// The tree as a base, unless a snapshot is newer or their segments are not whole.
    async fn tree(
        &self,
        tree: Option<&Manifest>,
        found: &[SnapshotData],
    ) -> Result<Option<(Manifest, Segments<E>)>, StoreError> {
        let newest = found.last().and_then(SnapshotData::index);
        let Some(manifest) = tree.filter(|tree| tree.index() >= newest) else { return Ok(None) };
        match self.segments(&manifest.segments, found).await {
            Ok(segments) => Ok(Some((manifest.clone(), segments))),
            Err(StoreError::Damaged(error)) => {
                tracing::warn!(group = %self.place.group, %error, "the tables are not used, a snapshot is tried");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Verifies a snapshot, whole and with its segments when it is to be the base.
    async fn whole(
        &self,
        data: &SnapshotData,
        is_base: bool,
        found: &[SnapshotData],
    ) -> Result<Option<Segments<E>>, StoreError> {
        if !is_base {
            for (path, sum) in data.files() {
                open_whole(self.env, path, sum.length).await?;
            }
            return Ok(None);
        }
        verify_rows(self.env, self.place, data).await?;
        self.segments(&data.manifest.segments, found).await.map(Some)
    }

    async fn segments(&self, manifest: &[SegmentEntry], found: &[SnapshotData]) -> Result<Segments<E>, StoreError> {
        let dir = self.segments_dir.to_path_buf();
        Segments::load(self.env.clone(), dir, self.place, self.tail, manifest, &segments_of(found)).await
    }

    async fn discard(&self, data: &SnapshotData, damage: &Damage) -> Result<(), StoreError> {
        if data.rows.iter().any(|(_, path)| *path == damage.path)
            && self.env.disk().exists(&damage.path).await.map_err(io_at("look for", &damage.path))?
        {
            self.set_aside(&damage.path, damage).await?;
        }
        self.set_aside(&data.path, damage).await
    }

    /// Takes a file out of the way, for analysis.
    async fn set_aside(&self, path: &Path, error: &Damage) -> Result<(), StoreError> {
        tracing::error!(group = %self.place.group, %error, "snapshot is not used, an older one is tried");
        let to = path.with_extension("damaged");
        self.env.disk().rename(path, &to).await.map_err(io_at("rename", path))?;
        self.env.disk().sync_dir(self.dir).await.map_err(io_at("sync", self.dir))
    }
}
