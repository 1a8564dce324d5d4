//! Applying a backup's stays to the refcounts.
//!
//! The gains of a window are summed by key and applied in their order, in batches that carry their own
//! progress and the numbers of both neighbours; so a count that was cut short goes on where it stopped.

use crate::manifest::stays::{COUNTED_WINDOW, Neighbours};
use crate::manifest::{BackupsetId, Incremental, ManifestReader};
use crate::repository::{BackupRecord, Backupset, Repository, RepositoryError};
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

    /// Returns from where a count in the direction `way` that was cut short goes on: window and keys of it.
    fn resume(&self, way: Way, counted: Option<&Counted>) -> Option<(u32, u32)> {
        let same = |counted: &Counted| {
            counted.manifest == *self.neighbours.this.fingerprint().as_bytes()
                && counted.before == number(self.neighbours.before)
                && counted.after == number(self.neighbours.after)
        };
        match (way, counted.map(|counted| (counted.state, counted))) {
            (Way::Add, None) => Some((0, 0)),
            (Way::Add, Some((CountedState::Adding { window, keys }, counted))) if same(counted) => {
                Some((window, keys))
            }
            (Way::Remove, Some((CountedState::Whole, counted)))
                if counted.manifest == *self.neighbours.this.fingerprint().as_bytes() =>
            {
                Some((0, 0))
            }
            (Way::Remove, Some((CountedState::Removing { window, keys }, counted))) if same(counted) => {
                Some((window, keys))
            }
            _ => None,
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
        if !self.count(Way::Add, counted, &mut apply)? {
            return Ok(false);
        }
        apply(vec![self.progress(CountedState::Whole)])?;
        Ok(true)
    }

    /// Takes the backup's counts away again, from where `counted` says that it was cut short; what it counted is
    /// then as if it had never been. Returns `false`, having done nothing, as [`Self::add`] does.
    pub(super) fn remove(
        &self,
        counted: Option<&Counted>,
        mut apply: impl FnMut(Vec<Change>) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        if !self.count(Way::Remove, counted, &mut apply)? {
            return Ok(false);
        }
        apply(vec![Change::Uncounted(self.backupset, self.incremental())])?;
        Ok(true)
    }

    fn count(
        &self,
        way: Way,
        counted: Option<&Counted>,
        apply: &mut impl FnMut(Vec<Change>) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let Some((first_window, first_keys)) = self.resume(way, counted) else { return Ok(false) };
        for (window, places) in
            (0_u32..).zip(self.neighbours.windows_of(COUNTED_WINDOW)).skip(first_window as usize)
        {
            let mut keys = if window == first_window { first_keys } else { 0 };
            let gains = self.neighbours.gains(places).into_iter().skip(keys as usize);
            let counts: Vec<_> =
                gains.map(|(key, gain)| Change::Count(key, way.sign() * i64::from(gain))).collect();
            for batch in counts.chunks(COUNTS) {
                keys += u32::try_from(batch.len()).unwrap_or(0);
                let mut changes = batch.to_vec();
                changes.push(self.progress(way.state(window, keys)));
                apply(changes)?;
            }
        }
        Ok(true)
    }
}

/// Whether a backup comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Add,
    Remove,
}

impl Way {
    fn sign(self) -> i64 {
        match self {
            Self::Add => 1,
            Self::Remove => -1,
        }
    }

    fn state(self, window: u32, keys: u32) -> CountedState {
        match self {
            Self::Add => CountedState::Adding { window, keys },
            Self::Remove => CountedState::Removing { window, keys },
        }
    }
}

/// The backup that another one is counted beside, on one side: the nearest one that the index counts, if it counts any.
///
/// An error is the number of one that it counts, but whose manifest is damaged or missing. Nothing can be counted beside
/// that: a new index leaves it out.
pub(super) type Side = Result<Option<ManifestReader>, Incremental>;

/// Finds the nearest of some backups that the index counts.
///
/// A backup that can be read but is not counted is passed over. Its manifest was damaged when the index was made or
/// opened, and was put back since: the backups around it were counted without it.
pub(super) fn counted_side<'a>(
    repository: &Repository,
    set: &Backupset,
    candidates: impl IntoIterator<Item = &'a BackupRecord>,
    counted: impl Fn(Incremental) -> Result<Option<Counted>, StoreError>,
) -> Result<Side, RepositoryError> {
    for record in candidates {
        match counted(record.incremental)? {
            Some(counted) if counted.state == CountedState::Whole => {
                let same = counted.manifest == *record.manifest.as_bytes();
                let manifest = if same { repository.readable_manifest(set, record)? } else { None };
                return Ok(manifest.map(Some).ok_or(record.incremental));
            }
            Some(_) | None => {}
        }
    }
    Ok(Ok(None))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::manifest::{BaseIndex, ImageName, ManifestInfo, ManifestWriter, SegmentRef};
    use crate::segment::{Geometry, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin};
    use crate::storage::OsStorage;

    /// What an index would hold.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Counts {
        refcounts: BTreeMap<SegmentKey, i64>,
        counted: Option<Counted>,
        batches: usize,
    }

    impl Counts {
        fn apply(&mut self, changes: Vec<Change>) {
            assert!(changes.len() <= 64, "a batch is atomic");
            self.batches += 1;
            for change in changes {
                match change {
                    Change::Count(key, gain) => *self.refcounts.entry(key).or_insert(0) += gain,
                    Change::Counted(_, _, counted) => self.counted = Some(counted),
                    Change::Uncounted(..) => self.counted = None,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// A manifest of `segments` segments, of which every third differs by `salt`.
    fn manifest(folder: &Path, incremental: u32, segments: u32, salt: u32) -> ManifestReader {
        let path = folder.join(incremental.to_string());
        let info = ManifestInfo {
            backupset: BackupsetId::from_bytes([1; 16]),
            incremental: Incremental(incremental),
            name: ImageName::new("web").unwrap(),
            geometry: Geometry::new(u64::from(segments) << 16, SegmentSize::MIN).unwrap(),
            timestamp: jiff::Timestamp::UNIX_EPOCH,
            bases: Vec::new(),
            attributes: Vec::new(),
        };
        let mut writer = ManifestWriter::create(&OsStorage, &path, info).unwrap();
        for place in 0..segments {
            let content = [place, if place % 3 == 0 { salt } else { 0 }].map(u32::to_le_bytes).concat();
            let key = SegmentKey { hash: SegmentHash::of(&content), twin: Twin(0) };
            let segment = SegmentRef { key, incremental: Incremental(0), base: BaseIndex(0) };
            writer.push(SegmentIndex(place), &segment).unwrap();
        }
        writer.finish().unwrap();
        ManifestReader::open(&OsStorage, &path).unwrap()
    }

    #[test]
    fn a_count_that_was_cut_short_anywhere_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        // More than one window, and in the last one several batches.
        let segments = crate::manifest::stays::WINDOW + 500;
        let before = manifest(folder.path(), 0, segments, 1);
        let this = manifest(folder.path(), 1, segments, 2);
        let neighbours = Neighbours { before: Some(&before), this: &this, after: None };
        let counting = Counting { backupset: BackupsetId::from_bytes([1; 16]), neighbours };
        let mut whole = Counts::default();
        let whole_apply = |changes| {
            whole.apply(changes);
            Ok(())
        };
        assert!(counting.add(None, whole_apply).unwrap());
        assert_eq!(whole.refcounts.len(), segments.div_ceil(3) as usize);
        assert_eq!(whole.counted.unwrap().state, CountedState::Whole);
        for cut in [0, 1, 2, 17, whole.batches - 3, whole.batches - 2, whole.batches - 1] {
            let mut counts = Counts::default();
            cut_and_go_on(&counting, Way::Add, cut, &mut counts);
            assert_eq!(counts, whole, "cut at batch {cut}");
            // And the other way: taken away again, it is as if it had never been.
            counts.batches = 0;
            cut_and_go_on(&counting, Way::Remove, cut, &mut counts);
            assert_eq!(counts.counted, None);
            assert!(counts.refcounts.values().all(|count| *count == 0), "cut at batch {cut}");
        }
    }

    /// Counts until batch `cut` fails, and goes on with what had been reached by then.
    fn cut_and_go_on(counting: &Counting<'_>, way: Way, cut: usize, counts: &mut Counts) {
        let run = |reached: Option<Counted>, cut: usize, counts: &mut Counts| {
            let apply = |changes| {
                if counts.batches == cut {
                    return Err(StoreError::Poisoned { reason: "cut".to_owned(), full: false, index: false });
                }
                counts.apply(changes);
                Ok(())
            };
            match way {
                Way::Add => counting.add(reached.as_ref(), apply),
                Way::Remove => counting.remove(reached.as_ref(), apply),
            }
        };
        assert!(run(counts.counted, cut, counts).is_err());
        assert!(run(counts.counted, usize::MAX, counts).unwrap());
    }

    #[test]
    fn a_count_that_was_begun_beside_other_neighbours_is_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let [before, this] = [0, 1].map(|number| manifest(folder.path(), number, 100, number));
        let neighbours = Neighbours { before: Some(&before), this: &this, after: None };
        let counting = Counting { backupset: BackupsetId::from_bytes([1; 16]), neighbours };
        let state = CountedState::Adding { window: 0, keys: 5 };
        let right = Counted { manifest: *this.fingerprint().as_bytes(), state, before: Some(0), after: None };
        for wrong in [
            Counted { before: None, ..right },
            Counted { after: Some(2), ..right },
            Counted { manifest: [0; 32], ..right },
            Counted { state: CountedState::Whole, ..right },
        ] {
            assert!(!counting.add(Some(&wrong), |_| panic!("nothing is to be applied")).unwrap());
        }
        assert!(counting.add(Some(&right), |_| Ok(())).unwrap());
    }
}
