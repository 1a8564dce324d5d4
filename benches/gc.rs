//! Garbage collection, commits, checks and rebuilds of large stores, which are made here: segments have a name and a
//! record of 512 bytes, but no content. `EKKO_BENCH_SEGMENTS` says how many are alive in the largest, 2^20 unless it does.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark is no library"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use ekko::check::{CheckIndex, CheckOptions, ReadData, check_with_index};
use ekko::codec::{Codec, Compression, Encryption};
use ekko::manifest::{BaseIndex, ImageName, Incremental, ManifestWriter, SegmentRef};
use ekko::progress::Silent;
use ekko::repository::{
    BackupDraft, CommittedBackup, Deletion, GcOptions, GcSummary, InitOptions, OpenOptions, Repository,
    RepositoryWriter, SharedWriter,
};
use ekko::segment::{Fingerprint, SegmentHash, SegmentIndex, SegmentKey, SegmentSize};
use ekko::store::Claim;

/// What the command has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many segments die.
const DEAD: u32 = 1000;
const SIZE: u32 = 64 << 10;

fn largest() -> u32 {
    std::env::var("EKKO_BENCH_SEGMENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(1 << 20)
}

/// A number of /proc/self/`file` in its line `key`.
fn of_process(file: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs something; prints how long it took, its peak of memory and what it wrote.
fn measure<T>(what: &str, job: impl FnOnce() -> T) -> (T, Duration) {
    // What was written before is not to be written meanwhile.
    assert!(std::process::Command::new("sync").status().unwrap().success());
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, written) = (of_process("status", "RssAnon"), of_process("io", "wchar"));
    let begun = Instant::now();
    let result = job();
    let took = begun.elapsed();
    let written = of_process("io", "wchar") - written;
    let peak = of_process("status", "VmHWM") / 1024;
    println!(
        "{what}: {:.3} s, {written} bytes written, peak {peak} MiB resident ({} MiB of its own before)",
        took.as_secs_f64(),
        before / 1024
    );
    (result, took)
}

impl Making {
    fn name(&mut self, key: SegmentKey, incremental: u32) {
        let segment = SegmentRef { key, incremental: Incremental(incremental), base: BaseIndex(0) };
        self.manifest.push(SegmentIndex(self.place), &segment).unwrap();
        self.place += 1;
    }
}

struct Store {
    folder: tempfile::TempDir,
    writer: RepositoryWriter,
}

/// A backup in the making.
struct Making {
    draft: BackupDraft,
    manifest: ManifestWriter,
    place: u32,
}

impl Store {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let segment_size = SegmentSize::new(u64::from(SIZE)).unwrap();
        let root = folder.path().join("store");
        Repository::init(&root, &InitOptions { segment_size, ..InitOptions::default() }).unwrap();
        let writer = open(&root, false);
        Self { folder, writer }
    }

    fn begin(&self, name: &str, segments: u32) -> Making {
        let size = u64::from(segments) * u64::from(SIZE);
        let draft = self.writer.begin_backup(&ImageName::new(name).unwrap(), size).unwrap();
        let manifest = self.writer.create_manifest(&draft).unwrap();
        Making { draft, manifest, place: 0 }
    }

    /// Stores a segment of which nobody will read more than its name.
    fn push(&self, making: &mut Making, hash: [u8; 20]) {
        let (store, hash) = (self.writer.store(), SegmentHash::from_bytes(hash));
        let fingerprint = Fingerprint::of(hash.as_bytes());
        let Claim::New(new) = store.claim(making.draft.job(), hash, fingerprint, SIZE).unwrap() else {
            panic!("it is new")
        };
        let mut buffer = store.buffer().unwrap();
        buffer.restart().extend_from_slice(hash.as_bytes());
        let key = new.key();
        store
            .append(new, Codec { compression: Compression::Zstd, encryption: Encryption::None }, buffer)
            .unwrap();
        making.name(key, 0);
    }

    fn commit(&self, making: Making) -> CommittedBackup {
        self.writer.commit(making.draft, making.manifest).unwrap()
    }

    /// Makes `alive` segments that live, and `DEAD` among them that another backup has.
    fn fill(&self, alive: u32) -> CommittedBackup {
        let (mut living, mut dying) = (self.begin("alive", alive), self.begin("dead", DEAD));
        let mut random = blake3::Hasher::new_derive_key("ekko 2026 store of a benchmark").finalize_xof();
        let mut hash = [0; 20];
        for place in 0..alive {
            random.fill(&mut hash);
            self.push(&mut living, hash);
            if place % (alive / DEAD).max(1) == 0 && dying.place < DEAD {
                random.fill(&mut hash);
                self.push(&mut dying, hash);
            }
        }
        self.commit(living);
        self.commit(dying)
    }

    fn delete(&self, backup: &CommittedBackup) {
        let deletion = Deletion { backupset: backup.backupset, incremental: backup.incremental };
        assert!(!self.writer.delete(deletion).unwrap().replace_index);
    }

    fn gc(&self) -> GcSummary {
        self.writer.gc(&GcOptions { now: Some(""), jobs: 2, ..GcOptions::default() }, &Silent).unwrap()
    }

    fn index_writes(&self) -> u64 {
        self.writer.store().index_work().unwrap().records
    }
}

fn open(root: &Path, rebuild: bool) -> RepositoryWriter {
    RepositoryWriter::open(root, &OpenOptions { rebuild, ..OpenOptions::default() }, &Silent).unwrap()
}

/// Makes a store, lets `DEAD` segments die, and collects them.
fn collect(alive: u32) -> Store {
    println!("\n== {alive} segments alive, {DEAD} dead");
    let store = Store::new();
    let (dead, _) = measure("storing them", || store.fill(alive));
    store.delete(&dead);
    let before = store.index_writes();
    let (summary, _) = measure("gc", || store.gc());
    assert_eq!((summary.freed_segments, summary.problems.len()), (u64::from(DEAD), 0));
    println!("gc: {} records of the index, {summary:?}", store.index_writes() - before);
    let (summary, _) = measure("a second gc", || store.gc());
    assert_eq!(summary.freed_segments, 0);
    store
}

/// Commits an unchanged second backup, and deletes it again.
fn unchanged(store: &Store, alive: u32) {
    let (sets, _) = store.writer.repository().backupsets().unwrap();
    let set = sets.iter().find(|set| set.name.as_str() == "alive").unwrap();
    let before = store.writer.repository().manifest(set, set.backups.first().unwrap()).unwrap();
    let mut second = store.begin("alive", alive);
    for (_, segment) in before.segments() {
        second.name(segment.key, segment.incremental.0);
    }
    let writes = store.index_writes();
    let (committed, _) = measure("committing an unchanged second backup", || store.commit(second));
    println!("commit: {} records of the index", store.index_writes() - writes);
    let writes = store.index_writes();
    measure("deleting it again", || store.delete(&committed));
    println!("deletion: {} records of the index", store.index_writes() - writes);
}

/// Compares many candidates with the manifest.
fn prove(store: &Store, alive: u32) {
    let mut many = store.begin("many", 100_000);
    let mut random = blake3::Hasher::new_derive_key("ekko 2026 more of a benchmark").finalize_xof();
    let mut hash = [0; 20];
    for _ in 0..100_000 {
        random.fill(&mut hash);
        store.push(&mut many, hash);
    }
    let many = store.commit(many);
    store.delete(&many);
    let options = GcOptions { dry_run: true, now: Some(""), jobs: 1, ..GcOptions::default() };
    let with = measure("a dry run: 100,000 candidates", || store.writer.gc(&options, &Silent).unwrap());
    let GcSummary { compared_bytes, comparing, .. } = with.0;
    println!(
        "dry run: {compared_bytes} bytes of {alive} segments' columns verified and compared on one core: {:.2} GB/s",
        compared_bytes as f64 / 1e9 / comparing.as_secs_f64()
    );
    measure("gc of 100,000 segments", || store.gc());
}

fn main() {
    if let (Ok(name), Some(root)) = (std::env::var("EKKO_BENCH_PHASE"), std::env::args().nth(1)) {
        return phase(&name, Path::new(&root));
    }
    collect(10_000);
    let alive = largest();
    let store = collect(alive);
    unchanged(&store, alive);
    prove(&store, alive);
    let Store { folder, writer } = store;
    writer.close().unwrap();
    // Each in a process of its own, so that its memory is its own.
    let root = folder.path().join("store");
    for phase in ["gc", "check", "open", "rebuild", "check"] {
        let command = std::env::current_exe().unwrap();
        let status = std::process::Command::new(command).env("EKKO_BENCH_PHASE", phase).arg(&root).status();
        assert!(status.unwrap().success());
    }
}

/// What is measured in a process of its own.
fn phase(phase: &str, root: &Path) {
    let (writer, took) = measure(&format!("{phase}: opening"), || open(root, phase == "rebuild"));
    match phase {
        "gc" => {
            let store = Store { folder: tempfile::tempdir().unwrap(), writer };
            measure("gc: nothing to free", || store.gc());
            measure("gc: closing", || store.writer.close().unwrap());
        }
        "check" => {
            let options = CheckOptions { read_data: ReadData::None, jobs: 2 };
            let shared = SharedWriter::new(writer);
            let (checked, _) =
                measure("check", || check_with_index(&shared, &options, false, &Silent).unwrap());
            assert!(checked.is_clean() && checked.index == CheckIndex::Agrees, "{:?}", checked.problems);
            shared.close().unwrap();
        }
        "open" => {
            drop(writer);
            let (writer, _) = measure("opening after an end without order", || open(root, false));
            writer.close().unwrap();
        }
        _ => {
            let (sets, _) = writer.repository().backupsets().unwrap();
            let segments: u32 = sets.iter().flat_map(|set| &set.backups).map(|backup| backup.segments).sum();
            println!("rebuild: {:.0} segments a second", f64::from(segments) / took.as_secs_f64());
            writer.close().unwrap();
        }
    }
}
