//! Checking a whole repository: every manifest against the packs, the index against both, and, if that is asked
//! for, stored bytes against their hashes.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::check::copies::{self, Copy};
use crate::check::data::{Errors, read_data};
use crate::check::findings::findings;
use crate::check::memory::{Memory, Slice, slice};
use crate::check::recount::{compare_index, other_whole};
use crate::check::{CheckError, CheckIndex};
use crate::error::ErrorKind;
use crate::manifest::ManifestReader;
use crate::progress::Progress;
use crate::repository::{
    BackupId, Backupset, DamagedCopy, Findings, JobError, Repository, RepositoryError, RepositoryWriter,
    SharedWriter,
};
use crate::segment::SegmentKey;
use crate::store::pack::RecordPlace;
use crate::store::{Catalog, SegmentPlace};

/// Which stored segments are read, decoded and compared with their hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ReadData {
    /// None.
    #[default]
    None,
    /// So many percent of the stored bytes: those that were longest not checked.
    Percent(f64),
    /// All.
    All,
}

/// What is checked.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Which stored segments are read.
    pub read_data: ReadData,
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
    /// What became of the index.
    pub index: CheckIndex,
    /// What is wrong with backupsets, manifests, packs as a whole and the index, in words.
    pub problems: Vec<String>,
    /// Which segments are damaged or missing, in the order of their names.
    pub damaged: Vec<DamagedSegmentReport>,
    /// Damaged copies that were put into quarantine.
    pub quarantined_segments: u64,
    /// Whether it was ended before it was through, as [`Progress::is_cancelled`] asked: then it says nothing.
    pub cancelled: bool,
}

impl CheckSummary {
    /// Says whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty() && self.damaged.is_empty()
    }
}

/// Checks a repository but for its index. It goes on after a problem, takes no lock, and changes nothing. It can be
/// cancelled between segments that are read, and between backups.
///
/// # Errors
/// The repository cannot be read at all.
pub fn check(
    repository: &Repository,
    options: &CheckOptions,
    progress: &dyn Progress,
) -> Result<CheckSummary, CheckError> {
    Ok(Checking::begin(repository)?.finish(options, progress)?.0)
}

/// Checks a repository that this process may change, and its index. It goes on after a problem. With `repair`,
/// damaged copies of segments are put into quarantine, so that the next backup stores them anew, and an index that
/// says what is not so is made anew.
///
/// Backups and garbage collection wait while the check compares the index, not while it reads data. Reading data needs no
/// index and does not hold the repository open: reopening it after a failed write does not wait for a long check.
///
/// # Errors
/// The repository cannot be read at all, or a repair failed.
pub fn check_with_index(
    writer: &SharedWriter,
    options: &CheckOptions,
    repair: bool,
    progress: &dyn Progress,
) -> Result<CheckSummary, CheckError> {
    let replace = |checking: &Checking<'_>| checking.summary.index == CheckIndex::Replaced;
    let checking = writer.run_job(progress, replace, |open| compare(open, writer.repository(), repair))?;
    let (mut summary, copies) = checking.finish(options, progress)?;
    if repair && !summary.cancelled {
        let damaged: Vec<_> = copies.iter().filter(|copy| copy.damaged).collect();
        let whole = writer.run_job(progress, |_| false, |open| quarantine(open, &copies, &damaged))?;
        summary.quarantined_segments = damaged.len() as u64 - whole.len() as u64;
        summary.problems.extend(whole.iter().map(left_alone));
    }
    Ok(summary)
}

/// Lists what there is, and compares the index with it.
fn compare<'a>(
    writer: &RepositoryWriter,
    repository: &'a Repository,
    repair: bool,
) -> Result<Checking<'a>, CheckError> {
    writer.quiet(|| {
        writer.store().flush()?;
        let mut checking = Checking::begin(repository)?;
        if checking.lost {
            // It counts the lost backups, too.
            return Ok(checking);
        }
        let Checking { sets, copies, .. } = &mut checking;
        let problems = match compare_index(repository, writer.store(), sets, copies) {
            // A manifest that cannot be read now, most of all: what it counts is not known.
            Err(error) if error.kind() == ErrorKind::Io && !distrusts(&error) => {
                checking.summary.problems.push(format!("the index is not compared: {error}"));
                return Ok(checking);
            }
            problems => problems?,
        };
        checking.summary.index = match (problems.is_empty(), repair) {
            (true, _) => CheckIndex::Agrees,
            (false, false) => CheckIndex::Differs,
            (false, true) => CheckIndex::Replaced,
        };
        checking.summary.problems.extend(problems);
        Ok(checking)
    })
}

/// Puts damaged copies into quarantine. Returns those that can be read now.
fn quarantine(
    writer: &RepositoryWriter,
    copies: &[Copy],
    damaged: &[&Copy],
) -> Result<Vec<DamagedCopy>, CheckError> {
    let report = |copy: &&Copy| DamagedCopy {
        place: copy.place,
        other: other_whole(copies, copy).map(|other| other.place.place),
    };
    Ok(writer.quarantine(&damaged.iter().map(report).collect::<Vec<_>>())?)
}

fn left_alone(copy: &DamagedCopy) -> String {
    let SegmentPlace { key, place, .. } = copy.place;
    format!("segment {key} in {place} could not be read, and can be read now: it was left alone")
}

fn distrusts(error: &CheckError) -> bool {
    error.repository().is_some_and(RepositoryError::distrusts_index)
}

/// A check under way.
struct Checking<'a> {
    repository: &'a Repository,
    sets: Vec<Backupset>,
    /// Whether the lists of some backups are lost.
    lost: bool,
    catalog: Catalog,
    copies: Vec<Copy>,
    summary: CheckSummary,
    /// What of the packs was read in this check.
    was_read: HashSet<Slice>,
}

impl<'a> Checking<'a> {
    fn begin(repository: &'a Repository) -> Result<Self, CheckError> {
        let mut summary = CheckSummary::default();
        // The manifests before the packs: what a backup that runs meanwhile stores and commits is not missed then.
        let (sets, problems) = repository.backupsets()?;
        summary.problems.extend(problems.iter().map(ToString::to_string));
        let lost = problems.iter().any(|problem| matches!(problem, RepositoryError::ListLost { .. }));
        let misnamed = repository.misnamed()?;
        summary.problems.extend(misnamed.iter().map(|path| {
            format!(
                "cannot use {}: Ekko does not write this name so; move it away or rename it",
                path.display()
            )
        }));
        let catalog = repository.catalog()?;
        let copies = copies::list(&catalog, &mut summary.problems)?;
        summary.segments = copies.len() as u64;
        Ok(Self { repository, sets, lost, catalog, copies, summary, was_read: HashSet::new() })
    }

    /// Reads data, and looks every segment of every backup up.
    fn finish(
        mut self,
        options: &CheckOptions,
        progress: &dyn Progress,
    ) -> Result<(CheckSummary, Vec<Copy>), CheckError> {
        let mut errors = self.read(options, progress)?;
        self.recall(options, &mut errors);
        let before = self.summary.problems.len();
        let mut errors = self.look_up(errors, progress)?;
        if !errors.is_empty() || self.summary.problems.len() > before {
            // Garbage collection may have taken meanwhile what nobody names any longer, or moved it.
            self.renew(&mut errors)?;
            self.summary.problems.truncate(before);
            self.look_up(errors, progress)?;
        }
        if progress.is_cancelled() {
            // What was found is not all, and what was not looked at would count as missing or as garbage.
            let index = self.summary.index;
            self.summary = CheckSummary { cancelled: true, index, ..CheckSummary::default() };
        } else if !findings(&self.summary.damaged, &self.sets).save(self.repository) {
            tracing::info!("what was found damaged cannot be remembered here");
        }
        Ok((self.summary, self.copies))
    }

    fn read(&mut self, options: &CheckOptions, progress: &dyn Progress) -> Result<Errors, CheckError> {
        let percent = match options.read_data {
            ReadData::None => return Ok(Errors::new()),
            ReadData::Percent(percent) => percent,
            ReadData::All => 100.0,
        };
        let memory = Memory::load(self.repository);
        let chosen = memory.choose(&self.catalog, &self.copies, percent);
        let is_chosen = |place: &_| chosen.contains(&slice(place));
        let (errors, bytes) = read_data(&self.catalog, &mut self.copies, is_chosen, options.jobs, progress)?;
        self.summary.read_bytes = bytes;
        if progress.is_cancelled() {
            return Ok(errors);
        }
        self.was_read.clone_from(&chosen);
        if !memory.remember(self.repository, &self.catalog, &chosen, &self.copies) {
            tracing::info!("what was checked cannot be remembered here");
        }
        Ok(errors)
    }

    /// Takes what earlier checks found damaged as damaged, but for what was read just now.
    fn recall(&mut self, options: &CheckOptions, errors: &mut Errors) {
        if options.read_data == ReadData::All {
            return;
        }
        for finding in Findings::load(self.repository).segments() {
            for copy in copies::of_mut(&mut self.copies, finding.key) {
                if finding.places.contains(&copy.place.place) && !self.was_read.contains(&slice(&copy.place))
                {
                    copy.damaged = true;
                    errors.entry(finding.key).or_insert_with(|| finding.error.clone());
                }
            }
        }
    }

    /// Lists again what is there, and keeps of what was found damaged what is there still.
    fn renew(&mut self, errors: &mut Errors) -> Result<(), CheckError> {
        let (sets, _) = self.repository.backupsets()?;
        let catalog = self.repository.catalog()?;
        let mut copies = copies::list(&catalog, &mut Vec::new())?;
        for damaged in self.copies.iter().filter(|copy| copy.damaged) {
            let same = copies::of_mut(&mut copies, damaged.place.key).iter_mut();
            same.filter(|copy| copy.place.place == damaged.place.place).for_each(|copy| copy.damaged = true);
        }
        errors.retain(|key, _| copies::of(&copies, *key).iter().any(|copy| copy.damaged));
        (self.sets, self.catalog, self.copies) = (sets, catalog, copies);
        Ok(())
    }

    /// Looks every segment of every backup up. Returns what is wrong with which, those that are missing as well.
    fn look_up(&mut self, mut errors: Errors, progress: &dyn Progress) -> Result<Errors, CheckError> {
        let mut hurt: BTreeMap<SegmentKey, BTreeSet<BackupId>> = BTreeMap::new();
        self.summary.backups = 0;
        for set in &self.sets {
            for backup in &set.backups {
                if progress.is_cancelled() {
                    return Ok(errors);
                }
                self.summary.backups += 1;
                let opened = self.repository.manifest(set, backup).and_then(|manifest| {
                    manifest.verify()?;
                    Ok(manifest)
                });
                match opened {
                    Ok(manifest) => {
                        let id = BackupId::of(set, backup);
                        check_backup(&manifest, &id, &mut self.copies, &mut hurt, &mut errors);
                        manifest.release_pages();
                    }
                    Err(error) => {
                        let what = format!("{} cannot be restored: {error}", BackupId::of(set, backup));
                        self.summary.problems.push(what);
                    }
                }
            }
        }
        let incomplete = self.repository.incomplete_moments(&self.sets)?;
        for (set, backup) in self.sets.iter().flat_map(|set| set.backups.iter().map(move |it| (set, it))) {
            if let Some(missing) = incomplete.get(&(set.id, backup.incremental)) {
                let (id, missing) = (BackupId::of(set, backup), missing.join(", "));
                self.summary.problems.push(format!("{id} lacks the backup of a disk: {missing}"));
            }
        }
        self.summary.garbage_segments = self.copies.iter().filter(|copy| !copy.named).count() as u64;
        let report = |(key, error): (&SegmentKey, &String)| DamagedSegmentReport {
            key: *key,
            places: copies::of(&self.copies, *key)
                .iter()
                .filter(|copy| copy.damaged)
                .map(|copy| copy.place.place)
                .collect(),
            error: error.clone(),
            backups: hurt.remove(key).unwrap_or_default().into_iter().collect(),
        };
        self.summary.damaged = errors.iter().map(report).collect();
        Ok(errors)
    }
}

/// Looks every segment of a backup up, and keeps which of them it cannot have.
fn check_backup(
    manifest: &ManifestReader,
    id: &BackupId,
    copies: &mut [Copy],
    hurt: &mut BTreeMap<SegmentKey, BTreeSet<BackupId>>,
    errors: &mut Errors,
) {
    let geometry = manifest.info().geometry;
    for (index, segment) in manifest.segments() {
        let key = segment.key;
        let mut whole = false;
        let mut long = None;
        for copy in copies::of_mut(copies, key) {
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
        hurt.entry(key).or_default().insert(id.clone());
    }
}
