//! What differs between two backups, from their manifests alone.

use std::ops::Range;

use crate::manifest::{ManifestError, ManifestReader, Stretch};
use crate::pace::each_on_a_thread;
use crate::segment::{Geometry, SegmentIndex};

/// How many hashes are compared at once, before they are compared one by one.
const BLOCK: usize = 256;

/// After how many places the pages of the manifests are given back.
const WINDOW: u32 = 1 << 21;

/// A range of bytes that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first byte.
    pub offset: u64,
    /// How many bytes there are.
    pub length: u64,
    /// Whether the newer disk holds data here; if not, it is zero.
    pub exists: bool,
}

/// Two manifests that can be compared.
#[derive(Clone, Copy, Debug)]
pub struct ManifestDiff<'a> {
    older: &'a ManifestReader,
    newer: &'a ManifestReader,
}

impl<'a> ManifestDiff<'a> {
    /// Verifies both manifests and makes sure that they can be compared.
    ///
    /// # Errors
    /// One of them is damaged, or their segments are not of one size.
    pub fn of(older: &'a ManifestReader, newer: &'a ManifestReader) -> Result<Self, ManifestError> {
        if !(older.is_verified() && newer.is_verified()) {
            // Both at once; what is verified is so for good, and what is not comes now.
            each_on_a_thread([older, newer], "ekko-diff", |manifest| drop(manifest.verify()));
            older.verify()?;
            newer.verify()?;
        }
        let sizes = [older, newer].map(|manifest| manifest.info().geometry.segment_size().bytes());
        if let [older_size, newer_size] = sizes
            && older_size != newer_size
        {
            return Err(ManifestError::Incomparable {
                older: older.path().to_owned(),
                older_size,
                newer: newer.path().to_owned(),
                newer_size,
            });
        }
        Ok(Self { older, newer })
    }

    /// Calls `each` with the ranges of the newer disk that differ from the older one, in order; neighbours
    /// that say the same are joined. A range is whole segments, cut at the end of the newer disk.
    ///
    /// Behind the end of a smaller older disk, what is zero does not differ. Segments are compared by SHA-1
    /// and twin number: two manifests of different repositories may number twins differently.
    pub fn for_each<E>(&self, mut each: impl FnMut(Difference) -> Result<(), E>) -> Result<(), E> {
        let mut cursor = DiffCursor::default();
        while self.advance(&mut cursor, WINDOW, &mut each)? {}
        Ok(())
    }

    /// Goes on with a comparison for up to `places` places, as [`ManifestDiff::for_each`] does it. Says whether there are more. A
    /// range may be told of later than its places, with what it is joined with.
    ///
    /// # Errors
    /// With that of `each`; the comparison cannot be continued then.
    pub fn advance<E>(
        &self,
        cursor: &mut DiffCursor,
        places: u32,
        mut each: impl FnMut(Difference) -> Result<(), E>,
    ) -> Result<bool, E> {
        let geometry = self.newer.info().geometry;
        let mut place = cursor.place;
        let behind = place.saturating_add(places).min(geometry.segments());
        let mut joined = Joined { geometry, open: cursor.open.take(), each: &mut each };
        let (mut older, mut newer) = (Side::of(self.older, place), Side::of(self.newer, place));
        while place < behind {
            // Up to here both sides go on as they are: in a stretch or in a gap.
            let end = older.end(place).min(newer.end(place)).min(behind);
            match (older.hashes(place..end), newer.hashes(place..end)) {
                (None, None) => {}
                (None, Some(_)) => joined.add(place..end, true)?,
                (Some(_), None) => joined.add(place..end, false)?,
                (Some(_), Some(_)) if older.twin() != newer.twin() => joined.add(place..end, true)?,
                (Some(one), Some(other)) => compare(place, one, other, |range| joined.add(range, true))?,
            }
            place = end;
        }
        let has_more = behind < geometry.segments();
        if !has_more {
            joined.flush()?;
        }
        cursor.open = joined.open;
        cursor.place = behind;
        cursor.compared = cursor.compared.saturating_add(places);
        if cursor.compared >= WINDOW {
            self.older.release_pages();
            self.newer.release_pages();
            cursor.compared = 0;
        }
        Ok(has_more)
    }
}

/// How far a comparison has come.
#[derive(Clone, Debug, Default)]
pub struct DiffCursor {
    /// The next place.
    place: u32,
    /// A range that may go on there, and whether the newer disk holds data in it.
    open: Option<(Range<u32>, bool)>,
    /// How many places were compared since the pages were given back.
    compared: u32,
}

/// Calls `each` with the stretches of unequal hashes.
fn compare<E>(
    place: u32,
    one: &[[u8; 20]],
    other: &[[u8; 20]],
    mut each: impl FnMut(Range<u32>) -> Result<(), E>,
) -> Result<(), E> {
    let mut at = place;
    for (one, other) in one.chunks(BLOCK).zip(other.chunks(BLOCK)) {
        if one.as_flattened() == other.as_flattened() {
            at += u32::try_from(one.len()).unwrap_or(u32::MAX);
            continue;
        }
        for (one, other) in one.iter().zip(other) {
            if one != other {
                each(at..at + 1)?;
            }
            at += 1;
        }
    }
    Ok(())
}

/// One manifest on the way through its places.
struct Side<'a> {
    stretches: Box<dyn Iterator<Item = Stretch<'a>> + 'a>,
    /// The stretch that holds the place, or the next one behind it.
    stretch: Option<Stretch<'a>>,
}

impl<'a> Side<'a> {
    fn of(manifest: &'a ManifestReader, place: u32) -> Self {
        Self { stretches: Box::new(manifest.stretches_from(SegmentIndex(place))), stretch: None }
    }

    /// Returns up to where `place`'s stretch or gap goes, and at most a window.
    fn end(&mut self, place: u32) -> u32 {
        if self.stretch.is_none_or(|stretch| stretch.end() <= place) {
            self.stretch = self.stretches.find(|stretch| stretch.end() > place);
        }
        let end = match self.stretch {
            Some(stretch) if stretch.first.0 > place => stretch.first.0,
            Some(stretch) => stretch.end(),
            None => u32::MAX,
        };
        end.min(place.saturating_add(WINDOW))
    }

    /// Returns the hashes of a range within a stretch; a gap has none.
    fn hashes(&self, range: Range<u32>) -> Option<&'a [[u8; 20]]> {
        let Stretch { first, hashes, .. } = self.stretch?;
        let start = range.start.checked_sub(first.0)?;
        hashes.get(start as usize..(range.end - first.0) as usize)
    }

    fn twin(&self) -> Option<crate::segment::Twin> {
        self.stretch.map(|stretch| stretch.twin)
    }
}

/// Joins neighbouring ranges.
struct Joined<'a, F> {
    geometry: Geometry,
    open: Option<(Range<u32>, bool)>,
    each: &'a mut F,
}

impl<E, F: FnMut(Difference) -> Result<(), E>> Joined<'_, F> {
    fn add(&mut self, range: Range<u32>, exists: bool) -> Result<(), E> {
        match &mut self.open {
            Some((open, also)) if open.end == range.start && *also == exists => {
                open.end = range.end;
                Ok(())
            }
            _ => {
                self.flush()?;
                self.open = Some((range, exists));
                Ok(())
            }
        }
    }

    fn flush(&mut self) -> Result<(), E> {
        let Some((range, exists)) = self.open.take() else { return Ok(()) };
        let offset = self.geometry.offset(SegmentIndex(range.start));
        let end = self.geometry.offset(SegmentIndex(range.end)).min(self.geometry.size_of_disk());
        (self.each)(Difference { offset, length: end - offset, exists })
    }
}
