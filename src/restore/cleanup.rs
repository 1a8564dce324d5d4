//! What becomes of targets whose restore ends early, by a fault or by a signal.
//!
//! A file is written under a temporary name beside its target ([`partial`](super::partial)), so an incomplete one never has the
//! target's name. A device or an export has no other name: it is told that it is incomplete.
//!
//! [`Cleanup::stop`] may be called by any thread at any time. It holds the lock that creating, removing and renaming need, so after it
//! no file of these restores appears or gets its name, whatever their threads do until the process ends.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What became of a target whose restore ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetFate {
    /// Nothing was written.
    Untouched,
    /// The temporary file was removed.
    Removed {
        /// Its name.
        partial: PathBuf,
    },
    /// The temporary file could not be removed, or was kept on purpose.
    Kept {
        /// Its name.
        partial: PathBuf,
    },
    /// The target itself was written to, in part.
    Incomplete {
        /// The target.
        target: PathBuf,
    },
    /// The disk is complete, but could not get its name.
    Unnamed {
        /// The name that it has.
        partial: PathBuf,
    },
    /// The target is complete.
    Complete {
        /// The target.
        target: PathBuf,
    },
}

impl fmt::Display for TargetFate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untouched => f.write_str("nothing was written"),
            Self::Removed { partial } => write!(f, "the incomplete {} was removed", partial.display()),
            Self::Kept { partial } => write!(f, "the incomplete disk is kept as {}", partial.display()),
            Self::Incomplete { target } if target == Path::new("-") => f.write_str("stdout is incomplete"),
            Self::Incomplete { target } => {
                write!(f, "{} is incomplete: restore it again before you use it", target.display())
            }
            Self::Unnamed { partial } => write!(f, "the complete disk is kept as {}", partial.display()),
            Self::Complete { target } => write!(f, "{} is complete", target.display()),
        }
    }
}

/// Returns the device and the inode of what has a name.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// A target that is being written.
#[derive(Debug)]
struct Entry {
    id: u64,
    target: PathBuf,
    /// The temporary name; nothing if the target itself is written to.
    partial: Option<PathBuf>,
    /// What tells the file or folder with the temporary name from one that somebody else made: its device and inode.
    identity: Option<(u64, u64)>,
    /// Whether the temporary name is a folder's.
    is_folder: bool,
    keep: bool,
    /// Whether anything was written.
    touched: Arc<AtomicBool>,
}

impl Entry {
    /// Removes what was written, unless it is to be kept.
    fn end(&self) -> TargetFate {
        let Some(partial) = self.partial.clone() else {
            return if self.touched.load(Ordering::Acquire) {
                TargetFate::Incomplete { target: self.target.clone() }
            } else {
                TargetFate::Untouched
            };
        };
        // What somebody else made is not removed.
        if identity(&partial) != self.identity {
            return TargetFate::Removed { partial };
        }
        let removed = match (self.keep, self.is_folder) {
            (true, _) => return TargetFate::Kept { partial },
            (false, false) => fs::remove_file(&partial),
            (false, true) => fs::remove_dir_all(&partial),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => TargetFate::Kept { partial },
            _ => TargetFate::Removed { partial },
        }
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    entries: Vec<Entry>,
    complete: Vec<PathBuf>,
}

/// The targets that restores are writing. Shared by all restores of a process that one signal ends.
#[derive(Clone, Debug, Default)]
pub struct Cleanup(Arc<Mutex<State>>);

/// Keeps restores from creating and renaming files, while it lives.
#[derive(Debug)]
pub struct Stopped<'a> {
    _state: MutexGuard<'a, State>,
    fates: Vec<TargetFate>,
}

impl Stopped<'_> {
    /// Returns what became of each target.
    pub fn fates(&self) -> &[TargetFate] {
        &self.fates
    }
}

impl Cleanup {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all restores: removes temporary files, or leaves them if they are to be kept. Nothing appears under a target's name
    /// while the returned value lives.
    pub fn stop(&self) -> Stopped<'_> {
        let mut state = self.state();
        // Files before the folder that they are in, which came first.
        let entries: Vec<_> = state.entries.drain(..).rev().collect();
        // What is in a folder shares its fate.
        let within =
            |path: &Path| entries.iter().any(|it| it.is_folder && it.partial.as_deref() == path.parent());
        let told = |entry: &Entry| !entry.partial.as_deref().is_some_and(within);
        let mut fates: Vec<_> =
            entries.iter().map(|entry| (told(entry), entry.end())).filter(|(told, _)| *told).collect();
        fates.reverse();
        let complete = state.complete.iter().filter(|target| !within(target));
        let complete = complete.map(|target| TargetFate::Complete { target: target.clone() });
        let fates = complete.chain(fates.into_iter().map(|(_, fate)| fate)).collect();
        Stopped { _state: state, fates }
    }

    /// Returns the targets that are complete.
    pub fn complete_targets(&self) -> Vec<PathBuf> {
        self.state().complete.clone()
    }

    /// Enters a target that is about to be written to itself.
    pub fn direct(&self, target: &Path) -> CleanupEntry {
        let mut state = self.state();
        self.enter(&mut state, target, None, false, false)
    }

    /// Creates what has a temporary name, and enters it.
    pub(super) fn create<T>(
        &self,
        target: &Path,
        partial: &Path,
        is_folder: bool,
        keep: bool,
        create: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<(T, CleanupEntry)> {
        let mut state = self.state();
        let created = create()?;
        Ok((created, self.enter(&mut state, target, Some(partial.to_owned()), is_folder, keep)))
    }

    fn enter(
        &self,
        state: &mut State,
        target: &Path,
        partial: Option<PathBuf>,
        is_folder: bool,
        keep: bool,
    ) -> CleanupEntry {
        let id = state.next;
        state.next += 1;
        let touched = Arc::new(AtomicBool::new(false));
        let entry = CleanupEntry { cleanup: self.clone(), id, touched: Arc::clone(&touched) };
        let identity = partial.as_deref().and_then(identity);
        state.entries.push(Entry {
            id,
            target: target.to_owned(),
            partial,
            identity,
            is_folder,
            keep,
            touched,
        });
        entry
    }
}

/// A target that was entered. It must end in one of three ways: dropped, it ends as by a fault.
#[derive(Debug)]
pub struct CleanupEntry {
    cleanup: Cleanup,
    id: u64,
    touched: Arc<AtomicBool>,
}

impl Drop for CleanupEntry {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl CleanupEntry {
    /// Something of the target is about to be written.
    pub fn touch(&self) {
        self.touched.store(true, Ordering::Release);
    }

    fn take(&self, state: &mut State) -> Option<Entry> {
        let place = state.entries.iter().position(|entry| entry.id == self.id)?;
        Some(state.entries.remove(place))
    }

    /// Ends the restore of the target as incomplete.
    pub(super) fn end(&self) -> TargetFate {
        let mut state = self.cleanup.state();
        self.take(&mut state).map_or(TargetFate::Untouched, |entry| entry.end())
    }

    /// The target is complete, which has no temporary name.
    pub(super) fn complete_direct(&self) {
        let mut state = self.cleanup.state();
        if let Some(entry) = self.take(&mut state) {
            state.complete.push(entry.target);
        }
    }

    /// Leaves the target to somebody else.
    pub(super) fn disown(self) {
        let mut state = self.cleanup.state();
        self.take(&mut state);
    }

    /// The target is complete and has its name, once `rename` has given it that. If that fails, the temporary file stays.
    pub fn complete<E>(self, rename: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut state = self.cleanup.state();
        // After a stop there is none, and the process ends.
        let Some(entry) = self.take(&mut state) else { return Ok(()) };
        rename()?;
        if entry.is_folder {
            state.complete.retain(|target| target.parent() != entry.partial.as_deref());
        }
        state.complete.push(entry.target);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_removes_what_is_not_complete_and_says_what_became_of_each() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let cleanup = Cleanup::default();
        let create = |name: &str, keep| {
            let path = at(name);
            cleanup.create(&at("disk"), &path, false, keep, || fs::write(&path, "part")).unwrap().1
        };
        let (removed, kept, complete) = (create("a", false), create("b", true), create("c", false));
        complete.complete(|| fs::rename(at("c"), at("disk"))).unwrap();
        let ((), whole) =
            cleanup.create(&at("web"), &at("d"), true, false, || fs::create_dir(at("d"))).unwrap();
        let inner = create("d/vda.raw", false);
        let device = cleanup.direct(Path::new("/dev/vdz"));
        device.touch();
        let untouched = cleanup.direct(Path::new("/dev/vdy"));
        let stopped = cleanup.stop();
        assert_eq!(
            stopped.fates(),
            [
                TargetFate::Complete { target: at("disk") },
                TargetFate::Removed { partial: at("a") },
                TargetFate::Kept { partial: at("b") },
                TargetFate::Removed { partial: at("d") },
                TargetFate::Incomplete { target: "/dev/vdz".into() },
                TargetFate::Untouched,
            ]
        );
        assert!(!at("a").exists() && at("b").exists() && at("disk").exists() && !at("d").exists());
        drop(stopped);
        // What ends later finds nothing to do.
        drop((removed, kept, whole, inner, untouched));
        device.complete(|| Err("it would be written to")).unwrap();
        assert!(at("b").exists() && at("disk").exists());
    }

    #[test]
    fn a_disk_that_cannot_get_its_name_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let partial = folder.path().join("partial");
        let cleanup = Cleanup::default();
        let ((), entry) = cleanup
            .create(&folder.path().join("disk"), &partial, false, false, || fs::write(&partial, "disk"))
            .unwrap();
        assert_eq!(entry.complete(|| Err("taken")), Err("taken"));
        assert!(partial.exists());
    }
}
