//! What checks found damaged and nobody has healed since: so that `status`, `list` and `show` know it, too.
//!
//! The file `findings` lists damaged and missing segments, where their damaged copies lie, and the backups that lack them. A check
//! that ends replaces it: with what it found, and with what earlier checks found and this one did not read again. A finding
//! is healed once a copy of the segment lies at a place that was not found damaged, because a later backup stored the segment
//! again. The file is derived: without it, damage is known again after the next check that reads the data.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use crate::manifest::{BackupsetId, Incremental, ManifestReader};
use crate::repository::{Repository, RepositoryError, RepositoryWriter, check_owner};
use crate::segment::{SegmentHash, SegmentIndex, SegmentKey, Twin};
use crate::store::Catalog;
use crate::store::pack::{PackNumber, RecordPlace};

/// The format of the file.
const FORMAT: u32 = 1;

/// How many segments are kept: so many that more change no decision.
const MOST_SEGMENTS: usize = 100_000;

/// A segment that a check found damaged or missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name.
    pub key: SegmentKey,
    /// Where its damaged copies lie.
    pub places: Vec<RecordPlace>,
    /// What is wrong, in words.
    pub error: String,
    /// The backups that lack it.
    pub backups: Vec<(BackupsetId, Incremental)>,
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
    /// Makes the findings of so many of these segments as are kept.
    pub fn new(segments: impl IntoIterator<Item = Finding>) -> Self {
        Self { segments: segments.into_iter().take(MOST_SEGMENTS).collect() }
    }

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

    /// Returns the segments that were found damaged.
    pub fn segments(&self) -> &[Finding] {
        &self.segments
    }

    /// Replaces the file, if there is something to say, or was. Says whether that could be done.
    pub fn save(&self, repository: &Repository) -> bool {
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
    pub fn unhealed(self, catalog: &Catalog) -> Result<Self, RepositoryError> {
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
    pub fn keys(&self) -> HashSet<SegmentKey> {
        self.segments.iter().map(|finding| finding.key).collect()
    }

    /// Returns the backups that lack a damaged segment.
    pub fn backups(&self) -> BTreeSet<(BackupsetId, Incremental)> {
        self.segments.iter().flat_map(|finding| finding.backups.iter().copied()).collect()
    }
}

impl Repository {
    /// Adds segments of a backup that a restore could not read to what checks found. A process that may not write to the repository
    /// adds nothing.
    pub fn note_damage(&self, manifest: &ManifestReader, damaged: &[(SegmentIndex, String)]) {
        if damaged.is_empty() {
            return;
        }
        let noted = || {
            check_owner(self.storage.as_ref(), &self.layout)?;
            let of_key = |(index, error): &(SegmentIndex, String)| {
                Some((manifest.cursor(*index).at(*index)?.key, error.clone()))
            };
            let errors: BTreeMap<_, _> = damaged.iter().filter_map(of_key).collect();
            let keys: Vec<_> = errors.keys().copied().collect();
            let backup = (manifest.info().backupset, manifest.info().incremental);
            let mut findings = self.findings_by_key();
            let is_known =
                |key| findings.get(key).is_some_and(|finding: &Finding| finding.backups.contains(&backup));
            if keys.iter().all(is_known) {
                return Ok(true);
            }
            let (copies, _) = self.catalog()?.locate(&keys)?;
            for (key, error) in errors {
                let new = Finding { key, places: Vec::new(), error, backups: Vec::new() };
                let finding = findings.entry(key).or_insert(new);
                let places = copies.iter().filter(|copy| copy.key == key).map(|copy| copy.place);
                finding.places = places.collect();
                if !finding.backups.contains(&backup) {
                    finding.backups.push(backup);
                }
            }
            Ok::<_, RepositoryError>(Findings::new(findings.into_values()).save(self))
        };
        match noted() {
            Ok(true) => {}
            Ok(false) => tracing::info!("what was found damaged cannot be remembered here"),
            Err(error) => tracing::info!(%error, "what was found damaged cannot be remembered here"),
        }
    }

    fn findings_by_key(&self) -> BTreeMap<SegmentKey, Finding> {
        Findings::load(self).segments.into_iter().map(|finding| (finding.key, finding)).collect()
    }
}

impl RepositoryWriter {
    /// Has new backups store again the segments that were found damaged.
    pub(super) fn distrust_findings(&self) {
        let findings = Findings::load(&self.repository).segments.into_iter();
        self.store.distrust_copies(findings.map(|finding| (finding.key, finding.places)));
    }
}
