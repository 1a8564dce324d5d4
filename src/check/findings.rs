//! What a check found, for those who do not check: see [`Findings`].

use std::collections::{BTreeSet, HashMap};

use crate::check::{CheckError, DamagedSegmentReport};
use crate::manifest::{BackupsetId, Incremental};
use crate::repository::{Backupset, Finding, Findings, Repository};

/// Returns what a check found, of backups that are among `sets`.
pub(super) fn findings(damaged: &[DamagedSegmentReport], sets: &[Backupset]) -> Findings {
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
    Findings::new(damaged.iter().map(finding))
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
