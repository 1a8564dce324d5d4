//! Applying a backup's stays to the refcounts.
//!
//! The gains of a window are summed by key and applied in their order, in batches that carry their own
//! progress and the numbers of both neighbours; so a count that was cut short goes on where it stopped.

use crate::manifest::stays::Neighbours;
use crate::manifest::{BackupsetId, Incremental, ManifestReader};
use crate::repository::{Backupset, Repository, RepositoryError};
use crate::store::{Change, Counted, CountedState, StoreError};

/// How many counts one batch holds beside its progress: with it they are one atomic batch of the index.
const COUNTS: usize = 60;

/// A backup whose segments are to be counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counting<'a> {
    pub(super) backupset: BackupsetId,
    pub(super) neighbours: Neighbours<'a>,
}

fn number(manifest: Option<&ManifestReader>) -> Option<u32> {
    manifest.map(|manifest| manifest.info().incremental.0)
}

impl Counting<'_> {
    fn incremental(&self) -> Incremental {
        self.neighbours.this.info().incremental
    }

    fn progress(&self, state: CountedState) -> Change {
        let counted = Counted {
            manifest: *self.neighbours.this.fingerprint().as_bytes(),
            state,
            before: number(self.neighbours.before),
            after: number(self.neighbours.after),
        };
        Change::Counted(self.backupset, self.incremental(), counted)
    }

    /// Returns from where a count that was cut short goes on: window and keys of it.
    fn resume(&self, counted: Option<&Counted>) -> Option<(u32, u32)> {
        let Some(counted) = counted else { return Some((0, 0)) };
        let same = counted.manifest == *self.neighbours.this.fingerprint().as_bytes()
            && counted.before == number(self.neighbours.before)
            && counted.after == number(self.neighbours.after);
        match counted.state {
            CountedState::Adding { window, keys } if same => Some((window, keys)),
            CountedState::Adding { .. } | CountedState::Whole => None,
        }
    }

    /// Counts the backup, from where `counted` says that it was cut short.
    ///
    /// Returns `false`, having done nothing, if that was beside other neighbours: the index is then to be
    /// made anew.
    pub(super) fn add(
        &self,
        counted: Option<&Counted>,
        mut apply: impl FnMut(Vec<Change>) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let Some((first_window, first_keys)) = self.resume(counted) else { return Ok(false) };
        for (window, places) in (0_u32..).zip(self.neighbours.windows()).skip(first_window as usize) {
            let mut keys = if window == first_window { first_keys } else { 0 };
            let gains = self.neighbours.gains(places).into_iter().skip(keys as usize);
            let counts: Vec<_> = gains.map(|(key, gain)| Change::Count(key, i64::from(gain))).collect();
            for batch in counts.chunks(COUNTS) {
                keys += u32::try_from(batch.len()).unwrap_or(0);
                let mut changes = batch.to_vec();
                changes.push(self.progress(CountedState::Adding { window, keys }));
                apply(changes)?;
            }
        }
        apply(vec![self.progress(CountedState::Whole)])?;
        Ok(true)
    }
}

/// The manifests of a backupset's backups that can be read, by number, opened as they are needed.
pub(super) fn neighbour(
    repository: &Repository,
    set: &Backupset,
    mut candidates: impl Iterator<Item = usize>,
) -> Result<Option<ManifestReader>, RepositoryError> {
    candidates
        .find_map(|position| {
            let backup = set.backups.get(position)?;
            match repository.manifest(set, backup) {
                Ok(manifest) => Some(Ok(manifest)),
                // What cannot be read counts for nothing, here as in a rebuild.
                Err(error) if error.kind() == crate::error::ErrorKind::Io => Some(Err(error)),
                Err(_) => None,
            }
        })
        .transpose()
}
