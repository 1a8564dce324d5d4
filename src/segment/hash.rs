//! The names of a segment.

use std::fmt;
use std::str::FromStr;

use sha1::{Digest, Sha1};

/// The SHA-1 of a segment's plain bytes: its name, as in the original Ekko, so that `sha1sum` can
/// check it. Two different segments may share it (see [`Twin`]); [`Fingerprint`] decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentHash([u8; 20]);

impl SegmentHash {
    /// The length of a hash in bytes.
    pub const LENGTH: usize = 20;

    /// Computes the hash of `plain`.
    pub fn of(plain: &[u8]) -> Self {
        Self(Sha1::digest(plain).into())
    }

    /// Wraps 20 bytes that are already a SHA-1.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// Returns the 20 bytes.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl fmt::Display for SegmentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SegmentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentHash({self})")
    }
}

/// A text that is not a hash in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a hash: {expected} hexadecimal digits are needed")]
pub struct InvalidHash {
    expected: usize,
}

impl FromStr for SegmentHash {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        let mut bytes = [0; 20];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidHash { expected: 40 })?;
        Ok(Self(bytes))
    }
}

/// The BLAKE3 of some plain bytes: what decides whether two segments are the same, and whether
/// bytes that were read are the bytes that were written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Computes the fingerprint of `plain`.
    pub fn of(plain: &[u8]) -> Self {
        Self(*blake3::hash(plain).as_bytes())
    }

    /// Wraps 32 bytes that are already a BLAKE3.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidHash { expected: 64 })?;
        Ok(Self(bytes))
    }
}

/// Which of several different segments with one SHA-1 is meant: 0 for the first that was stored.
///
/// SHA-1 collisions can be made at will and guests choose what their disks hold, so colliding
/// segments are both kept: the second gets twin number 1, and so on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Twin(pub u16);

/// The key of one stored segment: its SHA-1 and its twin number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentKey {
    /// The SHA-1 of the plain bytes.
    pub hash: SegmentHash,
    /// Which of the segments with that SHA-1.
    pub twin: Twin,
}

impl fmt::Display for SegmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.twin {
            Twin(0) => write!(f, "{}", self.hash),
            Twin(number) => write!(f, "{} (twin {number})", self.hash),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_of_a_zero_segment_is_the_one_the_original_left_out() {
        let hash = SegmentHash::of(&vec![0; 4 << 20]);
        assert_eq!(hash.to_string(), "2bccbd2f38f15c13eb7d5a89fd9d85f595e23bc3");
        assert_eq!(hash.to_string().parse(), Ok(hash));
    }

    #[test]
    fn a_text_of_the_wrong_length_is_no_hash() {
        assert!("2bcc".parse::<SegmentHash>().is_err());
        assert!("2bccbd2f38f15c13eb7d5a89fd9d85f595e23bc3".parse::<Fingerprint>().is_err());
    }
}
