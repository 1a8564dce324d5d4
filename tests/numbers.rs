//! An address such as `web@7` or `27793c49@2` means one backup for ever, or nothing once that backup is gone.
//!
//! The same random work runs on a repository and on a model of the rules. A variant of the model without one of the rules
//! must be found to break the promise: so a test that says nothing is seen.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};

use common::{MemoryImage, Noise, Told, name, open, options, small_segments};
use ekko::backup::back_up;
use ekko::codec::CompressionSetting;
use ekko::exchange::{ImportOptions, import_backup};
use ekko::manifest::{BackupsetId, Incremental, ManifestInfo, ManifestReader, ManifestWriter};
use ekko::repository::{
    BackupSelector, Deletion, GcOptions, Repository, RepositoryError, RepositoryWriter, SharedWriter,
};
use ekko::segment::{Geometry, SegmentSize};
use ekko::storage::OsStorage;
use quickcheck::{QuickCheck, TestResult};

/// What is done, and two random numbers.
type Step = (u8, u8, u8);

const NAMES: [&str; 4] = ["web", "www", "db", "mail"];

/// A repository in which each backup is of an empty disk of its own size: by that it is known.
struct World {
    folder: tempfile::TempDir,
    writer: Option<RepositoryWriter>,
    told: Told,
    /// The size of the next disk.
    size: usize,
    /// Backupsets from elsewhere, and how many of their backups came in.
    foreign: Vec<(BackupsetId, u32)>,
    meant: HashMap<String, u64>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        Repository::init(&root, &small_segments()).unwrap();
        let told = Told::default();
        let writer = Some(open(&root, &told));
        Self { folder, writer, told, size: 1, foreign: Vec::new(), meant: HashMap::new() }
    }

    fn writer(&self) -> &RepositoryWriter {
        self.writer.as_ref().unwrap()
    }

    fn sets(&self) -> Vec<ekko::repository::Backupset> {
        self.writer().repository().backupsets().unwrap().0
    }

    fn shared<T>(&mut self, job: impl FnOnce(&SharedWriter, &mut Self) -> T) -> T {
        let shared = SharedWriter::new(self.writer.take().unwrap());
        let done = job(&shared, self);
        self.writer = shared.into_inner();
        done
    }

    /// Some name: of the few that there are, or the beginning of a backupset's UUID.
    fn name(&self, at: u8) -> String {
        let sets = self.sets();
        match usize::from(at) % 6 {
            5 if !sets.is_empty() => sets[usize::from(at) % sets.len()].id.to_string()[..4].to_owned(),
            at => NAMES[at % NAMES.len()].to_owned(),
        }
    }

    fn step(&mut self, (what, first, second): Step) {
        match what % 16 {
            0..=4 => {
                let image = name(&self.name(first));
                let disk = vec![0; self.size];
                self.size += 1;
                let done = self.shared(|shared, world| {
                    back_up(shared, &image, &MemoryImage::new(&disk, 4096), &options(), &world.told)
                });
                assert!(done.is_ok() || image.as_str().len() == 4, "{done:?}");
            }
            5..=7 => {
                let all = self.places(false);
                if let Some(backup) = all.get(usize::from(first) % all.len().max(1)) {
                    self.writer().delete(*backup).unwrap();
                }
            }
            8 => {
                let all = self.places(true);
                if let Some(backup) = all.get(usize::from(first) % all.len().max(1)) {
                    self.writer().undelete(*backup).unwrap();
                }
            }
            9 => drop(
                self.writer().gc(&GcOptions { now: Some(""), ..GcOptions::default() }, &self.told).unwrap(),
            ),
            10 | 11 => {
                let (from, to) = (name(&self.name(first)), name(&self.name(second)));
                match self.writer().rename(&from, &to) {
                    Ok(_) => {}
                    Err(error) => assert!(
                        matches!(
                            error,
                            RepositoryError::UnknownName { .. }
                                | RepositoryError::NoSuchBackup { .. }
                                | RepositoryError::SameName { .. }
                                | RepositoryError::NameTaken { .. }
                                | RepositoryError::NameIsUuid { .. }
                        ),
                        "{error}"
                    ),
                }
            }
            12 => {
                let (all, sets) = (self.places(false), self.sets());
                if let Some(backup) = all.get(usize::from(first) % all.len().max(1)) {
                    let set = sets.iter().find(|set| set.id == backup.backupset).unwrap();
                    // Most often the disk itself is restored.
                    let over = if second % 3 == 0 { name(&self.name(second)) } else { set.name.clone() };
                    let _ = self.writer().begin_set_after_restore(&over, set, backup.incremental);
                }
            }
            13 | 14 => self.import(first, second),
            _ => {
                self.writer = None;
                self.writer = Some(open(&self.folder.path().join("store"), &self.told));
            }
        }
        self.check();
    }

    /// Brings a backup in that was made elsewhere: the next one of a backupset that came before, or the first of another one.
    fn import(&mut self, first: u8, second: u8) {
        let at = usize::from(second) % (self.foreign.len() + 1);
        if at == self.foreign.len() {
            self.foreign.push((BackupsetId::random(), 0));
        }
        let (backupset, incremental) = self.foreign[at];
        let path = self.folder.path().join("manifest");
        let _ = std::fs::remove_file(&path);
        let info = ManifestInfo {
            backupset,
            incremental: Incremental(incremental),
            name: name("elsewhere"),
            geometry: Geometry::new(self.size as u64, SegmentSize::new(64 << 10).unwrap()).unwrap(),
            timestamp: jiff::Timestamp::UNIX_EPOCH,
            bases: Vec::new(),
            attributes: Vec::new(),
        };
        self.size += 1;
        ManifestWriter::create(&OsStorage, &path, info).unwrap().finish().unwrap();
        let manifest = ManifestReader::open(&OsStorage, &path).unwrap();
        let image = name(&self.name(first));
        let options = ImportOptions { segments: None, compression: CompressionSetting::default(), jobs: 1 };
        let done =
            self.shared(|shared, world| import_backup(shared, &manifest, &image, &options, &world.told));
        if done.is_ok() {
            self.foreign[at].1 += 1;
        }
    }

    fn places(&self, deleted: bool) -> Vec<Deletion> {
        let place = |set: &ekko::repository::Backupset| {
            let gone = set.deleted.iter().map(|deleted| &deleted.record);
            let list: Vec<_> = if deleted { gone.collect() } else { set.backups.iter().collect() };
            let place = |backup: &ekko::repository::BackupRecord| Deletion {
                backupset: set.id,
                incremental: backup.incremental,
            };
            list.into_iter().map(place).collect::<Vec<_>>()
        };
        self.sets().iter().flat_map(place).collect()
    }

    /// Each address means what it meant when it first meant something, and each backup has one.
    fn check(&mut self) {
        let sets = self.sets();
        let repository = self.writer().repository().clone();
        let find = |address: &str| {
            let selector: BackupSelector = address.parse().unwrap();
            repository.find(&sets, &selector).ok().map(|(_, backup)| backup.size_of_disk)
        };
        for (address, meant) in &self.meant {
            let means = find(address);
            assert!(means.is_none_or(|means| means == *meant), "{address} meant {meant}, and now {means:?}");
        }
        for set in &sets {
            for backup in &set.backups {
                let own = format!("{}@{}", set.name, backup.number);
                assert_eq!(find(&own), Some(backup.size_of_disk), "{own}");
                let id = set.id.to_string();
                let by_id = [4, 6, 8, 36].map(|length| format!("{}@{}", &id[..length], backup.incremental));
                for address in by_id.into_iter().chain([own]) {
                    if let Some(means) = find(&address) {
                        self.meant.entry(address).or_insert(means);
                    }
                }
            }
        }
        // Numbers of the same name differ, be the backups deleted or not.
        let all = sets.iter().flat_map(|set| {
            let gone = set.deleted.iter().map(|deleted| &deleted.record);
            set.backups.iter().chain(gone).map(move |backup| (set.name.clone(), backup.number))
        });
        let mut numbers = HashSet::new();
        assert!(all.into_iter().all(|number| numbers.insert(number)));
    }
}

#[test]
fn an_address_never_means_another_backup_than_it_did() {
    fn holds(steps: Vec<Step>) -> bool {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        true
    }
    QuickCheck::new().tests(20).quickcheck(holds as fn(Vec<Step>) -> bool);
    // And once long enough that everything happens to everything.
    let mut noise = Noise::new(7);
    assert!(holds((0..300).map(|_| (noise.byte(), noise.byte(), noise.byte())).collect()));
}

/// The rules of `repository/number.rs`.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a rule of its own")]
struct Rules {
    /// A backupset stays when its last backup is gone.
    empty_stays: bool,
    /// The counter counts all backups that there ever were, and not those that there are.
    counts_all: bool,
    /// The counter is that of all backupsets of the name.
    of_all_sets: bool,
    /// The former name keeps its counter.
    former_keeps: bool,
    /// Renaming keeps the numbers of the backups.
    rename_keeps: bool,
    /// No renaming to a name that others have or had.
    rename_refuses: bool,
    /// No new name that is the beginning of a UUID.
    refuses_uuids: bool,
}

const ALL: Rules = Rules {
    empty_stays: true,
    counts_all: true,
    of_all_sets: true,
    former_keeps: true,
    rename_keeps: true,
    rename_refuses: true,
    refuses_uuids: true,
};

/// A backupset of the model. Names and ids are from the same few, so that they meet.
#[derive(Clone, Debug)]
struct Set {
    id: u8,
    name: u8,
    former: BTreeMap<u8, u32>,
    next: u32,
    next_incremental: u32,
    /// Number, incremental, what it is.
    backups: Vec<(u32, u32, u32)>,
}

#[derive(Debug)]
struct Model {
    rules: Rules,
    sets: Vec<Set>,
    made: u32,
    meant: BTreeMap<(u8, u32), u32>,
}

/// Names and ids of the model.
const FEW: u8 = 6;

impl Model {
    fn had(&self, name: u8) -> impl Iterator<Item = &Set> {
        self.sets.iter().filter(move |set| set.name == name || set.former.contains_key(&name))
    }

    fn next(&self, name: u8) -> u32 {
        let of = |set: &Set| {
            let own = (set.name == name).then_some(set.next);
            own.max(set.former.get(&name).copied().filter(|_| self.rules.former_keeps)).unwrap_or(0)
        };
        self.sets.iter().map(of).max().unwrap_or(0)
    }

    /// What an address means: a name goes before an id, and one that was renamed means nothing.
    fn find(&self, text: u8, number: u32) -> Option<u32> {
        let backups = |sets: &mut dyn Iterator<Item = &Set>, by_name: bool| {
            let mut all = sets.flat_map(|set| set.backups.clone());
            all.find(|it| if by_name { it.0 == number } else { it.1 == number }).map(|it| it.2)
        };
        if self.sets.iter().any(|set| set.name == text) {
            return backups(&mut self.sets.iter().filter(|set| set.name == text), true);
        }
        if self.had(text).next().is_some() {
            return None;
        }
        backups(&mut self.sets.iter().filter(|set| set.id == text), false)
    }

    fn new_set(&mut self, name: u8, id: u8) -> Option<usize> {
        let is_new = self.had(name).next().is_none();
        if is_new && self.rules.refuses_uuids && self.sets.iter().any(|set| set.id == name) {
            return None;
        }
        if self.sets.iter().any(|set| set.id == id) {
            return None;
        }
        let next = if self.rules.of_all_sets { self.next(name) } else { 0 };
        let set = Set { id, name, former: BTreeMap::new(), next, next_incremental: 0, backups: Vec::new() };
        self.sets.push(set);
        Some(self.sets.len() - 1)
    }

    fn backup(&mut self, at: usize) {
        let next = if self.rules.of_all_sets { self.next(self.sets[at].name) } else { self.sets[at].next };
        let highest = |set: &Set| set.backups.iter().map(|it| it.0 + 1).max().unwrap_or(0);
        let number = if self.rules.counts_all { next } else { highest(&self.sets[at]) };
        let set = &mut self.sets[at];
        set.backups.push((number, set.next_incremental, self.made));
        set.next = number + 1;
        set.next_incremental += 1;
        self.made += 1;
    }

    fn step(&mut self, (what, first, second): Step) {
        let (one, other) = (first % FEW, second % FEW);
        match what % 8 {
            0..=2 => {
                // The newest backupset of the name goes on.
                let at =
                    self.sets.iter().rposition(|set| set.name == one).or_else(|| self.new_set(one, other));
                if let Some(at) = at {
                    self.backup(at);
                }
            }
            3 => {
                // A restore over the disk begins another backupset.
                if let Some(at) = self.new_set(one, other) {
                    self.backup(at);
                }
            }
            4 | 5 => {
                let sets = self.sets.len().max(1);
                let Some(set) = self.sets.get_mut(usize::from(first) % sets) else { return };
                if !set.backups.is_empty() {
                    let at = usize::from(second) % set.backups.len();
                    set.backups.remove(at);
                }
                if !self.rules.empty_stays {
                    self.sets.retain(|set| !set.backups.is_empty());
                }
            }
            _ => self.rename(one, other),
        }
    }

    fn rename(&mut self, from: u8, to: u8) {
        let is_used = self.had(to).any(|set| set.name != from);
        let is_new = self.had(to).next().is_none();
        let is_uuid = is_new && self.sets.iter().any(|set| set.id == to);
        if from == to || (is_used && self.rules.rename_refuses) || (is_uuid && self.rules.refuses_uuids) {
            return;
        }
        let next = self.next(to);
        let rules = self.rules;
        for set in self.sets.iter_mut().filter(|set| set.name == from) {
            set.former.insert(from, set.next);
            set.former.remove(&to);
            set.name = to;
            set.next = set.next.max(next);
            if !rules.rename_keeps {
                let all = 0..u32::try_from(set.backups.len()).unwrap();
                set.backups.iter_mut().zip(all).for_each(|(backup, number)| backup.0 = number);
            }
        }
    }

    /// Says whether every address means what it meant.
    fn holds(&mut self) -> bool {
        let mut all: HashSet<(u8, u32)> = self.meant.keys().copied().collect();
        for set in &self.sets {
            all.extend(set.backups.iter().flat_map(|it| [(set.name, it.0), (set.id, it.1)]));
        }
        all.into_iter().all(|(text, number)| match self.find(text, number) {
            None => true,
            Some(means) => *self.meant.entry((text, number)).or_insert(means) == means,
        })
    }
}

fn holds(rules: Rules, steps: &[Step]) -> bool {
    let mut model = Model { rules, sets: Vec::new(), made: 0, meant: BTreeMap::new() };
    steps.iter().all(|step| {
        model.step(*step);
        model.holds()
    })
}

#[test]
fn the_rules_hold_the_promise_and_none_of_them_is_too_much() {
    #[expect(clippy::needless_pass_by_value, reason = "as quickcheck hands it over")]
    fn all(steps: Vec<Step>) -> TestResult {
        TestResult::from_bool(holds(ALL, &steps))
    }
    QuickCheck::new().tests(20_000).quickcheck(all as fn(Vec<Step>) -> TestResult);
    let variants = [
        Rules { empty_stays: false, ..ALL },
        Rules { counts_all: false, ..ALL },
        Rules { of_all_sets: false, ..ALL },
        Rules { former_keeps: false, ..ALL },
        Rules { rename_keeps: false, ..ALL },
        Rules { rename_refuses: false, ..ALL },
        Rules { refuses_uuids: false, ..ALL },
    ];
    for rules in variants {
        let mut noise = Noise::new(1);
        let mut steps = |_| (0..40).map(|_| (noise.byte(), noise.byte(), noise.byte())).collect::<Vec<_>>();
        let broken = (0..20_000).map(&mut steps).find(|steps| !holds(rules, steps));
        assert!(broken.is_some(), "nothing is lost without this rule: {rules:?}");
    }
}
