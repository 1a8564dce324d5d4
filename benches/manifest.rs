//! Manifests at 2^24 segments, or as many as `EKKO_BENCH_SEGMENTS` says: generated, opened, validated, compared,
//! exported. `benches/manifest.sh` measures the same and more through the binary.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, reason = "a benchmark is no library")]

use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ekko::manifest::foreign::{NoStore, osdk};
use ekko::manifest::{
    GenerateOptions, ManifestDiff, ManifestError, ManifestReader, ManifestWriter, SegmentRef, generate,
};
use ekko::progress::Silent;
use ekko::segment::{DEFAULT_SEGMENT_SIZE, Geometry, SegmentHash, SegmentIndex, SegmentKey};
use ekko::storage::OsStorage;

const LOOKUPS: u32 = 1000;

fn segments() -> u32 {
    std::env::var("EKKO_BENCH_SEGMENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(1 << 24)
}

fn options(fragmented_percent: u8) -> GenerateOptions {
    let size = u64::from(segments()) * u64::from(DEFAULT_SEGMENT_SIZE.bytes());
    let geometry = Geometry::new(size, DEFAULT_SEGMENT_SIZE).unwrap();
    GenerateOptions { geometry, seed: 1, fragmented_percent }
}

/// Writes the manifest at `from` again with every hundredth segment changed.
fn change_one_percent(from: &Path, to: &Path) {
    let manifest = ManifestReader::read(from).unwrap();
    let mut writer = ManifestWriter::create(&OsStorage, to, manifest.info().clone()).unwrap();
    for (index, segment) in manifest.segments() {
        let changed = SegmentKey { hash: SegmentHash::of(&index.0.to_le_bytes()), ..segment.key };
        let key = if index.0 % 100 == 37 { changed } else { segment.key };
        writer.push(index, &SegmentRef { key, ..segment }).unwrap();
    }
    writer.finish().unwrap();
}

/// Looks a thousand places up, all over the disk.
fn look_up(manifest: &ManifestReader) -> usize {
    let place = |number: u32| SegmentIndex(number.wrapping_mul(2_654_435_761) % segments());
    (0..LOOKUPS).filter(|number| manifest.lookup(place(*number)).is_some()).count()
}

/// The anonymous memory of this process, in KiB.
fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn manifests(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (dense, fragmented, changed) = (at("dense"), at("fragmented"), at("changed"));
    generate(&dense, false, &options(0)).unwrap();
    generate(&fragmented, false, &options(10)).unwrap();
    change_one_percent(&dense, &changed);
    for path in [&dense, &fragmented] {
        let before = anonymous_memory();
        let manifest = ManifestReader::open(&OsStorage, path).unwrap();
        look_up(&manifest);
        let grown = anonymous_memory().saturating_sub(before);
        let bytes = manifest.file_size();
        eprintln!(
            "{}: {bytes} bytes; open and {LOOKUPS} lookups: {grown} KiB of anonymous memory",
            path.display()
        );
    }
    let mut group = criterion.benchmark_group("manifest");
    group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    group.bench_function("generate", |bencher| {
        bencher.iter(|| generate(&at("generated"), true, &options(0)).unwrap());
    });
    for (name, path) in [("dense", &dense), ("fragmented", &fragmented)] {
        group.bench_function(format!("open and look up, {name}"), |bencher| {
            bencher.iter(|| look_up(&ManifestReader::open(&OsStorage, path).unwrap()));
        });
        group.bench_function(format!("full validation, {name}"), |bencher| {
            bencher.iter(|| ManifestReader::open(&OsStorage, path).unwrap().verify().unwrap());
        });
    }
    group.bench_function("diff of 1 %", |bencher| {
        bencher.iter(|| {
            let [older, newer] =
                [&dense, &changed].map(|path| ManifestReader::open(&OsStorage, path).unwrap());
            let mut ranges = 0;
            let diff = ManifestDiff::of(&older, &newer).unwrap();
            diff.for_each(|_| {
                ranges += 1;
                Ok::<(), ManifestError>(())
            })
            .unwrap();
            ranges
        });
    });
    let manifest = ManifestReader::open(&OsStorage, &dense).unwrap();
    group.bench_function("OSDK export", |bencher| {
        bencher.iter(|| {
            osdk::export::<ManifestError>(&manifest, &at("osdk"), true, &mut NoStore, &Silent).unwrap();
        });
    });
    group.finish();
}

criterion_group!(benches, manifests);
criterion_main!(benches);
