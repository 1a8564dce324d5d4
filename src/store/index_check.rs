//! Looking at an index's folder before sled does.
//!
//! sled opens its files by their paths: it would follow links out of the repository, wait at a pipe, and read files of any
//! length into memory. So everything in the folder is looked at first, by descriptors and without following links, and
//! only a folder that holds nothing but sled's own kind of files is handed to it, or removed.
//!
//! Between the look and sled's opening somebody could exchange a file. Whoever can do that can write to the repository
//! while Ekko uses it, and is its owner (docs/security.md); sled under a path of `/proc/self/fd` would not change that, as it
//! opens `blobs` and its snapshots by path again and again.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::storage::{Storage, StorageError, check_holes};

/// sled's `conf` and the names of its blobs and snapshots are short; a snapshot holds 16 bytes a page or so.
const LARGEST_CONF: u64 = 1 << 16;
/// sled reads a snapshot and a blob whole, in bytes.
const LARGEST_IN_MEMORY: u64 = 1 << 28;

/// Makes sure that a folder holds nothing but what sled puts there: regular files under its names, with one name each.
///
/// # Errors
/// With the first thing that is something else.
pub fn check_index_folder(storage: &dyn Storage, path: &Path) -> Result<(), StorageError> {
    for name in storage.list(path)? {
        let entry = path.join(&name);
        match name.as_str() {
            "blobs" => {
                for name in storage.list(&entry)? {
                    let blob = entry.join(&name);
                    let is_ours = name.parse::<i64>().is_ok_and(|number| number.to_string() == name);
                    check_file(storage, &blob, is_ours, LARGEST_IN_MEMORY)?;
                }
            }
            // What NFS keeps of a file that was removed while somebody had it open.
            name if name.starts_with(".nfs") => {}
            "conf" => check_file(storage, &entry, true, LARGEST_CONF)?,
            "db" => check_file(storage, &entry, true, u64::MAX)?,
            name => check_file(storage, &entry, is_snapshot(name), LARGEST_IN_MEMORY)?,
        }
    }
    Ok(())
}

fn is_snapshot(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("snap.") else { return false };
    let Some((number, suffix)) = rest.split_at_checked(16) else { return false };
    let digit = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    number.bytes().all(digit) && ["", ".generating", ".in___motion"].contains(&suffix)
}

fn check_file(storage: &dyn Storage, path: &Path, is_ours: bool, limit: u64) -> Result<(), StorageError> {
    let refused =
        |what: String| StorageError::new("use", path, io::Error::new(io::ErrorKind::InvalidData, what));
    if !is_ours {
        return Err(refused("sled gives nothing such a name".to_owned()));
    }
    let metadata = storage.examine(path)?;
    if metadata.nlink() > 1 {
        return Err(refused("it has another name (a hard link)".to_owned()));
    }
    if metadata.len() > limit {
        return Err(refused(format!("it has {} bytes, and {limit} is the most it may have", metadata.len())));
    }
    // Opening says whether it is a regular file.
    check_holes(storage.open_read(path)?.as_ref())
}
