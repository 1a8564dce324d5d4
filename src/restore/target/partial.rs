//! A file or folder that is restored under a temporary name beside its target, and gets the target's name when it is complete.
//!
//! The temporary name is the target's with `.ekko-partial` at its end. Its maker holds the kernel's lock on it, so what a killed
//! restore left is told from what another one is writing: the former is removed, the latter is refused.
//!
//! What may be removed has a mark, from its first moment on until it is complete or is to be kept: the sticky bit of its mode, which
//! Linux ignores on files. Whatever else has the temporary name stays, and the restore is refused: a file of somebody else, a
//! complete disk that could not get its name, and what `--keep-partial` kept.
//!
//! A file that is replaced keeps its owner, group, mode and extended attributes where the system allows it. Its bytes are not
//! touched: whoever has it open, and each further name (hard link) of it, keeps the old disk.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, XattrFlags, fgetxattr, flistxattr, fsetxattr};

use crate::image::target_use;
use crate::restore::cleanup::{Cleanup, CleanupEntry, TargetFate};
use crate::restore::target::plan::{PlannedTarget, TargetPlan, outside_repositories};
use crate::restore::{RestoreError, RestoreOptions};
use crate::storage::{OsStorage, Storage};

/// What ends a temporary name.
const SUFFIX: &str = ".ekko-partial";

/// The longest name that Linux's filesystems take, in bytes.
const LONGEST_NAME: usize = 255;

/// The bit in the mode of what a later restore may remove.
const MARK: u32 = 0o1000;

/// Returns the mode that a temporary file or folder is created with, which has this one without the mark.
fn marked(mode: u32, options: &RestoreOptions) -> u32 {
    if options.keep_partial { mode } else { mode | MARK }
}

/// Removes the mark of what must stay from now on.
fn unmark(file: &File) {
    if let Ok(metadata) = file.metadata()
        && metadata.mode() & MARK != 0
    {
        let _ = file.set_permissions(Permissions::from_mode(metadata.mode() & 0o7777 & !MARK));
    }
}

/// Says whether a restore made something that may be removed.
fn is_marked(metadata: &Metadata) -> bool {
    // On folders for everybody, such as /tmp, the bit is usual.
    let is_own = !metadata.is_dir() || metadata.mode() & 0o777 == 0o700;
    is_own && metadata.mode() & MARK != 0
}

/// Returns the temporary name of a target.
pub(in crate::restore) fn partial_path(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().as_bytes();
    let kept = name.get(..name.len().min(LONGEST_NAME - SUFFIX.len())).unwrap_or_default();
    let mut partial = OsString::from(OsStr::from_bytes(kept));
    partial.push(SUFFIX);
    target.with_file_name(partial)
}

/// Returns the folder that a path is in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file under its temporary name.
#[derive(Debug)]
pub(super) struct PartialFile {
    target: PathBuf,
    partial: PathBuf,
    replace: bool,
    target_in_use: bool,
    /// Holds the lock.
    file: File,
    entry: CleanupEntry,
}

impl PartialFile {
    /// Creates the file for its owner alone.
    pub(super) fn create(
        target: &Path,
        replace: bool,
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        let partial = partial_path(target);
        let mode = marked(0o600, options);
        let open =
            |path: &Path| OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path);
        let (file, entry) = create(target, &partial, false, options, open)?;
        let target_in_use = options.target_in_use;
        Ok(Self { target: target.to_owned(), partial, replace, target_in_use, file, entry })
    }

    pub(super) fn path(&self) -> &Path {
        &self.partial
    }

    /// Says whether there is a file that it will replace.
    pub(super) fn replaces(&self) -> bool {
        self.replace
    }

    /// Returns the file, for writing.
    pub(super) fn file(&self) -> Result<File, RestoreError> {
        self.file.try_clone().map_err(self.failed("open"))
    }

    /// Sets the size of the file, which is empty.
    pub(super) fn set_size(&self, size: u64) -> Result<(), RestoreError> {
        self.file.set_len(size).map_err(self.failed("size"))
    }

    /// Makes the file durable.
    pub(super) fn sync(&self) -> Result<(), RestoreError> {
        self.file.sync_all().map_err(self.failed("sync"))
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> RestoreError {
        let path = self.partial.clone();
        move |source| RestoreError::Target { operation, path, source }
    }

    /// Removes the file, unless it is to be kept.
    pub(super) fn abandon(&self) -> TargetFate {
        self.entry.end()
    }

    /// Gives the complete file its name. If that cannot be, the file stays under its temporary one.
    pub(super) fn publish(self, sync: bool) -> Result<(), RestoreError> {
        let Self { target, partial, replace, target_in_use, file, entry } = self;
        let fate = TargetFate::Unnamed { partial: partial.clone() };
        let rename = || {
            is_own(&file, &partial, &target)?;
            if !replace {
                return OsStorage.rename_new(&partial, &target).map_err(|error| match error.source.kind() {
                    io::ErrorKind::AlreadyExists => RestoreError::TargetExists { path: target.clone() },
                    _ => error.into(),
                });
            }
            // Somebody may have started the machine meanwhile.
            if !target_in_use && let Some(how) = target_use(&target) {
                return Err(RestoreError::TargetInUse { path: target.clone(), how });
            }
            if let Ok(old) = File::open(&target).and_then(|old| Ok((old.metadata()?, old))) {
                take_over(&file, &old.0, &old.1);
            } else if let Ok(old) = fs::metadata(&target) {
                take_owner(&file, &old);
            }
            OsStorage.rename(&partial, &target).map_err(RestoreError::from)
        };
        let renamed = entry.complete(rename);
        unmark(&file);
        renamed.map_err(|error| with_name(error, fate))?;
        if sync {
            OsStorage.sync_folder(parent(&target))?;
        }
        Ok(())
    }
}

/// A small file that is complete, under its temporary name.
#[derive(Debug)]
pub struct RestoredFile {
    file: PartialFile,
    sync: bool,
}

impl RestoredFile {
    pub(in crate::restore) fn write(
        plan: TargetPlan,
        bytes: &[u8],
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        let PlannedTarget::File { path, replace } = plan.kind else {
            return Err(RestoreError::NotATarget { path: plan.path });
        };
        let file = PartialFile::create(&path, replace, options)?;
        let written = (&file.file).write_all(bytes).map_err(file.failed("write"));
        let written = written.and_then(|()| if options.sync { file.sync() } else { Ok(()) });
        written.map_err(|error| error.with_fate(file.abandon()))?;
        Ok(Self { file, sync: options.sync })
    }

    /// Gives the file its name.
    ///
    /// # Errors
    ///
    /// If somebody uses the file that is replaced, or has made one meanwhile. The file then keeps its temporary name.
    pub fn publish(self) -> Result<(), RestoreError> {
        self.file.publish(self.sync)
    }
}

/// A folder under its temporary name.
#[derive(Debug)]
pub struct PartialFolder {
    target: PathBuf,
    partial: PathBuf,
    entry: CleanupEntry,
    lock: File,
}

impl PartialFolder {
    /// Creates a folder for its owner alone, which will appear as `target`. There is nothing at `target`.
    pub fn create(target: &Path, options: &RestoreOptions) -> Result<Self, RestoreError> {
        outside_repositories(target)?;
        let partial = partial_path(target);
        let open = |path: &Path| {
            DirBuilder::new().mode(marked(0o700, options)).create(path)?;
            File::open(path)
        };
        let (lock, entry) = create(target, &partial, true, options, open)?;
        Ok(Self { target: target.to_owned(), partial, entry, lock })
    }

    /// Returns where the folder is until it is complete.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Gives the complete folder its name.
    pub fn publish(self, sync: bool) -> Result<(), RestoreError> {
        let Self { target, partial, entry, lock } = self;
        let fate = TargetFate::Unnamed { partial: partial.clone() };
        let rename = || {
            is_own(&lock, &partial, &target)?;
            let renamed = match OsStorage.rename_new(&partial, &target) {
                // A filesystem that cannot rename without replacing. An empty folder is all that would be replaced.
                Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied && !target.exists() => {
                    OsStorage.rename(&partial, &target)
                }
                renamed => renamed,
            };
            renamed.map_err(|error| match error.source.kind() {
                io::ErrorKind::AlreadyExists => RestoreError::TargetExists { path: target.clone() },
                _ => RestoreError::from(error),
            })
        };
        let renamed = entry.complete(rename);
        unmark(&lock);
        renamed.map_err(|error| with_name(error, fate))?;
        if sync {
            OsStorage.sync_folder(parent(&target))?;
        }
        Ok(())
    }

    /// Removes the folder, unless it is to be kept.
    pub fn abandon(self) -> TargetFate {
        self.entry.end()
    }
}

/// Makes sure that a temporary name is still that of what this restore has written.
fn is_own(file: &File, partial: &Path, target: &Path) -> Result<(), RestoreError> {
    if is_at(file, partial) {
        return Ok(());
    }
    Err(RestoreError::PartialReplaced { target: target.to_owned(), partial: partial.to_owned() })
}

/// Says whether a path is that of an open file or folder.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let open = file.metadata().map(identity);
    let named = fs::symlink_metadata(path).map(identity);
    matches!((open, named), (Ok(open), Ok(named)) if open == named)
}

/// Says under which name a complete disk is kept that could not get its own; of one that is gone, nothing.
fn with_name(error: RestoreError, fate: TargetFate) -> RestoreError {
    match error {
        RestoreError::PartialReplaced { .. } => error,
        error => error.with_fate(fate),
    }
}

/// Creates a file or folder and locks it. What a killed restore left under its name is removed first.
fn create(
    target: &Path,
    partial: &Path,
    is_folder: bool,
    options: &RestoreOptions,
    open: impl Fn(&Path) -> io::Result<File>,
) -> Result<(File, CleanupEntry), RestoreError> {
    let failed =
        |operation| move |source| RestoreError::Target { operation, path: partial.to_owned(), source };
    let cleanup: &Cleanup = &options.cleanup;
    loop {
        let created = cleanup.create(target, partial, is_folder, options.keep_partial, || open(partial));
        let (file, entry) = match created {
            Ok(created) => created,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                remove_left(partial, is_folder)?;
                continue;
            }
            Err(source) => {
                let replace = target.exists();
                return Err(RestoreError::NoPartial { partial: partial.to_owned(), replace, source });
            }
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                // Another restore has found it before it was locked, and removes it.
                file.lock().map_err(failed("lock"))?;
            }
            // Without locks a restore that runs is not told from one that was killed.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        if file.metadata().map_err(failed("examine"))?.nlink() > 0 {
            return Ok((file, entry));
        }
        entry.disown();
    }
}

/// Removes what a restore left that was killed.
fn remove_left(partial: &Path, is_folder: bool) -> Result<(), RestoreError> {
    let failed =
        |operation| move |source| RestoreError::Target { operation, path: partial.to_owned(), source };
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let left = OpenOptions::new().read(true).custom_flags(i32::try_from(flags).unwrap_or(0)).open(partial);
    let left = match left {
        Ok(left) => left,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("open")(error)),
    };
    let kind = left.metadata().map_err(failed("examine"))?;
    if kind.is_dir() != is_folder || !(kind.is_file() || kind.is_dir()) {
        return Err(RestoreError::PartialTaken { partial: partial.to_owned() });
    }
    if matches!(left.try_lock(), Err(TryLockError::WouldBlock)) || target_use(partial).is_some() {
        return Err(RestoreError::PartialInUse { partial: partial.to_owned() });
    }
    // Another restore may have removed this one before it was locked here, and made its own. Nobody can do so from here on: it would
    // need the lock.
    if !is_at(&left, partial) {
        return Ok(());
    }
    if !is_marked(&kind) {
        return Err(RestoreError::PartialTaken { partial: partial.to_owned() });
    }
    let removed = if is_folder { remove_folder(partial) } else { fs::remove_file(partial) };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            Err(RestoreError::PartialTaken { partial: partial.to_owned() })
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove")(error)),
        _ => Ok(()),
    }
}

/// Removes the folder of a machine that was not complete, with the files in it. A restore makes no folder in it: if there is one,
/// nothing is removed.
fn remove_folder(folder: &Path) -> io::Result<()> {
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    for entry in &entries {
        if entry.file_type()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
    }
    entries.iter().try_for_each(|entry| fs::remove_file(entry.path()))?;
    fs::remove_dir(folder)
}

/// Gives a file what a person or a program gave the file that it replaces.
fn take_over(file: &File, old: &Metadata, old_file: &File) {
    take_owner(file, old);
    let mut names = vec![0; 64 << 10];
    let Ok(length) = flistxattr(old_file, &mut names) else { return };
    let mut value = vec![0; 64 << 10];
    for name in names.get(..length).unwrap_or_default().split(|byte| *byte == 0).filter(|it| !it.is_empty()) {
        let name = OsStr::from_bytes(name);
        // Labels and lists of permissions; what is not allowed, or not known here, is passed over.
        if let Ok(length) = fgetxattr(old_file, name, &mut value) {
            let _ = fsetxattr(file, name, value.get(..length).unwrap_or_default(), XattrFlags::empty());
        }
    }
}

fn take_owner(file: &File, old: &Metadata) {
    // Only root gives a file to somebody else. A group of one's own is possible.
    let has_group =
        fchown(file, Some(old.uid()), Some(old.gid())).is_ok() || fchown(file, None, Some(old.gid())).is_ok();
    // What the old group was allowed, another one is not. Last, as a change of the owner takes bits from the mode.
    let kept = if has_group { 0o7777 } else { 0o707 };
    let mark = file.metadata().map_or(0, |metadata| metadata.mode() & MARK);
    let _ = file.set_permissions(Permissions::from_mode(old.mode() & kept | mark));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_name_lies_beside_its_target_and_is_never_too_long() {
        assert_eq!(partial_path(Path::new("a/web.raw")), Path::new("a/web.raw.ekko-partial"));
        assert_eq!(partial_path(Path::new("web")), Path::new("web.ekko-partial"));
        let long = "x".repeat(LONGEST_NAME);
        let partial = partial_path(&Path::new("/srv").join(&long));
        assert_eq!(partial.parent(), Some(Path::new("/srv")));
        assert_eq!(partial.file_name().unwrap().len(), LONGEST_NAME);
        assert_eq!(parent(Path::new("web")), Path::new("."));
    }
}
