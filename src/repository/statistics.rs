//! What a repository holds, from its manifests and packs alone.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::progress::{Notice, Progress};
use crate::repository::{Repository, RepositoryError};
use crate::segment::{SegmentIndex, SegmentKey};
use crate::storage::Storage;

/// Counts over a whole repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepositoryStats {
    /// How many backups there are.
    pub backups: u64,
    /// How many backupsets with at least one backup there are.
    pub backupsets: u64,
    /// How many different segments are stored.
    pub segments: u64,
    /// Plain bytes over all manifests: what the backups would take without deduplication and compression.
    pub referenced_bytes: u64,
    /// Plain bytes of the segments that a manifest names, once each.
    pub unique_bytes: u64,
    /// Encoded bytes of all stored segments.
    pub stored_bytes: u64,
    /// Encoded bytes of stored segments that no manifest names; part of `stored_bytes`.
    pub garbage_bytes: u64,
    /// What the repository takes on the disk, as `du` says.
    pub disk_bytes: u64,
    /// What of `disk_bytes` is held free for cleaning up when the disk is full.
    pub reserve_bytes: u64,
    /// What the disk has left.
    pub free_bytes: u64,
}

/// A stored segment: 32 bytes each is the memory that counting takes.
struct Stored {
    key: SegmentKey,
    plain: u32,
    encoded: u32,
    /// Whether a manifest names it. A copy of a segment that is stored twice is garbage.
    named: bool,
}

impl Repository {
    /// Adds up what its files take on the disk, as `du` says.
    pub fn disk_bytes(&self) -> u64 {
        disk_usage(self.storage.as_ref(), self.layout.root())
    }

    /// Counts what the repository holds. Takes no lock and does not open the index; 32 bytes of memory for
    /// each stored segment.
    pub fn statistics(&self, progress: &dyn Progress) -> Result<RepositoryStats, RepositoryError> {
        let tell = |kind, what: String| progress.notice(Notice::Problem { kind, what });
        let mut stored = Vec::new();
        let problems = self.catalog()?.for_each_segment(|_, entry| {
            let encoded = u32::try_from(entry.stored_length).unwrap_or(u32::MAX);
            stored.push(Stored { key: entry.key, plain: entry.plain_length, encoded, named: false });
        })?;
        for problem in problems {
            tell(problem.error.kind(), problem.error.to_string());
        }
        stored.sort_by_key(|segment| segment.key);
        let (sets, problems) = self.backupsets()?;
        for problem in problems {
            tell(problem.kind(), problem.to_string());
        }
        let mut stats = RepositoryStats::default();
        for set in &sets {
            stats.backupsets += u64::from(!set.backups.is_empty());
            for backup in &set.backups {
                stats.backups += 1;
                let manifest = match self.manifest(set, backup) {
                    Ok(manifest) => manifest,
                    Err(error) => {
                        tell(error.kind(), error.to_string());
                        continue;
                    }
                };
                let length = |index: SegmentIndex| u64::from(manifest.info().geometry.length(index));
                for (index, segment) in manifest.segments() {
                    stats.referenced_bytes += length(index);
                    let at = stored.partition_point(|other| other.key < segment.key);
                    if let Some(found) = stored.get_mut(at).filter(|found| found.key == segment.key) {
                        found.named = true;
                    }
                }
            }
        }
        for segment in &stored {
            stats.segments += 1;
            stats.stored_bytes += u64::from(segment.encoded);
            if segment.named {
                stats.unique_bytes += u64::from(segment.plain);
            } else {
                stats.garbage_bytes += u64::from(segment.encoded);
            }
        }
        stats.disk_bytes = self.disk_bytes();
        stats.reserve_bytes =
            self.storage.examine(&self.layout.reserve()).map_or(0, |reserve| reserve.blocks() * 512);
        stats.free_bytes = rustix::fs::statvfs(self.layout.root())
            .map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        Ok(stats)
    }
}

/// Adds up the blocks of all files below a folder. What vanishes meanwhile counts for nothing.
fn disk_usage(storage: &dyn Storage, folder: &Path) -> u64 {
    let of_entry = |name: &String| {
        let path = folder.join(name);
        let Ok(metadata) = storage.examine(&path) else { return 0 };
        let inside = if metadata.is_dir() { disk_usage(storage, &path) } else { 0 };
        metadata.blocks() * 512 + inside
    };
    storage.list(folder).unwrap_or_default().iter().map(of_entry).sum()
}
