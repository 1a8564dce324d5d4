//! One process changes a repository at a time.
//!
//! The lock is the kernel's (`flock` on the file `lock`), so it ends with the process, however that ends.
//! The file's content is the process's number, for the message to others; nothing is decided by it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::repository::{Layout, RepositoryError};
use crate::storage::StorageError;

/// How often a waiting process looks again.
const PAUSE: Duration = Duration::from_millis(50);

/// The lock, held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, waiting at most `wait` for another process to let it go.
    pub(super) fn take(layout: &Layout, wait: Duration) -> Result<Self, RepositoryError> {
        let path = layout.lock();
        let failed = |operation| {
            let path = path.clone();
            move |source| StorageError::new(operation, path, source)
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open"))?;
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
        file.set_len(0).map_err(failed("write"))?;
        file.rewind().and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed("write"))?;
        Ok(Self { _file: file })
    }
}

fn cannot_lock(path: &Path, source: std::io::Error) -> RepositoryError {
    RepositoryError::CannotLock { path: path.to_owned(), source }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_told_who_holds_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        let held = Lock::take(&layout, Duration::ZERO).unwrap();
        // `flock` locks belong to the open file, so a second opening in this process stands for another.
        let refused = Lock::take(&layout, Duration::from_millis(120)).unwrap_err();
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        drop(held);
        assert!(Lock::take(&layout, Duration::ZERO).is_ok());
    }
}
