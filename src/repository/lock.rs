//! One process changes a repository at a time.
//!
//! The lock is the kernel's (`flock` on the file `lock`), so it ends with the process, however that ends.
//! The file's content is the process's number, for the message to others; nothing is decided by it. A file of this name
//! with anything else in it is not a lock of Ekko's and stays as it is.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::escape::escaped;
use crate::repository::{Layout, RepositoryError};
use crate::storage::{Access, Storage, StorageError};

/// How often a waiting process looks again.
const PAUSE: Duration = Duration::from_millis(50);

/// A lock is not longer, in bytes.
const LONGEST: u64 = 32;

/// More characters of a command line are not shown.
const LONGEST_COMMAND: usize = 80;

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
                    let holder = Holder::of(&mut file);
                    return Err(RepositoryError::InUse { path: layout.root().to_owned(), holder });
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

/// The process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub process: u32,
    /// When it took the lock.
    pub since: Option<Timestamp>,
    /// Its command line, as much as fits into a message; nothing if the number is not that of a process that runs the
    /// same program on this machine.
    pub command: Option<String>,
}

impl Holder {
    fn of(file: &mut File) -> Option<Self> {
        let mut text = String::new();
        file.rewind().ok()?;
        file.take(LONGEST).read_to_string(&mut text).ok()?;
        let process = text.trim().parse().ok()?;
        // The lock is written when it is taken.
        let taken = file.metadata().and_then(|metadata| metadata.modified()).ok();
        let since =
            taken.and_then(|time| Timestamp::from_second(Timestamp::try_from(time).ok()?.as_second()).ok());
        Some(Self { process, since, command: command(process) })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.process)?;
        if let Some(command) = &self.command {
            write!(f, " ({command})")?;
        }
        if let Some(since) = self.since {
            write!(f, " since {since}")?;
        }
        Ok(())
    }
}

/// Returns the command line of another process that runs the same program as this one.
fn command(process: u32) -> Option<String> {
    let folder = Path::new("/proc").join(process.to_string());
    let program = |folder: &Path| fs::read(folder.join("comm")).ok();
    if program(&folder)? != program(Path::new("/proc/self"))? {
        return None;
    }
    let line = fs::read(folder.join("cmdline")).ok()?;
    let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let words = words.join(" ");
    let words = escaped(words.trim_end());
    let cut: String = words.chars().take(LONGEST_COMMAND).collect();
    if cut.is_empty() {
        return None;
    }
    Some(if cut.len() < words.len() { cut + "..." } else { cut })
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
        let said = refused.to_string();
        assert!(said.contains(&format!("process {} (", std::process::id())), "{said}");
        let RepositoryError::InUse { holder: Some(holder), .. } = refused else { panic!("{said}") };
        let age = crate::time::now().duration_since(holder.since.unwrap());
        assert!(age.as_secs() < 60, "{said}");
        assert!(holder.command.unwrap().chars().count() <= LONGEST_COMMAND + 3, "{said}");
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
