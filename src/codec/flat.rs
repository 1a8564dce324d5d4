//! The original's flat segment files: always a zlib stream, whether it is shorter or not.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;

/// Compresses `plain` into a zlib stream (RFC 1950) of its own, at zlib's default level as the original does.
pub fn deflate(plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::with_capacity(plain.len() / 2), Compression::default());
    encoder.write_all(plain)?;
    encoder.finish()
}
