//! Lists of changes: what is read, what is believed, and what happens when a list is wrong.

use serde_json::{Value, json};

use crate::harness::{World, noise};

const SEGMENT: usize = 64 << 10;

/// A list as `rbd diff --format json` writes it, of bytes at offsets: whether there is data, or zeros now.
fn list(ranges: &[(usize, usize, bool)]) -> Vec<u8> {
    let item = |(offset, length, exists): &(usize, usize, bool)| json!({"offset": offset, "length": length, "exists": exists.to_string()});
    serde_json::to_vec(&ranges.iter().map(item).collect::<Vec<_>>()).unwrap()
}

/// A repository with a first backup of a disk of 64 segments, of which the last eight are zeros.
fn world() -> (World, Vec<u8>) {
    let world = World::new();
    world.init_small();
    let mut disk = noise(1, 56 * SEGMENT);
    disk.resize(64 * SEGMENT, 0);
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    (world, disk)
}

/// Backs the disk up with a list, and expects an exit code.
fn backup(world: &World, disk: &[u8], list: &[u8], arguments: &[&str], code: i32) -> Value {
    world.write("web", disk);
    world.write("list", list);
    let all = [&["--json", "backup", "web", "--cbt", "list"], arguments].concat();
    let document = world.run(&all).exits(code).json();
    document["backups"][0].clone()
}

fn assert_restores(world: &World, backup: &str, disk: &[u8]) {
    assert!(world.run(&["restore", backup, "-"]).exits(0).stdout == disk, "{backup}");
}

#[test]
fn only_what_changed_is_read_and_ten_segments_to_see_whether_that_is_so() {
    let (world, mut disk) = world();
    // Across a boundary, so two segments; a whole segment of zeros, and one in part.
    disk[30 * SEGMENT - 1] ^= 1;
    disk[30 * SEGMENT] ^= 1;
    disk[40 * SEGMENT..41 * SEGMENT + 10].fill(0);
    let ranges = [(30 * SEGMENT - 1, 2, true), (40 * SEGMENT, SEGMENT + 10, false)];
    let done = backup(&world, &disk, &list(&ranges), &["--cbt-base", "web@0", "--cbt-id", "bitmap0"], 0);
    assert_eq!(done["read_bytes"], 13 * SEGMENT);
    assert_eq!(
        (&done["new_segments"], &done["unchanged_segments"], &done["zero_segments"]),
        (&3.into(), &52.into(), &9.into())
    );
    assert_eq!(done["cbt"], json!({"kind": "rbd-diff", "audited_segments": 10}));
    assert_restores(&world, "web", &disk);
    let attribute = world.json(&["show", "web"])["attributes"]["cbt"].as_str().unwrap().to_owned();
    let attribute: Value = serde_json::from_str(&attribute).unwrap();
    assert_eq!(
        attribute,
        json!({"kind": "rbd-diff", "id": "bitmap0", "granularity": 1, "cursor": 10, "full": 0})
    );
    // The lists that Ekko writes itself are such lists.
    let before = disk.clone();
    disk[5 * SEGMENT] ^= 1;
    world.write("web", &disk);
    world.run(&["backup", "other=web"]).exits(0);
    let own = world.run(&["--json", "diff", "web", "other"]).exits(0).stdout;
    let done = backup(&world, &disk, &own, &["--cbt-base", "web@1"], 0);
    assert_eq!((&done["read_bytes"], &done["deduplicated_segments"]), (&(11 * SEGMENT).into(), &1.into()));
    assert_restores(&world, "web@2", &disk);
    assert_restores(&world, "web@1", &before);
    world.run(&["check", "--read-data"]).exits(0);
}

#[test]
fn a_list_that_misses_a_write_is_found_and_the_backups_since_the_last_full_read_are_suspect() {
    let (world, mut disk) = world();
    backup(&world, &disk, b"[]", &["--cbt-base", "web@0"], 0);
    backup(&world, &disk, b"[]", &["--cbt-base", "web@1"], 0);
    disk[50 * SEGMENT + 7] ^= 1;
    let done = backup(&world, &disk, b"[]", &["--cbt-base", "web@2", "--cbt-audit", "100"], 3);
    // What was read and stored until then counts as well.
    assert!(done["read_bytes"].as_u64().unwrap() > 64 * SEGMENT as u64);
    assert_eq!((&done["new_segments"], &done["deduplicated_segments"]), (&1.into(), &0.into()));
    assert_eq!(done["cbt"]["suspects"], json!([1, 2]));
    assert_eq!(done["cbt"]["full_read"], "it is wrong about segment 50");
    assert_restores(&world, "web@3", &disk);
    let backups = world.json(&["list"])["backups"].clone();
    let suspects: Vec<_> =
        backups.as_array().unwrap().iter().map(|backup| backup.get("suspect").is_some()).collect();
    assert_eq!(suspects, [false, true, true, false]);
    let begun = world.json(&["show", "web@3"])["timestamp"].as_str().unwrap().to_owned();
    let suspect = world.json(&["show", "web@1"])["suspect"].as_str().unwrap().to_owned();
    assert!(suspect.contains(&begun[..19]) && suspect.ends_with("was wrong about segment 50"), "{suspect}");
    assert!(world.run(&["list"]).exits(0).text().contains(&format!("web@2 is suspect: {suspect}")));
    // One that was deleted is none the better for it.
    world.run(&["delete", "web@2"]).exits(0);
    world.run(&["undelete", "web@2"]).exits(0);
    assert_eq!(world.json(&["show", "web@2"])["suspect"], suspect.as_str());
    // The full read is a new beginning: what comes later does not make the old ones any worse.
    backup(&world, &disk, b"[]", &["--cbt-base", "web@3"], 0);
    disk[0] ^= 1;
    let done = backup(&world, &disk, b"[]", &["--cbt-base", "web@4", "--cbt-audit", "100"], 3);
    assert_eq!(done["cbt"]["suspects"], json!([4]));
    assert!(world.json(&["show", "web@3"]).get("suspect").is_none());
}

#[test]
fn whatever_a_list_misses_is_found_in_so_many_backups() {
    // Ten of 64 segments in each backup: the whole disk in seven.
    for (segment, fill) in [(0, 1), (23, 0), (55, 1), (63, 1)] {
        let (world, mut disk) = world();
        disk[segment * SEGMENT..(segment + 1) * SEGMENT].fill(fill);
        let found = (0..7).find(|number| {
            world.write("web", &disk);
            world.write("list", b"[]");
            let base = format!("web@{number}");
            let ran = world.run(&["backup", "web", "--cbt", "list", "--cbt-base", &base]);
            assert!([0, 3].contains(&ran.code), "{}", ran.stderr);
            ran.code == 3
        });
        assert_eq!(found, Some(segment / 10), "segment {segment}");
        assert_restores(&world, "web", &disk);
    }
}

#[test]
fn in_a_hundred_backups_at_the_default_share_every_segment_is_read_again() {
    const SEGMENTS: usize = 1200;
    let world = World::new();
    world.init_small();
    let disk: Vec<u8> =
        (0..SEGMENTS).flat_map(|at| vec![u8::try_from(at % 251).unwrap() + 1; SEGMENT]).collect();
    world.write("web", &disk);
    world.write("list", b"[]");
    world.run(&["backup", "web"]).exits(0);
    let (mut audited, mut read) = (0, 0);
    for number in 0..100 {
        let base = format!("web@{number}");
        let done = world.json(&["backup", "web", "--cbt", "list", "--cbt-base", &base])["backups"][0].clone();
        audited += done["cbt"]["audited_segments"].as_u64().unwrap();
        read += done["read_bytes"].as_u64().unwrap();
        // They are those that follow on the ones before.
        let made = world.json(&["show", "web"])["attributes"]["cbt"].as_str().unwrap().to_owned();
        let made: Value = serde_json::from_str(&made).unwrap();
        assert_eq!(made["cursor"], u64::try_from((number + 1) * SEGMENTS / 100 % SEGMENTS).unwrap());
    }
    assert_eq!((audited, read), (SEGMENTS as u64, disk.len() as u64), "each once, and nothing else");
}

#[test]
fn zeros_that_are_none_are_found_as_well() {
    let (world, mut disk) = world();
    disk[3 * SEGMENT] ^= 1;
    let wrong = list(&[(3 * SEGMENT, SEGMENT, false)]);
    let done = backup(&world, &disk, &wrong, &["--cbt-base", "web@0"], 3);
    assert_eq!(done["cbt"]["full_read"], "it is wrong about segment 3");
    assert_restores(&world, "web", &disk);
}

#[test]
fn of_two_segments_that_a_list_has_wrong_the_first_is_named() {
    let (world, mut disk) = world();
    // That the second is wrong is seen at once, the first only once it has its SHA-1.
    disk[19 * SEGMENT] ^= 1;
    disk[20 * SEGMENT] ^= 1;
    let wrong = list(&[(20 * SEGMENT, SEGMENT, false)]);
    let done = backup(&world, &disk, &wrong, &["--cbt-base", "web@0", "--cbt-audit", "100"], 3);
    assert_eq!(done["cbt"]["full_read"], "it is wrong about segment 19");
    assert_restores(&world, "web", &disk);
}

#[test]
fn what_was_claimed_beside_a_segment_that_a_list_has_wrong_is_stored_all_the_same() {
    let (world, mut disk) = world();
    // Two that are new, named at once: a claim that is given up would stop the store, and so the reading in full.
    disk[3 * SEGMENT] ^= 1;
    disk[4 * SEGMENT] ^= 1;
    let done = backup(&world, &disk, b"[]", &["--cbt-base", "web@0", "--cbt-audit", "100"], 3);
    assert_eq!(done["cbt"]["full_read"], "it is wrong about segment 3");
    assert_restores(&world, "web", &disk);
}

#[test]
fn a_list_of_other_changes_is_refused_or_the_disk_is_read_in_full() {
    let (world, mut disk) = world();
    world.write("list", b"[]");
    let refused = |arguments: &[&str], why: &str| {
        let ran = world.run(&[&["backup", "web", "--cbt", "list"], arguments].concat()).says(why);
        assert!([1, 2].contains(&ran.code));
    };
    refused(&[], "say with --cbt-base since which backup the changes are; the one before is number 0");
    refused(&["--cbt-base", "web"], "say its number");
    refused(&["--cbt-base", "web@7"], "no backup web@7");
    refused(&["new=web", "--cbt-base", "web@0"], "name one source");
    world.write("list", b"what changed");
    refused(&["--cbt-base", "web@0"], "none of the lists that are known");
    world.write("list", &list(&[(64 * SEGMENT, 1, true)]));
    refused(&["--cbt-base", "web@0"], "beyond the end of the disk");
    world.run(&["backup", "web"]).exits(0);
    world.write("list", b"[]");
    refused(&["--cbt-base", "web@0"], "another backup than the one before, which is number 1");
    assert_eq!(world.json(&["list"])["backups"].as_array().unwrap().len(), 2);
    disk[9 * SEGMENT] ^= 1;
    let done = backup(&world, &disk, b"[]", &["--cbt-base", "web@0", "--cbt-fallback"], 0);
    assert_eq!((&done["read_bytes"], &done["new_segments"]), (&(64 * SEGMENT).into(), &1.into()));
    assert!(done["cbt"]["full_read"].as_str().unwrap().contains("another backup"));
    assert_restores(&world, "web", &disk);
    // Without a backup before, nothing can have changed since.
    world
        .run(&["backup", "new=web", "--cbt", "list", "--cbt-base", "web@2"])
        .exits(1)
        .says("no backup before");
    let text = world.run(&["backup", "new=web", "--cbt", "list", "--cbt-fallback"]).exits(0).text();
    assert!(text.contains("the whole disk was read: it says what changed, and there is no backup before"));
}

#[test]
fn a_map_of_where_data_lies_is_for_a_first_backup() {
    let world = World::new();
    world.init_small();
    let mut disk = vec![0; 20 * SEGMENT + 100];
    disk[15 * SEGMENT..16 * SEGMENT].copy_from_slice(&noise(1, SEGMENT));
    let map = json!([
        {"start": 0, "length": 15 * SEGMENT, "depth": 0, "zero": true, "data": false},
        {"start": 15 * SEGMENT, "length": SEGMENT, "depth": 0, "zero": false, "data": true, "offset": 0},
        {"start": 16 * SEGMENT, "length": 4 * SEGMENT + 100, "depth": 0, "zero": true, "data": false},
    ]);
    let map = serde_json::to_vec(&map).unwrap();
    let done = backup(&world, &disk, &map, &[], 0);
    // The last segment is short: it is stored although it is zeros.
    assert_eq!(done["read_bytes"], 11 * SEGMENT + 100);
    assert_eq!((&done["new_segments"], &done["zero_segments"]), (&2.into(), &19.into()));
    assert_restores(&world, "web", &disk);
    world
        .run(&["backup", "web", "--cbt", "list", "--cbt-base", "web@0"])
        .exits(1)
        .says("of use for a first backup");
    // One that is wrong is no beginning to go on from.
    disk[0] = 1;
    world.write("other", &disk);
    let ran = world.run(&["--json", "backup", "other", "--cbt", "list"]).exits(3).json();
    assert_eq!(ran["backups"][0]["cbt"]["full_read"], "it is wrong about segment 0");
    assert_restores(&world, "other", &disk);
}

#[test]
fn what_a_disk_has_gained_is_read_and_what_it_lost_is_gone() {
    let (world, mut disk) = world();
    // Its last segment was short, and is not any longer; nothing of that is in the list.
    disk.truncate(40 * SEGMENT + 100);
    backup(&world, &disk, b"[]", &["--cbt-base", "web@0"], 3);
    assert_restores(&world, "web@1", &disk);
    disk.extend(noise(8, 3 * SEGMENT));
    let done = backup(&world, &disk, b"[]", &["--cbt-base", "web@1"], 0);
    assert_eq!(done["new_segments"], 4);
    assert_restores(&world, "web@2", &disk);
    disk.truncate(40 * SEGMENT);
    let done = backup(&world, &disk, b"[]", &["--cbt-base", "web@2"], 3);
    assert_eq!((&done["new_segments"], &done["unchanged_segments"]), (&0.into(), &40.into()));
    assert_restores(&world, "web@3", &disk);
    world.run(&["check", "--read-data"]).exits(0);
}

#[test]
fn what_was_lost_is_read_although_it_is_not_in_the_list() {
    let (world, disk) = world();
    let packs = std::fs::read_dir(world.path("R/packs")).unwrap().map(|entry| entry.unwrap().path());
    for pack in packs {
        std::fs::remove_file(pack).unwrap();
    }
    world.write("list", b"[]");
    // The index that still names them is not believed, and what they held is stored anew.
    let ran = world.run(&["--json", "backup", "web", "--cbt", "list", "--cbt-base", "web@0"]).exits(3);
    assert_eq!(ran.json()["backups"][0]["new_segments"], 56);
    assert_restores(&world, "web@1", &disk);
    assert_restores(&world, "web@0", &disk);
}

#[test]
fn a_disk_that_looks_like_another_format_than_before_is_not_read_as_that() {
    let (world, mut disk) = world();
    disk[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    disk[8..512].fill(0);
    disk[20..24].copy_from_slice(&16_u32.to_be_bytes());
    disk[100..104].copy_from_slice(&104_u32.to_be_bytes());
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(1).says("looks like qcow2, and the backup before was read as raw");
    world.run(&["backup", "web", "--format", "raw"]).exits(0);
    assert_restores(&world, "web", &disk);
    assert_eq!(world.json(&["show", "web"])["attributes"]["format"], "raw");
}

#[test]
fn a_disk_is_rolled_back_by_writing_what_differs() {
    let (world, mut disk) = world();
    let before = disk.clone();
    disk[3 * SEGMENT] ^= 1;
    disk[40 * SEGMENT..42 * SEGMENT].fill(7);
    // Where the backup has zeros.
    disk[60 * SEGMENT + 5] = 1;
    world.write("disk", &disk);
    let restore = |arguments: &[&str]| world.json(&[&["restore", "web@0", "disk"], arguments].concat());
    world.run(&["restore", "web@0", "disk", "--in-place"]).exits(2);
    let done = restore(&["--force", "--in-place"]);
    // The one that is zeros is made so without writing zeros, where the filesystem can.
    assert!(
        [3 * SEGMENT, 4 * SEGMENT]
            .contains(&usize::try_from(done["written_bytes"].as_u64().unwrap()).unwrap())
    );
    assert_eq!(done["segments"], 4);
    assert!(world.read("disk") == before);
    assert_eq!(restore(&["--force", "--in-place"])["segments"], 0);
    // By a list, which is believed: what it does not name stays.
    world.write("disk", &disk);
    world.write("list", &list(&[(3 * SEGMENT, 1, true), (41 * SEGMENT - 1, 2, true)]));
    assert_eq!(restore(&["--force", "--delta", "list"])["segments"], 3);
    disk[3 * SEGMENT..4 * SEGMENT].copy_from_slice(&before[3 * SEGMENT..4 * SEGMENT]);
    disk[40 * SEGMENT..42 * SEGMENT].copy_from_slice(&before[40 * SEGMENT..42 * SEGMENT]);
    assert!(world.read("disk") == disk);
    world.run(&["restore", "web@0", "disk", "--force", "--delta", "web"]).exits(2).says("none of the lists");
    // Smaller and larger than the disk was.
    for size in [0, 10 * SEGMENT + 7, 80 * SEGMENT] {
        disk.resize(size, 9);
        world.write("disk", &disk);
        restore(&["--force", "--in-place"]);
        assert!(world.read("disk") == before, "{size}");
        world.write("disk", &disk);
        world.write("list", &list(&[(0, size.max(1), true)]));
        if size > 0 {
            restore(&["--force", "--delta", "list"]);
            assert!(world.read("disk") == before, "{size}");
        }
    }
    world
        .run(&["restore", "web@0", "gone", "--force", "--in-place"])
        .exits(1)
        .says("there is no such file or device");
    world.run(&["restore", "web@0", "-", "--force", "--in-place"]).exits(2).says("stdout");
}

#[test]
fn a_disk_that_is_rolled_back_is_told_of_what_is_lost() {
    let (world, mut disk) = world();
    disk[3 * SEGMENT] ^= 1;
    world.write("disk", &disk);
    for pack in std::fs::read_dir(world.path("R/packs")).unwrap() {
        std::fs::remove_file(pack.unwrap().path()).unwrap();
    }
    let ran = world.run(&["--json", "restore", "web@0", "disk", "--force", "--in-place"]).exits(3).json();
    assert_eq!(ran["damaged"].as_array().unwrap().len(), 56);
    // What cannot be had is left as it is: it may be right, and the last there is of it.
    assert!(std::fs::read(world.path("disk")).unwrap() == disk);
}

#[test]
fn backups_that_were_deleted_when_a_list_was_found_wrong_are_suspect_when_they_come_back() {
    let (world, mut disk) = world();
    backup(&world, &disk, b"[]", &["--cbt-base", "web@0"], 0);
    backup(&world, &disk, b"[]", &["--cbt-base", "web@1"], 0);
    world.run(&["delete", "web@1"]).exits(0);
    disk[0] ^= 1;
    let done = backup(&world, &disk, b"[]", &["--cbt-base", "web@2", "--cbt-audit", "100"], 3);
    assert_eq!(done["cbt"]["suspects"], json!([1, 2]));
    world.run(&["undelete", "web@1"]).exits(0);
    assert!(world.json(&["show", "web@1"]).get("suspect").is_some());
}
