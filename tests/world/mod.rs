//! Random work on a repository beside a model of it: disks as bytes in memory, backups as copies of them.
//!
//! After every backup its statistics are those of the model; at every closing the refcounts in the index are the
//! stays counted from the model; garbage collection frees exactly what the model says is garbage; and every backup
//! restores to its disk, whatever happened to the index meanwhile, and after the power failed at any operation.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
#![allow(missing_docs, unreachable_pub, clippy::missing_panics_doc, reason = "a test is no library")]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::common::{
    MemoryImage, Noise, SEGMENT, Told, copy_folder, files_below, name, open, options, restore, small_segments,
};
use ekko::backup::{BackupError, BackupStats, back_up, read_disk};
use ekko::check::{CheckIndex, CheckOptions, ReadData, check_with_index};
use ekko::manifest::{BackupsetId, Incremental};
use ekko::repository::{
    CommittedBackup, Deletion, GcOptions, GcSummary, OpenOptions, Repository, RepositoryError,
    RepositoryWriter, SharedWriter,
};
use ekko::segment::{Fingerprint, SegmentHash};
use ekko::storage::{FaultPlan, FaultStorage, Keep, Storage};
use ekko::store::IndexWriter;

/// The most segments a disk of the model has.
const SEGMENTS: usize = 12;
const NAMES: [&str; 3] = ["web", "db", "mail"];

/// One step: what is done, to which image, where, and with which random numbers.
pub type Step = (u8, u8, u8, u16);

struct Backup {
    image: usize,
    set: BackupsetId,
    incremental: Incremental,
    disk: Vec<u8>,
}

pub struct World {
    folder: tempfile::TempDir,
    /// The repository's folder in it; another one after each power loss.
    life: usize,
    writer: Option<RepositoryWriter>,
    told: Told,
    disks: Vec<Vec<u8>>,
    backups: Vec<Backup>,
    /// Backups that were deleted and can come back.
    deleted: Vec<Backup>,
    /// How many backups each backupset has had.
    made: HashMap<BackupsetId, u32>,
    /// The backupset that the next backup of an image belongs to.
    current: Vec<Option<BackupsetId>>,
    /// What the disk of a backupset was restored from.
    origins: HashMap<BackupsetId, (BackupsetId, Incremental)>,
    stored: HashSet<Fingerprint>,
    old_index: Option<PathBuf>,
    expected_rebuilds: usize,
    /// Whether a power loss may have left freed segments that a new index finds again.
    unsettled: bool,
}

fn segments(disk: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    disk.chunks(SEGMENT)
        .map(|plain| (plain.len() < SEGMENT || plain.iter().any(|byte| *byte != 0)).then_some(plain))
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store-0");
        Repository::init(&root, &small_segments()).unwrap();
        let told = Told::default();
        let writer = Some(open(&root, &told));
        Self {
            folder,
            life: 0,
            writer,
            told,
            disks: vec![Vec::new(); NAMES.len()],
            backups: Vec::new(),
            deleted: Vec::new(),
            made: HashMap::new(),
            current: vec![None; NAMES.len()],
            origins: HashMap::new(),
            stored: HashSet::new(),
            old_index: None,
            expected_rebuilds: 0,
            unsettled: false,
        }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join(format!("store-{}", self.life))
    }

    pub fn step(&mut self, (what, image, place, seed): Step) {
        let image = usize::from(image) % NAMES.len();
        let place = usize::from(place) % SEGMENTS;
        let mut noise = Noise::new(u64::from(seed) + 1);
        match what % 25 {
            0..=4 => self.change(image, place, &mut noise),
            5..=8 => self.backup(image, if seed % 2 == 0 { 4096 } else { SEGMENT }),
            9 => self.reopen(),
            10 => {
                // A crash: nothing is closed in order.
                self.writer = None;
                self.open();
            }
            11 => self.hurt_index(&mut noise),
            12 => {
                self.close();
                let copy = self.folder.path().join("old-index");
                let _ = fs::remove_dir_all(&copy);
                copy_folder(&self.root().join("index"), &copy);
                self.old_index = Some(copy);
                self.open();
            }
            13 => self.put_old_index_back(),
            14 => self.restore_over(image),
            15..=17 => self.delete(&mut noise),
            18 => self.undelete(&mut noise),
            19 | 20 => self.collect(),
            21 => self.rebuild(),
            22 => self.lose_power(usize::from(seed), &mut noise),
            23 => self.back_up_together(),
            _ => self.check_all(),
        }
    }

    /// Changes a disk: bytes, zeros, a copy of another place, its size, or a segment with a twin.
    fn change(&mut self, image: usize, place: usize, noise: &mut Noise) {
        let kind = noise.below(7);
        let other = noise.below(NAMES.len());
        let copy: Vec<u8> =
            self.disks[other].chunks(SEGMENT).nth(noise.below(SEGMENTS)).unwrap_or(&[]).to_vec();
        let disk = &mut self.disks[image];
        let start = (place * SEGMENT).min(disk.len());
        let end = (start + SEGMENT).min(disk.len());
        match kind {
            0 => {
                let size = [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, place * SEGMENT, place * SEGMENT + 77]
                    [noise.below(7)];
                let old = disk.len();
                disk.resize(size, 0);
                if size > old {
                    let new = noise.bytes((size - old).min(SEGMENT));
                    disk[old..old + new.len()].copy_from_slice(&new);
                }
            }
            1 => disk[start..end].fill(0),
            2 => {
                let length = copy.len().min(end - start);
                disk[start..start + length].copy_from_slice(&copy[..length]);
            }
            3 if end - start == SEGMENT => {
                let heads = [
                    &include_bytes!("../data/shattered-1.bin")[..],
                    include_bytes!("../data/shattered-2.bin"),
                ];
                let head = heads[noise.below(2)];
                disk[start..start + head.len()].copy_from_slice(head);
                disk[start + head.len()..end].fill(5);
            }
            4 => {
                // A block of its own, so that the rest of the segment may be a hole.
                disk[start..end].fill(0);
                if end > start {
                    disk[start + noise.below(end - start)] = 1 + noise.byte() % 3;
                }
            }
            _ => {
                if start == end {
                    let size = SEGMENT * (1 + noise.below(SEGMENTS - 1));
                    *disk = noise.bytes(size);
                } else {
                    let at = start + noise.below(end - start);
                    disk[at] = disk[at].wrapping_add(1);
                }
            }
        }
        self.disks[image].truncate(SEGMENTS * SEGMENT);
    }

    /// The disk that the next backup of an image is compared with.
    fn parent(&self, image: usize) -> Option<&[u8]> {
        let set = self.current[image]?;
        let latest =
            self.backups.iter().filter(|backup| backup.set == set).max_by_key(|backup| backup.incremental);
        let origin = || {
            let origin = self.origins.get(&set)?;
            self.backups.iter().find(|backup| (backup.set, backup.incremental) == *origin)
        };
        latest.or_else(origin).map(|backup| backup.disk.as_slice())
    }

    /// Deletes any backup of any chain; what could not be restored otherwise goes on in its place.
    fn delete(&mut self, noise: &mut Noise) {
        if self.backups.is_empty() {
            return;
        }
        let backup = self.backups.swap_remove(noise.below(self.backups.len()));
        let id = Deletion { backupset: backup.set, incremental: backup.incremental };
        let changed = self.writer.as_ref().unwrap().delete(id).unwrap();
        assert!(!changed.replace_index);
        assert!(self.writer.as_ref().unwrap().delete(id).is_err(), "it is not there any longer");
        self.deleted.push(backup);
    }

    fn undelete(&mut self, noise: &mut Noise) {
        if self.deleted.is_empty() {
            return;
        }
        let backup = self.deleted.swap_remove(noise.below(self.deleted.len()));
        let id = Deletion { backupset: backup.set, incremental: backup.incremental };
        let changed = self.writer.as_ref().unwrap().undelete(id).unwrap();
        assert!(!changed.replace_index);
        self.backups.push(backup);
    }

    fn gc(&self, dry_run: bool) -> Result<GcSummary, RepositoryError> {
        let options = GcOptions {
            dry_run,
            now: Some(""),
            keep_unfinished: Some(Duration::ZERO),
            accept_lost: false,
            jobs: 2,
        };
        self.writer.as_ref().unwrap().gc(&options, &self.told)
    }

    /// Collects the garbage: all of it, and nothing else.
    fn collect(&mut self) {
        let named: HashSet<_> = self
            .backups
            .iter()
            .flat_map(|backup| segments(&backup.disk).flatten())
            .map(Fingerprint::of)
            .collect();
        let garbage = self.stored.difference(&named).count() as u64;
        let planned = self.gc(true).unwrap();
        assert_eq!((planned.freed_segments, planned.problems.as_slice()), (garbage, &[][..]));
        let done = self.gc(false).unwrap();
        assert_eq!(done.purged_backups, self.deleted.len() as u64);
        assert_eq!(done.purged_backups, planned.purged_backups);
        assert_eq!((done.freed_segments, done.freed_bytes), (garbage, planned.freed_bytes));
        assert!(!done.replace_index, "{:?}", done.problems);
        self.stored = named;
        self.deleted.clear();
        self.unsettled = false;
        let again = self.gc(false).unwrap();
        assert_eq!((again.freed_segments, again.purged_backups), (0, 0), "a second one finds nothing");
    }

    /// After the index was made anew: what was freed and not given back before a power loss is there again.
    fn settle(&mut self) {
        if !std::mem::take(&mut self.unsettled) {
            return;
        }
        let done = self.gc(false).unwrap();
        assert!(!done.replace_index && done.problems.is_empty(), "{:?}", done.problems);
        self.deleted.clear();
        let named = self.backups.iter().flat_map(|backup| segments(&backup.disk).flatten());
        self.stored = named.map(Fingerprint::of).collect();
    }

    fn rebuild(&mut self) {
        self.close();
        let options = OpenOptions { rebuild: true, ..OpenOptions::default() };
        self.writer = Some(RepositoryWriter::open(&self.root(), &options, &self.told).unwrap());
        self.expected_rebuilds = self.told.rebuilds();
        self.settle();
        self.reopen();
    }

    /// Works on until the power fails at operation `at`, then looks what is left.
    fn lose_power(&mut self, at: usize, noise: &mut Noise) {
        self.close();
        let keep = if at.is_multiple_of(2) { Keep::Nothing } else { Keep::Half };
        let plan = FaultPlan::PowerLoss { at: at as u64 % 120, keep };
        let fault = FaultStorage::new(self.folder.path(), plan).unwrap();
        let storage: Arc<dyn Storage> = Arc::new(fault.clone());
        let opened =
            RepositoryWriter::open_with(&storage, &self.root(), &OpenOptions::default(), &Told::default());
        // What was under way when the power failed may have happened.
        let (mut coming, mut going) = (Vec::new(), None);
        let mut shared = opened.ok().map(SharedWriter::new);
        while let Some(writer) = &shared {
            let image = noise.below(NAMES.len());
            let works = match noise.below(5) {
                0 | 1 => {
                    self.change(image, noise.below(SEGMENTS), noise);
                    let source = MemoryImage::new(&self.disks[image], 4096);
                    let disk = self.disks[image].clone();
                    let made = back_up(writer, &name(NAMES[image]), &source, &options(), &Told::default());
                    if let Ok(summary) = &made {
                        let (set, incremental) = (summary.backup.backupset, summary.backup.incremental);
                        self.backups.push(Backup { image, set, incremental, disk });
                    } else {
                        coming.push((image, disk));
                    }
                    made.is_ok()
                }
                2 => {
                    self.change(image, noise.below(SEGMENTS), noise);
                    let all: Vec<_> = self.disks.iter().cloned().enumerate().collect();
                    let job = |writer: &RepositoryWriter| commit_together(writer, &all);
                    let made = writer.run_job(&Told::default(), |_| false, job).ok();
                    let works = made.is_some();
                    for ((image, disk), made) in all.iter().cloned().zip(made.unwrap_or_default()) {
                        let (set, incremental) = (made.backupset, made.incremental);
                        self.backups.push(Backup { image, set, incremental, disk });
                    }
                    coming = if works { Vec::new() } else { all };
                    works
                }
                3 if !self.backups.is_empty() => {
                    let position = noise.below(self.backups.len());
                    let Backup { set, incremental, .. } = self.backups[position];
                    let deletion = Deletion { backupset: set, incremental };
                    let deleted = writer.with(|writer| writer.delete(deletion)).is_ok();
                    let backup = self.backups.swap_remove(position);
                    if deleted {
                        self.deleted.push(backup);
                    } else {
                        going = Some(backup);
                    }
                    deleted
                }
                _ => {
                    let options = GcOptions {
                        now: Some(""),
                        keep_unfinished: Some(Duration::ZERO),
                        ..GcOptions::default()
                    };
                    writer.with(|writer| writer.gc(&options, &Told::default())).is_ok()
                }
            };
            if !works {
                shared = None;
            }
        }
        fault.lose_power().unwrap();
        // This process may hold the old index still.
        let left = self.root();
        self.life += 1;
        copy_folder(&left, &self.root());
        self.told.clear();
        self.old_index = None;
        self.open();
        self.look_again(&coming, going);
    }

    /// Brings the model into step with what a power loss left: what was acknowledged is there.
    fn look_again(&mut self, coming: &[(usize, Vec<u8>)], going: Option<Backup>) {
        let repository = self.writer.as_ref().unwrap().repository().clone();
        let (sets, problems) = repository.backupsets().unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        let listed = |set: BackupsetId, incremental: Incremental, deleted: bool| {
            let set = sets.iter().find(|other| other.id == set).unwrap();
            let gone = set.deleted.iter().map(|deleted| &deleted.record);
            let list: Vec<_> = if deleted { gone.collect() } else { set.backups.iter().collect() };
            list.iter().any(|record| record.incremental == incremental)
        };
        for backup in &self.backups {
            assert!(listed(backup.set, backup.incremental, false), "an acknowledged backup is gone");
        }
        for backup in &self.deleted {
            assert!(!listed(backup.set, backup.incremental, false), "a deleted backup is there");
        }
        if let Some(backup) = going {
            if listed(backup.set, backup.incremental, false) {
                self.backups.push(backup);
            } else {
                self.deleted.push(backup);
            }
        }
        let mut came = 0;
        for set in &sets {
            for record in &set.backups {
                if !self.backups.iter().any(|it| (it.set, it.incremental) == (set.id, record.incremental)) {
                    let of = |(image, _): &&(usize, Vec<u8>)| set.name.as_str() == NAMES[*image];
                    let (image, disk) = coming.iter().find(of).cloned().unwrap();
                    let incremental = record.incremental;
                    came += 1;
                    self.backups.push(Backup { image, set: set.id, incremental, disk });
                }
            }
            self.made.insert(set.id, set.next_incremental);
        }
        assert!(came == 0 || came == coming.len(), "{came} of {} that come together", coming.len());
        let mut deleted = std::mem::take(&mut self.deleted);
        deleted.retain(|backup| listed(backup.set, backup.incremental, true));
        self.deleted = deleted;
        for (image, name_of) in NAMES.iter().enumerate() {
            self.current[image] = Repository::current_set(&sets, &name(name_of)).map(|set| set.id);
        }
        self.writer.take().unwrap().close().unwrap();
        self.stored = self.indexed().into_keys().collect();
        self.check_refcounts();
        self.open();
        self.expected_rebuilds = self.told.rebuilds();
        self.unsettled = true;
        if self.expected_rebuilds > 0 {
            self.settle();
        }
        self.check_restores();
    }

    /// What backing a disk up must do, by the model.
    fn expected(&self, image: usize) -> BackupStats {
        let disk = &self.disks[image];
        let parent = self.parent(image).unwrap_or(&[]);
        let mut stored = self.stored.clone();
        let mut stats = BackupStats::default();
        let old: Vec<_> = segments(parent).collect();
        for (place, segment) in segments(disk).enumerate() {
            stats.segments += 1;
            let Some(plain) = segment else {
                stats.zero_segments += 1;
                continue;
            };
            stats.used_bytes += plain.len() as u64;
            if old.get(place) == Some(&Some(plain)) {
                stats.unchanged_segments += 1;
            } else if stored.insert(Fingerprint::of(plain)) {
                stats.new_segments += 1;
                stats.new_bytes += plain.len() as u64;
            } else {
                stats.deduplicated_segments += 1;
            }
        }
        stats
    }

    fn backup(&mut self, image: usize, hole: usize) {
        let expected = self.expected(image);
        let source = MemoryImage::new(&self.disks[image], hole);
        let shared = SharedWriter::new(self.writer.take().unwrap());
        let summary = back_up(&shared, &name(NAMES[image]), &source, &options(), &self.told).unwrap();
        self.writer = shared.into_inner();
        let stats = BackupStats {
            stored_bytes: 0,
            read_bytes: 0,
            resumed_segments: 0,
            recalled_segments: 0,
            ..summary.stats
        };
        assert_eq!(stats, expected);
        assert_eq!(summary.stats.read_bytes, source.read.load(Ordering::Relaxed));
        assert_eq!(
            summary.stats.read_bytes,
            source.allocated(),
            "holes are never read, and data is read once"
        );
        self.stored.extend(segments(&self.disks[image]).flatten().map(Fingerprint::of));
        self.was_made(image, &summary.backup);
    }

    fn was_made(&mut self, image: usize, made: &CommittedBackup) {
        let (set, incremental) = (made.backupset, made.incremental);
        self.current[image] = Some(set);
        let made = self.made.entry(set).or_default();
        assert_eq!(incremental.0, *made, "numbers are given in order, and never twice");
        *made += 1;
        self.backups.push(Backup { image, set, incremental, disk: self.disks[image].clone() });
    }

    /// Backs all disks up, and has their backups exist at once.
    fn back_up_together(&mut self) {
        let disks: Vec<_> = self.disks.iter().cloned().enumerate().collect();
        let made = commit_together(self.writer.as_ref().unwrap(), &disks).unwrap();
        for ((image, disk), made) in disks.iter().zip(&made) {
            assert!(!made.replace_index);
            self.stored.extend(segments(disk).flatten().map(Fingerprint::of));
            self.was_made(*image, made);
        }
    }

    fn open(&mut self) {
        self.writer = Some(open(&self.root(), &self.told));
        assert_eq!(self.told.problems(), Vec::<String>::new());
    }

    fn close(&mut self) {
        self.writer.take().unwrap().close().unwrap();
        self.check_refcounts();
    }

    fn reopen(&mut self) {
        self.close();
        self.open();
    }

    fn index_files(&self) -> Vec<PathBuf> {
        files_below(&self.root().join("index"))
            .into_iter()
            .filter(|path| path.metadata().unwrap().len() > 0)
            .collect()
    }

    /// Flips a bit in a file of the index, cuts one short, or removes all of it.
    fn hurt_index(&mut self, noise: &mut Noise) {
        self.close();
        let files = self.index_files();
        let path = &files[noise.below(files.len())];
        let mut bytes = fs::read(path).unwrap();
        match noise.below(3) {
            0 => {
                let at = noise.below(bytes.len());
                bytes[at] ^= 1 << noise.below(8);
                fs::write(path, bytes).unwrap();
            }
            1 => fs::write(path, &bytes[..noise.below(bytes.len())]).unwrap(),
            _ => fs::remove_dir_all(self.root().join("index")).unwrap(),
        }
        self.expected_rebuilds += 1;
        self.open();
        self.settle();
    }

    fn put_old_index_back(&mut self) {
        let Some(old) = self.old_index.take() else { return };
        self.close();
        fs::remove_dir_all(self.root().join("index")).unwrap();
        copy_folder(&old, &self.root().join("index"));
        self.open();
        // Whether it was still the one in use does not matter: everything after this is right either way.
        self.expected_rebuilds = self.told.rebuilds();
        self.settle();
    }

    /// Restores the first backup of an image over it.
    fn restore_over(&mut self, image: usize) {
        let writer = self.writer.as_ref().unwrap();
        let (sets, _) = writer.repository().backupsets().unwrap();
        let Some(set) = Repository::current_set(&sets, &name(NAMES[image])) else { return };
        let Some(backup) = self.backups.iter().find(|backup| backup.set == set.id) else { return };
        let new = writer.begin_set_after_restore(&name(NAMES[image]), set, backup.incremental).unwrap();
        self.disks[image].clone_from(&backup.disk);
        self.current[image] = Some(new);
        self.origins.insert(new, (backup.set, backup.incremental));
        let (sets, _) = writer.repository().backupsets().unwrap();
        let current = Repository::current_set(&sets, &name(NAMES[image])).unwrap();
        assert_eq!(current.id, new);
        assert_eq!(current.bases[0], set_id(backup));
    }

    /// Checks everything: manifests, packs, the index, every byte.
    fn check_all(&mut self) {
        let shared = SharedWriter::new(self.writer.take().unwrap());
        let options = CheckOptions { read_data: ReadData::None, jobs: 2 };
        let checked = check_with_index(&shared, &options, false, &self.told).unwrap();
        assert!(checked.is_clean(), "{:?} {:?}", checked.problems, checked.damaged);
        assert_eq!(checked.index, CheckIndex::Agrees);
        self.writer = shared.into_inner();
        self.check_restores();
    }

    fn check_restores(&self) {
        let repository = Repository::open(&self.root()).unwrap();
        let (sets, problems) = repository.backupsets().unwrap();
        assert!(problems.is_empty());
        // What the process that writes has in memory is what the files say.
        if let Some(writer) = &self.writer {
            let kept = writer.repository().backupsets_named("").unwrap().0;
            assert!(kept.iter().map(AsRef::as_ref).eq(&sets));
        }
        let options = CheckOptions { read_data: ReadData::All, jobs: 2 };
        let checked = ekko::check::check(&repository, &options, &self.told).unwrap();
        assert!(checked.is_clean(), "{:?} {:?}", checked.problems, checked.damaged);
        assert_eq!(sets.iter().map(|set| set.backups.len()).sum::<usize>(), self.backups.len());
        for backup in &self.backups {
            let set = sets.iter().find(|set| set.id == backup.set).unwrap();
            let record = set.backups.iter().find(|record| record.incremental == backup.incremental).unwrap();
            let (restored, summary) = restore(&repository, set, record);
            assert!(summary.damaged.is_empty(), "{:?}", summary.damaged);
            assert!(restored == backup.disk, "{}@{} differs", NAMES[backup.image], backup.incremental);
            let hashes: Vec<_> = segments(&backup.disk).flatten().map(SegmentHash::of).collect();
            let manifest = repository.manifest(set, record).unwrap();
            let listed: Vec<_> = manifest.segments().map(|(_, segment)| segment.key.hash).collect();
            assert_eq!(listed, hashes);
        }
    }

    /// Compares the refcounts in the index, which is closed, with the stays of the model.
    fn check_refcounts(&self) {
        let mut expected: HashMap<Fingerprint, u64> = self.stored.iter().map(|stored| (*stored, 0)).collect();
        let sets: HashSet<_> = self.backups.iter().map(|backup| backup.set).collect();
        for set in sets {
            let mut chain: Vec<_> = self.backups.iter().filter(|backup| backup.set == set).collect();
            chain.sort_by_key(|backup| backup.incremental);
            let chain: Vec<Vec<_>> = chain
                .into_iter()
                .map(|backup| segments(&backup.disk).map(|segment| segment.map(Fingerprint::of)).collect())
                .collect();
            for place in 0..SEGMENTS {
                let mut before = None;
                for backup in &chain {
                    let here = backup.get(place).copied().flatten();
                    if let Some(fingerprint) = here.filter(|_| here != before) {
                        *expected.get_mut(&fingerprint).unwrap() += 1;
                    }
                    before = here;
                }
            }
        }
        assert_eq!(self.indexed(), expected);
    }

    /// Returns what the index, which is closed, holds.
    fn indexed(&self) -> HashMap<Fingerprint, u64> {
        let copy = tempfile::tempdir_in(self.folder.path()).unwrap();
        copy_folder(&self.root().join("index"), copy.path());
        let number = fs::read_dir(copy.path()).unwrap().next().unwrap().unwrap().path();
        let index = IndexWriter::open(&number).unwrap();
        index.verify_sum().unwrap();
        let mut found = HashMap::new();
        index
            .index()
            .segments(|_, entry| assert!(found.insert(entry.fingerprint(), entry.refcount).is_none()))
            .unwrap();
        index.close().unwrap();
        found
    }
}

/// Backs disks up, of images by their numbers, and has the backups exist at once.
fn commit_together(
    writer: &RepositoryWriter,
    disks: &[(usize, Vec<u8>)],
) -> Result<Vec<CommittedBackup>, BackupError> {
    let mut drafts = Vec::new();
    for (image, disk) in disks {
        let draft = writer.begin_backup(&name(NAMES[*image]), disk.len() as u64)?;
        let read = read_disk(writer, draft, &MemoryImage::new(disk, 4096), &options(), &Told::default())?;
        drafts.push(read.draft);
    }
    Ok(writer.commit_all(drafts)?)
}

fn set_id(backup: &Backup) -> BackupsetId {
    backup.set
}

/// Takes steps in a new world, and checks all of it at the end.
pub fn holds(steps: &[Step]) {
    let mut world = World::new();
    for step in steps {
        world.step(*step);
    }
    world.close();
    world.check_restores();
    assert_eq!(
        world.told.rebuilds(),
        world.expected_rebuilds,
        "an index is rebuilt when it was hurt, and only then"
    );
}
