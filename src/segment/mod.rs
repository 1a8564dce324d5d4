//! Segments: what they are called and where they lie on a disk.
//!
//! Owns the names of segments ([`SegmentHash`], [`Fingerprint`], [`SegmentKey`]), the geometry of a
//! disk in segments and the test for zeros. Knows nothing of how segments are read, encoded or kept.

mod geometry;
mod hash;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod zero;

pub use geometry::{DEFAULT_SEGMENT_SIZE, Geometry, GeometryError, SegmentIndex, SegmentSize};
pub use hash::{Fingerprint, InvalidHash, SegmentHash, SegmentKey, Twin};
pub use zero::{ZERO_BLOCK, data_runs, is_zero};
