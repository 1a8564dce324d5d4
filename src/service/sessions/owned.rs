//! The segments that a project's newest backups hold, shared by all of its sessions.
//!
//! A set is 6 MB at most. Sessions that begin while the project's newest backups stay the same share one; its memory is free
//! when the last of them is committed or given up. All sets together have a bound, and a project has a share of it: a third of
//! what stays free ([`TIMES_LESS`]). So however many projects there are, the next one has a set, if a smaller one. Where that
//! would be smaller than the set that an earlier session of the project has, a session uses the earlier one. A client sends again
//! what the set does not name.
//!
//! A project whose newest backups change has two sets at most, of the sessions before and after. Further sessions use the later
//! one until one of the two is free: no project takes the memory of others by committing and beginning again and again.
//!
//! Manifests without a segment are opened once: a project may have many images that are empty, and sessions begin often.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::api::{Project, View};
use crate::repository::{BackupRecord, Backupset, Repository};
use crate::segment::{Fingerprint, SegmentKey};

/// How many segments of a project's backups are known at most, of the newest backup of each image: 6 MB. A client sends the
/// others once more.
const MOST_OWNED: usize = 1 << 18;
/// How many there are in all sets together: 46 MB.
const MOST_ALIVE: usize = 1 << 21;
/// How many times what a project has stays free when it has taken more.
const TIMES_LESS: usize = 3;
/// How many manifests are remembered that have no segment: 1 MB.
const MOST_EMPTY: usize = 1 << 14;
/// How many projects are looked up before those without a session are forgotten.
const MOST_PROJECTS: usize = 1024;

/// Room for so many segments, until this is dropped.
#[derive(Debug, Default)]
struct Room {
    segments: usize,
    alive: Arc<AtomicUsize>,
}

impl Room {
    /// Gives back what is not needed.
    fn shrink(&mut self, segments: usize) {
        let back = self.segments.saturating_sub(segments);
        self.alive.fetch_sub(back, Ordering::AcqRel);
        self.segments -= back;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.segments, Ordering::AcqRel);
    }
}

/// The segments that a project's newest backups held when it was made.
#[derive(Debug, Default)]
pub(super) struct Owned {
    /// Sorted.
    keys: Vec<SegmentKey>,
    /// Whether there was no room for more.
    is_cut: bool,
    _room: Room,
}

impl Owned {
    fn new(mut keys: Vec<SegmentKey>, mut room: Room) -> Self {
        let is_cut = room.segments < MOST_OWNED && keys.len() >= room.segments;
        keys.sort_unstable();
        keys.dedup();
        keys.shrink_to_fit();
        room.shrink(keys.len());
        Self { keys, is_cut, _room: room }
    }

    /// Says whether the project holds a segment.
    pub(super) fn holds(&self, key: &SegmentKey) -> bool {
        self.keys.binary_search(key).is_ok()
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

    /// Returns how many segments the project's sets have.
    fn held(&self) -> usize {
        let sets = [self.owned.upgrade(), self.before.upgrade()];
        sets.iter().flatten().map(|owned| owned.keys.len()).sum()
    }
}

/// The sets of all projects that have sessions.
#[derive(Debug, Default)]
pub(super) struct OwnedSets {
    alive: Arc<AtomicUsize>,
    projects: Mutex<HashMap<Option<Project>, Arc<Mutex<Newest>>>>,
    /// The BLAKE3 of manifests that have no segment.
    empty: Mutex<HashSet<Fingerprint>>,
    /// How many manifests were opened.
    #[cfg(test)]
    pub(super) opened: AtomicUsize,
}

impl OwnedSets {
    fn project(&self, view: &View) -> Arc<Mutex<Newest>> {
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        if projects.len() >= MOST_PROJECTS {
            projects.retain(|_, newest| Arc::strong_count(newest) > 1 || is_alive(newest));
        }
        Arc::clone(projects.entry(view.project().cloned()).or_default())
    }

    /// Takes room for another set of a project whose sets have so many segments. It is never more than there is, even for sets
    /// that are made at one moment.
    fn room(&self, held: usize) -> Room {
        let share = |alive: usize| {
            let free = MOST_ALIVE.saturating_sub(alive);
            MOST_OWNED.min(free.saturating_sub(TIMES_LESS * held) / (TIMES_LESS + 1))
        };
        let take = |alive| Some(alive + share(alive));
        let before = self.alive.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).unwrap_or(MOST_ALIVE);
        Room { segments: share(before), alive: Arc::clone(&self.alive) }
    }

    fn empty(&self) -> MutexGuard<'_, HashSet<Fingerprint>> {
        self.empty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether a backup is known to have no segment.
    fn is_empty(&self, backup: &BackupRecord) -> bool {
        backup.segments == 0 || self.empty().contains(&backup.manifest)
    }

    fn remember_empty(&self, backup: &BackupRecord) {
        let mut empty = self.empty();
        if empty.len() >= MOST_EMPTY {
            empty.clear();
        }
        empty.insert(backup.manifest);
    }

    /// Returns the segments that the newest of these backups hold. Images whose manifests cannot be read are left out.
    pub(super) fn of(&self, repository: &Repository, view: &View, sets: &[Arc<Backupset>]) -> Arc<Owned> {
        let newest = || sets.iter().filter_map(|set| Some((set, set.backups.last()?)));
        let manifests: Vec<u8> = newest().flat_map(|(_, backup)| *backup.manifest.as_bytes()).collect();
        let manifests = Some(Fingerprint::of(&manifests));
        let project = self.project(view);
        // Held over I/O: sessions of one project that begin at once wait for one set instead of making one each.
        let mut latest = project.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.room(latest.held());
        if let Some(owned) = latest.owned.upgrade()
            && (latest.manifests == manifests && !owned.is_cut
                || room.segments <= owned.keys.len()
                || latest.before.strong_count() > 0)
        {
            return owned;
        }
        let full = newest().filter(|(_, backup)| !self.is_empty(backup));
        let keys = first_keys(full, room.segments, |(set, backup), room| {
            #[cfg(test)]
            self.opened.fetch_add(1, Ordering::AcqRel);
            let manifest = repository.manifest(set, backup).ok()?;
            manifest.verify().ok()?;
            if manifest.present() == 0 {
                self.remember_empty(backup);
            }
            Some(manifest.segments().take(room).map(|(_, segment)| segment.key).collect())
        });
        let owned = Arc::new(Owned::new(keys, room));
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
    /// Returns how many segments all sets have together.
    pub(super) fn alive(&self) -> usize {
        self.alive.load(Ordering::Acquire)
    }

    /// Takes all the room but for `free` segments, until it is dropped.
    pub(super) fn fill(&self, free: usize) -> impl Drop + use<> {
        let segments = MOST_ALIVE - free - self.alive();
        self.alive.fetch_add(segments, Ordering::AcqRel);
        Room { segments, alive: Arc::clone(&self.alive) }
    }
}

#[cfg(test)]
impl Owned {
    /// Makes a set of its own.
    pub(super) fn of(keys: &[SegmentKey]) -> Arc<Self> {
        Arc::new(Self::new(keys.to_vec(), Room::default()))
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

    #[test]
    fn projects_that_have_all_they_may_leave_room_to_the_next_one() {
        let sets = OwnedSets::default();
        let mut held = Vec::new();
        for project in 0..20 {
            let (mut all, least) = (0, if project < 3 { MOST_OWNED } else { 1 << 11 });
            for _ in 0..10 {
                let room = sets.room(all);
                all += room.segments;
                held.push(room);
            }
            assert!(all >= least, "project {project} has {all}");
            assert!(sets.alive() <= MOST_ALIVE);
        }
        drop(held);
        assert_eq!(sets.alive(), 0);
    }
}
