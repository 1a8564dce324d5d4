//! A small repository of which bytes were changed: list, check, restore, backup and garbage collection end, with or without an
//! error, within the memory that the fuzzer allows.
//!
//! The input is a list of changes of 12 bytes each: the file, what is done to it, the place, and the bytes. Checksums are
//! made to fit again where one byte of the input asks for it, so that what stands behind them is reached as well.
#![no_main]

mod shared;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use ekko::backup::{BackupOptions, back_up};
use ekko::check::{CheckOptions, ReadData, check, check_with_index};
use ekko::codec::CompressionSetting;
use ekko::image::{ImageOptions, open_image};
use ekko::manifest::ImageName;
use ekko::progress::Silent;
use ekko::repository::{GcOptions, InitOptions, OpenOptions, Repository, RepositoryWriter, SharedWriter};
use ekko::restore::{RestoreOptions, restore_to_stream};
use ekko::segment::SegmentSize;
use libfuzzer_sys::fuzz_target;

/// More changes only make a run slow.
const CHANGES: usize = 8;
/// The largest file that this target itself reads or copies, in bytes: all are smaller until it makes some longer.
const LARGEST_READ: u64 = 1 << 21;
static ORIGINAL: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = shared::folder();
    let root = folder.path().join("store");
    let segment_size = SegmentSize::new(64 << 10).unwrap();
    Repository::init(&root, &InitOptions { segment_size, ..InitOptions::default() }).unwrap();
    for seed in 1..4_u8 {
        let writer = RepositoryWriter::open(&root, &OpenOptions::default(), &Silent).unwrap();
        let writer = SharedWriter::new(writer);
        let disk: Vec<u8> = (0..300_000_u32).map(|at| (at / 70_000 * u32::from(seed)) as u8).collect();
        backup(&writer, folder.path(), "web", &disk);
        backup(&writer, folder.path(), "db", &disk[..100_000]);
        writer.close().unwrap();
    }
    folder
});

fn backup(writer: &SharedWriter, folder: &Path, name: &str, disk: &[u8]) {
    let path = folder.join("disk.raw");
    fs::write(&path, disk).unwrap();
    let opened = open_image(&path, &ImageOptions::default()).unwrap();
    let options = BackupOptions::new(CompressionSetting::default(), 1);
    let _ = back_up(writer, &ImageName::new(name).unwrap(), opened.image.as_ref(), &options, &Silent);
}

fn copy(from: &Path, to: &Path, files: &mut Vec<PathBuf>) {
    fs::create_dir(to).unwrap();
    let mut entries: Vec<_> = fs::read_dir(from).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &path, files);
        } else if entry.file_name() == "reserve" {
            // 64 MiB of zeros: as long, and a hole.
            File::create(&path).unwrap().set_len(64 << 20).unwrap();
        } else {
            fs::copy(entry.path(), &path).unwrap();
            files.push(path);
        }
    }
}

/// Makes the checksums of a pack's or a state's fixed places fit what stands there now.
fn mend(path: &Path, place: u64) {
    let Ok(file) = File::options().read(true).write(true).open(path) else { return };
    let mut header = [0; 256];
    if file.read_exact_at(&mut header, 0).is_err() {
        return;
    }
    let at = place / 512 * 512;
    let mut record = [0; 256];
    if file.read_exact_at(&mut record, at).is_err() {
        return;
    }
    let checksum = if header.starts_with(b"EKKOPACK") && at >= 8192 {
        let key: [u8; 32] = header[32..64].try_into().unwrap();
        *blake3::Hasher::new_keyed(&key)
            .update(&at.to_le_bytes())
            .update(&record[..224])
            .finalize()
            .as_bytes()
    } else {
        *blake3::hash(&record[..224]).as_bytes()
    };
    let _ = file.write_all_at(&checksum, at + 224);
}

/// Says whether a file was not made longer than this target itself should read.
fn is_small(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() <= LARGEST_READ)
}

/// Makes the last line of a file of settings fit what stands before it now.
fn mend_text(path: &Path) {
    const LINE: &[u8] = b"# BLAKE3 of all before this line: ";
    if !is_small(path) {
        return;
    }
    let Ok(bytes) = fs::read(path) else { return };
    let Some(at) = bytes.windows(LINE.len()).rposition(|window| window == LINE) else { return };
    let (covered, _) = bytes.split_at(at);
    let sum = blake3::hash(covered).to_hex();
    let _ = fs::write(path, [covered, LINE, sum.as_bytes(), b"\n"].concat());
}

fn change(files: &[PathBuf], bytes: &[u8; 12]) {
    let [file, what, a, b, c, d, rest @ ..] = *bytes;
    let path = &files[usize::from(file) % files.len()];
    let Ok(opened) = File::options().read(true).write(true).open(path) else { return };
    let size = opened.metadata().unwrap().len();
    let place = u64::from(u32::from_le_bytes([a, b, c, d])) % size.max(1);
    match what % 8 {
        0 => drop(opened.set_len(place)),
        1 => drop(opened.set_len(size + (1 << (rest[0] % 41)))),
        2 => drop(fs::remove_file(path)),
        3 => drop(opened.write_all_at(&[rest[0]; 64][..usize::from(rest[1]) % 64], place)),
        // Fields of records and tables are multiples of four bytes.
        4 => drop(opened.write_all_at(&rest[..4], place / 4 * 4)),
        5 => drop(opened.write_all_at(&[0xFF; 8][..usize::from(rest[0]) % 9], place / 4 * 4)),
        6 => {
            let other = &files[usize::from(rest[0]) % files.len()];
            if other != path && is_small(other) {
                drop(fs::copy(other, path));
            }
        }
        _ => drop(opened.write_all_at(&rest, place)),
    }
    if what & 0x80 != 0 {
        mend(path, place);
        mend_text(path);
    }
}

fn read(root: &Path) {
    let Ok(repository) = Repository::open(root) else { return };
    let options = CheckOptions { read_data: ReadData::All, jobs: 1 };
    let _ = check(&repository, &options, &Silent);
    let Ok((sets, _)) = repository.backupsets() else { return };
    for (set, record) in sets.iter().flat_map(|set| set.backups.iter().map(move |record| (set, record))) {
        let Ok(manifest) = repository.manifest(set, record) else { continue };
        // A disk may be said to have any size; what is restored of it here has a limit.
        let end = manifest.info().geometry.size_of_disk().min(1 << 20);
        let options = RestoreOptions {
            jobs: 1,
            sync: false,
            range: Some(0..end),
            ..RestoreOptions::default() };
        let _ = restore_to_stream(&repository, &manifest, &mut std::io::sink(), &options, &Silent);
    }
}

fn write(root: &Path, folder: &Path) {
    let Ok(writer) = RepositoryWriter::open(root, &OpenOptions::default(), &Silent) else { return };
    let writer = SharedWriter::new(writer);
    let options = CheckOptions { read_data: ReadData::None, jobs: 1 };
    let _ = check_with_index(&writer, &options, true, &Silent);
    backup(&writer, folder, "web", &[9; 70_000]);
    let options = GcOptions { now: Some(""), keep_unfinished: Some(Duration::ZERO), ..GcOptions::default() };
    let _ = writer.with(|writer| writer.gc(&options, &Silent));
    let _ = writer.close();
}

fuzz_target!(
    init: shared::pass_over_panics_of_sled(),
    |data: &[u8]| {
        let folder = shared::folder();
        let root = folder.path().join("store");
        let mut files = Vec::new();
        copy(&ORIGINAL.path().join("store"), &root, &mut files);
        let (changes, _) = data.as_chunks::<12>();
        changes.iter().take(CHANGES).for_each(|bytes| change(&files, bytes));
        read(&root);
        write(&root, folder.path());
        read(&root);
    }
);
