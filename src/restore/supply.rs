//! Where the segments of a backup come from, and where they go.

use std::ops::Range;

use crate::manifest::ManifestReader;
use crate::pace::Pace;
use crate::progress::Progress;
use crate::repository::{Lease, Repository};
use crate::restore::plan::{self, Plan};
use crate::restore::{DamagedSegment, RestoreError, fetch, note, tell};
use crate::segment::{SegmentIndex, SegmentKey};
use crate::store::Catalog;

/// Where the segments of a backup come from: a repository here, or a service elsewhere.
pub trait SegmentSupply: Sync {
    /// Makes sure that the backup is there, stays until what is returned is dropped, and can be read: nothing was written by then.
    /// The segments are those of the runs, which are in order and do not overlap.
    ///
    /// # Errors
    ///
    /// If the backup is gone, or nothing of it can be read.
    fn prepare<'a>(
        &'a self,
        manifest: &'a ManifestReader,
        runs: Vec<Range<u32>>,
        progress: &dyn Progress,
    ) -> Result<Box<dyn PreparedSegments + 'a>, RestoreError>;
}

/// The segments of a backup, ready to be fetched.
pub trait PreparedSegments {
    /// Fetches the present segments and gives them to `sink`, in whatever order. Returns what could not be had, in the order of
    /// the places. Begins no part of the progress; the caller does.
    ///
    /// # Errors
    ///
    /// If nothing more can be had, or `sink` refuses.
    fn fetch(
        self: Box<Self>,
        sink: &dyn SegmentSink,
        pace: &Pace,
        progress: &dyn Progress,
    ) -> Result<Vec<DamagedSegment>, RestoreError>;
}

/// Where segments go, in whatever order they are fetched. Called from several threads.
pub trait SegmentSink: Sync {
    /// Takes the verified bytes of the segment at `index`.
    fn segment(&self, index: SegmentIndex, key: SegmentKey, plain: &[u8]) -> Result<(), RestoreError>;

    /// Is told of a segment that cannot be had.
    fn damaged(&self, damaged: &DamagedSegment) -> Result<(), RestoreError>;
}

/// Segments of a repository's packs, fetched in the order of the packs.
pub(super) struct PackedSegments<'a> {
    repository: &'a Repository,
    manifest: &'a ManifestReader,
    runs: Vec<Range<u32>>,
    /// Until the end, no garbage collection takes what the backup names, even if it is deleted meanwhile.
    _lease: Lease,
    catalog: Catalog,
    /// Where the first window's segments lie.
    first: Option<Plan>,
}

/// Returns the windows of some runs.
fn windows(runs: &[Range<u32>]) -> impl Iterator<Item = Range<u32>> + use<> {
    let (first, behind) = (runs.first().map_or(0, |run| run.start), runs.last().map_or(0, |run| run.end));
    plan::windows(first..behind)
}

impl<'a> PackedSegments<'a> {
    /// Makes sure that the backup is there, and stays for this job, and can be read.
    pub(super) fn prepare(
        repository: &'a Repository,
        manifest: &'a ManifestReader,
        runs: Vec<Range<u32>>,
        job: &str,
        progress: &dyn Progress,
    ) -> Result<Self, RestoreError> {
        manifest.verify()?;
        let lease = repository.lease_for(job, manifest.info(), progress)?;
        let catalog = repository.catalog()?;
        let mut prepared = Self { repository, manifest, runs, _lease: lease, catalog, first: None };
        prepared.first = match windows(&prepared.runs).next() {
            Some(window) => Some(prepared.plan(window, progress)?),
            None => None,
        };
        Ok(prepared)
    }

    fn plan(&self, window: Range<u32>, progress: &dyn Progress) -> Result<Plan, RestoreError> {
        let is_wanted = |index: SegmentIndex| {
            let at = self.runs.partition_point(|run| run.end <= index.0);
            self.runs.get(at).is_some_and(|run| run.start <= index.0)
        };
        let (plan, problems) = Plan::of(self.manifest, &self.catalog, window, is_wanted)?;
        tell(&problems, progress);
        Ok(plan)
    }
}

impl SegmentSupply for Repository {
    fn prepare<'a>(
        &'a self,
        manifest: &'a ManifestReader,
        runs: Vec<Range<u32>>,
        progress: &dyn Progress,
    ) -> Result<Box<dyn PreparedSegments + 'a>, RestoreError> {
        Ok(Box::new(PackedSegments::prepare(self, manifest, runs, "restore", progress)?))
    }
}

impl PreparedSegments for PackedSegments<'_> {
    fn fetch(
        mut self: Box<Self>,
        sink: &dyn SegmentSink,
        pace: &Pace,
        progress: &dyn Progress,
    ) -> Result<Vec<DamagedSegment>, RestoreError> {
        let geometry = self.manifest.info().geometry;
        let mut damaged = Vec::new();
        for window in windows(&self.runs) {
            let plan = match self.first.take() {
                Some(first) => first,
                None => self.plan(window, progress)?,
            };
            damaged.extend(fetch::run(&self.catalog, &plan, sink, geometry, pace, progress)?);
        }
        damaged.sort_by_key(|damaged| damaged.index);
        note(self.repository, self.manifest, &damaged);
        Ok(damaged)
    }
}
