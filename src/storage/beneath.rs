//! Opening names below a folder without following symbolic links.
//!
//! `openat2(2)` does it in one call. Where it is missing (Linux before 5.6), or a sandbox forbids it, each part of the path
//! is opened by itself with `O_NOFOLLOW`. Nobody can lead either out of the folder: a part is only ever looked up in a
//! folder that is held open.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, statat, unlinkat};
use rustix::io::{Errno, retry_on_intr};

/// Whether `openat2` was found to be missing or forbidden here.
static MISSING: AtomicBool = AtomicBool::new(false);

/// How a folder is opened to look names up in it.
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How deep folders may be nested that are removed: an index has two levels.
const DEEPEST: u32 = 8;

/// Opens `path`, which is relative and has no `..`, below `root`. An empty path stands for `root` itself.
pub(super) fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if path.as_os_str().is_empty() {
        return retry_on_intr(|| openat(root, ".", flags, mode));
    }
    if MISSING.load(Ordering::Relaxed) {
        return open_by_parts(root, path, flags, mode);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match retry_on_intr(|| openat2(root, path, flags, mode, resolve)) {
        Err(Errno::NOSYS) => {
            MISSING.store(true, Ordering::Relaxed);
            open_by_parts(root, path, flags, mode)
        }
        // A sandbox that does not know the call, or the file's own permissions.
        Err(Errno::PERM) => open_by_parts(root, path, flags, mode).inspect(|_| {
            MISSING.store(true, Ordering::Relaxed);
        }),
        opened => opened,
    }
}

/// Does the same part by part.
fn open_by_parts(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let mut folder: Option<OwnedFd> = None;
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        // `RESOLVE_BENEATH` calls it the same.
        let Component::Normal(name) = part else { return Err(Errno::XDEV) };
        let at = folder.as_ref().map_or(root, AsFd::as_fd);
        if parts.peek().is_none() {
            return retry_on_intr(|| openat(at, name, flags, mode));
        }
        folder = Some(retry_on_intr(|| openat(at, name, FOLDER, Mode::empty()))?);
    }
    Err(Errno::NOENT)
}

/// Opens a folder to look names up in it.
pub(super) fn open_folder(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    open(root, path, FOLDER, Mode::empty())
}

/// Explains why `path` could not be opened below `root`: the system does not say which part of it is a link.
pub(super) fn explain(root: BorrowedFd<'_>, path: &Path, errno: Errno) -> io::Error {
    if !matches!(errno, Errno::LOOP | Errno::NOTDIR | Errno::ISDIR | Errno::NXIO | Errno::XDEV) {
        return errno.into();
    }
    let mut below = Path::new("").to_owned();
    for part in path.components() {
        let Ok(folder) = open_folder(root, &below) else { break };
        let kind = statat(folder, part.as_os_str(), AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| FileType::from_raw_mode(stat.st_mode));
        below.push(part);
        if kind == Ok(FileType::Symlink) {
            let what = if below == path {
                "it is a symbolic link".to_owned()
            } else {
                format!("{} is a symbolic link", below.display())
            };
            return refused(format!("{what}; Ekko follows no links inside a repository"));
        }
        if below == path
            && let Ok(kind) = kind
        {
            return refused(format!("it is {}", name_of(kind)));
        }
    }
    errno.into()
}

/// Makes the error of something that is not what Ekko puts there.
pub(super) fn refused(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

pub(super) fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file and not a folder",
        FileType::Directory => "a folder and not a regular file",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe and not a regular file",
        FileType::Socket => "a socket and not a regular file",
        FileType::CharacterDevice | FileType::BlockDevice => "a device and not a regular file",
        FileType::Unknown => "not a regular file",
    }
}

/// Lists the names in an open folder, but for `.` and `..`.
pub(super) fn names(folder: OwnedFd) -> Result<Vec<std::ffi::CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::new(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Removes the folder `name` of `parent` and all that is in it. A link in it is removed, and what it leads to is not.
pub(super) fn remove_folder(parent: BorrowedFd<'_>, name: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    empty_folder(retry_on_intr(|| openat(parent, name, flags, Mode::empty()))?, DEEPEST)?;
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn empty_folder(folder: OwnedFd, depth: u32) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::io::fcntl_dupfd_cloexec(&folder, 0)?;
    for name in names(folder)? {
        match unlinkat(&held, &name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                let depth = depth.checked_sub(1).ok_or(Errno::NOTEMPTY)?;
                empty_folder(retry_on_intr(|| openat(&held, &name, flags, Mode::empty()))?, depth)?;
                unlinkat(&held, &name, AtFlags::REMOVEDIR)?;
            }
            Err(Errno::NOENT) => {}
            removed => removed?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    type Open = fn(BorrowedFd<'_>, &Path, OFlags, Mode) -> Result<OwnedFd, Errno>;

    #[test]
    fn both_ways_of_opening_find_the_same_names_and_follow_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(root.join("a/b/file"), "x").unwrap();
        fs::write(outside.join("file"), "secret").unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink(outside.join("file"), root.join("a/file")).unwrap();
        symlink("b", root.join("a/inside")).unwrap();
        let held = File::open(&root).unwrap();
        let parts: Open = |root, path, flags, mode| open_by_parts(root, path, flags | OFlags::NOFOLLOW, mode);
        for by in [open as Open, parts] {
            let read = |path: &str| by(held.as_fd(), Path::new(path), OFlags::RDONLY, Mode::empty());
            assert!(read("a/b/file").is_ok());
            assert!(read("a/b").is_ok());
            assert_eq!(read("a/none").unwrap_err(), Errno::NOENT);
            for link in ["link/file", "a/file", "a/inside/file", "link"] {
                assert!(matches!(read(link), Err(Errno::LOOP | Errno::NOTDIR)), "{link}");
            }
            assert_eq!(read("../outside/file").unwrap_err(), Errno::XDEV);
        }
        let why = |path| explain(held.as_fd(), Path::new(path), Errno::LOOP).to_string();
        assert!(why("link/file").starts_with("link is a symbolic link"), "{}", why("link/file"));
        assert!(why("a/file").starts_with("it is a symbolic link"), "{}", why("a/file"));
    }

    #[test]
    fn a_folder_is_removed_with_its_links_and_without_what_they_lead_to() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let gone = folder.path().join("root/gone");
        fs::create_dir_all(gone.join("deeper")).unwrap();
        fs::write(gone.join("deeper/file"), "x").unwrap();
        symlink(&outside, gone.join("deeper/link")).unwrap();
        let held = File::open(folder.path().join("root")).unwrap();
        remove_folder(held.as_fd(), Path::new("gone")).unwrap();
        assert!(!gone.exists() && outside.join("kept").exists());
        symlink(&outside, &gone).unwrap();
        assert!(remove_folder(held.as_fd(), Path::new("gone")).is_err());
        assert!(outside.join("kept").exists());
    }
}
