//! Reading a manifest in place.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::manifest::archive::{ArchivedBody, ArchivedRun};
use crate::manifest::header::Header;
use crate::manifest::map::MappedBody;
use crate::manifest::{BackupsetId, BaseIndex, ImageName, Incremental, ManifestError, ManifestInfo};
use crate::segment::{Fingerprint, Geometry, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin};

/// Bodies up to this many bytes have their fingerprint compared when they are opened.
const VERIFIED_AT_OPEN: usize = 64 << 20;

/// What a manifest says about one present segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRef {
    /// Its SHA-1 and twin number.
    pub key: SegmentKey,
    /// The incremental that stored it at this place.
    pub incremental: Incremental,
    /// The backupset of that incremental.
    pub base: BaseIndex,
}

/// A manifest, mapped and checked.
#[derive(Debug)]
pub struct ManifestReader {
    path: PathBuf,
    mapped: MappedBody,
    header: Header,
    info: ManifestInfo,
    verified: OnceLock<()>,
}

impl ManifestReader {
    /// Opens one of a repository's own manifests: header, bytecheck, sense, and for bodies up to 64 MiB
    /// the fingerprint are checked before it returns.
    pub fn open(path: &Path) -> Result<Self, ManifestError> {
        Self::check(path, MappedBody::open(path)?)
    }

    /// Reads any manifest file into memory, with the same checks.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        Self::check(path, MappedBody::read(path)?)
    }

    fn check(path: &Path, (mapped, header): (MappedBody, Header)) -> Result<Self, ManifestError> {
        let damaged = |what: String| ManifestError::Damaged { path: path.to_owned(), what };
        let info = info(mapped.body()).map_err(damaged)?;
        check_runs(mapped.body(), &info).map_err(|what| damaged(what.to_owned()))?;
        let reader = Self { path: path.to_owned(), mapped, header, info, verified: OnceLock::new() };
        if reader.mapped.body_bytes().len() <= VERIFIED_AT_OPEN {
            reader.verify()?;
        }
        Ok(reader)
    }

    /// Compares the body with the fingerprint in its header, once; a job that reads a manifest whole
    /// calls this first.
    pub fn verify(&self) -> Result<(), ManifestError> {
        if self.verified.get().is_none() {
            if Fingerprint::of(self.mapped.body_bytes()) != self.header.body {
                let what = "its body does not fit its BLAKE3".to_owned();
                return Err(ManifestError::Damaged { path: self.path.clone(), what });
            }
            self.verified.get_or_init(|| ());
        }
        Ok(())
    }

    /// Returns the BLAKE3 of the body, which `set.toml` names it by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.header.body
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what it says about the backup as a whole.
    pub fn info(&self) -> &ManifestInfo {
        &self.info
    }

    /// Returns the file's length in bytes.
    pub fn file_size(&self) -> u64 {
        crate::manifest::header::LENGTH as u64 + self.header.body_length
    }

    /// Returns how many runs the present segments make.
    pub fn runs(&self) -> usize {
        self.mapped.body().runs.len().saturating_sub(1)
    }

    /// Returns the number of present segments.
    pub fn present(&self) -> u32 {
        u32::try_from(self.mapped.body().hashes.len()).unwrap_or(u32::MAX)
    }

    /// Returns what the manifest says about the segment at `index`, or nothing where it is zero.
    pub fn lookup(&self, index: SegmentIndex) -> Option<SegmentRef> {
        let runs = self.mapped.body().runs.as_slice();
        let behind = runs.partition_point(|run| run.first.to_native() <= index.0);
        self.in_run(behind.checked_sub(1)?, index)
    }

    /// Looks a segment up in the run with number `position`, if that run holds it.
    fn in_run(&self, position: usize, index: SegmentIndex) -> Option<SegmentRef> {
        let body = self.mapped.body();
        let run = body.runs.get(position)?;
        let end = body.runs.get(position + 1)?.rank.to_native();
        let rank = run.rank.to_native().checked_add(index.0.checked_sub(run.first.to_native())?)?;
        if rank >= end {
            return None;
        }
        let hash = SegmentHash::from_bytes(*body.hashes.get(rank as usize)?);
        Some(SegmentRef {
            key: SegmentKey { hash, twin: Twin(run.twin.to_native()) },
            incremental: Incremental(run.incremental.to_native()),
            base: BaseIndex(run.base.to_native()),
        })
    }

    /// Returns a cursor for lookups in the order of the places, from `index` on.
    pub fn cursor(&self, index: SegmentIndex) -> Cursor<'_> {
        let runs = self.mapped.body().runs.as_slice();
        let behind = runs.partition_point(|run| run.first.to_native() <= index.0);
        Cursor { manifest: self, run: behind.saturating_sub(1) }
    }

    /// Returns the present segments with their places, in order.
    pub fn segments(&self) -> impl Iterator<Item = (SegmentIndex, SegmentRef)> + '_ {
        let runs = self.mapped.body().runs.as_slice();
        runs.iter().zip(runs.iter().skip(1)).enumerate().flat_map(move |(position, (run, next))| {
            let first = run.first.to_native();
            let length = next.rank.to_native().saturating_sub(run.rank.to_native());
            (first..first.saturating_add(length)).filter_map(move |place| {
                Some((SegmentIndex(place), self.in_run(position, SegmentIndex(place))?))
            })
        })
    }
}

/// Looks segments up in the order of their places; a lookup costs a comparison or two.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    manifest: &'a ManifestReader,
    run: usize,
}

impl Cursor<'_> {
    /// Returns what the manifest says about the segment at `index`, which must not lie before the one of
    /// the call before: such a segment is not found.
    pub fn at(&mut self, index: SegmentIndex) -> Option<SegmentRef> {
        let runs = self.manifest.mapped.body().runs.as_slice();
        while runs.get(self.run + 1).is_some_and(|next| next.first.to_native() <= index.0) {
            self.run += 1;
        }
        self.manifest.in_run(self.run, index)
    }
}

fn info(body: &ArchivedBody) -> Result<ManifestInfo, String> {
    let segment_size =
        SegmentSize::new(u64::from(body.segment_size.to_native())).map_err(|error| error.to_string())?;
    let geometry =
        Geometry::new(body.size_of_disk.to_native(), segment_size).map_err(|error| error.to_string())?;
    let nanoseconds = i32::try_from(body.timestamp_nanoseconds.to_native())
        .map_err(|_| "its timestamp is impossible".to_owned())?;
    let timestamp = jiff::Timestamp::new(body.timestamp_seconds.to_native(), nanoseconds)
        .map_err(|error| error.to_string())?;
    let attributes = body.attributes.iter();
    Ok(ManifestInfo {
        backupset: BackupsetId::from_bytes(body.backupset),
        incremental: Incremental(body.incremental.to_native()),
        name: ImageName::new(body.name.as_str()).map_err(|error| error.to_string())?,
        geometry,
        timestamp,
        bases: body.bases.iter().map(|bytes| BackupsetId::from_bytes(*bytes)).collect(),
        attributes: attributes.map(|pair| (pair.key.as_str().to_owned(), pair.value.to_vec())).collect(),
    })
}

/// The sense that bytecheck cannot check: runs in order, not empty, not overlapping, inside the disk;
/// ranks that end at the number of hashes; bases that exist.
fn check_runs(body: &ArchivedBody, info: &ManifestInfo) -> Result<(), &'static str> {
    let runs = body.runs.as_slice();
    let (Some(first), Some(sentinel)) = (runs.first(), runs.last()) else {
        return Err("its runs lack the sentinel");
    };
    if first.rank != 0 {
        return Err("its first run does not begin at the first hash");
    }
    let end = ArchivedRun {
        first: info.geometry.segments().into(),
        rank: u32::try_from(body.hashes.len()).map_err(|_| "it has too many hashes")?.into(),
        incremental: 0.into(),
        base: 0.into(),
        twin: 0.into(),
    };
    if (sentinel.first, sentinel.rank, sentinel.incremental, sentinel.base, sentinel.twin)
        != (end.first, end.rank, end.incremental, end.base, end.twin)
    {
        return Err("its runs do not end where its disk and its hashes end");
    }
    for (run, next) in runs.iter().zip(runs.iter().skip(1)) {
        let (place, rank) = (run.first.to_native(), run.rank.to_native());
        let length = next.rank.to_native().checked_sub(rank).ok_or("its runs are not in order")?;
        if length == 0 || place.checked_add(length).is_none_or(|end| end > next.first.to_native()) {
            return Err("its runs are not in order");
        }
        if usize::from(run.base.to_native()) > info.bases.len() {
            return Err("a run names a base that it does not list");
        }
    }
    Ok(())
}
