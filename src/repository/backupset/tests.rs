//! How lists of backups begin, how long they get, and what a failure leaves of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::backup::{BackupError, BackupOptions, BackupSummary, back_up};
use crate::check::{CheckIndex, CheckOptions, ReadData, check_with_index};
use crate::codec::CompressionSetting;
use crate::image::{Extent, Image, ImageError};
use crate::machine::{
    Attachment, FileName, MachineBackup, MachineError, MachineOptions, MachineSource, back_up_machine,
};
use crate::progress::{Notice, Progress, Silent};
use crate::repository::settings::SETTINGS_LIMIT;
use crate::repository::{
    Changed, Deletion, GcOptions, GcSummary, InitOptions, OpenOptions, RepositoryWriter, SharedWriter,
};
use crate::segment::{SegmentHash, SegmentSize};
use crate::storage::OsStorage;

/// A disk of two segments, of which the second cannot be read.
#[derive(Debug)]
struct Disk {
    fails: bool,
}

const SEGMENT: u64 = 64 << 10;

impl Image for Disk {
    fn path(&self) -> &Path {
        Path::new("disk")
    }

    fn size(&self) -> u64 {
        2 * SEGMENT
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        let length = self.size().saturating_sub(from);
        Ok((length > 0).then_some(Extent { offset: from, length }))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        if self.fails && offset + buffer.len() as u64 > SEGMENT {
            return Err(ImageError::ShortRead { path: PathBuf::from("disk"), offset, missing: SEGMENT });
        }
        buffer.fill(7);
        Ok(())
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        Ok(())
    }
}

struct World {
    _folder: tempfile::TempDir,
    writer: SharedWriter,
}

fn options() -> BackupOptions {
    BackupOptions::new(CompressionSetting::default(), 1)
}

fn name(text: &str) -> ImageName {
    ImageName::new(text).unwrap()
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let segment_size = SegmentSize::new(SEGMENT).unwrap();
        Repository::init(&path, &InitOptions { segment_size, ..InitOptions::default() }).unwrap();
        let writer = RepositoryWriter::open(&path, &OpenOptions::default(), &Silent).unwrap();
        Self { _folder: folder, writer: SharedWriter::new(writer) }
    }

    fn back_up(&self, image: &str, fails: bool) -> Result<BackupSummary, BackupError> {
        back_up(&self.writer, &name(image), &Disk { fails }, &options(), &Silent)
    }

    fn repository(&self) -> &Repository {
        self.writer.repository()
    }

    fn set(&self, image: &str) -> Backupset {
        let (sets, problems) = self.repository().backupsets().unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        Repository::current_set(&sets, &name(image)).unwrap().clone()
    }

    /// Every file and folder of the manifests.
    fn left(&self) -> Vec<PathBuf> {
        let sets = self.repository().layout().sets();
        let folders: Vec<_> = fs::read_dir(&sets).unwrap().map(|entry| entry.unwrap().path()).collect();
        let within = |folder: &PathBuf| fs::read_dir(folder).map(|it| it.map(|entry| entry.unwrap().path()));
        let files: Vec<_> = folders.iter().filter_map(|it| within(it).ok()).flatten().collect();
        folders.into_iter().chain(files).collect()
    }

    fn delete(&self, backup: Deletion) -> Result<(), RepositoryError> {
        self.writer.run_job(&Silent, |_| false, |writer| writer.delete(backup)).map(drop)
    }

    fn gc(&self) -> GcSummary {
        let options = GcOptions { now: Some(""), ..GcOptions::default() };
        self.writer.run_job(&Silent, |_| false, |writer| writer.gc(&options, &Silent)).unwrap()
    }
}

#[test]
fn a_backup_that_fails_leaves_no_name_no_folder_and_no_file() {
    let world = World::new();
    assert!(world.back_up("typo", true).is_err());
    assert_eq!(world.left(), Vec::<PathBuf>::new());
    world.back_up("web", false).unwrap();
    let before = world.left();
    assert!(world.back_up("web", true).is_err());
    assert_eq!(world.left(), before, "nor of a name that has backups");
    // A machine's first moment, of which the second disk fails.
    let disk =
        |disk, fails| MachineSource { name: name(disk), image: Box::new(Disk { fails }), options: options() };
    let sources = vec![disk("m/a", false), disk("m/b", true)];
    let how = MachineOptions { at_once: 1, moment: options() };
    let machine = MachineBackup::new(name("m"), sources, Vec::new(), how, &|| {}).unwrap();
    let error = back_up_machine(&world.writer, &machine, &Silent).unwrap_err();
    assert!(matches!(error, MachineError::Disk { .. }), "{error}");
    assert_eq!(world.left(), before);
    // Files that are too large are refused before the disk is read, which would fail.
    let sources = vec![disk("m/b", true)];
    let bytes = vec![0; 1 + usize::try_from(crate::machine::ATTACHED_LIMIT).unwrap()];
    let attached = vec![Attachment { name: FileName::new("a").unwrap(), bytes }];
    let how = MachineOptions { at_once: 1, moment: options() };
    let machine = MachineBackup::new(name("m"), sources, attached, how, &|| {}).unwrap();
    let error = back_up_machine(&world.writer, &machine, &Silent).unwrap_err();
    assert!(matches!(error, MachineError::TooLarge { .. }), "{error}");
    assert_eq!(world.left(), before);
    // A draft that is dropped before anything is read.
    world.writer.with(|writer| writer.begin_backup(&name("other"), 1).map(drop)).unwrap();
    assert_eq!(world.left(), before);
    world.back_up("typo", false).unwrap();
    assert_eq!(world.set("typo").backups.len(), 1);
}

#[test]
fn one_first_backup_of_a_name_is_made_at_a_time_and_nobody_else_takes_the_name() {
    let world = World::new();
    world.back_up("old", false).unwrap();
    world
        .writer
        .with(|writer| {
            let draft = writer.begin_backup(&name("web"), 1)?;
            let busy = |error: RepositoryError| {
                assert!(matches!(error, RepositoryError::BackupRunning { .. }), "{error}");
            };
            busy(writer.begin_backup(&name("web"), 1).unwrap_err());
            busy(writer.rename(&name("old"), &name("web")).unwrap_err());
            let mut info = draft.info().clone();
            info.backupset = BackupsetId::random();
            busy(writer.begin_import(&name("web"), &info).unwrap_err());
            drop(draft);
            writer.begin_import(&name("web"), &info)?;
            writer.rename(&name("old"), &name("web")).map(drop)
        })
        .unwrap();
    assert_eq!(world.set("web").backups.len(), 1);
}

#[test]
fn a_backupset_that_a_crash_left_without_a_backup_is_not_seen_and_goes_at_the_next_opening() {
    let world = World::new();
    world.back_up("web", false).unwrap();
    let layout = world.repository().layout().clone();
    let at = jiff::Timestamp::UNIX_EPOCH;
    // Settings alone, settings with a manifest that was named, a marker, an empty folder.
    let first = Backupset::new(BackupsetId::random(), name("first"), at);
    first.create(&OsStorage, &layout).unwrap();
    let second = Backupset::new(BackupsetId::random(), name("web"), crate::time::now());
    second.create(&OsStorage, &layout).unwrap();
    fs::write(layout.manifest(second.id, Incremental(0)), b"manifest").unwrap();
    let (third, fourth) = (BackupsetId::random(), BackupsetId::random());
    fs::create_dir(layout.set(third)).unwrap();
    fs::write(layout.newborn(third), b"").unwrap();
    fs::create_dir(layout.set(fourth)).unwrap();
    // One of which backups existed, one that a restore began, one whose settings are gone: they stay.
    let emptied = Backupset { next_incremental: 1, ..Backupset::new(BackupsetId::random(), name("e"), at) };
    emptied.create(&OsStorage, &layout).unwrap();
    let origin = Some(Origin { backupset: emptied.id, incremental: Incremental(0) });
    let restored = Backupset { origin, ..Backupset::new(BackupsetId::random(), name("r"), at) };
    restored.create(&OsStorage, &layout).unwrap();
    let lost = BackupsetId::random();
    fs::create_dir(layout.set(lost)).unwrap();
    fs::write(layout.manifest(lost, Incremental(0)), b"manifest").unwrap();

    let names = |repository: &Repository| {
        let (sets, problems) = repository.backupsets().unwrap();
        (sets.iter().map(|set| set.name.to_string()).collect::<Vec<_>>(), problems.len())
    };
    assert_eq!(names(world.repository()), (vec!["e".into(), "r".into(), "web".into()], 1));
    let (sets, _) = world.repository().backupsets().unwrap();
    assert_eq!(Repository::current_set(&sets, &name("web")).unwrap().backups.len(), 1);
    let World { _folder, writer } = world;
    writer.close().unwrap();
    let writer = RepositoryWriter::open(layout.root(), &OpenOptions::default(), &Silent).unwrap();
    for gone in [first.id, second.id, third, fourth] {
        assert!(!layout.set(gone).exists());
    }
    for stays in [emptied.id, restored.id, lost] {
        assert!(layout.set(stays).exists());
    }
    assert_eq!(names(writer.repository()).0, ["e", "r", "web"]);
}

#[test]
fn a_long_list_takes_no_new_backup_and_everything_that_shortens_it_works() {
    let world = World::new();
    for _ in 0..3 {
        world.back_up("web", false).unwrap();
    }
    let mut set = world.set("web");
    let [oldest, kept, newest] =
        [0, 1, 2].map(|number| Deletion { backupset: set.id, incremental: set.backups[number].incremental });
    let fill = |set: &mut Backupset, bytes: u64| {
        set.backups[0].suspect = None;
        let room = bytes - set.text(world.repository().layout()).unwrap().len() as u64;
        // The key, the quotes and the end of the line.
        set.backups[0].suspect = Some("x".repeat(usize::try_from(room).unwrap() - 13));
        set.write(&OsStorage, world.repository().layout()).unwrap();
    };
    let path = world.repository().layout().set_settings(set.id);
    let length = || fs::metadata(&path).unwrap().len();
    fill(&mut set, NEW_BACKUPS_LIMIT);
    assert_eq!(length(), NEW_BACKUPS_LIMIT);
    world.back_up("web", false).unwrap();
    // One more is refused before anything is read or stored.
    let error = world.back_up("web", false).unwrap_err();
    let refused = matches!(error, BackupError::Repository(RepositoryError::ListFull { .. }));
    assert!(refused && error.to_string().contains("ekko forget"), "{error}");
    world.back_up("other", false).unwrap();
    world.writer.with(|writer| writer.protect(kept, Protection::Always, false)).unwrap();
    world.delete(newest).unwrap();
    world.writer.run_job(&Silent, |_| false, |writer| writer.undelete(newest)).unwrap();
    // No file is written that is not read again, and the failure costs nothing but itself.
    let mut set = world.set("web");
    fill(&mut set, SETTINGS_LIMIT - 20);
    let until = Protection::Until("2027-01-01T00:00:00Z".parse().unwrap());
    let error = world.writer.with(|writer| writer.protect(newest, until, false)).unwrap_err();
    assert!(matches!(error, RepositoryError::TooLong { .. }), "{error}");
    assert_eq!(length(), SETTINGS_LIMIT - 20);
    // The list says when a backup was deleted.
    fill(&mut set, SETTINGS_LIMIT - 200);
    world.delete(oldest).unwrap();
    assert_eq!(world.gc().purged_backups, 1);
    assert!(length() < 4096);
    world.back_up("web", false).unwrap();
    assert_eq!(world.set("web").backups.len(), 4);
}

#[test]
fn a_lost_clock_goes_on_from_the_last_deletion_of_any_disk_so_no_period_ends_early() {
    let world = World::new();
    for image in ["web", "db", "db"] {
        world.back_up(image, false).unwrap();
    }
    // A year has been counted when this was deleted.
    let mut set = world.set("web");
    let (record, year) = (set.backups.remove(0), 365 * 86_400);
    set.deleted.push(DeletedBackup { record, deleted: jiff::Timestamp::UNIX_EPOCH, deleted_clock: year });
    world.repository().write_set(&set).unwrap();
    let clock = world.repository().layout().clock();
    assert!(!clock.exists());
    let set = world.set("db");
    let backup = Deletion { backupset: set.id, incremental: set.backups[0].incremental };
    world.delete(backup).unwrap();
    assert!(world.set("db").deleted[0].deleted_clock >= year, "the count goes on from the highest");
    fs::remove_file(&clock).unwrap();
    let options = GcOptions::default();
    let collected = world.writer.run_job(&Silent, |_| false, |writer| writer.gc(&options, &Silent)).unwrap();
    assert_eq!((collected.purged_backups, collected.kept_backups), (0, 2));
    world.writer.run_job(&Silent, |_| false, |writer| writer.undelete(backup)).unwrap();
}

#[test]
fn deleted_backups_come_back_all_or_none() {
    let world = World::new();
    let mut backups = Vec::new();
    for image in ["web", "db"] {
        world.back_up(image, false).unwrap();
        let set = world.set(image);
        backups.push(Deletion { backupset: set.id, incremental: set.backups[0].incremental });
    }
    let undelete = |backups: &[Deletion]| -> Result<Changed, RepositoryError> {
        world.writer.run_job(&Silent, |_| false, |writer| writer.undelete_all(backups))
    };
    let there = || ["web", "db"].map(|image| world.set(image).backups.len());
    world.writer.run_job(&Silent, |_: &Changed| false, |writer| writer.delete_all(&backups)).unwrap();
    assert_eq!(there(), [0, 0]);
    // One that was never there, and one whose manifest is gone.
    let wrong = Deletion { incremental: Incremental(9), ..backups[0] };
    assert!(undelete(&[backups[0], wrong, backups[1]]).is_err());
    assert_eq!(there(), [0, 0]);
    let manifest = world.repository().layout().manifest(backups[1].backupset, backups[1].incremental);
    let bytes = fs::read(&manifest).unwrap();
    fs::remove_file(&manifest).unwrap();
    assert!(undelete(&backups).is_err());
    assert_eq!(there(), [0, 0]);
    fs::write(&manifest, bytes).unwrap();
    // Named twice, it comes back once.
    undelete(&[backups[0], backups[1], backups[0]]).unwrap();
    assert_eq!(there(), [1, 1]);
}

#[test]
fn a_list_of_ten_thousand_backups_is_short_enough_and_one_of_as_many_with_long_tags_is_not() {
    let world = World::new();
    world.back_up("web", false).unwrap();
    let mut set = world.set("web");
    let first = set.backups[0].clone();
    let mut has_room = |change: &dyn Fn(&mut BackupRecord)| {
        set.backups = (0..10_000)
            .map(|number| {
                let mut record = BackupRecord { incremental: Incremental(number), ..first.clone() };
                change(&mut record);
                record
            })
            .collect();
        set.next_incremental = 10_000;
        set.write(&OsStorage, world.repository().layout()).unwrap();
        set.has_room(&OsStorage, world.repository().layout())
    };
    has_room(&|record| record.tags = vec!["nightly".to_owned()]).unwrap();
    let long = |record: &mut BackupRecord| {
        record.tags = vec!["x".repeat(64); 16];
        record.note = Some("x".repeat(256));
    };
    let error = has_room(&long).unwrap_err();
    assert!(matches!(error, RepositoryError::ListFull { .. }), "{error}");
}

#[test]
fn what_says_that_several_backups_exist_is_not_written_beyond_what_is_read() {
    let world = World::new();
    world.back_up("web", false).unwrap();
    let set = world.set("web");
    let additions = |bytes: u64| {
        let why = "x".repeat(usize::try_from(bytes).unwrap());
        let record = BackupRecord { incremental: Incremental(1), ..set.backups[0].clone() };
        vec![crate::repository::together::Addition { backupset: set.id, record, suspects: Vec::new(), why }]
    };
    let layout = world.repository().layout();
    Together::of_additions(additions(100)).text(layout).unwrap();
    let error = Together::of_additions(additions(SETTINGS_LIMIT)).text(layout).unwrap_err();
    assert!(matches!(error, RepositoryError::TooLong { .. }), "{error}");
}

#[test]
fn what_was_checked_when_is_not_written_beyond_what_is_read() {
    let world = World::new();
    let repository = world.repository();
    repository.write_checked(b"before").unwrap();
    let most = usize::try_from(crate::repository::CHECKED_LIMIT).unwrap();
    let error = repository.write_checked(&vec![0; most + 1]).unwrap_err();
    assert!(matches!(error, RepositoryError::TooLong { .. }), "{error}");
    assert_eq!(repository.read_checked().unwrap(), b"before");
}

#[test]
fn a_restore_does_not_begin_a_backupset_whose_backups_could_not_name_its_bases() {
    let world = World::new();
    world.back_up("web", false).unwrap();
    let mut set = world.set("web");
    let begin = |set: &Backupset| {
        world.writer.with(|writer| writer.begin_set_after_restore(&set.name, set, Incremental(0)))
    };
    set.bases = (0..crate::manifest::MOST_BASES).map(|_| BackupsetId::random()).collect();
    let error = begin(&set).unwrap_err();
    assert!(error.to_string().contains("earlier backupsets"), "{error}");
    set.bases.pop();
    begin(&set).unwrap();
}

/// Counts how often the index was made.
#[derive(Debug, Default)]
struct Rebuilds(AtomicU64);

impl Progress for Rebuilds {
    fn notice(&self, notice: Notice) {
        if matches!(notice, Notice::IndexRebuilt { .. }) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_damaged_manifest_that_opening_does_not_verify_makes_one_new_index_and_no_more() {
    let world = World::new();
    for _ in 0..2 {
        world.back_up("web", false).unwrap();
    }
    let set = world.set("web");
    let path = world.repository().layout().manifest(set.id, Incremental(1));
    let mut bytes = fs::read(&path).unwrap();
    // A byte of the hash of a segment: everything else of the manifest stays plausible.
    let hash = SegmentHash::of(&vec![7; 64 << 10]);
    let at = bytes.windows(SegmentHash::LENGTH).position(|window| window == hash.as_bytes()).unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(world.repository().manifest(&set, &set.backups[1]).is_ok(), "opening does not verify it");
    let rebuilds = Rebuilds::default();
    for backup in 0..3 {
        back_up(&world.writer, &name("web"), &Disk { fails: false }, &options(), &rebuilds).unwrap();
        assert_eq!(rebuilds.0.load(Ordering::Relaxed), 1, "backup {backup}");
    }
    let options = CheckOptions { read_data: ReadData::All, jobs: 1 };
    let checked = check_with_index(&world.writer, &options, false, &Silent).unwrap();
    assert_eq!(checked.index, CheckIndex::Agrees, "{:?}", checked.problems);
}
