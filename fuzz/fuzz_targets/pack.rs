//! Hostile packs: whatever the bytes are, no segment is read that was not stored.
//!
//! The fuzzer's bytes are tried as a pack, and as changes to a pack that was good, sealed or not.
#![no_main]

mod shared;

use std::collections::HashMap;
use std::sync::LazyLock;

use ekko::codec::{CompressionSetting, Decoder, Encoder};
use ekko::segment::{Fingerprint, SegmentHash, SegmentKey, SegmentSize, Twin};
use ekko::storage::OsStorage;
use ekko::store::pack::{
    PackFolder,
    PackHeader, PackNumber, PackReader, PackScan, PackWriter, RecordBuffer, RecordKind, ScanDepth, SegmentMeta,
};
use libfuzzer_sys::fuzz_target;

const NUMBER: PackNumber = PackNumber(1);

struct Fixture {
    folder: tempfile::TempDir,
    unsealed: Vec<u8>,
    sealed: Vec<u8>,
    stored: HashMap<SegmentKey, Vec<u8>>,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let folder = shared::folder();
    let path = folder.path().join(NUMBER.file_name());
    let mut writer =
        PackWriter::create(&OsStorage, folder.path(), PackHeader::new(NUMBER, 1, [7; 16]).unwrap()).unwrap();
    let mut stored = HashMap::new();
    for (number, setting) in ["none", "zlib", "lzma:0", "zstd"].into_iter().enumerate() {
        let plain = vec![number as u8 + 1; 5000];
        let key = SegmentKey { hash: SegmentHash::of(&plain), twin: Twin(number as u16) };
        let mut buffer = RecordBuffer::new();
        let setting: CompressionSetting = setting.parse().unwrap();
        let codec = Encoder::new(setting).unwrap().encode(&plain, buffer.restart());
        let meta = SegmentMeta { key, fingerprint: Fingerprint::of(&plain), plain_length: 5000, codec };
        writer.append(meta, &mut buffer, 1).unwrap();
        stored.insert(key, plain);
        if number % 2 == 0 {
            writer.sync(1).unwrap();
        }
    }
    let unsealed = std::fs::read(&path).unwrap();
    writer.seal(1).unwrap();
    let sealed = std::fs::read(&path).unwrap();
    Fixture { folder, unsealed, sealed, stored }
});

fn try_pack(bytes: &[u8]) {
    let folder = FIXTURE.folder.path();
    std::fs::write(folder.join(NUMBER.file_name()), bytes).unwrap();
    let Ok(pack) = PackReader::open(&OsStorage, &PackFolder::new(folder, SegmentSize::MAX), NUMBER) else { return };
    let mut decoder = Decoder::new().unwrap();
    let (mut stored, mut plain) = (Vec::new(), Vec::new());
    let tables = [
        pack.contents().unwrap().unwrap_or_default(),
        PackScan::of(&pack, ScanDepth::Headers).unwrap().entries,
        PackScan::of(&pack, ScanDepth::Tail).unwrap().entries,
    ];
    for entry in tables.iter().flatten() {
        match entry.kind {
            RecordKind::Segment => {
                let Ok(length) = u32::try_from(entry.stored_length) else { continue };
                if pack.segment(entry.key, entry.offset, length, &mut decoder, &mut stored, &mut plain).is_ok() {
                    assert_eq!(FIXTURE.stored.get(&entry.key), Some(&plain));
                }
            }
            RecordKind::Dead => drop(pack.dead_segments(entry.offset)),
            RecordKind::Mark | RecordKind::Contents => panic!("a table lists neither"),
        }
    }
    let scan = PackScan::of(&pack, ScanDepth::Tail).unwrap();
    let entries = scan.entries.clone();
    scan.seal(&OsStorage, pack, 2).unwrap();
    let pack = PackReader::open(&OsStorage, &PackFolder::new(folder, SegmentSize::MAX), NUMBER).unwrap();
    assert_eq!(pack.contents().unwrap(), Some(entries), "a sealed pack's table is what the scan found");
}

fuzz_target!(|input: (u8, Vec<(u16, u8)>, &[u8])| {
    let (kind, changes, bytes) = input;
    let mut pack = match kind % 4 {
        0 => return try_pack(bytes),
        1 => FIXTURE.unsealed.clone(),
        _ => FIXTURE.sealed.clone(),
    };
    for (at, value) in changes {
        let at = usize::from(at) % pack.len();
        pack[at] = value;
    }
    if kind % 4 == 3 {
        pack.truncate(bytes.len() * 257 % pack.len());
    } else {
        pack.extend(bytes);
    }
    try_pack(&pack);
});
