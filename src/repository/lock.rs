//! One process changes a repository at a time.
//!
//! The lock is the kernel's (`flock` on the file `lock`), so it ends with the process, however that ends.
//! The file's content is the process's number, for the message to others; nothing is decided by it. A file of this name
//! with anything else in it is not a lock of Ekko's and stays as it is.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::repository::{Layout, RepositoryError};
use crate::storage::{Access, Storage, StorageError};

/// How often a waiting process looks again.
const PAUSE: Duration = Duration::from_millis(50);

/// A lock is not longer, in bytes.
const LONGEST: u64 = 32;

/// The lock, held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, waiting at most `wait` for another process to let it go.
    pub(super) fn take(
        storage: &dyn Storage,
        layout: &Layout,
        wait: Duration,
    ) -> Result<Self, RepositoryError> {
        let path = layout.lock();
        let failed = |operation| {
            let path = path.clone();
            move |source| StorageError::new(operation, path, source)
        };
        let mut file = storage.handle(&path, Access::OpenOrCreate)?;
        let deadline = Instant::now().checked_add(wait);
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock)
                    if deadline.is_none_or(|deadline| Instant::now() < deadline) =>
                {
                    std::thread::sleep(PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    let process = holder(&mut file);
                    return Err(RepositoryError::InUse { path: layout.root().to_owned(), process });
                }
                Err(TryLockError::Error(source)) => return Err(cannot_lock(layout.root(), source)),
            }
        }
        if !is_ours(&mut file).map_err(failed("read"))? {
            let what = "it holds something else than the number of a process: move it away";
            return Err(failed("lock")(io::Error::new(io::ErrorKind::InvalidData, what)).into());
        }
        file.set_len(0).map_err(failed("write"))?;
        file.rewind().and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed("write"))?;
        Ok(Self { _file: file })
    }
}

fn cannot_lock(path: &Path, source: std::io::Error) -> RepositoryError {
    RepositoryError::CannotLock { path: path.to_owned(), source }
}

/// Says whether a lock holds what Ekko writes into it, or what a power loss leaves of that.
fn is_ours(file: &mut File) -> io::Result<bool> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    let written = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'\n' | 0);
    Ok(bytes.len() as u64 <= LONGEST && bytes.iter().all(written))
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::RootStorage;

    #[test]
    fn a_second_process_is_told_who_holds_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        let storage = RootStorage::at(folder.path());
        let held = Lock::take(&storage, &layout, Duration::ZERO).unwrap();
        // `flock` locks belong to the open file, so a second opening in this process stands for another.
        let refused = Lock::take(&storage, &layout, Duration::from_millis(120)).unwrap_err();
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        drop(held);
        assert!(Lock::take(&storage, &layout, Duration::ZERO).is_ok());
    }

    #[test]
    fn a_file_that_is_no_lock_is_not_cut() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, storage) = (Layout::new(folder.path()), RootStorage::at(folder.path()));
        std::fs::write(layout.lock(), "keys of the house").unwrap();
        assert!(Lock::take(&storage, &layout, Duration::ZERO).is_err());
        assert_eq!(std::fs::read(layout.lock()).unwrap(), b"keys of the house");
        for left in ["", "123\n", "\0\0\0\0"] {
            std::fs::write(layout.lock(), left).unwrap();
            assert!(Lock::take(&storage, &layout, Duration::ZERO).is_ok(), "{left:?}");
        }
    }
}
