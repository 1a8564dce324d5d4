//! The parts that a byte goes through, each alone and on one core: the test for zeros, hashes, codecs, a record appended to a
//! pack and read back, and the index. Manifests have a benchmark of their own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a benchmark is no library")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ekko::codec::{Codec, CompressionSetting, Decoder, Encoder};
use ekko::progress::Silent;
use ekko::repository::{InitOptions, OpenOptions, Repository, RepositoryWriter};
use ekko::segment::{Fingerprint, SegmentHash, SegmentKey, SegmentSize, Twin, data_runs, is_zero};
use ekko::storage::OsStorage;
use ekko::store::Claim;
use ekko::store::pack::{
    PackFolder, PackHeader, PackNumber, PackReader, PackWriter, RecordBuffer, SegmentMeta,
};

/// What the command has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEGMENT: usize = 4 << 20;

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// Bytes that compress about three to one.
fn text(length: usize) -> Vec<u8> {
    let words: Vec<String> =
        (0..4000_u32).map(|word| blake3::hash(&word.to_le_bytes()).to_hex()[..6].to_owned()).collect();
    let pairs = noise(length);
    let pick = |pair: &[u8; 2]| &words[usize::from(u16::from_le_bytes(*pair)) % words.len()];
    pairs.as_chunks::<2>().0.iter().flat_map(|pair| pick(pair).bytes()).take(length).collect()
}

fn bytes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("4 MiB");
    group.throughput(Throughput::Bytes(SEGMENT as u64)).sample_size(20);
    let (zeros, noise, text) = (vec![0; SEGMENT], noise(SEGMENT), text(SEGMENT));
    group.bench_function("zero test", |bench| bench.iter(|| is_zero(black_box(&zeros))));
    group.bench_function("runs of data", |bench| bench.iter(|| data_runs(black_box(&noise)).count()));
    group.bench_function("BLAKE3", |bench| bench.iter(|| Fingerprint::of(black_box(&noise))));
    group.bench_function("SHA-1", |bench| bench.iter(|| SegmentHash::of(black_box(&noise))));
    let several = [&noise[..], &text, &zeros];
    for (what, some) in [("two", &several[..2]), ("three", &several)] {
        let name = format!("SHA-1 of {what} at once");
        group.bench_function(name, |bench| bench.iter(|| SegmentHash::of_each(black_box(some))));
    }
    let mut stored = Vec::with_capacity(SEGMENT);
    for setting in ["zstd:1", "zstd:3", "zlib:1"] {
        let mut encoder = Encoder::new(setting.parse().unwrap()).unwrap();
        for (what, plain) in [("text", &text), ("noise", &noise)] {
            group.bench_function(format!("{setting} of {what}"), |bench| {
                bench.iter(|| {
                    stored.clear();
                    encoder.encode(black_box(plain), &mut stored)
                });
            });
        }
    }
    stored.clear();
    let codec = Encoder::new(CompressionSetting::default()).unwrap().encode(&text, &mut stored);
    let (mut decoder, mut plain) = (Decoder::new().unwrap(), Vec::new());
    let length = u32::try_from(SEGMENT).unwrap();
    group.bench_function("decoding zstd:1", |bench| {
        bench.iter(|| decoder.decode(codec, black_box(&stored), length, &mut plain).unwrap());
    });
    group.finish();
}

fn pack(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pack");
    let folder = tempfile::tempdir().unwrap();
    for length in [1000, 1 << 20] {
        let payload = noise(length);
        let key = SegmentKey { hash: SegmentHash::of(&payload), twin: Twin(0) };
        let fingerprint = Fingerprint::of(&payload);
        let meta = SegmentMeta {
            key,
            fingerprint,
            plain_length: u32::try_from(length).unwrap(),
            codec: Codec::default(),
        };
        let mut number = length as u64;
        let mut create = || {
            number += 1;
            let header = PackHeader::new(PackNumber(number), 0, [0; 16]).unwrap();
            let writer = PackWriter::create(&OsStorage, folder.path(), header).unwrap();
            (writer, folder.path().join(PackNumber(number).file_name()))
        };
        group.throughput(Throughput::Bytes(length as u64)).sample_size(20);
        group.bench_function(format!("append {length} bytes"), |bench| {
            // A thousand records of a pack of its own at a time, which goes again.
            bench.iter_custom(|times| {
                let mut buffer = RecordBuffer::new();
                let mut took = std::time::Duration::ZERO;
                let mut left = times;
                while left > 0 {
                    let part = left.min(1000);
                    let (mut writer, path) = create();
                    let begun = std::time::Instant::now();
                    for _ in 0..part {
                        buffer.restart().extend_from_slice(&payload);
                        writer.append(meta, &mut buffer, 0).unwrap();
                    }
                    took += begun.elapsed();
                    std::fs::remove_file(path).unwrap();
                    left -= part;
                }
                took
            });
        });
        let (mut writer, _) = create();
        let mut buffer = RecordBuffer::new();
        buffer.restart().extend_from_slice(&payload);
        let place = writer.append(meta, &mut buffer, 0).unwrap().place;
        writer.seal(0).unwrap();
        let reader =
            PackReader::open(&OsStorage, &PackFolder::new(folder.path(), SegmentSize::MAX), place.pack)
                .unwrap();
        let (mut decoder, mut stored, mut plain) = (Decoder::new().unwrap(), Vec::new(), Vec::new());
        group.bench_function(format!("read and verify {length} bytes"), |bench| {
            bench.iter(|| {
                reader
                    .segment(key, place.offset, meta.plain_length, &mut decoder, &mut stored, &mut plain)
                    .unwrap()
            });
        });
    }
    group.finish();
}

fn hash(number: u32) -> SegmentHash {
    let hash = blake3::hash(&number.to_le_bytes());
    SegmentHash::from_bytes(*hash.as_bytes().first_chunk::<20>().unwrap())
}

fn index(criterion: &mut Criterion) {
    const SEGMENTS: u32 = 50_000;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    Repository::init(&root, &InitOptions { segment_size: SegmentSize::MIN, ..InitOptions::default() })
        .unwrap();
    let writer = RepositoryWriter::open(&root, &OpenOptions::default(), &Silent).unwrap();
    let store = writer.store();
    let job = store.begin_job();
    let length = SegmentSize::MIN.bytes();
    let put = |number: u32| {
        let claim = store.claim(&job, hash(number), Fingerprint::from_bytes([7; 32]), length).unwrap();
        if let Claim::New(new) = claim {
            let mut buffer = store.buffer().unwrap();
            buffer.restart().push(1);
            store.append(new, Codec::default(), buffer).unwrap();
        }
    };
    (0..SEGMENTS).for_each(put);
    store.flush().unwrap();
    let mut group = criterion.benchmark_group("index of 50,000");
    let mut number = 0;
    let mut next = move || {
        number = (number + 7919) % SEGMENTS;
        number
    };
    group.bench_function("a segment that is there", |bench| {
        bench.iter(|| store.require(SegmentKey { hash: hash(next()), twin: Twin(0) }).unwrap());
    });
    group.bench_function("a segment that is not", |bench| {
        bench.iter(|| assert!(store.find(hash(SEGMENTS + next())).unwrap().is_empty()));
    });
    let mut new = SEGMENTS;
    group.sample_size(10).bench_function("a thousand new ones, durable", |bench| {
        bench.iter(|| {
            (new..new + 1000).for_each(put);
            new += 1000;
            store.flush().unwrap();
        });
    });
    group.finish();
}

criterion_group!(parts, bytes, pack, index);
criterion_main!(parts);
