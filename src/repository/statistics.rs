//! What a repository holds, from its manifests and packs alone.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::manifest::ImageName;
use crate::progress::{Notice, Progress};
use crate::repository::{Repository, RepositoryError};
use crate::segment::{SegmentIndex, SegmentKey};
use crate::storage::Storage;

/// Counts over a whole repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// What the backups of each name hold, by name.
    pub names: Vec<NameStats>,
}

/// What the backups of a name hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameStats {
    /// The name.
    pub name: ImageName,
    /// How many backups there are.
    pub backups: u64,
    /// The disk's size in bytes in the newest of them.
    pub size_of_disk: u64,
    /// Bytes of the disk's segments that are not zero in the newest of them.
    pub used_bytes: u64,
    /// Plain bytes over all of them.
    pub referenced_bytes: u64,
    /// Encoded bytes of the segments that they were the first to store.
    pub added_bytes: u64,
    /// Encoded bytes of the segments that no backup of another name needs: deleting all backups of this name frees so much.
    pub exclusive_bytes: u64,
}

/// A stored segment: 36 bytes each is the memory that counting takes.
struct Stored {
    key: SegmentKey,
    plain: u32,
    encoded: u32,
    user: User,
}

/// Whose backups need a segment. A copy of a segment that is stored twice is garbage.
#[derive(Clone, Copy, PartialEq, Eq)]
struct User(u32);

impl User {
    const NOBODY: Self = Self(u32::MAX);
    const SEVERAL: Self = Self(u32::MAX - 1);

    /// Returns whose it is when backups of a name need it, too.
    fn and(self, name: Self) -> Self {
        if self == Self::NOBODY || self == name { name } else { Self::SEVERAL }
    }
}

impl Repository {
    /// Adds up what its files take on the disk, as `du` says.
    pub fn disk_bytes(&self) -> u64 {
        disk_usage(self.storage.as_ref(), self.layout.root())
    }

    /// Counts what the repository holds. Takes no lock and does not open the index; 36 bytes of memory for
    /// each stored segment.
    pub fn statistics(&self, progress: &dyn Progress) -> Result<RepositoryStats, RepositoryError> {
        let tell = |kind, what: String| progress.notice(Notice::Problem { kind, what });
        let mut stored = Vec::new();
        let problems = self.catalog()?.for_each_segment(|_, entry| {
            let encoded = u32::try_from(entry.stored_length).unwrap_or(u32::MAX);
            stored.push(Stored { key: entry.key, plain: entry.plain_length, encoded, user: User::NOBODY });
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
        let mut names = BTreeMap::new();
        for set in sets.iter().filter(|set| !set.backups.is_empty()) {
            stats.backupsets += 1;
            // There are fewer names than 2^32 - 2.
            let number = u32::try_from(names.len()).unwrap_or(User::SEVERAL.0);
            let newest = Self::newest(&sets, &set.name).map(|(_, backup)| backup);
            let (user, name) = names.entry(&set.name).or_insert_with(|| {
                let name = NameStats {
                    name: set.name.clone(),
                    backups: 0,
                    size_of_disk: newest.map_or(0, |backup| backup.size_of_disk),
                    used_bytes: newest.map_or(0, |backup| backup.amounts.used_bytes),
                    referenced_bytes: 0,
                    added_bytes: 0,
                    exclusive_bytes: 0,
                };
                (User(number), name)
            });
            for backup in &set.backups {
                stats.backups += 1;
                name.backups += 1;
                name.added_bytes += backup.amounts.stored_bytes;
                let manifest = match self.manifest(set, backup) {
                    Ok(manifest) => manifest,
                    Err(error) => {
                        tell(error.kind(), error.to_string());
                        continue;
                    }
                };
                let length = |index: SegmentIndex| u64::from(manifest.info().geometry.length(index));
                for (index, segment) in manifest.segments() {
                    name.referenced_bytes += length(index);
                    let at = stored.partition_point(|other| other.key < segment.key);
                    if let Some(found) = stored.get_mut(at).filter(|found| found.key == segment.key) {
                        found.user = found.user.and(*user);
                    }
                }
            }
        }
        let mut exclusive: HashMap<u32, u64> = HashMap::new();
        for segment in &stored {
            let encoded = u64::from(segment.encoded);
            stats.segments += 1;
            stats.stored_bytes += encoded;
            match segment.user {
                User::NOBODY => stats.garbage_bytes += encoded,
                User(user) => {
                    stats.unique_bytes += u64::from(segment.plain);
                    *exclusive.entry(user).or_default() += encoded;
                }
            }
        }
        for (User(user), mut name) in names.into_values() {
            name.exclusive_bytes = exclusive.get(&user).copied().unwrap_or(0);
            stats.referenced_bytes += name.referenced_bytes;
            stats.names.push(name);
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
