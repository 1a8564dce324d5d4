//! Reading a manifest in place.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::manifest::archive::{ArchivedBody, RUN_LENGTH, Run};
use crate::manifest::header::{Header, LENGTH};
use crate::manifest::map::{MappedBody, Opened, Runs};
use crate::manifest::{
    ATTRIBUTES_LIMIT, BackupsetId, BaseIndex, ImageName, Incremental, MOST_BASES, ManifestError, ManifestInfo,
};
use crate::segment::{Fingerprint, Geometry, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin};
use crate::storage::Storage;

/// Bodies up to this many bytes have their fingerprint compared when they are opened. Tests take nearly all for long ones.
const VERIFIED_AT_OPEN: usize = if cfg!(test) { 16 } else { 64 << 20 };

/// What a byte of attributes takes in the archive at most, in bytes: an empty one counts as one.
const ATTRIBUTE_MOST: usize = 32;

/// How much of a body is hashed before its pages are given back.
const VERIFIED_AT_ONCE: usize = 16 << 20;

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

/// A stretch of neighbouring present segments that say the same about themselves.
#[derive(Clone, Copy, Debug)]
pub struct Stretch<'a> {
    /// The place of the first one.
    pub first: SegmentIndex,
    /// Their SHA-1s, in order.
    pub hashes: &'a [[u8; SegmentHash::LENGTH]],
    /// The incremental that stored them.
    pub incremental: Incremental,
    /// The backupset of that incremental.
    pub base: BaseIndex,
    /// Their twin number.
    pub twin: Twin,
}

impl<'a> Stretch<'a> {
    /// Returns the place behind the last one.
    pub fn end(&self) -> u32 {
        self.first.0.saturating_add(u32::try_from(self.hashes.len()).unwrap_or(u32::MAX))
    }

    /// Returns its segments with their places.
    pub fn segments(self) -> impl Iterator<Item = (SegmentIndex, SegmentRef)> + use<'a> {
        let Self { first, hashes, incremental, base, twin } = self;
        (first.0..).zip(hashes).map(move |(place, hash)| {
            let key = SegmentKey { hash: SegmentHash::from_bytes(*hash), twin };
            (SegmentIndex(place), SegmentRef { key, incremental, base })
        })
    }
}

/// A manifest, mapped or in memory, and checked.
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
    pub fn open(storage: &dyn Storage, path: &Path) -> Result<Self, ManifestError> {
        Self::check(path, Opened::own(storage, path)?)
    }

    /// Opens any manifest file, with the same checks. Up to 64 MiB it is read into memory, so that nobody can
    /// change it meanwhile.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        Self::check(path, Opened::foreign(path)?)
    }

    fn check(path: &Path, opened: Opened) -> Result<Self, ManifestError> {
        let Opened { mapped, header, info } = opened;
        check_runs(&mapped, &info)
            .map_err(|what| ManifestError::Damaged { path: path.to_owned(), what: what.to_owned() })?;
        let reader = Self { path: path.to_owned(), mapped, header, info, verified: OnceLock::new() };
        if reader.mapped.body_bytes().len() <= VERIFIED_AT_OPEN {
            reader.verify()?;
        }
        Ok(reader)
    }

    /// Returns how many bytes a manifest of such a disk has at most, for whoever takes one from a stranger: a hash and a run
    /// for each segment, and what it may say of itself.
    pub fn most_bytes(geometry: Geometry) -> u64 {
        let segments = u64::from(geometry.segments());
        let itself = (LENGTH + 16 * MOST_BASES + ATTRIBUTE_MOST * ATTRIBUTES_LIMIT) as u64;
        (segments + 1) * (SegmentHash::LENGTH + RUN_LENGTH) as u64 + itself
    }

    /// Compares the body with the fingerprint in its header, once; a job that reads a manifest whole
    /// calls this first.
    pub fn verify(&self) -> Result<(), ManifestError> {
        if self.verified.get().is_none() {
            let mut hasher = blake3::Hasher::new();
            for part in self.mapped.body_bytes().chunks(VERIFIED_AT_ONCE) {
                hasher.update(part);
                self.release_pages();
            }
            if hasher.finalize().as_bytes() != self.header.body.as_bytes() {
                let what = "its body does not fit its BLAKE3".to_owned();
                return Err(ManifestError::Damaged { path: self.path.clone(), what });
            }
            self.verified.get_or_init(|| ());
        }
        Ok(())
    }

    pub(super) fn is_verified(&self) -> bool {
        self.verified.get().is_some()
    }

    /// Gives the memory back that the manifest's pages take in this process; they come back when they are
    /// used. For jobs that go through a large manifest once.
    pub fn release_pages(&self) {
        self.mapped.release_pages();
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
        LENGTH as u64 + self.header.body_length
    }

    /// Returns how many runs the present segments make.
    pub fn runs(&self) -> usize {
        self.mapped.runs().len().saturating_sub(1)
    }

    /// Returns the number of present segments.
    pub fn present(&self) -> u32 {
        u32::try_from(self.mapped.hashes().len()).unwrap_or(u32::MAX)
    }

    /// Returns what the manifest says about the segment at `index`, or nothing where it is zero.
    pub fn lookup(&self, index: SegmentIndex) -> Option<SegmentRef> {
        self.cursor(index).at(index)
    }

    /// Returns a cursor for lookups in the order of the places, from `index` on.
    pub fn cursor(&self, index: SegmentIndex) -> Cursor<'_> {
        let runs = self.mapped.runs();
        let mut cursor = Cursor {
            hashes: self.mapped.hashes(),
            runs,
            next: runs.until(index.0).saturating_sub(1),
            stretch: None,
        };
        cursor.advance();
        cursor
    }

    /// Returns the stretches of present segments, in order.
    pub fn stretches(&self) -> impl Iterator<Item = Stretch<'_>> {
        self.stretches_from(SegmentIndex(0))
    }

    /// Returns the stretches from the last one on that begins at `index` or before.
    pub fn stretches_from(&self, index: SegmentIndex) -> impl Iterator<Item = Stretch<'_>> {
        let (hashes, runs) = (self.mapped.hashes(), self.mapped.runs());
        (runs.until(index.0).saturating_sub(1)..self.runs())
            .filter_map(move |position| stretch(hashes, runs, position))
    }

    /// Returns the present segments with their places, in order.
    pub fn segments(&self) -> impl Iterator<Item = (SegmentIndex, SegmentRef)> + '_ {
        self.stretches().flat_map(Stretch::segments)
    }
}

/// Returns the stretch that the run with number `position` describes.
fn stretch<'a>(
    hashes: &'a [[u8; SegmentHash::LENGTH]],
    runs: Runs<'_>,
    position: usize,
) -> Option<Stretch<'a>> {
    let run = runs.get(position)?;
    let end = runs.get(position + 1)?.rank;
    Some(Stretch {
        first: SegmentIndex(run.first),
        hashes: hashes.get(run.rank as usize..end as usize)?,
        incremental: Incremental(run.incremental),
        base: BaseIndex(run.base),
        twin: Twin(run.twin),
    })
}

/// Looks segments up in the order of their places; a lookup costs a comparison or two.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    hashes: &'a [[u8; SegmentHash::LENGTH]],
    runs: Runs<'a>,
    /// The number of the run behind `stretch`.
    next: usize,
    stretch: Option<Stretch<'a>>,
}

impl Cursor<'_> {
    /// Returns what the manifest says about the segment at `index`, which must not lie before the one of
    /// the call before: such a segment is not found.
    pub fn at(&mut self, index: SegmentIndex) -> Option<SegmentRef> {
        while self.stretch.is_some_and(|stretch| stretch.end() <= index.0) {
            self.advance();
        }
        let Stretch { first, hashes, incremental, base, twin } = self.stretch?;
        let hash = hashes.get(index.0.checked_sub(first.0)? as usize)?;
        Some(SegmentRef { key: SegmentKey { hash: SegmentHash::from_bytes(*hash), twin }, incremental, base })
    }

    /// Returns the first place behind the last lookup at which there is a segment.
    pub fn next_present(&self) -> Option<SegmentIndex> {
        self.stretch.map(|stretch| stretch.first)
    }

    fn advance(&mut self) {
        self.stretch = stretch(self.hashes, self.runs, self.next);
        self.next += 1;
    }
}

impl ManifestInfo {
    /// Takes the information out of an archive that has been checked.
    ///
    /// Nothing is copied before it is known to be small.
    pub(super) fn of(body: &ArchivedBody) -> Result<Self, String> {
        let attributes = body.attributes.iter().map(|pair| pair.key.len() + pair.value.len() + 1);
        if body.bases.len() > MOST_BASES
            || attributes.sum::<usize>() > ATTRIBUTES_LIMIT
            || body.name.len() > 255
        {
            return Err("it says more about itself than a manifest can".to_owned());
        }
        let segment_size =
            SegmentSize::new(u64::from(body.segment_size.to_native())).map_err(|error| error.to_string())?;
        let geometry =
            Geometry::new(body.size_of_disk.to_native(), segment_size).map_err(|error| error.to_string())?;
        let nanoseconds = i32::try_from(body.timestamp_nanoseconds.to_native())
            .map_err(|_| "its timestamp is impossible".to_owned())?;
        let timestamp = jiff::Timestamp::new(body.timestamp_seconds.to_native(), nanoseconds)
            .map_err(|error| error.to_string())?;
        let attributes = body.attributes.iter();
        Ok(Self {
            backupset: BackupsetId::from_bytes(body.backupset),
            incremental: Incremental(body.incremental.to_native()),
            name: ImageName::new(body.name.as_str()).map_err(|error| error.to_string())?,
            geometry,
            timestamp,
            bases: body.bases.iter().map(|bytes| BackupsetId::from_bytes(*bytes)).collect(),
            attributes: attributes.map(|pair| (pair.key.as_str().to_owned(), pair.value.to_vec())).collect(),
        })
    }
}

/// The sense that bytecheck cannot check: runs in order, not empty, not overlapping, inside the disk;
/// ranks that end at the number of hashes; bases that exist.
fn check_runs(mapped: &MappedBody, info: &ManifestInfo) -> Result<(), &'static str> {
    let runs = mapped.runs();
    let (Some(mut run), Some(sentinel)) =
        (runs.get(0), runs.len().checked_sub(1).and_then(|last| runs.get(last)))
    else {
        return Err("its runs lack the sentinel");
    };
    if run.rank != 0 {
        return Err("its first run does not begin at the first hash");
    }
    let hashes = u32::try_from(mapped.hashes().len()).map_err(|_| "it has too many hashes")?;
    let end = Run { first: info.geometry.segments(), rank: hashes, incremental: 0, base: 0, twin: 0 };
    if sentinel != end {
        return Err("its runs do not end where its disk and its hashes end");
    }
    for next in runs.iter().skip(1) {
        let length = next.rank.checked_sub(run.rank).ok_or("its runs are not in order")?;
        if length == 0 || run.first.checked_add(length).is_none_or(|end| end > next.first) {
            return Err("its runs are not in order");
        }
        if usize::from(run.base) > info.bases.len() {
            return Err("a run names a base that it does not list");
        }
        if run.base == 0 && run.incremental > info.incremental.0 {
            return Err("a run names a later backup");
        }
        run = next;
    }
    Ok(())
}
