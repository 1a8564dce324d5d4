//! Checking a whole repository: every manifest against the packs, and, if that is asked for, every stored byte.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::check::CheckError;
use crate::codec::Decoder;
use crate::error::ErrorKind;
use crate::manifest::ManifestReader;
use crate::progress::{Part, Progress};
use crate::repository::{BackupId, Backupset, Repository};
use crate::segment::{SegmentHash, SegmentKey};
use crate::store::pack::RecordPlace;
use crate::store::{Catalog, SegmentPlace};

/// What is checked.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Whether every stored segment is read, decoded and compared with its hashes.
    pub read_data: bool,
    /// How many threads do that, at least one.
    pub jobs: usize,
}

/// A segment that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedSegmentReport {
    /// Its name.
    pub key: SegmentKey,
    /// Where each of its damaged copies lies; none if it is in no pack at all.
    pub places: Vec<RecordPlace>,
    /// What is wrong, in words.
    pub error: String,
    /// The backups that cannot be restored in full: none if another copy is whole, or no backup names it.
    pub backups: Vec<BackupId>,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct CheckSummary {
    /// How many backups there are.
    pub backups: u64,
    /// How many copies of segments are stored.
    pub segments: u64,
    /// How many of them no backup names: garbage, and no problem.
    pub garbage_segments: u64,
    /// Stored bytes that were read and decoded.
    pub read_bytes: u64,
    /// What is wrong with backupsets, manifests and packs as a whole, in words.
    pub problems: Vec<String>,
    /// Which segments are damaged or missing, in the order of their names.
    pub damaged: Vec<DamagedSegmentReport>,
}

impl CheckSummary {
    /// Says whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty() && self.damaged.is_empty()
    }
}

/// A stored copy of a segment: 56 bytes each is the memory that a check takes.
struct Copy {
    place: SegmentPlace,
    damaged: bool,
    named: bool,
}

/// Checks a repository. It goes on after a problem; takes no lock, does not open the index, and changes nothing.
///
/// # Errors
/// The repository cannot be read at all.
pub fn check(
    repository: &Repository,
    options: &CheckOptions,
    progress: &dyn Progress,
) -> Result<CheckSummary, CheckError> {
    let mut summary = CheckSummary::default();
    // The manifests before the packs: what a backup that runs meanwhile stores and commits is not missed then.
    let (sets, problems) = repository.backupsets()?;
    summary.problems.extend(problems.iter().map(ToString::to_string));
    let catalog = repository.catalog()?;
    let mut copies = copies(&catalog, &mut summary)?;
    let mut errors = BTreeMap::new();
    if options.read_data {
        errors = read_data(&catalog, &mut copies, options.jobs, &mut summary, progress)?;
    }
    copies.sort_unstable_by_key(|copy| (copy.place.key, copy.place.place));
    let mut hurt: BTreeMap<SegmentKey, BTreeSet<(String, u32)>> = BTreeMap::new();
    for set in &sets {
        for backup in &set.backups {
            summary.backups += 1;
            let opened = repository.manifest(set, backup).and_then(|manifest| {
                manifest.verify()?;
                Ok(manifest)
            });
            match opened {
                Ok(manifest) => {
                    let id = Repository::backup_id(&sets, set, backup.incremental);
                    check_backup(&manifest, &id, &mut copies, &mut hurt, &mut errors);
                }
                Err(error) if error.kind() == ErrorKind::Io => return Err(error.into()),
                Err(error) => summary.problems.push(describe(set, &error.to_string(), backup.incremental.0)),
            }
        }
    }
    summary.garbage_segments = copies.iter().filter(|copy| !copy.named).count() as u64;
    summary.damaged = errors
        .into_iter()
        .map(|(key, error)| DamagedSegmentReport {
            key,
            places: of(&copies, key)
                .iter()
                .filter(|copy| copy.damaged)
                .map(|copy| copy.place.place)
                .collect(),
            error,
            backups: hurt.remove(&key).unwrap_or_default().into_iter().map(backup_id).collect(),
        })
        .collect();
    Ok(summary)
}

fn describe(set: &Backupset, error: &str, incremental: u32) -> String {
    format!("{}@{incremental} cannot be restored: {error}", set.name)
}

fn backup_id((name, incremental): (String, u32)) -> BackupId {
    BackupId { name, incremental: crate::manifest::Incremental(incremental) }
}

/// Lists every stored copy, in the order of the packs.
fn copies(catalog: &Catalog, summary: &mut CheckSummary) -> Result<Vec<Copy>, CheckError> {
    let mut copies = Vec::new();
    let problems = catalog.for_each_segment(|number, entry| {
        let place = RecordPlace { pack: number, offset: entry.offset };
        let stored_length = u32::try_from(entry.stored_length).unwrap_or(u32::MAX);
        let place = SegmentPlace { key: entry.key, place, stored_length, plain_length: entry.plain_length };
        copies.push(Copy { place, damaged: false, named: false });
    })?;
    summary.segments = copies.len() as u64;
    summary.problems.extend(problems.iter().map(|problem| problem.error.to_string()));
    copies.sort_unstable_by_key(|copy| copy.place.place);
    Ok(copies)
}

/// Reads every copy on all cores, in the order of the packs. Returns what is wrong with which segment.
fn read_data(
    catalog: &Catalog,
    copies: &mut [Copy],
    jobs: usize,
    summary: &mut CheckSummary,
    progress: &dyn Progress,
) -> Result<BTreeMap<SegmentKey, String>, CheckError> {
    let bytes = copies.iter().map(|copy| u64::from(copy.place.stored_length)).sum();
    let part = Part::begin(progress, "check", bytes);
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let decoders = (0..jobs.max(1)).map(|_| Decoder::new()).collect::<Result<Vec<_>, _>>();
    let decoders = decoders.map_err(|source| crate::store::pack::PackError::Decoder { source });
    let decoders = decoders.map_err(crate::store::StoreError::from)?;
    let places = &*copies;
    std::thread::scope(|scope| {
        for mut decoder in decoders {
            let (next, found) = (&next, &found);
            scope.spawn(move || {
                let (mut stored, mut plain) = (Vec::new(), Vec::new());
                loop {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    let Some(Copy { place, .. }) = places.get(position) else { return };
                    let read = catalog.pack(place.place.pack).and_then(|pack| {
                        let (key, offset, length) = (place.key, place.place.offset, place.stored_length);
                        pack.segment(key, offset, length, &mut decoder, &mut stored, &mut plain)
                    });
                    let wrong = match read {
                        Err(error) => Some(error.to_string()),
                        // The record says so itself, under a checksum; but this is what the name promises.
                        Ok(_) if SegmentHash::of(&plain) != place.key.hash => {
                            Some(format!("segment {} has another SHA-1 than its name", place.key))
                        }
                        Ok(_) => None,
                    };
                    if let Some(error) = wrong {
                        found.lock().unwrap_or_else(PoisonError::into_inner).push((position, error));
                    }
                    progress.advance(u64::from(place.stored_length));
                }
            });
        }
    });
    drop(part);
    summary.read_bytes = bytes;
    let mut errors = BTreeMap::new();
    for (position, error) in found.into_inner().unwrap_or_else(PoisonError::into_inner) {
        if let Some(copy) = copies.get_mut(position) {
            copy.damaged = true;
            errors.insert(copy.place.key, error);
        }
    }
    Ok(errors)
}

/// Returns the copies of a segment, of copies that are sorted by key.
fn of(copies: &[Copy], key: SegmentKey) -> &[Copy] {
    let first = copies.partition_point(|copy| copy.place.key < key);
    let behind = copies.partition_point(|copy| copy.place.key <= key);
    copies.get(first..behind).unwrap_or(&[])
}

/// Looks every segment of a backup up, and keeps which of them it cannot have.
fn check_backup(
    manifest: &ManifestReader,
    id: &BackupId,
    copies: &mut [Copy],
    hurt: &mut BTreeMap<SegmentKey, BTreeSet<(String, u32)>>,
    errors: &mut BTreeMap<SegmentKey, String>,
) {
    let geometry = manifest.info().geometry;
    for (index, segment) in manifest.segments() {
        let key = segment.key;
        let first = copies.partition_point(|copy| copy.place.key < key);
        let mut whole = false;
        let mut long = None;
        for copy in copies.iter_mut().skip(first).take_while(|copy| copy.place.key == key) {
            copy.named = true;
            if copy.place.plain_length == geometry.length(index) {
                whole |= !copy.damaged;
            } else {
                long = Some(copy.place.plain_length);
            }
        }
        if whole {
            continue;
        }
        errors.entry(key).or_insert_with(|| match long {
            Some(length) => {
                format!("segment {key} has {length} bytes where {} belong", geometry.length(index))
            }
            None => format!("segment {key} is in no pack that can be read"),
        });
        hurt.entry(key).or_default().insert((id.name.clone(), id.incremental.0));
    }
}
