//! Where a disk is restored to, when it can be written at any place.

mod medium;
mod partial;
mod pieces;
mod plan;

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

pub use partial::{PartialFolder, RestoredFile};
pub use plan::TargetPlan;
pub(super) use plan::Written;

use crate::image::target_use;
use crate::manifest::ManifestReader;
use crate::progress::Progress;
use crate::restore::cleanup::{CleanupEntry, TargetFate};
use crate::restore::target::medium::Medium;
use crate::restore::target::partial::PartialFile;
use crate::restore::target::pieces::cut;
use crate::restore::target::plan::PlannedTarget;
use crate::restore::{DamagedSegment, RestoreError, RestoreOptions, SegmentSink, UnwrittenRange};
use crate::segment::{Geometry, SegmentIndex, SegmentKey, data_runs};

/// How many zeros are written at once where the target cannot zero a range by itself.
const ZEROS: usize = 1 << 20;

/// What the bytes of a target are before they are written.
#[derive(Debug)]
enum Place {
    /// A new file, all zeros, under its temporary name.
    Partial(PartialFile),
    /// Old data, which stays where nothing is written: a device, an export, or a file that is changed in place.
    Direct(CleanupEntry),
    /// Old data that is overwritten already.
    Done,
}

/// A target that is being restored to.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    medium: Medium,
    place: Place,
    geometry: Geometry,
    /// The bytes of the disk that the target begins with.
    part: Range<u64>,
    /// What is known of a disk of which only parts are written.
    in_place: Option<InPlace>,
    written: AtomicU64,
    /// Whether a segment has come.
    has_segments: AtomicBool,
    unwritten: Mutex<Vec<UnwrittenRange>>,
}

/// What is known of a disk that exists and of which only parts are written: ranges of bytes, in order.
#[derive(Debug)]
pub(super) struct InPlace {
    /// What the disk has there is not overwritten: the backup does not know these bytes.
    pub(super) kept: Vec<Range<u64>>,
    /// What the disk cannot read, and perhaps not take either.
    pub(super) unreadable: Vec<Range<u64>>,
}

impl SegmentSink for Target {
    fn segment(&self, index: SegmentIndex, _: SegmentKey, plain: &[u8]) -> Result<(), RestoreError> {
        let start = self.geometry.offset(index);
        let bytes = self.within_part(&(start..start + plain.len() as u64));
        let within = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
        let plain = plain.get(within(bytes.start)..within(bytes.end)).unwrap_or(&[]);
        self.has_segments.store(true, Ordering::Release);
        self.write(bytes.start - self.part.start, plain)
    }

    /// Its range is made zero at the end, if it is: see [`Target::finish_zeros`].
    fn damaged(&self, _: &DamagedSegment) -> Result<(), RestoreError> {
        Ok(())
    }
}

impl Target {
    /// Opens or creates a target that was examined.
    pub(super) fn begin(
        plan: TargetPlan,
        geometry: Geometry,
        part: Range<u64>,
        in_place: Option<InPlace>,
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        let TargetPlan { path, kind, size, .. } = plan;
        // It may be hours since the target was examined, and somebody may have started the machine.
        if let (false, PlannedTarget::InPlace { path: used }, _) | (false, PlannedTarget::Device(_), used) =
            (options.target_in_use, &kind, &path)
            && let Some(how) = target_use(used)
        {
            return Err(RestoreError::TargetInUse { path, how }.with_fate(TargetFate::Untouched));
        }
        let direct = || Place::Direct(options.cleanup.direct(&path));
        let (medium, place) = match kind {
            PlannedTarget::File { path, replace } => {
                let partial = PartialFile::create(&path, replace, options)?;
                let opened = Medium::of_partial(&partial, size, options);
                let medium = opened.map_err(|error| error.with_fate(partial.abandon()))?;
                (medium, Place::Partial(partial))
            }
            PlannedTarget::InPlace { path } => {
                let failed = |operation: &'static str| {
                    let path = path.clone();
                    move |source| RestoreError::Target { operation, path, source }
                };
                let file = OpenOptions::new().write(true).open(&path).map_err(failed("open"))?;
                let place = direct();
                place.touch();
                file.set_len(size).map_err(failed("size"))?;
                (Medium::File(file), place)
            }
            PlannedTarget::Device(file) => (Medium::File(file), direct()),
            PlannedTarget::Export(export) => (Medium::Nbd(export), direct()),
        };
        let (written, has_segments, unwritten) = Default::default();
        Ok(Self { path, medium, place, geometry, part, in_place, written, has_segments, unwritten })
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> RestoreError {
        let path = match &self.place {
            Place::Partial(partial) => partial.path().to_owned(),
            Place::Direct(_) | Place::Done => self.path.clone(),
        };
        // An export says itself what failed, and where.
        move |source| match source.downcast() {
            Ok(source) => RestoreError::Export { source },
            Err(source) => RestoreError::Target { operation, path, source },
        }
    }

    fn write_all(&self, bytes: &[u8], offset: u64) -> Result<(), RestoreError> {
        self.place.touch();
        self.medium.write_all_at(bytes, offset).map_err(self.failed("write"))?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Returns which bytes of a range of the disk lie in the part that is restored.
    fn within_part(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start.clamp(self.part.start, self.part.end);
        start..range.end.clamp(start, self.part.end)
    }

    /// Writes a segment. Blocks of zeros are left out where the target is zero already.
    fn write(&self, offset: u64, plain: &[u8]) -> Result<(), RestoreError> {
        if plain.is_empty() {
            return Ok(());
        }
        if self.place.keeps_old_data() {
            return self.each_piece(offset..offset + plain.len() as u64, |piece| {
                let within = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
                let bytes = plain.get(within(piece.start)..within(piece.end)).unwrap_or(&[]);
                self.write_all(bytes, piece.start)
            });
        }
        data_runs(plain).try_for_each(|run| {
            let start = offset + run.start as u64;
            self.write_all(plain.get(run).unwrap_or(&[]), start)
        })
    }

    /// Changes a range of the target, but for what is kept of it. If that fails at a place that could not be read either, the rest is
    /// changed all the same.
    fn each_piece(
        &self,
        range: Range<u64>,
        change: impl Fn(Range<u64>) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let Some(InPlace { kept, unreadable }) = &self.in_place else { return change(range) };
        for (piece, _) in cut(&range, kept).into_iter().filter(|(_, is_kept)| !is_kept) {
            let smaller = cut(&piece, unreadable);
            match change(piece) {
                Err(error) if error.is_unwritable_place() && smaller.iter().any(|(_, is_bad)| *is_bad) => {}
                changed => {
                    changed?;
                    continue;
                }
            }
            for (piece, is_bad) in smaller {
                match change(piece.clone()) {
                    Err(error) if is_bad && error.is_unwritable_place() => {
                        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
                        unwritten.push(UnwrittenRange { range: piece, error: error.to_string() });
                    }
                    changed => changed?,
                }
            }
        }
        Ok(())
    }

    /// Makes a range of the disk zero.
    fn zero(&self, range: Range<u64>) -> Result<(), RestoreError> {
        let range = self.within_part(&range);
        let range = range.start - self.part.start..range.end - self.part.start;
        if !self.place.keeps_old_data() || range.is_empty() {
            return Ok(());
        }
        self.each_piece(range, |piece| self.zero_piece(piece))
    }

    fn zero_piece(&self, range: Range<u64>) -> Result<(), RestoreError> {
        self.place.touch();
        if self.medium.zero(range.clone()).map_err(self.failed("zero"))? {
            return Ok(());
        }
        let zeros = vec![0; ZEROS];
        let mut offset = range.start;
        while offset < range.end {
            let length = usize::try_from(range.end - offset).unwrap_or(ZEROS).min(ZEROS);
            self.write_all(zeros.get(..length).unwrap_or(&[]), offset)?;
            offset += length as u64;
        }
        Ok(())
    }

    /// Makes everything zero that is not written, in runs of segments: the zeros of the backup and, unless the restore is in place, its
    /// damaged segments. The segments come first: until one of them has come, a cut link or a lost repository may be all that there
    /// is, and the old data of the target the last copy.
    ///
    /// # Errors
    ///
    /// If no segment could be read and the target has old data, all of which is to be replaced. Or if writing fails.
    pub(super) fn finish_zeros(
        &self,
        manifest: &ManifestReader,
        runs: &[Range<u32>],
        damaged: &[DamagedSegment],
        progress: &dyn Progress,
    ) -> Result<(), RestoreError> {
        if let Some(first) = damaged.first()
            && self.in_place.is_none()
            && self.place.replaces_old_data()
            && !self.has_segments.load(Ordering::Acquire)
        {
            let (path, what) = (self.path.clone(), first.error.clone());
            return Err(RestoreError::NothingReadable { path, segments: damaged.len(), what });
        }
        runs.iter().try_for_each(|run| self.zero_gaps(manifest, run.clone(), progress))?;
        // What a disk has there may be right, and be the last there is of it.
        let zeroed = damaged.iter().filter(|_| self.in_place.is_none());
        zeroed.map(|it| it.range.clone()).try_for_each(|range| self.zero(range))
    }

    /// Makes everything zero that the manifest says is, in so many segments.
    fn zero_gaps(
        &self,
        manifest: &ManifestReader,
        segments: Range<u32>,
        progress: &dyn Progress,
    ) -> Result<(), RestoreError> {
        let geometry = manifest.info().geometry;
        let Some(last) = segments.end.checked_sub(1).filter(|last| *last >= segments.start) else {
            return Ok(());
        };
        let behind = geometry.offset(SegmentIndex(last)) + u64::from(geometry.length(SegmentIndex(last)));
        let mut end = geometry.offset(SegmentIndex(segments.start));
        let mut cursor = manifest.cursor(SegmentIndex(segments.start));
        let length = |range: Range<u64>| range.end - range.start;
        for index in segments.map(SegmentIndex) {
            if cursor.at(index).is_none() {
                continue;
            }
            let start = geometry.offset(index);
            self.zero(end..start)?;
            progress.advance(length(self.within_part(&(end..start))));
            end = start + u64::from(geometry.length(index));
        }
        self.zero(end..behind)?;
        progress.advance(length(self.within_part(&(end..behind))));
        Ok(())
    }

    /// Returns what could be neither read nor written, in order.
    pub(super) fn unwritten(&self) -> Vec<UnwrittenRange> {
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).clone();
        unwritten.sort_unstable_by_key(|it| it.range.start);
        unwritten
    }

    /// Returns how many bytes were written so far.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Makes a complete target durable, if that is asked for.
    pub(super) fn complete(&mut self, sync: bool) -> Result<(), RestoreError> {
        if sync {
            self.medium.sync().map_err(self.failed("sync"))?;
        }
        self.medium.close().map_err(self.failed("close"))?;
        match &self.place {
            // What a server of our own wrote is durable as well then.
            Place::Partial(partial) if sync => partial.sync(),
            Place::Partial(_) | Place::Direct(_) | Place::Done => Ok(()),
        }
    }

    /// Gives a complete target its name.
    pub(super) fn publish(self, sync: bool) -> Result<(), RestoreError> {
        match self.place {
            Place::Partial(partial) => partial.publish(sync),
            Place::Direct(entry) => entry.complete(|| Ok(())),
            Place::Done => Ok(()),
        }
    }

    /// Enters a target as complete that has no temporary name.
    pub(super) fn publish_direct(&mut self) {
        if let Place::Direct(entry) = &self.place {
            entry.complete_direct();
            self.place = Place::Done;
        }
    }

    /// Ends a restore that failed: removes the temporary file, unless it is to be kept.
    pub(super) fn abandon(&self) -> TargetFate {
        match &self.place {
            Place::Partial(partial) => partial.abandon(),
            Place::Direct(entry) => entry.end(),
            Place::Done => TargetFate::Complete { target: self.path.clone() },
        }
    }
}

impl Place {
    fn keeps_old_data(&self) -> bool {
        matches!(self, Self::Direct(_) | Self::Done)
    }

    /// Says whether the target has old data that will be gone when the restore is complete.
    fn replaces_old_data(&self) -> bool {
        match self {
            Self::Partial(partial) => partial.replaces(),
            Self::Direct(_) | Self::Done => true,
        }
    }

    fn touch(&self) {
        if let Self::Direct(entry) = self {
            entry.touch();
        }
    }
}
