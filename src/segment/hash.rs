//! The names of a segment.

use std::fmt;
use std::str::FromStr;

use sha1::{Digest, Sha1};

#[cfg(target_arch = "x86_64")]
use crate::segment::lanes::digests;

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

    /// How many segments [`Self::of_each`] takes side by side at most.
    pub const LANES: usize = 3;

    /// Computes the hash of each of `plains`, in their order. Neighbours of one length are taken side by side where the
    /// processor can do that: three take half as long again as one.
    pub fn of_each(mut plains: &[&[u8]]) -> Vec<Self> {
        let mut hashes = Vec::with_capacity(plains.len());
        while let Some((first, behind)) = plains.split_first() {
            let some = side_by_side::<{ Self::LANES }>(plains, &mut hashes);
            plains = some.or_else(|| side_by_side::<2>(plains, &mut hashes)).unwrap_or_else(|| {
                hashes.push(Self::of(first));
                behind
            });
        }
        hashes
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

/// Adds the hashes of the first `N` of `plains`, if they can be computed side by side, and returns the others.
fn side_by_side<'a, 'b, const N: usize>(
    plains: &'a [&'b [u8]],
    hashes: &mut Vec<SegmentHash>,
) -> Option<&'a [&'b [u8]]> {
    let (some, behind) = plains.split_first_chunk::<N>()?;
    hashes.extend(digests(some)?.map(SegmentHash));
    Some(behind)
}

#[cfg(not(target_arch = "x86_64"))]
fn digests<const N: usize>(_: &[&[u8]; N]) -> Option<[[u8; 20]; N]> {
    None
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

    /// So many bytes of noise, others for each `seed`.
    fn noise(seed: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn assert_each_is_what_it_is_alone(plains: &[Vec<u8>]) {
        let plains: Vec<&[u8]> = plains.iter().map(Vec::as_slice).collect();
        let alone: Vec<_> = plains.iter().map(|plain| SegmentHash::of(plain)).collect();
        assert_eq!(SegmentHash::of_each(&plains), alone, "{:?}", plains.iter().map(|plain| plain.len()));
    }

    #[test]
    fn hashes_that_are_computed_side_by_side_are_those_that_are_computed_alone() {
        // Whole blocks, and every length of what is left of one.
        for length in (0..=300).chain([4095, 4096, 4097, 1 << 20]) {
            let plains: Vec<_> = (0..3).map(|seed| noise(seed, length)).collect();
            for some in 0..=3 {
                assert_each_is_what_it_is_alone(&plains[..some]);
            }
        }
    }

    #[test]
    fn what_is_hashed_side_by_side_may_be_of_any_number_and_of_different_lengths() {
        let lengths = [&[64; 8][..], &[64, 64, 64, 5], &[64, 5, 64, 64, 0, 0, 5], &[1, 2, 3, 4], &[]];
        for lengths in lengths {
            let plains: Vec<_> = (0..).zip(lengths).map(|(seed, length)| noise(seed, *length)).collect();
            assert_each_is_what_it_is_alone(&plains);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_processor_that_can_hashes_side_by_side() {
        let able = is_x86_feature_detected!("sha");
        assert_eq!(digests(&[b"one", b"two"]).is_some(), able);
        assert_eq!(digests(&[&b"one"[..], b"four"]), None);
    }

    #[test]
    fn a_text_of_the_wrong_length_is_no_hash() {
        assert!("2bcc".parse::<SegmentHash>().is_err());
        assert!("2bccbd2f38f15c13eb7d5a89fd9d85f595e23bc3".parse::<Fingerprint>().is_err());
    }
}
