//! Whose directory this is: cluster, node, and a uuid of the directory itself.
//!
//! Minted once, in three fsynced steps: `identity.minting` names the ids, the store makes its WAL, and
//! a rename to `identity` says that both are there. A crash in between starts over; an identity without
//! a WAL, or a WAL without an identity, is a lost or copied disk and is refused, because a node that
//! forgot what it voted for can undo what others were promised.
//!
//! The promise (`promise`) is plain data of cluster formation: which plan, which initializer, and, once
//! the cluster has formed, with which members.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use unibus_proto::id::{ClusterId, DirectoryId, NodeId};

use crate::env::{Disk, DiskFile, Env, OpenMode, Rng, create_dir_durable, write_whole};

mod agreed;
mod text;

pub use agreed::{Agreed, Differing};
use text::Fields;

/// The newest format of a data directory that this version reads and writes.
pub const FORMAT_VERSION: u32 = 1;

const IDENTITY: &str = "identity";
const MINTING: &str = "identity.minting";
const PROMISE: &str = "promise";
const LOCK: &str = "lock";
/// The directory of the write-ahead log inside the data directory.
pub const WAL_DIR: &str = "wal";

/// Whose directory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The directory itself: another disk is another one.
    pub directory: DirectoryId,
    /// What the other nodes must have the same; none where there is nobody to compare with.
    pub agreed: Option<Agreed>,
}

/// Why a data directory is refused.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It belongs to another cluster.
    #[error(
        "data directory {path}: it belongs to cluster {found}, expected cluster {expected}; \
         point the node at its own directory"
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        found: ClusterId,
        /// The configured one.
        expected: ClusterId,
    },
    /// It belongs to another node.
    #[error(
        "data directory {path}: it belongs to node {found}, expected node {expected}; \
         point the node at its own directory"
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Its node.
        found: NodeId,
        /// The configured one.
        expected: NodeId,
    },
    /// A newer version wrote it.
    #[error(
        "data directory {path}: format version {found}, expected at most {FORMAT_VERSION}; \
         start the newer unibus-node that wrote it"
    )]
    NewerVersion {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Another process works in it.
    #[error("data directory {path}: in use by another process, expected to be the only one; stop the other node")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It was wiped in part, or its disk was lost.
    #[error(
        "data directory {path}: it has an identity (node {node}) but no write-ahead log, expected both; \
         the disk was wiped or lost, and under its old id the node could undo what the cluster acknowledged: \
         put a new node in its place: `unibus-node plan --add`, then `unibusctl node replace`; the others go on \
         while they are a majority"
    )]
    WithoutWal {
        /// The directory.
        path: PathBuf,
        /// The node.
        node: NodeId,
    },
    /// It was copied in part.
    #[error(
        "data directory {path}: it has a write-ahead log but no identity, expected both; \
         restore the file `identity`, or put a new node in its place: `unibus-node plan --add`, then \
         `unibusctl node replace`; the others go on while they are a majority"
    )]
    WithoutIdentity {
        /// The directory.
        path: PathBuf,
    },
    /// It was written with another value of a setting by which replicas are placed or cut.
    #[error(
        "data directory {path}: it was written with {} = {}, the node is started with {}; all nodes have the same for \
         ever, or their replicas differ: set it back in node.toml",
        setting.key, setting.one, setting.other
    )]
    OtherSetting {
        /// The directory.
        path: PathBuf,
        /// The setting: what the directory has, and what was configured.
        setting: Differing,
    },
    /// A file in it does not hold what it must.
    #[error(
        "{file}: found {found}, expected {expected}; put a new node in its place: `unibus-node plan --add`, then \
         `unibusctl node replace`; the others go on while they are a majority"
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What was found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The operating system refused.
    #[error("{step} {path}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

/// Held while a directory is in use by this process.
pub struct DirectoryLock<E: Env>(<E::Disk as Disk>::Lock);

impl Identity {
    /// Locks `dir`, created when missing, and loads its identity; an empty directory gets a new one.
    /// The lock must live as long as the node.
    pub async fn open<E: Env>(
        env: &E,
        dir: &Path,
        cluster: ClusterId,
        node: NodeId,
    ) -> Result<(Self, DirectoryLock<E>), IdentityError> {
        create_dir_durable(env.disk(), dir).await.map_err(io_at("create", dir))?;
        let lock = lock::<E>(env, dir).await?;
        let found = match Self::load(env, dir).await? {
            Some(found) => found,
            None => Self::mint(env, dir, cluster, node).await?,
        };
        let path = || dir.to_path_buf();
        if found.cluster != cluster {
            return Err(IdentityError::OtherCluster { path: path(), found: found.cluster, expected: cluster });
        }
        if found.node != node {
            return Err(IdentityError::OtherNode { path: path(), found: found.node, expected: node });
        }
        Ok((found, lock))
    }

    /// The same with what other nodes must have the same.
    pub fn agreeing(self, agreed: Agreed) -> Self {
        Self { agreed: Some(agreed), ..self }
    }

    /// The identity in `dir`; none when the directory is blank. Refuses an identity without a WAL and
    /// the reverse.
    pub async fn load<E: Env>(env: &E, dir: &Path) -> Result<Option<Self>, IdentityError> {
        let wal = has_wal(env, dir).await?;
        if let Some(found) = Self::read(env, &dir.join(IDENTITY)).await? {
            let without = IdentityError::WithoutWal { path: dir.to_path_buf(), node: found.node };
            return if wal { Ok(Some(found)) } else { Err(without) };
        }
        match Self::read(env, &dir.join(MINTING)).await? {
            Some(minting) => Ok(Some(minting)),
            None if wal => Err(IdentityError::WithoutIdentity { path: dir.to_path_buf() }),
            None => Ok(None),
        }
    }

    /// Whether the directory was minted but its WAL not yet finished: nothing in the WAL counts.
    pub(crate) async fn is_minting<E: Env>(env: &E, dir: &Path) -> Result<bool, IdentityError> {
        let minted = exists(env, &dir.join(IDENTITY)).await?;
        Ok(!minted && exists(env, &dir.join(MINTING)).await?)
    }

    /// Says durably that identity and WAL are both there.
    pub(crate) async fn finish_minting<E: Env>(env: &E, dir: &Path) -> Result<(), IdentityError> {
        let to = dir.join(IDENTITY);
        env.disk().rename(&dir.join(MINTING), &to).await.map_err(io_at("rename", &to))?;
        env.disk().sync_dir(dir).await.map_err(io_at("sync", dir))
    }

    async fn mint<E: Env>(env: &E, dir: &Path, cluster: ClusterId, node: NodeId) -> Result<Self, IdentityError> {
        let mut uuid = [0; 16];
        env.rng().fill(&mut uuid);
        let identity = Self { cluster, node, directory: DirectoryId(uuid), agreed: None };
        let mut fields = Fields::new("unibus-directory");
        fields.push("cluster", identity.cluster);
        fields.push("node", identity.node);
        fields.push("directory", identity.directory);
        write(env, dir, MINTING, fields).await?;
        Ok(identity)
    }

    async fn read<E: Env>(env: &E, file: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(fields) = read_fields(env, file, "unibus-directory").await? else { return Ok(None) };
        Ok(Some(Self {
            cluster: fields.take(file, "cluster", "a cluster id")?,
            node: NodeId(fields.take(file, "node", "a node id")?),
            directory: fields.take(file, "directory", "a directory id")?,
            agreed: None,
        }))
    }
}

/// What a node bound itself to when the cluster was formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// SHA-256 of the plan.
    pub plan_hash: [u8; 32],
    /// The directory of the node that initializes.
    pub initializer: DirectoryId,
    /// The first membership, once the cluster has formed.
    pub formed: Option<BTreeMap<NodeId, DirectoryId>>,
}

impl Promise {
    /// The promise in `dir`, if one was made.
    pub async fn load<E: Env>(env: &E, dir: &Path) -> Result<Option<Self>, IdentityError> {
        let file = &dir.join(PROMISE);
        let Some(fields) = read_fields(env, file, "unibus-promise").await? else { return Ok(None) };
        let plan: ClusterId = fields.take(file, "plan", "32 hexadecimal digits")?;
        let rest: ClusterId = fields.take(file, "plan-rest", "32 hexadecimal digits")?;
        let mut plan_hash = [0; 32];
        plan_hash[..16].copy_from_slice(&plan.0);
        plan_hash[16..].copy_from_slice(&rest.0);
        let members = fields.all("member").map(|member| parse_member(file, member)).collect::<Result<_, _>>()?;
        let formed = fields.take::<u32>(file, "formed", "0 or 1")? == 1;
        let initializer = fields.take(file, "initializer", "a directory id")?;
        Ok(Some(Self { plan_hash, initializer, formed: formed.then_some(members) }))
    }

    /// Makes the promise durable, in place of an earlier one.
    pub async fn save<E: Env>(&self, env: &E, dir: &Path) -> Result<(), IdentityError> {
        let (plan, rest) = self.plan_hash.split_at(16);
        let half = |bytes: &[u8]| ClusterId::from_bytes(bytes).expect("16 of 32 bytes");
        let mut fields = Fields::new("unibus-promise");
        fields.push("plan", half(plan));
        fields.push("plan-rest", half(rest));
        fields.push("initializer", self.initializer);
        fields.push("formed", u32::from(self.formed.is_some()));
        for (node, directory) in self.formed.iter().flatten() {
            fields.push("member", format_args!("{node} {directory}"));
        }
        write(env, dir, PROMISE, fields).await
    }
}

fn parse_member(file: &Path, member: &str) -> Result<(NodeId, DirectoryId), IdentityError> {
    let parse = || {
        let (node, directory) = member.split_once(' ')?;
        Some((NodeId(node.parse().ok()?), directory.parse().ok()?))
    };
    parse().ok_or_else(|| IdentityError::Damaged {
        file: file.to_path_buf(),
        found: format!("member {member:?}"),
        expected: "a node id and a directory id",
    })
}

async fn lock<E: Env>(env: &E, dir: &Path) -> Result<DirectoryLock<E>, IdentityError> {
    let file = dir.join(LOCK);
    match env.disk().lock(&file).await {
        Ok(lock) => Ok(DirectoryLock(lock)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(IdentityError::InUse { path: dir.to_path_buf() }),
        Err(e) => Err(io_at("lock", &file)(e)),
    }
}

async fn has_wal<E: Env>(env: &E, dir: &Path) -> Result<bool, IdentityError> {
    let wal = dir.join(WAL_DIR);
    if !exists(env, &wal).await? {
        return Ok(false);
    }
    Ok(env.disk().list(&wal).await.map_err(io_at("list", &wal))?.iter().any(|name| name.ends_with(".wal")))
}

async fn exists<E: Env>(env: &E, path: &Path) -> Result<bool, IdentityError> {
    env.disk().exists(path).await.map_err(io_at("look for", path))
}

async fn read_fields<E: Env>(env: &E, file: &Path, what: &'static str) -> Result<Option<Fields>, IdentityError> {
    if !exists(env, file).await? {
        return Ok(None);
    }
    let read = async {
        let open = env.disk().open(file, OpenMode::Read).await?;
        let len = open.len().await?.min(text::BYTES_MAX);
        open.read_at(0, len as usize).await
    };
    let bytes = read.await.map_err(io_at("read", file))?;
    Fields::parse(file, what, &bytes).map(Some)
}

async fn write<E: Env>(env: &E, dir: &Path, name: &str, fields: Fields) -> Result<(), IdentityError> {
    let text = fields.render().into();
    write_whole(env.disk(), dir, name, text).await.map_err(io_at("write", &dir.join(name)))
}

fn io_at<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> IdentityError + 'a {
    move |source| IdentityError::Io { step, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests;
