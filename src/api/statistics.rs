//! Documents about what a repository holds.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::progress::Progress;
use crate::repository::{NameStats, Repository, RepositoryError, RepositoryStats};

/// What a repository holds and takes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Statistics {
    /// Backups.
    pub backups: u64,
    /// Backupsets.
    pub backupsets: u64,
    /// Stored segments.
    pub segments: u64,
    /// Plain bytes of all backups.
    pub referenced_bytes: u64,
    /// The same, each segment once.
    pub unique_bytes: u64,
    /// Encoded bytes.
    pub stored_bytes: u64,
    /// Encoded bytes of segments that no backup names.
    pub garbage_bytes: u64,
    /// What the repository takes on its disk.
    pub disk_bytes: u64,
    /// What of that is held free for cleaning up when the disk is full.
    #[serde(default)]
    pub reserve_bytes: u64,
    /// What the disk has left.
    #[serde(default)]
    pub free_bytes: u64,
    /// What the backups of each image hold, by name.
    #[serde(default)]
    pub names: Vec<NameStatistics>,
}

/// What the backups of an image hold.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NameStatistics {
    /// The image.
    pub name: String,
    /// How many backups there are.
    pub backups: u64,
    /// The disk's size in bytes in the newest of them.
    pub size_of_disk: u64,
    /// Bytes of the disk's segments that are not zero in the newest of them.
    pub used_bytes: u64,
    /// Plain bytes of all of them.
    pub referenced_bytes: u64,
    /// Encoded bytes of the segments that they were the first to store.
    pub added_bytes: u64,
    /// Encoded bytes that no backup of another image needs: deleting all backups of this image frees so much.
    pub exclusive_bytes: u64,
}

impl From<NameStats> for NameStatistics {
    fn from(stats: NameStats) -> Self {
        let NameStats {
            name,
            backups,
            size_of_disk,
            used_bytes,
            referenced_bytes,
            added_bytes,
            exclusive_bytes,
        } = stats;
        let name = name.to_string();
        Self { name, backups, size_of_disk, used_bytes, referenced_bytes, added_bytes, exclusive_bytes }
    }
}

/// Counts what a repository holds.
///
/// # Errors
///
/// If it cannot be read.
pub fn statistics(repository: &Repository, progress: &dyn Progress) -> Result<Statistics, RepositoryError> {
    let RepositoryStats {
        backups,
        backupsets,
        segments,
        referenced_bytes,
        unique_bytes,
        stored_bytes,
        garbage_bytes,
        disk_bytes,
        reserve_bytes,
        free_bytes,
        names,
    } = repository.statistics(progress)?;
    Ok(Statistics {
        backups,
        backupsets,
        segments,
        referenced_bytes,
        unique_bytes,
        stored_bytes,
        garbage_bytes,
        disk_bytes,
        reserve_bytes,
        free_bytes,
        names: names.into_iter().map(NameStatistics::from).collect(),
    })
}
