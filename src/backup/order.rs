//! The manifest of a backup, filled in the order of the disk.

use crate::backup::BackupError;
use crate::backup::pipeline::{InOrder, Outcome};
use crate::backup::plan::{Fate, Plan};
use crate::manifest::{ManifestWriter, SegmentRef};
use crate::repository::BackupDraft;
use crate::segment::SegmentIndex;

/// The manifest, filled in the order of the disk.
pub(super) struct Order<'a> {
    draft: &'a BackupDraft,
    plan: &'a Plan,
    manifest: &'a mut ManifestWriter,
    /// The first segment of which nothing has been said.
    next: u32,
    kept: u64,
}

impl InOrder<SegmentRef> for Order<'_> {
    fn push(&mut self, outcome: Outcome<SegmentRef>) -> Result<(), BackupError> {
        let Outcome { index, segment, .. } = outcome;
        self.keep_up_to(index.0)?;
        self.next = index.0 + 1;
        if let Some(segment) = &segment {
            self.manifest.push(index, segment)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<u64, BackupError> {
        self.keep_up_to(self.draft.info().geometry.segments())?;
        Ok(self.kept)
    }
}

impl<'a> Order<'a> {
    pub(super) fn new(draft: &'a BackupDraft, plan: &'a Plan, manifest: &'a mut ManifestWriter) -> Self {
        Self { draft, plan, manifest, next: 0, kept: 0 }
    }

    /// Takes over from the parent what was not read before `end`; the rest there is zero.
    fn keep_up_to(&mut self, end: u32) -> Result<(), BackupError> {
        let next = std::mem::replace(&mut self.next, end);
        let Some(parent) = self.draft.parent().filter(|_| next < end) else { return Ok(()) };
        for (run, fate) in self.plan.runs(next..end) {
            if !matches!(fate, Fate::Keep | Fate::Audit { zero: false }) {
                continue;
            }
            let mut cursor = parent.manifest.cursor(SegmentIndex(run.start));
            let mut next = run.start;
            while next < run.end {
                let index = SegmentIndex(next);
                next += 1;
                let Some(segment) = cursor.at(index) else {
                    // A large hole costs nothing.
                    next = cursor.next_present().map_or(run.end, |present| present.0.max(next));
                    continue;
                };
                if fate != Fate::Keep {
                    // The image has a hole where the parent has a segment.
                    return Err(BackupError::ListWrong { segment: index });
                }
                let segment = SegmentRef { base: parent.base(segment.base), ..segment };
                self.kept += 1;
                self.manifest.push(index, &segment)?;
            }
        }
        Ok(())
    }
}
