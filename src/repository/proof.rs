//! The proof before anything is freed: no manifest names it, whatever the index says.
//!
//! The hash columns of all manifests are compared with the candidates: a bit table answers "no" for nearly every
//! hash with one look at memory, the sorted candidates answer the rest. Each manifest is verified before, so that
//! a damaged one cannot hide what it names.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::manifest::ManifestReader;
use crate::pace::on_threads;
use crate::progress::{Part, Progress};
use crate::repository::{BackupId, BackupRecord, Backupset, Repository, RepositoryError};
use crate::segment::{SegmentHash, SegmentKey};
use crate::store::Candidate;

/// Bits of the table for each candidate, at least. Two of them are set, so that of a thousand hashes that are no
/// candidate one is looked up further; all others but one in 32 cost a single look.
const BITS_EACH: usize = 64;

/// A backup whose manifest is compared.
pub(super) type Named<'a> = (&'a Backupset, &'a BackupRecord);

/// What the proof found.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// The positions of candidates that a manifest names, sorted.
    pub(super) named: Vec<usize>,
    /// Why it is no proof: manifests that cannot be read, in words.
    pub(super) problems: Vec<String>,
    /// How many bytes of hash columns were compared.
    pub(super) compared_bytes: u64,
    /// How long that took, the verification of the manifests included.
    pub(super) elapsed: Duration,
    /// Whether not all manifests were compared, because it was told to stop.
    pub(super) cancelled: bool,
}

/// Compares candidates, sorted by key, with what backups name, on `jobs` threads.
pub(super) fn prove(
    repository: &Repository,
    backups: &[Named<'_>],
    candidates: &[Candidate],
    jobs: usize,
    progress: &dyn Progress,
) -> Result<Proof, RepositoryError> {
    let begun = Instant::now();
    let table = Table::of(candidates);
    let next = AtomicUsize::new(0);
    let compared = AtomicU64::new(0);
    let found = Mutex::new((Vec::new(), Vec::new(), None));
    let cancelled = AtomicBool::new(false);
    let segments: u64 = backups.iter().map(|(_, record)| u64::from(record.segments)).sum();
    let part = Part::begin(progress, "gc", segments * SegmentHash::LENGTH as u64);
    on_threads(jobs.clamp(1, backups.len().max(1)), "ekko-proof", || {
        while let Some((set, record)) = backups.get(next.fetch_add(1, Ordering::Relaxed)) {
            if progress.is_cancelled() {
                cancelled.store(true, Ordering::Release);
                return;
            }
            let opened = repository.manifest(set, record).and_then(|manifest| {
                manifest.verify()?;
                Ok(manifest)
            });
            let named = match &opened {
                Ok(manifest) => table.named(manifest, candidates, &compared),
                Err(_) => Vec::new(),
            };
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.0.extend(named);
            match opened {
                Ok(_) => {}
                Err(error) if error.kind() == crate::error::ErrorKind::Io => found.2 = Some(error),
                Err(error) => {
                    found.1.push(format!("{}: {error}", BackupId::of(set, record)));
                }
            }
            progress.advance(u64::from(record.segments) * SegmentHash::LENGTH as u64);
        }
    });
    drop(part);
    let (mut named, mut problems, failure) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = failure {
        return Err(error);
    }
    named.sort_unstable();
    named.dedup();
    problems.sort_unstable();
    Ok(Proof {
        named,
        problems,
        compared_bytes: compared.into_inner(),
        elapsed: begun.elapsed(),
        cancelled: cancelled.into_inner(),
    })
}

fn first(hash: &[u8; SegmentHash::LENGTH]) -> usize {
    hash.first_chunk().map_or(0, |part| usize::from_le_bytes(*part))
}

fn last(hash: &[u8; SegmentHash::LENGTH]) -> usize {
    hash.last_chunk().map_or(0, |part| usize::from_le_bytes(*part))
}

/// Two bits for each candidate, at places that its SHA-1 says.
struct Table {
    words: Vec<u64>,
    mask: usize,
}

impl Table {
    fn of(candidates: &[Candidate]) -> Self {
        let bits = (candidates.len() * BITS_EACH).next_power_of_two().max(64);
        let mut table = Self { words: vec![0; bits / 64], mask: bits - 1 };
        for candidate in candidates {
            for part in [first, last] {
                let bit = part(candidate.key.hash.as_bytes()) & table.mask;
                if let Some(word) = table.words.get_mut(bit / 64) {
                    *word |= 1 << (bit % 64);
                }
            }
        }
        table
    }

    fn may_hold(&self, hash: &[u8; SegmentHash::LENGTH]) -> bool {
        let is_set = |bit: usize| self.words.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1);
        is_set(first(hash) & self.mask) && is_set(last(hash) & self.mask)
    }

    /// Returns the positions of the candidates that a manifest names.
    fn named(&self, manifest: &ManifestReader, candidates: &[Candidate], compared: &AtomicU64) -> Vec<usize> {
        let mut named = Vec::new();
        for stretch in manifest.stretches() {
            for hash in stretch.hashes.iter().filter(|hash| self.may_hold(hash)) {
                let key = SegmentKey { hash: SegmentHash::from_bytes(*hash), twin: stretch.twin };
                let first = candidates.partition_point(|candidate| candidate.key < key);
                let same = candidates.iter().skip(first).take_while(|candidate| candidate.key == key);
                named.extend((first..).take(same.count()));
            }
            compared.fetch_add(size_of_val(stretch.hashes) as u64, Ordering::Relaxed);
        }
        manifest.release_pages();
        named
    }
}
