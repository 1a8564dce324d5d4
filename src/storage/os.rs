//! Files as the operating system has them.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, OFlags, RenameFlags, fallocate, renameat_with};

use crate::storage::{Access, DIRECT, Storage, StorageError, StorageFile};

/// Filesystems that keep what a hole was punched out of, in whole or in part: btrfs an extent until all of it
/// is gone, ZFS a block that a snapshot holds. By their number in `statfs(2)`.
const COPY_ON_WRITE: [i64; 3] = [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e];

/// The files of a real filesystem, by the paths that persons give: links are followed.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsStorage;

pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |source| StorageError::new(operation, path, source)
}

/// Says what it means that `fsync` does not take a folder.
pub(super) fn explain_folder_sync(error: io::Error) -> io::Error {
    if error.raw_os_error() != Some(rustix::io::Errno::INVAL.raw_os_error()) {
        return error;
    }
    let what = "its filesystem does not support fsync of a folder, so a power loss could cost acknowledged backups; put the \
                repository on another filesystem, for example ext4 or XFS";
    io::Error::new(io::ErrorKind::Unsupported, what)
}

impl OsStorage {
    fn file(
        path: &Path,
        operation: &'static str,
        options: &OpenOptions,
    ) -> Result<Box<dyn StorageFile>, StorageError> {
        let file = options.open(path).map_err(failed(operation, path))?;
        Ok(Box::new(OsFile::new(path.to_owned(), file)))
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

    fn handle(&self, path: &Path, access: Access) -> Result<File, StorageError> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        match access {
            Access::Read => &mut options,
            Access::Write => options.write(true),
            Access::Create => options.write(true).create_new(true),
            Access::OpenOrCreate => options.write(true).create(true).truncate(false),
        };
        options.open(path).map_err(failed("open", path))
    }

    fn examine(&self, path: &Path) -> Result<Metadata, StorageError> {
        fs::symlink_metadata(path).map_err(failed("examine", path))
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
        let synced = File::open(path).and_then(|folder| folder.sync_all());
        synced.map_err(explain_folder_sync).map_err(failed("sync folder", path))
    }

    fn gives_back(&self, folder: &Path) -> Result<bool, StorageError> {
        gives_back(&File::open(folder).map_err(failed("examine", folder))?, folder)
    }

    fn check_folder(&self, path: &Path) -> Result<(), StorageError> {
        fs::read_dir(path).map(drop).map_err(failed("open", path))
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

/// Says whether punching a hole into a file of an open folder gives its space back to others.
pub(super) fn gives_back(folder: &File, path: &Path) -> Result<bool, StorageError> {
    let kind = rustix::fs::fstatfs(folder).map_err(|errno| failed("examine", path)(errno.into()))?;
    if COPY_ON_WRITE.contains(&kind.f_type) {
        return Ok(false);
    }
    // Through what is open: the path may stand for another folder by now. Where /proc is not mounted, it must do.
    let held = format!("/proc/self/fd/{}", folder.as_raw_fd());
    let file = tempfile::tempfile_in(held).or_else(|_| tempfile::tempfile_in(path));
    let file = file.map_err(failed("create a temporary file in", path))?;
    let probe = OsFile::new(path.join("probe"), file);
    probe.write_at(&[1; 8192], 0)?;
    match probe.punch(0, 4096) {
        Ok(()) => Ok(true),
        Err(error) if error.is_unsupported() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the holes of an open file in order, where the filesystem tells.
pub(super) fn holes(file: &File, path: &Path) -> Result<Vec<Range<u64>>, StorageError> {
    use rustix::fs::SeekFrom::{Data, Hole};
    let size = file.metadata().map_err(failed("examine", path))?.len();
    let seek = |to| match rustix::fs::seek(file, to) {
        Ok(offset) => Ok(offset.min(size)),
        // No more data, or the filesystem does not tell.
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::INVAL) => Ok(size),
        Err(errno) => Err(failed("look for holes in", path)(errno.into())),
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

#[derive(Debug)]
pub(super) struct OsFile {
    path: PathBuf,
    file: File,
    /// The same file, for writes past the page cache, once there was one; nothing where that cannot be.
    direct: OnceLock<Option<File>>,
    /// Whether such a write was refused.
    refused: AtomicBool,
}

impl OsFile {
    pub(super) fn new(path: PathBuf, file: File) -> Self {
        Self { path, file, direct: OnceLock::new(), refused: AtomicBool::new(false) }
    }

    /// Returns what `bytes` can be written to past the page cache.
    fn direct(&self, bytes: &[u8], offset: u64) -> Option<&File> {
        let aligned = bytes.as_ptr().align_offset(DIRECT) == 0
            && bytes.len().is_multiple_of(DIRECT)
            && offset.is_multiple_of(DIRECT as u64);
        if !aligned || self.refused.load(Ordering::Relaxed) {
            return None;
        }
        let open = || {
            if is_remote(&self.file) {
                return None;
            }
            let flag = i32::try_from(OFlags::DIRECT.bits()).ok()?;
            // Through what is open: the path may stand for another file by now.
            let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            OpenOptions::new().write(true).custom_flags(flag).open(path).ok()
        };
        self.direct.get_or_init(open).as_ref()
    }
}

/// Filesystems on which each write past the page cache waits for a server, or another process, to have it on its disk, one
/// after the other: NFS, SMB (three generations), Ceph, 9P, FUSE. From `linux/magic.h` and the filesystems' sources.
const REMOTE: [u32; 7] = [0x6969, 0x517B, 0xFF53_4D42, 0xFE53_4D42, 0x00C3_6400, 0x0102_1997, 0x6573_5546];

/// Says whether a file lies on one of them.
fn is_remote(file: &File) -> bool {
    rustix::fs::fstatfs(file)
        .is_ok_and(|all| u32::try_from(all.f_type & 0xFFFF_FFFF).is_ok_and(|kind| REMOTE.contains(&kind)))
}

/// Says whether a filesystem cannot write past the page cache: its blocks are larger, or it cannot at all. What was
/// written in part is written again.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

impl StorageFile for OsFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> Result<u64, StorageError> {
        Ok(self.file.metadata().map_err(failed("examine", &self.path))?.len())
    }

    fn holes(&self) -> Result<Vec<Range<u64>>, StorageError> {
        holes(&self.file, &self.path)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), StorageError> {
        self.file.read_exact_at(buffer, offset).map_err(failed("read", &self.path))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), StorageError> {
        self.file.write_all_at(bytes, offset).map_err(failed("write", &self.path))
    }

    fn write_direct_at(&self, bytes: &[u8], offset: u64) -> Result<(), StorageError> {
        match self.direct(bytes, offset).map(|direct| direct.write_all_at(bytes, offset)) {
            Some(Err(error)) if is_refusal(&error) => self.refused.store(true, Ordering::Relaxed),
            Some(written) => return written.map_err(failed("write", &self.path)),
            None => {}
        }
        self.write_at(bytes, offset)
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
    use crate::storage::{AlignedBuffer, replace};

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
    fn what_is_written_past_the_page_cache_is_what_is_read_through_it() {
        // One on a disk, one in memory, which cannot do it on older kernels.
        for folder in [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()] {
            let path = folder.path().join("file");
            let file = OsFile::new(path.clone(), File::create_new(&path).unwrap());
            let mut buffer = AlignedBuffer::new(3 * DIRECT);
            buffer.of(3 * DIRECT).fill(1);
            file.write_direct_at(buffer.of(3 * DIRECT), 0).unwrap();
            assert_eq!(fs::read(&path).unwrap(), vec![1; 3 * DIRECT]);
            // What is in the page cache now is not what is read later.
            buffer.of(DIRECT).fill(2);
            file.write_direct_at(buffer.of(DIRECT), DIRECT as u64).unwrap();
            // What is not aligned takes the other way.
            for (length, offset) in [(100, 0), (DIRECT, 512)] {
                assert!(file.direct(buffer.of(length), offset).is_none());
            }
            assert!(file.direct(&buffer.of(2 * DIRECT)[1..=DIRECT], 0).is_none());
            file.write_direct_at(buffer.of(100), 0).unwrap();
            file.write_at(&[3], 2 * DIRECT as u64).unwrap();
            file.sync().unwrap();
            let mut wanted = [vec![1; DIRECT], vec![2; DIRECT], vec![1; DIRECT]].concat();
            wanted[..100].fill(2);
            wanted[2 * DIRECT] = 3;
            assert_eq!(fs::read(&path).unwrap(), wanted);
            // Where it was refused, it is written as ever.
            file.refused.store(true, Ordering::Relaxed);
            buffer.of(DIRECT).fill(4);
            file.write_direct_at(buffer.of(DIRECT), 0).unwrap();
            assert_eq!(fs::read(&path).unwrap()[..DIRECT], [4; DIRECT]);
        }
    }

    #[test]
    fn a_write_past_the_page_cache_that_fails_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let failing = OsFile::new(path.clone(), File::create_new(&path).unwrap());
        // Writing to it says that the disk is full.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        failing.direct.set(Some(full)).unwrap();
        let mut buffer = AlignedBuffer::new(DIRECT);
        assert!(failing.write_direct_at(buffer.of(DIRECT), 0).is_err_and(|error| error.is_full()));
        assert_eq!(fs::metadata(&path).unwrap().len(), 0, "and is not tried another way");
    }

    #[test]
    fn a_filesystem_that_cannot_sync_folders_is_named_as_the_cause() {
        let explained = explain_folder_sync(io::Error::from_raw_os_error(22));
        assert!(explained.to_string().contains("does not support fsync of a folder"), "{explained}");
        let other = explain_folder_sync(io::Error::from_raw_os_error(28));
        assert_eq!(other.kind(), io::ErrorKind::StorageFull);
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
