//! Writing a manifest as its segments come.
//!
//! The hashes go to the file as they come; the runs, which are few, wait in memory or, if they are
//! many, in an unnamed temporary file; the root is written by rkyv's own writer, positioned behind both.
//! So the memory needed does not depend on the disk's size.

use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::Path;

use rkyv::ser::Serializer;
use rkyv::ser::writer::IoWriter;
use rkyv::util::with_arena;

use crate::manifest::archive::{Attribute, Body, Column, RUN_LENGTH, Run};
use crate::manifest::header::{Header, LENGTH};
use crate::manifest::{ATTRIBUTES_LIMIT, BackupsetId, MOST_BASES, ManifestError, ManifestInfo, SegmentRef};
use crate::segment::{Fingerprint, SegmentHash, SegmentIndex};
use crate::storage::{Storage, StorageError, StorageFile};

/// The most bytes of runs that wait in memory.
const SPOOL: usize = 1 << 20;
/// The size of the writes of runs, in bytes.
const SPOOL_BUFFER: usize = 64 << 10;
/// The size of the writes to the file, in bytes.
const BUFFER: usize = 1 << 20;
/// Why a manifest cannot be written whose bases or attributes are too many.
const TOO_MUCH: &str = "it says more about itself than a manifest can";

/// A manifest under construction. Dropping it leaves an unfinished file behind under the name it was
/// given, which recovery removes.
#[derive(Debug)]
pub struct ManifestWriter {
    info: ManifestInfo,
    file: Box<dyn StorageFile>,
    buffer: Vec<u8>,
    written: u64,
    hasher: Box<blake3::Hasher>,
    spool: BufWriter<tempfile::SpooledTempFile>,
    runs: u32,
    hashes: u32,
    current: Option<(Run, SegmentIndex)>,
}

/// A manifest that is durable under its temporary name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinishedManifest {
    /// The BLAKE3 of its body.
    pub fingerprint: Fingerprint,
    /// How many segments are present.
    pub present: u32,
}

impl ManifestWriter {
    /// Begins a manifest in a new file at `path`.
    pub fn create(storage: &dyn Storage, path: &Path, info: ManifestInfo) -> Result<Self, ManifestError> {
        if info.bases.len() > MOST_BASES || attributes_length(&info.attributes) > ATTRIBUTES_LIMIT {
            let what = TOO_MUCH.to_owned();
            return Err(ManifestError::Invalid { path: path.to_owned(), what });
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        Ok(Self {
            file: storage.create(path)?,
            info,
            buffer: Vec::with_capacity(BUFFER),
            written: 0,
            hasher: Box::default(),
            spool: BufWriter::with_capacity(SPOOL_BUFFER, tempfile::spooled_tempfile_in(SPOOL, folder)),
            runs: 0,
            hashes: 0,
            current: None,
        })
    }

    /// Appends the next present segment; places left out are zero.
    ///
    /// # Errors
    /// The place does not lie behind the one before and inside the disk, or a base is not listed.
    pub fn push(&mut self, index: SegmentIndex, segment: &SegmentRef) -> Result<(), ManifestError> {
        if index.0 >= self.info.geometry.segments() {
            return Err(self.invalid(format!("segment {index} lies outside the disk")));
        }
        if usize::from(segment.base.0) > self.info.bases.len() {
            return Err(self.invalid(format!("segment {index} names a base that is not listed")));
        }
        if segment.base.0 == 0 && segment.incremental > self.info.incremental {
            return Err(self.invalid(format!("segment {index} names a later backup")));
        }
        let next = Run {
            first: index.0,
            rank: self.hashes,
            incremental: segment.incremental.0,
            base: segment.base.0,
            twin: segment.key.twin.0,
        };
        match &mut self.current {
            Some((_, last)) if index <= *last => {
                return Err(self.invalid(format!("segment {index} comes out of order")));
            }
            Some((run, last)) if run.joins(&next) && last.0 + 1 == index.0 => *last = index,
            _ => {
                self.end_run()?;
                self.current = Some((next, index));
            }
        }
        self.append(segment.key.hash.as_bytes())?;
        self.hashes += 1;
        Ok(())
    }

    /// Adds an attribute that is known only after the segments, in place of one with the same key.
    ///
    /// # Errors
    /// The manifest would have more attributes than it can.
    pub fn set_attribute(&mut self, key: &str, value: &[u8]) -> Result<(), ManifestError> {
        let attributes = &mut self.info.attributes;
        attributes.retain(|(other, _)| other != key);
        attributes.push((key.to_owned(), value.to_owned()));
        if attributes_length(attributes) > ATTRIBUTES_LIMIT {
            return Err(self.invalid(TOO_MUCH.to_owned()));
        }
        Ok(())
    }

    /// Returns how long the file will be at most, in bytes, if nothing is appended any more.
    pub fn size_at_most(&self) -> u64 {
        let ManifestInfo { name, bases, attributes, .. } = &self.info;
        let texts: usize = attributes.iter().map(|(key, value)| 64 + key.len() + value.len()).sum();
        // The root with its alignment, the last run and the sentinel.
        let rest =
            256 + name.as_str().len() + bases.len() * size_of::<BackupsetId>() + texts + 2 * RUN_LENGTH;
        let runs = u64::from(self.runs) * RUN_LENGTH as u64;
        LENGTH as u64 + self.written + self.buffer.len() as u64 + runs + rest as u64
    }

    /// Writes the rest and makes the file durable; its name is durable once its folder is.
    pub fn finish(mut self) -> Result<FinishedManifest, ManifestError> {
        self.end_run()?;
        let sentinel =
            Run { first: self.info.geometry.segments(), rank: self.hashes, incremental: 0, base: 0, twin: 0 };
        self.spool_run(sentinel)?;
        let hashes = Column { position: 0, length: self.hashes as usize };
        let runs = Column { position: hashes.length * SegmentHash::LENGTH, length: self.runs as usize };
        self.append_runs()?;
        let tail = self.encode_root(hashes, runs)?;
        self.append(&tail)?;
        self.flush()?;
        let body = Fingerprint::from_bytes(*self.hasher.finalize().as_bytes());
        self.file.write_at(&Header { body_length: self.written, body }.encode(), 0)?;
        self.file.sync()?;
        Ok(FinishedManifest { fingerprint: body, present: self.hashes })
    }

    fn encode_root(&self, hashes: Column, runs: Column) -> Result<Vec<u8>, ManifestError> {
        let info = &self.info;
        let body = Body {
            backupset: *info.backupset.as_bytes(),
            incremental: info.incremental.0,
            segment_size: info.geometry.segment_size().bytes(),
            size_of_disk: info.geometry.size_of_disk(),
            timestamp_seconds: info.timestamp.as_second(),
            timestamp_nanoseconds: u32::try_from(info.timestamp.subsec_nanosecond())
                .map_err(|_| self.invalid("the time lies before 1970".to_owned()))?,
            name: info.name.as_str().to_owned(),
            bases: info.bases.iter().map(|base| *base.as_bytes()).collect(),
            attributes: info
                .attributes
                .iter()
                .map(|(key, value)| Attribute { key: key.clone(), value: value.clone() })
                .collect(),
            runs,
            hashes,
        };
        let position = runs.position + runs.length * RUN_LENGTH;
        with_arena(|arena| {
            let writer = IoWriter::with_pos(Vec::new(), position);
            let mut serializer = Serializer::new(writer, arena.acquire(), rkyv::ser::sharing::Share::new());
            rkyv::api::serialize_using::<_, rkyv::rancor::Error>(&body, &mut serializer)?;
            Ok(serializer.into_writer().into_inner())
        })
        .map_err(|error: rkyv::rancor::Error| self.invalid(error.to_string()))
    }

    fn end_run(&mut self) -> Result<(), ManifestError> {
        match self.current.take() {
            Some((run, _)) => self.spool_run(run),
            None => Ok(()),
        }
    }

    fn spool_run(&mut self, run: Run) -> Result<(), ManifestError> {
        self.runs += 1;
        self.spool.write_all(&run.to_bytes()).map_err(|source| self.spool_failed(source))
    }

    fn append_runs(&mut self) -> Result<(), ManifestError> {
        // Seeking writes what is buffered.
        self.spool.rewind().map_err(|source| self.spool_failed(source))?;
        let mut block = vec![0; SPOOL_BUFFER];
        loop {
            let length = self.spool.get_mut().read(&mut block).map_err(|source| self.spool_failed(source))?;
            match block.get(..length) {
                Some(bytes) if !bytes.is_empty() => self.append(bytes)?,
                _ => return Ok(()),
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), ManifestError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ManifestError> {
        self.hasher.update(&self.buffer);
        self.file.write_at(&self.buffer, LENGTH as u64 + self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn spool_failed(&self, source: io::Error) -> ManifestError {
        StorageError::new("spool the runs of", self.file.path(), source).into()
    }

    fn invalid(&self, what: String) -> ManifestError {
        ManifestError::Invalid { path: self.file.path().to_owned(), what }
    }
}

/// Returns how many bytes attributes take together.
fn attributes_length(attributes: &[(String, Vec<u8>)]) -> usize {
    attributes.iter().map(|(key, value)| key.len() + value.len() + 1).sum()
}

impl Run {
    /// Says whether a segment that would begin `next` says the same about itself as this run's.
    fn joins(&self, next: &Self) -> bool {
        (self.incremental, self.base, self.twin) == (next.incremental, next.base, next.twin)
    }
}
