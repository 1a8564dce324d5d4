//! Files as the operating system has them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, RenameFlags, fallocate, renameat_with};

use crate::storage::{Storage, StorageError, StorageFile};

/// Filesystems that keep what a hole was punched out of, in whole or in part: btrfs an extent until all of it
/// is gone, ZFS a block that a snapshot holds. By their number in `statfs(2)`.
const COPY_ON_WRITE: [i64; 3] = [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e];

/// The files of a real filesystem.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsStorage;

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |source| StorageError::new(operation, path, source)
}

impl OsStorage {
    fn file(
        path: &Path,
        operation: &'static str,
        options: &OpenOptions,
    ) -> Result<Box<dyn StorageFile>, StorageError> {
        let file = options.open(path).map_err(failed(operation, path))?;
        Ok(Box::new(OsFile { path: path.to_owned(), file }))
    }
}

impl Storage for OsStorage {
    fn create(&self, path: &Path) -> Result<Box<dyn StorageFile>, StorageError> {
        // What lies in a repository is the guests' own data: for its owner alone.
        Self::file(path, "create", OpenOptions::new().read(true).write(true).create_new(true).mode(0o600))
    }

    fn open(&self, path: &Path) -> Result<Box<dyn StorageFile>, StorageError> {
        Self::file(path, "open", OpenOptions::new().read(true).write(true))
    }

    fn open_read(&self, path: &Path) -> Result<Box<dyn StorageFile>, StorageError> {
        Self::file(path, "open", OpenOptions::new().read(true))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), StorageError> {
        fs::rename(from, to).map_err(failed("rename", from))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<(), StorageError> {
        let cwd = rustix::fs::CWD;
        match renameat_with(cwd, from, cwd, to, RenameFlags::NOREPLACE) {
            // A filesystem without the flag: a hard link fails on a taken name too.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                fs::hard_link(from, to).and_then(|()| fs::remove_file(from))
            }
            other => other.map_err(io::Error::from),
        }
        .map_err(failed("rename", from))
    }

    fn unlink(&self, path: &Path) -> Result<(), StorageError> {
        fs::remove_file(path).map_err(failed("remove", path))
    }

    fn create_folder(&self, path: &Path) -> Result<(), StorageError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other.map_err(failed("create folder", path)),
        }
    }

    fn remove_folder(&self, path: &Path) -> Result<(), StorageError> {
        fs::remove_dir_all(path).map_err(failed("remove folder", path))
    }

    fn sync_folder(&self, path: &Path) -> Result<(), StorageError> {
        File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("sync folder", path))
    }

    fn gives_back(&self, folder: &Path) -> Result<bool, StorageError> {
        let kind = rustix::fs::statfs(folder).map_err(|errno| failed("examine", folder)(errno.into()))?;
        if COPY_ON_WRITE.contains(&kind.f_type) {
            return Ok(false);
        }
        let failed = failed("create a temporary file in", folder);
        let file = tempfile::tempfile_in(folder).map_err(failed)?;
        let probe = OsFile { path: folder.join("probe"), file };
        probe.write_at(&[1; 8192], 0)?;
        match probe.punch(0, 4096) {
            Ok(()) => Ok(true),
            Err(error) if error.is_unsupported() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(&self, path: &Path) -> Result<Vec<String>, StorageError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(failed("list", path))? {
            if let Ok(name) = entry.map_err(failed("list", path))?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

#[derive(Debug)]
struct OsFile {
    path: PathBuf,
    file: File,
}

impl StorageFile for OsFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> Result<u64, StorageError> {
        Ok(self.file.metadata().map_err(failed("examine", &self.path))?.len())
    }

    fn holes(&self) -> Result<Vec<Range<u64>>, StorageError> {
        use rustix::fs::SeekFrom::{Data, Hole};
        let size = self.size()?;
        let seek = |to| match rustix::fs::seek(&self.file, to) {
            Ok(offset) => Ok(offset.min(size)),
            // Nothing is behind, or the filesystem does not tell.
            Err(rustix::io::Errno::NXIO | rustix::io::Errno::INVAL) => Ok(size),
            Err(errno) => Err(failed("look for holes in", &self.path)(errno.into())),
        };
        let mut holes = Vec::new();
        let mut end = 0;
        while end < size {
            let start = seek(Hole(end))?;
            if start >= size {
                break;
            }
            end = seek(Data(start))?;
            holes.push(start..end);
        }
        Ok(holes)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), StorageError> {
        self.file.read_exact_at(buffer, offset).map_err(failed("read", &self.path))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), StorageError> {
        self.file.write_all_at(bytes, offset).map_err(failed("write", &self.path))
    }

    fn sync(&self) -> Result<(), StorageError> {
        // fdatasync: it covers the size, and no reader here looks at the other times and flags.
        self.file.sync_data().map_err(failed("sync", &self.path))
    }

    fn truncate(&self, size: u64) -> Result<(), StorageError> {
        self.file.set_len(size).map_err(failed("truncate", &self.path))
    }

    fn allocate(&self, size: u64) -> Result<(), StorageError> {
        fallocate(&self.file, FallocateFlags::empty(), 0, size)
            .map_err(|errno| StorageError::new("allocate", &self.path, errno.into()))
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
            .map_err(|errno| StorageError::new("punch a hole into", &self.path, errno.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::replace;

    #[test]
    fn rename_new_never_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        assert!(OsStorage.rename_new(&a, &b).is_err());
        assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"a".to_vec(), b"b".to_vec()));
    }

    #[test]
    fn replace_passes_over_what_a_crash_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.toml");
        fs::write(folder.path().join("set.toml.tmp"), "half").unwrap();
        replace(&OsStorage, &path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(OsStorage.list(folder.path()).unwrap(), ["set.toml"]);
    }
}
