//! A qcow2 file that is written.
//!
//! `qemu-img create` makes it and a `qemu-nbd` of our own writes it: the writer of the format is QEMU's, and nothing but the file
//! itself takes room. (`qemu-img convert` would need the whole disk as a file first, since it does not read from a pipe.)

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::image::ImageError;
use crate::image::nbd::{NbdError, NbdTarget, NbdTask};
use crate::image::served::Server;

/// What a disk's size is a multiple of for QEMU.
const SECTOR: u64 = 512;

/// A qcow2 file that can be written to at any place, by several threads at once. It is complete once [`Qcow2Target::close`] has
/// returned.
#[derive(Debug)]
pub struct Qcow2Target {
    path: PathBuf,
    /// Nothing once it is closed.
    link: Option<NbdTarget>,
    /// Ends after the link to it.
    server: Server,
}

impl Qcow2Target {
    /// Makes a qcow2 file of a disk of `size` zeros of a file that is open and empty. QEMU's disks are of whole sectors, so zeros
    /// make the last one full.
    pub fn create(path: &Path, file: File, size: u64) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Nbd { path: path.to_owned(), task: NbdTask::Open, source };
        // QEMU takes what stands before a colon for a protocol, unless a slash comes first.
        let absolute =
            std::path::absolute(path).map_err(|source| ImageError::Open { path: path.to_owned(), source })?;
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "/proc/self/fd/0"])
            .arg(size.next_multiple_of(SECTOR).to_string())
            // The file and not its name: if this process ends and removes it, the program must not make it again.
            .stdin(Stdio::from(file))
            .stdout(Stdio::null())
            .output()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    let what = "qemu-img is not installed, which makes qcow2 files (Debian: qemu-utils)";
                    failed(NbdError::Refused { what: what.to_owned() })
                }
                _ => failed(error.into()),
            })?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr);
            let what = said.trim().lines().last().unwrap_or("qemu-img ended at once").to_owned();
            return Err(failed(NbdError::Refused { what }));
        }
        let options = ["--format=qcow2", "--cache=writeback"];
        let (mut server, link) = Server::start(&absolute, &options).map_err(|error| failed(error.into()))?;
        let link = NbdTarget::of_own_server(path, link)
            .map_err(|error| failed(server.why(error, "writes qcow2 (Debian: qemu-utils)")))?;
        Ok(Self { path: path.to_owned(), link: Some(link), server })
    }

    /// Ends the writing: the server writes what it knows of the file and ends.
    pub fn close(&mut self) -> Result<(), ImageError> {
        if self.link.take().is_none() {
            return Ok(());
        }
        let failed = |source| ImageError::Nbd { path: self.path.clone(), task: NbdTask::Flush, source };
        self.server.finish().map_err(failed)
    }

    fn link(&self) -> Result<&NbdTarget, ImageError> {
        self.link.as_ref().ok_or_else(|| {
            let source = NbdError::Refused { what: "it is closed".to_owned() };
            ImageError::Nbd { path: self.path.clone(), task: NbdTask::Open, source }
        })
    }

    /// Writes bytes from `offset` on.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), ImageError> {
        self.link()?.write_at(bytes, offset)
    }

    /// Makes everything durable that was written.
    pub fn sync(&self) -> Result<(), ImageError> {
        self.link()?.sync()
    }
}
