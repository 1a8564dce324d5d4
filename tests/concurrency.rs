//! Several jobs at once in one process: the table of `docs/gc.md`, pair by pair, and all of them together.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use common::{MemoryImage, Noise, SEGMENT, Told, name, open, options, restore, small_segments};
use ekko::backup::{SegmentWriter, back_up};
use ekko::check::{CheckIndex, CheckOptions, ReadData, VerifyOptions, check, check_with_index, verify};
use ekko::manifest::{BackupsetId, BaseIndex, Incremental, SegmentRef};
use ekko::progress::{Notice, Progress, Silent};
use ekko::repository::{
    Changed, Deletion, GcOptions, GcSummary, Protection, Repository, RepositoryError, SharedWriter,
};
use ekko::segment::{Fingerprint, SegmentHash, SegmentIndex};

const GC: GcOptions<'static> = GcOptions {
    dry_run: false,
    now: Some(""),
    keep_unfinished: Some(Duration::ZERO),
    accept_lost: false,
    jobs: 1,
};

fn gc(writer: &SharedWriter) -> GcSummary {
    let replace = |summary: &GcSummary| summary.replace_index;
    writer.run_job(&Silent, replace, |writer| writer.gc(&GC, &Silent)).unwrap()
}

fn delete(writer: &SharedWriter, backup: Deletion) -> Result<Changed, RepositoryError> {
    writer.run_job(&Silent, |changed: &Changed| changed.replace_index, |writer| writer.delete(backup))
}

/// A backup that was acknowledged, and its disk.
type Known = Mutex<HashMap<(BackupsetId, Incremental), Vec<u8>>>;

fn back(writer: &SharedWriter, image: &str, disk: &[u8], known: &Known) -> Deletion {
    let summary = back_up(writer, &name(image), &MemoryImage::new(disk, 4096), &options(), &Silent).unwrap();
    let (backupset, incremental) = (summary.backup.backupset, summary.backup.incremental);
    known.lock().unwrap().insert((backupset, incremental), disk.to_vec());
    Deletion { backupset, incremental }
}

/// Checks everything: manifests, packs, index, every byte, and that every backup is the disk that it was made of.
fn holds(writer: &SharedWriter, known: &Known, case: &str) {
    let options = CheckOptions { read_data: ReadData::All, jobs: 2 };
    let checked = check_with_index(writer, &options, false, &Silent).unwrap();
    assert!(checked.is_clean(), "{case}: {:?} {:?}", checked.problems, checked.damaged);
    assert_eq!(checked.index, CheckIndex::Agrees, "{case}");
    let (sets, problems) = writer.repository().backupsets().unwrap();
    assert!(problems.is_empty(), "{case}: {problems:?}");
    let known = known.lock().unwrap();
    let mut found = 0;
    for (set, record) in sets.iter().flat_map(|set| set.backups.iter().map(move |record| (set, record))) {
        let (bytes, summary) = restore(writer.repository(), set, record);
        assert!(summary.damaged.is_empty(), "{case}: {:?}", summary.damaged);
        assert!(bytes == known[&(set.id, record.incremental)], "{case}: a backup differs");
        found += 1;
    }
    assert_eq!(found, known.len(), "{case}: every acknowledged backup is there, and no other");
}

/// A repository with two days of two disks that share segments, and a deleted backup.
struct Scene {
    _folder: tempfile::TempDir,
    writer: SharedWriter,
    known: Known,
    web: Vec<u8>,
    doomed: Deletion,
    deleted: Deletion,
    kept: Deletion,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        Repository::init(&root, &small_segments()).unwrap();
        let writer = SharedWriter::new(open(&root, &Told::default()));
        let known = Known::default();
        let mut noise = Noise::new(5);
        let mut web = noise.bytes(6 * SEGMENT);
        let doomed = back(&writer, "web", &web, &known);
        web[..SEGMENT].copy_from_slice(&noise.bytes(SEGMENT));
        let deleted = back(&writer, "web", &web, &known);
        web[SEGMENT..2 * SEGMENT].copy_from_slice(&noise.bytes(SEGMENT));
        let kept = back(&writer, "web", &web, &known);
        let db = [&web[3 * SEGMENT..], &noise.bytes(2 * SEGMENT)].concat();
        back(&writer, "db", &db, &known);
        delete(&writer, deleted).unwrap();
        Self { _folder: folder, writer, known, web, doomed, deleted, kept }
    }

    fn forget(&self, backup: Deletion) -> Option<Vec<u8>> {
        self.known.lock().unwrap().remove(&(backup.backupset, backup.incremental))
    }

    fn kept_manifest(&self) -> ekko::manifest::ManifestReader {
        let (sets, _) = self.writer.repository().backupsets().unwrap();
        let set = sets.iter().find(|set| set.id == self.kept.backupset).unwrap();
        let record = set.backups.iter().find(|it| it.incremental == self.kept.incremental).unwrap();
        self.writer.repository().manifest(set, record).unwrap()
    }

    fn run(&self, job: Job, seed: u64) {
        let writer = &self.writer;
        match job {
            Job::BackUpSame => {
                let mut disk = self.web.clone();
                // What the deleted backup alone had comes back, and something new.
                disk[5 * SEGMENT..].copy_from_slice(&Noise::new(seed).bytes(SEGMENT));
                back(writer, "web", &disk, &self.known);
            }
            Job::BackUpOther => {
                let deleted = self
                    .known
                    .lock()
                    .unwrap()
                    .get(&(self.deleted.backupset, self.deleted.incremental))
                    .cloned();
                let disk = deleted.unwrap_or_else(|| self.web.clone());
                back(writer, &format!("other-{seed}"), &disk, &self.known);
            }
            Job::Delete => {
                if delete(writer, self.doomed).is_ok() {
                    self.forget(self.doomed);
                }
            }
            Job::Undelete => {
                let replace = |changed: &Changed| changed.replace_index;
                match writer.run_job(&Silent, replace, |writer| writer.undelete(self.deleted)) {
                    Ok(_) => {}
                    // A collection was first.
                    Err(RepositoryError::NoSuchBackup { .. }) => drop(self.forget(self.deleted)),
                    Err(error) => panic!("{error}"),
                }
            }
            Job::Collect => drop(gc(writer)),
            Job::Restore => {
                let mut bytes = Vec::new();
                let options = ekko::restore::RestoreOptions {
                    jobs: 2,
                    sync: false,
                    ..ekko::restore::RestoreOptions::default()
                };
                let manifest = self.kept_manifest();
                let repository = writer.repository();
                let summary =
                    ekko::restore::restore_to_stream(repository, &manifest, &mut bytes, &options, &Silent);
                assert!(summary.unwrap().damaged.is_empty());
                assert!(bytes == self.web);
            }
            Job::Check => {
                let options = CheckOptions { read_data: ReadData::All, jobs: 2 };
                let checked = check(writer.repository(), &options, &Silent).unwrap();
                assert!(checked.is_clean(), "{:?} {:?}", checked.problems, checked.damaged);
            }
            Job::CheckIndex => {
                let options = CheckOptions { read_data: ReadData::None, jobs: 2 };
                let checked = check_with_index(writer, &options, false, &Silent).unwrap();
                assert!(checked.is_clean(), "{:?} {:?}", checked.problems, checked.damaged);
            }
            Job::Verify => {
                let image = MemoryImage::new(&self.web, 4096);
                let options = VerifyOptions { jobs: 2 };
                let summary =
                    verify(writer.repository(), &self.kept_manifest(), &image, &options, &Silent).unwrap();
                assert_eq!((summary.differing.as_slice(), summary.unknown_segments), (&[][..], 0));
            }
            Job::Describe => {
                writer.with(|writer| writer.protect(self.kept, Protection::Always, false)).unwrap();
                writer.with(|writer| writer.protect(self.kept, Protection::None, false)).unwrap();
            }
            Job::List => {
                let (sets, problems) = writer.repository().backupsets().unwrap();
                assert!(problems.is_empty() && !sets.is_empty());
                writer.repository().statistics(&Silent).unwrap();
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    BackUpSame,
    BackUpOther,
    Delete,
    Undelete,
    Collect,
    Restore,
    Check,
    CheckIndex,
    Verify,
    Describe,
    List,
}

const JOBS: [Job; 11] = [
    Job::BackUpSame,
    Job::BackUpOther,
    Job::Delete,
    Job::Undelete,
    Job::Collect,
    Job::Restore,
    Job::Check,
    Job::CheckIndex,
    Job::Verify,
    Job::Describe,
    Job::List,
];

/// Runs something once, at a moment at which a job looks whether it is to end.
struct Between<'a> {
    left: AtomicU64,
    then: &'a (dyn Fn() + Sync),
}

impl Progress for Between<'_> {
    fn is_cancelled(&self) -> bool {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        if left == 0 {
            (self.then)();
        }
        false
    }
}

#[test]
fn an_undelete_at_any_moment_of_a_collection_brings_the_backup_back_or_finds_none() {
    let mut outcomes = Vec::new();
    for moment in 0.. {
        let scene = Scene::new();
        let done = Mutex::new(None);
        let undelete = || {
            let result = scene.writer.with(|writer| writer.undelete(scene.deleted));
            *done.lock().unwrap() = Some(match result {
                Ok(_) => true,
                Err(RepositoryError::NoSuchBackup { .. }) => false,
                Err(error) => panic!("{error}"),
            });
        };
        let between = Between { left: AtomicU64::new(moment), then: &undelete };
        let collected = scene.writer.with(|writer| writer.gc(&GC, &between)).unwrap();
        let Some(is_back) = done.lock().unwrap().take() else {
            // After the last moment it is too late.
            undelete();
            outcomes.extend(done.into_inner().unwrap());
            break;
        };
        let case = format!("at moment {moment}");
        // A collection that finds it undeleted frees nothing, and says so.
        assert_eq!(
            (collected.problems.len(), collected.purged_backups),
            if is_back { (1, 0) } else { (0, 1) }
        );
        if !is_back {
            scene.forget(scene.deleted);
        }
        outcomes.push(is_back);
        holds(&scene.writer, &scene.known, &case);
        gc(&scene.writer);
        holds(&scene.writer, &scene.known, &case);
    }
    assert!(outcomes.contains(&true) && outcomes.contains(&false), "{outcomes:?}");
}

#[test]
fn every_two_jobs_run_at_once_and_everything_is_whole_after() {
    for (at, one) in JOBS.into_iter().enumerate() {
        for other in JOBS.into_iter().skip(at) {
            // Two backups of one disk at once are refused, by a test of their own.
            if one == other && one == Job::BackUpSame {
                continue;
            }
            let scene = Scene::new();
            let undeleted = [one, other].contains(&Job::Undelete);
            if !undeleted {
                scene.forget(scene.deleted);
            }
            let barrier = Barrier::new(2);
            std::thread::scope(|scope| {
                for (seed, job) in [(1, one), (2, other)] {
                    let (scene, barrier) = (&scene, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        scene.run(job, seed);
                    });
                }
            });
            // An undelete before a deletion of another, or after a collection: what is listed counts.
            if one == Job::Undelete && other == Job::Undelete {
                scene
                    .known
                    .lock()
                    .unwrap()
                    .entry((scene.deleted.backupset, scene.deleted.incremental))
                    .or_insert_with(|| {
                        let mut first = Noise::new(5);
                        let mut disk = first.bytes(6 * SEGMENT);
                        disk[..SEGMENT].copy_from_slice(&first.bytes(SEGMENT));
                        disk
                    });
            }
            holds(&scene.writer, &scene.known, &format!("{one:?} beside {other:?}"));
            gc(&scene.writer);
            holds(&scene.writer, &scene.known, &format!("{one:?} beside {other:?}, and a collection"));
            scene.writer.close().unwrap();
        }
    }
}

#[test]
fn a_second_backup_of_a_disk_at_the_same_time_is_refused() {
    let scene = Scene::new();
    let writer = scene.writer.into_inner().unwrap();
    let first = writer.begin_backup(&name("web"), 100).unwrap();
    let second = writer.begin_backup(&name("web"), 100).unwrap_err();
    assert!(matches!(second, RepositoryError::BackupRunning { .. }), "{second}");
    writer.begin_backup(&name("db"), 100).unwrap();
    drop(first);
    writer.begin_backup(&name("web"), 100).unwrap();
}

/// A backup takes a segment for stored that another one stored, which then gives up; a collection runs between.
#[test]
fn what_a_backup_found_stays_though_the_one_that_stored_it_gave_up() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    Repository::init(&root, &small_segments()).unwrap();
    let writer = open(&root, &Told::default());
    let plain = Noise::new(9).bytes(SEGMENT);
    let (hash, fingerprint) = (SegmentHash::of(&plain), Fingerprint::of(&plain));
    let compression = options().compression;
    let first = writer.begin_backup(&name("first"), SEGMENT as u64).unwrap();
    let mut segments = SegmentWriter::new(writer.store(), first.job(), compression, &Silent).unwrap();
    assert!(segments.put(&plain, hash, fingerprint).unwrap().stored_bytes.is_some());
    // It seals the pack, so that what is stored from now on lies in another one.
    assert_eq!(writer.gc(&GC, &Silent).unwrap().freed_segments, 0, "it runs");
    let second = writer.begin_backup(&name("second"), SEGMENT as u64).unwrap();
    let mut segments = SegmentWriter::new(writer.store(), second.job(), compression, &Silent).unwrap();
    let put = segments.put(&plain, hash, fingerprint).unwrap();
    assert_eq!(put.stored_bytes, None);
    drop(first);
    assert_eq!(writer.gc(&GC, &Silent).unwrap().freed_segments, 0, "the second one found it");
    let mut manifest = writer.create_manifest(&second).unwrap();
    let segment = SegmentRef { key: put.key, incremental: Incremental(0), base: BaseIndex(0) };
    manifest.push(SegmentIndex(0), &segment).unwrap();
    writer.commit(second, manifest).unwrap();
    assert_eq!(writer.gc(&GC, &Silent).unwrap().freed_segments, 0);
    let (sets, _) = writer.repository().backupsets().unwrap();
    let set = Repository::current_set(&sets, &name("second")).unwrap();
    assert!(restore(writer.repository(), set, &set.backups[0]).0 == plain);
}

/// Four backups, a collection and a deletion, each in a loop. `EKKO_SOAK` is for how many seconds; without it they
/// run for so many rounds.
#[test]
fn backups_deletions_and_collections_in_loops_lose_nothing() {
    let seconds = std::env::var("EKKO_SOAK").ok().map(|text| text.parse().unwrap());
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    Repository::init(&root, &small_segments()).unwrap();
    let writer = SharedWriter::new(open(&root, &Told::default()));
    let known = Known::default();
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let (freed, deleted) = (AtomicU64::new(0), AtomicU64::new(0));
    let shared = Noise::new(1).bytes(8 * SEGMENT);
    std::thread::scope(|scope| {
        let backups: Vec<_> = (0..4)
            .map(|number| {
                let (writer, known, shared, rounds) = (&writer, &known, &shared, &rounds);
                scope.spawn(move || {
                    let mut noise = Noise::new(number + 10);
                    let mut disk = shared.clone();
                    for round in 0_u64.. {
                        if end.map_or(round == 12, |end| Instant::now() >= end) {
                            return;
                        }
                        let place = noise.below(8);
                        // What others have, or had, or nobody.
                        let new = match noise.below(3) {
                            0 => shared[place * SEGMENT..(place + 1) * SEGMENT].to_vec(),
                            1 => Noise::new(100 + noise.below(6) as u64).bytes(SEGMENT),
                            _ => noise.bytes(SEGMENT),
                        };
                        disk[place * SEGMENT..(place + 1) * SEGMENT].copy_from_slice(&new);
                        back(writer, &format!("disk-{number}"), &disk, known);
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                freed.fetch_add(gc(&writer).freed_segments, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            let mut noise = Noise::new(77);
            while !stop.load(Ordering::Acquire) {
                let mut there: Vec<_> = known.lock().unwrap().keys().copied().collect();
                there.sort_unstable();
                if there.len() < 6 {
                    std::thread::yield_now();
                    continue;
                }
                let (backupset, incremental) = there[noise.below(there.len())];
                delete(&writer, Deletion { backupset, incremental }).unwrap();
                known.lock().unwrap().remove(&(backupset, incremental));
                deleted.fetch_add(1, Ordering::Relaxed);
            }
        });
        for backup in backups {
            backup.join().unwrap();
        }
        stop.store(true, Ordering::Release);
    });
    holds(&writer, &known, "after all loops");
    freed.fetch_add(gc(&writer).freed_segments, Ordering::Relaxed);
    holds(&writer, &known, "after the last collection");
    assert!(freed.into_inner() > 0 && deleted.into_inner() > 0, "something was freed under way");
    writer.close().unwrap();
    let writer = SharedWriter::new(open(Path::new(&root), &Told::default()));
    holds(&writer, &known, "opened again");
}

/// Is cancelled from the moment on at which it was asked so often.
struct CancelledAt(AtomicU64);

impl Progress for CancelledAt {
    fn is_cancelled(&self) -> bool {
        let left = self.0.load(Ordering::Acquire);
        left == 0 || self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

#[test]
fn a_collection_that_is_cancelled_at_any_moment_leaves_all_whole_and_the_next_one_finishes_it() {
    let scene = Scene::new();
    scene.forget(scene.deleted);
    delete(&scene.writer, scene.doomed).unwrap();
    scene.forget(scene.doomed);
    let expected =
        scene.writer.with(|writer| writer.gc(&GcOptions { dry_run: true, ..GC }, &Silent)).unwrap();
    assert!(expected.freed_segments > 0);
    let (mut freed, mut cancelled) = (0, 0);
    for moment in 1.. {
        let progress = CancelledAt(AtomicU64::new(moment));
        let summary = scene.writer.with(|writer| writer.gc(&GC, &progress)).unwrap();
        assert!(summary.problems.is_empty() && !summary.replace_index, "{moment}: {:?}", summary.problems);
        freed += summary.freed_segments;
        holds(&scene.writer, &scene.known, &format!("cancelled when asked the {moment}. time"));
        if !summary.cancelled {
            break;
        }
        cancelled += 1;
    }
    assert!(cancelled >= 4, "{cancelled}: before the list, the proof, the freeing");
    assert_eq!(freed, expected.freed_segments);
}

#[test]
fn a_check_that_is_cancelled_says_nothing_and_changes_nothing() {
    let scene = Scene::new();
    scene.forget(scene.deleted);
    let options = CheckOptions { read_data: ReadData::All, jobs: 1 };
    let mut cancelled = 0;
    for moment in 1.. {
        let progress = CancelledAt(AtomicU64::new(moment));
        let summary = check_with_index(&scene.writer, &options, true, &progress).unwrap();
        assert!(summary.is_clean() && summary.quarantined_segments == 0, "{moment}: {:?}", summary.damaged);
        if !summary.cancelled {
            assert!(summary.backups > 0);
            break;
        }
        assert_eq!((summary.backups, summary.segments), (0, 0));
        cancelled += 1;
    }
    assert!(cancelled > 2, "{cancelled}");
    holds(&scene.writer, &scene.known, "after cancelled checks");
}

/// Waits at its first notice until it may go on.
struct Halts {
    reached: Barrier,
    go_on: Barrier,
    has_halted: AtomicBool,
}

impl Progress for Halts {
    fn notice(&self, _: Notice) {
        if !self.has_halted.swap(true, Ordering::AcqRel) {
            self.reached.wait();
            self.go_on.wait();
        }
    }
}

#[test]
fn whether_changes_are_taken_is_said_while_the_index_is_made_anew() {
    let scene = Scene::new();
    scene.forget(scene.deleted);
    scene.writer.readiness().unwrap();
    let halts =
        Halts { reached: Barrier::new(2), go_on: Barrier::new(2), has_halted: AtomicBool::new(false) };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let replace = |(): &()| true;
            scene.writer.run_job::<_, RepositoryError>(&halts, replace, |_| Ok(())).unwrap();
        });
        halts.reached.wait();
        // This does not wait: nobody could go on.
        let error = scene.writer.readiness().unwrap_err();
        assert!(matches!(error, RepositoryError::IndexBeingReplaced { .. }), "{error}");
        halts.go_on.wait();
    });
    scene.writer.readiness().unwrap();
    holds(&scene.writer, &scene.known, "after a new index");
}
