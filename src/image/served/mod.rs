//! RBD images of a Ceph cluster, and files in formats that QEMU reads and Ekko does not, through a `qemu-nbd` of our own. qcow2 files
//! are written through one ([`Qcow2Target`]).
//!
//! librbd is what QEMU reads RBD with, and where it is there is QEMU as a rule; its server is a process of its own, so what
//! goes wrong in librbd, or in a reader of a format, does not go wrong in a backup.
//!
//! It is told the format and never recognises one: some name other files of the host.
//!
//! # Its end
//!
//! The server keeps the image locked, so it must end with this process, however that ends. Two things see to it:
//!
//! - A shell starts the server and waits for the end of a pipe, of which only this process has the other side. The kernel closes
//!   that side when this process ends, also after SIGKILL. Then the shell kills the server. The server is the shell's child, so
//!   the shell cannot kill another process of the same id. If a line comes through the pipe instead, the shell lets the server end
//!   by itself: it has to write what it knows of a qcow2 file.
//! - The server takes one link, and ends with it (it is not `--persistent`). If somebody kills the shell alone, the server ends
//!   when this process closes its link or ends.
//!
//! Nothing of it stays in a folder: the socket is bound, connected to and removed before the server starts. The server inherits
//! the listening socket (as from systemd, `LISTEN_FDS`) with the link already waiting in it, so nobody else can have it.

mod target;

use std::fs::File;
use std::io::{self, PipeWriter, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub use target::Qcow2Target;

use crate::image::change::Times;
use crate::image::nbd::{NbdError, NbdImage, NbdTask, at_short_path};
use crate::image::{Extent, Format, Image, ImageError, Reading, SourceChange};

/// What begins the name of an image: `rbd:POOL/IMAGE[@SNAPSHOT][:OPTION=VALUE...]`, as QEMU has it.
const SCHEME: &str = "rbd:";

/// Runs the command in its arguments with the socket at 0 as the descriptor 3. Kills it when the pipe at 1 ends, and waits for its
/// end when a line comes through the pipe. Its status is that of the command.
const SUPERVISOR: &str = "\
    exec 3<&0 4<&1 </dev/null >/dev/null\n\
    sh -c 'LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec \"$@\" 4<&-' sh \"$@\" &\n\
    server=$!\n\
    exec 3<&-\n\
    read -r end <&4\n\
    test -n \"$end\" || kill -9 \"$server\" 2>/dev/null\n\
    wait \"$server\"";

/// The status of a shell that cannot find a command.
const NOT_FOUND: i32 = 127;

/// The signal that the supervisor ends the server with.
const KILLED: i32 = 9;

/// Says whether a path names an RBD image.
pub(super) fn is_rbd(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(SCHEME))
}

/// A server that runs as long as it is needed.
#[derive(Debug)]
struct Server {
    supervisor: Child,
    /// What keeps it alive.
    lifeline: Option<PipeWriter>,
    /// What it says.
    log: File,
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.end();
    }
}

impl Server {
    /// Starts a server with these options for what QEMU names `image`. Returns it, and a link to it that it has not answered yet.
    fn start(image: &Path, options: &[&str]) -> io::Result<(Self, UnixStream)> {
        let (listener, link) = connected()?;
        let (end, lifeline) = io::pipe()?;
        let log = tempfile::tempfile()?;
        let supervisor = Command::new("sh")
            .args(["-c", SUPERVISOR, "sh", "qemu-nbd"])
            .args(options)
            .arg("--")
            .arg(image)
            .stdin(OwnedFd::from(listener))
            .stdout(end)
            .stderr(Stdio::from(log.try_clone()?))
            // Ctrl+C at a terminal is for this process, which closes its sources in order.
            .process_group(0)
            .spawn()?;
        Ok((Self { supervisor, lifeline: Some(lifeline), log }, link))
    }

    /// Waits until it has ended by itself, as it does when its link has ended, and makes sure that nothing went wrong.
    fn finish(&mut self) -> Result<(), NbdError> {
        if let Some(mut lifeline) = self.lifeline.take() {
            lifeline.write_all(b"end\n")?;
        }
        if self.supervisor.wait()?.success() {
            return Ok(());
        }
        Err(NbdError::Refused { what: self.last_words() })
    }

    /// Ends it. Returns its status: a signal if it had not ended by itself.
    fn end(&mut self) -> io::Result<Option<i32>> {
        drop(self.lifeline.take());
        let status = self.supervisor.wait()?;
        // A shell says 128 and the signal's number of a command that a signal has ended.
        Ok(status.code().filter(|code| *code != 128 + KILLED && status.signal().is_none()))
    }

    /// Ends it, and finds out why it gave no link, if that is because it ended.
    fn why(&mut self, error: NbdError, what: &str) -> NbdError {
        match self.end() {
            Ok(Some(NOT_FOUND)) => NbdError::Lacks { what: format!("qemu-nbd, which {what}") },
            Ok(Some(_)) => NbdError::Refused { what: self.last_words() },
            Ok(None) | Err(_) => error,
        }
    }

    fn last_words(&mut self) -> String {
        let mut log = String::new();
        // What cannot be read is not told.
        let _ = self.log.rewind().and_then(|()| self.log.read_to_string(&mut log));
        log.trim().lines().last().unwrap_or("qemu-nbd ended at once").to_owned()
    }
}

/// Returns a listening socket that has no name any longer, and the one link that is made to it.
fn connected() -> io::Result<(UnixListener, UnixStream)> {
    let folder = tempfile::Builder::new().prefix("ekko-nbd-").tempdir()?;
    let pair = at_short_path(&folder.path().join("socket"), |path| {
        Ok((UnixListener::bind(path)?, UnixStream::connect(path)?))
    })?;
    folder.close()?;
    Ok(pair)
}

/// What a server of our own gives, as a disk.
#[derive(Debug)]
pub(super) struct ServedImage {
    path: PathBuf,
    export: NbdImage,
    /// The file that the server reads, if it is one: by it a change is seen.
    file: Option<(File, Times)>,
    /// Ends after the link to it.
    _server: Server,
}

impl ServedImage {
    /// Opens an RBD image.
    pub(super) fn open_rbd(path: &Path, reading: Reading) -> Result<Self, ImageError> {
        Self::open(path, path, Format::Raw, reading, "RBD (Debian: qemu-utils, qemu-block-extra)")
    }

    /// Opens a file in a format that QEMU reads.
    pub(super) fn open_file(path: &Path, format: Format, reading: Reading) -> Result<Self, ImageError> {
        // QEMU takes what stands before a colon for a protocol, unless a slash comes first.
        let image =
            std::path::absolute(path).map_err(|source| ImageError::Open { path: path.to_owned(), source })?;
        Self::open(path, &image, format, reading, &format!("{format} (Debian: qemu-utils)"))
    }

    /// Starts a server for an image and connects to it.
    fn open(
        path: &Path,
        image: &Path,
        format: Format,
        reading: Reading,
        what: &str,
    ) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Nbd { path: path.to_owned(), task: NbdTask::Open, source };
        // What cannot be looked at is not watched; the server says why it cannot open it.
        let file = File::open(image).ok().and_then(|file| Times::of(&file).ok()?.map(|times| (file, times)));
        let cache = match reading {
            Reading::Direct => "--cache=none",
            Reading::Cached => "--cache=writeback",
        };
        let options = ["--read-only", &format!("--format={format}"), cache];
        let (mut server, link) = Server::start(image, &options).map_err(|error| failed(error.into()))?;
        let export = NbdImage::of_own_server(path, link)
            .map_err(|error| failed(server.why(error, &format!("reads {what}"))))?;
        Ok(Self { path: path.to_owned(), export, file, _server: server })
    }
}

impl Image for ServedImage {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> u64 {
        self.export.size()
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        self.export.next_data(from)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        self.export.read_at(buffer, offset)
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        self.export.verify_unchanged()
    }

    fn change(&self) -> Result<Option<SourceChange>, ImageError> {
        let Some((file, before)) = &self.file else { return Ok(None) };
        let failed = |source| ImageError::Seek { path: self.path.clone(), offset: 0, source };
        Ok(Times::of(file).map_err(failed)?.and_then(|now| before.compare(now)))
    }
}
