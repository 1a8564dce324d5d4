use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use quickcheck::quickcheck;

use crate::error::ErrorKind;
use crate::manifest::stays::Neighbours;
use crate::manifest::{
    BackupsetId, BaseIndex, DiffCursor, Difference, GenerateOptions, ImageName, Incremental, ManifestDiff,
    ManifestInfo, ManifestReader, ManifestWriter, SegmentRef, generate,
};
use crate::segment::{Geometry, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin};
use crate::storage::OsStorage;

fn info(segments: u64) -> ManifestInfo {
    ManifestInfo {
        backupset: BackupsetId::from_bytes([1; 16]),
        incremental: Incremental(7),
        name: ImageName::new("web").unwrap(),
        geometry: Geometry::new(segments << 16, SegmentSize::MIN).unwrap(),
        timestamp: "2026-01-02T03:04:05.678Z".parse().unwrap(),
        bases: vec![BackupsetId::from_bytes([2; 16]), BackupsetId::from_bytes([3; 16])],
        attributes: vec![("cbt".to_owned(), vec![0, 1, 2]), (String::new(), Vec::new())],
    }
}

fn segment(seed: u8) -> SegmentRef {
    SegmentRef {
        key: SegmentKey { hash: SegmentHash::from_bytes([seed; 20]), twin: Twin(u16::from(seed % 5 == 4)) },
        incremental: Incremental(u32::from(seed % 3)),
        base: BaseIndex(u16::from(seed % 7 == 6)),
    }
}

/// Writes a manifest of these segments; nothing stands for zeros.
fn write(path: &Path, segments: &[Option<SegmentRef>]) -> ManifestInfo {
    let info = info(segments.len() as u64);
    let mut writer = ManifestWriter::create(&OsStorage, path, info.clone()).unwrap();
    for (place, segment) in (0..).zip(segments) {
        if let Some(segment) = segment {
            writer.push(SegmentIndex(place), segment).unwrap();
        }
    }
    let present = segments.iter().flatten().count();
    let at_most = writer.size_at_most();
    assert_eq!(writer.finish().unwrap().present as usize, present);
    let size = fs::metadata(path).unwrap().len();
    assert!((size..size + 1024).contains(&at_most), "{size} bytes, {at_most} at most");
    info
}

fn at(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

quickcheck! {
    fn what_was_written_is_read_by_lookup_by_cursor_and_in_order(seeds: Vec<Option<u8>>) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let path = at(&folder, "manifest");
        let segments: Vec<_> = seeds.iter().map(|seed| seed.map(segment)).collect();
        let info = write(&path, &segments);
        for manifest in [ManifestReader::open(&OsStorage, &path).unwrap(), ManifestReader::read(&path).unwrap()] {
            assert_eq!(manifest.info(), &info);
            assert_eq!(manifest.file_size(), fs::metadata(&path).unwrap().len());
            let listed: BTreeMap<_, _> = manifest.segments().map(|(index, segment)| (index.0, segment)).collect();
            let mut cursor = manifest.cursor(SegmentIndex(0));
            for (place, segment) in (0..).zip(&segments) {
                assert_eq!(manifest.lookup(SegmentIndex(place)), *segment);
                assert_eq!(manifest.cursor(SegmentIndex(place)).at(SegmentIndex(place)), *segment);
                assert_eq!(cursor.at(SegmentIndex(place)), *segment);
                assert_eq!(listed.get(&place), segment.as_ref());
            }
            for behind in [u32::try_from(segments.len()).unwrap(), u32::MAX] {
                assert_eq!(manifest.lookup(SegmentIndex(behind)), None);
            }
        }
        true
    }

    fn gains_of_any_insertion_are_what_a_recount_says(chain: Vec<Vec<u8>>, position: usize) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let chain: Vec<Vec<Option<SegmentRef>>> = chain.iter().take(6).map(|disk| {
            // Few different segments, so that neighbours are often equal; 0 is zero.
            disk.iter().take(20).map(|byte| Some(byte % 3).filter(|kind| *kind > 0).map(segment)).collect()
        }).collect();
        if chain.is_empty() {
            return true;
        }
        let manifests: Vec<_> = chain.iter().enumerate().map(|(number, segments)| {
            let path = at(&folder, &number.to_string());
            write(&path, segments);
            ManifestReader::open(&OsStorage, &path).unwrap()
        }).collect();
        let position = position % chain.len();
        let without: Vec<_> = chain.iter().enumerate().filter(|(at, _)| *at != position).map(|(_, disk)| disk).collect();
        let mut counts = recount(&without);
        let neighbours = Neighbours {
            before: position.checked_sub(1).map(|before| &manifests[before]),
            this: &manifests[position],
            after: manifests.get(position + 1),
        };
        for window in neighbours.windows() {
            for (key, gain) in neighbours.gains(window) {
                assert_ne!(gain, 0);
                *counts.entry(key).or_insert(0) += gain;
            }
        }
        counts == recount(&chain.iter().collect::<Vec<_>>())
    }
}

/// Going through every place of such a disk takes ten seconds or more each time; the limit only shows that nothing does.
#[test]
fn what_a_backup_of_a_huge_empty_disk_gains_is_found_without_going_through_its_places() {
    let folder = tempfile::tempdir().unwrap();
    let (places, kept, new) = (1 << 30, 1 << 29, (1 << 30) - 1);
    let manifest = |name: &str, present: &[(u32, u8)]| {
        let path = at(&folder, name);
        let mut writer = ManifestWriter::create(&OsStorage, &path, info(places)).unwrap();
        for (place, seed) in present {
            writer.push(SegmentIndex(*place), &segment(*seed)).unwrap();
        }
        writer.finish().unwrap();
        ManifestReader::open(&OsStorage, &path).unwrap()
    };
    let (before, this) = (manifest("0", &[(kept, 1)]), manifest("1", &[(kept, 1), (new, 2)]));
    let begun = std::time::Instant::now();
    for _ in 0..10 {
        let neighbours = Neighbours { before: Some(&before), this: &this, after: None };
        let gains: Vec<_> = neighbours.windows().flat_map(|window| neighbours.gains(window)).collect();
        assert_eq!(gains, [(segment(2).key, 1)]);
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
}

/// Counts the stays of a chain, place by place.
fn recount(chain: &[&Vec<Option<SegmentRef>>]) -> BTreeMap<SegmentKey, u32> {
    let mut counts = BTreeMap::new();
    for place in 0..chain.iter().map(|disk| disk.len()).max().unwrap_or(0) {
        let mut before = None;
        for disk in chain {
            let here = disk.get(place).copied().flatten().map(|segment| segment.key);
            if let Some(key) = here.filter(|_| here != before) {
                *counts.entry(key).or_insert(0) += 1;
            }
            before = here;
        }
    }
    counts
}

#[test]
fn neighbours_that_say_the_same_make_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = at(&folder, "manifest");
    let one = segment(1);
    let other = SegmentRef { key: SegmentKey { hash: SegmentHash::of(b"other"), twin: Twin(0) }, ..one };
    let twin = SegmentRef { key: SegmentKey { twin: Twin(1), ..one.key }, ..one };
    write(&path, &[Some(one), Some(other), None, Some(one), Some(twin), Some(twin)]);
    assert_eq!(ManifestReader::open(&OsStorage, &path).unwrap().runs(), 3);
}

/// Says that neither way of opening and verifying a file finds a manifest in it.
fn assert_refused(path: &Path, what: &str) {
    let verified = |opened: Result<ManifestReader, crate::manifest::ManifestError>| {
        opened.and_then(|reader| reader.verify())
    };
    assert!(verified(ManifestReader::open(&OsStorage, path)).is_err(), "{what}");
    assert!(verified(ManifestReader::read(path)).is_err(), "{what}");
}

#[test]
fn every_cut_and_every_flipped_bit_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = at(&folder, "manifest");
    // More than 4,096 bytes, with runs, gaps and twins.
    let segments: Vec<_> = (0..=255).map(|seed| (seed % 9 > 0).then(|| segment(seed))).collect();
    write(&path, &segments);
    let whole = fs::read(&path).unwrap();
    assert!(whole.len() > 4096);
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        assert_refused(&path, &format!("cut at {cut}"));
    }
    for bit in 0..4096 * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, flipped).unwrap();
        assert_refused(&path, &format!("bit {bit}"));
    }
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert_refused(&path, "longer than it was");
}

#[test]
fn one_of_the_repositorys_own_that_lost_its_signature_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = at(&folder, "manifest");
    fs::write(&path, b"something else, and long enough to hold a signature").unwrap();
    assert_eq!(ManifestReader::open(&OsStorage, &path).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(ManifestReader::read(&path).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(ManifestReader::read(folder.path()).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_large_file_is_verified_before_it_is_used_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = at(&folder, "manifest");
    // A little above the 64 MiB up to which the body is verified at once, and files are read into memory.
    let geometry = Geometry::new(13 << 38, SegmentSize::new(1 << 20).unwrap()).unwrap();
    let options = GenerateOptions { geometry, seed: 1, fragmented_percent: 0 };
    generate(&path, false, &options).unwrap();
    let manifest = ManifestReader::read(&path).unwrap();
    manifest.verify().unwrap();
    manifest.release_pages();
    assert_eq!(manifest.segments().count(), 13 << 18);
    drop(manifest);
    let file = fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x55; 20], 1 << 25).unwrap();
    for manifest in [ManifestReader::open(&OsStorage, &path).unwrap(), ManifestReader::read(&path).unwrap()] {
        assert_eq!(manifest.verify().unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(ManifestDiff::of(&manifest, &manifest).is_err());
    }
}

quickcheck! {
    fn a_difference_is_what_a_comparison_place_by_place_says(older: Vec<u8>, newer: Vec<u8>) -> bool {
        let folder = tempfile::tempdir().unwrap();
        // Few different segments, so that neighbours are often equal; 0 is zero. Equal parts come from the first.
        let kinds = |disk: &[u8]| disk.iter().map(|byte| Some(byte % 6).filter(|kind| *kind > 0).map(segment)).collect();
        let older: Vec<Option<SegmentRef>> = kinds(&older);
        let newer: Vec<Option<SegmentRef>> = kinds(&newer);
        let newer: Vec<_> = newer.iter().zip(0..).map(|(segment, place)| {
            older.get(place).filter(|_| place % 7 < 4).unwrap_or(segment)
        }).copied().collect();
        let mut expected = vec![None; newer.len()];
        for (place, segment) in newer.iter().enumerate() {
            let key = |segment: &Option<SegmentRef>| segment.map(|segment| segment.key);
            if key(segment) != older.get(place).and_then(key) {
                expected[place] = Some(segment.is_some());
            }
        }
        differences(&folder, &older, &newer) == expected
    }
}

/// Says for each place of the newer disk whether it differs, and then whether it holds data.
fn differences(
    folder: &tempfile::TempDir,
    older: &[Option<SegmentRef>],
    newer: &[Option<SegmentRef>],
) -> Vec<Option<bool>> {
    let open = |name: &str, segments| {
        let path = at(folder, name);
        // Written without its metadata being compared: a file of this name may be there.
        let _ = fs::remove_file(&path);
        write(&path, segments);
        ManifestReader::read(&path).unwrap()
    };
    let (one, other) = (open("older", older), open("newer", newer));
    let mut found = vec![None; newer.len()];
    let mut last: Option<Difference> = None;
    let mut all = Vec::new();
    let diff = ManifestDiff::of(&one, &other).unwrap();
    diff.for_each(|difference| {
        all.push(difference);
        let Difference { offset, length, exists } = difference;
        assert!(length > 0 && offset % (1 << 16) == 0);
        if let Some(last) = last {
            let end = last.offset + last.length;
            assert!(end < offset || end == offset && last.exists != exists, "joined and in order");
        }
        last = Some(difference);
        for place in offset >> 16..(offset + length) >> 16 {
            found[usize::try_from(place).unwrap()] = Some(exists);
        }
        Ok::<(), ()>(())
    })
    .unwrap();
    for places in [1, 2, 7] {
        let (mut cursor, mut pieces) = (DiffCursor::default(), Vec::new());
        let each = |pieces: &mut Vec<_>, difference| {
            pieces.push(difference);
            Ok::<(), ()>(())
        };
        while diff.advance(&mut cursor, places, |difference| each(&mut pieces, difference)).unwrap() {}
        assert_eq!(pieces, all, "{places} places at a time");
    }
    found
}

#[test]
fn a_range_ends_where_the_disk_ends_and_other_segment_sizes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str, size: u64, segment_size: u64, hash: u8| {
        let geometry = Geometry::new(size, SegmentSize::new(segment_size).unwrap()).unwrap();
        let mut writer =
            ManifestWriter::create(&OsStorage, &at(&folder, name), ManifestInfo { geometry, ..info(1) })
                .unwrap();
        writer.push(SegmentIndex(geometry.segments() - 1), &segment(hash)).unwrap();
        writer.finish().unwrap();
        ManifestReader::open(&OsStorage, &at(&folder, name)).unwrap()
    };
    let (one, other) = (open("one", (1 << 16) + 10, 1 << 16, 1), open("other", (1 << 16) + 10, 1 << 16, 2));
    let mut found = Vec::new();
    ManifestDiff::of(&one, &other)
        .unwrap()
        .for_each(|difference| {
            found.push(difference);
            Ok::<(), ()>(())
        })
        .unwrap();
    assert_eq!(found, [Difference { offset: 1 << 16, length: 10, exists: true }]);
    let larger = open("larger", 1 << 20, 1 << 17, 1);
    let error = ManifestDiff::of(&one, &larger).unwrap_err();
    assert!(error.to_string().contains("cannot be compared"), "{error}");
}

#[test]
fn what_is_generated_follows_from_its_seed_and_lacks_no_segment() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, seed, fragmented_percent| {
        let geometry = Geometry::new((100_000 << 16) - 1, SegmentSize::MIN).unwrap();
        let options = GenerateOptions { geometry, seed, fragmented_percent };
        generate(&at(&folder, name), false, &options).unwrap();
        ManifestReader::read(&at(&folder, name)).unwrap()
    };
    let (one, same, other) = (make("one", 1, 0), make("same", 1, 0), make("other", 2, 0));
    assert_eq!((one.present(), one.runs()), (100_000, 1), "the last, short segment too");
    assert_eq!(one.fingerprint(), same.fingerprint());
    assert_ne!(one.fingerprint(), other.fingerprint());
    assert!(one.segments().zip(other.segments()).all(|((_, one), (_, other))| one.key != other.key));
    let fragmented = make("fragmented", 1, 10);
    assert!((9_500..10_500).contains(&fragmented.runs()), "{}", fragmented.runs());
    // Of a hundred segments ten begin a run: 22 bytes a segment at most, and a dense disk has 20.1.
    assert!(fragmented.file_size() <= 22 * 100_000 && one.file_size() <= 2_010_000);
    assert_eq!(make("all", 1, 100).runs(), 100_000);
    let again = GenerateOptions { geometry: one.info().geometry, seed: 3, fragmented_percent: 0 };
    assert!(generate(&at(&folder, "one"), false, &again).is_err(), "what exists is not replaced");
}

#[test]
fn what_makes_no_manifest_is_refused_while_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = ManifestWriter::create(&OsStorage, &at(&folder, "manifest"), info(4)).unwrap();
    writer.push(SegmentIndex(1), &segment(1)).unwrap();
    for (place, why) in [(1, "out of order"), (0, "out of order"), (4, "outside the disk")] {
        let error = writer.push(SegmentIndex(place), &segment(1)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let strange = SegmentRef { base: BaseIndex(3), ..segment(1) };
    assert!(writer.push(SegmentIndex(2), &strange).unwrap_err().to_string().contains("base"));
    writer.push(SegmentIndex(3), &segment(2)).unwrap();
    assert_eq!(writer.finish().unwrap().present, 2);
}
