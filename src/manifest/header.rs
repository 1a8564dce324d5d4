//! The 128 bytes before the archive.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 16 | signature |
//! | 16 | 4 | format |
//! | 20 | 4 | length of this header, 128 |
//! | 24 | 8 | length of the body |
//! | 32 | 32 | BLAKE3 of the body |
//! | 64 | 32 | zeros, reserved |
//! | 96 | 32 | BLAKE3 of the 96 bytes before |

use crate::segment::Fingerprint;
use crate::storage::{FieldReader, FieldWriter, TooShort};

/// The UUID 0f6ee0f7-4a0c-4b27-9d3c-5a3be2a1c6d4: an Ekko manifest.
pub(super) const SIGNATURE: [u8; 16] =
    [0x0f, 0x6e, 0xe0, 0xf7, 0x4a, 0x0c, 0x4b, 0x27, 0x9d, 0x3c, 0x5a, 0x3b, 0xe2, 0xa1, 0xc6, 0xd4];

/// The newest format this release reads, and the one it writes.
pub(super) const FORMAT: u32 = 1;

/// The length of the header in bytes.
pub(super) const LENGTH: usize = 128;

/// A manifest's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) body_length: u64,
    pub(super) body: Fingerprint,
}

/// Why some bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Signature,
    Format(u32),
    Damaged,
}

impl From<TooShort> for HeaderError {
    fn from(_: TooShort) -> Self {
        Self::Damaged
    }
}

impl Header {
    /// Returns the header's bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let fields = FieldWriter::with_capacity(LENGTH)
            .bytes(&SIGNATURE)
            .u32(FORMAT)
            .u32(u32::try_from(LENGTH).unwrap_or(u32::MAX))
            .u64(self.body_length)
            .bytes(self.body.as_bytes())
            .zeros_to(96);
        let checksum = Fingerprint::of(fields.as_slice());
        fields.bytes(checksum.as_bytes()).finish()
    }

    /// Reads a header back.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let mut reader = FieldReader::new(bytes);
        if reader.array::<16>().map_err(|_| HeaderError::Signature)? != SIGNATURE {
            return Err(HeaderError::Signature);
        }
        // The checksum first: a flipped bit in the format is damage and no newer format. A newer format
        // keeps these 128 bytes and their checksum.
        let covered = bytes.get(..96).ok_or(TooShort)?;
        let checksum = bytes.get(96..LENGTH).ok_or(TooShort)?;
        if Fingerprint::of(covered).as_bytes() != checksum {
            return Err(HeaderError::Damaged);
        }
        let format = reader.u32()?;
        if format != FORMAT {
            return Err(HeaderError::Format(format));
        }
        if reader.u32()? as usize != LENGTH {
            return Err(HeaderError::Damaged);
        }
        let header = Self { body_length: reader.u64()?, body: Fingerprint::from_bytes(reader.array()?) };
        if reader.reserved(32)? { Ok(header) } else { Err(HeaderError::Damaged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let header = Header { body_length: 77, body: Fingerprint::of(b"body") };
        let bytes = header.encode();
        assert_eq!(bytes.len(), LENGTH);
        assert_eq!(Header::decode(&bytes), Ok(header));
        for bit in 0..LENGTH * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&flipped).is_err(), "bit {bit}");
        }
        for cut in 0..LENGTH {
            assert!(Header::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
