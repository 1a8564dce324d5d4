//! From stored bytes back to plain bytes, within a bound.

use flate2::{Decompress, FlushDecompress, Status};
use xz2::stream::{Action, Stream};

use crate::codec::{Codec, CodecError, Compression, Encryption};
use crate::segment::SegmentSize;

/// The most working memory that an .xz stream may ask for, in bytes: what level 9 needs, and a little.
const LZMA_MEMORY: u64 = 80 << 20;

/// Decodes segments, re-using its working memory. One for each thread.
pub struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
    zlib: Decompress,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decoder")
    }
}

impl Decoder {
    /// Makes a decoder.
    pub fn new() -> Result<Self, CodecError> {
        let zstd = zstd::bulk::Decompressor::new().map_err(|error| CodecError::Setup {
            compression: Compression::Zstd.name(),
            message: error.to_string(),
        })?;
        Ok(Self { zstd, zlib: Decompress::new(true) })
    }

    /// Replaces `plain` by the `plain_length` bytes that `stored` stands for.
    ///
    /// `plain` never grows beyond `plain_length`, whatever the stored bytes say, nor beyond the largest segment. The caller
    /// has compared `plain_length` with the segment size of its repository.
    ///
    /// # Errors
    /// The stored bytes are not what the codec wrote, or stand for another number of bytes.
    pub fn decode(
        &mut self,
        codec: Codec,
        stored: &[u8],
        plain_length: u32,
        plain: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let Encryption::None = codec.encryption;
        let wrong_length = CodecError::Length { expected: plain_length };
        // No segment is longer, whoever says so.
        if plain_length > SegmentSize::MAX.bytes() {
            return Err(wrong_length);
        }
        plain.resize(plain_length as usize, 0);
        let damaged =
            |message: String| CodecError::Damaged { compression: codec.compression.name(), message };
        let decoded = match codec.compression {
            Compression::None => {
                if stored.len() != plain.len() {
                    return Err(wrong_length);
                }
                plain.copy_from_slice(stored);
                stored.len()
            }
            Compression::Zstd => self
                .zstd
                .decompress_to_buffer(stored, plain.as_mut_slice())
                .map_err(|error| damaged(error.to_string()))?,
            Compression::Zlib => {
                self.zlib.reset(true);
                let status = self
                    .zlib
                    .decompress(stored, plain, FlushDecompress::Finish)
                    .map_err(|error| damaged(error.to_string()))?;
                if status != Status::StreamEnd || self.zlib.total_in() != stored.len() as u64 {
                    return Err(wrong_length);
                }
                usize::try_from(self.zlib.total_out()).unwrap_or(usize::MAX)
            }
            Compression::Lzma => {
                let mut stream =
                    Stream::new_stream_decoder(LZMA_MEMORY, 0).map_err(|error| damaged(error.to_string()))?;
                let status = stream
                    .process(stored, plain, Action::Finish)
                    .map_err(|error| damaged(error.to_string()))?;
                if status != xz2::stream::Status::StreamEnd || stream.total_in() != stored.len() as u64 {
                    return Err(wrong_length);
                }
                usize::try_from(stream.total_out()).unwrap_or(usize::MAX)
            }
        };
        if decoded == plain.len() { Ok(()) } else { Err(wrong_length) }
    }
}
