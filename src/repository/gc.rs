//! Garbage collection: what no backup names gives its space back. `docs/gc.md` has the whole argument.
//!
//! 1. the moment is taken before which garbage must have become garbage: before the oldest running backup began;
//! 2. candidates are listed from the index, and compared with the hash columns of all manifests, also those of deleted backups
//!    that can still be undeleted: what one names stays, and while one cannot be read, nothing goes;
//! 3. deleted backups whose period is over can be undeleted no longer: they leave `set.toml`, and their manifests go;
//! 4. entries leave the index, durably; then dead records are written, durably; then the bytes go.
//!
//! Backups, restores and checks run beside it. Memory: 2^20 candidates at a time, about 100 bytes each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::error::ErrorKind;
use crate::manifest::BackupsetId;
use crate::progress::{Notice, Progress};
use crate::repository::clock::UndeletePeriods;
use crate::repository::proof::{Named, Proof, prove};
use crate::repository::{
    BackupRecord, Backupset, DeletedBackup, Deletion, RepositoryError, RepositoryWriter,
};
use crate::store::{Candidate, Collector, Garbage, Horizon};

/// How many candidates are compared with the manifests at a time.
const LISTED_AT_ONCE: usize = 1 << 20;

/// How many candidates are freed before the next dead records are written.
const FREED_AT_ONCE: usize = 1 << 14;

/// How garbage is collected.
#[derive(Clone, Copy, Debug)]
pub struct GcOptions<'a> {
    /// Whether it is only said what would be freed.
    pub dry_run: bool,
    /// Which deleted backups go at once, and not when their period is over: those of names that begin with this. Of an empty text
    /// all do.
    pub now: Option<&'a str>,
    /// How long what an unfinished backup stored is kept for its next run, instead of as long as the
    /// repository's settings say.
    pub keep_unfinished: Option<Duration>,
    /// Whether backups whose list is lost are given up. Otherwise nothing is freed while there are such.
    pub accept_lost: bool,
    /// How many threads compare manifests, at least one.
    pub jobs: usize,
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcSummary {
    /// Deleted backups that can be undeleted no longer.
    pub purged_backups: u64,
    /// Segments that were freed.
    pub freed_segments: u64,
    /// Bytes of packs that they took.
    pub freed_bytes: u64,
    /// Deleted backups that can still be undeleted, because their period is not over.
    pub kept_backups: u64,
    /// Bytes of packs that they alone need.
    pub kept_bytes: u64,
    /// How long it takes until the period of the last of them is over, at least.
    pub kept_for: Duration,
    /// Packs that were removed as a whole.
    pub unlinked_packs: u64,
    /// Bytes that were moved out of packs in which little lived, where holes give nothing back.
    pub moved_bytes: u64,
    /// Segments of unfinished backups that are kept for their next run.
    pub unfinished_segments: u64,
    /// Bytes of packs that they take.
    pub unfinished_bytes: u64,
    /// Bytes of manifests' hash columns that were compared with what was to go.
    pub compared_bytes: u64,
    /// How long that took.
    pub comparing: Duration,
    /// Whether it was ended before it was through, as [`Progress::is_cancelled`] asked: what it freed is free.
    pub cancelled: bool,
    /// Why nothing, or not all, was freed.
    pub problems: Vec<String>,
    /// Whether the index says of a segment that a manifest names that nobody does: the caller replaces it.
    pub replace_index: bool,
}

impl Default for GcOptions<'_> {
    fn default() -> Self {
        Self { dry_run: false, now: None, keep_unfinished: None, accept_lost: false, jobs: 1 }
    }
}

impl RepositoryWriter {
    /// Collects garbage. When this returns, what it freed is free.
    ///
    /// It can be cancelled: between manifests that are compared, and between batches that are freed.
    ///
    /// It frees nothing while a manifest or a `set.toml` cannot be read; the summary's problems say so.
    pub fn gc(&self, options: &GcOptions<'_>, progress: &dyn Progress) -> Result<GcSummary, RepositoryError> {
        // Held over I/O: a second collection at the same time would find the same.
        let _one = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        self.collect(options, progress)
    }

    /// Keeps a failed write so that nothing is written after it.
    fn written<T>(&self, result: Result<T, RepositoryError>) -> Result<T, RepositoryError> {
        result.inspect_err(|error| {
            if !error.distrusts_index() {
                self.poisoned_by(error);
            }
        })
    }

    fn collect(
        &self,
        options: &GcOptions<'_>,
        progress: &dyn Progress,
    ) -> Result<GcSummary, RepositoryError> {
        let repository = &self.repository;
        let mut summary = GcSummary::default();
        let keep = options.keep_unfinished.unwrap_or(repository.settings.keep_unfinished).as_secs();
        self.store.seal()?;
        let moment = self.moment(options, &mut summary, progress)?;
        if !summary.problems.is_empty() {
            return Ok(summary);
        }
        let packs = repository.packs();
        let storage = Arc::clone(&repository.storage);
        let mut collector =
            Collector::new(storage, &packs, &self.store, moment.horizon, keep, !options.dry_run)?;
        let (listed_backups, read) = (moment.listed(), moment.read());
        let kept = moment.kept();
        summary.kept_backups = kept.len() as u64;
        summary.kept_for = moment.kept_for();
        let (mut proven, mut purged) = (false, false);
        let mut teller = Teller { progress, told: BTreeSet::new() };
        loop {
            if progress.is_cancelled() {
                summary.cancelled = true;
                return Ok(summary);
            }
            let listed = collector.list(LISTED_AT_ONCE)?;
            summary.unfinished_segments += listed.unfinished;
            summary.unfinished_bytes += listed.unfinished_bytes;
            teller.tell(listed.problems);
            let is_last = listed.candidates.is_empty();
            let mut candidates = listed.candidates;
            if !is_last || (!proven && moment.doomed().next().is_some()) {
                proven = true;
                let proof = prove(repository, &listed_backups, &candidates, options.jobs, progress)?;
                if !is_proven(proof, true, &mut candidates, &mut summary) {
                    return Ok(summary);
                }
                let proof = prove(repository, &read, &candidates, options.jobs, progress)?;
                if !is_proven(proof, false, &mut candidates, &mut summary) {
                    return Ok(summary);
                }
                let mut proof = prove(repository, &kept, &candidates, options.jobs, progress)?;
                // It may be put back.
                for problem in &mut proof.problems {
                    problem.push_str(" (a deleted backup: \"ekko gc --now\" gives it up)");
                }
                let spans = |candidates: &[Candidate]| candidates.iter().map(|one| one.span).sum::<u64>();
                let before = spans(&candidates);
                if !is_proven(proof, false, &mut candidates, &mut summary) {
                    return Ok(summary);
                }
                summary.kept_bytes += before - spans(&candidates);
            }
            if options.dry_run {
                summary.freed_segments += candidates.len() as u64;
                summary.freed_bytes += candidates.iter().map(|candidate| candidate.span).sum::<u64>();
            } else {
                if !purged {
                    let Some(number) = self.written(self.purge(&moment))? else {
                        // What it names was not compared.
                        let what = "nothing was freed: a deleted backup was undeleted meanwhile; run \"ekko gc\" again";
                        summary.problems.push(what.to_owned());
                        return Ok(summary);
                    };
                    summary.purged_backups = number;
                    purged = true;
                }
                // Neighbours in a pack together: they make one hole.
                candidates.sort_unstable_by_key(|candidate| candidate.place);
                for part in candidates.chunks(FREED_AT_ONCE) {
                    if progress.is_cancelled() {
                        summary.cancelled = true;
                        return Ok(summary);
                    }
                    self.check()?;
                    let (segments, bytes) = collector.free(part)?;
                    summary.freed_segments += segments;
                    summary.freed_bytes += bytes;
                    self.give_back(&collector, &mut summary, &mut teller)?;
                }
            }
            if is_last {
                break;
            }
        }
        if options.dry_run {
            summary.purged_backups = moment.doomed().count() as u64;
        } else {
            self.finish(&collector, &mut summary, &mut teller)?;
        }
        Ok(summary)
    }

    /// Takes the moment before which garbage must have become garbage, then looks which backups are there, and
    /// which are leased.
    fn moment(
        &self,
        options: &GcOptions<'_>,
        summary: &mut GcSummary,
        progress: &dyn Progress,
    ) -> Result<Moment, RepositoryError> {
        // Held over I/O: no backup may come or go between.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        // What recovery or another job has counted down in this generation is older than this moment.
        self.store.begin_generation()?;
        let horizon = self.store.horizon();
        let leased = self.repository.leased()?;
        if options.accept_lost && !options.dry_run {
            for (name, folder) in self.written(self.repository.give_up_lost())? {
                let what = format!("the backups of {name} in {} are given up", folder.display());
                progress.notice(Notice::Recovered { what });
            }
        }
        let (sets, problems) = self.repository.backupsets()?;
        let why = |problem: &RepositoryError| {
            format!("nothing is freed while a list of backups cannot be read: {problem}")
        };
        summary.problems.extend(problems.iter().map(why));
        let deleted = sets.iter().flat_map(|set| &set.deleted).map(|deleted| deleted.deleted_clock);
        let clock = self.repository.clock(deleted.max().unwrap_or(0))?;
        if !options.dry_run {
            self.written(clock.write(&self.repository))?;
        }
        let periods = UndeletePeriods::new(&clock, self.repository.settings.keep_deleted.as_secs());
        let now = options.now.map(str::to_owned);
        Ok(Moment { horizon, sets, leased, periods, now })
    }

    /// Takes the backups that were deleted at that moment, and that nobody reads, out of their lists, durably, and
    /// removes their manifests. Returns how many; nothing if one of them is not deleted any longer.
    fn purge(&self, moment: &Moment) -> Result<Option<u64>, RepositoryError> {
        // Held over I/O, as by everybody who changes the lists.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        let (storage, layout) = (self.repository.storage.as_ref(), &self.repository.layout);
        let mut doomed: BTreeMap<BackupsetId, Vec<&DeletedBackup>> = BTreeMap::new();
        for (set, deleted) in moment.deleted().filter(|(set, deleted)| moment.is_doomed(set, deleted)) {
            doomed.entry(set.id).or_default().push(deleted);
        }
        let mut sets = Vec::new();
        for (id, numbers) in doomed {
            let set = Backupset::read(storage, layout, id)?;
            // One that was undeleted and deleted again has a period of its own.
            if !numbers.iter().all(|gone| set.deleted.contains(gone)) {
                return Ok(None);
            }
            sets.push((set, numbers.into_iter().map(|gone| gone.record.incremental).collect::<Vec<_>>()));
        }
        let mut purged = 0;
        for (mut set, numbers) in sets {
            set.deleted.retain(|deleted| !numbers.contains(&deleted.record.incremental));
            self.repository.write_set(&set)?;
            for number in numbers {
                match storage.unlink(&layout.manifest(set.id, number)) {
                    Err(error) if !error.is_not_found() => return Err(error.into()),
                    _ => purged += 1,
                }
            }
        }
        Ok(Some(purged))
    }

    fn give_back(
        &self,
        collector: &Collector<'_>,
        summary: &mut GcSummary,
        teller: &mut Teller<'_>,
    ) -> Result<(), RepositoryError> {
        collector.drop_empty_packs()?;
        if collector.has_tasks()? {
            self.written(self.raise_generation())?;
            let mut reclaimed = self.written(collector.give_back().map_err(RepositoryError::from))?;
            summary.unlinked_packs += reclaimed.unlinked_packs;
            teller.tell(std::mem::take(&mut reclaimed.problems));
        }
        Ok(())
    }

    /// Does what an earlier collection was kept from, moves what lives out of packs in which little does, and
    /// removes packs of dead records that name nothing any longer.
    fn finish(
        &self,
        collector: &Collector<'_>,
        summary: &mut GcSummary,
        teller: &mut Teller<'_>,
    ) -> Result<(), RepositoryError> {
        self.give_back(collector, summary, teller)?;
        for pack in collector.sparse_packs()? {
            if teller.progress.is_cancelled() {
                summary.cancelled = true;
                return Ok(());
            }
            self.check()?;
            let mut problems = Vec::new();
            summary.moved_bytes += collector.move_living(pack, &mut problems)?;
            teller.tell(problems);
            self.give_back(collector, summary, teller)?;
        }
        while collector.drop_idle_packs(summary.unlinked_packs > 0)? {
            self.give_back(collector, summary, teller)?;
        }
        Ok(())
    }
}

/// Tells of what is damaged, of each once, however often a collection meets it.
struct Teller<'a> {
    progress: &'a dyn Progress,
    told: BTreeSet<String>,
}

impl Teller<'_> {
    fn tell(&mut self, problems: Vec<String>) {
        for what in problems {
            if self.told.insert(what.clone()) {
                self.progress.notice(Notice::Problem { kind: ErrorKind::Corrupt, what });
            }
        }
    }
}

/// What there was at the moment before which garbage must have become garbage.
struct Moment {
    horizon: Horizon,
    sets: Vec<Backupset>,
    leased: Vec<Deletion>,
    periods: UndeletePeriods,
    /// What the names begin with of which deleted backups go at once.
    now: Option<String>,
}

impl Moment {
    fn is_leased(&self, set: &Backupset, record: &BackupRecord) -> bool {
        self.leased.contains(&Deletion { backupset: set.id, incremental: record.incremental })
    }

    /// Returns the backups that there were.
    fn listed(&self) -> Vec<Named<'_>> {
        self.sets.iter().flat_map(|set| set.backups.iter().map(move |record| (set, record))).collect()
    }

    fn deleted(&self) -> impl Iterator<Item = (&Backupset, &DeletedBackup)> {
        self.sets.iter().flat_map(|set| set.deleted.iter().map(move |deleted| (set, deleted)))
    }

    /// Returns how long a deleted backup can be undeleted.
    fn left(&self, set: &Backupset, deleted: &DeletedBackup) -> Duration {
        let goes_now = self.now.as_ref().is_some_and(|prefix| set.name.as_str().starts_with(prefix));
        if goes_now { Duration::ZERO } else { self.periods.left(deleted) }
    }

    /// Returns the backups that were deleted, and that somebody reads.
    fn read(&self) -> Vec<Named<'_>> {
        let named = self.deleted().map(|(set, deleted)| (set, &deleted.record));
        named.filter(|(set, record)| self.is_leased(set, record)).collect()
    }

    /// Returns the backups that were deleted, can be undeleted, and that nobody reads.
    fn kept(&self) -> Vec<Named<'_>> {
        let kept = self.deleted().filter(|(set, deleted)| {
            !self.left(set, deleted).is_zero() && !self.is_leased(set, &deleted.record)
        });
        kept.map(|(set, deleted)| (set, &deleted.record)).collect()
    }

    /// Returns how long it takes until the last of them can be undeleted no longer.
    fn kept_for(&self) -> Duration {
        self.deleted().map(|(set, deleted)| self.left(set, deleted)).max().unwrap_or_default()
    }

    /// Says whether a deleted backup can be undeleted no longer, and nobody reads it.
    fn is_doomed(&self, set: &Backupset, deleted: &DeletedBackup) -> bool {
        self.left(set, deleted).is_zero() && !self.is_leased(set, &deleted.record)
    }

    /// Returns the backups that were deleted, can be undeleted no longer, and that nobody reads.
    fn doomed(&self) -> impl Iterator<Item = Named<'_>> {
        let doomed = self.deleted().filter(|(set, deleted)| self.is_doomed(set, deleted));
        doomed.map(|(set, deleted)| (set, &deleted.record))
    }
}

/// Takes out of the candidates what manifests name; the index should have counted them if the backups are listed.
/// Says whether the rest may go.
fn is_proven(proof: Proof, listed: bool, candidates: &mut Vec<Candidate>, summary: &mut GcSummary) -> bool {
    let Proof { named, problems, compared_bytes, elapsed, cancelled } = proof;
    summary.compared_bytes += compared_bytes;
    summary.comparing += elapsed;
    if cancelled {
        summary.cancelled = true;
        return false;
    }
    if !problems.is_empty() {
        let why = |what| format!("nothing is freed while a manifest cannot be read: {what}");
        summary.problems.extend(problems.into_iter().map(why));
        return false;
    }
    // A second copy of what is named may go: the first was found whole.
    let is_copy = |candidate: &Candidate| candidate.why == Garbage::SecondCopy;
    let wrong: Vec<_> = named
        .into_iter()
        .filter(|at| candidates.get(*at).is_some_and(|candidate| !is_copy(candidate)))
        .collect();
    if listed && !wrong.is_empty() {
        let number = wrong.len();
        summary.replace_index = true;
        summary.problems.push(format!(
            "the index did not count {number} segments that backups name; they are kept, and it is made anew"
        ));
    }
    let mut position = 0;
    candidates.retain(|_| {
        position += 1;
        wrong.binary_search(&(position - 1)).is_err()
    });
    true
}
