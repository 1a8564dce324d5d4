//! The damage matrix: every kind of harm to every part of a repository.
//!
//! Whatever was harmed, nothing panics and no wrong byte is ever given as right: each backup restores exactly, or
//! what it lacks is named. What is derived is made anew; what another part says too is not missed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use common::{
    MemoryImage, Noise, SEGMENT, Told, backup, copy_folder, files_below, name, open, options, restore,
    small_segments,
};
use ekko::backup::back_up;
use ekko::error::ErrorKind;
use ekko::repository::{OpenOptions, Repository, RepositoryWriter, SharedWriter};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// One bit, at several places of the range.
    FlipBits,
    Zero,
    /// The file ends where the range begins.
    Truncate,
    Delete,
}

/// What is expected of the repository after the harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Everything restores, and nothing is said but perhaps that the index was rebuilt.
    Whole,
    /// Everything restores, and the harm is told as a problem.
    WholeAndTold,
    /// Some backup lacks something, which is named; a new backup of the disks makes it whole again.
    NamedAndHealed,
    /// Some backup lacks something, which is named; as long as nothing looks at stored bytes by itself, a new
    /// backup of the same bytes refers to the damaged ones, and its restore names them as well.
    Named,
    /// The backup is lost, by name; the others and a new one are whole.
    ManifestLost,
    /// The whole backupset cannot be read, by name, and gets no new backup.
    SetLost,
    /// The repository is refused.
    Refused,
}

struct Case {
    what: &'static str,
    file: PathBuf,
    range: Range<usize>,
    harms: &'static [Harm],
    then: Then,
}

struct Original {
    folder: tempfile::TempDir,
    /// What each backup holds, by name and number.
    backups: Vec<(&'static str, u32, Vec<u8>)>,
}

impl Original {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        Repository::init(&root, &small_segments()).unwrap();
        let told = Told::default();
        let mut noise = Noise::new(3);
        let first = noise.bytes(4 * SEGMENT);
        let mut second = first.clone();
        second[SEGMENT..2 * SEGMENT].copy_from_slice(&noise.bytes(SEGMENT));
        let db = noise.bytes(2 * SEGMENT + 9);
        let writer = open(&root, &told);
        let (writer, _) = backup(writer, "web", &first, &told);
        let (writer, _) = backup(writer, "web", &second, &told);
        let (writer, _) = backup(writer, "db", &db, &told);
        writer.close().unwrap();
        Self { folder, backups: vec![("web", 0, first), ("web", 1, second), ("db", 0, db)] }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn cases(&self) -> Vec<Case> {
        use Harm::{Delete, FlipBits, Truncate, Zero};
        let root = self.root();
        let repository = Repository::open(&root).unwrap();
        let (sets, _) = repository.backupsets().unwrap();
        let web = sets.iter().find(|set| set.name == name("web")).unwrap();
        let pack = files_below(&root.join("packs")).remove(0);
        let size = usize::try_from(fs::metadata(&pack).unwrap().len()).unwrap();
        let mut records = Vec::new();
        let problems = repository.catalog().unwrap().for_each_segment(|_, entry| {
            records.push(usize::try_from(entry.offset).unwrap());
        });
        assert!(problems.unwrap().is_empty());
        let third = records[2];
        // The first commit's mark stands behind the four segments of the first backup.
        let mark = (records[3] + SEGMENT + 512).next_multiple_of(4096);
        let manifest = repository.layout().manifest(web.id, web.backups[1].incremental);
        let manifest_size = usize::try_from(fs::metadata(&manifest).unwrap().len()).unwrap();
        let case =
            |what, file: &Path, range, harms, then| Case { what, file: file.to_owned(), range, harms, then };
        let settings = repository.layout().set_settings(web.id);
        let state = root.join("state");
        let changes: &[Harm] = &[FlipBits, Zero];
        vec![
            case("pack header", &pack, 0..256, changes, Then::Whole),
            case("copy of the pack header", &pack, 4096..4352, changes, Then::Whole),
            case("both pack headers", &pack, 0..4352, &[Zero], Then::Named),
            // The restore records these, and the next backup stores them again.
            case("record header", &pack, third..third + 256, changes, Then::NamedAndHealed),
            case("payload", &pack, third + 256..third + SEGMENT, changes, Then::NamedAndHealed),
            case("mark", &pack, mark..mark + 256, changes, Then::Whole),
            case("table of contents", &pack, size - 1024..size - 1024 + 256 + 7 * 80, changes, Then::Whole),
            case("trailer", &pack, size - 64..size, changes, Then::Whole),
            case("pack cut in a payload", &pack, third + 5000..size, &[Truncate], Then::NamedAndHealed),
            case("pack cut before its table", &pack, size - 1024..size, &[Truncate], Then::Whole),
            case("pack cut to nothing", &pack, 0..size, &[Truncate], Then::NamedAndHealed),
            case("pack", &pack, 0..size, &[Delete], Then::NamedAndHealed),
            case("manifest header", &manifest, 0..128, &[FlipBits, Zero, Truncate], Then::ManifestLost),
            case(
                "manifest body",
                &manifest,
                128..manifest_size,
                &[FlipBits, Zero, Truncate],
                Then::ManifestLost,
            ),
            case("manifest", &manifest, 0..1, &[Delete], Then::ManifestLost),
            case("set.toml", &settings, 5..400, &[FlipBits, Zero, Truncate], Then::SetLost),
            case("set.toml", &settings, 0..1, &[Delete], Then::SetLost),
            case("first slot of state", &state, 0..256, changes, Then::Whole),
            case("second slot of state", &state, 4096..4352, changes, Then::Whole),
            case("both slots of state", &state, 0..4352, &[Zero, Truncate, Delete], Then::WholeAndTold),
            case("ekko.toml", &root.join("ekko.toml"), 0..100, &[Zero, Truncate, Delete], Then::Refused),
            case("reserve", &root.join("reserve"), 0..1, &[Delete], Then::Whole),
            case("lock", &root.join("lock"), 0..1, &[Delete], Then::Whole),
            case("index", &root.join("index"), 0..1, &[Delete], Then::Whole),
        ]
    }
}

fn do_harm(path: &Path, range: &Range<usize>, harm: Harm, step: usize) {
    if harm == Harm::Delete {
        return if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { drop(fs::remove_file(path)) };
    }
    let mut bytes = fs::read(path).unwrap();
    match harm {
        Harm::FlipBits => {
            let at = range.start + (range.len() - 1) * step / (FLIPS - 1);
            bytes[at] ^= 1 << (step % 8);
        }
        Harm::Zero => bytes[range.clone()].fill(0),
        Harm::Truncate => bytes.truncate(range.start),
        Harm::Delete => {}
    }
    fs::write(path, bytes).unwrap();
}

/// How many bits are flipped, one at a time, in each range.
const FLIPS: usize = 9;

/// Restores what is expected to be there. Returns how many backups came back whole and how many were named as lost
/// or damaged; wrong bytes fail the test.
fn restore_all(root: &Path, backups: &[(&str, u32, Vec<u8>)], case: &str) -> (usize, usize) {
    let repository = Repository::open(root).unwrap();
    let (sets, _) = repository.backupsets().unwrap();
    let (mut whole, mut named) = (0, 0);
    for (image, number, disk) in backups {
        let found = repository.find(&sets, &format!("{image}@{number}").parse().unwrap());
        let manifest =
            found.and_then(|(set, record)| repository.manifest(set, record).map(|_| (set, record)));
        let (set, record) = match manifest {
            Ok(found) => found,
            Err(error) => {
                let kinds = [ErrorKind::Corrupt, ErrorKind::NotFound, ErrorKind::Invalid];
                assert!(kinds.contains(&error.kind()), "{case}: {error}");
                named += 1;
                continue;
            }
        };
        let (bytes, summary) = restore(&repository, set, record);
        let mut expected = disk.clone();
        for damaged in &summary.damaged {
            let range = damaged.range.clone();
            expected[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].fill(0);
        }
        assert!(bytes == expected, "{case}: {image}@{number} has wrong bytes");
        if summary.damaged.is_empty() { whole += 1 } else { named += 1 }
    }
    (whole, named)
}

fn check(root: &Path, original: &Original, then: Then, case: &str) {
    let told = Told::default();
    if then == Then::Refused {
        assert!(Repository::open(root).is_err(), "{case}");
        assert!(RepositoryWriter::open(root, &OpenOptions::default(), &told).is_err(), "{case}");
        return;
    }
    let (whole, named) = restore_all(root, &original.backups, case);
    let expected = match then {
        Then::Whole | Then::WholeAndTold => (3, 0),
        Then::ManifestLost => (2, 1),
        Then::SetLost => (1, 2),
        Then::Named | Then::NamedAndHealed | Then::Refused => (whole.min(2), named.max(1)),
    };
    assert_eq!((whole, named), expected, "{case}");
    let writer = RepositoryWriter::open(root, &OpenOptions::default(), &told).unwrap();
    let writer = SharedWriter::new(writer);
    let may_tell =
        matches!(then, Then::WholeAndTold | Then::ManifestLost | Then::SetLost | Then::NamedAndHealed);
    assert!(may_tell || told.problems().is_empty(), "{case}: {:?}", told.problems());
    assert!(then != Then::WholeAndTold || !told.problems().is_empty(), "{case}: nobody is told");
    // The next backup of both disks, as they were.
    let mut backups = original.backups.clone();
    for (image, disk) in [("web", &original.backups[1].2), ("db", &original.backups[2].2)] {
        let source = MemoryImage::new(disk, 4096);
        match (back_up(&writer, &name(image), &source, &options(), &told), then) {
            (Ok(summary), _) => backups.push((image, summary.backup.incremental.0, disk.clone())),
            // A set that cannot be read may be that of any name.
            (Err(error), Then::SetLost) => assert!(error.to_string().contains("set.toml"), "{case}: {error}"),
            (Err(error), _) => panic!("{case}: the next backup: {error}"),
        }
    }
    writer.close().unwrap();
    let (whole, named) = restore_all(root, &backups, case);
    match then {
        Then::Whole | Then::WholeAndTold => assert_eq!((whole, named), (5, 0), "{case}"),
        Then::NamedAndHealed => {
            // What only the first backup held is gone; everything the disks hold is back.
            assert!(whole >= 4 && whole + named == 5, "{case}: {whole} whole");
        }
        Then::Named => assert!(named >= 1 && whole + named == 5, "{case}"),
        Then::ManifestLost => assert_eq!((whole, named), (4, 1), "{case}"),
        Then::SetLost => assert_eq!((whole, named), (1, 2), "{case}"),
        Then::Refused => {}
    }
    let told = Told::default();
    open(root, &told).close().unwrap();
    assert_eq!(told.rebuilds(), 0, "{case}: closed in order, and yet rebuilt");
}

#[test]
fn whatever_is_harmed_nothing_wrong_is_given_as_right() {
    let original = Original::new();
    let mut done = 0;
    for case in original.cases() {
        for harm in case.harms {
            for step in 0..if *harm == Harm::FlipBits { FLIPS } else { 1 } {
                let folder = tempfile::tempdir().unwrap();
                let root = folder.path().join("store");
                copy_folder(&original.root(), &root);
                let file = root.join(case.file.strip_prefix(original.root()).unwrap());
                do_harm(&file, &case.range, *harm, step);
                let label = format!("{} {harm:?} {step}", case.what);
                check(&root, &original, case.then, &label);
                done += 1;
            }
        }
    }
    assert!(done > 120, "{done} cases");
}

#[test]
fn a_repository_that_nothing_happened_to_is_whole() {
    let original = Original::new();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    copy_folder(&original.root(), &root);
    check(&root, &original, Then::Whole, "unharmed");
}
