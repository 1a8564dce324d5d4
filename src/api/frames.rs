//! The frames that carry segments and what is said of them between a client and the service: all numbers little-endian.
//!
//! | frame | bytes |
//! |---|---|
//! | question: is this segment lacking? | 20 SHA-1, 32 BLAKE3, 4 length of the plain bytes |
//! | answer to questions | a bit for each, the lowest first: 1 if it is to be sent |
//! | segment | 4 place, 4 length of the plain bytes, 4 length of the stored bytes, 1 compression id, 1 encryption id, 2 twin number, 20 SHA-1, 32 BLAKE3; then the stored bytes |
//! | entry of a manifest that is being made | 4 place, 4 number of segments; if that is 0: 20 SHA-1, 32 BLAKE3 of the one segment there; else so many segments from there on are the parent's |
//! | segment of the parent | 4 place, 4 length of the plain bytes, 32 BLAKE3 |
//!
//! What a manifest does not name is zero. The place of a segment that is sent to be stored is 0, and so is its twin number.

use std::ops::Range;

use crate::codec::{Codec, CodecError, Compression, Encryption};
use crate::segment::{Fingerprint, SegmentHash, SegmentIndex, SegmentKey, Twin};
use crate::storage::{FieldReader, FieldWriter, TooShort};

/// The most segments of a backup whose fingerprints are told at once.
pub const MOST_FINGERPRINTS: u32 = 1 << 13;

/// What identifies a segment to somebody who has not said where it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Its SHA-1.
    pub hash: SegmentHash,
    /// The BLAKE3 of its plain bytes.
    pub fingerprint: Fingerprint,
    /// The length of its plain bytes.
    pub plain_length: u32,
}

impl Question {
    /// The length of a question in bytes.
    pub const LENGTH: usize = 56;

    /// Appends the frame.
    pub fn encode(&self, frames: &mut Vec<u8>) {
        frames.extend_from_slice(self.hash.as_bytes());
        frames.extend_from_slice(self.fingerprint.as_bytes());
        frames.extend_from_slice(&self.plain_length.to_le_bytes());
    }

    /// Reads questions.
    ///
    /// # Errors
    ///
    /// If the last one is cut.
    pub fn decode_all(frames: &[u8]) -> Result<Vec<Self>, TooShort> {
        let mut reader = FieldReader::new(frames);
        let mut questions = Vec::with_capacity(frames.len() / Self::LENGTH);
        while !reader.is_empty() {
            questions.push(Self {
                hash: SegmentHash::from_bytes(reader.array()?),
                fingerprint: Fingerprint::from_bytes(reader.array()?),
                plain_length: reader.u32()?,
            });
        }
        Ok(questions)
    }
}

/// Returns the answer to questions.
pub fn encode_answer(lacking: &[bool]) -> Vec<u8> {
    let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    lacking.chunks(8).map(byte).collect()
}

/// Reads the answer to so many questions.
///
/// # Errors
///
/// If it is one to another number of questions.
pub fn decode_answer(answer: &[u8], questions: usize) -> Result<Vec<bool>, TooShort> {
    if answer.len() != questions.div_ceil(8) {
        return Err(TooShort);
    }
    let bits = answer.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
    Ok(bits.take(questions).collect())
}

/// What stands before a segment's stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// Its place on the disk, where it is sent to be restored.
    pub index: SegmentIndex,
    /// The length of its plain bytes.
    pub plain_length: u32,
    /// The length of its stored bytes.
    pub stored_length: u32,
    /// The compression id.
    pub compression: u8,
    /// The encryption id.
    pub encryption: u8,
    /// Its key.
    pub key: SegmentKey,
    /// The BLAKE3 of its plain bytes.
    pub fingerprint: Fingerprint,
}

impl SegmentHead {
    /// The length of a head in bytes.
    pub const LENGTH: usize = 68;

    /// Appends the frame, without the stored bytes.
    pub fn encode(&self, frames: &mut Vec<u8>) {
        let head = FieldWriter::with_capacity(Self::LENGTH)
            .u32(self.index.0)
            .u32(self.plain_length)
            .u32(self.stored_length)
            .u8(self.compression)
            .u8(self.encryption)
            .u16(self.key.twin.0)
            .bytes(self.key.hash.as_bytes())
            .bytes(self.fingerprint.as_bytes());
        frames.extend_from_slice(head.as_slice());
    }

    /// Reads a head.
    ///
    /// # Errors
    ///
    /// If it is cut.
    pub fn decode(frame: &[u8]) -> Result<Self, TooShort> {
        let mut reader = FieldReader::new(frame);
        let (index, plain_length, stored_length) =
            (SegmentIndex(reader.u32()?), reader.u32()?, reader.u32()?);
        let (compression, encryption, twin) = (reader.u8()?, reader.u8()?, Twin(reader.u16()?));
        Ok(Self {
            index,
            plain_length,
            stored_length,
            compression,
            encryption,
            key: SegmentKey { hash: SegmentHash::from_bytes(reader.array()?), twin },
            fingerprint: Fingerprint::from_bytes(reader.array()?),
        })
    }

    /// Returns how the segment is stored.
    ///
    /// # Errors
    ///
    /// If this release knows no such codec.
    pub fn codec(&self) -> Result<Codec, CodecError> {
        Ok(Codec {
            compression: Compression::from_id(self.compression)?,
            encryption: Encryption::from_id(self.encryption)?,
        })
    }
}

/// An entry of a manifest that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// So many segments from a place on are the parent's: zeros where it has zeros.
    Kept {
        /// The first.
        first: SegmentIndex,
        /// How many, at least one.
        count: u32,
    },
    /// A segment that the service has.
    Segment {
        /// Its place.
        index: SegmentIndex,
        /// Its SHA-1.
        hash: SegmentHash,
        /// The BLAKE3 of its plain bytes.
        fingerprint: Fingerprint,
    },
}

impl Entry {
    /// The longest entry in bytes.
    pub const LONGEST: usize = 60;

    /// Appends the frame.
    pub fn encode(&self, frames: &mut Vec<u8>) {
        match self {
            Self::Kept { first, count } => {
                frames.extend_from_slice(&first.0.to_le_bytes());
                frames.extend_from_slice(&count.to_le_bytes());
            }
            Self::Segment { index, hash, fingerprint } => {
                frames.extend_from_slice(&index.0.to_le_bytes());
                frames.extend_from_slice(&[0; 4]);
                frames.extend_from_slice(hash.as_bytes());
                frames.extend_from_slice(fingerprint.as_bytes());
            }
        }
    }

    /// Reads entries.
    ///
    /// # Errors
    ///
    /// If the last one is cut.
    pub fn decode_all(frames: &[u8]) -> Result<Vec<Self>, TooShort> {
        let mut reader = FieldReader::new(frames);
        let mut entries = Vec::new();
        while !reader.is_empty() {
            let (index, count) = (SegmentIndex(reader.u32()?), reader.u32()?);
            entries.push(if count > 0 {
                Self::Kept { first: index, count }
            } else {
                let hash = SegmentHash::from_bytes(reader.array()?);
                Self::Segment { index, hash, fingerprint: Fingerprint::from_bytes(reader.array()?) }
            });
        }
        Ok(entries)
    }
}

/// A segment of the parent, by what it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentSegment {
    /// Its place.
    pub index: SegmentIndex,
    /// The length of its plain bytes.
    pub plain_length: u32,
    /// The BLAKE3 of its plain bytes.
    pub fingerprint: Fingerprint,
}

impl ParentSegment {
    /// The length of the frame in bytes.
    pub const LENGTH: usize = 40;

    /// Appends the frame.
    pub fn encode(&self, frames: &mut Vec<u8>) {
        frames.extend_from_slice(&self.index.0.to_le_bytes());
        frames.extend_from_slice(&self.plain_length.to_le_bytes());
        frames.extend_from_slice(self.fingerprint.as_bytes());
    }

    /// Reads segments of the parent.
    ///
    /// # Errors
    ///
    /// If the last one is cut.
    pub fn decode_all(frames: &[u8]) -> Result<Vec<Self>, TooShort> {
        let mut reader = FieldReader::new(frames);
        let mut segments = Vec::with_capacity(frames.len() / Self::LENGTH);
        while !reader.is_empty() {
            segments.push(Self {
                index: SegmentIndex(reader.u32()?),
                plain_length: reader.u32()?,
                fingerprint: Fingerprint::from_bytes(reader.array()?),
            });
        }
        Ok(segments)
    }

    /// Reads segments that are to lie in a range of places, in order.
    ///
    /// # Errors
    ///
    /// If the last one is cut, or if one lies elsewhere.
    pub fn decode_range(frames: &[u8], places: Range<u32>) -> Result<Vec<Self>, InvalidFrames> {
        let segments = Self::decode_all(frames).map_err(|_| InvalidFrames::Cut)?;
        let mut next = places.start;
        for segment in &segments {
            if !(next..places.end).contains(&segment.index.0) {
                return Err(InvalidFrames::Place { index: segment.index });
            }
            next = segment.index.0 + 1;
        }
        Ok(segments)
    }
}

/// Frames that are not what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFrames {
    /// The last one is cut.
    #[error("its frames are cut")]
    Cut,
    /// One lies outside what was asked for, or before the one before it.
    #[error("it sends segment {index}, which was not asked for there")]
    Place {
        /// Where it says it lies.
        index: SegmentIndex,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    fn hash(number: u32) -> SegmentHash {
        SegmentHash::of(&number.to_le_bytes())
    }

    fn fingerprint(number: u32) -> Fingerprint {
        Fingerprint::of(&number.to_le_bytes())
    }

    #[test]
    fn frames_come_back_and_cut_ones_are_refused() {
        let question = Question { hash: hash(1), fingerprint: fingerprint(2), plain_length: 3 };
        let head = SegmentHead {
            index: SegmentIndex(1),
            plain_length: 2,
            stored_length: 3,
            compression: 4,
            encryption: 5,
            key: SegmentKey { hash: hash(6), twin: Twin(7) },
            fingerprint: fingerprint(8),
        };
        let parent = ParentSegment { index: SegmentIndex(4), plain_length: 5, fingerprint: fingerprint(6) };
        let (mut questions, mut heads, mut parents) = (Vec::new(), Vec::new(), Vec::new());
        question.encode(&mut questions);
        head.encode(&mut heads);
        parent.encode(&mut parents);
        assert_eq!(
            [questions.len(), heads.len(), parents.len()],
            [Question::LENGTH, SegmentHead::LENGTH, ParentSegment::LENGTH]
        );
        assert_eq!(Question::decode_all(&questions).unwrap(), [question]);
        assert_eq!(SegmentHead::decode(&heads).unwrap(), head);
        assert_eq!(ParentSegment::decode_all(&parents).unwrap(), [parent]);
        for cut in 1..questions.len() {
            assert!(Question::decode_all(&questions[..cut]).is_err());
        }
        for cut in 0..heads.len() {
            assert!(SegmentHead::decode(&heads[..cut]).is_err());
        }
        for cut in 1..parents.len() {
            assert!(ParentSegment::decode_all(&parents[..cut]).is_err());
        }
    }

    #[test]
    fn entries_come_back_and_cut_ones_are_refused() {
        let entries = [
            Entry::Kept { first: SegmentIndex(0), count: 7 },
            Entry::Segment { index: SegmentIndex(9), hash: hash(1), fingerprint: fingerprint(1) },
        ];
        let mut frames = Vec::new();
        for entry in &entries {
            entry.encode(&mut frames);
        }
        assert_eq!(frames.len(), 8 + Entry::LONGEST);
        assert_eq!(Entry::decode_all(&frames).unwrap(), entries);
        for cut in (1..8).chain(9..frames.len()) {
            assert!(Entry::decode_all(&frames[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn segments_of_the_parent_lie_where_they_were_asked_for_in_order() {
        let frames = |places: &[u32]| {
            let segment = |place: &u32| ParentSegment {
                index: SegmentIndex(*place),
                plain_length: 5,
                fingerprint: fingerprint(6),
            };
            encoded(&places.iter().map(segment).collect::<Vec<_>>(), ParentSegment::encode)
        };
        assert_eq!(ParentSegment::decode_range(&frames(&[4, 6, 7]), 4..8).unwrap().len(), 3);
        for places in [[3, 4], [4, 4], [6, 5], [7, 8], [4, u32::MAX]] {
            assert!(ParentSegment::decode_range(&frames(&places), 4..8).is_err(), "{places:?}");
        }
        assert_eq!(ParentSegment::decode_range(&frames(&[4])[1..], 4..8), Err(InvalidFrames::Cut));
    }

    fn encoded<T>(frames: &[T], encode: impl Fn(&T, &mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        for frame in frames {
            encode(frame, &mut bytes);
        }
        bytes
    }

    quickcheck! {
        fn any_bytes_of_the_right_length_are_frames_and_come_back_as_they_were(bytes: Vec<u8>, count: u8) -> bool {
            let whole = |length: usize| -> Vec<u8> {
                bytes.iter().copied().chain(0..=255).cycle().take(length * usize::from(count % 8)).collect()
            };
            let (questions, parents) = (whole(Question::LENGTH), whole(ParentSegment::LENGTH));
            encoded(&Question::decode_all(&questions).unwrap(), Question::encode) == questions
                && encoded(&ParentSegment::decode_all(&parents).unwrap(), ParentSegment::encode) == parents
                && whole(SegmentHead::LENGTH).chunks(SegmentHead::LENGTH).all(|head| {
                    encoded(&[SegmentHead::decode(head).unwrap()], SegmentHead::encode) == head
                })
        }

        fn whatever_is_read_as_entries_comes_back_as_it_was(words: Vec<u8>) -> bool {
            // Few different words, so that many a count is zero; as many of them as make whole entries.
            let bytes: Vec<u8> = words.iter().flat_map(|word| u32::from(word % 3).to_le_bytes()).collect();
            let whole = (0..=bytes.len()).rev().find_map(|end| {
                let bytes = &bytes[..end];
                Some((bytes, Entry::decode_all(bytes).ok()?))
            });
            let (bytes, entries) = whole.unwrap();
            encoded(&entries, Entry::encode) == bytes
        }

        fn answers_come_back(lacking: Vec<bool>) -> bool {
            let answer = encode_answer(&lacking);
            decode_answer(&answer, lacking.len()).unwrap() == lacking
                && decode_answer(&answer, lacking.len() + 8).is_err()
        }
    }
}
