//! System calls that change files: which they are, what they act on, and what a replay does for them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::IoSliceMut;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// What a call does to files, as the replay needs it. Paths are relative to the traced folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new, empty file with this mode.
    Create(String, u32),
    /// A new, empty folder with this mode.
    MakeFolder(String, u32),
    /// Bytes at an offset.
    Write(String, u64, Vec<u8>),
    /// Zeros in a range; `true` if the file may grow by it.
    Zero(String, u64, u64, bool),
    /// A new size.
    Resize(String, u64),
    /// The file, or the names in the folder, become durable.
    Sync(String),
    /// Everything becomes durable.
    SyncAll,
    /// Another name; an existing file of that name is replaced.
    Rename(String, String),
    /// A further name.
    Link(String, String),
    /// One name less, of a file or a folder.
    Remove(String),
}

/// Which arguments of a call hold what it acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// A descriptor, in this argument.
    Descriptor(usize),
    /// A path, in this argument, relative to the working folder.
    Path(usize),
    /// A folder's descriptor and a path, from this argument on.
    At(usize),
    /// Two paths.
    TwoPaths,
    /// Twice a folder's descriptor and a path.
    TwoAt,
}

/// How a call changes what it acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Writes at the file's position.
    Write,
    /// Writes at the offset in the fourth argument.
    WriteAt,
    /// Writes at the offset that the fourth argument points to, or at the file's position.
    CopyTo,
    Send,
    Sync,
    SyncRange,
    SyncAll,
    Resize,
    Allocate,
    /// Flags are in this argument; `true` if it points to them.
    Open(usize, bool),
    Create,
    MakeFolder(usize),
    Remove,
    Rename,
    Link,
    /// Counted and not replayed.
    Other,
}

struct Entry(i64, &'static str, Shape, Kind);

use Shape::{At, Descriptor, Path as PathIn, TwoAt, TwoPaths};

/// All calls that change files. Calls of `ioctl` and writes to mapped memory are left out: a recording that misses one of
/// them does not replay to what the program left, and the sweep fails.
const CALLS: &[Entry] = &[
    Entry(libc::SYS_write, "write", Descriptor(0), Kind::Write),
    Entry(libc::SYS_writev, "writev", Descriptor(0), Kind::Write),
    Entry(libc::SYS_pwrite64, "pwrite", Descriptor(0), Kind::WriteAt),
    Entry(libc::SYS_pwritev, "pwritev", Descriptor(0), Kind::WriteAt),
    Entry(libc::SYS_pwritev2, "pwritev2", Descriptor(0), Kind::WriteAt),
    Entry(libc::SYS_sendfile, "sendfile", Descriptor(0), Kind::Write),
    Entry(libc::SYS_copy_file_range, "copy_file_range", Descriptor(2), Kind::CopyTo),
    Entry(libc::SYS_splice, "splice", Descriptor(2), Kind::CopyTo),
    Entry(libc::SYS_sendto, "sendto", Descriptor(0), Kind::Send),
    Entry(libc::SYS_sendmsg, "sendmsg", Descriptor(0), Kind::Send),
    Entry(libc::SYS_fsync, "fsync", Descriptor(0), Kind::Sync),
    Entry(libc::SYS_fdatasync, "fdatasync", Descriptor(0), Kind::Sync),
    Entry(libc::SYS_sync_file_range, "sync_file_range", Descriptor(0), Kind::SyncRange),
    Entry(libc::SYS_syncfs, "syncfs", Descriptor(0), Kind::SyncAll),
    Entry(libc::SYS_ftruncate, "ftruncate", Descriptor(0), Kind::Resize),
    Entry(libc::SYS_fallocate, "fallocate", Descriptor(0), Kind::Allocate),
    Entry(libc::SYS_truncate, "truncate", PathIn(0), Kind::Resize),
    Entry(libc::SYS_open, "open", PathIn(0), Kind::Open(1, false)),
    Entry(libc::SYS_openat, "openat", At(0), Kind::Open(2, false)),
    Entry(libc::SYS_openat2, "openat2", At(0), Kind::Open(2, true)),
    Entry(libc::SYS_creat, "creat", PathIn(0), Kind::Create),
    Entry(libc::SYS_mkdir, "mkdir", PathIn(0), Kind::MakeFolder(1)),
    Entry(libc::SYS_mkdirat, "mkdirat", At(0), Kind::MakeFolder(2)),
    Entry(libc::SYS_rmdir, "rmdir", PathIn(0), Kind::Remove),
    Entry(libc::SYS_unlink, "unlink", PathIn(0), Kind::Remove),
    Entry(libc::SYS_unlinkat, "unlinkat", At(0), Kind::Remove),
    Entry(libc::SYS_rename, "rename", TwoPaths, Kind::Rename),
    Entry(libc::SYS_renameat, "renameat", TwoAt, Kind::Rename),
    Entry(libc::SYS_renameat2, "renameat2", TwoAt, Kind::Rename),
    Entry(libc::SYS_link, "link", TwoPaths, Kind::Link),
    Entry(libc::SYS_linkat, "linkat", TwoAt, Kind::Link),
    Entry(libc::SYS_symlink, "symlink", PathIn(1), Kind::Other),
    Entry(libc::SYS_symlinkat, "symlinkat", At(1), Kind::Other),
];

/// Returns the numbers of all calls that are looked at.
pub fn numbers() -> impl Iterator<Item = i64> {
    CALLS.iter().map(|entry| entry.0)
}

/// What is traced.
#[derive(Clone, Debug)]
pub struct Area {
    /// The folder that paths are relative to; absolute, without links.
    pub root: PathBuf,
    /// The folder in it whose changes count.
    pub below: PathBuf,
    /// Devices, and the files in the folder that stand for them.
    pub devices: HashMap<PathBuf, String>,
    /// Whether sends to the network count as well.
    pub sends: bool,
}

impl Area {
    /// Returns a path as it is recorded; nothing if it lies elsewhere.
    fn relative(&self, path: &Path) -> Option<String> {
        if let Some(file) = self.devices.get(path) {
            return Some(file.clone());
        }
        let relative = path.strip_prefix(&self.root).ok().filter(|_| path.starts_with(&self.below));
        Some(relative?.to_str()?.to_owned())
    }
}

/// A call that is about to run.
#[derive(Clone, Debug)]
pub struct Call {
    /// The name of the call.
    pub name: &'static str,
    kind: Kind,
    arguments: [u64; 6],
    thread: Pid,
    /// What it acts on.
    pub path: String,
    /// The new name of a rename or a link.
    other: Option<String>,
    existed: bool,
    flags: u64,
}

impl Call {
    /// Reads the call that a stopped thread is about to make; nothing if it changes nothing in the area.
    pub fn of(thread: Pid, number: i64, arguments: [u64; 6], area: &Area) -> Option<Self> {
        let Entry(_, name, shape, kind) = CALLS.iter().find(|entry| entry.0 == number)?;
        let (path, other) = match *shape {
            Descriptor(at) => (descriptor(thread, arguments[at])?, None),
            PathIn(at) => (resolve(thread, None, arguments[at])?, None),
            At(at) => (resolve(thread, Some(arguments[at]), arguments[at + 1])?, None),
            TwoPaths => (resolve(thread, None, arguments[0])?, Some(resolve(thread, None, arguments[1])?)),
            TwoAt => (
                resolve(thread, Some(arguments[0]), arguments[1])?,
                Some(resolve(thread, Some(arguments[2]), arguments[3])?),
            ),
        };
        if path.to_str().is_some_and(|path| path.starts_with("socket:")) {
            let sends = area.sends && matches!(kind, Kind::Write | Kind::Send);
            let path = "network".to_owned();
            return sends.then_some(Self {
                name,
                kind: Kind::Send,
                arguments,
                thread,
                path,
                other: None,
                existed: true,
                flags: 0,
            });
        }
        let existed = path.symlink_metadata().is_ok();
        // A file without a name is gone whatever happens.
        if matches!(shape, Descriptor(_)) && !existed {
            return None;
        }
        let path = area.relative(&path);
        let other = other.map(|path| area.relative(&path));
        if path.is_none() && other.as_ref().is_none_or(Option::is_none) {
            return None;
        }
        let flags = match *kind {
            Kind::Open(at, true) => number_at(thread, arguments[at])?,
            Kind::Open(at, false) => arguments[at],
            _ => 0,
        };
        if matches!(kind, Kind::Open(..)) && !opens_to_change(flags) {
            return None;
        }
        let path = path.unwrap_or_else(|| "(elsewhere)".to_owned());
        let other = other.map(|path| path.unwrap_or_else(|| "(elsewhere)".to_owned()));
        Some(Self { name, kind: *kind, arguments, thread, path, other, existed, flags })
    }

    /// Says whether the call needs room on the disk.
    pub fn needs_room(&self) -> bool {
        match self.kind {
            Kind::Write | Kind::WriteAt | Kind::CopyTo | Kind::MakeFolder(_) => true,
            Kind::Allocate => self.arguments[1] & PUNCH == 0,
            Kind::Open(..) | Kind::Create => !self.existed,
            _ => false,
        }
    }

    /// Returns what the call has changed, once it has returned `result`.
    pub fn changed(&self, result: u64, area: &Area) -> Result<Vec<Change>, String> {
        let path = self.path.clone();
        let place = area.root.join(&path);
        let mode = || place.symlink_metadata().map_or(0, |metadata| metadata.permissions().mode() & 0o7777);
        Ok(match self.kind {
            Kind::Write | Kind::WriteAt | Kind::CopyTo => {
                let bytes = self.written(result).map_err(|error| format!("{self}: {error}"))?;
                vec![Change::Write(path, bytes.0, bytes.1)]
            }
            Kind::Send | Kind::SyncRange => Vec::new(),
            Kind::Sync => vec![Change::Sync(path)],
            Kind::SyncAll => vec![Change::SyncAll],
            Kind::Resize => vec![Change::Resize(path, self.arguments[1])],
            Kind::Allocate => {
                let [_, mode, offset, length, ..] = self.arguments;
                vec![Change::Zero(path, offset, length, mode & KEEP_SIZE == 0)]
                    .into_iter()
                    .filter(|_| mode & (PUNCH | ZERO) != 0)
                    .chain((mode & (PUNCH | ZERO | KEEP_SIZE) == 0).then(|| {
                        // A range of no bytes that the file grows to.
                        Change::Zero(self.path.clone(), offset + length, 0, true)
                    }))
                    .collect()
            }
            Kind::Open(..) | Kind::Create if !self.existed => vec![Change::Create(path, mode())],
            Kind::Open(..) if self.flags & flag(libc::O_TRUNC) == 0 => Vec::new(),
            Kind::Open(..) | Kind::Create => vec![Change::Resize(path, 0)],
            Kind::MakeFolder(_) => vec![Change::MakeFolder(path, mode())],
            Kind::Remove => vec![Change::Remove(path)],
            Kind::Rename => vec![Change::Rename(path, self.other.clone().unwrap_or_default())],
            Kind::Link => vec![Change::Link(path, self.other.clone().unwrap_or_default())],
            Kind::Other => return Err(format!("{self} cannot be replayed")),
        })
    }

    /// Returns the bytes that the call wrote, from the file itself: nobody has written to it since.
    fn written(&self, result: u64) -> std::io::Result<(u64, Vec<u8>)> {
        let descriptor = match self.kind {
            Kind::CopyTo => self.arguments[2],
            _ => self.arguments[0],
        };
        let pointed = match self.kind {
            Kind::CopyTo if self.arguments[3] != 0 => number_at(self.thread, self.arguments[3]),
            _ => None,
        };
        let at = match (self.kind, pointed) {
            (Kind::WriteAt, _) if self.arguments[3] != u64::MAX => self.arguments[3],
            (_, Some(end)) => end - result,
            _ => position(self.thread, descriptor).unwrap_or(0).saturating_sub(result),
        };
        let mut bytes = vec![0; usize::try_from(result).unwrap_or(0)];
        File::open(format!("/proc/{}/fd/{descriptor}", self.thread))?.read_exact_at(&mut bytes, at)?;
        Ok((at, bytes))
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.path)?;
        self.other.iter().try_for_each(|other| write!(f, " {other}"))
    }
}

const PUNCH: u64 = libc::FALLOC_FL_PUNCH_HOLE as u64;
const ZERO: u64 = libc::FALLOC_FL_ZERO_RANGE as u64;
const KEEP_SIZE: u64 = libc::FALLOC_FL_KEEP_SIZE as u64;

fn flag(value: i32) -> u64 {
    u64::from(value.unsigned_abs())
}

fn opens_to_change(flags: u64) -> bool {
    flags & flag(libc::O_TMPFILE) != flag(libc::O_TMPFILE)
        && flags & (flag(libc::O_CREAT) | flag(libc::O_TRUNC)) != 0
}

fn descriptor(thread: Pid, descriptor: u64) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{thread}/fd/{descriptor}")).ok()
}

fn position(thread: Pid, descriptor: u64) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{thread}/fdinfo/{descriptor}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("pos:")?.trim().parse().ok())
}

/// Returns the absolute path that an argument names.
fn resolve(thread: Pid, folder: Option<u64>, argument: u64) -> Option<PathBuf> {
    let path = PathBuf::from(text_at(thread, argument)?);
    if let Ok(number) = path.strip_prefix("/proc/self/fd") {
        return fs::read_link(Path::new(&format!("/proc/{thread}/fd")).join(number)).ok();
    }
    let at_cwd = u64::from(libc::AT_FDCWD.cast_unsigned());
    let base = match folder {
        _ if path.is_absolute() => PathBuf::new(),
        Some(folder) if folder & 0xFFFF_FFFF != at_cwd => descriptor(thread, folder & 0xFFFF_FFFF)?,
        _ => fs::read_link(format!("/proc/{thread}/cwd")).ok()?,
    };
    let mut normal = PathBuf::new();
    for part in base.join(path).components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    Some(normal)
}

fn read(thread: Pid, address: u64, buffer: &mut [u8]) -> Option<usize> {
    let remote = RemoteIoVec { base: usize::try_from(address).ok()?, len: buffer.len() };
    process_vm_readv(thread, &mut [IoSliceMut::new(buffer)], &[remote]).ok()
}

fn number_at(thread: Pid, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    (read(thread, address, &mut bytes)? == 8).then(|| u64::from_le_bytes(bytes))
}

/// Reads a text that ends with a zero, page by page: the next one may not be there.
fn text_at(thread: Pid, mut address: u64) -> Option<String> {
    const PAGE: u64 = 4096;
    let mut text = Vec::new();
    loop {
        let mut buffer = vec![0; usize::try_from(PAGE - address % PAGE).ok()?];
        let length = read(thread, address, &mut buffer)?;
        let end = buffer[..length].iter().position(|byte| *byte == 0);
        text.extend_from_slice(&buffer[..end.unwrap_or(length)]);
        if end.is_some() {
            return String::from_utf8(text).ok();
        }
        address += u64::try_from(length).ok()?;
    }
}
