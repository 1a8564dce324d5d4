//! How a disk is restored.

use std::num::NonZeroU64;
use std::ops::Range;
use std::path::PathBuf;

use crate::pace::Pace;
use crate::restore::RestoreError;
use crate::restore::cleanup::Cleanup;
use crate::segment::Geometry;

/// The format of a file that a disk is restored to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetFormat {
    /// Raw, unless the target's name is that of another format: then the restore is refused.
    #[default]
    Unsaid,
    /// The bytes of the disk, with holes where they are zero.
    Raw,
    /// QEMU's qcow2, written by QEMU's own programs.
    Qcow2,
}

/// How a disk is restored.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
pub struct RestoreOptions {
    /// How many threads read, decode and verify, at least one.
    pub jobs: usize,
    /// Whether a target that exists is overwritten.
    pub force: bool,
    /// Whether a target is overwritten that is mounted, attached, or open for writing elsewhere.
    pub target_in_use: bool,
    /// Whether the free space of the target's filesystem is left out of account.
    pub ignore_space: bool,
    /// Whether an incomplete file is kept under its temporary name.
    pub keep_partial: bool,
    /// The format of a file that is restored to.
    pub format: TargetFormat,
    /// Whether the target is made durable before this returns.
    pub sync: bool,
    /// Which bytes of the disk are restored, to the beginning of the target; all if nothing is said.
    pub range: Option<Range<u64>>,
    /// The most bytes that are restored a second.
    pub limit: Option<NonZeroU64>,
    /// The folder with the certificates for an encrypted link to an NBD server.
    pub certificates: Option<PathBuf>,
    /// The targets that the process is writing.
    pub cleanup: Cleanup,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            jobs: 1,
            force: false,
            target_in_use: false,
            ignore_space: false,
            keep_partial: false,
            format: TargetFormat::Unsaid,
            sync: true,
            range: None,
            limit: None,
            certificates: None,
            cleanup: Cleanup::default(),
        }
    }
}

impl RestoreOptions {
    pub(super) fn pace(&self) -> Pace {
        Pace::new(self.jobs, self.limit)
    }

    /// Returns the bytes of a disk that are restored.
    pub(super) fn bytes_of(&self, geometry: Geometry) -> Result<Range<u64>, RestoreError> {
        let size = geometry.size_of_disk();
        let range = self.range.clone().unwrap_or(0..size);
        if range.start <= range.end && range.end <= size {
            Ok(range)
        } else {
            Err(RestoreError::OutsideDisk { start: range.start, end: range.end, size })
        }
    }
}
