//! What this machine can do. What it cannot is SKIPPED by name, never a pass.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::real::disk::LoopDisk;

/// Set for a process that has a mount table of its own.
const PRIVATE: &str = "UNIBUS_CHAOS_PRIVATE";

/// Whether file systems can be mounted through loop devices; else why not.
pub fn loop_disks() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("loop file systems need root".into());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Err("there are no loop devices: /dev/loop-control is missing".into());
    }
    Ok(())
}

/// Tries it: a file system is made, mounted, loses power and comes back.
pub fn power_cuts() -> Result<(), String> {
    loop_disks()?;
    let dir = tempfile::tempdir().map_err(|error| format!("make a directory: {error}"))?;
    let mut disk = LoopDisk::create(dir.path(), "doctor", 16 << 20)?;
    disk.cut_power()?;
    disk.restore_power()
}

/// Goes on in a mount table of its own, where there can be one: however this process ends, its mounts and
/// loop devices end with it.
pub fn enter_private_mounts() {
    if std::env::var_os(PRIVATE).is_some() || loop_disks().is_err() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let error = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(PRIVATE, "1")
        .exec();
    eprintln!("unshare: {error}; mounts are cleaned up at the end, but not if this process is killed");
}
