//! The model of a file system that forgets: what programs see, what is on the platters, and the
//! ordered operations between the two.
//!
//! Bytes become durable by a sync of the file, names by a sync of their directory. A power cut keeps
//! what is durable and a random part of the rest: usually a prefix at sectors of 512 bytes with the
//! last one torn, sometimes any subset of sectors, sometimes a file's new size without its bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::sim::random::Random;

const SECTOR_BYTES: usize = 512;

/// A file's number.
pub type Inode = u64;

#[derive(Clone, Debug)]
enum Change {
    Data { offset: usize, bytes: Bytes },
    Length(usize),
}

#[derive(Debug, Default)]
struct File {
    visible: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// Number of changes that are durable; `changes_synced + pending.len()` were made.
    changes_synced: u64,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(PathBuf, Inode),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, Inode),
    MakeDir(PathBuf),
    RemoveDir(PathBuf),
}

#[derive(Clone, Debug, Default)]
struct Names {
    files: BTreeMap<PathBuf, Inode>,
    dirs: BTreeSet<PathBuf>,
}

/// The files of one node.
#[derive(Debug, Default)]
pub struct Filesystem {
    next: Inode,
    files: BTreeMap<Inode, File>,
    visible: Names,
    durable: Names,
    pending: Vec<NameChange>,
}

fn put(buffer: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if buffer.len() < end {
        buffer.resize(end, 0);
    }
    buffer[offset..end].copy_from_slice(bytes);
}

impl Change {
    fn apply(&self, buffer: &mut Vec<u8>) {
        match self {
            Self::Data { offset, bytes } => put(buffer, *offset, bytes),
            Self::Length(length) => buffer.resize(*length, 0),
        }
    }

    /// A part of this change, as a power cut may leave it.
    fn apply_torn(&self, buffer: &mut Vec<u8>, random: &mut Random) {
        let Self::Data { offset, bytes } = self else { return };
        let cut = if random.chance(500_000) {
            // Whole sectors.
            let end = random.below((bytes.len() / SECTOR_BYTES + 1) as u64) as usize * SECTOR_BYTES;
            end.saturating_sub(offset % SECTOR_BYTES)
        } else {
            random.below(bytes.len() as u64 + 1) as usize
        };
        put(buffer, *offset, &bytes[..cut.min(bytes.len())]);
        if random.chance(250_000) && buffer.len() < offset + bytes.len() {
            // The size reached the disk, the bytes did not.
            buffer.resize(offset + bytes.len(), 0);
        }
    }

    /// Each sector of this change, or not.
    fn apply_subset(&self, buffer: &mut Vec<u8>, random: &mut Random) {
        let Self::Data { offset, bytes } = self else {
            return if random.chance(500_000) {
                self.apply(buffer)
            };
        };
        let mut at = 0;
        while at < bytes.len() {
            let end = (at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES).min(bytes.len());
            if random.chance(500_000) {
                put(buffer, offset + at, &bytes[at..end]);
            }
            at = end;
        }
    }
}

impl File {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.visible);
        self.pending.push(change);
    }

    fn crash(&mut self, random: &mut Random, reorder: bool) {
        let pending = std::mem::take(&mut self.pending);
        self.changes_synced += pending.len() as u64;
        if reorder {
            pending.iter().for_each(|change| change.apply_subset(&mut self.durable, random));
        } else {
            let kept = random.below(pending.len() as u64 + 1) as usize;
            pending[..kept].iter().for_each(|change| change.apply(&mut self.durable));
            if let Some(torn) = pending.get(kept) {
                torn.apply_torn(&mut self.durable, random);
            }
        }
        self.visible.clone_from(&self.durable);
    }
}

impl NameChange {
    fn touches(&self, dir: &Path) -> bool {
        let is_in = |path: &Path| path.parent() == Some(dir);
        match self {
            Self::Link(path, _) | Self::Unlink(path) | Self::MakeDir(path) | Self::RemoveDir(path) => is_in(path),
            Self::Rename(from, to, _) => is_in(from) || is_in(to),
        }
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Self::Link(path, inode) => {
                names.files.insert(path.clone(), *inode);
            }
            Self::Unlink(path) => {
                names.files.remove(path);
            }
            Self::Rename(from, to, inode) => {
                if names.files.get(from) == Some(inode) {
                    names.files.remove(from);
                }
                names.files.insert(to.clone(), *inode);
            }
            Self::MakeDir(path) => {
                names.dirs.insert(path.clone());
            }
            Self::RemoveDir(path) => {
                names.dirs.retain(|dir| !dir.starts_with(path));
                names.files.retain(|file, _| !file.starts_with(path));
            }
        }
    }
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{}: no such file or directory", path.display()))
}

impl Filesystem {
    /// A file system with one empty, durable directory.
    pub fn new(root: &Path) -> Self {
        let mut names = Names::default();
        names.dirs.extend(root.ancestors().map(Path::to_path_buf));
        Self { visible: names.clone(), durable: names, ..Self::default() }
    }

    fn rename_names(&mut self, change: NameChange) {
        change.apply(&mut self.visible);
        self.pending.push(change);
    }

    fn parent_of<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        path.parent().filter(|parent| self.visible.dirs.contains(*parent)).ok_or_else(|| missing(path))
    }

    fn file(&self, inode: Inode) -> &File {
        self.files.get(&inode).expect("inodes of open files are kept until the next crash")
    }

    fn file_mut(&mut self, inode: Inode) -> &mut File {
        self.files.get_mut(&inode).expect("inodes of open files are kept until the next crash")
    }

    /// The file at `path`.
    pub fn find(&self, path: &Path) -> io::Result<Inode> {
        self.visible.files.get(path).copied().ok_or_else(|| missing(path))
    }

    /// Makes an empty file, in place of one that is there.
    pub fn create(&mut self, path: &Path) -> io::Result<Inode> {
        self.parent_of(path)?;
        self.next += 1;
        let inode = self.next;
        self.files.insert(inode, File::default());
        self.rename_names(NameChange::Link(path.to_path_buf(), inode));
        Ok(inode)
    }

    /// Whether a file or directory of this name is there.
    pub fn exists(&self, path: &Path) -> bool {
        self.visible.files.contains_key(path) || self.visible.dirs.contains(path)
    }

    /// Makes a directory and its parents. At a power cut it may be lost, with all in it, until its parent
    /// was synced.
    pub fn create_dir_all(&mut self, path: &Path) {
        let missing: Vec<_> = path.ancestors().filter(|dir| !self.visible.dirs.contains(*dir)).collect();
        for dir in missing.into_iter().rev() {
            self.rename_names(NameChange::MakeDir(dir.to_path_buf()));
        }
    }

    /// The names in a directory, sorted.
    pub fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        if !self.visible.dirs.contains(path) {
            return Err(missing(path));
        }
        let entries = self.visible.files.keys().chain(&self.visible.dirs);
        let inside = entries.filter(|entry| entry.parent() == Some(path));
        let mut names: Vec<_> =
            inside.filter_map(|entry| Some(entry.file_name()?.to_string_lossy().into_owned())).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Renames a file, replacing one at `to`.
    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        if self.visible.dirs.contains(from) {
            return self.rename_dir(from, to);
        }
        let inode = self.find(from)?;
        self.parent_of(to)?;
        self.rename_names(NameChange::Rename(from.to_path_buf(), to.to_path_buf(), inode));
        Ok(())
    }

    /// Renames a directory as its entries, one after another, so that a cut can fall between them only
    /// when nothing was synced.
    fn rename_dir(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.parent_of(to)?;
        let moved = |path: &Path| to.join(path.strip_prefix(from).expect("inside `from`"));
        let dirs: Vec<_> = self.visible.dirs.iter().filter(|dir| dir.starts_with(from)).cloned().collect();
        let files: Vec<_> = self.visible.files.iter().filter(|(path, _)| path.starts_with(from)).collect();
        let files: Vec<_> = files.into_iter().map(|(path, inode)| (path.clone(), *inode)).collect();
        // Directories move at once and durably: no code under test relies on losing such a move.
        for names in [&mut self.visible, &mut self.durable] {
            names.dirs.extend(dirs.iter().map(|dir| moved(dir)));
            for (path, inode) in &files {
                if names.files.remove(path).is_some() {
                    names.files.insert(moved(path), *inode);
                }
            }
            names.dirs.retain(|dir| !dir.starts_with(from));
        }
        Ok(())
    }

    /// Removes a file.
    pub fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        self.rename_names(NameChange::Unlink(path.to_path_buf()));
        Ok(())
    }

    /// Removes a directory and what is in it.
    pub fn remove_dir_all(&mut self, path: &Path) {
        if self.visible.dirs.contains(path) {
            self.rename_names(NameChange::RemoveDir(path.to_path_buf()));
        }
    }

    /// Makes the names in a directory durable.
    pub fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        if !self.visible.dirs.contains(path) {
            return Err(missing(path));
        }
        let (synced, pending): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|change| change.touches(path));
        synced.iter().for_each(|change| change.apply(&mut self.durable));
        self.pending = pending;
        Ok(())
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        let files = self.visible.files.values().filter_map(|inode| self.files.get(inode));
        files.map(|file| file.visible.len() as u64).sum()
    }

    /// A sync failed: the first `changes` changes of a file are never durable, and a later sync does not tell.
    pub fn fail_sync(&mut self, inode: Inode, changes: u64) {
        let file = self.file_mut(inode);
        let count = changes.saturating_sub(file.changes_synced) as usize;
        let lost = file.pending.drain(..count.min(file.pending.len())).count();
        file.changes_synced += lost as u64;
    }

    /// Writes bytes, not durably.
    pub fn write(&mut self, inode: Inode, offset: u64, bytes: Bytes) {
        self.file_mut(inode).change(Change::Data { offset: offset as usize, bytes });
    }

    /// Cuts or extends a file, not durably.
    pub fn set_len(&mut self, inode: Inode, length: u64) {
        self.file_mut(inode).change(Change::Length(length as usize));
    }

    /// A file's length.
    pub fn len(&self, inode: Inode) -> u64 {
        self.file(inode).visible.len() as u64
    }

    /// Exactly `length` bytes.
    pub fn read(&self, inode: Inode, offset: u64, length: usize) -> io::Result<Bytes> {
        let visible = &self.file(inode).visible;
        let start = offset as usize;
        let range = visible.get(start..start.saturating_add(length)).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{length} bytes from {offset} wanted, the file has {}", visible.len()),
            )
        })?;
        Ok(Bytes::copy_from_slice(range))
    }

    /// How many changes were made to a file: what a sync that begins now covers.
    pub fn changes(&self, inode: Inode) -> u64 {
        let file = self.file(inode);
        file.changes_synced + file.pending.len() as u64
    }

    /// Makes the first `changes` changes of a file durable.
    pub fn sync(&mut self, inode: Inode, changes: u64) {
        let file = self.file_mut(inode);
        let count = changes.saturating_sub(file.changes_synced) as usize;
        for change in file.pending.drain(..count.min(file.pending.len())) {
            change.apply(&mut file.durable);
            file.changes_synced += 1;
        }
    }

    /// The power goes: what was not synced stays in part or not at all.
    pub fn crash(&mut self, random: &mut Random) {
        let kept = random.below(self.pending.len() as u64 + 1) as usize;
        for change in std::mem::take(&mut self.pending).drain(..kept) {
            change.apply(&mut self.durable);
        }
        let dirs = self.durable.dirs.clone();
        self.durable.dirs.retain(|dir| dir.ancestors().all(|parent| dirs.contains(parent)));
        let dirs = &self.durable.dirs;
        self.durable.files.retain(|path, _| path.parent().is_some_and(|parent| dirs.contains(parent)));
        let live: BTreeSet<_> = self.durable.files.values().copied().collect();
        self.files.retain(|inode, _| live.contains(inode));
        for file in self.files.values_mut() {
            let reorder = random.chance(200_000);
            file.crash(random, reorder);
        }
        self.visible = self.durable.clone();
    }
}

#[cfg(test)]
mod tests;
