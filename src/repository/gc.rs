//! Garbage collection: what no backup names gives its space back. `docs/gc.md` has the whole argument.
//!
//! 1. the moment is taken before which garbage must have become garbage: before the oldest running backup began;
//! 2. candidates are listed from the index, and compared with the hash columns of all manifests: what one names
//!    stays, and while one cannot be read, nothing goes;
//! 3. backups that were deleted can be undeleted no longer: they leave `set.toml`, and their manifests go;
//! 4. entries leave the index, durably; then dead records are written, durably; then the bytes go.
//!
//! Backups, restores and checks run beside it. Memory: 2^20 candidates at a time, about 100 bytes each.

use std::sync::PoisonError;
use std::time::Duration;

use crate::progress::{Notice, Progress};
use crate::repository::proof::{Named, Proof, prove};
use crate::repository::{Backupset, Deletion, RepositoryError, RepositoryWriter};
use crate::store::{Candidate, Collector, Garbage, Horizon};

/// How many candidates are compared with the manifests at a time.
const LISTED_AT_ONCE: usize = 1 << 20;

/// How many candidates are freed before the next dead records are written.
const FREED_AT_ONCE: usize = 1 << 14;

/// How garbage is collected.
#[derive(Clone, Copy, Debug)]
pub struct GcOptions {
    /// Whether it is only said what would be freed.
    pub dry_run: bool,
    /// How long what an unfinished backup stored is kept for its next run, instead of as long as the
    /// repository's settings say.
    pub keep_unfinished: Option<Duration>,
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
    /// Why nothing, or not all, was freed.
    pub problems: Vec<String>,
    /// Whether the index says of a segment that a manifest names that nobody does: the caller replaces it.
    pub replace_index: bool,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { dry_run: false, keep_unfinished: None, jobs: 1 }
    }
}

impl RepositoryWriter {
    /// Collects garbage. When this returns, what it freed is free.
    ///
    /// It frees nothing while a manifest or a `set.toml` cannot be read; the summary's problems say so.
    pub fn gc(&self, options: &GcOptions, progress: &dyn Progress) -> Result<GcSummary, RepositoryError> {
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

    fn collect(&self, options: &GcOptions, progress: &dyn Progress) -> Result<GcSummary, RepositoryError> {
        let repository = &self.repository;
        let mut summary = GcSummary::default();
        let keep = options.keep_unfinished.unwrap_or(repository.settings.keep_unfinished).as_secs();
        self.store.seal()?;
        let (horizon, sets, leased) = self.moment(&mut summary)?;
        if !summary.problems.is_empty() {
            return Ok(summary);
        }
        let packs = repository.layout.packs();
        let storage = std::sync::Arc::clone(&repository.storage);
        let mut collector = Collector::new(storage, &packs, &self.store, horizon, keep, !options.dry_run)?;
        let is_leased = |set: &Backupset, record: &crate::repository::BackupRecord| {
            leased.contains(&Deletion { backupset: set.id, incremental: record.incremental })
        };
        let named: Vec<Named<'_>> = sets
            .iter()
            .flat_map(|set| {
                let deleted = set.deleted.iter().filter(move |record| is_leased(set, record));
                set.backups.iter().chain(deleted).map(move |record| (set, record))
            })
            .collect();
        let mut purged = false;
        loop {
            let listed = collector.list(LISTED_AT_ONCE)?;
            summary.unfinished_segments += listed.unfinished;
            summary.unfinished_bytes += listed.unfinished_bytes;
            for what in listed.problems {
                progress.notice(Notice::Problem { kind: crate::error::ErrorKind::Corrupt, what });
            }
            let is_last = listed.candidates.is_empty();
            let mut candidates = listed.candidates;
            if !is_last {
                let proof = prove(repository, &named, &candidates, options.jobs, progress)?;
                if !is_proven(proof, &mut candidates, &mut summary) {
                    return Ok(summary);
                }
            }
            if options.dry_run {
                summary.freed_segments += candidates.len() as u64;
                summary.freed_bytes += candidates.iter().map(|candidate| candidate.span).sum::<u64>();
            } else {
                if !purged {
                    summary.purged_backups = self.written(self.purge())?;
                    purged = true;
                }
                for part in candidates.chunks(FREED_AT_ONCE) {
                    self.free(&collector, part, &mut summary)?;
                }
            }
            if is_last {
                break;
            }
        }
        if options.dry_run {
            let deleted = sets.iter().flat_map(|set| set.deleted.iter().map(move |record| (set, record)));
            summary.purged_backups = deleted.filter(|(set, record)| !is_leased(set, record)).count() as u64;
        } else {
            self.finish(&collector, &mut summary)?;
        }
        Ok(summary)
    }

    /// Takes the moment before which garbage must have become garbage, then looks which backups are there, and
    /// which are leased.
    fn moment(
        &self,
        summary: &mut GcSummary,
    ) -> Result<(Horizon, Vec<Backupset>, Vec<Deletion>), RepositoryError> {
        // Held over I/O: no backup may come or go between.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        // What recovery or another job has counted down in this generation is older than this moment.
        self.store.begin_generation()?;
        let horizon = self.store.horizon();
        let leased = self.repository.leased()?;
        let (sets, problems) = self.repository.backupsets()?;
        summary.problems.extend(problems.iter().map(ToString::to_string));
        Ok((horizon, sets, leased))
    }

    /// Takes the deleted backups out of their lists, durably, and removes their manifests.
    fn purge(&self) -> Result<u64, RepositoryError> {
        // Held over I/O, as by everybody who changes the lists.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let (storage, layout) = (self.repository.storage.as_ref(), &self.repository.layout);
        let (sets, _) = self.repository.backupsets()?;
        let leased = self.repository.leased()?;
        let mut purged = 0;
        for mut set in sets {
            let id = set.id;
            let is_leased = |incremental| leased.contains(&Deletion { backupset: id, incremental });
            let (kept, goes): (Vec<_>, Vec<_>) =
                set.deleted.into_iter().partition(|record| is_leased(record.incremental));
            set.deleted = kept;
            if goes.is_empty() {
                continue;
            }
            set.write(storage, layout)?;
            for record in &goes {
                match storage.unlink(&layout.manifest(id, record.incremental)) {
                    Err(error) if !error.is_not_found() => return Err(error.into()),
                    _ => purged += 1,
                }
            }
        }
        Ok(purged)
    }

    fn free(
        &self,
        collector: &Collector<'_>,
        candidates: &[Candidate],
        summary: &mut GcSummary,
    ) -> Result<(), RepositoryError> {
        let (segments, bytes) = collector.free(candidates)?;
        summary.freed_segments += segments;
        summary.freed_bytes += bytes;
        self.give_back(collector, summary)
    }

    fn give_back(&self, collector: &Collector<'_>, summary: &mut GcSummary) -> Result<(), RepositoryError> {
        collector.drop_empty_packs()?;
        if collector.has_tasks()? {
            self.raise_generation()?;
            let reclaimed = self.written(collector.give_back().map_err(RepositoryError::from))?;
            summary.unlinked_packs += reclaimed.unlinked_packs;
        }
        Ok(())
    }

    /// Does what an earlier collection was kept from, and moves what lives out of packs in which little does.
    fn finish(&self, collector: &Collector<'_>, summary: &mut GcSummary) -> Result<(), RepositoryError> {
        self.give_back(collector, summary)?;
        for pack in collector.sparse_packs()? {
            summary.moved_bytes += collector.move_living(pack, &mut summary.problems)?;
            self.give_back(collector, summary)?;
        }
        Ok(())
    }
}

/// Takes out of the candidates what manifests name. Says whether the rest may go.
fn is_proven(proof: Proof, candidates: &mut Vec<Candidate>, summary: &mut GcSummary) -> bool {
    let Proof { named, problems, compared_bytes } = proof;
    summary.compared_bytes += compared_bytes;
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
    if !wrong.is_empty() {
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
