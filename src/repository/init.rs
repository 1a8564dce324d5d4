//! How a repository is created.
//!
//! If nothing exists at the path, the repository is built in a temporary folder beside it and then renamed: after a crash it
//! exists completely or not at all. An existing empty folder may be a mount point, or have an owner and a mode that somebody
//! chose. There, the repository is built in place, under its lock, and `ekko.toml` is written last: until then the folder
//! counts as incomplete, and the next `init` completes it. In both cases exactly one of several concurrent calls succeeds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::codec::CompressionSetting;
use crate::repository::enclosing::enclosing_repository;
use crate::repository::lock::Lock;
use crate::repository::room::refill_reserve;
use crate::repository::settings::{KEEP_DELETED, KEEP_UNFINISHED, Settings, text};
use crate::repository::state::StateFile;
use crate::repository::{Layout, Repository, RepositoryError};
use crate::segment::{DEFAULT_SEGMENT_SIZE, SegmentSize};
use crate::storage::{OsStorage, RootStorage, Storage, replace};

/// How long a call waits for another one that creates the same repository.
const WAIT: Duration = Duration::from_secs(10);

/// How old a temporary folder is at least that a killed call left: none takes so long to lock its folder.
const LEFT_AFTER: Duration = Duration::from_hours(1);

/// How the names of temporary folders begin. A UUID follows.
const TEMPORARY: &str = ".ekko-init-";

/// The properties of a new repository.
#[derive(Clone, Copy, Debug)]
pub struct InitOptions {
    /// The size of its segments, for good.
    pub segment_size: SegmentSize,
    /// The compression that backups use unless they say otherwise.
    pub compression: CompressionSetting,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self { segment_size: DEFAULT_SEGMENT_SIZE, compression: CompressionSetting::default() }
    }
}

/// Creates a repository at `path`, which must not exist or be an empty folder.
pub(super) fn create(path: &Path, options: &InitOptions) -> Result<Repository, RepositoryError> {
    if let Some(repository) = enclosing_repository(path) {
        return Err(RepositoryError::Inside { path: path.to_owned(), repository });
    }
    if path.file_name().is_none() || path.symlink_metadata().is_ok() {
        create_in_place(&RootStorage::at(path), &Layout::new(path), options)?;
        return Repository::open(path);
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // The error names the folder that is missing, and not the temporary one.
    let names = OsStorage.list(parent)?;
    names.iter().filter(|name| is_temporary(name)).for_each(|name| remove_left(&parent.join(name)));
    let temporary = parent.join(format!("{TEMPORARY}{}", uuid::Uuid::new_v4().simple()));
    let created = create_in_place(&RootStorage::at(&temporary), &Layout::new(&temporary), options)
        .and_then(|()| take_name(&temporary, path));
    if let Err(error) = created {
        if temporary.exists() {
            remove(&temporary);
        }
        return Err(error);
    }
    OsStorage.sync_folder(parent)?;
    Repository::open(path)
}

/// Says whether a name is that of a temporary folder.
fn is_temporary(name: &str) -> bool {
    let id = name.strip_prefix(TEMPORARY);
    id.is_some_and(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Removes a temporary folder that a killed call left, unless it is too young, or holds anything that no call makes. One whose call
/// runs is locked.
fn remove_left(temporary: &Path) {
    let age = || std::fs::symlink_metadata(temporary).ok().filter(std::fs::Metadata::is_dir)?.modified().ok();
    // A call that runs may not have locked it yet.
    let is_old = age().is_some_and(|made| made.elapsed().is_ok_and(|age| age >= LEFT_AFTER));
    let names = || OsStorage.list(temporary);
    let is_unfinished = |names: Vec<String>| {
        let names: Vec<_> = names.into_iter().filter(|name| name != "ekko.toml").collect();
        is_unfinished(&OsStorage, temporary, &names)
    };
    if is_old && names().is_ok_and(is_unfinished) {
        tracing::info!(path = %temporary.display(), "removing what an interrupted init left");
        remove(temporary);
    }
}

/// Renames a complete repository to its final path. The kernel replaces nothing but an empty folder by a folder.
fn take_name(temporary: &Path, path: &Path) -> Result<(), RepositoryError> {
    OsStorage.rename(temporary, path).map_err(|error| match error.source.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
            if Layout::new(path).settings().exists() {
                RepositoryError::Exists { path: path.to_owned() }
            } else {
                RepositoryError::Occupied { path: path.to_owned() }
            }
        }
        io::ErrorKind::NotADirectory => RepositoryError::Occupied { path: path.to_owned() },
        _ => error.into(),
    })
}

/// Creates a repository in a folder that does not exist, is empty, or is the rest of a call that was cut short.
pub(super) fn create_in_place(
    storage: &dyn Storage,
    layout: &Layout,
    options: &InitOptions,
) -> Result<(), RepositoryError> {
    let root = layout.root();
    match storage.list(root) {
        Ok(_) => check_free(storage, root)?,
        Err(error) if error.is_not_found() => storage.create_folder(root)?,
        Err(error) if root.exists() => {
            tracing::debug!(%error, "not a folder");
            return Err(RepositoryError::Occupied { path: root.to_owned() });
        }
        Err(error) => return Err(error.into()),
    }
    let _lock = Lock::take(storage, layout, WAIT)?;
    // Another call may have been faster.
    check_free(storage, root)?;
    let settings = Settings {
        repository: uuid::Uuid::new_v4(),
        segment_size: options.segment_size,
        compression: options.compression,
        keep_unfinished: KEEP_UNFINISHED,
        keep_deleted: KEEP_DELETED,
    };
    for folder in [layout.packs(), layout.sets(), layout.indexes(), layout.leases()] {
        storage.create_folder(&folder)?;
    }
    StateFile::create(storage, &layout.state())?;
    refill_reserve(storage, layout)?;
    let text = text(&settings)
        .map_err(|error| RepositoryError::Settings { path: layout.settings(), what: error.to_string() })?;
    replace(storage, &layout.settings(), text.as_bytes())?;
    if let Some(parent) = root.parent() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        storage.sync_folder(parent)?;
    }
    Ok(())
}

/// Makes sure that nothing but the rest of a call that was cut short is in a folder.
fn check_free(storage: &dyn Storage, root: &Path) -> Result<(), RepositoryError> {
    let names = storage.list(root)?;
    if names.iter().any(|name| name == "ekko.toml") {
        return Err(RepositoryError::Exists { path: root.to_owned() });
    }
    if is_unfinished(storage, root, &names) {
        Ok(())
    } else {
        Err(RepositoryError::Occupied { path: root.to_owned() })
    }
}

/// The names in a new repository but for `ekko.toml`, which comes last.
const FILES: [&str; 4] = ["state", "reserve", "lock", "ekko.toml.tmp"];
const FOLDERS: [&str; 4] = ["packs", "manifests", "index", "leases"];

/// Says whether a folder is empty, or contains only what an `init` that was cut short leaves. A repository with data that lost
/// its `ekko.toml` is not unfinished.
pub(super) fn is_unfinished(storage: &dyn Storage, root: &Path, names: &[String]) -> bool {
    names.iter().all(|name| {
        let is_empty = || storage.list(&root.join(name)).is_ok_and(|names| names.is_empty());
        FILES.contains(&name.as_str()) || FOLDERS.contains(&name.as_str()) && is_empty()
    })
}

/// Removes a repository that was not finished, or that lost the race for its name, unless another process holds its lock.
fn remove(temporary: &Path) {
    let layout = Layout::new(temporary);
    let storage = Arc::new(RootStorage::at(temporary));
    let removed = || -> Result<(), RepositoryError> {
        let _lock = Lock::take(storage.as_ref(), &layout, Duration::ZERO)?;
        let names = storage.list(temporary)?;
        let path = |name: &str| -> PathBuf { temporary.join(name) };
        for name in names.iter().filter(|name| FOLDERS.contains(&name.as_str())) {
            storage.remove_folder(&path(name))?;
        }
        for name in names.iter().filter(|name| FILES.contains(&name.as_str()) || *name == "ekko.toml") {
            storage.unlink(&path(name))?;
        }
        Ok(OsStorage.remove_folder(temporary)?)
    };
    if let Err(error) = removed() {
        tracing::warn!(%error, "cannot remove an unfinished repository");
    }
}
