//! Images that QEMU's own tools made (`tests/data/images/make.sh`), read as they read them; and, where those tools are, images in
//! formats that are read through QEMU's server.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ekko::error::ErrorKind;
use ekko::image::{Extent, Format, Image, ImageError, ImageOptions, LookAlike, OpenImage, open_image};
use sha1::{Digest, Sha1};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images")
}

/// Unpacks all images into a folder; they refer to each other.
fn unpacked() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(data()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == "xz") {
            let mut bytes = Vec::new();
            xz2::read::XzDecoder::new(fs::File::open(&path).unwrap()).read_to_end(&mut bytes).unwrap();
            let file = fs::File::create(folder.path().join(path.file_stem().unwrap())).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            // As sparse as they were.
            for (block, at) in bytes.chunks(4096).zip((0..).step_by(4096)) {
                if block.iter().any(|byte| *byte != 0) {
                    file.write_all_at(block, at).unwrap();
                }
            }
        }
    }
    folder
}

/// What each is to be: its name (and a snapshot's), SHA-1, how many bytes are data at most.
fn expected() -> Vec<(String, Option<String>, String, u64)> {
    let text = fs::read_to_string(data().join("expected")).unwrap();
    let lines = text.lines().map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let (name, snapshot) = match fields[0].split_once('@') {
            Some((name, snapshot)) => (name, Some(snapshot.to_owned())),
            None => (fields[0], None),
        };
        (name.to_owned(), snapshot, fields[1].to_owned(), fields[2].parse().unwrap())
    });
    lines.collect()
}

fn open(path: &Path, snapshot: Option<String>) -> Result<OpenImage, ImageError> {
    open_image(path, &ImageOptions { format: Some(Format::Qcow2), snapshot, ..ImageOptions::default() })
}

/// Reads a disk where data is said to lie. Returns it and how much that was.
fn read(image: &dyn Image) -> Result<(Vec<u8>, u64), ImageError> {
    // No image here has more; a damaged one may say so.
    let mut disk = vec![0; usize::try_from(image.size().min(64 << 20)).unwrap()];
    let (mut at, mut bytes) = (0, 0);
    while let Some(Extent { offset, length }) =
        image.next_data(at)?.filter(|it| it.offset < disk.len() as u64)
    {
        assert!(offset >= at && length > 0 && offset + length <= image.size());
        at = (offset + length).min(disk.len() as u64);
        bytes += at - offset;
        image.read_at(&mut disk[usize::try_from(offset).unwrap()..usize::try_from(at).unwrap()], offset)?;
    }
    image.verify_unchanged()?;
    Ok((disk, bytes))
}

#[test]
fn every_image_is_the_disk_that_qemu_reads_and_only_its_data_is_read() {
    let folder = unpacked();
    let expected = expected();
    assert!(expected.len() >= 20);
    for (name, snapshot, sha1, data) in expected {
        let opened = open(&folder.path().join(format!("{name}.qcow2")), snapshot.clone()).unwrap();
        let (disk, bytes) = read(opened.image.as_ref()).unwrap();
        assert_eq!(hex::encode(Sha1::digest(&disk)), sha1, "{name} {snapshot:?}");
        assert!(bytes <= data, "{name} {snapshot:?}: {bytes} of {data}");
        // The same in one read, holes and all.
        let mut whole = vec![9; disk.len()];
        opened.image.read_at(&mut whole, 0).unwrap();
        assert!(whole == disk, "{name} {snapshot:?}");
    }
}

#[test]
fn an_image_is_recognised_and_what_it_refers_to_is_not_followed_then() {
    let folder = unpacked();
    let probed = |name: &str| open_image(&folder.path().join(name), &ImageOptions::default());
    for name in ["v2.qcow2", "v3.qcow2", "compressed.qcow2"] {
        let opened = probed(name).unwrap();
        assert_eq!((opened.format, opened.recognised), (Format::Qcow2, true));
    }
    assert_eq!(probed("base.raw").unwrap().format, Format::Raw);
    for name in ["chain.qcow2", "middle.qcow2", "data-file.qcow2"] {
        let error = probed(name).unwrap_err();
        assert!(matches!(error, ImageError::Untrusted { .. }), "{name}: {error}");
        assert!(error.to_string().contains("say --format qcow2 or --format raw"));
    }
    let raw = ImageOptions { format: Some(Format::Raw), ..ImageOptions::default() };
    let opened = open_image(&folder.path().join("chain.qcow2"), &raw).unwrap();
    assert_eq!(opened.image.size(), fs::metadata(folder.path().join("chain.qcow2")).unwrap().len());
}

#[test]
fn a_snapshot_that_is_not_there_is_said_with_those_that_are() {
    let folder = unpacked();
    let path = folder.path().join("snapshots.qcow2");
    let error = open(&path, Some("third".to_owned())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().ends_with("it has: first (1), second (2)"), "{error}");
    // By its id as well.
    let [by_id, by_name] =
        ["2", "second"].map(|it| read(open(&path, Some(it.to_owned())).unwrap().image.as_ref()).unwrap().0);
    assert!(by_id == by_name);
    assert!(
        open(&folder.path().join("v3.qcow2"), Some("1".to_owned()))
            .unwrap_err()
            .to_string()
            .ends_with("none")
    );
}

#[test]
fn a_text_that_is_the_id_of_one_snapshot_and_the_name_of_another_is_refused() {
    let folder = unpacked();
    let path = folder.path().join("snapshots.qcow2");
    // The first snapshot, whose id is 1, gets the name "2": the last 6 bytes of its entry are id and name.
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|it| it == b"1first").unwrap();
    let header =
        [16, 24].map(|extra| at - extra - 40).into_iter().find(|it| bytes[it + 12..it + 16] == [0, 1, 0, 5]);
    bytes[at + 1] = b'2';
    bytes[header.unwrap() + 15] = 1;
    fs::write(&path, bytes).unwrap();
    let error = open(&path, Some("2".to_owned())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(
        error.to_string().contains("\"2\" names \"2\" (id 1) and \"second\" (id 2); choose one"),
        "{error}"
    );
    // Each has another name that is its own.
    for text in ["1", "second"] {
        open(&path, Some(text.to_owned())).unwrap();
    }
}

/// Runs qemu-img in a folder. Says whether it did; nothing if there is none here.
fn qemu_img(folder: &Path, arguments: &[&str]) -> Option<bool> {
    let mut command = Command::new("qemu-img");
    let ran =
        command.args(arguments).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null()).status();
    ran.ok().map(|status| status.success())
}

/// Whether formats that are read through QEMU's server can be read here.
fn has_qemu() -> bool {
    let has = |program: &str| Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    has("qemu-img") && has("qemu-nbd")
}

/// The formats that are read through QEMU's server, each in what it comes in.
const SERVED: [(Format, &str); 11] = [
    (Format::Vmdk, "subformat=monolithicSparse"),
    (Format::Vmdk, "subformat=monolithicFlat"),
    (Format::Vmdk, "subformat=twoGbMaxExtentSparse"),
    (Format::Vmdk, "subformat=streamOptimized"),
    (Format::Vhdx, "subformat=dynamic"),
    (Format::Vhdx, "subformat=fixed"),
    (Format::Vpc, "subformat=dynamic,force_size=on"),
    (Format::Vpc, "subformat=fixed,force_size=on"),
    (Format::Vdi, "static=off"),
    (Format::Qed, "cluster_size=65536"),
    (Format::Parallels, "cluster_size=1048576"),
];

/// A raw disk of 16 MiB and some, of which a fifth is data.
fn sparse_disk() -> Vec<u8> {
    let mut seed = 3;
    let mut disk = vec![0; (16 << 20) + 512 * 5];
    for start in [0, 5 << 20, (9 << 20) + 4096, 16 << 20] {
        let end = disk.len().min(start + (1 << 20) - 512);
        disk[start..end].iter_mut().for_each(|byte| *byte = random(&mut seed).to_le_bytes()[0]);
    }
    disk
}

/// Opens an image that is said to have a format.
fn open_as(path: &Path, format: Format) -> Result<OpenImage, ImageError> {
    open_image(path, &ImageOptions { format: Some(format), ..ImageOptions::default() })
}

#[test]
fn formats_that_qemu_serves_are_the_disks_that_qemu_reads_and_holes_are_not_read() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = sparse_disk();
    fs::write(folder.path().join("disk.raw"), &disk).unwrap();
    for (format, options) in SERVED {
        // A colon before any slash would be a protocol to QEMU.
        let name = format!("x:{}", format.name());
        let made =
            ["convert", "-f", "raw", "-O", format.name(), "-o", options, "disk.raw", &format!("./{name}")];
        assert_eq!(qemu_img(folder.path(), &made), Some(true), "{format} {options}");
        let path = folder.path().join(&name);
        let opened = open_as(&path, format).unwrap();
        assert_eq!((opened.format, opened.recognised), (format, false));
        let (found, bytes) = read(opened.image.as_ref()).unwrap();
        // Some round the size up to what they count in.
        assert!(
            found.starts_with(&disk) && found[disk.len()..].iter().all(|it| *it == 0),
            "{format} {options}"
        );
        let back = ["convert", "-f", format.name(), "-O", "raw", &format!("./{name}"), "back.raw"];
        assert_eq!(qemu_img(folder.path(), &back), Some(true));
        assert!(found == fs::read(folder.path().join("back.raw")).unwrap(), "{format} {options}");
        // Where the file is as large as the disk, what is a hole is for the filesystem to say; of VHDX QEMU does not tell.
        let flat = options.contains("fixed") || options.contains("Flat") || format == Format::Vhdx;
        assert!(flat || bytes <= 9 << 20, "{format} {options}: {bytes}");
        // It is never recognised: without being said, it is a file like others.
        // But it is seen.
        let raw = open_image(&path, &ImageOptions::default()).unwrap();
        assert_eq!(
            (raw.format, raw.looks_like.and_then(LookAlike::format)),
            (Format::Raw, Some(format)),
            "{options}"
        );
        drop(opened);
        for entry in fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap() != "disk.raw" {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

#[test]
fn a_damaged_image_that_qemu_serves_is_an_error_or_the_disk_that_qemu_reads() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("disk.raw"), sparse_disk()).unwrap();
    let (mut seed, mut errors) = (11, 0);
    for (format, options) in SERVED.into_iter().filter(|(_, options)| !options.contains("ixed")) {
        let made = ["convert", "-f", "raw", "-O", format.name(), "-o", options, "disk.raw", "image"];
        assert_eq!(qemu_img(folder.path(), &made), Some(true), "{format} {options}");
        let path = folder.path().join("image");
        let whole = fs::read(&path).unwrap();
        for trial in 0..20 {
            let mut bytes = whole.clone();
            let mut number = |below: usize| usize::try_from(random(&mut seed) >> 1).unwrap() % below;
            match trial % 4 {
                0 => bytes[number(whole.len().min(512))] ^= 1 << number(8),
                1 => bytes[number(whole.len().min(256 << 10))] ^= 0xff,
                2 => {
                    let at = number(whole.len());
                    let end = bytes.len().min(at + 512);
                    bytes[at..end].fill(0xa5);
                }
                _ => bytes.truncate(number(whole.len())),
            }
            fs::write(&path, &bytes).unwrap();
            let begun = Instant::now();
            let found = open_as(&path, format).and_then(|opened| read(opened.image.as_ref()));
            assert!(begun.elapsed() < Duration::from_mins(1), "{format} {options} {trial}");
            match found {
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    errors += 1;
                }
                Ok((found, _)) => {
                    let back = ["convert", "-f", format.name(), "-O", "raw", "image", "back.raw"];
                    let same = qemu_img(folder.path(), &back) == Some(true)
                        && found == fs::read(folder.path().join("back.raw")).unwrap();
                    assert!(same, "{format} {options} {trial}: another disk than QEMU reads");
                }
            }
        }
    }
    assert!(errors > 30, "{errors}");
}

/// Numbers that follow from a seed (splitmix64).
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[test]
fn damaged_images_are_errors_or_other_bytes_and_never_a_panic_or_a_hang() {
    let folder = unpacked();
    let mut seed = 5;
    let mut errors = 0;
    let mut names: Vec<_> = expected().into_iter().filter(|it| it.1.is_none()).map(|it| it.0).collect();
    names.sort();
    for name in names {
        let path = folder.path().join(format!("{name}.qcow2"));
        let whole = fs::read(&path).unwrap();
        for trial in 0..20 {
            let mut bytes = whole.clone();
            let number =
                |seed: &mut u64, below: usize| usize::try_from(random(seed)).unwrap_or(usize::MAX) % below;
            match trial % 4 {
                // The header, where the tables lie, anywhere, and an end too early.
                0 => bytes[number(&mut seed, 120)] ^= 1 << (random(&mut seed) % 8),
                1 => {
                    let entries: Vec<_> = (0..bytes.len() / 8)
                        .filter(|at| bytes[at * 8] & 0xc0 != 0 && bytes[at * 8 + 1..at * 8 + 4] == [0; 3])
                        .collect();
                    let at = entries[number(&mut seed, entries.len())] * 8;
                    let flip = number(&mut seed, 8);
                    bytes[at + flip] ^= 1 << (random(&mut seed) % 8);
                }
                2 => {
                    let at = number(&mut seed, bytes.len());
                    bytes[at] ^= 0xff;
                }
                _ => bytes.truncate(number(&mut seed, whole.len())),
            }
            fs::write(&path, &bytes).unwrap();
            let begun = Instant::now();
            match open(&path, None).and_then(|opened| read(opened.image.as_ref())) {
                Ok(_) => {}
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    errors += 1;
                }
            }
            assert!(begun.elapsed() < Duration::from_mins(1), "{name} {trial}");
        }
        fs::write(&path, whole).unwrap();
    }
    assert!(errors > 50, "{errors}");
}
