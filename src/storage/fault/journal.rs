//! What would be undone if the power went now.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// All that is not durable yet: changes of bytes by file, changes of names in their order.
#[derive(Debug, Default)]
pub(super) struct Journal {
    files: HashMap<FileId, FileJournal>,
    names: Vec<NameChange>,
}

impl Journal {
    /// Notes that bytes of a range, or the size, of a file are about to change.
    pub(super) fn change(
        &mut self,
        id: FileId,
        file: &Arc<File>,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let old = read_range(file, offset, length)?;
        let change = Change { offset, length, old, old_size: file.metadata()?.len() };
        let fresh = || FileJournal { file: Arc::clone(file), changes: Vec::new(), lost: 0 };
        self.files.entry(id).or_insert_with(fresh).changes.push(change);
        Ok(())
    }

    /// Notes that a sync failed: what it was to make durable is lost, though it can still be read.
    pub(super) fn sync_failed(&mut self, id: FileId) {
        if let Some(journal) = self.files.get_mut(&id) {
            journal.lost = journal.changes.len();
        }
    }

    /// Makes a file durable, but for what an earlier sync has lost: that goes now.
    pub(super) fn settle_file(&mut self, id: FileId) -> io::Result<()> {
        self.files.remove(&id).map_or(Ok(()), FileJournal::drop_lost)
    }

    /// Notes a change of the name `path`.
    pub(super) fn name(&mut self, path: &Path, undo: Undo) {
        self.names.push(NameChange { folder: resolved(path.parent().unwrap_or(path)), undo });
    }

    /// Makes the names in a folder durable.
    pub(super) fn settle_folder(&mut self, folder: &Path) -> io::Result<()> {
        let folder = resolved(folder);
        let mut pending: Vec<NameChange> = Vec::new();
        for name in self.names.drain(..) {
            if name.folder != folder {
                pending.push(name);
                continue;
            }
            match name.undo {
                Undo::Remove { path, kept } if kept.is_dir() => {
                    // Nothing in a folder that is gone can come back.
                    let gone = path.file_name().map(|last| folder.join(last));
                    pending.retain(|older| gone.as_ref().is_none_or(|gone| !older.folder.starts_with(gone)));
                    fs::remove_dir_all(kept)?;
                }
                Undo::Remove { kept, .. } | Undo::Rename { replaced: Some(kept), .. } => {
                    fs::remove_file(kept)?;
                }
                Undo::Create(_) | Undo::CreateFolder(_) | Undo::Rename { replaced: None, .. } => {}
            }
        }
        self.names = pending;
        // The open handles of files that have lost their last name would hold their room.
        self.files.retain(|_, journal| journal.file.metadata().is_ok_and(|file| file.nlink() > 0));
        Ok(())
    }

    /// Undoes everything, or leaves the first half of it.
    pub(super) fn undo(&mut self, half: bool) -> io::Result<()> {
        let kept = |count: usize| if half { count.div_ceil(2) } else { 0 };
        for (_, mut journal) in self.files.drain() {
            journal.undo(kept(journal.changes.len()))?;
        }
        let kept = kept(self.names.len());
        self.names.drain(kept..).rev().try_for_each(|name| name.undo.run())?;
        self.names.clear();
        Ok(())
    }
}

/// What a file is called below its names: it stays the same when the file is renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    filesystem: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { filesystem: metadata.dev(), inode: metadata.ino() }
    }
}

/// What was done to a file since its last sync.
#[derive(Debug)]
struct FileJournal {
    /// Held open, so that the file can be put right under whatever name, and its number goes to no other.
    file: Arc<File>,
    changes: Vec<Change>,
    /// How many of the changes, from the first, a failed sync has lost.
    lost: usize,
}

#[derive(Debug)]
struct Change {
    offset: u64,
    length: u64,
    /// What the file had of the range.
    old: Vec<u8>,
    old_size: u64,
}

impl FileJournal {
    /// Undoes the changes from the last down to number `kept`.
    fn undo(&mut self, kept: usize) -> io::Result<()> {
        for change in self.changes.drain(kept..).rev() {
            self.file.set_len(change.old_size)?;
            self.file.write_all_at(&change.old, change.offset)?;
        }
        Ok(())
    }

    /// Takes from the file what a failed sync has lost, and leaves what was written after it.
    fn drop_lost(mut self) -> io::Result<()> {
        if self.lost == 0 {
            return Ok(());
        }
        let size = self.file.metadata()?.len();
        let mut later = Vec::new();
        for change in self.changes.iter().skip(self.lost) {
            later.push((change.offset, read_range(&self.file, change.offset, change.length)?));
        }
        self.undo(0)?;
        self.file.set_len(size)?;
        later.into_iter().try_for_each(|(offset, bytes)| self.file.write_all_at(&bytes, offset))
    }
}

/// Reads what a file has of a range.
fn read_range(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let end = offset.saturating_add(length).min(file.metadata()?.len());
    let length = usize::try_from(end.saturating_sub(offset)).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// A change of a name, durable when its folder is synced; a rename counts for the folder of the new name.
#[derive(Debug)]
struct NameChange {
    folder: PathBuf,
    undo: Undo,
}

/// What was done to a name, with what is needed to undo it: removed and replaced things are kept aside.
#[derive(Debug)]
pub(super) enum Undo {
    Create(PathBuf),
    CreateFolder(PathBuf),
    Rename { from: PathBuf, to: PathBuf, replaced: Option<PathBuf> },
    Remove { path: PathBuf, kept: PathBuf },
}

impl Undo {
    fn run(self) -> io::Result<()> {
        // A thing that is no longer there was renamed or removed durably by way of another folder.
        let or_gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        match self {
            Self::Create(path) => or_gone(fs::remove_file(path)),
            Self::CreateFolder(path) => or_gone(fs::remove_dir_all(path)),
            Self::Rename { from, to, replaced } => {
                or_gone(fs::rename(&to, from))?;
                replaced.map_or(Ok(()), |kept| fs::rename(kept, to))
            }
            Self::Remove { path, kept } => fs::rename(kept, path),
        }
    }
}

/// One folder has one name here, however its path is written.
fn resolved(folder: &Path) -> PathBuf {
    fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned())
}
