//! The segments that a project's newest backups hold, shared by all of its sessions.
//!
//! A set is 6 MB at most. Sessions that begin while the project's newest backups stay the same share one; its memory is free
//! when the last of them is committed or given up. All sets together have a bound: if it is reached, a session uses the set
//! that an earlier session of its project has, or none, and its client sends again what the set does not name.
//!
//! A project whose newest backups change has two sets at most, of the sessions before and after. Further sessions use the later
//! one until one of the two is free: no project takes the memory of others by committing and beginning again and again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::api::{Project, View};
use crate::repository::{Backupset, Repository};
use crate::segment::{Fingerprint, SegmentKey};

/// How many segments of a project's backups are known at most, of the newest backup of each image: 6 MB. A client sends the
/// others once more.
const MOST_OWNED: usize = 1 << 18;
/// How many there are in all sets together: 46 MB.
const MOST_ALIVE: usize = 1 << 21;
/// How many projects are looked up before those without a session are forgotten.
const MOST_PROJECTS: usize = 1024;

/// The segments that a project's newest backups held when it was made.
#[derive(Debug, Default)]
pub(super) struct Owned {
    /// Sorted.
    keys: Vec<SegmentKey>,
    alive: Arc<AtomicUsize>,
}

impl Owned {
    fn new(mut keys: Vec<SegmentKey>, alive: &Arc<AtomicUsize>) -> Self {
        keys.sort_unstable();
        keys.dedup();
        keys.shrink_to_fit();
        alive.fetch_add(keys.len(), Ordering::AcqRel);
        Self { keys, alive: Arc::clone(alive) }
    }

    /// Says whether the project holds a segment.
    pub(super) fn holds(&self, key: &SegmentKey) -> bool {
        self.keys.binary_search(key).is_ok()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.keys.len(), Ordering::AcqRel);
    }
}

/// The sets of a project.
#[derive(Debug, Default)]
struct Newest {
    /// The BLAKE3 of the project's newest manifests, when the newest set was made.
    manifests: Option<Fingerprint>,
    owned: Weak<Owned>,
    /// The set before it, which sessions may still have.
    before: Weak<Owned>,
}

impl Newest {
    fn is_alive(&self) -> bool {
        self.owned.strong_count() > 0 || self.before.strong_count() > 0
    }
}

/// The sets of all projects that have sessions.
#[derive(Debug, Default)]
pub(super) struct OwnedSets {
    alive: Arc<AtomicUsize>,
    projects: Mutex<HashMap<Option<Project>, Arc<Mutex<Newest>>>>,
}

impl OwnedSets {
    /// Returns how many segments all sets have together.
    pub(super) fn alive(&self) -> usize {
        self.alive.load(Ordering::Acquire)
    }

    fn project(&self, view: &View) -> Arc<Mutex<Newest>> {
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        if projects.len() >= MOST_PROJECTS {
            projects.retain(|_, newest| Arc::strong_count(newest) > 1 || is_alive(newest));
        }
        Arc::clone(projects.entry(view.project().cloned()).or_default())
    }

    /// Returns the segments that the newest of these backups hold. Images whose manifests cannot be read are left out.
    pub(super) fn of(&self, repository: &Repository, view: &View, sets: &[Arc<Backupset>]) -> Arc<Owned> {
        let newest = || sets.iter().filter_map(|set| Some((set, set.backups.last()?)));
        let manifests: Vec<u8> = newest().flat_map(|(_, backup)| *backup.manifest.as_bytes()).collect();
        let manifests = Some(Fingerprint::of(&manifests));
        let project = self.project(view);
        // Held over I/O: sessions of one project that begin at once wait for one set instead of making one each.
        let mut latest = project.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = self.alive() + MOST_OWNED > MOST_ALIVE;
        if let Some(owned) = latest.owned.upgrade()
            && (latest.manifests == manifests || is_full || latest.before.strong_count() > 0)
        {
            return owned;
        }
        if is_full {
            return Arc::default();
        }
        let keys = first_keys(newest(), MOST_OWNED, |(set, backup), room| {
            let manifest = repository.manifest(set, backup).ok()?;
            manifest.verify().ok()?;
            Some(manifest.segments().take(room).map(|(_, segment)| segment.key).collect())
        });
        let owned = Arc::new(Owned::new(keys, &self.alive));
        if latest.owned.strong_count() > 0 {
            latest.before = std::mem::take(&mut latest.owned);
        }
        (latest.manifests, latest.owned) = (manifests, Arc::downgrade(&owned));
        owned
    }
}

fn is_alive(newest: &Mutex<Newest>) -> bool {
    newest.lock().unwrap_or_else(PoisonError::into_inner).is_alive()
}

/// Returns the first keys of all these manifests, and reads no manifest of which there would be none. `read` is told how many
/// there may be.
fn first_keys<T>(
    manifests: impl Iterator<Item = T>,
    most: usize,
    read: impl Fn(T, usize) -> Option<Vec<SegmentKey>>,
) -> Vec<SegmentKey> {
    let mut keys = Vec::new();
    for manifest in manifests {
        let room = most.saturating_sub(keys.len());
        if room == 0 {
            break;
        }
        keys.extend(read(manifest, room).unwrap_or_default());
    }
    keys
}

#[cfg(test)]
impl OwnedSets {
    /// Takes all the room there is, until it is dropped.
    pub(super) fn fill(&self) -> Owned {
        let keys = (0..u32::try_from(MOST_ALIVE).unwrap_or(0)).map(|number| {
            let mut hash = [0; 20];
            hash[..4].copy_from_slice(&number.to_be_bytes());
            let hash = crate::segment::SegmentHash::from_bytes(hash);
            SegmentKey { hash, twin: crate::segment::Twin(0) }
        });
        Owned::new(keys.collect(), &self.alive)
    }
}

#[cfg(test)]
impl Owned {
    /// Makes a set of its own.
    pub(super) fn of(keys: &[SegmentKey]) -> Arc<Self> {
        Arc::new(Self::new(keys.to_vec(), &Arc::default()))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::segment::{SegmentHash, Twin};

    #[test]
    fn no_manifest_is_read_for_which_there_is_no_room() {
        let key = |number| SegmentKey { hash: SegmentHash::from_bytes([number; 20]), twin: Twin(0) };
        let reads = Cell::new(0);
        let keys = first_keys(0..100_u8, 5, |number, room| {
            reads.set(reads.get() + 1);
            // One cannot be read.
            (number != 1).then(|| [key(number); 3].into_iter().take(room).collect())
        });
        assert_eq!(keys, [key(0), key(0), key(0), key(2), key(2)]);
        assert_eq!(reads.get(), 3);
    }
}
