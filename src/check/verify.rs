//! Comparing a backup with a disk.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::check::{CheckError, WINDOW, tell, wanted};
use crate::image::{Image, ImageError, UnreadableRanges};
use crate::manifest::{ManifestReader, unreadable_ranges};
use crate::pace::on_threads;
use crate::progress::{Part, Progress};
use crate::repository::Repository;
use crate::segment::{Fingerprint, SegmentIndex, is_zero};
use crate::storage::AlignedBuffer;
use crate::store::Catalog;
use crate::store::pack::ContentsEntry;

/// How a backup is compared.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// How many threads read and hash, at least one.
    pub jobs: usize,
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifySummary {
    /// Ranges of bytes in which the disk differs from the backup: whole segments, in order, neighbours joined. What
    /// only one of them has, because their sizes differ, is one at the end.
    pub differing: Vec<Range<u64>>,
    /// Segments that are in no pack that can be read: of them nobody can say.
    pub unknown_segments: u64,
    /// Their ranges of bytes, in order.
    pub unknown: Vec<Range<u64>>,
    /// The ranges of the disk that cannot be read, in order: of what they hold nobody can say.
    pub unreadable: Vec<Range<u64>>,
    /// The ranges that could not be read when the backup was made, in order: their unreadable sectors are zeros in it.
    pub never_read: Vec<Range<u64>>,
    /// Bytes read from the disk.
    pub read_bytes: u64,
}

/// Where the fingerprints of a backup's segments come from: a repository here, or a service elsewhere.
pub trait FingerprintSupply {
    /// Returns the fingerprint of each present segment in a range of places, in order; nothing of one that no pack holds.
    ///
    /// # Errors
    ///
    /// If they cannot be had.
    fn fingerprints(
        &mut self,
        manifest: &ManifestReader,
        places: Range<u32>,
        progress: &dyn Progress,
    ) -> Result<Vec<(SegmentIndex, Option<Fingerprint>)>, CheckError>;
}

/// The packs' tables of contents.
struct Tables {
    catalog: Catalog,
}

impl FingerprintSupply for Tables {
    fn fingerprints(
        &mut self,
        manifest: &ManifestReader,
        places: Range<u32>,
        progress: &dyn Progress,
    ) -> Result<Vec<(SegmentIndex, Option<Fingerprint>)>, CheckError> {
        let wanted = wanted(manifest, places.start);
        let fact = |entry: &ContentsEntry| entry.fingerprint;
        let (mut found, mut problems) = self.catalog.describe(&wanted, |(key, _)| *key, fact)?;
        while found.contains(&None)
            && let Some(renewed) = self.catalog.renewed()?
        {
            // Garbage collection has moved what was in a pack that is gone.
            self.catalog = renewed;
            (found, problems) = self.catalog.describe(&wanted, |(key, _)| *key, fact)?;
        }
        tell(&problems, progress);
        let mut expected: Vec<_> =
            wanted.into_iter().zip(found).map(|((_, index), fingerprint)| (index, fingerprint)).collect();
        expected.sort_unstable_by_key(|(index, _)| *index);
        Ok(expected)
    }
}

/// Compares every segment of a disk with a backup by BLAKE3. Holes of the disk are not read.
pub fn verify(
    repository: &Repository,
    manifest: &ManifestReader,
    image: &dyn Image,
    options: &VerifyOptions,
    progress: &dyn Progress,
) -> Result<VerifySummary, CheckError> {
    manifest.verify()?;
    let info = manifest.info();
    // Until this ends, no garbage collection takes what the backup names, even if it is deleted meanwhile.
    let _lease = repository.lease_for("verify", info, progress)?;
    let mut tables = Tables { catalog: repository.catalog()? };
    verify_from(&mut tables, manifest, image, options, progress)
}

/// The same, wherever the fingerprints come from.
///
/// # Errors
///
/// If the manifest is damaged, or if the disk or the supply fails.
pub fn verify_from(
    supply: &mut dyn FingerprintSupply,
    manifest: &ManifestReader,
    image: &dyn Image,
    options: &VerifyOptions,
    progress: &dyn Progress,
) -> Result<VerifySummary, CheckError> {
    manifest.verify()?;
    let geometry = manifest.info().geometry;
    let mut part = Part::begin(progress, "verify", geometry.size_of_disk());
    // In an unknown form, `show` tells of them.
    let never_read = unreadable_ranges(manifest.info()).unwrap_or_default();
    let mut summary = VerifySummary { never_read, ..VerifySummary::default() };
    let unreadable = UnreadableRanges::default();
    let mut first = 0;
    while first < geometry.segments() {
        let end = first.saturating_add(WINDOW).min(geometry.segments());
        let expected = supply.fingerprints(manifest, first..end, progress)?;
        let window = Window { manifest, image, expected: &expected, unreadable: &unreadable };
        for (index, verdict) in window.compare(first..end, options.jobs, &mut summary.read_bytes)? {
            let start = geometry.offset(index);
            let range = start..start + u64::from(geometry.length(index));
            match verdict {
                // Of the rest of such a segment nobody can say either: the fingerprint is that of the whole.
                Verdict::Same | Verdict::Unreadable => {}
                Verdict::Unknown => {
                    summary.unknown_segments += 1;
                    summary.unknown.push(range);
                }
                Verdict::Differs => summary.add(range),
            }
        }
        first = end;
        part.reached(geometry.offset(SegmentIndex(end)).min(geometry.size_of_disk()));
    }
    image.verify_unchanged()?;
    summary.unreadable = unreadable.ranges();
    let (has, had) = (image.size(), geometry.size_of_disk());
    if has != had {
        let both = has.min(had);
        summary.differing.retain(|range| range.start < both);
        summary.add(both..has.max(had));
    }
    Ok(summary)
}

impl VerifySummary {
    /// Says whether the disk is what the backup holds, as far as anybody can say.
    pub fn is_same(&self) -> bool {
        self.differing.is_empty() && self.unknown_segments == 0 && self.unreadable.is_empty()
    }

    fn add(&mut self, range: Range<u64>) {
        match self.differing.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => self.differing.push(range),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Differs,
    Unknown,
    /// The disk does not give it.
    Unreadable,
}

/// A window of places, with what stands at those that are present.
struct Window<'a> {
    manifest: &'a ManifestReader,
    image: &'a dyn Image,
    expected: &'a [(SegmentIndex, Option<Fingerprint>)],
    unreadable: &'a UnreadableRanges,
}

impl Window<'_> {
    /// Compares all places of a range, on all cores. Returns those that are not the same, in order.
    fn compare(
        &self,
        places: Range<u32>,
        jobs: usize,
        read_bytes: &mut u64,
    ) -> Result<Vec<(SegmentIndex, Verdict)>, CheckError> {
        let with_data = self.with_data(places.clone())?;
        let next = AtomicUsize::new(0);
        let done = Mutex::new((Vec::new(), 0, None));
        on_threads(jobs, "ekko-verify", || {
            // A device is read past the page cache, if the memory is aligned.
            let mut buffer = AlignedBuffer::new(self.manifest.info().geometry.segment_size().as_usize());
            loop {
                let Some(index) = with_data.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                let bytes = buffer.of(self.length(*index));
                let verdict = self.read(*index, bytes);
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                let (differing, read, failure) = &mut *done;
                *read += bytes.len() as u64;
                match verdict {
                    Ok(Verdict::Same) => {}
                    Ok(verdict) => differing.push((*index, verdict)),
                    Err(error) => {
                        failure.get_or_insert(error);
                        next.store(with_data.len(), Ordering::Relaxed);
                    }
                }
            }
        });
        let (mut differing, read, failure) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = failure {
            return Err(error.into());
        }
        *read_bytes += read;
        // What the backup has where the disk has a hole. A short last segment of zeros is kept, and so compared.
        for (index, fingerprint) in self.expected {
            if with_data.binary_search(index).is_err() {
                let zeros = vec![0; self.manifest.info().geometry.length(*index) as usize];
                differing.push((*index, verdict(*fingerprint, &zeros)));
            }
        }
        differing.sort_unstable_by_key(|(index, _)| *index);
        Ok(differing)
    }

    /// Returns the places of a range at which the disk holds data.
    fn with_data(&self, places: Range<u32>) -> Result<Vec<SegmentIndex>, ImageError> {
        let geometry = self.manifest.info().geometry;
        let size = self.image.size();
        let mut found = Vec::new();
        let mut index = SegmentIndex(places.start);
        while index.0 < places.end {
            let start = geometry.offset(index);
            let extent = if start < size { self.image.next_data(start)? } else { None };
            let Some(extent) = extent else { break };
            index = geometry.containing(extent.offset).max(index);
            // Every place that the extent touches.
            let last = geometry.containing(extent.offset.saturating_add(extent.length).saturating_sub(1));
            while index <= last && index.0 < places.end {
                found.push(index);
                index.0 += 1;
            }
        }
        Ok(found)
    }

    /// Returns how many bytes of a segment the disk has.
    fn length(&self, index: SegmentIndex) -> usize {
        let geometry = self.manifest.info().geometry;
        let left = self.image.size().saturating_sub(geometry.offset(index));
        (geometry.length(index) as usize).min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    fn read(&self, index: SegmentIndex, bytes: &mut [u8]) -> Result<Verdict, ImageError> {
        let geometry = self.manifest.info().geometry;
        let (start, length) = (geometry.offset(index), geometry.length(index) as usize);
        if self.unreadable.read_around(self.image, bytes, start)? > 0 {
            return Ok(Verdict::Unreadable);
        }
        if bytes.len() < length {
            return Ok(Verdict::Differs);
        }
        let at = self.expected.binary_search_by_key(&index, |(index, _)| *index);
        Ok(match at.ok().and_then(|at| self.expected.get(at)) {
            Some((_, fingerprint)) => verdict(*fingerprint, bytes),
            None if is_zero(bytes) => Verdict::Same,
            None => Verdict::Differs,
        })
    }
}

fn verdict(expected: Option<Fingerprint>, bytes: &[u8]) -> Verdict {
    match expected {
        None => Verdict::Unknown,
        Some(expected) if expected == Fingerprint::of(bytes) => Verdict::Same,
        Some(_) => Verdict::Differs,
    }
}
