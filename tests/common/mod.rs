//! What several test binaries share: disks in memory, and a progress that remembers.
#![allow(dead_code, reason = "each binary uses its part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
#![allow(missing_docs, clippy::missing_panics_doc, unreachable_pub, reason = "a test is no library")]

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ekko::backup::{BackupOptions, BackupSummary, back_up};
use ekko::codec::CompressionSetting;
use ekko::image::{Extent, Image, ImageError};
use ekko::manifest::ImageName;
use ekko::progress::{Notice, Progress};
use ekko::repository::{
    BackupRecord, Backupset, InitOptions, OpenOptions, Repository, RepositoryWriter, SharedWriter,
};
use ekko::restore::{RestoreOptions, RestoreSummary, restore_to_stream};
use ekko::segment::SegmentSize;

/// The segment size of all tests on small disks.
pub const SEGMENT: usize = 64 << 10;

/// A disk in memory. Whole blocks of `hole` bytes that are zero are holes.
#[derive(Debug)]
pub struct MemoryImage {
    path: PathBuf,
    bytes: Vec<u8>,
    hole: usize,
    pub read: AtomicU64,
}

impl MemoryImage {
    pub fn new(bytes: &[u8], hole: usize) -> Self {
        Self { path: PathBuf::from("memory"), bytes: bytes.to_vec(), hole, read: AtomicU64::new(0) }
    }

    fn is_hole(&self, block: usize) -> bool {
        let end = ((block + 1) * self.hole).min(self.bytes.len());
        self.bytes[block * self.hole..end].iter().all(|byte| *byte == 0)
    }

    /// How many bytes are not in holes.
    pub fn allocated(&self) -> u64 {
        let blocks = self.bytes.len().div_ceil(self.hole);
        let length = |block: usize| self.hole.min(self.bytes.len() - block * self.hole);
        (0..blocks).filter(|block| !self.is_hole(*block)).map(|block| length(block) as u64).sum()
    }
}

impl Image for MemoryImage {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        let blocks = self.bytes.len().div_ceil(self.hole);
        let from = usize::try_from(from).unwrap();
        let Some(first) = (from / self.hole..blocks).find(|block| !self.is_hole(*block)) else {
            return Ok(None);
        };
        let behind = (first..blocks).find(|block| self.is_hole(*block)).unwrap_or(blocks);
        let start = (first * self.hole).max(from);
        let end = (behind * self.hole).min(self.bytes.len());
        Ok((start < end).then(|| Extent { offset: start as u64, length: (end - start) as u64 }))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let offset = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.bytes[offset..offset + buffer.len()]);
        self.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        Ok(())
    }
}

/// Remembers every notice.
#[derive(Debug, Default)]
pub struct Told(Mutex<Vec<Notice>>);

impl Told {
    pub fn all(&self) -> Vec<Notice> {
        self.0.lock().unwrap().clone()
    }

    pub fn rebuilds(&self) -> usize {
        self.all().iter().filter(|notice| matches!(notice, Notice::IndexRebuilt { .. })).count()
    }

    pub fn problems(&self) -> Vec<String> {
        let problem = |notice: Notice| match notice {
            Notice::Problem { what, .. } => Some(what),
            _ => None,
        };
        self.all().into_iter().filter_map(problem).collect()
    }

    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

impl Progress for Told {
    fn notice(&self, notice: Notice) {
        self.0.lock().unwrap().push(notice);
    }
}

pub fn name(text: &str) -> ImageName {
    ImageName::new(text).unwrap()
}

pub fn small_segments() -> InitOptions {
    InitOptions { segment_size: SegmentSize::new(SEGMENT as u64).unwrap(), ..InitOptions::default() }
}

pub fn options() -> BackupOptions {
    BackupOptions::new(CompressionSetting::default(), 2)
}

pub fn open(path: &Path, told: &Told) -> RepositoryWriter {
    RepositoryWriter::open(path, &OpenOptions::default(), told).unwrap()
}

/// Makes a repository in a new folder, and opens it.
pub fn fresh(init: &InitOptions, told: &Told) -> (tempfile::TempDir, PathBuf, RepositoryWriter) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    Repository::init(&root, init).unwrap();
    let writer = open(&root, told);
    (folder, root, writer)
}

/// Backs a disk up and expects it to work.
pub fn backup(
    writer: RepositoryWriter,
    image: &str,
    disk: &[u8],
    told: &Told,
) -> (RepositoryWriter, BackupSummary) {
    let shared = SharedWriter::new(writer);
    let summary = back_up(&shared, &name(image), &MemoryImage::new(disk, 4096), &options(), told).unwrap();
    (shared.into_inner().unwrap(), summary)
}

/// Restores a backup into memory.
pub fn restore(repository: &Repository, set: &Backupset, backup: &BackupRecord) -> (Vec<u8>, RestoreSummary) {
    let manifest = repository.manifest(set, backup).unwrap();
    let mut bytes = Vec::new();
    let options = RestoreOptions { jobs: 2, sync: false, ..RestoreOptions::default() };
    let summary = restore_to_stream(repository, &manifest, &mut bytes, &options, &Told::default()).unwrap();
    (bytes, summary)
}

/// A small generator of pseudo-random numbers (xorshift64*), so that a disk follows from its seed.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    pub fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.byte()).collect()
    }
}

pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else if entry.file_name() != "reserve" {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file below a folder, in a fixed order.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}
