//! The archive itself: what rkyv writes and what is read in place.
//!
//! The layout follows from these types and rkyv's `little_endian`, `unaligned` and `pointer_width_64`
//! features, and is part of format 1: a change here is a new format. The columns come first in the
//! body, the root last, so that the columns can be written as they are made.

use rkyv::rancor::Fallible;
use rkyv::ser::Writer;
use rkyv::vec::{ArchivedVec, VecResolver};
use rkyv::with::{ArchiveWith, SerializeWith};
use rkyv::{Archive, Place, Serialize};

/// A stretch of neighbouring present segments that say the same about themselves. 16 bytes.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The place of the first one.
    pub(super) first: u32,
    /// How many hashes come before the first one's.
    pub(super) rank: u32,
    /// The incremental that stored them.
    pub(super) incremental: u32,
    /// The backupset that stored them.
    pub(super) base: u16,
    /// Their twin number.
    pub(super) twin: u16,
}

/// The length of an archived run in bytes.
pub(super) const RUN_LENGTH: usize = 16;
const _: () = assert!(size_of::<ArchivedRun>() == RUN_LENGTH && align_of::<ArchivedRun>() == 1);

impl Run {
    /// Returns the run as it stands in the archive: its fields in order, little-endian, unaligned.
    pub(super) fn to_bytes(self) -> [u8; RUN_LENGTH] {
        let mut bytes = [0; RUN_LENGTH];
        let fields = [
            &self.first.to_le_bytes()[..],
            &self.rank.to_le_bytes(),
            &self.incremental.to_le_bytes(),
            &self.base.to_le_bytes(),
            &self.twin.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// Reads a run as it stands in the archive.
    #[expect(clippy::many_single_char_names, reason = "the bytes have no other names")]
    pub(super) fn from_bytes(bytes: &[u8; RUN_LENGTH]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        Self {
            first: u32::from_le_bytes([a, b, c, d]),
            rank: u32::from_le_bytes([e, f, g, h]),
            incremental: u32::from_le_bytes([i, j, k, l]),
            base: u16::from_le_bytes([m, n]),
            twin: u16::from_le_bytes([o, p]),
        }
    }
}

/// A key with a value, for what has no field of its own.
#[derive(Archive, Serialize, Clone, Debug)]
pub(super) struct Attribute {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
}

/// The root of the archive. bytecheck wants what the fields point to in the order of the fields, so the
/// columns, which come first in the body, come first here.
#[derive(Archive, Serialize, Debug)]
pub(super) struct Body {
    /// The SHA-1 of each present segment in the order of their places.
    #[rkyv(with = Written<[u8; 20]>)]
    pub(super) hashes: Column,
    /// The runs in the order of their places, and a sentinel: `first` the number of segments of the
    /// disk, `rank` the number of hashes, the rest 0.
    #[rkyv(with = Written<Run>)]
    pub(super) runs: Column,
    pub(super) backupset: [u8; 16],
    pub(super) incremental: u32,
    pub(super) segment_size: u32,
    pub(super) size_of_disk: u64,
    /// Seconds since 1970-01-01T00:00:00Z.
    pub(super) timestamp_seconds: i64,
    pub(super) timestamp_nanoseconds: u32,
    pub(super) name: String,
    pub(super) bases: Vec<[u8; 16]>,
    pub(super) attributes: Vec<Attribute>,
}

/// A column that stands in the body already: where, in bytes from its begin, and how many items.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) position: usize,
    pub(super) length: usize,
}

/// Archives a [`Column`] as the vector of `T` that it is.
pub(super) struct Written<T>(std::marker::PhantomData<T>);

impl<T: Archive> ArchiveWith<Column> for Written<T> {
    type Archived = ArchivedVec<T::Archived>;
    type Resolver = VecResolver;

    fn resolve_with(column: &Column, resolver: VecResolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(column.length, resolver, out);
    }
}

impl<T: Archive, S: Fallible + Writer + ?Sized> SerializeWith<Column, S> for Written<T> {
    fn serialize_with(column: &Column, _: &mut S) -> Result<VecResolver, S::Error> {
        Ok(VecResolver::from_pos(column.position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_written_and_read_by_hand_is_the_run_that_rkyv_writes() {
        let run = Run { first: 0x0102_0304, rank: 5, incremental: 6, base: 0x0708, twin: 9 };
        let theirs = rkyv::to_bytes::<rkyv::rancor::Error>(&run).unwrap();
        assert_eq!(theirs.as_slice(), run.to_bytes());
        assert_eq!(Run::from_bytes(&run.to_bytes()), run);
    }
}
