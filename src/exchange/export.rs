//! From a backup to the original's formats.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::exchange::ExchangeError;
use crate::exchange::codecs::{FlatCodecs, StoreCodecs};
use crate::exchange::flat::{self, Filesystem, FlatFolder, FlatReader};
use crate::manifest::foreign::{CodecSource, NoStore, osdk, sqlite};
use crate::manifest::{ManifestError, ManifestReader};
use crate::pace::Pace;
use crate::progress::{Part, Progress};
use crate::repository::Repository;
use crate::restore::{DamagedSegment, RestoreError, SegmentSink, fetch_segments};
use crate::segment::{SegmentIndex, SegmentKey};
use crate::storage::NewFile;

/// One of the original's manifest formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForeignFormat {
    /// SQLite, the original's default.
    #[default]
    Sqlite,
    /// OSDK, version 0.
    Osdk,
}

/// How a backup is exported.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions<'a> {
    /// The format of the manifest.
    pub format: ForeignFormat,
    /// Where the segments are written as well, as flat files.
    pub segments: Option<&'a Path>,
    /// Whether files that exist are replaced.
    pub replace: bool,
    /// How many threads fetch and compress, at least one.
    pub jobs: usize,
}

/// What an export did.
#[derive(Debug, Default)]
pub struct ExportSummary {
    /// How many segment files were written.
    pub written_segments: u64,
    /// How many were there already, whole.
    pub present_segments: u64,
    /// Segments that could not be had; no file was written for them.
    pub damaged: Vec<DamagedSegment>,
}

/// Exports a backup: its manifest to `out` and, if that is asked for, its segments, which come first.
///
/// The manifest says of each segment how it is stored: as zlib where flat files are written, else as the packs
/// have it. When this returns, all of it is durable.
pub fn export_backup(
    repository: &Repository,
    manifest: &ManifestReader,
    out: &Path,
    options: &ExportOptions<'_>,
    progress: &dyn Progress,
) -> Result<ExportSummary, ExchangeError> {
    let Some(folder) = options.segments else {
        let mut codecs = StoreCodecs::new(manifest, repository.catalog()?, progress);
        write(manifest, out, options, &mut codecs, progress)?;
        codecs.tell_unknown();
        return Ok(ExportSummary::default());
    };
    // What is known to fail fails before the segments are written.
    match options.format {
        ForeignFormat::Sqlite => sqlite::check(manifest, out)?,
        ForeignFormat::Osdk => osdk::check(manifest, out)?,
    }
    drop(NewFile::begin(out, options.replace).map_err(ManifestError::from)?);
    let filesystem = Filesystem::open(folder)?;
    let sink = FlatSink {
        folder: FlatFolder { folder },
        manifest,
        replace: options.replace,
        readers: Mutex::default(),
        failure: Mutex::default(),
        written: AtomicU64::new(0),
        present: AtomicU64::new(0),
    };
    let part = Part::begin(progress, "segments", manifest.info().geometry.size_of_disk());
    let fetched = fetch_segments(repository, manifest, &sink, &Pace::new(options.jobs, None), progress);
    drop(part);
    if let Some(error) = sink.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let damaged = fetched?;
    filesystem.sync()?;
    write(manifest, out, options, &mut FlatCodecs, progress)?;
    Ok(ExportSummary {
        written_segments: sink.written.into_inner(),
        present_segments: sink.present.into_inner(),
        damaged,
    })
}

/// Exports a manifest file, which knows of no store: its segments' codecs are unknown.
pub fn export_file(
    manifest: &ManifestReader,
    out: &Path,
    format: ForeignFormat,
    replace: bool,
    progress: &dyn Progress,
) -> Result<(), ManifestError> {
    match format {
        ForeignFormat::Sqlite => {
            sqlite::export::<ManifestError>(manifest, out, replace, &mut NoStore, progress)
        }
        ForeignFormat::Osdk => osdk::export::<ManifestError>(manifest, out, replace, &mut NoStore, progress),
    }
}

fn write(
    manifest: &ManifestReader,
    out: &Path,
    options: &ExportOptions<'_>,
    codecs: &mut dyn CodecSource<ExchangeError>,
    progress: &dyn Progress,
) -> Result<(), ExchangeError> {
    match options.format {
        ForeignFormat::Sqlite => sqlite::export(manifest, out, options.replace, codecs, progress),
        ForeignFormat::Osdk => osdk::export(manifest, out, options.replace, codecs, progress),
    }
}

/// Writes flat files.
struct FlatSink<'a> {
    folder: FlatFolder<'a>,
    manifest: &'a ManifestReader,
    replace: bool,
    /// Readers that no thread uses now: one for each thread in the end.
    readers: Mutex<Vec<FlatReader>>,
    /// The first failure that is none of the restore's.
    failure: Mutex<Option<ExchangeError>>,
    written: AtomicU64,
    present: AtomicU64,
}

impl FlatSink<'_> {
    fn put(&self, index: SegmentIndex, key: SegmentKey, plain: &[u8]) -> Result<(), ExchangeError> {
        let segment = self.manifest.lookup(index);
        let Some(segment) = segment.filter(|segment| segment.key == key) else { return Ok(()) };
        let path = self.folder.path(self.manifest.info(), index, &segment);
        let length = u32::try_from(plain.len()).unwrap_or(u32::MAX);
        // Backups of one chain share files: what an earlier export wrote is right, and stays.
        let found = self.read(&path, key, length)?;
        match &found {
            Some(Ok(())) => {
                self.present.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Some(Err(what)) if !self.replace => {
                let what = what.clone();
                return Err(ExchangeError::SegmentMismatch { index, hash: key.hash, path, what });
            }
            Some(Err(_)) | None => {}
        }
        flat::write(&path, plain, found.is_some())?;
        self.written.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn read(
        &self,
        path: &Path,
        key: SegmentKey,
        length: u32,
    ) -> Result<Option<Result<(), String>>, ExchangeError> {
        let readers = || self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let free = readers().pop();
        let mut reader = match free {
            Some(reader) => reader,
            None => FlatReader::new()?,
        };
        let found = reader.read(path, key.hash, length, &mut Vec::new());
        readers().push(reader);
        found
    }
}

impl SegmentSink for FlatSink<'_> {
    fn segment(&self, index: SegmentIndex, key: SegmentKey, plain: &[u8]) -> Result<(), RestoreError> {
        self.put(index, key, plain).map_err(|error| {
            let told = RestoreError::Sink { what: error.to_string() };
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            told
        })
    }

    fn damaged(&self, _: &DamagedSegment) -> Result<(), RestoreError> {
        Ok(())
    }
}
