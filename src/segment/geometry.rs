//! How a disk divides into segments.

use std::fmt;

/// The size of a segment unless the repository says otherwise: 4 MiB, as in the original.
pub const DEFAULT_SEGMENT_SIZE: SegmentSize = SegmentSize(4 << 20);

/// What cannot be a geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// A segment size that is no power of two or lies outside the bounds.
    #[error("a segment size of {bytes} bytes is not possible: it is a power of two from 64 KiB to 64 MiB")]
    SegmentSize {
        /// The size asked for.
        bytes: u64,
    },
    /// A disk with more segments than a manifest can number.
    #[error(
        "a disk of {size_of_disk} bytes has too many segments of {segment_size} bytes: \
         a manifest holds at most 4294967294; use larger segments"
    )]
    TooManySegments {
        /// The disk's size in bytes.
        size_of_disk: u64,
        /// The segment size in bytes.
        segment_size: u32,
    },
}

/// The size of a repository's segments in bytes: a power of two from 64 KiB to 64 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// The smallest size, 64 KiB.
    pub const MIN: Self = Self(64 << 10);
    /// The largest size, 64 MiB.
    pub const MAX: Self = Self(64 << 20);

    /// Checks `bytes` and makes a segment size of it.
    pub fn new(bytes: u64) -> Result<Self, GeometryError> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&size) => {
                Ok(Self(size))
            }
            _ => Err(GeometryError::SegmentSize { bytes }),
        }
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// Returns the size in bytes, as buffers need it.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

/// The place of a segment on its disk, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentIndex(pub u32);

impl fmt::Display for SegmentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A disk's division into segments: all of one size but the last, which may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size_of_disk: u64,
    segment_size: SegmentSize,
}

impl Geometry {
    /// Makes the geometry of a disk of `size_of_disk` bytes.
    ///
    /// # Errors
    /// The disk has more segments than a manifest can number (2^32 - 2).
    pub fn new(size_of_disk: u64, segment_size: SegmentSize) -> Result<Self, GeometryError> {
        if size_of_disk.div_ceil(u64::from(segment_size.0)) >= u64::from(u32::MAX) {
            return Err(GeometryError::TooManySegments { size_of_disk, segment_size: segment_size.0 });
        }
        Ok(Self { size_of_disk, segment_size })
    }

    /// Returns the disk's size in bytes.
    pub const fn size_of_disk(self) -> u64 {
        self.size_of_disk
    }

    /// Returns the size of a segment.
    pub const fn segment_size(self) -> SegmentSize {
        self.segment_size
    }

    /// Returns the number of segments, the short last one included.
    pub fn segments(self) -> u32 {
        // `new` made sure that it fits.
        u32::try_from(self.size_of_disk.div_ceil(u64::from(self.segment_size.0))).unwrap_or(u32::MAX)
    }

    /// Returns the offset of a segment on the disk, in bytes.
    pub fn offset(self, index: SegmentIndex) -> u64 {
        u64::from(index.0) * u64::from(self.segment_size.0)
    }

    /// Returns the length of a segment in bytes: 0 behind the end of the disk.
    pub fn length(self, index: SegmentIndex) -> u32 {
        let left = self.size_of_disk.saturating_sub(self.offset(index));
        u32::try_from(left).map_or(self.segment_size.0, |left| left.min(self.segment_size.0))
    }

    /// Returns the segment that holds the byte at `offset`.
    pub fn containing(self, offset: u64) -> SegmentIndex {
        SegmentIndex(u32::try_from(offset / u64::from(self.segment_size.0)).unwrap_or(u32::MAX))
    }

    /// Says whether a segment of zeros is kept at this place: a short last segment always is, a full
    /// one never, as in the original, whose hash lists must match.
    pub fn keeps_zeros(self, index: SegmentIndex) -> bool {
        self.length(index) < self.segment_size.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_at_the_edges_divide_as_expected() {
        let size = DEFAULT_SEGMENT_SIZE;
        let full = u64::from(size.bytes());
        for (disk, segments, last) in [
            (0, 0, 0),
            (1, 1, 1),
            (full - 1, 1, full - 1),
            (full, 1, full),
            (full + 1, 2, 1),
            (2 * full, 2, full),
        ] {
            let geometry = Geometry::new(disk, size).unwrap();
            assert_eq!(geometry.segments(), segments, "{disk}");
            if segments > 0 {
                let index = SegmentIndex(segments - 1);
                assert_eq!(u64::from(geometry.length(index)), last, "{disk}");
                assert_eq!(geometry.keeps_zeros(index), last < full, "{disk}");
            }
            assert_eq!(geometry.length(SegmentIndex(segments)), 0);
        }
    }

    #[test]
    fn impossible_segment_sizes_are_refused() {
        for bytes in [0, 1, 4096, (64 << 10) - 1, 96 << 10, 128 << 20, u64::MAX] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
        assert!(SegmentSize::new(64 << 10).is_ok() && SegmentSize::new(64 << 20).is_ok());
    }

    #[test]
    fn a_disk_with_too_many_segments_is_refused() {
        assert!(Geometry::new(u64::MAX, SegmentSize::MIN).is_err());
        assert!(Geometry::new(1 << 47, SegmentSize::MIN).is_ok());
    }
}
