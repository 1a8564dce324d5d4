//! The files of a repository, reached from its folder and never through a link.
//!
//! A repository may come from somebody else. So every name in it is looked up below a descriptor of its folder, no
//! symbolic link is followed, a file must be a regular one, and one that is written to must have no other name. The
//! repository's own path may lead through links: its owner gave it.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, fcntl_getfl, fcntl_setfl, linkat};
use rustix::fs::{mkdirat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

use crate::storage::beneath::{self, refused};
use crate::storage::os::{OsFile, explain_folder_sync, failed, gives_back};
use crate::storage::{Access, OsStorage, Storage, StorageError, StorageFile};

/// The files below one folder, which may not exist yet.
#[derive(Debug)]
pub struct RootStorage {
    root: PathBuf,
    /// The folder, once it was needed.
    folder: OnceLock<OwnedFd>,
}

/// The folder that a name stands in.
enum Parent<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for Parent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(folder) => *folder,
            Self::Below(folder) => folder.as_fd(),
        }
    }
}

impl RootStorage {
    /// Makes the storage of what is below `root`. All its paths begin with `root`.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), folder: OnceLock::new() }
    }

    fn root(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(folder) = self.folder.get() {
            return Ok(folder.as_fd());
        }
        let root = if self.root.as_os_str().is_empty() { Path::new(".") } else { &self.root };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(root, flags, Mode::empty())?;
        // Another thread may have been faster; then its descriptor is the one that stays.
        Ok(self.folder.get_or_init(|| folder).as_fd())
    }

    /// Returns a path as seen from the root.
    fn below<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        path.strip_prefix(&self.root).map_err(|_| {
            let root = self.root.display();
            io::Error::new(io::ErrorKind::InvalidInput, format!("it lies outside the repository {root}"))
        })
    }

    fn open_at(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let (root, below) = (self.root()?, self.below(path)?);
        beneath::open(root, below, flags, mode).map_err(|errno| beneath::explain(root, below, errno))
    }

    /// Opens a regular file.
    fn file(&self, path: &Path, access: Access) -> io::Result<File> {
        // A pipe or a device is not waited for.
        let common = OFlags::NONBLOCK | OFlags::NOCTTY;
        let (flags, mode) = match access {
            Access::Read => (OFlags::RDONLY, Mode::empty()),
            Access::Write => (OFlags::RDWR, Mode::empty()),
            Access::Create => (OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR),
            Access::OpenOrCreate => (OFlags::RDWR | OFlags::CREATE, Mode::RUSR | Mode::WUSR),
        };
        let file = match self.open_at(path, flags | common, mode) {
            // Another host holds a lease on it, through a server on this machine, and gives it up while it is waited for.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.is_regular(path) => {
                self.open_at(path, flags | OFlags::NOCTTY, mode)?
            }
            opened => opened?,
        };
        let file = File::from(file);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(refused(format!("it is {}", name_of(metadata.file_type()))));
        }
        if access != Access::Read && metadata.nlink() > 1 {
            let links = metadata.nlink();
            // Nothing is damaged: somebody made a copy of hard links, as `cp -al` does.
            let what = format!(
                "it has {links} names (hard links), and a write would change all of them; remove the others, or replace it \
                 by a copy: cp FILE FILE.copy && mv FILE.copy FILE"
            );
            return Err(io::Error::new(io::ErrorKind::TooManyLinks, what));
        }
        fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
        Ok(file)
    }

    /// Says whether opening a path waits for nothing but a lease.
    fn is_regular(&self, path: &Path) -> bool {
        let held = self.open_at(path, OFlags::PATH, Mode::empty()).map(File::from);
        held.and_then(|file| file.metadata()).is_ok_and(|it| it.is_file())
    }

    fn folder(&self, path: &Path) -> io::Result<File> {
        Ok(self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?.into())
    }

    /// Returns the folder that a path lies in, and the path's last name.
    fn parent<'a, 'b>(&'a self, path: &'b Path) -> io::Result<(Parent<'a>, &'b OsStr)> {
        let (root, below) = (self.root()?, self.below(path)?);
        let last = |path: &'b Path| Some((path.parent()?, path.file_name()?));
        let (folder, name) = last(below)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is the repository itself"))?;
        if folder.as_os_str().is_empty() {
            return Ok((Parent::Root(root), name));
        }
        let opened = beneath::open_folder(root, folder);
        Ok((Parent::Below(opened.map_err(|errno| beneath::explain(root, folder, errno))?), name))
    }

    fn rename_with(
        &self,
        from: &Path,
        to: &Path,
        rename: impl FnOnce(BorrowedFd<'_>, &OsStr, BorrowedFd<'_>, &OsStr) -> Result<(), Errno>,
    ) -> Result<(), StorageError> {
        let renamed = || {
            let ((old, from), (new, to)) = (self.parent(from)?, self.parent(to)?);
            Ok(rename(old.as_fd(), from, new.as_fd(), to)?)
        };
        renamed().map_err(failed("rename", from))
    }
}

fn name_of(kind: fs::FileType) -> &'static str {
    beneath::name_of(if kind.is_dir() {
        rustix::fs::FileType::Directory
    } else if kind.is_fifo() {
        rustix::fs::FileType::Fifo
    } else if kind.is_socket() {
        rustix::fs::FileType::Socket
    } else if kind.is_char_device() || kind.is_block_device() {
        rustix::fs::FileType::CharacterDevice
    } else {
        rustix::fs::FileType::Unknown
    })
}

impl Storage for RootStorage {
    fn create(&self, path: &Path) -> Result<Box<dyn StorageFile>, StorageError> {
        // The files of a repository hold the guests' own data: for its owner alone.
        let file = self.file(path, Access::Create).map_err(failed("create", path))?;
        Ok(Box::new(OsFile::new(path.to_owned(), file)))
    }

    fn open(&self, path: &Path) -> Result<Box<dyn StorageFile>, StorageError> {
        let file = self.file(path, Access::Write).map_err(failed("open", path))?;
        Ok(Box::new(OsFile::new(path.to_owned(), file)))
    }

    fn open_read(&self, path: &Path) -> Result<Box<dyn StorageFile>, StorageError> {
        let file = self.file(path, Access::Read).map_err(failed("open", path))?;
        Ok(Box::new(OsFile::new(path.to_owned(), file)))
    }

    fn handle(&self, path: &Path, access: Access) -> Result<File, StorageError> {
        self.file(path, access).map_err(failed("open", path))
    }

    fn examine(&self, path: &Path) -> Result<Metadata, StorageError> {
        let opened = self.open_at(path, OFlags::PATH, Mode::empty());
        opened.and_then(|handle| File::from(handle).metadata()).map_err(failed("examine", path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), StorageError> {
        self.rename_with(from, to, |old, from, new, to| renameat(old, from, new, to))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<(), StorageError> {
        self.rename_with(from, to, |old, from, new, to| {
            match renameat_with(old, from, new, to, RenameFlags::NOREPLACE) {
                // A filesystem without the flag: a hard link fails on a taken name too.
                Err(Errno::INVAL | Errno::NOSYS) => linkat(old, from, new, to, AtFlags::empty())
                    .and_then(|()| unlinkat(old, from, AtFlags::empty())),
                renamed => renamed,
            }
        })
    }

    fn unlink(&self, path: &Path) -> Result<(), StorageError> {
        let unlinked = || {
            let (folder, name) = self.parent(path)?;
            Ok(unlinkat(folder, name, AtFlags::empty())?)
        };
        unlinked().map_err(failed("remove", path))
    }

    fn create_folder(&self, path: &Path) -> Result<(), StorageError> {
        let create = || -> io::Result<()> {
            if self.below(path)?.as_os_str().is_empty() {
                return DirBuilder::new().mode(0o700).create(path);
            }
            let (folder, name) = self.parent(path)?;
            Ok(mkdirat(folder, name, Mode::RWXU)?)
        };
        match create() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.folder(path).map(drop),
            created => created,
        }
        .map_err(failed("create folder", path))
    }

    fn remove_folder(&self, path: &Path) -> Result<(), StorageError> {
        let removed = || {
            let (folder, name) = self.parent(path)?;
            Ok(beneath::remove_folder(folder.as_fd(), Path::new(name))?)
        };
        removed().map_err(failed("remove folder", path))
    }

    fn sync_folder(&self, path: &Path) -> Result<(), StorageError> {
        if self.below(path).is_err() {
            // The folder that the root stands in, which is the owner's.
            return OsStorage.sync_folder(path);
        }
        let synced = self.folder(path).and_then(|folder| folder.sync_all());
        synced.map_err(explain_folder_sync).map_err(failed("sync folder", path))
    }

    fn gives_back(&self, folder: &Path) -> Result<bool, StorageError> {
        let opened = self.folder(folder).map_err(failed("examine", folder))?;
        gives_back(&opened, folder)
    }

    fn check_folder(&self, path: &Path) -> Result<(), StorageError> {
        self.folder(path).map(drop).map_err(failed("open", path))
    }

    fn list(&self, path: &Path) -> Result<Vec<String>, StorageError> {
        let names = self.folder(path).and_then(|folder| Ok(beneath::names(folder.into())?));
        let names = names.map_err(failed("list", path))?.into_iter();
        let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::storage::read_small;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A root with a file `file`, a folder `folder`, and a folder with a file beside it.
    fn place() -> (tempfile::TempDir, RootStorage) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("folder")).unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(root.join("file"), "ours").unwrap();
        fs::write(folder.path().join("outside/file"), "theirs").unwrap();
        (folder, RootStorage::at(&root))
    }

    #[test]
    fn no_operation_leaves_the_root_through_a_link() {
        let (folder, storage) = place();
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        symlink(&outside, root.join("out")).unwrap();
        symlink(outside.join("file"), root.join("link")).unwrap();
        symlink(outside.join("new"), root.join("dangling")).unwrap();
        let refused = |result: Result<(), StorageError>| {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains("symbolic link"), "{error}");
        };
        for path in [root.join("out/file"), root.join("link"), root.join("dangling")] {
            refused(storage.open(&path).map(drop));
            refused(storage.open_read(&path).map(drop));
            for access in [Access::Read, Access::Write, Access::OpenOrCreate] {
                refused(storage.handle(&path, access).map(drop));
            }
            refused(read_small(&storage, &path, 100).map(drop));
        }
        assert!(storage.create(&root.join("dangling")).is_err());
        let (out, file) = (root.join("out"), root.join("file"));
        refused(storage.create(&out.join("new")).map(drop));
        refused(storage.rename(&file, &out.join("file")));
        refused(storage.rename_new(&out.join("file"), &root.join("mine")));
        refused(storage.unlink(&out.join("file")));
        refused(storage.create_folder(&out));
        refused(storage.create_folder(&out.join("new")));
        refused(storage.sync_folder(&out));
        refused(storage.list(&out).map(drop));
        refused(storage.gives_back(&out).map(drop));
        assert!(storage.remove_folder(&out).is_err());
        assert!(storage.examine(&out).unwrap().is_symlink());
        assert!(storage.open(&root.join("../outside/file")).is_err());
        assert!(storage.open(&outside.join("file")).is_err());
        // The link itself can go.
        storage.unlink(&out).unwrap();
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "theirs");
        assert_eq!(OsStorage.list(&outside).unwrap(), ["file"]);
        assert_eq!(fs::read_to_string(&file).unwrap(), "ours");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_and_not_waited_for() {
        let (folder, storage) = place();
        let pipe = folder.path().join("root/pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        for path in [&pipe, &folder.path().join("root/folder")] {
            for result in [storage.open(path).map(drop), storage.open_read(path).map(drop)] {
                let error = result.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                assert!(error.to_string().contains("not a regular file"), "{error}");
            }
        }
        let error = storage.list(&folder.path().join("root/file")).unwrap_err();
        assert!(error.to_string().contains("not a folder"), "{error}");
    }

    #[test]
    fn a_file_with_another_name_is_read_and_never_written() {
        let (folder, storage) = place();
        let both = folder.path().join("root/both");
        fs::hard_link(folder.path().join("outside/file"), &both).unwrap();
        assert_eq!(read_small(&storage, &both, 100).unwrap(), b"theirs");
        for access in [Access::Write, Access::OpenOrCreate] {
            assert!(storage.handle(&both, access).unwrap_err().to_string().contains("hard links"));
        }
        assert!(storage.open(&both).is_err());
        assert_eq!(fs::read_to_string(folder.path().join("outside/file")).unwrap(), "theirs");
    }

    #[test]
    fn the_root_may_be_reached_through_a_link_and_made_later() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("real")).unwrap();
        symlink("real", folder.path().join("link")).unwrap();
        let root = folder.path().join("link/store");
        let storage = RootStorage::at(&root);
        assert!(storage.list(&root).unwrap_err().is_not_found());
        storage.create_folder(&root).unwrap();
        storage.create_folder(&root).unwrap();
        storage.create(&root.join("file")).unwrap();
        storage.create_folder(&root.join("folder")).unwrap();
        storage.sync_folder(&root).unwrap();
        storage.sync_folder(root.parent().unwrap()).unwrap();
        assert_eq!(storage.list(&root).unwrap(), ["file", "folder"]);
        let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(""), mode("folder"), mode("file")), (0o700, 0o700, 0o600));
    }

    #[test]
    fn names_change_as_on_the_real_filesystem() {
        let (folder, storage) = place();
        let at = |name: &str| folder.path().join("root").join(name);
        storage.create(&at("folder/new")).unwrap();
        assert!(storage.rename_new(&at("file"), &at("folder/new")).is_err());
        storage.rename(&at("file"), &at("folder/new")).unwrap();
        assert_eq!(fs::read_to_string(at("folder/new")).unwrap(), "ours");
        storage.rename_new(&at("folder/new"), &at("file")).unwrap();
        assert!(storage.unlink(&at("folder/new")).unwrap_err().is_not_found());
        storage.remove_folder(&at("folder")).unwrap();
        assert_eq!(storage.list(&at("")).unwrap(), ["file"]);
        assert!(storage.gives_back(&at("")).is_ok());
    }
}
