//! The codec chain: how a segment's plain bytes become the stored bytes, and back.
//!
//! Compression comes first, then encryption, as in the original. Owns the on-disk ids of both and
//! the bound on what decoding may produce; knows nothing of where bytes come from or go to.

mod compression;
mod decoder;
mod encoder;
mod flat;

pub use compression::{Compression, CompressionSetting, InvalidCompression};
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use flat::deflate;

use crate::error::ErrorKind;

/// How stored bytes are encrypted. The ids are on disk: never change or re-use one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// Not at all (id 0).
    #[default]
    None,
}

impl Encryption {
    /// Returns the on-disk id.
    pub const fn id(self) -> u8 {
        match self {
            Self::None => 0,
        }
    }

    /// Returns the encryption with an on-disk id.
    pub const fn from_id(id: u8) -> Result<Self, CodecError> {
        match id {
            0 => Ok(Self::None),
            id => Err(CodecError::UnknownEncryption { id }),
        }
    }

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
        }
    }
}

/// How one segment is stored: a fact of the store, recorded beside the stored bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Codec {
    /// How it is compressed.
    pub compression: Compression,
    /// How the compressed bytes are encrypted.
    pub encryption: Encryption,
}

/// Stored bytes that cannot be decoded, or a codec that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A compression id of no release up to this one.
    #[error(
        "compression id {id} is unknown to this release of ekko (it knows 0 none, 1 zlib, 2 lzma, 3 zstd)"
    )]
    UnknownCompression {
        /// The id found.
        id: u8,
    },
    /// An encryption id of no release up to this one.
    #[error("encryption id {id} is unknown to this release of ekko (it knows 0 none)")]
    UnknownEncryption {
        /// The id found.
        id: u8,
    },
    /// The stored bytes are not what the codec wrote.
    #[error("the stored bytes are damaged: {compression} says {message}")]
    Damaged {
        /// The compression that refused.
        compression: &'static str,
        /// What its library said.
        message: String,
    },
    /// The stored bytes decode to another length than was recorded.
    #[error("the stored bytes do not decode to {expected} bytes, as recorded")]
    Length {
        /// The length recorded.
        expected: u32,
    },
    /// A codec could not be set up.
    #[error("cannot set up {compression}: {message}")]
    Setup {
        /// The compression.
        compression: &'static str,
        /// What its library said.
        message: String,
    },
}

impl CodecError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownCompression { .. } | Self::UnknownEncryption { .. } => ErrorKind::Unsupported,
            Self::Damaged { .. } | Self::Length { .. } => ErrorKind::Corrupt,
            Self::Setup { .. } => ErrorKind::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    fn settings() -> impl Iterator<Item = CompressionSetting> {
        ["none", "zlib", "zlib:9", "lzma:0", "zstd", "zstd:3", "zstd:-5"]
            .into_iter()
            .map(|s| s.parse().unwrap())
    }

    fn round_trip(setting: CompressionSetting, plain: &[u8]) -> Codec {
        let mut encoder = Encoder::new(setting).unwrap();
        let mut decoder = Decoder::new().unwrap();
        let (mut stored, mut back) = (vec![7; 3], Vec::new());
        let codec = encoder.encode(plain, &mut stored);
        assert_eq!(stored[..3], [7; 3], "encoding appends");
        let length = u32::try_from(plain.len()).unwrap();
        decoder.decode(codec, &stored[3..], length, &mut back).unwrap();
        assert_eq!(back, plain);
        assert!(stored.len() - 3 <= plain.len(), "stored bytes are never longer than plain ones");
        codec
    }

    quickcheck! {
        fn every_codec_gives_back_what_it_was_given(plain: Vec<u8>) -> bool {
            settings().for_each(|setting| { round_trip(setting, &plain); });
            true
        }
    }

    #[test]
    fn what_shrinks_is_compressed_and_what_does_not_is_stored_as_none() {
        let mut noise = vec![0; 100_000];
        getrandom::fill(&mut noise).unwrap();
        for setting in settings() {
            assert_eq!(round_trip(setting, &vec![3; 100_000]).compression, setting.compression());
            assert_eq!(round_trip(setting, &noise).compression, Compression::None);
            assert_eq!(round_trip(setting, &[]).compression, Compression::None);
        }
    }

    #[test]
    fn noise_that_repeats_is_compressed_all_the_same() {
        let mut noise = vec![0; 100_000];
        getrandom::fill(&mut noise).unwrap();
        for setting in ["zlib", "lzma:0", "zstd", "zstd:3"].map(|setting| setting.parse().unwrap()) {
            // zlib looks 32 KiB back.
            let twice = [&noise[..20_000], &noise[..20_000]].concat();
            assert_eq!(round_trip(setting, &twice).compression, setting.compression(), "{setting}");
            let mut half = noise.clone();
            half[50_000..].fill(1);
            assert_eq!(round_trip(setting, &half).compression, setting.compression(), "{setting}");
        }
    }

    #[test]
    fn decoding_never_gives_more_or_less_than_was_recorded() {
        for setting in settings() {
            let plain = vec![3; 100_000];
            let mut stored = Vec::new();
            let codec = Encoder::new(setting).unwrap().encode(&plain, &mut stored);
            let mut decoder = Decoder::new().unwrap();
            for wrong in [0, 1, 99_999, 100_001, 1 << 20] {
                let mut out = Vec::new();
                assert!(decoder.decode(codec, &stored, wrong, &mut out).is_err(), "{setting} {wrong}");
                assert!(out.capacity() <= 2 << 20);
            }
        }
    }

    #[test]
    fn stored_bytes_that_are_cut_or_not_ours_are_an_error() {
        for setting in settings().filter(|setting| setting.compression() != Compression::None) {
            let mut stored = Vec::new();
            let codec = Encoder::new(setting).unwrap().encode(&vec![3; 100_000], &mut stored);
            let mut decoder = Decoder::new().unwrap();
            for cut in 0..stored.len() {
                assert!(decoder.decode(codec, &stored[..cut], 100_000, &mut Vec::new()).is_err());
            }
            assert!(decoder.decode(codec, &[0x55; 64], 100_000, &mut Vec::new()).is_err());
        }
    }

    #[test]
    fn unknown_ids_are_refused_by_name() {
        assert!(Compression::from_id(9).unwrap_err().to_string().contains("compression id 9"));
        assert!(Encryption::from_id(1).unwrap_err().to_string().contains("encryption id 1"));
        for compression in [Compression::None, Compression::Zlib, Compression::Lzma, Compression::Zstd] {
            assert_eq!(Compression::from_id(compression.id()).unwrap(), compression);
        }
    }
}
