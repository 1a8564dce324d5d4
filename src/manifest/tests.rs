use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use quickcheck::quickcheck;

use crate::manifest::stays::Neighbours;
use crate::manifest::{
    BackupsetId, BaseIndex, ImageName, Incremental, ManifestInfo, ManifestReader, ManifestWriter, SegmentRef,
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
    assert_eq!(writer.finish().unwrap().present as usize, present);
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
        for manifest in [ManifestReader::open(&path).unwrap(), ManifestReader::read(&path).unwrap()] {
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
            ManifestReader::open(&path).unwrap()
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
    assert_eq!(ManifestReader::open(&path).unwrap().runs(), 3);
}

#[test]
fn every_cut_and_every_flipped_bit_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = at(&folder, "manifest");
    write(&path, &[Some(segment(1)), None, Some(segment(2)), Some(segment(6))]);
    let whole = fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(ManifestReader::open(&path).is_err(), "cut at {cut}");
    }
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, flipped).unwrap();
        assert!(ManifestReader::open(&path).is_err(), "bit {bit}");
    }
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert!(ManifestReader::open(&path).is_err(), "longer than it was");
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
