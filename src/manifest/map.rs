//! The memory map: the only file with unsafe code.
#![expect(unsafe_code, reason = "mapping a file, and giving a map's pages back, cannot be said safely")]

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};
use rustix::io::Errno;

use crate::manifest::archive::{ArchivedBody, RUN_LENGTH, Run};
use crate::manifest::header::{Header, HeaderError, LENGTH};
use crate::manifest::{ManifestError, ManifestInfo};
use crate::segment::SegmentHash;
use crate::storage::{Access, Storage, StorageError, check_holes_of};

/// Files of persons up to this many bytes are read into memory; larger ones are mapped.
const READ_INTO_MEMORY: u64 = 64 << 20;

/// How much of a file is read at once before it is mapped.
const READ_AT_ONCE: u64 = 1 << 18;

/// A manifest's bytes, mapped or read, whose archive has been checked.
///
/// The places of its columns are kept here and not read again from the bytes: whatever became of the bytes
/// since, no access leaves them.
#[derive(Debug)]
pub(super) struct MappedBody {
    bytes: Bytes,
    hashes: Range<usize>,
    runs: Range<usize>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Read(Vec<u8>),
}

/// What opening a manifest gives, beside the bytes.
pub(super) struct Opened {
    pub(super) mapped: MappedBody,
    pub(super) header: Header,
    pub(super) info: ManifestInfo,
}

impl Opened {
    /// Maps one of a repository's own manifests, checks its header, and lets bytecheck check the archive.
    ///
    /// The body's fingerprint is left to the caller.
    pub(super) fn own(storage: &dyn Storage, path: &Path) -> Result<Self, ManifestError> {
        let file = storage.handle(path, Access::Read)?;
        let size = size_of(&file, path)?;
        check_holes_of(&file, size, path)?;
        read_through(&file, size, path)?;
        Self::check(Bytes::Mapped(map(&file, path)?), path).map_err(|error| match error {
            // It was one when it was committed.
            ManifestError::NotAManifest { path } => {
                ManifestError::Damaged { path, what: "its signature is gone".to_owned() }
            }
            error => error,
        })
    }

    /// Opens and checks any file likewise, one that somebody may change meanwhile.
    pub(super) fn foreign(path: &Path) -> Result<Self, ManifestError> {
        let (file, size) = open(path)?;
        let bytes = if size > READ_INTO_MEMORY {
            Bytes::Mapped(map(&file, path)?)
        } else {
            let mut bytes = Vec::new();
            // One that grows meanwhile is not read beyond the limit.
            let read = file.take(READ_INTO_MEMORY + 1).read_to_end(&mut bytes);
            read.map_err(|source| StorageError::new("read", path, source))?;
            Bytes::Read(bytes)
        };
        Self::check(bytes, path)
    }

    fn check(bytes: Bytes, path: &Path) -> Result<Self, ManifestError> {
        let damaged = |what: String| ManifestError::Damaged { path: path.to_owned(), what };
        let header = Header::decode(bytes.all()).map_err(|error| match error {
            HeaderError::Signature => ManifestError::NotAManifest { path: path.to_owned() },
            HeaderError::Format(found) => ManifestError::NewerFormat { path: path.to_owned(), found },
            HeaderError::Damaged => damaged("its header does not fit its checksum".to_owned()),
        })?;
        let body = bytes.body();
        if body.len() as u64 != header.body_length {
            return Err(damaged("its length is not the one in its header".to_owned()));
        }
        let archive = rkyv::access::<ArchivedBody, rkyv::rancor::Failure>(body)
            .map_err(|_| damaged("its archive does not hold together".to_owned()))?;
        let info = ManifestInfo::of(archive).map_err(damaged)?;
        // bytecheck has made sure that both lie inside the body, unless somebody has changed it since.
        let range = |column: *const u8, items: usize, length: usize| {
            let start = column.addr().checked_sub(body.as_ptr().addr());
            let end = start.and_then(|start| start.checked_add(items.checked_mul(length)?));
            let range = start.zip(end).map(|(start, end)| start..end).filter(|range| range.end <= body.len());
            range.ok_or_else(|| damaged("its columns lie outside it".to_owned()))
        };
        let hashes = range(archive.hashes.as_ptr().cast(), archive.hashes.len(), SegmentHash::LENGTH)?;
        let runs = range(archive.runs.as_ptr().cast(), archive.runs.len(), RUN_LENGTH)?;
        Ok(Self { mapped: MappedBody { bytes, hashes, runs }, header, info })
    }
}

impl MappedBody {
    /// Returns the hashes of the present segments, in order.
    pub(super) fn hashes(&self) -> &[[u8; SegmentHash::LENGTH]] {
        self.body_bytes().get(self.hashes.clone()).unwrap_or(&[]).as_chunks().0
    }

    /// Returns the runs and the sentinel, as they stand in the archive.
    pub(super) fn runs(&self) -> Runs<'_> {
        Runs { bytes: self.body_bytes().get(self.runs.clone()).unwrap_or(&[]).as_chunks().0 }
    }

    /// Returns the body's bytes.
    pub(super) fn body_bytes(&self) -> &[u8] {
        self.bytes.body()
    }

    /// Gives the memory back that the map's pages take in this process; they come back when they are used.
    pub(super) fn release_pages(&self) {
        if let Bytes::Mapped(map) = &self.bytes {
            // SAFETY: dropping the pages of a shared, read-only map of a file changes no byte of it: the next
            // access brings the same page back from the file.
            if let Err(error) = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) } {
                tracing::debug!(%error, "the pages of a manifest stay in memory");
            }
        }
    }
}

/// The runs of a manifest, read in place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runs<'a> {
    bytes: &'a [[u8; RUN_LENGTH]],
}

impl<'a> Runs<'a> {
    pub(super) fn iter(self) -> impl Iterator<Item = Run> + use<'a> {
        self.bytes.iter().map(Run::from_bytes)
    }

    pub(super) fn len(self) -> usize {
        self.bytes.len()
    }

    pub(super) fn get(self, position: usize) -> Option<Run> {
        self.bytes.get(position).map(Run::from_bytes)
    }

    /// Returns the number of runs that begin at `place` or before.
    pub(super) fn until(self, place: u32) -> usize {
        self.bytes.partition_point(|bytes| Run::from_bytes(bytes).first <= place)
    }
}

impl Bytes {
    fn all(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map.as_ref(),
            Self::Read(bytes) => bytes.as_slice(),
        }
    }

    fn body(&self) -> &[u8] {
        self.all().get(LENGTH..).unwrap_or(&[])
    }
}

fn open(path: &Path) -> Result<(File, u64), ManifestError> {
    let io = |operation| move |source| StorageError::new(operation, path, source);
    // Looked at before it is opened: opening a pipe would wait for somebody to write into it.
    if !std::fs::metadata(path).map_err(io("open"))?.is_file() {
        return Err(ManifestError::NotAManifest { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io("open"))?;
    let size = size_of(&file, path)?;
    Ok((file, size))
}

fn size_of(file: &File, path: &Path) -> Result<u64, StorageError> {
    Ok(file.metadata().map_err(|source| StorageError::new("examine", path, source))?.len())
}

/// Reads a file of up to [`READ_INTO_MEMORY`], or the begin and the end of a larger one, without keeping it: a page of a map that
/// the disk does not give ends the process, where a read says so. What was read stands in the page cache then.
fn read_through(file: &File, size: u64, path: &Path) -> Result<(), ManifestError> {
    let first_end = if size <= READ_INTO_MEMORY { size } else { READ_AT_ONCE };
    let ranges = [0..first_end, size.saturating_sub(READ_AT_ONCE).max(first_end)..size];
    let mut buffer = vec![0; usize::try_from(READ_AT_ONCE.min(size)).unwrap_or(0)];
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let length = buffer.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
            match file.read_at(buffer.get_mut(..length).unwrap_or_default(), at) {
                // It was cut since it was examined: its length will not be the one in its header.
                Ok(0) => return Ok(()),
                Ok(read) => at += read as u64,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if is_rot(&error) => {
                    let what = format!("the disk does not give it: {error}");
                    return Err(ManifestError::Damaged { path: path.to_owned(), what });
                }
                Err(source) => return Err(StorageError::new("read", path, source).into()),
            }
        }
    }
    Ok(())
}

/// Says whether an error is how the system tells of a sector that is lost, or of a checksum of the filesystem's that does not
/// match, rather than of what it lacks now. (A path to a disk that is gone for a while looks the same. Then a backup does without
/// the manifest, as without one that is damaged, and nothing is freed.)
fn is_rot(error: &std::io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| [Errno::IO, Errno::BADMSG, Errno::UCLEAN, Errno::NODATA].contains(&errno))
}

fn map(file: &File, path: &Path) -> Result<Mmap, ManifestError> {
    // SAFETY: the map is sound as long as nobody changes or cuts the file while it stands. The repository
    // never rewrites a manifest: it is made under another name and renamed once whole, and deleting unlinks
    // it, which leaves a map intact. What could break it is a person, or another program, that writes into
    // `manifests/`, or into a large manifest file that was named on the command line, during a job. Once
    // it is open, nothing is read outside the map all the same, for the columns' bounds are not taken from the
    // bytes again and every text has been copied; answers may be those of the changed bytes, and a file that was
    // cut ends the process.
    unsafe { Mmap::map(file) }.map_err(|source| StorageError::new("map", path, source).into())
}
