//! Reading a range of a disk part by part, for whoever asks for the next part when they want it: no thread waits for them.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::codec::Decoder;
use crate::manifest::ManifestReader;
use crate::progress::Progress;
use crate::repository::{Lease, Repository};
use crate::restore::fetch::{Fetcher, check_length};
use crate::restore::plan::{self, Plan};
use crate::restore::{RestoreError, segments_of, tell};
use crate::segment::{Geometry, SegmentIndex};
use crate::store::Catalog;

/// Neighbouring segments up to this many bytes make one part, at least one segment.
const TOGETHER: u64 = 1 << 20;
/// How many segments one window covers. Many ranges may be read at a time, so it is less than a restore has.
const WINDOW: u32 = 1 << 16;
/// What a segment takes in a window's plan, in bytes, about.
const PLANNED: u64 = 160;

/// A range of a backup's bytes. While it lives, no garbage collection takes what the backup names.
///
/// The range is read window by window ([`RangeReader::windows`]), and each window part by part. Parts can be read in any order, and
/// several at once. Memory: [`RangeReader::plan_bytes`] for each window that lives, and for each part that is read its bytes and one
/// stored segment.
#[derive(Debug)]
pub struct RangeReader {
    repository: Repository,
    manifest: ManifestReader,
    catalog: Catalog,
    geometry: Geometry,
    range: Range<u64>,
    /// What decodes, and room for a stored segment.
    idle: Mutex<Vec<(Decoder, Vec<u8>)>>,
    _lease: Lease,
}

/// A part of a window, in the order of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangePart {
    /// So many zeros.
    Zeros(u64),
    /// Segments, by their numbers in the window's plan.
    Segments(Range<usize>),
}

/// Segments of a range whose places are known.
#[derive(Debug)]
pub struct RangeWindow {
    plan: Plan,
    /// The segments in the order of the disk, with the numbers of their items in the plan.
    order: Vec<(SegmentIndex, usize)>,
    parts: Vec<RangePart>,
}

impl RangeWindow {
    /// Returns the parts that the window's bytes consist of, in order.
    pub fn parts(&self) -> &[RangePart] {
        &self.parts
    }
}

impl RangeReader {
    /// Opens a range, in bytes of the disk.
    ///
    /// # Errors
    ///
    /// If the manifest is damaged, the backup is gone, or the range does not lie on the disk.
    pub fn open(
        repository: &Repository,
        manifest: ManifestReader,
        range: Range<u64>,
    ) -> Result<Self, RestoreError> {
        manifest.verify()?;
        let info = manifest.info();
        let (geometry, size) = (info.geometry, info.geometry.size_of_disk());
        if range.start > range.end || range.end > size {
            return Err(RestoreError::OutsideDisk { start: range.start, end: range.end, size });
        }
        let lease = repository.lease(info.backupset, info.incremental)?;
        let catalog = repository.catalog()?;
        let repository = repository.clone();
        Ok(Self { repository, manifest, catalog, geometry, range, idle: Mutex::default(), _lease: lease })
    }

    /// How much memory the plan of a window of any range takes at most, in bytes, about.
    pub const MOST_PLAN_BYTES: u64 = WINDOW as u64 * PLANNED;

    /// Returns how much memory the plan of a window of a range takes, in bytes, about.
    pub fn plan_bytes(geometry: Geometry, range: &Range<u64>) -> u64 {
        let segments = segments_of(geometry, range);
        u64::from(segments.end.saturating_sub(segments.start).min(WINDOW)) * PLANNED
    }

    /// Returns the windows of the range, in order.
    pub fn windows(&self) -> impl Iterator<Item = Range<u32>> + use<> {
        plan::windows_of(segments_of(self.geometry, &self.range), WINDOW)
    }

    /// Finds out where the segments of a window lie.
    ///
    /// # Errors
    ///
    /// If the packs cannot be listed.
    pub fn window(&self, window: Range<u32>, progress: &dyn Progress) -> Result<RangeWindow, RestoreError> {
        let (plan, problems) = Plan::of(&self.manifest, &self.catalog, window.clone(), |_| true)?;
        tell(&problems, progress);
        let targets = |(number, item): (usize, &plan::Item)| -> Vec<(SegmentIndex, usize)> {
            item.targets.iter().map(|index| (*index, number)).collect()
        };
        let mut order: Vec<_> = plan.items.iter().enumerate().flat_map(targets).collect();
        order.sort_unstable_by_key(|(index, _)| *index);
        let parts = self.parts_of(&order, window);
        Ok(RangeWindow { plan, order, parts })
    }

    /// Divides a window into parts: each segment's bytes belong to one, and so does each gap.
    fn parts_of(&self, order: &[(SegmentIndex, usize)], window: Range<u32>) -> Vec<RangePart> {
        let mut parts = Vec::new();
        let mut at = self.geometry.offset(SegmentIndex(window.start)).max(self.range.start);
        for (number, (index, _)) in order.iter().enumerate() {
            let bytes = self.bytes_of(*index);
            if at < bytes.start {
                parts.push(RangePart::Zeros(bytes.start - at));
            }
            at = bytes.end;
            let length = |numbers: &Range<usize>| numbers.len() as u64 * u64::from(self.segment_size());
            match parts.last_mut() {
                Some(RangePart::Segments(numbers)) if length(numbers) < TOGETHER => numbers.end = number + 1,
                _ => parts.push(RangePart::Segments(number..number + 1)),
            }
        }
        let end = self.geometry.offset(SegmentIndex(window.end)).min(self.range.end);
        if at < end {
            parts.push(RangePart::Zeros(end - at));
        }
        parts
    }

    fn segment_size(&self) -> u32 {
        self.geometry.segment_size().bytes()
    }

    /// Returns the bytes of a segment that lie in the range.
    fn bytes_of(&self, index: SegmentIndex) -> Range<u64> {
        let start = self.geometry.offset(index);
        let end = start + u64::from(self.geometry.length(index));
        start.max(self.range.start)..end.min(self.range.end)
    }

    /// Reads segments of a window, and verifies them. Returns the bytes before the first damaged segment, and that segment as an
    /// error: nothing stands for it.
    pub fn read(&self, window: &RangeWindow, numbers: Range<usize>) -> (Vec<u8>, Result<(), RestoreError>) {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().pop();
        let fetcher = match taken {
            Some((decoder, stored)) => Ok(Fetcher::again(&self.catalog, decoder, stored)),
            None => Fetcher::new(&self.catalog),
        };
        let mut bytes = Vec::new();
        let result = fetcher.and_then(|mut fetcher| {
            let result = self.read_with(&mut fetcher, window, numbers, &mut bytes);
            idle().push(fetcher.into_parts());
            result
        });
        if let Err(RestoreError::Damaged { index, what }) = &result {
            self.repository.note_damage(&self.manifest, &[(*index, what.clone())]);
        }
        (bytes, result)
    }

    fn read_with(
        &self,
        fetcher: &mut Fetcher<'_>,
        window: &RangeWindow,
        numbers: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), RestoreError> {
        let mut plain = Vec::new();
        for (index, item) in window.order.get(numbers).unwrap_or(&[]) {
            let Some(item) = window.plan.items.get(*item) else { continue };
            fetcher
                .fetch(&window.plan, item, &mut plain)
                .and_then(|()| check_length(item, &plain, self.geometry, *index))
                .map_err(|error| RestoreError::Damaged { index: *index, what: error.to_string() })?;
            let start = self.geometry.offset(*index);
            let wanted = self.bytes_of(*index);
            let within = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
            if bytes.is_empty() && wanted.start == start {
                // One segment is handed over as it is.
                std::mem::swap(bytes, &mut plain);
                bytes.truncate(within(wanted.end));
            } else {
                bytes.extend_from_slice(plain.get(within(wanted.start)..within(wanted.end)).unwrap_or(&[]));
            }
        }
        Ok(())
    }
}
