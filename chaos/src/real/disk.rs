//! A disk of a node's own: an ext4 file system in an image file behind a loop device. Its power can be
//! cut: what was not synced is gone, and nothing more reaches it until it is mounted again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::ioctl::{Setter, ioctl, opcode};

/// `EXT4_IOC_SHUTDOWN` = `FS_IOC_SHUTDOWN` of the kernel's `ext4.h` and `xfs_fs.h`.
const SHUTDOWN: u32 = opcode::read::<u32>(b'X', 125);
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: what is only in the journal's memory is lost as well.
const NO_LOG_FLUSH: u32 = 2;
/// A process that was killed may hold the file system for a moment.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
const FILLER: &str = "filler";

/// A file system of its own. Unmounted when dropped.
pub struct LoopDisk {
    image: PathBuf,
    at: PathBuf,
    mounted: bool,
}

impl LoopDisk {
    /// Makes `<dir>/<name>.img` of `bytes` (sparse) and mounts it at `<dir>/<name>`.
    pub fn create(dir: &Path, name: &str, bytes: u64) -> Result<Self, String> {
        let image = dir.join(format!("{name}.img"));
        let at = dir.join(name);
        let failed = |error: io::Error| format!("create {}: {error}", image.display());
        File::create_new(&image).and_then(|file| file.set_len(bytes)).map_err(failed)?;
        fs::create_dir(&at).map_err(failed)?;
        // Nothing is kept back for root, who runs this: a full disk is to be full.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let mut disk = Self { image, at, mounted: false };
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Cuts the power: unsynced bytes are gone, and every access fails until [`Self::restore_power`].
    pub fn cut_power(&self) -> Result<(), String> {
        let cut = File::open(&self.at).and_then(|root| shut_down(&root));
        cut.map_err(|error| format!("cut the power of {}: {error}", self.at.display()))
    }

    /// Brings it back as after a power cut. No process may use it.
    pub fn restore_power(&mut self) -> Result<(), String> {
        self.unmount()?;
        // Mounting replays the journal; `fsck` is for when that is not enough.
        if let Err(first) = self.mount() {
            let repaired = run(Command::new("fsck.ext4").args(["-p", "-f"]).arg(&self.image));
            self.mount().map_err(|error| format!("{first}; fsck: {:?}; {error}", repaired.err()))?;
        }
        Ok(())
    }

    /// Takes all space but `leave_bytes`; answers how much it took.
    pub fn fill(&self, leave_bytes: u64) -> Result<u64, String> {
        let failed = |error: io::Error| format!("fill {}: {error}", self.at.display());
        let file = OpenOptions::new().create(true).append(true).open(self.at.join(FILLER)).map_err(failed)?;
        let mut size = file.metadata().map_err(failed)?.len();
        let before = size;
        let mut step = self.free_bytes()?.saturating_sub(leave_bytes);
        // The file system needs blocks for the filler's own tree: ever smaller pieces, until none fits.
        while step >= 4096 && self.free_bytes()? > leave_bytes {
            match fallocate(&file, FallocateFlags::empty(), size, step) {
                Ok(()) => size += step,
                Err(rustix::io::Errno::NOSPC) => step /= 2,
                Err(error) => return Err(failed(error.into())),
            }
            step = step.min(self.free_bytes()?.saturating_sub(leave_bytes));
        }
        file.sync_all().map_err(failed)?;
        Ok(size - before)
    }

    /// Gives back what [`Self::fill`] took.
    pub fn free(&self) -> Result<(), String> {
        let removed = fs::remove_file(self.at.join(FILLER)).and_then(|()| File::open(&self.at)?.sync_all());
        removed.map_err(|error| format!("free {}: {error}", self.at.display()))
    }

    /// Bytes that can still be written.
    pub fn free_bytes(&self) -> Result<u64, String> {
        let found = statvfs(&self.at).map_err(|error| format!("free space of {}: {error}", self.at.display()))?;
        Ok(found.f_bavail * found.f_frsize)
    }

    fn mount(&mut self) -> Result<(), String> {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop,nodev,nosuid"]).arg(&self.image).arg(&self.at))?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        let began = Instant::now();
        while self.mounted {
            match run(Command::new("umount").arg(&self.at)) {
                Ok(()) => self.mounted = false,
                Err(error) if began.elapsed() > UNMOUNT_PATIENCE => return Err(error),
                Err(_) => sleep(PAUSE),
            }
        }
        Ok(())
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{error}; it is detached and goes when nobody uses it");
            run(Command::new("umount").arg("--lazy").arg(&self.at)).ok();
        }
    }
}

#[allow(unsafe_code)]
fn shut_down(root: &File) -> io::Result<()> {
    // SAFETY: the kernel reads one `u32` through the pointer and writes nothing (`ext4_ioctl_shutdown`).
    let request = unsafe { Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH) };
    // SAFETY: as above; the request lives until the call returns.
    unsafe { ioctl(root, request) }.map_err(io::Error::from)
}

fn run(command: &mut Command) -> Result<(), String> {
    let what = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{what}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{what}: {}, {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::doctor;

    #[test]
    fn what_was_synced_outlives_a_power_cut_and_nothing_else_does() {
        if let Err(why) = doctor::loop_disks() {
            return eprintln!("SKIPPED: {why}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut disk = LoopDisk::create(dir.path(), "d", 64 << 20).unwrap();
        let (kept, lost) = (disk.path().join("kept"), disk.path().join("lost"));
        fs::write(&kept, "synced").unwrap();
        File::open(&kept).unwrap().sync_all().unwrap();
        File::open(disk.path()).unwrap().sync_all().unwrap();
        fs::write(&lost, "not synced").unwrap();
        disk.cut_power().unwrap();
        assert!(fs::write(&kept, "dead").is_err(), "a disk without power took a write");
        disk.restore_power().unwrap();
        assert_eq!(fs::read_to_string(&kept).unwrap(), "synced");
        assert_ne!(fs::read_to_string(&lost).unwrap_or_default(), "not synced");
    }

    #[test]
    fn a_full_disk_takes_nothing_until_it_is_freed() {
        if let Err(why) = doctor::loop_disks() {
            return eprintln!("SKIPPED: {why}");
        }
        let dir = tempfile::tempdir().unwrap();
        let disk = LoopDisk::create(dir.path(), "d", 64 << 20).unwrap();
        let taken = disk.fill(0).unwrap();
        let refused = fs::write(disk.path().join("more"), vec![1; 1 << 20]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        disk.free().unwrap();
        assert!(disk.free_bytes().unwrap() >= taken);
        fs::write(disk.path().join("more"), vec![1; 1 << 20]).unwrap();
        disk.fill(8 << 20).unwrap();
        let left = disk.free_bytes().unwrap();
        assert!((7 << 20..=8 << 20).contains(&left), "{left} bytes left, expected 8 MiB");
    }
}
