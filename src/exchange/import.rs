//! From the original's manifest and segment files to a backup.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::backup::{Put, SegmentWriter};
use crate::codec::CompressionSetting;
use crate::exchange::ExchangeError;
use crate::exchange::flat::{FlatFolder, FlatReader};
use crate::manifest::{ImageName, ManifestReader, ManifestWriter, SegmentRef};
use crate::pace::each_on_a_thread;
use crate::progress::{Part, Progress};
use crate::repository::{BackupDraft, CommittedBackup, RepositoryWriter, SharedWriter};
use crate::segment::{Fingerprint, Geometry, SegmentHash, SegmentIndex, Twin};

/// How many segments are taken in before their results are put in order.
const WINDOW: usize = 1 << 10;

/// How a backup is imported.
#[derive(Clone, Copy, Debug)]
pub struct ImportOptions<'a> {
    /// Where the segments' flat files are; without them all segments must be stored already.
    pub segments: Option<&'a Path>,
    /// How new segments are compressed.
    pub compression: CompressionSetting,
    /// How many threads read, hash and compress, at least one.
    pub jobs: usize,
}

/// What an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportStats {
    /// Segments that the backup has: the sum of the two below.
    pub segments: u64,
    /// Segments that were stored already.
    pub deduplicated_segments: u64,
    /// Segments that the import stored.
    pub new_segments: u64,
    /// Encoded bytes of the new segments.
    pub stored_bytes: u64,
}

/// A backup that was imported.
#[derive(Clone, Debug)]
pub struct ImportSummary {
    /// The backup.
    pub backup: CommittedBackup,
    /// What was done.
    pub stats: ImportStats,
}

/// Imports the backup that `manifest` describes as one of `name`, with its backupset, number and time.
///
/// Every segment file is decoded and compared with the SHA-1 that the manifest names. When this returns a
/// summary, the backup is durable; a failure leaves none of it, but for segments that a later import re-uses.
pub fn import_backup(
    writer: &SharedWriter,
    manifest: &ManifestReader,
    name: &ImageName,
    options: &ImportOptions<'_>,
    progress: &dyn Progress,
) -> Result<ImportSummary, ExchangeError> {
    writer.run_job(
        progress,
        |summary: &ImportSummary| summary.backup.replace_index,
        |writer| attempt(writer, manifest, name, options, progress),
    )
}

fn attempt(
    writer: &RepositoryWriter,
    manifest: &ManifestReader,
    name: &ImageName,
    options: &ImportOptions<'_>,
    progress: &dyn Progress,
) -> Result<ImportSummary, ExchangeError> {
    manifest.verify()?;
    writer.prepare_for_growth()?;
    let draft = writer.begin_import(name, manifest.info())?;
    let (out, stats) = take_in(writer, &draft, manifest, options, progress)?;
    let backup = writer.commit(draft, out)?;
    Ok(ImportSummary { backup, stats })
}

fn take_in(
    writer: &RepositoryWriter,
    draft: &BackupDraft,
    manifest: &ManifestReader,
    options: &ImportOptions<'_>,
    progress: &dyn Progress,
) -> Result<(ManifestWriter, ImportStats), ExchangeError> {
    let mut out = writer.create_manifest(draft)?;
    let mut workers = (0..options.jobs.max(1))
        .map(|_| Worker::new(writer, draft, manifest, options, progress))
        .collect::<Result<Vec<_>, _>>()?;
    let mut stats = ImportStats::default();
    let mut collisions = HashSet::new();
    let geometry = manifest.info().geometry;
    let mut part = Part::begin(progress, "import", geometry.size_of_disk());
    let mut segments = manifest.segments();
    loop {
        let window: Vec<_> = segments.by_ref().take(WINDOW).collect();
        let Some((last, _)) = window.last() else { break };
        part.reached(geometry.offset(*last));
        let taken = take_window(&mut workers, &window)?;
        for ((index, segment), put) in window.iter().zip(find_stored(writer, geometry, &window, taken)?) {
            if put.key.twin != Twin(0) {
                collisions.insert(put.key.hash);
            }
            stats.segments += 1;
            match put.stored_bytes {
                None => stats.deduplicated_segments += 1,
                Some(bytes) => {
                    stats.new_segments += 1;
                    stats.stored_bytes += bytes;
                }
            }
            out.push(*index, &SegmentRef { key: put.key, ..*segment })?;
        }
    }
    part.reached(geometry.size_of_disk());
    refuse_collisions(manifest, options.segments, &collisions)?;
    Ok((out, stats))
}

/// What became of a segment.
enum Taken {
    /// It is stored.
    Put(Put),
    /// It has no file: it must be stored already. Where its file would be.
    NoFile(Option<PathBuf>),
}

/// Finds the segments of a window that have no file in the store, by their SHA-1 alone: there must be one with it,
/// and only one. Returns all segments of the window.
fn find_stored(
    writer: &RepositoryWriter,
    geometry: Geometry,
    window: &[(SegmentIndex, SegmentRef)],
    taken: Vec<Taken>,
) -> Result<Vec<Put>, ExchangeError> {
    let store = writer.store();
    if taken.iter().any(|taken| matches!(taken, Taken::NoFile(_))) {
        // What this window has stored enters the index now.
        store.flush()?;
    }
    let find = |((index, segment), taken): (&(SegmentIndex, SegmentRef), Taken)| {
        let file = match taken {
            Taken::Put(put) => return Ok(put),
            Taken::NoFile(file) => file,
        };
        let (index, hash, length) = (*index, segment.key.hash, geometry.length(*index));
        let found = store.find(hash)?;
        // A twin number is another repository's: which of ours is meant cannot be known. Nor can it where one of
        // several is lost, or has another length.
        let twins = if segment.key.twin == Twin(0) { found.len() } else { found.len().max(2) };
        match found.as_slice() {
            [(key, entry)] if twins == 1 && !store.lacks(*key, entry) && entry.plain_length == length => {
                Ok(Put::found(*key))
            }
            _ if twins > 1 => Err(ExchangeError::Ambiguous { index, hash, twins }),
            _ => Err(ExchangeError::SegmentMissing { index, hash, file }),
        }
    };
    window.iter().zip(taken).map(find).collect()
}

/// Refuses a backup of which a segment without a file was found by a SHA-1 that turned out to have collisions.
fn refuse_collisions(
    manifest: &ManifestReader,
    segments: Option<&Path>,
    collisions: &HashSet<SegmentHash>,
) -> Result<(), ExchangeError> {
    let Some(folder) = segments.filter(|_| !collisions.is_empty()) else { return Ok(()) };
    for (index, segment) in manifest.segments().filter(|(_, it)| collisions.contains(&it.key.hash)) {
        if !(FlatFolder { folder }).path(manifest.info(), index, &segment).exists() {
            return Err(ExchangeError::Ambiguous { index, hash: segment.key.hash, twins: 2 });
        }
    }
    Ok(())
}

/// Takes a window of segments in, on all workers. Returns what became of them, in order, or the failure of the
/// first one in order that was found.
fn take_window(
    workers: &mut [Worker<'_>],
    window: &[(SegmentIndex, SegmentRef)],
) -> Result<Vec<Taken>, ExchangeError> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new((Vec::with_capacity(window.len()), None));
    each_on_a_thread(workers, "ekko-import", |worker| {
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            let Some((index, segment)) = window.get(position) else { return };
            let result = worker.take(*index, segment);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            let (puts, failure) = &mut *done;
            match result {
                Ok(put) => puts.push((position, put)),
                Err(error) => {
                    // The others end with the segments that they have.
                    next.store(window.len(), Ordering::Relaxed);
                    if failure.as_ref().is_none_or(|(first, _)| position < *first) {
                        *failure = Some((position, error));
                    }
                }
            }
        }
    });
    let (mut puts, failure) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, error)) = failure {
        return Err(error);
    }
    puts.sort_unstable_by_key(|(position, _)| *position);
    Ok(puts.into_iter().map(|(_, put)| put).collect())
}

/// Takes segments in. One for each thread.
struct Worker<'a> {
    manifest: &'a ManifestReader,
    folder: Option<FlatFolder<'a>>,
    reader: FlatReader,
    segments: SegmentWriter<'a>,
    plain: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(
        writer: &'a RepositoryWriter,
        draft: &'a BackupDraft,
        manifest: &'a ManifestReader,
        options: &ImportOptions<'a>,
        progress: &'a dyn Progress,
    ) -> Result<Self, ExchangeError> {
        Ok(Self {
            manifest,
            folder: options.segments.map(|folder| FlatFolder { folder }),
            reader: FlatReader::new()?,
            segments: SegmentWriter::new(writer.store(), draft.job(), options.compression, progress)?,
            plain: Vec::new(),
        })
    }

    fn take(&mut self, index: SegmentIndex, segment: &SegmentRef) -> Result<Taken, ExchangeError> {
        let info = self.manifest.info();
        let (hash, length) = (segment.key.hash, info.geometry.length(index));
        let path = self.folder.map(|folder| folder.path(info, index, segment));
        if let Some(path) = &path {
            match self.reader.read(path, hash, length, &mut self.plain)? {
                Some(Ok(())) => {
                    let fingerprint = Fingerprint::of(&self.plain);
                    return Ok(Taken::Put(self.segments.put(&self.plain, hash, fingerprint)?));
                }
                Some(Err(what)) => {
                    return Err(ExchangeError::SegmentMismatch { index, hash, path: path.clone(), what });
                }
                // An earlier import of the chain may have brought it.
                None => {}
            }
        }
        Ok(Taken::NoFile(path))
    }
}
