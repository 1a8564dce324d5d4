use std::fs;
use std::path::PathBuf;

use crate::codec::{Codec, Decoder};
use crate::error::ErrorKind;
use crate::segment::{Fingerprint, SegmentHash, SegmentKey, SegmentSize, Twin};
use crate::storage::{FaultPlan, FaultStorage, OsStorage, Storage};
use crate::store::pack::{
    BLOCK, ContentsEntry, PACK_RECORDS, PackError, PackFolder, PackHeader, PackNumber, PackReader, PackScan,
    PackWriter, RecordBuffer, ScanDepth, SegmentMeta,
};

fn packs(folder: &std::path::Path) -> PackFolder {
    PackFolder::new(folder, SegmentSize::MAX)
}

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(PackNumber(1).file_name())
    }

    fn create(&self) -> PackWriter {
        let header = PackHeader::new(PackNumber(1), 5, [9; 16]).unwrap();
        PackWriter::create(&OsStorage, self.folder.path(), header).unwrap()
    }

    fn open(&self) -> PackReader {
        PackReader::open(&OsStorage, &packs(self.folder.path()), PackNumber(1)).unwrap()
    }

    fn scan(&self) -> PackScan {
        PackScan::of(&self.open(), ScanDepth::Tail).unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path()).unwrap();
        change(&mut bytes);
        fs::write(self.path(), bytes).unwrap();
    }
}

fn append(writer: &mut PackWriter, plain: &[u8]) -> SegmentKey {
    let key = SegmentKey { hash: SegmentHash::of(plain), twin: Twin(0) };
    let mut buffer = RecordBuffer::new();
    buffer.restart().extend_from_slice(plain);
    let length = u32::try_from(plain.len()).unwrap();
    let meta = SegmentMeta {
        key,
        fingerprint: Fingerprint::of(plain),
        plain_length: length,
        codec: Codec::default(),
    };
    let appended = writer.append(meta, &mut buffer, 6).unwrap();
    assert_eq!((appended.meta, appended.stored_length), (meta, length));
    key
}

fn read(pack: &PackReader, entry: &ContentsEntry) -> Result<Vec<u8>, PackError> {
    let (mut stored, mut plain) = (Vec::new(), Vec::new());
    let length = u32::try_from(entry.stored_length).unwrap();
    let mut decoder = Decoder::new().unwrap();
    pack.segment(entry.key, entry.offset, length, &mut decoder, &mut stored, &mut plain).map(|_| plain)
}

const PLAIN: [&[u8]; 4] = [&[1; 10_000], &[2; 3840], &[3; 1], &[4; 70_000]];

#[test]
fn a_sealed_pack_lists_what_was_appended_and_a_walk_finds_the_same() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    let keys = PLAIN.map(|plain| append(&mut writer, plain));
    let size = writer.seal(7).unwrap();
    let pack = fixture.open();
    assert_eq!(pack.size().unwrap(), size);
    let entries = pack.contents().unwrap().unwrap();
    assert_eq!(entries.iter().map(|entry| entry.key).collect::<Vec<_>>(), keys);
    for (entry, plain) in entries.iter().zip(PLAIN) {
        assert_eq!(read(&pack, entry).unwrap(), plain);
    }
    for depth in [ScanDepth::Headers, ScanDepth::Tail] {
        let scan = PackScan::of(&pack, depth).unwrap();
        assert_eq!((scan.entries, scan.damaged), (entries.clone(), vec![]));
    }
}

/// Writes what waits to be, without making it durable.
fn written(writer: &mut PackWriter) {
    drop(writer.begin_sync().unwrap());
}

#[test]
fn what_is_appended_is_written_a_mib_at_once() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    let length = || fs::metadata(fixture.path()).unwrap().len();
    let empty = length();
    append(&mut writer, PLAIN[0]);
    assert_eq!(length(), empty, "it waits");
    // Of a large one waits what makes no MiB.
    let large = vec![9; 3 << 20];
    append(&mut writer, &large);
    assert_eq!(length(), empty + (3 << 20));
    append(&mut writer, PLAIN[1]);
    written(&mut writer);
    assert_eq!(length(), writer.size());
    // A MiB of small ones does not wait for more.
    let before = length();
    for _ in 0..2_500 {
        append(&mut writer, PLAIN[2]);
    }
    assert!(length() > before && length() < writer.size());
    writer.seal(7).unwrap();
    let entries = fixture.open().contents().unwrap().unwrap();
    assert_eq!(entries.len(), 2_503);
    assert_eq!(read(&fixture.open(), &entries[1]).unwrap(), large);
    assert_eq!(read(&fixture.open(), &entries[2_502]).unwrap(), PLAIN[2]);
}

#[test]
fn of_what_is_not_known_to_be_durable_all_that_holds_is_kept() {
    // Bytes of the third record's payload, of its header, and a file that ends inside it.
    for (harm, left) in [(0, vec![0, 1, 3]), (1, vec![0, 1, 3]), (2, vec![0, 1])] {
        let fixture = Fixture::new();
        let mut writer = fixture.create();
        append(&mut writer, PLAIN[0]);
        writer.sync(7).unwrap();
        append(&mut writer, PLAIN[1]);
        let end = usize::try_from(writer.size()).unwrap();
        append(&mut writer, PLAIN[2]);
        append(&mut writer, PLAIN[3]);
        let last = writer.size();
        written(&mut writer);
        drop(writer);
        fixture.change(|bytes| match harm {
            0 => bytes[end + 256] ^= 1,
            1 => bytes[end + 20] ^= 1,
            _ => bytes.truncate(end + 100),
        });
        let scan = fixture.scan();
        let end = if left.contains(&3) { last } else { end as u64 };
        assert_eq!((scan.end, scan.damaged.clone()), (end, vec![]), "{harm}");
        scan.seal(&OsStorage, fixture.open(), 8).unwrap();
        let entries = fixture.open().contents().unwrap().unwrap();
        assert_eq!(entries, scan.entries);
        assert_eq!(entries.len(), left.len(), "{harm}");
        for (entry, plain) in entries.iter().zip(left) {
            assert_eq!(read(&fixture.open(), entry).unwrap(), PLAIN[plain], "{harm}");
        }
    }
}

#[test]
fn a_bad_header_in_what_was_durable_is_passed_over_and_reported() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    append(&mut writer, PLAIN[0]);
    let second = writer.size();
    append(&mut writer, PLAIN[3]);
    append(&mut writer, PLAIN[2]);
    writer.sync(7).unwrap();
    let end = writer.size();
    drop(writer);
    fixture.change(|bytes| bytes[usize::try_from(second).unwrap() + 3] ^= 0x80);
    let scan = fixture.scan();
    assert_eq!((scan.entries.len(), scan.end, scan.damaged), (2, end, vec![second]));
}

#[test]
fn what_a_sync_made_durable_is_never_written_over_and_its_padding_is_no_damage() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    let (mut ends, mut paddings) = (Vec::new(), Vec::new());
    for plain in [PLAIN[2], PLAIN[0], PLAIN[3], PLAIN[2]] {
        append(&mut writer, plain);
        paddings.push(writer.size());
        let sync = writer.begin_sync().unwrap();
        assert_eq!(sync.run().unwrap(), writer.size());
        assert_eq!(writer.size() % BLOCK, 0);
        ends.push(writer.size());
    }
    writer.mark(*ends.last().unwrap(), 7).unwrap();
    written(&mut writer);
    let scan = fixture.scan();
    assert_eq!((scan.entries.len(), scan.damaged), (4, vec![]));
    for (entry, end) in scan.entries.iter().skip(1).zip(&ends) {
        assert_eq!(entry.offset, *end);
    }
    // Anything but zeros there was a record.
    fixture.change(|bytes| bytes[usize::try_from(paddings[1]).unwrap() + 9] = 1);
    let scan = fixture.scan();
    assert_eq!((scan.entries.len(), scan.damaged), (4, vec![paddings[1]]));
}

#[test]
fn a_mark_speaks_for_what_was_there_when_the_sync_began() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    append(&mut writer, PLAIN[0]);
    let sync = writer.begin_sync().unwrap();
    let second = usize::try_from(writer.size()).unwrap();
    append(&mut writer, PLAIN[1]);
    let durable = sync.run().unwrap();
    assert_eq!(durable, second as u64);
    writer.mark(durable, 7).unwrap();
    written(&mut writer);
    drop(writer);
    fixture.change(|bytes| bytes[second + 300] ^= 1);
    let scan = fixture.scan();
    assert_eq!((scan.entries.len(), scan.damaged), (1, vec![]), "the record before the mark was not durable");
}

#[test]
fn a_damaged_table_is_made_anew_with_the_same_entries() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    for plain in PLAIN {
        append(&mut writer, plain);
    }
    writer.seal(7).unwrap();
    let entries = fixture.open().contents().unwrap();
    let whole = fs::read(fixture.path()).unwrap();
    // The trailer, the table's payload, its header, and all of it.
    for (back, length) in [(10, 1), (1024 - 300, 1), (1024 - 20, 1), (1024, 1024)] {
        fixture.change(|bytes| {
            let at = bytes.len() - back;
            bytes[at..at + length].iter_mut().for_each(|byte| *byte ^= 0x55);
        });
        assert_eq!(fixture.open().contents().unwrap(), None);
        let scan = fixture.scan();
        assert!(scan.damaged.is_empty());
        scan.seal(&OsStorage, fixture.open(), 7).unwrap();
        assert_eq!(fixture.open().contents().unwrap(), entries);
        assert_eq!(fs::read(fixture.path()).unwrap(), whole, "sealed at the same second it is the same file");
    }
}

#[test]
fn a_guest_that_stores_a_copy_of_this_very_pack_makes_no_records() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    append(&mut writer, PLAIN[0]);
    writer.sync(7).unwrap();
    // The bytes of the pack so far, at the alignment that records have: 3840 puts them on a block.
    let mut guest = vec![0; 4096 - 256];
    guest.extend(fs::read(fixture.path()).unwrap());
    let at = usize::try_from(writer.size()).unwrap();
    append(&mut writer, &guest);
    append(&mut writer, PLAIN[2]);
    writer.sync(7).unwrap();
    drop(writer);
    assert_eq!(fixture.scan().entries.len(), 3);
    // With the guest's own header gone, the walk has to look through its bytes for the next record.
    fixture.change(|bytes| bytes[at] ^= 1);
    let scan = fixture.scan();
    assert_eq!((scan.entries.len(), scan.damaged), (2, vec![at as u64]));
}

#[test]
fn a_segment_is_read_as_what_it_is_or_not_at_all() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    for plain in PLAIN {
        append(&mut writer, plain);
    }
    writer.seal(7).unwrap();
    let pack = fixture.open();
    let entries = pack.contents().unwrap().unwrap();
    let other = ContentsEntry { key: entries[1].key, ..entries[0] };
    assert!(matches!(read(&pack, &other), Err(PackError::RecordDamaged { .. })));
    let short = ContentsEntry { stored_length: entries[0].stored_length - 1, ..entries[0] };
    assert!(matches!(read(&pack, &short), Err(PackError::RecordDamaged { .. })));
    let inside = ContentsEntry { offset: entries[3].offset + 4096, ..entries[3] };
    assert!(matches!(read(&pack, &inside), Err(PackError::RecordDamaged { .. } | PackError::Storage(_))));
    fixture.change(|bytes| bytes[usize::try_from(entries[3].offset).unwrap() + 5000] ^= 1);
    let error = read(&fixture.open(), &entries[3]).unwrap_err();
    assert!(matches!(error, PackError::SegmentCorrupt { key, .. } if key == entries[3].key));
}

#[test]
fn what_was_durable_when_a_pack_was_cut_stays_whatever_becomes_of_a_record_in_it() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    let offset = writer.size();
    let keys = [append(&mut writer, PLAIN[0]), append(&mut writer, PLAIN[3])];
    writer.sync(7).unwrap();
    append(&mut writer, PLAIN[1]);
    written(&mut writer);
    writer.cut_unsynced(8).unwrap();
    // Where nothing said that it was durable, it would be left out.
    fixture.change(|bytes| bytes[usize::try_from(offset).unwrap() + 300] ^= 1);
    let scan = fixture.scan();
    assert_eq!(scan.entries.iter().map(|entry| entry.key).collect::<Vec<_>>(), keys);
    // Nothing was ever durable: nothing is said of it.
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    let empty = writer.size();
    append(&mut writer, PLAIN[0]);
    written(&mut writer);
    writer.cut_unsynced(8).unwrap();
    assert_eq!(fixture.open().size().unwrap(), empty);
}

#[test]
fn a_record_that_cannot_be_read_now_is_not_taken_for_the_end_of_a_pack() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    let offset = writer.size();
    for plain in PLAIN {
        append(&mut writer, plain);
    }
    let mark = writer.size().next_multiple_of(BLOCK);
    written(&mut writer);
    writer.mark(mark, 7).unwrap();
    written(&mut writer);
    drop(writer);
    let storage = FaultStorage::new(fixture.folder.path(), FaultPlan::Count).unwrap();
    let scan = || {
        let pack = PackReader::open(&storage, &packs(fixture.folder.path()), PackNumber(1)).unwrap();
        PackScan::of(&pack, ScanDepth::Tail)
    };
    let whole = scan().unwrap();
    assert_eq!(whole.entries.len(), 4);
    // The payload of the mark, then, where there is no mark, that of a segment.
    storage.set_unreadable(Some((&fixture.path(), mark + 256..mark + 256 + 1)));
    assert!(scan().is_err_and(|error| error.kind() == ErrorKind::Io));
    storage.set_unreadable(None);
    let file = storage.open(&fixture.path()).unwrap();
    file.truncate(mark).unwrap();
    storage.set_unreadable(Some((&fixture.path(), offset + 300..offset + 300 + 1)));
    assert!(scan().is_err_and(|error| error.kind() == ErrorKind::Io));
    storage.set_unreadable(None);
    assert_eq!(scan().unwrap().entries, whole.entries);
}

#[test]
fn a_table_that_was_not_made_durable_is_not_left_to_be_believed() {
    let seal = |plan| {
        let fixture = Fixture::new();
        let storage = FaultStorage::new(fixture.folder.path(), plan).unwrap();
        let header = PackHeader::new(PackNumber(1), 5, [9; 16]).unwrap();
        let mut writer = PackWriter::create(&storage, fixture.folder.path(), header).unwrap();
        append(&mut writer, PLAIN[0]);
        let sealed = writer.seal(7).is_ok();
        (sealed, fixture.open().contents().unwrap().is_some(), fixture.scan().entries.len(), storage.log())
    };
    let (sealed, table, segments, log) = seal(FaultPlan::Count);
    assert_eq!((sealed, table, segments), (true, true, 1));
    let at = log.iter().rposition(|line| line.contains("sync")).unwrap() as u64;
    let (sealed, table, segments, _) = seal(FaultPlan::Fail { at, error: std::io::ErrorKind::Other });
    assert_eq!((sealed, table, segments), (false, false, 1));
}

#[test]
fn a_pack_of_many_records_is_full_although_it_is_small() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    append(&mut writer, PLAIN[2]);
    writer.seal(7).unwrap();
    let entry = fixture.open().contents().unwrap().unwrap()[0];
    let file = OsStorage.open(&fixture.path()).unwrap();
    let header = PackHeader::new(PackNumber(1), 5, [9; 16]).unwrap();
    let mut writer = PackWriter::resume(file, header, 8192, vec![entry; PACK_RECORDS - 1]);
    assert!(!writer.is_full());
    append(&mut writer, PLAIN[2]);
    assert!(writer.is_full());
}

#[test]
fn a_length_is_compared_with_what_bounds_it_before_memory_is_taken() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    let plain = vec![7; 100_000];
    let key = append(&mut writer, &plain);
    writer.seal(7).unwrap();
    let small = PackFolder::new(fixture.folder.path(), SegmentSize::MIN);
    let pack = PackReader::open(&OsStorage, &small, PackNumber(1)).unwrap();
    let (mut stored, mut bytes) = (Vec::new(), Vec::new());
    let mut decoder = Decoder::new().unwrap();
    // Longer than the segments of the repository, by what the caller says and by what the record says.
    for length in [100_000, u32::MAX] {
        let read = pack.segment(key, 8192, length, &mut decoder, &mut stored, &mut bytes);
        assert!(matches!(read, Err(PackError::RecordDamaged { .. })), "{read:?}");
    }
    assert!(pack.record(8192).is_err());
    assert_eq!(pack.contents().unwrap(), None, "its table lists what cannot be");
    assert_eq!((stored.capacity(), bytes.capacity()), (0, 0));
    let listed = fixture.open().contents().unwrap().unwrap();
    assert_eq!(listed.len(), 1);
}

#[test]
fn a_walk_passes_over_holes_whatever_the_length_of_the_file() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    append(&mut writer, b"first");
    writer.sync(7).unwrap();
    drop(writer);
    let file = fs::File::options().write(true).open(fixture.path()).unwrap();
    // 2^31 places where a record could begin: without the holes, that is hours.
    file.set_len(1 << 40).unwrap();
    assert_eq!(fixture.scan().entries.len(), 1);
    let scan = PackScan::of(&fixture.open(), ScanDepth::Headers).unwrap();
    assert_eq!(scan.entries.len(), 1);
}

#[test]
fn a_walk_reads_nothing_of_a_hole_before_what_is_known_to_be_durable() {
    let fixture = Fixture::new();
    let mut writer = fixture.create();
    append(&mut writer, b"first");
    writer.sync(7).unwrap();
    let end = writer.size() + (64 << 20);
    drop(writer);
    let file = OsStorage.open(&fixture.path()).unwrap();
    file.truncate(end).unwrap();
    let mut writer = PackWriter::resume(file, fixture.open().header().clone(), end, Vec::new());
    for plain in [b"later one", b"later two"] {
        append(&mut writer, plain);
        writer.sync(8).unwrap();
    }
    drop(writer);
    for depth in [ScanDepth::Headers, ScanDepth::Tail] {
        let fault = FaultStorage::new(fixture.folder.path(), FaultPlan::Count).unwrap();
        let pack = PackReader::open(&fault, &packs(fixture.folder.path()), PackNumber(1)).unwrap();
        let scan = PackScan::of(&pack, depth).unwrap();
        assert_eq!((scan.entries.len(), scan.damaged.len()), (3, 1), "the hole is where records should be");
        assert!(scan.damaged[0] < end && scan.end > end);
        // There would be 2^17 places for a record in it.
        assert!(fault.reads() < 50, "{} reads", fault.reads());
    }
}
