//! A file for a person: it appears whole under its name, or not at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::storage::{OsStorage, Storage, StorageError};

/// Makes a temporary folder for its owner alone, whatever the umask: in `place`, or where temporary files belong.
pub fn private_folder(prefix: &str, place: Option<&Path>) -> io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).permissions(Permissions::from_mode(0o700));
    place.map_or_else(|| builder.tempdir(), |place| builder.tempdir_in(place))
}

/// A file that is being made in a hidden folder beside its place. Dropped before [`NewFile::finish`], nothing
/// of it is left.
#[derive(Debug)]
pub struct NewFile {
    folder: tempfile::TempDir,
    path: PathBuf,
    replace: bool,
}

impl NewFile {
    /// Begins a file that will appear as `path`.
    ///
    /// # Errors
    /// There is something at `path` already, unless `replace` says that a file there is to be replaced; what
    /// is no file is never replaced.
    pub fn begin(path: &Path, replace: bool) -> Result<Self, StorageError> {
        let exists =
            |why| StorageError::new("create", path, io::Error::new(io::ErrorKind::AlreadyExists, why));
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.is_file() => {
                return Err(exists("something that is no file has this name"));
            }
            Ok(_) if !replace => return Err(exists("it exists; --force replaces it")),
            _ => {}
        }
        let folder = private_folder(".ekko-", Some(parent(path)));
        let folder = folder.map_err(|source| StorageError::new("create", path, source))?;
        Ok(Self { folder, path: path.to_owned(), replace })
    }

    /// Returns where to write the file now. Nothing is there yet, and what else is written into its folder is
    /// removed.
    pub fn temporary(&self) -> PathBuf {
        self.folder.path().join("file")
    }

    /// Creates the file there, for its owner alone from the first moment on: its name may be in a folder that others see.
    pub fn create(&self) -> Result<File, StorageError> {
        let temporary = self.temporary();
        let created = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary);
        created.map_err(|source| StorageError::new("create", &self.path, source))
    }

    /// Makes the file durable, readable by its owner alone, and gives it its name.
    pub fn finish(self) -> Result<(), StorageError> {
        let temporary = self.temporary();
        let path = self.path.as_path();
        let failed = |operation| move |source| StorageError::new(operation, path, source);
        let file = File::open(&temporary).map_err(failed("open"))?;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed("change the mode of"))?;
        file.sync_all().map_err(failed("sync"))?;
        if self.replace {
            OsStorage.rename(&temporary, &self.path)?;
        } else {
            OsStorage.rename_new(&temporary, &self.path)?;
        }
        OsStorage.sync_folder(parent(&self.path))
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        OsStorage.list(folder).unwrap()
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all_and_replaces_only_when_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let begun = NewFile::begin(&path, false).unwrap();
        fs::write(begun.temporary(), "first").unwrap();
        drop(begun);
        assert_eq!(names(folder.path()), Vec::<String>::new(), "nothing half-made stays");
        for (content, replace) in [("first", false), ("second", true)] {
            let begun = NewFile::begin(&path, replace).unwrap();
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode(begun.folder.path()), 0o700);
            begun.create().unwrap();
            assert_eq!(mode(&begun.temporary()), 0o600);
            fs::write(begun.temporary(), content).unwrap();
            begun.finish().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(names(folder.path()), ["file"]);
        }
        assert!(NewFile::begin(&path, false).is_err());
        assert!(NewFile::begin(folder.path(), true).is_err(), "a folder is never replaced");
    }

    #[test]
    fn a_file_that_somebody_made_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let begun = NewFile::begin(&path, false).unwrap();
        fs::write(begun.temporary(), "ours").unwrap();
        fs::write(&path, "theirs").unwrap();
        assert!(begun.finish().is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
    }
}
