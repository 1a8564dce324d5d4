//! Where a disk is restored to, when it can be written at any place.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;

use crate::image::{NbdTarget, is_nbd};
use crate::manifest::ManifestReader;
use crate::progress::Progress;
use crate::restore::medium::Medium;
use crate::restore::{DamagedSegment, RestoreError, RestoreOptions, SegmentSink};
use crate::segment::{Geometry, SegmentIndex, SegmentKey, data_runs};

/// How many zeros are written at once where the target cannot zero a range by itself.
const ZEROS: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Made by this restore: removed if it fails.
    NewFile,
    /// Existed, and was cut to nothing first, so that it holds no old data.
    OldFile,
    /// Keeps its old data where nothing is written: a device, an export, or a file that is changed in place.
    Keeping,
}

/// A file or a block device that is being restored to.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    medium: Medium,
    kind: Kind,
    geometry: Geometry,
    /// Whether it holds a disk of which only parts are written.
    in_place: bool,
    written: AtomicU64,
}

impl SegmentSink for Target {
    fn segment(&self, index: SegmentIndex, _: SegmentKey, plain: &[u8]) -> Result<(), RestoreError> {
        self.write(self.geometry.offset(index), plain)
    }

    fn damaged(&self, damaged: &DamagedSegment) -> Result<(), RestoreError> {
        // What a disk has there may be right, and be the last there is of it.
        if self.in_place { Ok(()) } else { self.zero(damaged.range.clone()) }
    }
}

impl Target {
    /// Opens a target for `size` bytes of a disk. Nothing is changed before it is known to fit.
    pub(super) fn open(
        path: &Path,
        size: u64,
        geometry: Geometry,
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        let failed =
            |operation| move |source| RestoreError::Target { operation, path: path.to_owned(), source };
        if is_nbd(path) {
            return Self::open_export(path, size, geometry, options);
        }
        let (file, kind) = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
                (file.map_err(failed("create"))?, Kind::NewFile)
            }
            Err(error) => return Err(failed("examine")(error)),
            Ok(metadata) if !metadata.is_file() && !metadata.file_type().is_block_device() => {
                return Err(RestoreError::NotATarget { path: path.to_owned() });
            }
            Ok(_) if !options.force => return Err(RestoreError::TargetExists { path: path.to_owned() }),
            Ok(metadata) if metadata.is_file() => {
                let file = OpenOptions::new().write(true).open(path).map_err(failed("open"))?;
                file.set_len(0).map_err(failed("empty"))?;
                (file, Kind::OldFile)
            }
            Ok(_) => (open_device(path, size)?, Kind::Keeping),
        };
        if kind != Kind::Keeping {
            file.set_len(size).map_err(failed("size"))?;
        }
        Ok(Self::of(path, Medium::File(file), kind, geometry))
    }

    /// Opens a target that exists, of which only parts are to be written. A file gets the disk's size. Damaged segments are
    /// left as they are there.
    pub(super) fn open_in_place(
        path: &Path,
        geometry: Geometry,
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        let failed =
            |operation| move |source| RestoreError::Target { operation, path: path.to_owned(), source };
        let size = geometry.size_of_disk();
        let in_place = |target| Self { in_place: true, ..target };
        if is_nbd(path) {
            return Self::open_export(path, size, geometry, options).map(in_place);
        }
        let metadata = std::fs::metadata(path).map_err(failed("examine"))?;
        if !metadata.is_file() {
            return Self::open(path, size, geometry, options).map(in_place);
        }
        if !options.force {
            return Err(RestoreError::TargetExists { path: path.to_owned() });
        }
        let file = OpenOptions::new().write(true).open(path).map_err(failed("open"))?;
        file.set_len(size).map_err(failed("size"))?;
        Ok(in_place(Self::of(path, Medium::File(file), Kind::Keeping, geometry)))
    }

    /// An export is there, and nobody can see whether it holds anything.
    fn open_export(
        path: &Path,
        size: u64,
        geometry: Geometry,
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        if !options.force {
            return Err(RestoreError::TargetExists { path: path.to_owned() });
        }
        let export = NbdTarget::open(path, options.certificates.as_deref())
            .map_err(|source| RestoreError::Export { source, opened: false })?;
        if export.size() < size {
            let path = path.to_owned();
            return Err(RestoreError::TargetTooSmall { path, size: export.size(), needed: size });
        }
        Ok(Self::of(path, Medium::Nbd(export), Kind::Keeping, geometry))
    }

    fn of(path: &Path, medium: Medium, kind: Kind, geometry: Geometry) -> Self {
        let written = AtomicU64::new(0);
        Self { path: path.to_owned(), medium, kind, geometry, in_place: false, written }
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> RestoreError {
        let path = self.path.clone();
        // An export says itself what failed, and where.
        move |source| match source.downcast() {
            Ok(source) => RestoreError::Export { source, opened: true },
            Err(source) => RestoreError::Target { operation, path, source },
        }
    }

    fn write_all(&self, bytes: &[u8], offset: u64) -> Result<(), RestoreError> {
        self.medium.write_all_at(bytes, offset).map_err(self.failed("write"))?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Writes a segment. Blocks of zeros are left out where the target is zero already.
    fn write(&self, offset: u64, plain: &[u8]) -> Result<(), RestoreError> {
        if self.kind == Kind::Keeping {
            return self.write_all(plain, offset);
        }
        data_runs(plain).try_for_each(|run| {
            let start = offset + run.start as u64;
            self.write_all(plain.get(run).unwrap_or(&[]), start)
        })
    }

    /// Makes a range zero.
    fn zero(&self, range: Range<u64>) -> Result<(), RestoreError> {
        if self.kind != Kind::Keeping || range.is_empty() {
            return Ok(());
        }
        if self.medium.zero(range.clone()).map_err(self.failed("zero"))? {
            return Ok(());
        }
        let zeros = vec![0; ZEROS];
        let mut offset = range.start;
        while offset < range.end {
            let length = usize::try_from(range.end - offset).unwrap_or(ZEROS).min(ZEROS);
            self.write_all(zeros.get(..length).unwrap_or(&[]), offset)?;
            offset += length as u64;
        }
        Ok(())
    }

    /// Makes everything zero that the manifest says is, in so many segments.
    pub(super) fn zero_gaps(
        &self,
        manifest: &ManifestReader,
        segments: Range<u32>,
        progress: &dyn Progress,
    ) -> Result<(), RestoreError> {
        let geometry = manifest.info().geometry;
        let Some(last) = segments.end.checked_sub(1).filter(|last| *last >= segments.start) else {
            return Ok(());
        };
        let behind = geometry.offset(SegmentIndex(last)) + u64::from(geometry.length(SegmentIndex(last)));
        let mut end = geometry.offset(SegmentIndex(segments.start));
        let mut cursor = manifest.cursor(SegmentIndex(segments.start));
        for index in segments.map(SegmentIndex) {
            if cursor.at(index).is_none() {
                continue;
            }
            let start = geometry.offset(index);
            self.zero(end..start)?;
            progress.advance(start - end);
            end = start + u64::from(geometry.length(index));
        }
        self.zero(end..behind)?;
        progress.advance(behind - end);
        Ok(())
    }

    /// Returns a stream that writes to it from its beginning on.
    pub(super) fn stream(&self) -> TargetStream<'_> {
        TargetStream { target: self, position: 0 }
    }

    /// Returns how many bytes were written so far.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Ends the restore: makes a good target durable if asked to, and removes a new file that is not good.
    pub(super) fn finish(&self, good: bool, sync: bool) -> Result<(), RestoreError> {
        if !good {
            if self.kind == Kind::NewFile
                && let Err(error) = std::fs::remove_file(&self.path)
            {
                tracing::warn!(%error, "the incomplete target stays");
            }
            return Ok(());
        }
        if sync {
            self.medium.sync().map_err(self.failed("sync"))?;
            if self.kind == Kind::NewFile {
                let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let folder = File::open(parent.unwrap_or(Path::new(".")));
                folder.and_then(|folder| folder.sync_all()).map_err(self.failed("sync the folder of"))?;
            }
        }
        Ok(())
    }
}

/// A target that is written in order.
#[derive(Debug)]
pub(super) struct TargetStream<'a> {
    target: &'a Target,
    position: u64,
}

impl io::Write for TargetStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.target.write(self.position, bytes) {
            Ok(()) => {
                self.position += bytes.len() as u64;
                Ok(bytes.len())
            }
            Err(RestoreError::Target { source, .. }) => Err(source),
            Err(RestoreError::Export { source, .. }) => Err(io::Error::other(source)),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open_device(path: &Path, size: u64) -> Result<File, RestoreError> {
    let failed = |operation| move |source| RestoreError::Target { operation, path: path.to_owned(), source };
    // On a block device O_EXCL means: unless the kernel uses it, for a mount or for another device.
    let exclusive = i32::try_from(OFlags::EXCL.bits()).unwrap_or(0);
    let file = match OpenOptions::new().write(true).custom_flags(exclusive).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            return Err(RestoreError::TargetInUse { path: path.to_owned() });
        }
        Err(error) => return Err(failed("open")(error)),
    };
    let has = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
        .map_err(|errno| failed("measure")(errno.into()))?;
    if has < size {
        return Err(RestoreError::TargetTooSmall { path: path.to_owned(), size: has, needed: size });
    }
    Ok(file)
}
