//! A block device made of a file, where this machine lets us make one.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device. It is detached, and what was written is in the file, when this is dropped.
#[derive(Debug)]
pub struct Loop(PathBuf);

impl Loop {
    /// Attaches a file; nothing if only root may.
    pub fn attach(file: &Path) -> Result<Option<Self>, String> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            return Ok(None);
        }
        let ran = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        let ran = ran.map_err(|error| format!("cannot run losetup: {error}"))?;
        let said = String::from_utf8_lossy(&ran.stdout).trim().to_owned();
        if ran.status.success() {
            Ok(Some(Self(said.into())))
        } else {
            Err(format!("cannot make a loop device: {}", String::from_utf8_lossy(&ran.stderr)))
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}
