//! Images made by hand; what QEMU itself makes is read in `tests/images.rs`.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::error::ErrorKind;

const CLUSTER: usize = 64 << 10;
const DISK: u64 = 1 << 20;

/// An image of 16 clusters under construction: header, table of the first level, one of the second, then data.
struct Sketch {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Sketch {
    fn new() -> Self {
        let mut sketch = Self { folder: tempfile::tempdir().unwrap(), bytes: vec![0; 3 * CLUSTER] };
        sketch.put(0, &MAGIC);
        sketch.u32(4, 3);
        sketch.u32(20, 16);
        sketch.u64(24, DISK);
        sketch.u32(36, 1);
        sketch.u64(40, CLUSTER as u64);
        sketch.u32(96, 4);
        sketch.u32(100, 104);
        sketch.u64(CLUSTER, 2 * CLUSTER as u64);
        sketch
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u32(&mut self, at: usize, number: u32) {
        self.put(at, &number.to_be_bytes());
    }

    fn u64(&mut self, at: usize, number: u64) {
        self.put(at, &number.to_be_bytes());
    }

    /// Sets an entry of the table of the second level, in words of 8 bytes.
    fn entry(&mut self, word: usize, entry: u64) {
        self.u64(2 * CLUSTER + word * 8, entry);
    }

    /// Adds a cluster of data and returns where it lies.
    fn data(&mut self, byte: u8) -> u64 {
        let at = self.bytes.len() as u64;
        self.bytes.resize(self.bytes.len() + CLUSTER, byte);
        at
    }

    fn name(&mut self, at: usize, name: &str) {
        self.u64(8, at as u64);
        self.u32(16, u32::try_from(name.len()).unwrap());
        self.put(at, name.as_bytes());
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk.qcow2")
    }

    fn open_as(&self, trust: Trust) -> Result<Qcow2Image, ImageError> {
        fs::write(self.path(), &self.bytes).unwrap();
        Qcow2Image::open(RawImage::open(&self.path()).unwrap(), Reading::Cached, trust, None)
    }

    fn open(&self) -> Result<Qcow2Image, ImageError> {
        self.open_as(Trust::Said)
    }

    /// Reads the whole disk, and once more only where data is said to lie; both must be the same.
    fn read(&self) -> Result<Vec<u8>, ImageError> {
        let image = self.open()?;
        let mut whole = vec![9; usize::try_from(image.size()).unwrap()];
        image.read_at(&mut whole, 0)?;
        let mut parts = vec![0; whole.len()];
        let mut at = 0;
        while let Some(Extent { offset, length }) = image.next_data(at)? {
            assert!(offset >= at && length > 0);
            at = offset + length;
            let range = usize::try_from(offset).unwrap()..usize::try_from(at).unwrap();
            image.read_at(&mut parts[range], offset)?;
        }
        assert!(whole == parts);
        Ok(whole)
    }

    fn problem(&self) -> String {
        let error = self.read().unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Io | ErrorKind::Unsupported),
            "{error}"
        );
        error.to_string()
    }
}

/// The byte that each of the clusters has throughout.
fn clusters(disk: &[u8]) -> Vec<u8> {
    let clusters = disk.chunks(CLUSTER);
    clusters.map(|it| if it.iter().all(|byte| *byte == it[0]) { it[0] } else { 255 }).collect()
}

#[test]
fn clusters_are_data_zeros_or_not_there() {
    let mut sketch = Sketch::new();
    let (a, b, c) = (sketch.data(1), sketch.data(2), sketch.data(3));
    sketch.entry(0, a | 1 << 63);
    sketch.entry(1, b);
    sketch.entry(3, c);
    // Zeros, of which one has a place kept for it.
    sketch.entry(4, 1);
    sketch.entry(5, a | 1);
    sketch.entry(15, b);
    let expected = [1, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    assert_eq!(clusters(&sketch.read().unwrap()), expected);
    let image = sketch.open().unwrap();
    let extent = |offset: usize, length: usize| Some(Extent { offset: offset as u64, length: length as u64 });
    assert_eq!(image.next_data(0).unwrap(), extent(0, 2 * CLUSTER), "neighbours in the file too");
    assert_eq!(image.next_data(CLUSTER as u64 + 5).unwrap(), extent(CLUSTER + 5, CLUSTER - 5));
    assert_eq!(image.next_data(4 * CLUSTER as u64).unwrap(), extent(15 * CLUSTER, CLUSTER));
    assert_eq!(image.next_data(DISK).unwrap(), None);
    let mut buffer = [0; 3];
    image.read_at(&mut buffer, CLUSTER as u64 - 1).unwrap();
    assert_eq!(buffer, [1, 2, 2]);
    assert!(matches!(image.read_at(&mut buffer, DISK - 2), Err(ImageError::ShortRead { missing: 1, .. })));
}

#[test]
fn holes_of_the_file_are_not_read_although_clusters_lie_there() {
    let mut sketch = Sketch::new();
    let at = sketch.bytes.len() as u64;
    sketch.entry(2, at);
    sketch.open().unwrap();
    fs::OpenOptions::new().write(true).open(sketch.path()).unwrap().set_len(at + CLUSTER as u64).unwrap();
    let image = Qcow2Image::open(RawImage::open(&sketch.path()).unwrap(), Reading::Cached, Trust::Said, None)
        .unwrap();
    assert_eq!(image.next_data(0).unwrap(), None);
}

#[test]
fn parts_of_a_cluster_have_places_of_their_own() {
    let mut sketch = Sketch::new();
    sketch.u64(72, 1 << 4);
    let a = sketch.data(7);
    // The first 2 KiB and the last are data, the second are zeros, the rest is not there.
    sketch.entry(0, a);
    sketch.entry(1, 1 << 33 | 1 << 31 | 1);
    sketch.entry(2, 0);
    sketch.entry(3, 0xffff_ffff << 32);
    let disk = sketch.read().unwrap();
    let at = |offset: usize| disk[offset];
    assert_eq!(
        [at(0), at(2047), at(2048), at(63_487), at(63_488), at(65_535), at(65_536)],
        [7, 7, 0, 0, 7, 7, 0]
    );
    for (word, entry) in [(1, 1 << 32 | 1), (3, 1), (0, a | 1)] {
        let before = sketch.bytes.clone();
        sketch.entry(word, entry);
        assert!(sketch.problem().contains("contradict"), "{word}");
        sketch.bytes = before;
    }
}

#[test]
fn compressed_clusters_are_inflated() {
    use std::io::Write;
    for zstd in [false, true] {
        let mut sketch = Sketch::new();
        let plain: Vec<u8> = (0..CLUSTER).map(|at| u8::try_from(at / 300 % 256).unwrap()).collect();
        let stored = if zstd {
            sketch.u64(72, 1 << 3);
            sketch.u32(100, 112);
            sketch.put(104, &[1]);
            zstd::encode_all(plain.as_slice(), 1).unwrap()
        } else {
            let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
            deflate.write_all(&plain).unwrap();
            deflate.finish().unwrap()
        };
        let at = sketch.bytes.len() + 100;
        sketch.bytes.resize(at, 0xee);
        sketch.bytes.extend(&stored);
        let sectors = (at % 512 + stored.len()).div_ceil(512) as u64 - 1;
        sketch.entry(6, 1 << 62 | sectors << 54 | at as u64);
        let disk = sketch.read().unwrap();
        assert!(disk[6 * CLUSTER..7 * CLUSTER] == plain);
        let mut part = [0; 10];
        sketch.open().unwrap().read_at(&mut part, 6 * CLUSTER as u64 + 12_345).unwrap();
        assert_eq!(part, plain[12_345..12_355]);
        let first = at + 3;
        sketch.bytes[first..first + 20].fill(0xff);
        sketch.problem();
        sketch.bytes.truncate(at + 9);
        sketch.problem();
    }
}

#[test]
fn what_is_below_shows_through_and_ends_where_it_ends() {
    let mut base = Sketch::new();
    let a = base.data(5);
    base.entry(0, a);
    base.entry(1, a);
    base.u64(24, CLUSTER as u64 + 10);
    let mut sketch = Sketch::new();
    sketch.name(500, base.path().to_str().unwrap());
    sketch.put(104, &0xe279_2aca_u32.to_be_bytes());
    sketch.u32(108, 5);
    sketch.put(112, b"qcow2");
    let b = sketch.data(6);
    sketch.entry(2, b);
    base.open().unwrap();
    let disk = sketch.read().unwrap();
    assert_eq!(clusters(&disk)[..4], [5, 255, 6, 0]);
    assert_eq!(disk[CLUSTER + 9..CLUSTER + 11], [5, 0]);
    // A format that is not said is recognised, and followed no further.
    sketch.u32(104, 0);
    assert_eq!(clusters(&sketch.read().unwrap())[0], 5);
    base.name(500, "/etc/passwd");
    base.open_as(Trust::Guessed).unwrap_err();
    assert!(matches!(sketch.open(), Err(ImageError::Untrusted { .. })));
    // Nor is anything if the image itself was only recognised.
    assert!(matches!(sketch.open_as(Trust::Guessed), Err(ImageError::Untrusted { .. })));
    for name in ["nbd://host/x", "json:{}", "fd:5"] {
        sketch.name(500, name);
        assert!(sketch.problem().contains("no path"), "{name}");
    }
    sketch.name(500, "gone.qcow2");
    assert_eq!(sketch.open().unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_chain_without_an_end_is_refused() {
    let mut sketch = Sketch::new();
    sketch.name(500, "disk.qcow2");
    sketch.put(104, &0xe279_2aca_u32.to_be_bytes());
    sketch.u32(108, 5);
    sketch.put(112, b"qcow2");
    assert!(sketch.problem().contains("no end"));
}

#[test]
fn tables_that_make_no_sense_are_refused() {
    type Change = fn(&mut Sketch);
    let cases: [(&str, Change); 14] = [
        ("clusters have 2^8", |it| it.u32(20, 8)),
        ("clusters have 2^22", |it| it.u32(20, 22)),
        ("version 4", |it| it.u32(4, 4)),
        ("corrupt", |it| it.u64(72, 2)),
        ("features 0x20", |it| it.u64(72, 1 << 5)),
        ("encrypted", |it| it.u32(32, 2)),
        ("impossibly large", |it| it.u32(36, u32::MAX)),
        ("too small for its size", |it| it.u64(24, 1 << 40)),
        ("begins inside a cluster", |it| it.u64(40, 512)),
        ("second level begins inside", |it| it.u64(CLUSTER, 2 * CLUSTER as u64 + 512)),
        ("begins inside another", |it| it.entry(1, 3 * CLUSTER as u64 + 512)),
        ("more bytes were to be read", |it| it.entry(1, 1 << 40)),
        ("name of its backing file", |it| it.name(CLUSTER - 3, "abc")),
        ("does not name its data file", |it| it.u64(72, 1 << 2)),
    ];
    for (what, change) in cases {
        let mut sketch = Sketch::new();
        change(&mut sketch);
        if what == "name of its backing file" {
            sketch.u32(16, 2000);
        }
        let problem = sketch.problem();
        assert!(problem.contains(what), "{what}: {problem}");
    }
    let mut old = Sketch::new();
    old.u32(4, 2);
    old.entry(0, 1);
    assert!(old.problem().contains("version 2 cannot say"));
}

#[test]
fn an_image_that_is_cut_anywhere_is_an_error_or_what_it_was() {
    let mut sketch = Sketch::new();
    let a = sketch.data(1);
    sketch.entry(0, a);
    let whole = sketch.read().unwrap();
    let bytes = sketch.bytes.clone();
    for length in (0..300).chain((300..bytes.len()).step_by(1013)) {
        sketch.bytes.clone_from(&bytes);
        sketch.bytes.truncate(length);
        match sketch.read() {
            Ok(disk) => assert!(disk == whole, "cut to {length}"),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
