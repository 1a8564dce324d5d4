//! Backups of the original come in, and go out again.

use std::fs;
use std::path::Path;

use ekko::manifest::{
    BackupsetId, BaseIndex, ImageName, Incremental, ManifestInfo, ManifestWriter, SegmentRef,
};
use ekko::segment::{Geometry, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin};
use ekko::storage::OsStorage;
use rusqlite::Connection;

use crate::harness::{MIB, World, copy_folder, keys, noise};

/// Where the original's own files are: a manifest and segment files that its `tools/backup.py` wrote.
fn original(below: &str) -> String {
    format!("{}/tests/data/original/{below}", env!("CARGO_MANIFEST_DIR"))
}

/// The disk that the original backed up: 22 MiB and 1000 bytes; segments 0, 3 and the short last one are zero.
fn original_disk() -> Vec<u8> {
    // The SHA-256 of "a" and of "b", repeated.
    let [a, b] = [
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
        "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d",
    ]
    .map(|digest| hex::decode(digest).unwrap().repeat(4 * MIB / 32));
    let zeros = vec![0; 4 * MIB];
    [zeros.clone(), a.clone(), b, zeros, a, vec![0; 2 * MIB + 1000]].concat()
}

/// The rows of a table, as text.
fn rows(world: &World, file: &str, query: &str) -> Vec<String> {
    let database = Connection::open(world.path(file)).unwrap();
    let mut select = database.prepare(query).unwrap();
    let columns = select.column_count();
    let rows = select.query_map((), |row| {
        (0..columns).map(|column| Ok(format!("{:?}", row.get_ref(column)?))).collect::<Result<Vec<_>, _>>()
    });
    rows.unwrap().map(|row| row.unwrap().join(" ")).collect()
}

/// Everything in an SQLite manifest but the compression.
fn all_but_compression(world: &World, file: &str) -> Vec<String> {
    let queries = [
        "SELECT name, sql FROM sqlite_schema",
        "SELECT * FROM metadata",
        "SELECT * FROM backupsets",
        "SELECT incremental, segment, encryption, segment_hash, backupset_id FROM segments",
    ];
    queries.iter().flat_map(|query| rows(world, file, query)).collect()
}

/// Expects a repository that holds no backup and no folder of one.
fn assert_empty(world: &World) {
    assert_eq!(world.json(&["list"])["backups"].as_array().unwrap().len(), 0);
    assert_eq!(fs::read_dir(world.path("R/manifests")).unwrap().count(), 0, "nothing half-imported stays");
}

#[test]
fn a_backup_of_the_original_is_imported_restored_and_exported_as_it_was() {
    let world = World::new();
    fs::copy(original("manifest.sqlite"), world.path("original")).unwrap();
    let import = ["manifest", "import", "original", "--segments", &original("segments"), "--name", "old"];
    world.run(&["init"]).exits(0);
    let document = world.json(&import);
    assert_eq!(
        keys(&document),
        [
            "backup",
            "backupset",
            "deduplicated_segments",
            "incremental",
            "new_segments",
            "segments",
            "stored_bytes",
            "timestamp"
        ]
    );
    assert_eq!(document["backup"], "old@0");
    assert_eq!((&document["new_segments"], &document["deduplicated_segments"]), (&3.into(), &1.into()));
    assert_eq!(world.run(&["restore", "old", "-"]).exits(0).stdout, original_disk());
    world.run(&["manifest", "export", "old", "out", "--segments", "flat"]).exits(0);
    assert_eq!(all_but_compression(&world, "out"), all_but_compression(&world, "original"));
    // Beside flat files the manifest says how those are compressed: zlib, as the original always did.
    let codecs = "SELECT DISTINCT compression, encryption FROM segments";
    assert_eq!(rows(&world, "out", codecs), ["Integer(1) Integer(0)"]);
    let flat = "85cbfeed-0de8-4294-a298-3b97f4d08385/0";
    let mut names: Vec<_> = fs::read_dir(world.path(&format!("flat/{flat}")))
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["1", "2", "4", "5"]);
    // Without them, how the store has it: Zstandard. Then a second time, into what is there already.
    world.run(&["manifest", "export", "old", "stored"]).exits(0);
    assert_eq!(rows(&world, "stored", codecs), ["Integer(3) Integer(0)"]);
    let again = world.json(&["manifest", "export", "old", "again", "--segments", "flat"]);
    assert_eq!((&again["written_segment_files"], &again["present_segment_files"]), (&0.into(), &4.into()));
    // The disk is backed up on: the next backup is the next of its chain.
    world.write("disk", &original_disk());
    let next = &world.json(&["backup", "old=disk"])["backups"][0];
    assert_eq!((&next["backup"], &next["unchanged_segments"]), (&"old@1".into(), &4.into()));
    assert_eq!(next["backupset"], document["backupset"]);
    world.run(&import).exits(2).says("it is there already");
}

/// Three days of a disk: some segments change, some become zero, and at the end it shrinks.
fn days() -> [Vec<u8>; 3] {
    let first = [noise(1, 5 << 16), vec![0; 1 << 16], noise(2, 1 << 16), vec![7; 1 << 16]].concat();
    let mut second = first.clone();
    second[1 << 16..2 << 16].copy_from_slice(&noise(3, 1 << 16));
    second[2 << 16..3 << 16].fill(0);
    second.extend(noise(4, 512));
    let mut third = second[..(7 << 16) + 1024].to_vec();
    third[0] ^= 1;
    [first, second, third]
}

#[test]
fn a_chain_goes_into_a_new_repository_and_comes_out_the_same_in_both_formats() {
    for format in ["sqlite", "osdk"] {
        let world = World::new();
        world.init_small();
        for (day, disk) in days().iter().enumerate() {
            let has_shrunk = fs::metadata(world.path("web")).is_ok_and(|it| it.len() > disk.len() as u64);
            world.write("web", disk);
            world.run(&["backup", "web"]).exits(if has_shrunk { 3 } else { 0 });
            let (source, out) = (format!("web@{day}"), format!("out.{day}"));
            world
                .run(&["manifest", "export", &source, &out, "--format", format, "--segments", "flat"])
                .exits(0);
            world.run(&["manifest", "export", &source, &format!("store.{day}"), "--format", format]).exits(0);
        }
        fs::rename(world.path("R"), world.path("R.old")).unwrap();
        world.init_small();
        world.run(&["manifest", "import", "out.1", "--segments", "flat", "--name", "web"]).exits(0);
        world
            .run(&["manifest", "import", "out.0", "--segments", "flat", "--name", "web"])
            .exits(2)
            .says("in their order");
        fs::remove_dir_all(world.path("R")).unwrap();
        world.init_small();
        for day in ["0", "1", "2"] {
            let file = format!("out.{day}");
            world.run(&["manifest", "import", &file, "--segments", "flat", "--name", "web"]).exits(0);
        }
        for (day, disk) in days().iter().enumerate() {
            let (source, out, store) =
                (format!("web@{day}"), format!("again.{day}"), format!("restored.{day}"));
            assert_eq!(world.run(&["restore", &source, "-"]).exits(0).stdout, *disk);
            world
                .run(&["manifest", "export", &source, &out, "--format", format, "--segments", "flat2"])
                .exits(0);
            world.run(&["manifest", "export", &source, &store, "--format", format]).exits(0);
            for (one, other) in [(format!("out.{day}"), out), (format!("store.{day}"), store)] {
                if format == "osdk" {
                    assert_eq!(world.read(&one), world.read(&other));
                } else {
                    assert_eq!(all_but_compression(&world, &one), all_but_compression(&world, &other));
                    let compression = "SELECT segment, compression FROM segments";
                    assert_eq!(rows(&world, &one, compression), rows(&world, &other, compression));
                }
            }
        }
        let folders = [world.path("flat"), world.path("flat2")];
        let same = std::process::Command::new("diff").arg("-r").args(folders).status().unwrap();
        assert!(same.success(), "the segment files are the same too");
    }
}

#[test]
fn a_segment_file_that_does_not_fit_is_named_and_nothing_is_imported() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    copy_folder(Path::new(&original("segments")), &world.path("flat"));
    let path = "flat/85cbfeed-0de8-4294-a298-3b97f4d08385/0/2";
    let whole = world.read(path);
    let import = |code: i32| {
        world
            .run(&["manifest", "import", &original("manifest.sqlite"), "--segments", "flat", "--name", "old"])
            .exits(code)
    };
    let mut flipped = whole.clone();
    flipped[5000] ^= 1;
    let other = world.read("flat/85cbfeed-0de8-4294-a298-3b97f4d08385/0/1");
    let long = [whole.clone(), vec![0; 5 * MIB]].concat();
    for (bytes, why) in [
        (&flipped[..], "damaged"),
        (&other[..], "its SHA-1 is 28e09e306b271d0b512ef5f019d5c8b069e2289b"),
        (&whole[..whole.len() - 1], "do not decode to 4194304 bytes"),
        (&long[..], "too long"),
        (b"", "do not decode"),
    ] {
        world.write(path, bytes);
        let hash = "segment 2 (9c9799bc95d725ed5a4c2fc215843a2e6b11f36e) is not what";
        import(1).says(hash).says(path).says(why);
        assert_empty(&world);
    }
    fs::remove_file(world.path(path)).unwrap();
    import(1).says("segment 2 (9c9799bc95d725ed5a4c2fc215843a2e6b11f36e) is not stored").says(path);
    assert_empty(&world);
    fs::create_dir(world.path(path)).unwrap();
    import(1).says("it is no file");
    fs::remove_dir(world.path(path)).unwrap();
    // Whole again, with every other way to fail before anything is touched.
    world.write(path, &whole);
    world
        .run(&["manifest", "import", &original("manifest.sqlite"), "--name", "old"])
        .exits(1)
        .says("import it with --segments");
    assert_empty(&world);
    import(0);
    assert_eq!(world.run(&["restore", "old", "-"]).exits(0).stdout, original_disk());
    world.run(&["rebuild"]).exits(0);
    assert_eq!(world.run(&["restore", "old", "-"]).exits(0).stdout, original_disk());
}

#[test]
fn a_manifest_alone_is_imported_where_its_segments_are_stored() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    world.write("disk", &original_disk());
    world.run(&["backup", "disk"]).exits(0);
    let file = original("manifest.sqlite");
    // A name with backups of another disk is not taken.
    world.run(&["manifest", "import", &file, "--name", "disk"]).exits(2).says("another disk");
    let document = world.json(&["manifest", "import", &file, "--name", "old"]);
    assert_eq!((&document["new_segments"], &document["deduplicated_segments"]), (&0.into(), &4.into()));
    assert_eq!(world.run(&["restore", "old", "-"]).exits(0).stdout, original_disk());
    world.run(&["manifest", "import", &file, "--name", "older"]).exits(2).says("under the name old");
    let small = World::new();
    small.init_small();
    small.run(&["manifest", "import", &file, "--name", "old"]).exits(2).says("into a new repository");
    small.run(&["manifest", "import", &file]).exits(2).says("--name");
}

#[test]
fn segments_that_share_a_sha1_go_out_and_in_by_their_files_alone() {
    let world = World::new();
    world.init_small();
    let heads = [&include_bytes!("../data/shattered-1.bin")[..], include_bytes!("../data/shattered-2.bin")];
    let disk = heads.map(|head| [head, &vec![7; (1 << 16) - head.len()]].concat()).concat();
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    for format in ["sqlite", "osdk"] {
        let world_folder = format!("flat.{format}");
        world
            .run(&["manifest", "export", "web", format, "--format", format, "--segments", &world_folder])
            .exits(0);
    }
    world.run(&["manifest", "import", "sqlite", "--name", "again"]).exits(2).says("under the name web");
    let set = world.json(&["show", "web"])["backupset"].as_str().unwrap().to_owned();
    fs::remove_dir_all(world.path(&format!("R/manifests/{set}"))).unwrap();
    world
        .run(&["manifest", "import", "sqlite", "--name", "web"])
        .exits(1)
        .says("cannot find the backups of web");
    world.run(&["gc", "--accept-lost"]).exits(0);
    world.run(&["rebuild"]).exits(0);
    world
        .run(&["manifest", "import", "sqlite", "--name", "web"])
        .exits(2)
        .says("segment 0 cannot be told: 2 different segments");
    for format in ["sqlite", "osdk"] {
        fs::rename(world.path("R"), world.path(&format!("R.{format}"))).unwrap();
        world.init_small();
        let folder = format!("flat.{format}");
        world.run(&["manifest", "import", format, "--segments", &folder, "--name", "web"]).exits(0);
        assert_eq!(world.run(&["restore", "web", "-"]).exits(0).stdout, disk);
    }
}

#[test]
fn an_export_says_how_each_segment_is_stored_and_replaces_only_when_told() {
    let world = World::new();
    world.init_small();
    let text = |seed: &str| seed.repeat((1 << 16) / seed.len());
    world.write("web", [text("one.").as_bytes(), &noise(1, 1 << 16)].concat().as_slice());
    world.run(&["backup", "web", "--compression", "zlib"]).exits(0);
    let longer = [world.read("web"), text("two.").into_bytes()].concat();
    world.write("web", &longer);
    world.run(&["backup", "web", "--compression", "lzma"]).exits(0);
    world.run(&["manifest", "export", "web", "out"]).exits(0);
    let query = "SELECT segment, incremental, compression, encryption FROM segments";
    let codec = |segment: u32, incremental: u32, compression: u32| {
        format!("Integer({segment}) Integer({incremental}) Integer({compression}) Integer(0)")
    };
    assert_eq!(rows(&world, "out", query), [codec(0, 0, 1), codec(1, 0, 0), codec(2, 1, 2)]);
    world.run(&["manifest", "export", "web", "out"]).exits(2).says("it exists");
    world.run(&["manifest", "export", "web@0", "out", "--force"]).exits(0);
    assert_eq!(rows(&world, "out", query).len(), 2);
    // A file knows of no store, and has no segments.
    let manifest = world.json(&["show", "web"])["manifest"].as_str().unwrap().to_owned();
    fs::copy(world.path(&manifest), world.path("file")).unwrap();
    world.run(&["manifest", "export", "./file", "of-file"]).exits(0);
    assert_eq!(
        rows(&world, "of-file", "SELECT DISTINCT compression, encryption FROM segments"),
        ["Integer(255) Integer(255)"]
    );
    world.run(&["manifest", "export", "./file", "x", "--segments", "flat"]).exits(2).says("has no segments");
    assert!(!world.path("x").exists() && !world.path("flat").exists());
    // A segment file of another disk is not overwritten, and not taken for ours.
    world.run(&["manifest", "export", "web", "x", "--segments", "flat"]).exits(0);
    let set = world.json(&["show", "web"])["backupset"].as_str().unwrap().to_owned();
    world.write(&format!("flat/{set}/0/1"), b"something else");
    world.run(&["manifest", "export", "web", "y", "--segments", "flat"]).exits(1).says("segment 1 (");
    assert!(!world.path("y").exists());
    world.run(&["manifest", "export", "web", "y", "--segments", "flat", "--force"]).exits(0);
}

#[test]
fn a_damaged_segment_is_named_by_an_export_and_gets_no_file() {
    let world = World::new();
    world.init_small();
    let disk = noise(7, 3 << 16);
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    let pack = fs::read_dir(world.path("R/packs")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&pack).unwrap();
    let second = bytes.windows(64).position(|window| window == &disk[1 << 16..(1 << 16) + 64]).unwrap();
    bytes[second + 1000] ^= 4;
    fs::write(&pack, bytes).unwrap();
    let ran = world.run(&["manifest", "export", "web", "out", "--segments", "flat"]).exits(3);
    ran.says("segment 1 (65536 bytes at 65536) has no file");
    let set = world.json(&["show", "web"])["backupset"].as_str().unwrap().to_owned();
    let exists = [0, 1, 2].map(|segment| world.path(&format!("flat/{set}/0/{segment}")).exists());
    assert_eq!(exists, [true, false, true]);
}

#[test]
fn a_foreign_manifest_becomes_a_file_of_ours_without_a_repository() {
    let world = World::new();
    fs::copy(original("manifest.sqlite"), world.path("old.sqlite")).unwrap();
    let document = world.json(&["manifest", "import", "old.sqlite", "--output", "old.ekko"]);
    assert_eq!((keys(&document), &document["segments"]), (vec!["bytes", "file", "segments"], &4.into()));
    let info = world.json(&["manifest", "info", "./old.ekko"]);
    assert_eq!((&info["name"], &info["present_segments"]), (&"old".into(), &4.into()));
    world.run(&["manifest", "import", "old.sqlite", "--output", "old.ekko"]).exits(2).says("it exists");
    world
        .run(&["manifest", "import", "old.sqlite", "--output", "old.ekko", "--force", "--name", "x"])
        .exits(0);
    assert_eq!(world.json(&["manifest", "info", "./old.ekko"])["name"], "x");
    assert!(!world.path("R").exists());
    world.run(&["init"]).exits(0);
    // One of our own files is imported too.
    world
        .run(&["manifest", "import", "old.ekko", "--segments", &original("segments"), "--name", "old"])
        .exits(0);
    assert_eq!(world.run(&["restore", "old", "-"]).exits(0).stdout, original_disk());
    world.write("junk", b"neither of them, and long enough");
    world.run(&["manifest", "import", "junk", "--name", "x"]).exits(2).says("neither an Ekko manifest nor");
}

/// Writes a manifest of ours with 64 KiB segments: each a SHA-1 and a twin number.
fn write_manifest(
    world: &World,
    file: &str,
    set: u8,
    incremental: u32,
    bases: &[u8],
    segments: &[(SegmentHash, u16)],
) {
    let id = |byte: u8| BackupsetId::from_bytes([byte; 16]);
    let info = ManifestInfo {
        backupset: id(set),
        incremental: Incremental(incremental),
        name: ImageName::new("made").unwrap(),
        geometry: Geometry::new((segments.len() as u64) << 16, SegmentSize::MIN).unwrap(),
        timestamp: "2026-01-02T03:04:05Z".parse().unwrap(),
        bases: bases.iter().map(|byte| id(*byte)).collect(),
        attributes: Vec::new(),
    };
    let mut writer = ManifestWriter::create(&OsStorage, &world.path(file), info).unwrap();
    for (place, (hash, twin)) in (0..).zip(segments) {
        let key = SegmentKey { hash: *hash, twin: Twin(*twin) };
        let segment = SegmentRef { key, incremental: Incremental(incremental), base: BaseIndex(0) };
        writer.push(SegmentIndex(place), &segment).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn a_manifest_that_would_harm_the_repository_is_refused() {
    let world = World::new();
    world.init_small();
    let disk = noise(1, 1 << 16);
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    let stored = [(SegmentHash::of(&disk), 0)];
    let import = |file: &str, name: &str, code: i32| {
        world.run(&["manifest", "import", file, "--name", name]).exits(code)
    };
    // The number behind it would be none, and the set could not be read again.
    write_manifest(&world, "last", 1, u32::MAX, &[], &stored);
    import("last", "last", 2).says("no number would be left");
    // It descends from itself, or from what descends from it: no backupset would be the current one.
    write_manifest(&world, "own-base", 1, 0, &[1], &stored);
    import("own-base", "x", 2).says("a backupset twice");
    write_manifest(&world, "a", 1, 0, &[2], &stored);
    write_manifest(&world, "b", 2, 0, &[1], &stored);
    import("a", "chain", 0);
    import("b", "chain", 2).says("another disk");
    write_manifest(&world, "a1", 1, 1, &[3], &stored);
    import("a1", "chain", 2).says("other earlier backupsets");
    // A twin number is another repository's.
    write_manifest(&world, "twin", 4, 0, &[], &[(SegmentHash::of(&disk), 1)]);
    import("twin", "twin", 2).says("segment 0 cannot be told");
    // Of another length than its place.
    write_manifest(&world, "long", 5, 0, &[], &[stored[0], (SegmentHash::of(b"elsewhere"), 0)]);
    import("long", "long", 1).says("segment 1 (").says("is not stored");
    // An import that cannot succeed makes no repository.
    let elsewhere = World::new();
    fs::copy(world.path("a"), elsewhere.path("a")).unwrap();
    elsewhere.run(&["manifest", "import", "a", "--name", "x"]).exits(10).says("no repository");
    elsewhere
        .run(&["manifest", "import", "a", "--name", "x", "--segments", "gone"])
        .exits(1)
        .says("gone is no folder");
    assert!(!elsewhere.path("R").exists());
    let sets = fs::read_dir(world.path("R/manifests")).unwrap().count();
    assert_eq!(sets, 2, "of what was refused, nothing stays");
    world.run(&["backup", "web"]).exits(0);
    assert_eq!(world.run(&["restore", "web", "-"]).exits(0).stdout, disk);
}

#[test]
fn an_import_that_a_crash_cut_off_is_as_if_it_had_never_been() {
    let world = World::new();
    world.init_small();
    let disk = noise(1, 1 << 16);
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    // What stands there between the manifest's name and `set.toml`.
    let set = "01010101-0101-0101-0101-010101010101";
    fs::create_dir(world.path(&format!("R/manifests/{set}"))).unwrap();
    write_manifest(&world, &format!("R/manifests/{set}/0"), 1, 0, &[], &[(SegmentHash::of(&disk), 0)]);
    world.write(&format!("R/manifests/{set}/newborn.tmp"), b"");
    assert_eq!(world.json(&["list"])["backups"].as_array().unwrap().len(), 1);
    world.run(&["backup", "web"]).exits(0);
    assert!(!world.path(&format!("R/manifests/{set}")).exists());
}

#[test]
fn an_answer_beside_a_damaged_set_says_so() {
    let world = World::new();
    world.init_small();
    for name in ["web", "db"] {
        world.write(name, &noise(1, 1 << 16));
        world.run(&["backup", name]).exits(0);
    }
    let set = world.json(&["show", "db"])["backupset"].as_str().unwrap().to_owned();
    let path = format!("R/manifests/{set}/set.toml");
    let text = fs::read_to_string(world.path(&path)).unwrap();
    world.write(&path, text.replace("size_of_disk = 65536", "size_of_disk = 65537").as_bytes());
    for arguments in
        [&["diff", "web@0", "web"][..], &["manifest", "dump", "web"], &["manifest", "info", "web"]]
    {
        world.run(arguments).exits(3).says("is damaged");
    }
    // The name of a backup whose manifest is gone is not taken for a file's.
    let set = world.run(&["--json", "manifest", "info", "web"]).exits(3).json();
    fs::remove_file(world.path(&format!("R/manifests/{}/0", set["backupset"].as_str().unwrap()))).unwrap();
    world.run(&["manifest", "dump", "web"]).exits(1);
}
