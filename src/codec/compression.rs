//! The compressions and how a person names one.

use std::fmt;
use std::str::FromStr;

use crate::codec::CodecError;
use crate::segment::SegmentSize;

/// How stored bytes are compressed. The ids are on disk: never change or re-use one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all (id 0).
    #[default]
    None,
    /// A zlib stream, RFC 1950 (id 1).
    Zlib,
    /// An .xz stream of LZMA2, as Python's `lzma.compress` writes it (id 2).
    Lzma,
    /// One Zstandard frame, RFC 8878 (id 3).
    Zstd,
}

impl Compression {
    /// Returns the on-disk id.
    pub const fn id(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Zlib => 1,
            Self::Lzma => 2,
            Self::Zstd => 3,
        }
    }

    /// Returns the compression with an on-disk id.
    pub const fn from_id(id: u8) -> Result<Self, CodecError> {
        match id {
            0 => Ok(Self::None),
            1 => Ok(Self::Zlib),
            2 => Ok(Self::Lzma),
            3 => Ok(Self::Zstd),
            id => Err(CodecError::UnknownCompression { id }),
        }
    }

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Lzma => "lzma",
            Self::Zstd => "zstd",
        }
    }

    /// Returns the lowest, the default and the highest level.
    const fn levels(self) -> (i32, i32, i32) {
        match self {
            Self::None => (0, 0, 0),
            Self::Zlib => (1, 6, 9),
            Self::Lzma => (0, 6, 9),
            Self::Zstd => (-7, 1, 19),
        }
    }
}

/// A compression and its level, as `--compression zstd:3` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressionSetting {
    compression: Compression,
    level: i32,
}

impl CompressionSetting {
    /// Returns what a repository of such segments compresses with unless it is told otherwise: Zstandard, at level 1, or
    /// at 3 below 1 MiB. Who chooses small segments wants to save space, and a compressor that sees little at once and
    /// only looks for long repeats would give a part of it away.
    pub fn for_segments(size: SegmentSize) -> Self {
        Self { compression: Compression::Zstd, level: if size.bytes() < 1 << 20 { 3 } else { 1 } }
    }

    /// Returns the compression.
    pub const fn compression(self) -> Compression {
        self.compression
    }

    /// Returns the level.
    pub const fn level(self) -> i32 {
        self.level
    }
}

impl Default for CompressionSetting {
    /// Zstandard at level 1: the fastest that still shrinks what guests usually hold.
    fn default() -> Self {
        Self { compression: Compression::Zstd, level: 1 }
    }
}

impl fmt::Display for CompressionSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.compression {
            Compression::None => f.write_str("none"),
            other => write!(f, "{}:{}", other.name(), self.level),
        }
    }
}

/// A text that names no compression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no compression: none, zlib[:1-9], lzma[:0-9] and zstd[:-7-19] are possible")]
pub struct InvalidCompression {
    text: String,
}

impl FromStr for CompressionSetting {
    type Err = InvalidCompression;

    fn from_str(text: &str) -> Result<Self, InvalidCompression> {
        let invalid = || InvalidCompression { text: text.to_owned() };
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level.parse::<i32>().map_err(|_| invalid())?)),
            None => (text, None),
        };
        let compression = [Compression::None, Compression::Zlib, Compression::Lzma, Compression::Zstd]
            .into_iter()
            .find(|compression| compression.name() == name)
            .ok_or_else(invalid)?;
        let (lowest, default, highest) = compression.levels();
        let level = level.unwrap_or(default);
        if !(lowest..=highest).contains(&level) {
            return Err(invalid());
        }
        Ok(Self { compression, level })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_levels_are_read_back_as_they_are_written() {
        for text in ["none", "zlib:6", "lzma:0", "zstd:-5", "zstd:19"] {
            assert_eq!(text.parse::<CompressionSetting>().unwrap().to_string(), text);
        }
        assert_eq!("zstd".parse(), Ok(CompressionSetting::default()));
    }

    #[test]
    fn small_segments_are_compressed_harder() {
        let of = |size| CompressionSetting::for_segments(SegmentSize::new(size).unwrap()).to_string();
        assert_eq!(
            [of(64 << 10), of(1 << 19), of(1 << 20), of(4 << 20)],
            ["zstd:3", "zstd:3", "zstd:1", "zstd:1"]
        );
        assert_eq!(of(4 << 20), CompressionSetting::default().to_string());
    }

    #[test]
    fn what_is_no_compression_is_refused_with_what_is() {
        for text in ["", "gzip", "zstd:", "zstd:20", "zlib:0", "none:1", "zstd:x"] {
            let error = text.parse::<CompressionSetting>().unwrap_err().to_string();
            assert!(error.contains("zstd[:-7-19]"), "{error}");
        }
    }
}
