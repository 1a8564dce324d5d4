//! Whose a repository is: every file in it belongs to one user, who must be able to read all of them.
//!
//! The files are their owner's alone (mode 0600). A file that another user, root above all, made in the repository would lock
//! its owner out. So who changes a repository must make files that belong to the owner of `ekko.toml`, and is refused
//! otherwise, before anything is left in it. What counts is whom a new file belongs to, not who makes it: a file server that takes
//! root for another user gives root's files to that user.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::repository::{Layout, RepositoryError};
use crate::storage::{Storage, StorageError};

/// Makes sure that what this process creates in the repository belongs to the repository's owner.
///
/// # Errors
/// It does not.
pub(crate) fn check_owner(storage: &dyn Storage, layout: &Layout) -> Result<(), RepositoryError> {
    let found = match storage.examine(&layout.settings()) {
        Err(error) if error.is_not_found() => storage.examine(layout.root())?,
        found => found?,
    };
    let owner = found.uid();
    let user = rustix::process::geteuid().as_raw();
    if owner == user || owner_of_new_file(storage, &layout.own_probe())? == Some(owner) {
        return Ok(());
    }
    Err(RepositoryError::NotOwner {
        path: layout.root().to_owned(),
        owner: name_of(owner),
        user: name_of(user),
    })
}

/// Returns whom a new file belongs to; nothing if this process may not make any.
fn owner_of_new_file(storage: &dyn Storage, path: &Path) -> Result<Option<u32>, StorageError> {
    match storage.create(path) {
        Ok(_) => {}
        Err(error) if error.source.kind() == ErrorKind::PermissionDenied => return Ok(None),
        Err(error) => return Err(error),
    }
    let found = storage.examine(path).map(|found| Some(found.uid()));
    storage.unlink(path)?;
    found
}

/// Says whose the repository is, if it is not this user's to read.
pub(super) fn explain_denied(path: &Path, error: &StorageError) -> Option<RepositoryError> {
    if error.source.kind() != ErrorKind::PermissionDenied {
        return None;
    }
    let owner = std::fs::metadata(path).ok()?.uid();
    let user = rustix::process::geteuid().as_raw();
    (owner != user).then(|| RepositoryError::NotOwner {
        path: path.to_owned(),
        owner: name_of(owner),
        user: name_of(user),
    })
}

/// Returns the name of a user of this machine, or the number of an unknown one.
fn name_of(user: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let number = user.to_string();
    let mut lines = users.lines().map(|line| line.split(':'));
    let name = lines.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)? == number).then(|| name.to_owned())
    });
    // As sudo takes a number, with quotes for the shell.
    name.unwrap_or_else(|| format!("'#{number}'"))
}
