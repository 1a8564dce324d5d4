//! Whole repositories, a backup against a disk, and whether every disk has a fresh, whole backup.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::harness::{World, keys, noise};

#[test]
fn a_disk_is_compared_with_a_backup_and_what_differs_is_named() {
    let world = World::new();
    world.init_small();
    let disk = [noise(1, 3 << 16), vec![0; 2 << 16], noise(2, 100)].concat();
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    world.run(&["verify", "web", "web"]).exits(0);
    let same = world.json(&["verify", "web@0", "web"]);
    assert_eq!(keys(&same), ["backup", "differing", "read_bytes", "same", "source", "unknown_segments"]);
    assert_eq!((&same["same"], &same["differing"]), (&true.into(), &serde_json::json!([])));
    let range = |offset: u64, length: u64| serde_json::json!({ "offset": offset, "length": length });
    let differing = |bytes: &[u8]| {
        world.write("web", bytes);
        let document = world.run(&["--json", "verify", "web", "web"]).exits(3).json();
        assert_eq!(document["same"], false);
        document["differing"].clone()
    };
    let changed = |places: &[usize]| {
        let mut bytes = disk.clone();
        for place in places {
            bytes[*place] ^= 1;
        }
        bytes
    };
    // One bit of data, of what was zero, and of the short last segment; neighbours are one range.
    assert_eq!(differing(&changed(&[70_000])), serde_json::json!([range(1 << 16, 1 << 16)]));
    assert_eq!(
        differing(&changed(&[0, (4 << 16) + 7, (5 << 16) + 99])),
        serde_json::json!([range(0, 1 << 16), range(4 << 16, (1 << 16) + 100)])
    );
    let mut zeroed = disk.clone();
    zeroed[1 << 16..3 << 16].fill(0);
    assert_eq!(differing(&zeroed), serde_json::json!([range(1 << 16, 2 << 16)]));
    assert_eq!(differing(&disk[..(5 << 16) + 50]), serde_json::json!([range(5 << 16, 100)]));
    assert_eq!(differing(&disk[..2 << 16]), serde_json::json!([range(2 << 16, (3 << 16) + 100)]));
    assert_eq!(differing(&[&disk[..], &[0; 7]].concat()), serde_json::json!([range((5 << 16) + 100, 7)]));
    // A file that is all hole.
    let file = fs::File::create(world.path("web")).unwrap();
    file.set_len(disk.len() as u64).unwrap();
    let ran = world.run(&["--json", "verify", "web", "web"]).exits(3).json();
    assert_eq!(ran["differing"], serde_json::json!([range(0, 3 << 16), range(5 << 16, 100)]));
    world.run(&["verify", "web", "gone"]).exits(1);
    // Segments that are gone: nobody can say.
    world.write("web", &disk);
    fs::remove_dir_all(world.path("R/packs")).unwrap();
    fs::create_dir(world.path("R/packs")).unwrap();
    let ran = world.run(&["--json", "verify", "web", "web"]).exits(3).json();
    assert_eq!((&ran["unknown_segments"], &ran["differing"]), (&4.into(), &serde_json::json!([])));
}

#[test]
fn two_segments_with_one_sha1_are_told_apart() {
    let world = World::new();
    world.init_small();
    let heads = [&include_bytes!("../data/shattered-1.bin")[..], include_bytes!("../data/shattered-2.bin")];
    let segments = heads.map(|head| [head, &vec![7; (1 << 16) - head.len()]].concat());
    world.write("web", &segments.concat());
    world.run(&["backup", "web"]).exits(0);
    world.run(&["verify", "web", "web"]).exits(0);
    let [one, other] = segments;
    world.write("web", &[other, one].concat());
    world.run(&["verify", "web", "web"]).exits(3);
}

#[test]
fn every_name_without_a_fresh_whole_backup_is_a_line_and_exit_3() {
    let world = World::new();
    world.init_small();
    for (name, seed) in [("web", 1), ("db", 2), ("mail", 3)] {
        world.write(name, &noise(seed, 2 << 16));
        world.run(&["backup", name]).exits(0);
    }
    world.run(&["status", "--max-age", "26h"]).exits(0);
    let status = world.json(&["status"]);
    assert_eq!(keys(&status["names"][0]), ["backup", "name", "ok", "problem", "timestamp"]);
    assert!(status["names"].as_array().unwrap().iter().all(|name| name["ok"] == true));
    // Too old, by a limit of no time at all.
    let text = world.run(&["status", "--max-age", "0s"]).exits(3).text();
    assert_eq!(text.lines().filter(|line| line.contains(" old (limit 0 s)")).count(), 3, "{text}");
    // Whose last backup was deleted on purpose is not asked for; a damaged manifest and a segment that is gone are seen.
    world.run(&["delete", "mail@all"]).exits(0);
    let path = world.json(&["show", "db"])["manifest"].as_str().unwrap().to_owned();
    let mut bytes = world.read(&path);
    bytes[150] ^= 1;
    world.write(&path, &bytes);
    let text = world.run(&["status"]).exits(3).text();
    assert!(!text.contains("mail") && text.contains("db: manifest"), "{text}");
    assert!(text.contains("PROBLEM: 1 of 2 disks, see above\n"), "{text}");
    fs::remove_file(world.path("R/packs/0000000000000001.pack")).unwrap();
    let status = world.run(&["--json", "status"]).exits(3).json();
    let web = status["names"].as_array().unwrap().iter().find(|name| name["name"] == "web").unwrap();
    assert_eq!(web["problem"], "2 segments of it are in no pack that can be read");
    world.run(&["status", "--max-age", "soon"]).exits(2);
}

/// The offsets of the stored bytes of these segments, which are stored as they are, in the first pack.
fn offsets(pack: &[u8], segments: &[&[u8]]) -> Vec<usize> {
    let find = |segment: &&[u8]| pack.windows(64).position(|window| window == &segment[..64]).unwrap();
    segments.iter().map(find).collect()
}

#[test]
fn a_check_names_exactly_what_is_damaged_and_whom_it_hurts() {
    let world = World::new();
    world.init_small();
    let web = noise(1, 20 << 16);
    let mut later = web.clone();
    later[..4 << 16].copy_from_slice(&noise(2, 4 << 16));
    let db = [noise(3, 2 << 16), web[18 << 16..].to_vec()].concat();
    for (name, disk) in [("web", &web), ("web", &later), ("db", &db)] {
        world.write(name, disk);
        world.run(&["backup", name]).exits(0);
    }
    let clean = world.json(&["check", "--read-data"]);
    assert_eq!(
        keys(&clean),
        [
            "backups",
            "damaged",
            "garbage_segments",
            "index",
            "problems",
            "quarantined_segments",
            "read_bytes",
            "segments"
        ]
    );
    assert_eq!(clean["index"], "agrees");
    assert_eq!(
        (&clean["backups"], &clean["segments"], &clean["garbage_segments"]),
        (&3.into(), &26.into(), &0.into())
    );
    assert_eq!(clean["read_bytes"], 26 << 16);
    // One bit of each: one that the first day alone has, one of both days, one of another disk too.
    let path = "R/packs/0000000000000001.pack";
    let mut pack = world.read(path);
    let whole = pack.clone();
    for (bit, at) in
        offsets(&pack, &[&web[..1 << 16], &web[5 << 16..6 << 16], &web[19 << 16..]]).into_iter().enumerate()
    {
        pack[at + 1000 * bit] ^= 1 << bit;
    }
    world.write(path, &pack);
    world.run(&["check"]).exits(0);
    let found = world.run(&["--json", "check", "--read-data"]).exits(3).json();
    assert_eq!(found["problems"], serde_json::json!([]));
    let mut hurt: Vec<(String, Vec<String>)> = found["damaged"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            assert_eq!(keys(row), ["backups", "error", "places", "segment", "twin"]);
            let names =
                row["backups"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
            (row["segment"].as_str().unwrap().to_owned(), names.collect())
        })
        .collect();
    hurt.sort();
    let hash = |bytes: &[u8]| ekko::segment::SegmentHash::of(bytes).to_string();
    let mut expected = [
        (hash(&web[..1 << 16]), vec!["web@0"]),
        (hash(&web[5 << 16..6 << 16]), vec!["web@0", "web@1"]),
        (hash(&web[19 << 16..]), vec!["db@0", "web@0", "web@1"]),
    ]
    .map(|(hash, names)| (hash, names.into_iter().map(str::to_owned).collect::<Vec<_>>()));
    expected.sort();
    assert_eq!(hurt, expected);
    let text = world.run(&["check", "--read-data"]).exits(3).text();
    assert!(text.contains("it affects web@0\n") && text.contains("3 problems found"), "{text}");
    // What was found damaged is known until it is read again.
    world.write(path, &whole);
    world.run(&["check"]).exits(3);
    world.run(&["check", "--read-data"]).exits(0);
    // A pack that is gone: what it held is missing, without a byte being read.
    let last = "R/packs/0000000000000003.pack";
    let bytes = world.read(last);
    fs::remove_file(world.path(last)).unwrap();
    let found = world.run(&["--json", "check"]).exits(3).json();
    assert_eq!(found["damaged"].as_array().unwrap().len(), 2);
    assert_eq!(found["damaged"][0]["backups"], serde_json::json!(["db@0"]));
    world.write(last, &bytes);
    // A manifest that is damaged or gone.
    let manifest = world.json(&["show", "web@1"])["manifest"].as_str().unwrap().to_owned();
    let bytes = world.read(&manifest);
    let mut flipped = bytes.clone();
    flipped[200] ^= 1;
    world.write(&manifest, &flipped);
    assert!(world.run(&["check"]).exits(3).text().contains("web@1 cannot be restored"));
    fs::remove_file(world.path(&manifest)).unwrap();
    assert!(world.run(&["check"]).exits(3).text().contains("web@1 cannot be restored"));
    world.write(&manifest, &bytes);
    world.run(&["check", "--read-data"]).exits(0);
    // What was deleted is garbage, and no problem.
    world.run(&["delete", "web@1"]).exits(0);
    assert_eq!(world.json(&["check"])["garbage_segments"], 4);
}

#[test]
fn a_check_needs_neither_the_index_nor_the_lock() {
    let world = World::new();
    world.init_small();
    world.write("web", &noise(1, 3 << 16));
    world.run(&["backup", "web"]).exits(0);
    fs::remove_dir_all(world.path("R/index")).unwrap();
    let lock = fs::File::options().write(true).open(world.path("R/lock")).unwrap();
    lock.lock().unwrap();
    world.run(&["check", "--read-data"]).exits(0).says("the index is not compared");
    assert_eq!(world.json(&["check"])["index"], "not compared");
    world.run(&["check", "--repair"]).exits(11).says("in use by");
    world.run(&["status"]).exits(0);
    world.run(&["verify", "web", "web"]).exits(0);
    assert!(!world.path("R/index").exists());
}

/// Every stored segment: its SHA-1, and where its stored bytes lie.
fn stored(world: &World) -> Vec<(String, PathBuf, Range<u64>)> {
    let repository = ekko::repository::Repository::open(&world.path("R")).unwrap();
    let mut found = Vec::new();
    let each = |number: ekko::store::pack::PackNumber, entry: &ekko::store::pack::ContentsEntry| {
        let start = entry.offset + 256;
        let path = world.path("R/packs").join(number.file_name());
        found.push((entry.key.hash.to_string(), path, start..start + entry.stored_length));
    };
    assert!(repository.catalog().unwrap().for_each_segment(each).unwrap().is_empty());
    found
}

fn flip(path: &Path, bit: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

#[test]
fn a_hundred_flipped_bits_are_named_repaired_and_healed_by_the_next_backup() {
    let world = World::new();
    world.init_small();
    // Two days of one disk, and another disk that shares segments with it.
    let web = noise(1, 300 << 16);
    let mut later = web.clone();
    later[40 << 16..90 << 16].copy_from_slice(&noise(2, 50 << 16));
    let db = [noise(3, 60 << 16), web[200 << 16..].to_vec()].concat();
    let disks = [("web@0", &web), ("web@1", &later), ("db@0", &db)];
    for (name, disk) in &disks {
        let name = name.split('@').next().unwrap();
        world.write(name, disk);
        world.run(&["backup", name]).exits(0);
    }
    let mut places = stored(&world);
    let mut picked = Vec::new();
    for n in 0..100_u64 {
        let at = usize::try_from(n * 7919 % places.len() as u64).unwrap();
        let (hash, path, range) = places.swap_remove(at);
        flip(&path, range.start * 8 + n * 104_729 % ((range.end - range.start) * 8));
        picked.push(hash);
    }
    picked.sort();
    let hash = |bytes: &[u8]| ekko::segment::SegmentHash::of(bytes).to_string();
    let found = world.run(&["--json", "check", "--read-data"]).exits(3).json();
    let rows = found["damaged"].as_array().unwrap();
    let named: Vec<_> = rows.iter().map(|row| row["segment"].as_str().unwrap().to_owned()).collect();
    assert_eq!(named, picked, "exactly these");
    for row in rows {
        let hurt = |(_, disk): &&(&str, &Vec<u8>)| {
            disk.chunks(1 << 16).any(|segment| hash(segment) == row["segment"].as_str().unwrap())
        };
        let mut expected: Vec<_> = disks.iter().filter(hurt).map(|(name, _)| *name).collect();
        expected.sort_unstable();
        assert_eq!(row["backups"], serde_json::json!(expected), "exactly those that it hurts");
    }
    // A backup of the same disk before the repair believes that it is stored, and says nothing.
    let repaired = world.run(&["--json", "check", "--read-data", "--repair"]).exits(3).json();
    assert_eq!(repaired["quarantined_segments"], 100);
    assert_eq!(fs::read_dir(world.path("R/quarantine")).unwrap().count(), 100);
    let missing = world.run(&["--json", "check"]).exits(3).json();
    assert_eq!(missing["damaged"].as_array().unwrap().len(), 100, "they are missing now");
    assert_eq!(missing["index"], "agrees");
    world.run(&["restore", "web@1", "out"]).exits(3);
    // A new index knows it as well.
    world.run(&["rebuild"]).exits(3).says("segments that backups name are in no pack");
    for (name, disk) in [("web", &web), ("web", &later), ("db", &db)] {
        world.write(name, disk);
        world.run(&["backup", name]).exits(0);
    }
    assert_eq!(world.json(&["check", "--read-data"])["index"], "agrees");
    for (name, disk) in &disks {
        world.run(&["restore", name, "out", "--force"]).exits(0);
        assert!(world.read("out") == **disk, "{name} is whole again");
    }
    world.run(&["gc", "--now", "--keep-unfinished", "0s"]).exits(0);
    world.run(&["check", "--read-data"]).exits(0);
}

#[test]
fn a_share_of_the_data_is_what_was_longest_not_read() {
    let world = World::new();
    world.init_small();
    // Ten packs of a slice each.
    for seed in 0..10 {
        world.write("web", &noise(seed, 4 << 16));
        world.run(&["backup", "web"]).exits(0);
    }
    let all = world.json(&["check", "--read-data"])["read_bytes"].as_u64().unwrap();
    fs::remove_file(world.path("R/checked")).unwrap();
    let mut read = 0;
    for _ in 0..4 {
        let share = world.json(&["check", "--read-data=30"])["read_bytes"].as_u64().unwrap();
        assert!(share * 10 >= all * 3 && share * 10 <= all * 4, "{share} of {all}");
        read += share;
    }
    assert!(read >= all);
    // A bit in the newest pack: found by the share that comes to it, at the latest by the fourth.
    flip(&world.path("R/packs/0000000000000010.pack"), (8192 + 256) * 8);
    let found = (0..4).filter(|_| world.run(&["check", "--read-data=30"]).code == 3).count();
    assert!(found >= 1);
    // What is damaged is not counted as checked: it comes first from now on.
    world.run(&["check", "--read-data=1"]).exits(3);
    world.run(&["check", "--read-data=0"]).exits(2);
    world.run(&["check", "--read-data=101"]).exits(2);
}

#[test]
fn an_index_that_says_what_is_not_so_is_found_and_mended() {
    let world = World::new();
    world.init_small();
    world.write("web", &noise(1, 4 << 16));
    world.run(&["backup", "web"]).exits(0);
    world.write("web", &noise(2, 4 << 16));
    world.run(&["backup", "web"]).exits(0);
    // A manifest that comes in behind the index's back: put there when the repository was closed in order.
    let repository = ekko::repository::Repository::open(&world.path("R")).unwrap();
    let told = ekko::progress::Silent;
    let options = ekko::repository::OpenOptions::default();
    let writer = ekko::repository::RepositoryWriter::open(&world.path("R"), &options, &told).unwrap();
    let (sets, _) = repository.backupsets().unwrap();
    let manifest = repository.manifest(&sets[0], &sets[0].backups[0]).unwrap();
    let (_, segment) = manifest.segments().next().unwrap();
    writer.store().apply(vec![ekko::store::Change::Count(segment.key, 3)]).unwrap();
    writer.close().unwrap();
    let found = world.run(&["--json", "check"]).exits(3).json();
    assert_eq!(found["index"], "differs");
    assert!(found["problems"][0].as_str().unwrap().contains("the refcount 4, the manifests 1"), "{found}");
    let found = world.run(&["--json", "check", "--repair"]).exits(3).json();
    assert_eq!(found["index"], "replaced");
    assert_eq!(world.json(&["check"])["index"], "agrees");
}

fn marks(world: &World, backup: &str) -> String {
    let text = world.run(&["list"]).exits(0).text();
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(backup)).unwrap();
    line.to_owned()
}

#[test]
fn what_a_check_found_damaged_is_known_everywhere_until_a_backup_heals_it() {
    let world = World::new();
    world.init_small();
    let shared = noise(7, 1 << 16);
    for (name, seed) in [("db", 1), ("web", 2)] {
        world.write(name, &[shared.clone(), noise(seed, 1 << 16)].concat());
        world.run(&["backup", name]).exits(0);
        world.run(&["backup", name]).exits(0);
    }
    world.write("mail", &noise(3, 1 << 16));
    world.run(&["backup", "mail"]).exits(0);
    world.run(&["status"]).exits(0).text();
    let pack = "R/packs/0000000000000001.pack";
    let mut bytes = world.read(pack);
    let at = offsets(&bytes, &[&shared])[0];
    bytes[at + 100] ^= 1;
    world.write(pack, &bytes);
    let text = world.run(&["check", "--read-data"]).exits(3).text();
    assert!(text.contains("it affects db@0-1, web@0-1 (4 backups of 2 disks)"), "{text}");
    for repaired in [false, true] {
        if repaired {
            world.run(&["check", "--repair"]).exits(3);
        }
        let text = world.run(&["status"]).exits(3).text();
        assert!(text.contains("db: ") && text.contains("web: ") && !text.contains("mail"), "{text}");
        assert!(marks(&world, "web@0").ends_with("damaged") && !marks(&world, "mail@0").ends_with("damaged"));
        assert_eq!(world.json(&["show", "db@1"])["damaged"], true);
        assert!(world.run(&["show", "db@1"]).exits(0).text().contains("a check found"));
        // Without reading the data again, a check says what is known.
        world.run(&["check"]).exits(3);
    }
    let text = world.run(&["backup", "db"]).exits(0).text();
    assert!(text.contains("db@2: 1 segment healed that earlier backups lacked"), "{text}");
    world.run(&["status"]).exits(0);
    assert!(!marks(&world, "web@0").ends_with("damaged"));
    world.run(&["check", "--read-data"]).exits(0);
}

#[test]
fn a_retired_disk_is_expected_again_after_its_next_backup() {
    let world = World::new();
    world.init_small();
    for name in ["web", "db"] {
        world.write(name, &noise(1, 1 << 16));
        world.run(&["backup", name]).exits(0);
    }
    world.run(&["status", "--max-age", "0s"]).exits(3);
    world.run(&["retire", "wbe"]).exits(1).says("did you mean \"web\"?");
    world.run(&["list", "wbe"]).exits(1).says("did you mean \"web\"?");
    world.run(&["list", "w?e"]).exits(1).says("there is no backup of w?e in ");
    world.run(&["list", "web", "--tag", "typo"]).exits(1).says("there is no backup of web with the tag typo");
    world.run(&["list", "web", "--deleted"]).exits(1).says("there is no deleted backup of web");
    world.run(&["retire", "web"]).exits(0);
    let names = |world: &World| {
        let status = world.run(&["--json", "status", "--max-age", "0s"]).exits(3).json();
        let rows = status["names"].as_array().unwrap().clone();
        rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&world), ["db"]);
    assert_eq!(world.json(&["list"])["backups"].as_array().unwrap().len(), 2, "its backups stay");
    world.run(&["backup", "web"]).exits(0);
    assert_eq!(names(&world), ["db", "web"]);
    // Whose last backup was deleted on purpose is not asked for either.
    world.run(&["delete", "db@all"]).exits(0);
    assert_eq!(names(&world), ["web"]);
}
