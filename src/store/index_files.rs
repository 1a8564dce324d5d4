//! The files of an index, as files: made durable, and their digest.
//!
//! sled opens and writes them itself, past the storage seam.

use std::fs::TryLockError;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::segment::Fingerprint;
use crate::storage::StorageError;

/// How often, and how long apart, it is looked whether sled has let go of a closed index: 10 seconds in all.
const LET_GO_TRIES: u32 = 5_000;
const LET_GO_PAUSE: Duration = Duration::from_millis(2);

/// Waits until sled's own threads have let go of an index whose last handle was dropped: they hold its file,
/// and with it sled's lock on it, for a moment longer, and may still write.
pub(super) fn is_let_go(path: &Path) -> Result<bool, StorageError> {
    let path = path.join("db");
    let failed = |source| StorageError::new("lock", &path, source);
    let file = std::fs::File::open(&path).map_err(failed)?;
    for _ in 0..LET_GO_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LET_GO_PAUSE),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
    Ok(false)
}

/// Makes the files of an index durable.
pub(super) fn sync_files(path: &Path) -> Result<(), StorageError> {
    for_each_file(path, &mut |path| {
        std::fs::File::open(path)
            .and_then(|file| {
                make_private(&file)?;
                file.sync_data()
            })
            .map_err(|source| StorageError::new("sync", path, source))
    })
}

/// Leaves nothing of a file to others. sled creates files as the umask says.
fn make_private(file: &std::fs::File) -> std::io::Result<()> {
    let metadata = file.metadata()?;
    let mode = if metadata.is_dir() { 0o700 } else { 0o600 };
    if metadata.permissions().mode() & 0o777 == mode {
        return Ok(());
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

fn for_each_file(
    path: &Path,
    each: &mut dyn FnMut(&Path) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let failed = |source| StorageError::new("list", path, source);
    let mut entries =
        std::fs::read_dir(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            for_each_file(&path, each)?;
        } else {
            each(&path)?;
        }
    }
    each(path)
}

/// Computes the digest of an index that is not open: of the name, length and bytes of each of its files.
pub fn digest(path: &Path) -> Result<Fingerprint, StorageError> {
    let mut hasher = blake3::Hasher::new();
    for_each_file(path, &mut |file| {
        let failed = |source| StorageError::new("read", file, source);
        let name = file.strip_prefix(path).unwrap_or(file).as_os_str().as_encoded_bytes();
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
        if file.is_dir() {
            return Ok(());
        }
        let opened = std::fs::File::open(file).map_err(failed)?;
        hasher.update(&opened.metadata().map_err(failed)?.len().to_le_bytes());
        hasher.update_reader(opened).map_err(failed)?;
        Ok(())
    })?;
    Ok(Fingerprint::from_bytes(*hasher.finalize().as_bytes()))
}
