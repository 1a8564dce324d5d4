//! Comparing the index with what it is derived from: refcounts recounted from the manifests, places from the packs.

use std::collections::{BTreeMap, HashMap};

use crate::check::CheckError;
use crate::check::copies::{Copy, of, of_mut};
use crate::manifest::ManifestReader;
use crate::manifest::stays::Neighbours;
use crate::repository::{BackupId, Backupset, Repository};
use crate::segment::SegmentKey;
use crate::store::pack::PackNumber;
use crate::store::{Counted, CountedState, SegmentStore};

/// How many disagreements of a kind are described; the others are counted.
const DESCRIBED: usize = 5;

/// Disagreements of one kind.
#[derive(Default)]
struct Wrong {
    described: Vec<String>,
    more: usize,
}

impl Wrong {
    fn add(&mut self, what: impl FnOnce() -> String) {
        if self.described.len() < DESCRIBED {
            self.described.push(what());
        } else {
            self.more += 1;
        }
    }

    fn into_problems(self) -> Vec<String> {
        let mut problems = self.described;
        if self.more > 0 {
            problems.push(format!("and {} more like it", self.more));
        }
        problems
    }
}

/// Compares the index with packs and manifests. Returns what it says that is not so.
pub(super) fn compare_index(
    repository: &Repository,
    store: &SegmentStore,
    sets: &[Backupset],
    copies: &mut [Copy],
) -> Result<Vec<String>, CheckError> {
    let (absent, uncounted) = recount(repository, store, sets, copies)?;
    let packs = store.packs()?;
    let mut living: HashMap<PackNumber, (u64, u64)> = HashMap::new();
    let (mut counts, mut places) = (Wrong::default(), Wrong::default());
    let (mut absent_seen, mut lost, lost_before) = (0, 0, store.lost_segments()?);
    store.for_each_entry(|key, entry| {
        let stored = of_mut(copies, key);
        let expected = match stored.first_mut() {
            Some(first) => {
                first.indexed = true;
                u64::from(first.refcount)
            }
            None => absent.get(&key).copied().unwrap_or(0),
        };
        absent_seen += usize::from(stored.is_empty() && expected > 0);
        if entry.refcount != expected {
            counts.add(|| {
                let found = entry.refcount;
                format!("the index gives segment {key} the refcount {found}, the manifests {expected}")
            });
        }
        let is_there = stored.iter().any(|copy| copy.place.place == entry.place());
        if entry.is_lost() {
            lost += 1;
        } else {
            let (segments, bytes) = living.entry(entry.place().pack).or_default();
            *segments += 1;
            *bytes += entry.span();
        }
        // What nobody names may come and go meanwhile.
        match (entry.is_lost(), is_there) {
            _ if expected == 0 && entry.refcount == 0 => {}
            (false, false) => {
                places.add(|| format!("the index has segment {key} in {}, where it is not", entry.place()));
            }
            (true, _) if !stored.is_empty() => {
                places.add(|| format!("the index has segment {key} as lost, and it is stored"));
            }
            _ => {}
        }
    })?;
    // Their manifests were put back while this process has the repository open.
    let uncounted = uncounted.into_iter().map(|id| {
        format!("the index does not count {id}, whose manifest is intact: \"ekko check --repair\" replaces the index")
    });
    let mut problems: Vec<_> = uncounted.collect();
    problems.extend(counts.into_problems());
    problems.extend(places.into_problems());
    let missing = copies.iter().filter(|copy| copy.refcount > 0 && !copy.indexed).count();
    let missing = missing + absent.len().saturating_sub(absent_seen);
    if missing > 0 {
        problems.push(format!("the index lacks {missing} segments that backups name"));
    }
    let says = store.lost_segments()?;
    // A backup that runs may have healed one meanwhile.
    if says == lost_before && says != lost {
        problems.push(format!("the index says that {says} segments are lost; it has {lost} such"));
    }
    for (number, pack) in packs.iter().filter(|(_, pack)| pack.is_sealed()) {
        let (segments, bytes) = living.get(number).copied().unwrap_or_default();
        if (pack.living, pack.living_bytes) != (segments, bytes) {
            let (says, said) = (pack.living, pack.living_bytes);
            problems.push(format!(
                "the index says that {says} segments ({said} bytes) live in pack {number}; it has {segments} ({bytes} \
                 bytes) there"
            ));
        }
    }
    Ok(problems)
}

/// Counts the stays of every segment from the manifests that the index counts. A damaged manifest counts for nothing, as in
/// a rebuild. Returns the counts of the segments that are in no pack, and the intact backups that the index does not count.
fn recount(
    repository: &Repository,
    store: &SegmentStore,
    sets: &[Backupset],
    copies: &mut [Copy],
) -> Result<(BTreeMap<SegmentKey, u64>, Vec<BackupId>), CheckError> {
    let (mut absent, mut uncounted) = (BTreeMap::new(), Vec::new());
    for set in sets {
        let mut before = None;
        for backup in &set.backups {
            let Some(this) = repository.readable_manifest(set, backup)? else { continue };
            let counted = store.counted_of(set.id, backup.incremental)?;
            let is_counted =
                |it: &Counted| it.state == CountedState::Whole && it.manifest == *backup.manifest.as_bytes();
            if !counted.as_ref().is_some_and(is_counted) {
                uncounted.push(BackupId::of(set, backup));
                continue;
            }
            let neighbours = Neighbours { before: before.as_ref(), this: &this, after: None };
            for window in neighbours.windows() {
                for (key, gain) in neighbours.gains(window) {
                    match of_mut(copies, key).first_mut() {
                        Some(first) => first.refcount = first.refcount.saturating_add(gain),
                        None => *absent.entry(key).or_insert(0) += u64::from(gain),
                    }
                }
            }
            if let Some(before) = &before {
                ManifestReader::release_pages(before);
            }
            this.release_pages();
            before = Some(this);
        }
    }
    Ok((absent, uncounted))
}

/// Says whether a segment has a whole copy beside the one at a place.
pub(super) fn other_whole<'a>(copies: &'a [Copy], copy: &Copy) -> Option<&'a Copy> {
    of(copies, copy.place.key).iter().find(|other| !other.damaged && other.place.place != copy.place.place)
}
