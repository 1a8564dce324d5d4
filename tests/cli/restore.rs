use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::harness::{MIB, World, keys, noise};

#[test]
fn a_new_file_is_sparse_and_equal() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    let mut disk = vec![0; 40 * MIB];
    disk[9 * MIB..9 * MIB + 5000].copy_from_slice(&noise(1, 5000));
    world.write("disk", &disk);
    world.run(&["backup", "disk"]).exits(0);
    let document = world.json(&["restore", "disk", "out"]);
    let all =
        ["backup", "complete", "damaged", "incomplete", "seconds", "segments", "target", "written_bytes"];
    assert_eq!(keys(&document), all);
    assert_eq!((&document["complete"], &document["incomplete"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(document["written_bytes"], 8192, "only blocks with data are written");
    assert_eq!(world.read("out"), disk);
    assert!(fs::metadata(world.path("out")).unwrap().blocks() * 512 <= 64 << 10);
}

#[test]
fn an_existing_target_needs_force_and_then_holds_no_old_data() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    let mut disk = vec![0; 9 * MIB + 10];
    disk[0] = 1;
    world.write("disk", &disk);
    world.run(&["backup", "disk"]).exits(0);
    world.write("out", &noise(2, 12 * MIB));
    world.run(&["restore", "disk", "out"]).exits(2).says("--force");
    assert_eq!(world.read("out"), noise(2, 12 * MIB), "nothing was written");
    world.run(&["restore", "--force", "--no-sync", "disk", "out"]).exits(0);
    assert_eq!(world.read("out"), disk);
}

#[test]
fn stdout_carries_the_disk_and_stderr_the_document() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    let disk = [noise(3, 5 * MIB), vec![0; 9 * MIB], noise(4, 7)].concat();
    world.write("disk", &disk);
    world.run(&["backup", "disk"]).exits(0);
    let ran = world.run(&["--json", "restore", "disk", "-"]).exits(0);
    assert_eq!(ran.stdout, disk);
    let document: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(document["written_bytes"], disk.len());
    let failed = world.run(&["--json", "restore", "nothing", "-"]).exits(1);
    assert!(failed.stdout.is_empty());
    let document: serde_json::Value = serde_json::from_str(&failed.stderr).unwrap();
    assert_eq!(document["error"]["kind"], "not_found");
}

#[test]
fn impossible_targets_and_backups_are_refused() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    world.write("disk", b"x");
    world.run(&["backup", "disk"]).exits(0);
    world.run(&["restore", "disk", "no/such/folder/out"]).exits(1).says("no/such/folder/out");
    world.run(&["restore", "disk", "."]).exits(2).says("neither a file nor a block device");
    world.run(&["restore", "disk@7", "out"]).exits(1).says("disk@7");
    world.run(&["restore", "disk@x", "out"]).exits(2).says("names no backup");
    world.run(&["restore", "--over", "other", "disk", "out"]).exits(2).says("not of other");
    assert!(!world.path("out").exists());
}

#[test]
fn a_restore_over_the_source_starts_a_new_backupset_that_knows_the_old_one() {
    let world = World::new();
    world.init_small();
    let first = noise(5, 3 << 16);
    world.write("web", &first);
    let old = world.json(&["backup", "web"])["backups"][0]["backupset"].as_str().unwrap().to_owned();
    let later = noise(6, 3 << 16);
    world.write("web", &later);
    world.run(&["backup", "web"]).exits(0);
    let document = world.json(&["restore", "--force", "--over", "web", "web@0", "web"]);
    let new = document["new_backupset"].as_str().unwrap().to_owned();
    assert_ne!(new, old);
    assert_eq!(
        world.run(&["restore", "web@1", "-"]).exits(0).stdout,
        later,
        "until the next backup the name means the old set"
    );
    let mut changed = first.clone();
    changed[0] ^= 1;
    world.write("web", &changed);
    let next = world.json(&["backup", "web"]);
    let next = &next["backups"][0];
    assert_eq!((&next["backup"], next["backupset"].as_str()), (&"web@2".into(), Some(new.as_str())));
    assert_eq!((&next["unchanged_segments"], &next["new_segments"]), (&2.into(), &1.into()));
    let dump = world.json(&["manifest", "dump", "web"]);
    let bases: Vec<_> =
        dump["segments"].as_array().unwrap().iter().map(|row| row["base"].as_u64().unwrap()).collect();
    assert_eq!(bases, [0, 1, 1], "what did not change was first stored by the old set");
    assert_eq!(world.json(&["show", "web"])["bases"][0], old.as_str());
    assert_eq!(world.run(&["restore", &format!("{old}@1"), "-"]).exits(0).stdout, later);
    let list = world.json(&["list"]);
    let names: Vec<_> =
        list["backups"].as_array().unwrap().iter().map(|row| row["backup"].as_str().unwrap()).collect();
    assert_eq!(names, ["web@0", "web@1", "web@2"]);
    let prefix = format!("{}@1", &old[..4]);
    assert_eq!(world.run(&["restore", &prefix, "-"]).exits(0).stdout, later);
}

#[test]
fn a_damaged_segment_is_named_and_the_rest_is_restored() {
    let world = World::new();
    world.init_small();
    let disk = noise(7, 5 << 16);
    world.write("disk", &disk);
    world.run(&["backup", "disk"]).exits(0);
    let pack = fs::read_dir(world.path("R/packs")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&pack).unwrap();
    let third = bytes.windows(64).position(|window| window == &disk[2 << 16..(2 << 16) + 64]).unwrap();
    bytes[third + 1000] ^= 4;
    fs::write(&pack, bytes).unwrap();
    let mut expected = disk;
    expected[2 << 16..3 << 16].fill(0);
    let ran = world.run(&["--json", "restore", "disk", "out"]).exits(3);
    assert_eq!(world.read("out"), expected);
    let damaged = ran.json()["damaged"].clone();
    assert_eq!(damaged.as_array().unwrap().len(), 1);
    assert_eq!(keys(&damaged[0]), ["error", "length", "offset", "segment"]);
    assert_eq!((&damaged[0]["segment"], &damaged[0]["offset"]), (&2.into(), &(2 << 16).into()));
    assert_eq!(ran.json()["complete"], false);
    assert_eq!(ran.json()["incomplete"], serde_json::json!([{ "offset": 2 << 16, "length": 1 << 16 }]));
    let ran = world.run(&["restore", "disk", "-"]).exits(3).says("segment 2");
    assert_eq!(ran.stdout, expected);
    let last = ran.stderr.lines().last().unwrap();
    assert!(last.starts_with("INCOMPLETE: restored disk@0 to -: "), "{last}");
    assert!(last.ends_with("but 64.0 KiB at 128.0 KiB could not be read and are zeros"), "{last}");
    // What was there before stays where nothing can be restored.
    world.write("old", &noise(8, 5 << 16));
    let ran = world.run(&["restore", "--force", "--in-place", "disk", "old"]).exits(3);
    assert!(ran.text().contains("INCOMPLETE: ") && ran.text().ends_with(" are as they were before\n"));
}

#[test]
fn a_part_of_a_disk_is_restored_and_no_more_is_read() {
    let world = World::new();
    world.init_small();
    let disk = [noise(1, 3 << 16), vec![0; 3 << 16], noise(2, (2 << 16) + 777)].concat();
    world.write("disk", &disk);
    world.run(&["backup", "disk"]).exits(0);
    let size = disk.len();
    for (offset, length) in [
        (0, size),
        (0, 1),
        (1 << 16, 1 << 16),
        ((1 << 16) + 5, 10),
        ((2 << 16) + 9, 5 << 16),
        (4 << 16, 1 << 16),
        (size - 1, 1),
        (size, 0),
        (77, 0),
    ] {
        let (from, many) = (offset.to_string(), length.to_string());
        let ran = world.run(&["restore", "disk", "-", "--offset", &from, "--length", &many]).exits(0);
        assert!(ran.stdout == disk[offset..offset + length], "{length} bytes at {offset}");
        world.run(&["restore", "disk", "out", "--offset", &from, "--length", &many]).exits(0);
        assert!(world.read("out") == disk[offset..offset + length], "{length} bytes at {offset}");
        fs::remove_file(world.path("out")).unwrap();
    }
    let ran = world.run(&["restore", "disk", "-", "--offset", "192KiB"]).exits(0);
    assert!(ran.stdout == disk[3 << 16..]);
    world.run(&["restore", "disk", "-", "--offset", "1GiB"]).exits(2).says("the disk has");
    world.run(&["restore", "disk", "-", "--length", "1GiB"]).exits(2).says("the disk has");
    world.run(&["restore", "disk", "-", "--length", "1x"]).exits(2);
    // A damaged segment outside the part hurts nobody.
    let pack = world.path("R/packs/0000000000000001.pack");
    let mut bytes = fs::read(&pack).unwrap();
    bytes[8192 + 1000] ^= 1;
    fs::write(&pack, bytes).unwrap();
    world.run(&["restore", "disk", "-", "--offset", "64KiB"]).exits(0);
    world.run(&["restore", "disk", "-", "--length", "64KiB"]).exits(3);
}
