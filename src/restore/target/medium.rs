//! What a target is made of: a file or a block device, an export of an NBD server, or a qcow2 file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

use crate::image::{ImageError, NbdTarget, Qcow2Target};
use crate::restore::target::partial::PartialFile;
use crate::restore::{RestoreError, RestoreOptions, TargetFormat};

/// Something that can be written to at any place, by several threads at once.
#[derive(Debug)]
pub(super) enum Medium {
    File(File),
    Nbd(NbdTarget),
    Qcow2(Qcow2Target),
}

fn failed(error: ImageError) -> io::Error {
    io::Error::other(error)
}

impl Medium {
    /// Makes a disk of `size` zeros of a new file.
    pub(super) fn of_partial(
        partial: &PartialFile,
        size: u64,
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        match options.format {
            TargetFormat::Unsaid | TargetFormat::Raw => {
                partial.set_size(size)?;
                Ok(Self::File(partial.file()?))
            }
            TargetFormat::Qcow2 => {
                let made = Qcow2Target::create(partial.path(), partial.file()?, size);
                Ok(Self::Qcow2(made.map_err(|source| RestoreError::Export { source })?))
            }
        }
    }

    pub(super) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all_at(bytes, offset),
            Self::Nbd(export) => export.write_at(bytes, offset).map_err(failed),
            Self::Qcow2(image) => image.write_at(bytes, offset).map_err(failed),
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
            // A new one is all zeros.
            Self::Qcow2(_) => Ok(true),
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        match self {
            Self::File(file) => file.sync_all(),
            Self::Nbd(export) => export.sync().map_err(failed),
            Self::Qcow2(image) => image.sync().map_err(failed),
        }
    }

    /// Ends the writing.
    pub(super) fn close(&mut self) -> io::Result<()> {
        match self {
            Self::File(_) | Self::Nbd(_) => Ok(()),
            Self::Qcow2(image) => image.close().map_err(failed),
        }
    }
}
