//! What checks found damaged and nobody has healed since: so that `status`, `list` and `show` know it, too.
//!
//! The file `findings` lists damaged and missing segments, where their damaged copies lie, and the backups that lack them. A check
//! that ends replaces it: with what it found, and with what earlier checks found and this one did not read again. A finding
//! is healed once a copy of the segment lies at a place that was not found damaged, because a later backup stored the segment
//! again. The file is derived: without it, damage is known again after the next check that reads the data.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::check::{CheckError, DamagedSegmentReport};
use crate::manifest::{BackupsetId, Incremental};
use crate::repository::{Backupset, Repository};
use crate::segment::{SegmentHash, SegmentKey, Twin};
use crate::store::Catalog;
use crate::store::pack::{PackNumber, RecordPlace};

/// The format of the file.
const FORMAT: u32 = 1;

/// How many segments are kept: so many that more change no decision.
const MOST_SEGMENTS: usize = 100_000;

/// A segment that a check found damaged or missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) key: SegmentKey,
    pub(super) places: Vec<RecordPlace>,
    pub(super) error: String,
    /// The backups that lack it.
    backups: Vec<(BackupsetId, Incremental)>,
}

/// What checks found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    segments: Vec<Finding>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    #[serde(default, rename = "segment", skip_serializing_if = "Vec::is_empty")]
    segments: Vec<FileSegment>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSegment {
    sha1: String,
    twin: u16,
    error: String,
    /// Pack and offset of each damaged copy.
    places: Vec<(u64, u64)>,
    /// Incrementals of each backupset.
    backups: BTreeMap<String, Vec<u32>>,
}

impl FileSegment {
    fn of(finding: &Finding) -> Self {
        let mut backups: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for (set, incremental) in &finding.backups {
            backups.entry(set.to_string()).or_default().push(incremental.0);
        }
        Self {
            sha1: finding.key.hash.to_string(),
            twin: finding.key.twin.0,
            error: finding.error.clone(),
            places: finding.places.iter().map(|place| (place.pack.0, place.offset)).collect(),
            backups,
        }
    }

    fn read(self) -> Option<Finding> {
        let mut backups = Vec::new();
        for (set, incrementals) in self.backups {
            let set: BackupsetId = set.parse().ok()?;
            backups.extend(incrementals.into_iter().map(|number| (set, Incremental(number))));
        }
        let place = |(pack, offset)| RecordPlace { pack: PackNumber(pack), offset };
        Some(Finding {
            key: SegmentKey { hash: self.sha1.parse::<SegmentHash>().ok()?, twin: Twin(self.twin) },
            places: self.places.into_iter().map(place).collect(),
            error: self.error,
            backups,
        })
    }
}

impl Findings {
    /// Reads what checks found. A file that is damaged or gone says nothing.
    pub fn load(repository: &Repository) -> Self {
        let read = || {
            let file: File = toml::from_str(&repository.read_findings().ok()?).ok()?;
            Some(Self { segments: file.segments.into_iter().map(FileSegment::read).collect::<Option<_>>()? })
        };
        read().unwrap_or_default()
    }

    /// Says whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(super) fn segments(&self) -> &[Finding] {
        &self.segments
    }

    /// Returns what a check found, of backups that are among `sets`.
    pub(super) fn of(damaged: &[DamagedSegmentReport], sets: &[Backupset]) -> Self {
        let numbers: HashMap<_, _> = sets
            .iter()
            .flat_map(|set| set.backups.iter().map(move |backup| (set, backup)))
            .map(|(set, backup)| ((set.name.as_str(), backup.number), (set.id, backup.incremental)))
            .collect();
        let finding = |report: &DamagedSegmentReport| Finding {
            key: report.key,
            places: report.places.clone(),
            error: report.error.clone(),
            backups: report
                .backups
                .iter()
                .filter_map(|id| numbers.get(&(id.name.as_str(), id.number)).copied())
                .collect(),
        };
        Self { segments: damaged.iter().take(MOST_SEGMENTS).map(finding).collect() }
    }

    /// Replaces the file, if there is something to say, or was. Says whether that could be done.
    pub(super) fn save(&self, repository: &Repository) -> bool {
        if *self == Self::load(repository) {
            return true;
        }
        let file = File { format: FORMAT, segments: self.segments.iter().map(FileSegment::of).collect() };
        toml::to_string(&file).is_ok_and(|text| repository.write_findings(&text).is_ok())
    }

    /// Leaves out what has been healed: segments of which a copy lies where none was found damaged.
    ///
    /// # Errors
    /// The packs cannot be read.
    pub fn unhealed(self, catalog: &Catalog) -> Result<Self, CheckError> {
        if self.is_empty() {
            return Ok(self);
        }
        let mut keys: Vec<_> = self.segments.iter().map(|finding| finding.key).collect();
        keys.sort_unstable();
        let (copies, _) = catalog.locate(&keys)?;
        let damaged: HashSet<_> = self
            .segments
            .iter()
            .flat_map(|finding| finding.places.iter().map(move |place| (finding.key, *place)))
            .collect();
        let healed: HashSet<_> = copies
            .iter()
            .filter(|copy| !damaged.contains(&(copy.key, copy.place)))
            .map(|copy| copy.key)
            .collect();
        let segments = self.segments.into_iter().filter(|finding| !healed.contains(&finding.key));
        Ok(Self { segments: segments.collect() })
    }

    /// Returns the damaged segments.
    pub(super) fn keys(&self) -> HashSet<SegmentKey> {
        self.segments.iter().map(|finding| finding.key).collect()
    }

    /// Returns the backups that lack a damaged segment.
    pub fn backups(&self) -> BTreeSet<(BackupsetId, Incremental)> {
        self.segments.iter().flat_map(|finding| finding.backups.iter().copied()).collect()
    }
}

/// Returns the backups that lack a segment which a check found damaged, unless it has been healed since.
///
/// # Errors
/// The packs cannot be read.
pub fn damaged_backups(repository: &Repository) -> Result<BTreeSet<(BackupsetId, Incremental)>, CheckError> {
    let findings = Findings::load(repository);
    if findings.is_empty() {
        return Ok(BTreeSet::new());
    }
    Ok(findings.unhealed(&repository.catalog()?)?.backups())
}
