//! RBD images of a Ceph cluster, and files in formats that QEMU reads and Ekko does not, through a `qemu-nbd` of our own.
//!
//! librbd is what QEMU reads RBD with, and where it is there is QEMU as a rule; its server is a process of its own, so what
//! goes wrong in librbd, or in a reader of a format, does not go wrong in a backup. The server is asked over a socket in a
//! temporary folder that nobody else can open, and ends with the image.
//!
//! It is told the format and never recognises one: some name other files of the host.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::image::nbd::{NbdError, NbdImage};
use crate::image::{Extent, Format, Image, ImageError, Reading};

/// What begins the name of an image: `rbd:POOL/IMAGE[@SNAPSHOT][:OPTION=VALUE...]`, as QEMU has it.
const SCHEME: &str = "rbd:";

/// How long a server may take until it listens: it may look for a cluster first.
const PATIENCE: Duration = Duration::from_mins(1);

/// Says whether a path names an RBD image.
pub(super) fn is_rbd(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(SCHEME))
}

/// A server that runs as long as it is needed.
#[derive(Debug)]
struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a server for what QEMU names `image`.
    fn start(image: &Path, format: Format, reading: Reading) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("ekko-nbd-").tempdir()?;
        let cache = match reading {
            Reading::Direct => "none",
            Reading::Cached => "writeback",
        };
        let child = Command::new("qemu-nbd")
            .args(["--read-only", "--persistent"])
            .args([format!("--format={format}"), format!("--cache={cache}")])
            .arg("--socket")
            .arg(folder.path().join("socket"))
            .arg("--")
            .arg(image)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("log"))?)
            .spawn()?;
        Ok(Self { child, folder })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Returns what it said last if it has ended.
    fn last_words(&mut self) -> io::Result<Option<String>> {
        if self.child.try_wait()?.is_none() {
            return Ok(None);
        }
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        Ok(Some(log.trim().lines().last().unwrap_or("qemu-nbd ended at once").to_owned()))
    }

    /// Waits until it listens, and connects to it.
    fn connect(&mut self) -> Result<NbdImage, NbdError> {
        let begun = Instant::now();
        let uri = format!("nbd+unix:///?socket={}", self.socket().display());
        loop {
            // The socket has its name before anybody listens at it, and QEMU listens before it opens the image.
            let error = match NbdImage::open(Path::new(&uri), None, None) {
                Ok(image) => return Ok(image),
                Err(ImageError::Nbd { source, .. }) => source,
                Err(error) => NbdError::Refused { what: error.to_string() },
            };
            let is_not_up = matches!(&error, NbdError::Io(it)
                if matches!(it.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused));
            if !is_not_up {
                return Err(self.why(error));
            }
            if let Some(what) = self.last_words()? {
                return Err(NbdError::Refused { what });
            }
            if begun.elapsed() > PATIENCE {
                let what = "qemu-nbd does not come up: is what it is to read there?".to_owned();
                return Err(NbdError::Refused { what });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Finds out why it gave no link, if that is because it ended.
    fn why(&mut self, error: NbdError) -> NbdError {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            if let Ok(Some(what)) = self.last_words() {
                return NbdError::Refused { what };
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        error
    }
}

/// What a server of our own gives, as a disk.
#[derive(Debug)]
pub(super) struct ServedImage {
    path: PathBuf,
    export: NbdImage,
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
        let failed = |source| ImageError::Nbd { path: path.to_owned(), source };
        let mut server = Server::start(image, format, reading).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                failed(NbdError::Lacks { what: format!("qemu-nbd, which reads {what}") })
            }
            _ => failed(error.into()),
        })?;
        let export = server.connect().map_err(failed)?;
        Ok(Self { path: path.to_owned(), export, _server: server })
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
}
