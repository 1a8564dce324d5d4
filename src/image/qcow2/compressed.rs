//! Decompressing a cluster.

use std::io::{self, Read};

use flate2::{Decompress, FlushDecompress};

use crate::image::qcow2::header::ClusterCompression;

/// Fills `cluster` with what `stored` begins with. How long that is stored is known by sectors only; what is behind it is
/// not looked at.
pub(super) fn decompress(
    compression: ClusterCompression,
    stored: &[u8],
    cluster: &mut [u8],
) -> io::Result<()> {
    match compression {
        ClusterCompression::Deflate => {
            let mut inflate = Decompress::new(false);
            inflate.decompress(stored, cluster, FlushDecompress::Finish).map_err(io::Error::other)?;
            if inflate.total_out() == cluster.len() as u64 {
                Ok(())
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        }
        ClusterCompression::Zstd => {
            zstd::stream::read::Decoder::with_buffer(stored)?.single_frame().read_exact(cluster)
        }
    }
}
