//! Dividing an image into pieces to read; holes are passed over.

use std::ops::Range;

use crate::backup::plan::Plan;
use crate::image::{Extent, Image, ImageError};
use crate::segment::{Geometry, SegmentIndex};

/// How many bytes are read at once, unless a segment is larger: then that is a piece. Two segments of the usual size, so
/// that their SHA-1 can be computed side by side; more would leave the processor's cache before they are encoded.
pub(super) const PIECE: u32 = 8 << 20;

/// Neighbouring segments that are read and processed by one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Counts the pieces, so that what becomes of them can be put in order again.
    pub(super) sequence: u64,
    pub(super) segments: Range<u32>,
    /// Where its data lies, in bytes of the disk; the rest is zero.
    pub(super) data: Vec<Range<u64>>,
}

impl Piece {
    /// Returns how many of its bytes are data.
    pub(super) fn data_bytes(&self) -> u64 {
        self.data.iter().map(|range| range.end - range.start).sum()
    }

    /// Fills `bytes`, which are the piece's, from the image.
    pub(super) fn read(&self, image: &dyn Image, start: u64, bytes: &mut [u8]) -> Result<(), ImageError> {
        let within = |offset: u64| usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
        let mut filled = 0;
        for range in &self.data {
            if let Some(hole) = bytes.get_mut(filled..within(range.start)) {
                hole.fill(0);
            }
            if let Some(data) = bytes.get_mut(within(range.start)..within(range.end)) {
                image.read_at(data, range.start)?;
            }
            filled = within(range.end);
        }
        if let Some(hole) = bytes.get_mut(filled..) {
            hole.fill(0);
        }
        Ok(())
    }
}

/// The pieces of an image, in order.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    image: &'a dyn Image,
    geometry: Geometry,
    plan: &'a Plan,
    /// The first extent that was not wholly given out.
    extent: Option<Extent>,
    next: u32,
    sequence: u64,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(image: &'a dyn Image, geometry: Geometry, plan: &'a Plan) -> Self {
        let extent = Some(Extent { offset: 0, length: 0 });
        Self { image, geometry, plan, extent, next: 0, sequence: 0 }
    }

    /// Returns the most bytes that a piece of such a disk has.
    pub(super) fn most_bytes(geometry: Geometry) -> usize {
        usize::try_from(geometry.segment_size().bytes().max(PIECE)).unwrap_or(usize::MAX)
    }

    /// Returns the next piece: it begins and ends with a segment that has data, or is the last segment alone, if
    /// that is kept although it is zero.
    pub(super) fn next(&mut self) -> Result<Option<Piece>, ImageError> {
        let geometry = self.geometry;
        let last = geometry.segments().saturating_sub(1);
        let (first, run_end) = loop {
            let Some(run) = self.plan.next_read(self.next) else { return Ok(None) };
            self.skip_to(geometry.offset(SegmentIndex(run.start)))?;
            let data_from = self.extent.map(|extent| geometry.containing(extent.offset).0.max(run.start));
            match data_from.filter(|first| run.contains(first)) {
                Some(first) => break (first, run.end),
                None if run.contains(&last) && geometry.keeps_zeros(SegmentIndex(last)) => {
                    break (last, run.end);
                }
                None => self.next = run.end,
            }
        };
        let most = (PIECE / geometry.segment_size().bytes()).max(1);
        let behind = first.saturating_add(most).min(run_end);
        let start = geometry.offset(SegmentIndex(first));
        let end = self.end(behind);
        let mut data: Vec<Range<u64>> = Vec::new();
        while let Some(extent) = self.extent.filter(|extent| extent.offset < end) {
            let extent_end = extent.offset.saturating_add(extent.length);
            data.push(extent.offset.max(start)..extent_end.min(end));
            if extent_end > end {
                break;
            }
            self.extent = self.image.next_data(extent_end)?;
        }
        let used = data.last().map_or(first, |range| geometry.containing(range.end - 1).0) + 1;
        self.next = used;
        let sequence = self.sequence;
        self.sequence += 1;
        Ok(Some(Piece { sequence, segments: first..used, data }))
    }

    /// Passes over the extents that end at or before `offset`.
    fn skip_to(&mut self, offset: u64) -> Result<(), ImageError> {
        if self.extent.is_some_and(|extent| extent.offset.saturating_add(extent.length) <= offset) {
            self.extent = self.image.next_data(offset)?;
        }
        Ok(())
    }

    /// Returns where the segments before `behind` end, in bytes.
    fn end(&self, behind: u32) -> u64 {
        let last = SegmentIndex(behind.saturating_sub(1));
        self.geometry.offset(last) + u64::from(self.geometry.length(last))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "one extent is a list of one range")]

    use std::path::Path;

    use super::*;
    use crate::segment::SegmentSize;

    /// An image of which only the places of its data are known; a byte is the number of its 64 KiB.
    #[derive(Debug)]
    struct Sketch {
        size: u64,
        extents: Vec<Range<u64>>,
    }

    impl Image for Sketch {
        fn path(&self) -> &Path {
            Path::new("sketch")
        }

        fn size(&self) -> u64 {
            self.size
        }

        fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
            let next = self.extents.iter().find(|extent| extent.end > from);
            Ok(next.map(|extent| {
                let offset = extent.start.max(from);
                Extent { offset, length: extent.end - offset }
            }))
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
            for (byte, at) in buffer.iter_mut().zip(offset..) {
                *byte = u8::try_from(at >> 16).unwrap_or(255) + 1;
            }
            Ok(())
        }

        fn verify_unchanged(&self) -> Result<(), ImageError> {
            Ok(())
        }
    }

    const K: u64 = 64 << 10;

    fn pieces(segment: u64, size: u64, extents: &[Range<u64>]) -> Vec<(Range<u32>, Vec<Range<u64>>)> {
        let image = Sketch { size, extents: extents.to_vec() };
        let geometry = Geometry::new(size, SegmentSize::new(segment).unwrap()).unwrap();
        let plan = Plan::full(geometry);
        let mut pieces = Pieces::new(&image, geometry, &plan);
        let mut all = Vec::new();
        while let Some(piece) = pieces.next().unwrap() {
            assert_eq!(piece.sequence, all.len() as u64);
            let start = geometry.offset(SegmentIndex(piece.segments.start));
            let mut bytes = vec![9; usize::try_from(pieces.end(piece.segments.end) - start).unwrap()];
            assert!(bytes.len() <= Pieces::most_bytes(geometry));
            piece.read(&image, start, &mut bytes).unwrap();
            for (byte, at) in bytes.iter().zip(start..) {
                let is_data = extents.iter().any(|extent| extent.contains(&at));
                let expected = if is_data { u8::try_from(at >> 16).unwrap() + 1 } else { 0 };
                assert_eq!(*byte, expected, "at {at}");
            }
            all.push((piece.segments, piece.data));
        }
        all
    }

    #[test]
    fn small_segments_are_read_together_and_holes_are_passed_over() {
        // 128 segments make a piece; the hole at its end is left out.
        let all = pieces(K, 200 * K, &[0..3 * K, 10 * K + 5..11 * K, 150 * K..200 * K]);
        assert_eq!(all, [(0..11, vec![0..3 * K, 10 * K + 5..11 * K]), (150..200, vec![150 * K..200 * K])]);
        let all = pieces(K, 200 * K, &[0..200 * K]);
        assert_eq!(all.len(), 2);
        assert_eq!(all[1], (128..200, vec![128 * K..200 * K]));
    }

    #[test]
    fn a_large_segment_is_a_piece() {
        let all = pieces(128 * K, 256 * K, &[K..2 * K, 130 * K..131 * K]);
        assert_eq!(all, [(0..1, vec![K..2 * K]), (1..2, vec![130 * K..131 * K])]);
    }

    #[test]
    fn a_short_last_segment_is_kept_although_it_is_a_hole() {
        assert_eq!(pieces(K, 3 * K + 5, &[]), [(3..4, vec![])]);
        assert_eq!(pieces(K, 3 * K + 5, &[0..1]), [(0..1, vec![0..1]), (3..4, vec![])]);
        let whole = [(0..4, vec![0..1, 3 * K..3 * K + 5])];
        assert_eq!(pieces(K, 3 * K + 5, &[0..1, 3 * K..3 * K + 5]), whole);
        assert_eq!(pieces(K, 3 * K, &[]), []);
        assert_eq!(pieces(K, 0, &[]), []);
    }
}
