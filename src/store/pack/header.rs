//! The header of a pack, which stands in it twice.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `EKKOPACK` |
//! | 8 | 4 | format |
//! | 12 | 4 | zeros, reserved |
//! | 16 | 8 | pack number |
//! | 24 | 8 | time of making, seconds since 1970 |
//! | 32 | 32 | key, random |
//! | 64 | 16 | repository id |
//! | 80 | 144 | zeros, reserved |
//! | 224 | 32 | BLAKE3 of the 224 bytes before |
//! | 256 | 3840 | zeros |

use std::fmt;

use crate::segment::Fingerprint;
use crate::storage::{FieldReader, FieldWriter, TooShort};
use crate::store::pack::{BLOCK, PackError};

const MAGIC: [u8; 8] = *b"EKKOPACK";

/// The newest format this release reads, and the one it writes.
pub(super) const FORMAT: u32 = 1;

/// The length of what has a meaning in a header.
const LENGTH: usize = 256;

/// Where the first record begins: behind both copies.
pub(super) const FIRST_RECORD: u64 = 2 * BLOCK;

/// The number of a pack: its file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackNumber(pub u64);

impl PackNumber {
    /// Returns the name of the pack's file.
    pub fn file_name(self) -> String {
        format!("{:016}.pack", self.0)
    }

    /// Reads a pack's number from the name of its file.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".pack")?;
        let number = Self(digits.parse().ok()?);
        (number.file_name() == name).then_some(number)
    }
}

impl fmt::Display for PackNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A name for a pack that is never used again, whatever becomes of numbers: from a BLAKE3 of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackId(pub [u8; 16]);

/// The header of a pack.
#[derive(Clone, PartialEq, Eq)]
pub struct PackHeader {
    /// The pack's number.
    pub number: PackNumber,
    /// When it was made, in seconds since 1970-01-01T00:00:00Z.
    pub created: u64,
    /// The repository it belongs to.
    pub repository: [u8; 16],
    key: [u8; 32],
}

impl fmt::Debug for PackHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key stays out of logs.
        write!(f, "PackHeader({})", self.number)
    }
}

/// Why some bytes are no header.
pub(super) enum HeaderError {
    Damaged,
    Format(u32),
}

impl From<TooShort> for HeaderError {
    fn from(_: TooShort) -> Self {
        Self::Damaged
    }
}

impl PackHeader {
    /// Makes the header of a new pack, with a new random key.
    pub fn new(number: PackNumber, created: u64, repository: [u8; 16]) -> Result<Self, PackError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| PackError::NoRandomness { message: error.to_string() })?;
        Ok(Self { number, created, repository, key })
    }

    /// Returns the pack's id.
    pub fn id(&self) -> PackId {
        let mut id = [0; 16];
        blake3::Hasher::new_derive_key("ekko 2026 pack id").update(&self.key).finalize_xof().fill(&mut id);
        PackId(id)
    }

    /// Computes the checksum of a record's header, or of a trailer, at `offset`.
    pub(super) fn checksum(&self, offset: u64, covered: &[u8]) -> [u8; 32] {
        *blake3::Hasher::new_keyed(&self.key)
            .update(&offset.to_le_bytes())
            .update(covered)
            .finalize()
            .as_bytes()
    }

    /// Returns the bytes of both copies.
    pub(super) fn encode(&self) -> Vec<u8> {
        let fields = FieldWriter::with_capacity(LENGTH)
            .bytes(&MAGIC)
            .u32(FORMAT)
            .u32(0)
            .u64(self.number.0)
            .u64(self.created)
            .bytes(&self.key)
            .bytes(&self.repository)
            .zeros_to(224);
        let checksum = Fingerprint::of(fields.as_slice());
        let mut copy = fields.bytes(checksum.as_bytes()).finish();
        copy.resize(usize::try_from(BLOCK).unwrap_or(LENGTH), 0);
        copy.repeat(2)
    }

    /// Reads one copy.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let covered = bytes.get(..224).ok_or(TooShort)?;
        if bytes.get(224..LENGTH) != Some(Fingerprint::of(covered).as_bytes().as_slice()) {
            return Err(HeaderError::Damaged);
        }
        let mut reader = FieldReader::new(covered);
        if reader.array()? != MAGIC {
            return Err(HeaderError::Damaged);
        }
        match reader.u32()? {
            FORMAT => {}
            other => return Err(HeaderError::Format(other)),
        }
        reader.reserved(4)?;
        let number = PackNumber(reader.u64()?);
        let created = reader.u64()?;
        let key = reader.array()?;
        let repository = reader.array()?;
        Ok(Self { number, created, repository, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_every_flipped_bit_in_one_copy() {
        let header = PackHeader::new(PackNumber(7), 1, [2; 16]).unwrap();
        let bytes = header.encode();
        assert_eq!(bytes.len() as u64, FIRST_RECORD);
        for bit in 0..LENGTH * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(PackHeader::decode(&flipped).is_err(), "bit {bit}");
            assert!(PackHeader::decode(&flipped[4096..]).is_ok_and(|copy| copy == header));
        }
    }

    #[test]
    fn only_names_that_we_give_are_packs() {
        assert_eq!(PackNumber::from_file_name(&PackNumber(12).file_name()), Some(PackNumber(12)));
        for name in ["12.pack", "0000000000000012", "+000000000000012.pack", "x.pack", ".pack"] {
            assert_eq!(PackNumber::from_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_checksum_depends_on_pack_and_offset() {
        let [a, b] = [1, 2].map(|n| PackHeader::new(PackNumber(n), 1, [2; 16]).unwrap());
        assert_ne!(a.checksum(0, b"x"), b.checksum(0, b"x"));
        assert_ne!(a.checksum(0, b"x"), a.checksum(4096, b"x"));
        assert_ne!(a.id(), b.id());
    }
}
