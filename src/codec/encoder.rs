//! From plain bytes to stored bytes.

use flate2::{Compress, FlushCompress, Status};
use xz2::stream::{Action, Check, Stream};

use crate::codec::{Codec, CodecError, Compression, CompressionSetting, Encryption};

/// Encodes segments with one setting, re-using its working memory. One for each thread.
pub struct Encoder {
    setting: CompressionSetting,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    zlib: Option<Compress>,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Encoder({})", self.setting)
    }
}

impl Encoder {
    /// Makes an encoder.
    pub fn new(setting: CompressionSetting) -> Result<Self, CodecError> {
        let compression = setting.compression();
        let zstd = if compression == Compression::Zstd {
            let setup = |error: std::io::Error| CodecError::Setup {
                compression: compression.name(),
                message: error.to_string(),
            };
            Some(zstd::bulk::Compressor::new(setting.level()).map_err(setup)?)
        } else {
            None
        };
        let zlib = (compression == Compression::Zlib).then(|| {
            let level = flate2::Compression::new(setting.level().unsigned_abs());
            Compress::new(level, true)
        });
        Ok(Self { setting, zstd, zlib, scratch: Vec::new() })
    }

    /// Appends the stored form of `plain` to `stored` and says how it is encoded.
    ///
    /// What does not shrink, and what the compressor refuses, is appended as it is: encoding never fails.
    pub fn encode(&mut self, plain: &[u8], stored: &mut Vec<u8>) -> Codec {
        // One byte less than the plain bytes: what does not fit did not shrink.
        let bound = plain.len().saturating_sub(1);
        if self.scratch.len() < bound {
            self.scratch.resize(bound, 0);
        }
        let compressed = match (self.scratch.get_mut(..bound), self.setting.compression()) {
            (None, _) | (_, Compression::None) => None,
            (Some(out), Compression::Zstd) => {
                self.zstd.as_mut().and_then(|context| context.compress_to_buffer(plain, out).ok())
            }
            (Some(out), Compression::Zlib) => {
                self.zlib.as_mut().and_then(|context| zlib(context, plain, out))
            }
            (Some(out), Compression::Lzma) => lzma(self.setting.level(), plain, out),
        };
        let compression = if let Some(bytes) = compressed.and_then(|length| self.scratch.get(..length)) {
            stored.extend_from_slice(bytes);
            self.setting.compression()
        } else {
            stored.extend_from_slice(plain);
            Compression::None
        };
        Codec { compression, encryption: Encryption::None }
    }
}

fn zlib(context: &mut Compress, plain: &[u8], out: &mut [u8]) -> Option<usize> {
    context.reset();
    match context.compress(plain, out, FlushCompress::Finish) {
        Ok(Status::StreamEnd) => usize::try_from(context.total_out()).ok(),
        _ => None,
    }
}

fn lzma(level: i32, plain: &[u8], out: &mut [u8]) -> Option<usize> {
    // liblzma has no way to start a stream anew; the set-up is small beside the compression itself.
    let mut stream = Stream::new_easy_encoder(level.unsigned_abs(), Check::Crc32).ok()?;
    match stream.process(plain, out, Action::Finish) {
        Ok(xz2::stream::Status::StreamEnd) => usize::try_from(stream.total_out()).ok(),
        _ => None,
    }
}
