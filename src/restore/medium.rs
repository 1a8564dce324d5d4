//! What a target is made of: a file or a block device, or an export of an NBD server.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

use crate::image::{ImageError, NbdTarget};

/// Something that can be written to at any place, by several threads at once.
#[derive(Debug)]
pub(super) enum Medium {
    File(File),
    Nbd(NbdTarget),
}

fn failed(error: ImageError) -> io::Error {
    io::Error::other(error)
}

impl Medium {
    pub(super) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all_at(bytes, offset),
            Self::Nbd(export) => export.write_at(bytes, offset).map_err(failed),
        }
    }

    /// Makes a range zero without writing zeros. Says whether that worked.
    pub(super) fn zero(&self, range: Range<u64>) -> io::Result<bool> {
        match self {
            // One that cannot, or not at this alignment, is written to.
            Self::File(file) => {
                let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                Ok(fallocate(file, flags, range.start, range.end - range.start).is_ok())
            }
            Self::Nbd(export) => export.zero(range).map_err(failed),
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        match self {
            Self::File(file) => file.sync_all(),
            Self::Nbd(export) => export.sync().map_err(failed),
        }
    }
}
