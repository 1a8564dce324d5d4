use std::fs;
use std::path::{Path, PathBuf};

use quickcheck::quickcheck;
use rusqlite::Connection;

use crate::manifest::foreign::{CodecIds, CodecSource, ManifestFormat, NoStore, import, osdk, sqlite};
use crate::manifest::{
    BackupsetId, BaseIndex, ImageName, Incremental, ManifestError, ManifestInfo, ManifestReader,
    ManifestWriter, SegmentRef,
};
use crate::progress::Silent;
use crate::segment::{Geometry, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin};
use crate::storage::OsStorage;

/// Files in a temporary folder.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a manifest of 64 KiB segments with two earlier backupsets.
    fn manifest(&self, segments: &[Option<(u8, u32, u16)>], nanoseconds: i32) -> ManifestReader {
        let info = ManifestInfo {
            backupset: BackupsetId::from_bytes([1; 16]),
            incremental: Incremental(7),
            name: name(),
            geometry: Geometry::new((segments.len() as u64) << 16, SegmentSize::MIN).unwrap(),
            timestamp: jiff::Timestamp::new(1_795_385_526, nanoseconds).unwrap(),
            bases: vec![BackupsetId::from_bytes([2; 16]), BackupsetId::from_bytes([3; 16])],
            attributes: Vec::new(),
        };
        let path = self.at("manifest");
        let _ = fs::remove_file(&path);
        let mut writer = ManifestWriter::create(&OsStorage, &path, info).unwrap();
        for (place, segment) in (0..).zip(segments) {
            if let Some((hash, incremental, base)) = *segment {
                let key = SegmentKey { hash: SegmentHash::of(&[hash]), twin: Twin(0) };
                let segment =
                    SegmentRef { key, incremental: Incremental(incremental), base: BaseIndex(base) };
                writer.push(SegmentIndex(place), &segment).unwrap();
            }
        }
        writer.finish().unwrap();
        ManifestReader::read(&path).unwrap()
    }

    /// Imports a file, which is to be refused, and returns why. Nothing stays of it.
    fn refused(&self, file: &Path) -> String {
        let out = self.at("refused");
        let format = ManifestFormat::of(file).map_err(|error| error.to_string());
        let format = match format {
            Ok(format) => format,
            Err(error) => return error,
        };
        let before = names(self.0.path());
        let error = import(file, format, &name(), &out, false, &Silent).unwrap_err();
        assert_eq!(names(self.0.path()), before, "nothing half-made stays");
        error.to_string()
    }
}

fn names(folder: &Path) -> Vec<String> {
    crate::storage::Storage::list(&OsStorage, folder).unwrap()
}

fn name() -> ImageName {
    ImageName::new("web").unwrap()
}

fn original() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/original/manifest.sqlite")
}

fn export_sqlite(manifest: &ManifestReader, path: &Path) {
    sqlite::export::<ManifestError>(manifest, path, true, &mut NoStore, &Silent).unwrap();
}

fn export_osdk(manifest: &ManifestReader, path: &Path) {
    osdk::export::<ManifestError>(manifest, path, true, &mut NoStore, &Silent).unwrap();
}

/// Everything in an SQLite file: its statements and its rows, as text.
fn everything(path: &Path) -> Vec<String> {
    let database = Connection::open(path).unwrap();
    let mut all = Vec::new();
    for query in [
        "SELECT name, sql FROM sqlite_schema ORDER BY rowid",
        "SELECT key, value FROM metadata ORDER BY rowid",
        "SELECT id, hex(backupset_id) FROM backupsets",
        "SELECT segment, printf('%d %d %d %s %d', incremental, compression, encryption, hex(segment_hash), backupset_id)
         FROM segments",
    ] {
        let mut select = database.prepare(query).unwrap();
        let rows = select.query_map((), |row| {
            Ok(format!("{:?} {:?}", row.get_ref(0)?, row.get_ref(1)?))
        });
        all.extend(rows.unwrap().map(Result::unwrap));
    }
    all
}

quickcheck! {
    fn what_is_exported_is_imported_and_exported_the_same_again(
        seeds: Vec<Option<u8>>, nanoseconds: u32, osdk: bool
    ) -> bool {
        let world = World::new();
        let segments: Vec<_> = seeds.iter().map(|seed| {
            seed.map(|seed| (seed, u32::from(seed % 8), u16::from(seed % 3)))
        }).collect();
        // OSDK has whole seconds.
        let nanoseconds = if osdk { 0 } else { i32::try_from(nanoseconds % 1_000_000_000).unwrap() };
        let manifest = world.manifest(&segments, nanoseconds);
        let (file, again) = (world.at("file"), world.at("again"));
        let export = if osdk { export_osdk } else { export_sqlite };
        export(&manifest, &file);
        let format = ManifestFormat::of(&file).unwrap();
        import(&file, format, &name(), &world.at("imported"), false, &Silent).unwrap();
        let imported = ManifestReader::read(&world.at("imported")).unwrap();
        assert_eq!(imported.info(), manifest.info());
        assert!(imported.segments().eq(manifest.segments()));
        assert_eq!(imported.fingerprint(), manifest.fingerprint(), "to the bit");
        export(&imported, &again);
        if osdk { fs::read(&file).unwrap() == fs::read(&again).unwrap() } else { everything(&file) == everything(&again) }
    }
}

/// Knows a codec for each place.
struct Codecs;

impl CodecSource<ManifestError> for Codecs {
    fn codec(&mut self, index: SegmentIndex) -> Result<CodecIds, ManifestError> {
        Ok(CodecIds { compression: u8::try_from(index.0).unwrap(), encryption: 0 })
    }
}

#[test]
fn the_originals_own_file_is_imported_and_comes_out_the_same() {
    let world = World::new();
    assert_eq!(ManifestFormat::of(&original()).unwrap(), ManifestFormat::Sqlite);
    import(&original(), ManifestFormat::Sqlite, &name(), &world.at("imported"), false, &Silent).unwrap();
    let manifest = ManifestReader::read(&world.at("imported")).unwrap();
    assert_eq!(manifest.info().backupset.to_string(), "85cbfeed-0de8-4294-a298-3b97f4d08385");
    assert_eq!(manifest.info().geometry.size_of_disk(), 23_069_672);
    assert_eq!(manifest.info().timestamp.to_string(), "2026-11-22T22:12:06.16252Z");
    let hashes: Vec<_> =
        manifest.segments().map(|(index, segment)| format!("{index} {}", segment.key.hash)).collect();
    assert_eq!(
        hashes,
        [
            "1 28e09e306b271d0b512ef5f019d5c8b069e2289b",
            "2 9c9799bc95d725ed5a4c2fc215843a2e6b11f36e",
            "4 28e09e306b271d0b512ef5f019d5c8b069e2289b",
            "5 2663c59da056f4e69faf6b9a56ce70474210ca03",
        ]
    );
    // The original said 0 of every codec, and so it says here: everything is the same.
    sqlite::export(&manifest, &world.at("out"), false, &mut Zero, &Silent).unwrap();
    assert_eq!(everything(&world.at("out")), everything(&original()));
}

/// What the original said of every segment.
struct Zero;

impl CodecSource<ManifestError> for Zero {
    fn codec(&mut self, _: SegmentIndex) -> Result<CodecIds, ManifestError> {
        Ok(CodecIds { compression: 0, encryption: 0 })
    }
}

#[test]
fn codecs_stand_in_their_columns_and_an_unknown_one_is_255() {
    let world = World::new();
    let manifest = world.manifest(&[Some((1, 7, 0)), None, Some((2, 3, 2))], 0);
    sqlite::export(&manifest, &world.at("sqlite"), false, &mut Codecs, &Silent).unwrap();
    let rows = everything(&world.at("sqlite"));
    // The manifest's own backupset comes last, the oldest first.
    assert!(rows.contains(&format!("Integer(0) Text({:?})", b"03".repeat(16))));
    assert!(rows.contains(&format!("Integer(2) Text({:?})", b"01".repeat(16))));
    let hash = |byte: u8| SegmentHash::of(&[byte]).to_string().to_uppercase();
    let text = |text: String| format!("Text({:?})", text.into_bytes());
    assert!(rows.contains(&format!("Integer(0) {}", text(format!("7 0 0 {} 2", hash(1))))), "{rows:?}");
    assert!(rows.contains(&format!("Integer(2) {}", text(format!("3 2 0 {} 0", hash(2))))), "{rows:?}");
    export_sqlite(&manifest, &world.at("unknown"));
    assert!(
        everything(&world.at("unknown"))
            .contains(&format!("Integer(0) {}", text(format!("7 255 255 {} 2", hash(1)))))
    );
}

#[test]
fn osdk_is_the_bytes_that_its_description_says() {
    let world = World::new();
    let manifest = world.manifest(&[Some((1, 7, 0)), None, Some((2, 3, 2))], 999_999_999);
    osdk::export(&manifest, &world.at("osdk"), false, &mut Codecs, &Silent).unwrap();
    let signature = hex::decode("d326503ab5ca49adac56c89eb0b8ef08").unwrap();
    let mut head = Vec::new();
    head.extend(1_795_385_526_i32.to_le_bytes()); // whole seconds: the fraction is cut
    head.extend(7_u32.to_le_bytes());
    head.extend(65_536_u32.to_le_bytes());
    head.extend((3_u64 * 128).to_le_bytes());
    head.extend(3_u16.to_le_bytes());
    head.extend([0; 14]);
    head.extend([[3; 16], [2; 16], [1; 16]].concat());
    let mut body = Vec::new();
    for (segment, incremental, base, compression, hash) in
        [(0_u32, 7_u32, 2_u16, 0_u8, 1_u8), (2, 3, 0, 2, 2)]
    {
        body.extend(segment.to_le_bytes());
        body.extend(incremental.to_le_bytes());
        body.extend(base.to_le_bytes());
        body.extend([0, compression]);
        body.extend(SegmentHash::of(&[hash]).as_bytes());
    }
    let mut expected = signature.clone();
    expected.extend(0_u32.to_le_bytes());
    expected.extend(crc32fast::hash(&head).to_le_bytes());
    expected.extend(crc32fast::hash(&body).to_le_bytes());
    expected.extend([head, signature, body].concat());
    assert_eq!(fs::read(world.at("osdk")).unwrap(), expected);
}

#[test]
fn osdk_records_in_any_order_are_imported_and_those_that_stand_twice_are_not() {
    let world = World::new();
    let manifest = world.manifest(&[Some((1, 7, 0)), None, Some((2, 3, 2)), Some((3, 7, 0))], 0);
    let path = world.at("osdk");
    export_osdk(&manifest, &path);
    let whole = fs::read(&path).unwrap();
    let (head, body) = whole.split_at(whole.len() - 96);
    let records: Vec<&[u8]> = body.chunks(32).collect();
    let with = |order: &[usize]| {
        let body: Vec<u8> = order.iter().flat_map(|at| records[*at]).copied().collect();
        let mut file = [head, &body].concat();
        file[24..28].copy_from_slice(&crc32fast::hash(&body).to_le_bytes());
        fs::write(&path, file).unwrap();
    };
    with(&[2, 0, 1]);
    import(&path, ManifestFormat::Osdk, &name(), &world.at("imported"), false, &Silent).unwrap();
    assert_eq!(ManifestReader::read(&world.at("imported")).unwrap().fingerprint(), manifest.fingerprint());
    with(&[0, 1, 1]);
    assert!(world.refused(&path).contains("out of order"));
}

#[test]
fn every_cut_and_every_flipped_bit_of_an_osdk_file_is_an_error() {
    let world = World::new();
    let path = world.at("osdk");
    export_osdk(&world.manifest(&[Some((1, 7, 0)), None, Some((2, 3, 2))], 0), &path);
    let whole = fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        world.refused(&path);
    }
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, flipped).unwrap();
        world.refused(&path);
    }
    fs::write(&path, [&whole[..], &[0; 32]].concat()).unwrap();
    assert!(world.refused(&path).contains("CRC-32"));
}

#[test]
fn what_osdk_cannot_say_is_refused_with_a_reason() {
    let world = World::new();
    let export = |info: &dyn Fn(ManifestInfo) -> ManifestInfo| {
        let path = world.at("strange");
        let _ = fs::remove_file(&path);
        let info = info(world.manifest(&[None], 0).info().clone());
        ManifestWriter::create(&OsStorage, &path, info).unwrap().finish().unwrap();
        let manifest = ManifestReader::read(&path).unwrap();
        let before = names(world.0.path());
        let error = osdk::export::<ManifestError>(&manifest, &world.at("osdk"), false, &mut NoStore, &Silent);
        assert_eq!(names(world.0.path()), before);
        error.unwrap_err().to_string()
    };
    let geometry = Geometry::new(513, SegmentSize::MIN).unwrap();
    assert!(export(&|info| ManifestInfo { geometry, ..info }).contains("no multiple of 512"));
    let timestamp = "2040-01-01T00:00:00Z".parse().unwrap();
    assert!(export(&|info| ManifestInfo { timestamp, ..info }).contains("32 bits"));
    let bases: Vec<_> = (0..u16::MAX)
        .map(|number| {
            let [a, b] = number.to_le_bytes();
            BackupsetId::from_bytes([a, b, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9])
        })
        .collect();
    assert!(export(&|info| ManifestInfo { bases: bases.clone(), ..info }).contains("backupsets"));
}

#[test]
fn an_sqlite_file_with_anything_else_in_it_is_refused() {
    let world = World::new();
    let good = world.at("good");
    export_sqlite(&world.manifest(&[Some((1, 7, 0)), None, Some((2, 3, 2))], 0), &good);
    for (change, why) in [
        ("PRAGMA journal_mode = WAL", "a write-ahead log"),
        ("CREATE VIEW v AS SELECT 1", "view \"v\""),
        ("CREATE TABLE more (x)", "table \"more\""),
        ("CREATE INDEX i ON segments (segment_hash)", "index \"i\""),
        ("CREATE TRIGGER t AFTER INSERT ON metadata BEGIN SELECT 1; END", "trigger \"t\""),
        ("ALTER TABLE segments ADD COLUMN more", "table \"segments\""),
        ("DROP TABLE segments; CREATE VIEW segments AS SELECT 1 AS segment", "view \"segments\""),
        ("DROP TABLE segments", "no table \"segments\""),
        ("DELETE FROM metadata WHERE key = 'timestamp'", "not complete"),
        ("INSERT INTO metadata VALUES ('more', '1')", "key \"more\""),
        ("UPDATE metadata SET value = '+7' WHERE key = 'incremental'", "its incremental is \"+7\""),
        ("UPDATE metadata SET value = '4294967295' WHERE key = 'incremental'", "no incremental"),
        ("UPDATE metadata SET value = '65537' WHERE key = 'segment_size'", "segment size"),
        ("UPDATE metadata SET value = 'now' WHERE key = 'timestamp'", "its timestamp"),
        ("UPDATE metadata SET value = '131071' WHERE key = 'size_of_disk'", "segment 2 lies outside"),
        (
            "UPDATE metadata SET value = '18446744073709551615' WHERE key = 'size_of_disk'",
            "too many segments",
        ),
        ("UPDATE metadata SET value = '99999999999999999999' WHERE key = 'size_of_disk'", "size_of_disk is"),
        ("UPDATE metadata SET value = NULL WHERE key = 'size_of_disk'", "SQLite says"),
        ("UPDATE metadata SET value = zeroblob(2000000) WHERE key = 'size_of_disk'", "SQLite says"),
        ("DELETE FROM backupsets", "names no backupset"),
        ("UPDATE backupsets SET id = 9 WHERE id = 1", "its backupset 1 is none"),
        ("UPDATE backupsets SET backupset_id = x'00'", "its backupset 0 is none"),
        ("UPDATE backupsets SET backupset_id = zeroblob(16)", "a backupset twice"),
        ("UPDATE segments SET segment = -1 WHERE segment = 2", "a segment has no number"),
        ("UPDATE segments SET segment = 4294967296 WHERE segment = 2", "segment 4294967296 lies outside"),
        ("UPDATE segments SET incremental = 8 WHERE segment = 0", "names incremental 8, and the backup is 7"),
        ("UPDATE segments SET incremental = 'x' WHERE segment = 0", "the incremental of segment 0"),
        ("UPDATE segments SET backupset_id = 3 WHERE segment = 2", "backupset 3, which is not listed"),
        ("UPDATE segments SET backupset_id = NULL WHERE segment = 2", "the backupset_id of segment 2"),
        ("UPDATE segments SET compression = 256 WHERE segment = 2", "the compression of segment 2"),
        ("UPDATE segments SET encryption = NULL WHERE segment = 2", "the encryption of segment 2"),
        (
            "UPDATE segments SET segment_hash = zeroblob(19) WHERE segment = 2",
            "the segment_hash of segment 2",
        ),
        (
            "UPDATE segments SET segment_hash = hex(zeroblob(10)) WHERE segment = 2",
            "the segment_hash of segment 2",
        ),
    ] {
        let path = world.at("changed");
        fs::copy(&good, &path).unwrap();
        let database = Connection::open(&path).unwrap();
        database.execute_batch(&format!("PRAGMA foreign_keys = OFF; {change}")).unwrap();
        database.close().unwrap();
        let error = world.refused(&path);
        assert!(error.contains(why), "{change}: {error}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn an_sqlite_file_that_is_cut_or_overwritten_never_gives_other_segments() {
    let world = World::new();
    // Several pages of segments.
    let segments: Vec<_> = (0..1000).map(|place| Some((u8::try_from(place % 251).unwrap(), 7, 0))).collect();
    let manifest = world.manifest(&segments, 0);
    let path = world.at("sqlite");
    export_sqlite(&manifest, &path);
    let whole = fs::read(&path).unwrap();
    let cuts = (0..512).chain((512..whole.len()).step_by(509));
    for cut in cuts {
        fs::write(&path, &whole[..cut]).unwrap();
        world.refused(&path);
    }
    // SQLite has no checksums: what is changed inside a value cannot be seen; a page of other bytes is.
    let mut accepted = 0;
    for page in 1..whole.len() / 4096 {
        let mut changed = whole.clone();
        changed[page * 4096..(page + 1) * 4096].fill(0x5a);
        fs::write(&path, changed).unwrap();
        let out = world.at("imported");
        if import(&path, ManifestFormat::Sqlite, &name(), &out, false, &Silent).is_ok() {
            // The index on the metadata's keys is never read.
            assert_eq!(ManifestReader::read(&out).unwrap().fingerprint(), manifest.fingerprint());
            accepted += 1;
            fs::remove_file(&out).unwrap();
        }
    }
    assert_eq!(accepted, 1);
}

#[test]
fn what_is_no_manifest_is_told_from_one() {
    let world = World::new();
    for bytes in [&b""[..], b"SQLite", b"something else, and long enough to be one"] {
        fs::write(world.at("file"), bytes).unwrap();
        let error = ManifestFormat::of(&world.at("file")).unwrap_err();
        assert!(error.to_string().contains("neither"), "{error}");
    }
    assert!(ManifestFormat::of(world.0.path()).is_err());
    assert!(ManifestFormat::of(&world.at("gone")).unwrap_err().to_string().contains("gone"));
}

#[test]
fn one_of_our_own_is_imported_under_another_name() {
    let world = World::new();
    let manifest = world.manifest(&[Some((1, 7, 0)), None, Some((2, 3, 2))], 5);
    let other = ImageName::new("other").unwrap();
    let out = world.at("imported");
    import(manifest.path(), ManifestFormat::Ekko, &other, &out, false, &Silent).unwrap();
    let imported = ManifestReader::read(&out).unwrap();
    assert_eq!(imported.info(), &ManifestInfo { name: other, ..manifest.info().clone() });
    assert!(imported.segments().eq(manifest.segments()));
}
