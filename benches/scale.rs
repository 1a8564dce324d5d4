//! First backups of images that hold nothing but unique segments of 64 KiB, made from a seed: what they cost at 10^4, 10^5,
//! 10^6 and 2^22 segments, in all and in the index; and the commit of an unchanged disk of 2^22 segments of 4 MiB.
//!
//! `EKKO_BENCH_SEGMENTS` says how large the largest is, 2^22 unless it does; that one needs 20 GB of disk, in
//! `EKKO_BENCH_FOLDER` or the folder of temporary files.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark is no library"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ekko::backup::{BackupOptions, back_up};
use ekko::codec::{Codec, Compression, CompressionSetting, Encryption};
use ekko::image::{Extent, Image, ImageError};
use ekko::manifest::{BaseIndex, ImageName, Incremental, ManifestWriter, SegmentRef};
use ekko::progress::Silent;
use ekko::repository::{InitOptions, OpenOptions, Repository, RepositoryWriter, SharedWriter};
use ekko::segment::{Fingerprint, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin};
use ekko::store::Claim;

/// What the command has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEGMENT: u32 = 64 << 10;
const THREADS: usize = 4;
/// How many segments are looked up to find out how fast that is.
const LOOKUPS: u32 = 100_000;

/// A disk of which every segment differs from all others and compresses well.
#[derive(Debug)]
struct Synthetic {
    segments: u32,
}

impl Synthetic {
    /// What the segment at a place repeats.
    fn seed(place: u64) -> [u8; 64] {
        let mut seed = [0; 64];
        blake3::Hasher::new_derive_key("ekko 2026 synthetic image")
            .update(&place.to_le_bytes())
            .finalize_xof()
            .fill(&mut seed);
        seed
    }
}

impl Image for Synthetic {
    fn path(&self) -> &Path {
        Path::new("synthetic")
    }

    fn size(&self) -> u64 {
        u64::from(self.segments) * u64::from(SEGMENT)
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        Ok((from < self.size()).then(|| Extent { offset: from, length: self.size() - from }))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        // Pieces are whole segments.
        for (plain, place) in buffer.chunks_mut(SEGMENT as usize).zip(offset / u64::from(SEGMENT)..) {
            let seed = Self::seed(place);
            plain.as_chunks_mut::<64>().0.fill(seed);
        }
        Ok(())
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        Ok(())
    }
}

fn peak() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { size_of(&path) } else { path.metadata().unwrap().len() }).sum()
}

fn name() -> ImageName {
    ImageName::new("synthetic").unwrap()
}

fn open(root: &Path) -> RepositoryWriter {
    RepositoryWriter::open(root, &OpenOptions { buffers: THREADS + 2, ..OpenOptions::default() }, &Silent)
        .unwrap()
}

fn make(root: &Path, segment_size: u64) {
    let segment_size = SegmentSize::new(segment_size).unwrap();
    Repository::init(root, &InitOptions { segment_size, ..InitOptions::default() }).unwrap();
}

/// A first backup of a whole image, as the command makes it.
fn whole(root: &Path, segments: u32) {
    make(root, u64::from(SEGMENT));
    let shared = SharedWriter::new(open(root));
    let options = BackupOptions::new(CompressionSetting::default(), THREADS);
    let begun = Instant::now();
    let summary = back_up(&shared, &name(), &Synthetic { segments }, &options, &Silent).unwrap();
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(summary.stats.new_segments, u64::from(segments));
    shared.close().unwrap();
    let index = size_of(&root.join("index"));
    println!(
        "whole {segments} {took:.3} {:.0} {} {:.1}",
        f64::from(segments) / took,
        peak(),
        index as f64 / 1e6
    );
    // The same again: everything is looked up and found unchanged.
    let shared = SharedWriter::new(open(root));
    let begun = Instant::now();
    let summary = back_up(&shared, &name(), &Synthetic { segments }, &options, &Silent).unwrap();
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(summary.stats.unchanged_segments, u64::from(segments));
    shared.close().unwrap();
    println!("again {segments} {took:.3} {:.0} {}", f64::from(segments) / took, peak());
}

/// What is left of that without reading, hashing and compressing: claims, records of 512 bytes, manifest and commit; and what of
/// it the index takes: looking up, changing, making durable. Then lookups of segments that are there, and of some that are
/// not, in no order.
fn index(root: &Path, segments: u32) {
    make(root, u64::from(SEGMENT));
    let writer = open(root);
    let size = u64::from(segments) * u64::from(SEGMENT);
    let begun = Instant::now();
    let draft = writer.begin_backup(&name(), size).unwrap();
    let mut manifest = writer.create_manifest(&draft).unwrap();
    let store = writer.store();
    let mut claiming = Duration::ZERO;
    for place in 0..segments {
        let hash = hash(place);
        let claimed = Instant::now();
        let claim = store.claim(draft.job(), hash, Fingerprint::from_bytes([7; 32]), SEGMENT).unwrap();
        claiming += claimed.elapsed();
        append(&writer, claim, &mut manifest, place);
    }
    let before = store.index_work().unwrap();
    let committing = Instant::now();
    writer.commit(draft, manifest).unwrap();
    let committing = committing.elapsed();
    let took = begun.elapsed();
    let work = writer.store().index_work().unwrap();
    // A commit flushes what was appended last, looks everything up and counts it.
    let index = claiming + before.busy + committing;
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(segments);
    println!(
        "index {segments} {:.3} {:.2} {:.2} {:.2} {:.2} {} {}",
        took.as_secs_f64(),
        each(index),
        each(claiming),
        each(work.busy),
        each(committing),
        work.records,
        peak()
    );
    let store = writer.store();
    let begun = Instant::now();
    for number in 0..LOOKUPS {
        let place = u32::try_from(u64::from(number) * 2_654_435_761 % u64::from(segments)).unwrap();
        store.require(SegmentKey { hash: hash(place), twin: Twin(0) }).unwrap();
    }
    let found = f64::from(LOOKUPS) / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    for number in 0..LOOKUPS {
        assert!(store.find(hash(u32::MAX - number)).unwrap().is_empty());
    }
    let absent = f64::from(LOOKUPS) / begun.elapsed().as_secs_f64();
    println!("lookups {segments} {found:.0} {absent:.0}");
    writer.close().unwrap();
}

/// What the name of the segment at a place is where nobody looks for its content.
fn hash(place: u32) -> SegmentHash {
    let hash = blake3::hash(&place.to_le_bytes());
    SegmentHash::from_bytes(*hash.as_bytes().first_chunk::<20>().unwrap())
}

/// Appends a segment without content, and names it.
fn append(writer: &RepositoryWriter, claim: Claim, manifest: &mut ManifestWriter, place: u32) {
    let Claim::New(new) = claim else { panic!("it is new") };
    let mut buffer = writer.store().buffer().unwrap();
    let key = new.key();
    buffer.restart().extend_from_slice(key.hash.as_bytes());
    let codec = Codec { compression: Compression::Zstd, encryption: Encryption::None };
    writer.store().append(new, codec, buffer).unwrap();
    let segment = SegmentRef { key, incremental: Incremental(0), base: BaseIndex(0) };
    manifest.push(SegmentIndex(place), &segment).unwrap();
}

/// Commits the second backup of a disk of which nothing changed; the segments are stored first, without content.
fn unchanged(root: &Path, segments: u32) {
    make(root, 4 << 20);
    let writer = open(root);
    let size = u64::from(segments) * (4 << 20);
    let mut commits = Vec::new();
    for incremental in 0..6 {
        let draft = writer.begin_backup(&name(), size).unwrap();
        let mut manifest = writer.create_manifest(&draft).unwrap();
        let before = draft.parent().map(|parent| &parent.manifest);
        match before {
            None => {
                for place in 0..segments {
                    let claim = writer.store().claim(
                        draft.job(),
                        hash(place),
                        Fingerprint::from_bytes([7; 32]),
                        4 << 20,
                    );
                    append(&writer, claim.unwrap(), &mut manifest, place);
                }
            }
            Some(before) => {
                for (place, segment) in before.segments() {
                    manifest.push(place, &segment).unwrap();
                }
            }
        }
        let begun = Instant::now();
        writer.commit(draft, manifest).unwrap();
        if incremental > 0 {
            commits.push(begun.elapsed().as_secs_f64());
        }
    }
    commits.sort_by(f64::total_cmp);
    println!(
        "unchanged {segments} {:.3} {:.3} {:.3}",
        commits[0],
        commits[commits.len() / 2],
        commits[commits.len() - 1]
    );
    writer.close().unwrap();
}

fn main() {
    if let (Ok(phase), Some(root)) = (std::env::var("EKKO_BENCH_PHASE"), std::env::args().nth(1)) {
        let segments = std::env::args().nth(2).unwrap().parse().unwrap();
        let root = Path::new(&root);
        return match phase.as_str() {
            "whole" => whole(root, segments),
            "index" => index(root, segments),
            _ => unchanged(root, segments),
        };
    }
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    let largest: u32 = number("EKKO_BENCH_SEGMENTS").unwrap_or(1 << 22);
    let folder = std::env::var("EKKO_BENCH_FOLDER").map_or_else(|_| std::env::temp_dir(), PathBuf::from);
    // Each in a process of its own, so that its memory is its own; each prints a line of numbers after its name.
    let run = |phase: &str, segments: u32| {
        let place = tempfile::tempdir_in(&folder).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("EKKO_BENCH_PHASE", phase).arg(place.path().join("store")).arg(segments.to_string());
        assert!(command.status().unwrap().success());
    };
    println!("whole: segments, seconds, segments a second, peak MiB, index in MB");
    println!("again: segments, seconds, segments a second, peak MiB");
    println!(
        "index: segments, seconds in all, us a segment of the index; of them claims, changes, commit; records, peak MiB"
    );
    println!("lookups: segments, found a second, absent a second");
    println!("unchanged: segments, seconds of a commit: least, median, most of five");
    let sizes = [10_000, 100_000, 1_000_000, largest];
    for segments in sizes.into_iter().filter(|size| *size <= largest) {
        run("index", segments);
        run("whole", segments);
    }
    run("unchanged", largest);
}
