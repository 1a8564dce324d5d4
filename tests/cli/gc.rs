//! Garbage collection: what goes, what stays, and what is said.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use crate::harness::{World, keys, noise};

fn packs_bytes(world: &World) -> u64 {
    fs::read_dir(world.path("R/packs"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512)
        .sum()
}

/// Three days of a disk of 16 segments, of which two others and the last one change every day.
fn three_days(world: &World) -> Vec<Vec<u8>> {
    world.init_small();
    let mut disk = noise(1, 16 << 16);
    let mut days = Vec::new();
    for day in 0..3_usize {
        disk[(2 * day) << 16..(2 * day + 2) << 16]
            .copy_from_slice(&noise(10 + u8::try_from(day).unwrap(), 2 << 16));
        disk[15 << 16..].copy_from_slice(&noise(20 + u8::try_from(day).unwrap(), 1 << 16));
        world.write("web", &disk);
        world.run(&["backup", "web"]).exits(0);
        days.push(disk.clone());
    }
    days
}

#[test]
fn space_comes_back_at_once_and_exactly_as_much_as_was_said() {
    let world = World::new();
    let days = three_days(&world);
    let nothing = world.json(&["gc", "--now"]);
    assert_eq!(
        keys(&nothing),
        [
            "compared_bytes",
            "comparing_seconds",
            "dry_run",
            "freed_bytes",
            "freed_segments",
            "kept_backups",
            "kept_bytes",
            "moved_bytes",
            "problems",
            "purged_backups",
            "unfinished_bytes",
            "unfinished_segments",
            "unlinked_packs"
        ]
    );
    assert_eq!((&nothing["freed_bytes"], &nothing["compared_bytes"]), (&0.into(), &0.into()));
    let planned = world.json(&["delete", "--dry-run", "web@0", "web@1"])["freed_bytes"].as_u64().unwrap();
    // What the first two days alone had: what the second and the third day replaced, and the last one of each.
    assert_eq!(planned, 6 * ((1 << 16) + 512));
    world.run(&["delete", "web@0", "web@1"]).exits(0);
    let before = packs_bytes(&world);
    let dry = world.json(&["gc", "--now", "--dry-run"]);
    assert_eq!((&dry["freed_bytes"], &dry["purged_backups"]), (&planned.into(), &2.into()));
    assert_eq!(packs_bytes(&world), before);
    world.run(&["undelete", "web@1"]).exits(0);
    world.run(&["delete", "web@1"]).exits(0);
    let done = world.json(&["gc", "--now"]);
    assert_eq!((&done["freed_bytes"], &done["freed_segments"]), (&planned.into(), &6.into()));
    assert!(before - packs_bytes(&world) + 100_000 > planned, "but for a pack of dead records");
    world.run(&["undelete", "web@1"]).exits(1).says("there is no deleted backup");
    let again = world.json(&["gc", "--now"]);
    assert_eq!((&again["freed_bytes"], &again["purged_backups"]), (&0.into(), &0.into()));
    world.run(&["restore", "web", "out"]).exits(0);
    assert!(world.read("out") == days[2]);
    world.run(&["check", "--read-data"]).exits(0);
    assert_eq!(world.json(&["stats"])["garbage_bytes"], 0);
    // What went does not come back with a new index, and is stored anew when a disk brings it.
    world.run(&["rebuild"]).exits(0);
    assert_eq!(world.json(&["gc", "--now"])["freed_bytes"], 0);
    world.write("web", &days[0]);
    let backup = world.json(&["backup", "web"]);
    assert_eq!(backup["backups"][0]["new_segments"], 5);
    world.run(&["restore", "web", "out", "--force"]).exits(0);
    assert!(world.read("out") == days[0]);
}

/// What a segment takes of which 1,000 bytes are noise: a header, the bytes, and whole sectors.
const SMALL: u64 = 1536;

/// Three backups of a disk of 64 such segments. Of what the second stored, 31 are freed, each other one, so that
/// none has a block for itself.
fn small_records(world: &World) -> (Vec<u8>, Vec<u8>) {
    world.init_small();
    let mut disk: Vec<u8> =
        (0..64).flat_map(|segment| [noise(segment, 1000), vec![0; 64_536]].concat()).collect();
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    let before = packs_bytes(world);
    for segment in 0..64 {
        disk[segment << 16] ^= 1;
    }
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    assert!((64 * SMALL..80 * SMALL).contains(&(packs_bytes(world) - before)));
    let second = disk.clone();
    free_each_other(world, &mut disk, 0);
    (second, disk)
}

/// Changes each other one of the first 62 segments, backs up, and frees what the backup before had there.
fn free_each_other(world: &World, disk: &mut [u8], first: usize) {
    for segment in (first..62).step_by(2) {
        disk[segment << 16] ^= 2;
    }
    world.write("web", disk);
    let backup = world.json(&["backup", "web"]);
    let before = backup["backups"][0]["incremental"].as_u64().unwrap() - 1;
    world.run(&["delete", &format!("web@{before}")]).exits(0);
    assert_eq!(world.json(&["gc", "--now"])["freed_segments"], 31);
}

#[test]
fn records_that_share_a_block_give_it_back_when_the_last_of_them_goes() {
    let world = World::new();
    let (_, mut disk) = small_records(&world);
    let before = packs_bytes(&world);
    free_each_other(&world, &mut disk, 1);
    // All but the first and the last block of what was freed, and that without what the third backup stored: 31 records,
    // and two packs with their headers, tables and marks.
    let (after, new) = (packs_bytes(&world), 31 * SMALL + 2 * (24 << 10));
    assert!(before + new - after > 62 * SMALL - 8192, "{before} {after}");
    world.run(&["restore", "web", "out"]).exits(0);
    assert!(world.read("out") == disk);
    world.run(&["check", "--read-data"]).exits(0);
}

#[test]
fn small_records_that_were_freed_stay_freed_though_the_record_of_it_is_lost() {
    let world = World::new();
    let (second, _) = small_records(&world);
    // Nothing but the records themselves says that they are gone: none left a hole.
    let packs = fs::read_dir(world.path("R/packs")).unwrap().map(|entry| entry.unwrap().path());
    fs::remove_file(packs.max().unwrap()).unwrap();
    fs::remove_dir_all(world.path("R/index")).unwrap();
    world.write("web", &second);
    assert_eq!(world.json(&["backup", "web"])["backups"][0]["new_segments"], 31);
    world.run(&["restore", "web", "out"]).exits(0);
    assert!(world.read("out") == second);
}

#[test]
fn delete_and_forget_collect_when_they_are_told_to() {
    let world = World::new();
    three_days(&world);
    let document = world.json(&["delete", "--gc", "web@0"]);
    assert_eq!(document["gc"]["freed_bytes"], document["freed_bytes"]);
    assert_eq!(document["gc"]["purged_backups"], 1);
    let text = world.run(&["forget", "--keep-last", "1", "--gc"]).exits(0).text();
    assert!(text.contains("deleted 1 backup, 1 kept\n") && text.contains("freed"), "{text}");
    let document = world.json(&["delete", "--gc", "--dry-run", "web@all"]);
    assert_eq!(keys(&document), ["deleted", "dry_run", "freed_bytes", "keep_deleted_seconds"]);
    let document = world.json(&["delete", "--gc", "web@all"]);
    assert!(document["gc"]["unlinked_packs"].as_u64().unwrap() >= 1, "empty packs go as a whole");
    let bytes = packs_bytes(&world);
    assert!(bytes < 200_000, "nothing is stored any longer: {bytes}");
}

#[test]
fn nothing_is_freed_while_a_manifest_is_missing_or_damaged() {
    let world = World::new();
    let days = three_days(&world);
    world.run(&["delete", "web@1"]).exits(0);
    let manifest = world.json(&["show", "web@0"])["manifest"].as_str().unwrap().to_owned();
    let bytes = world.read(&manifest);
    let mut flipped = bytes.clone();
    flipped[180] ^= 4;
    let refused = |what: &str| {
        let before = packs_bytes(&world);
        let found = world.run(&["--json", "gc", "--now"]).exits(3).json();
        assert_eq!((&found["freed_segments"], &found["purged_backups"]), (&0.into(), &0.into()), "{what}");
        let why = found["problems"][0].as_str().unwrap();
        assert!(why.contains("nothing is freed") && why.contains("web@0"), "{what}: {why}");
        assert_eq!(packs_bytes(&world), before, "{what}");
        assert!(world.run(&["check"]).exits(3).text().contains("web@0"), "{what}: check names it");
        world.write(&manifest, &bytes);
        world.run(&["check", "--read-data"]).exits(0);
    };
    world.write(&manifest, &flipped);
    refused("one bit");
    fs::remove_file(world.path(&manifest)).unwrap();
    refused("gone");
    // A list of backups that cannot be read is as bad.
    let settings = world.path(&manifest).parent().unwrap().join("set.toml");
    let text = fs::read(&settings).unwrap();
    fs::write(&settings, &text[1..]).unwrap();
    let found = world.run(&["--json", "gc", "--now"]).exits(3).json();
    assert_eq!(found["freed_segments"], 0);
    assert!(found["problems"][0].as_str().unwrap().contains("set.toml"), "{found}");
    fs::write(&settings, &text).unwrap();
    // Put back, all is well.
    let done = world.json(&["gc", "--now"]);
    assert_eq!((&done["purged_backups"], &done["problems"]), (&1.into(), &serde_json::json!([])));
    for (number, day) in [(0, &days[0]), (2, &days[2])] {
        world.run(&["restore", &format!("web@{number}"), "out", "--force"]).exits(0);
        assert!(world.read("out") == *day);
    }
}

#[test]
fn what_an_unfinished_backup_stored_is_kept_for_its_next_run_and_it_says_so() {
    let world = World::new();
    world.init_small();
    let disk = noise(1, 200 << 16);
    world.write("web", &disk);
    // A source that fails in its midst: a FIFO cannot be backed up, so the process is killed while it stores.
    let mut child = world.command(&["backup", "web", "--jobs", "1", "--compression", "lzma:9"]);
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pack = world.path("R/packs/0000000000000001.pack");
    while fs::metadata(&pack).map_or(0, |found| found.len()) < 20 << 16 {
        assert!(child.try_wait().unwrap().is_none(), "it was done before it could be killed");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = world.json(&["gc", "--now"]);
    let unfinished = kept["unfinished_segments"].as_u64().unwrap();
    assert!(unfinished >= 15, "{unfinished} segments are kept");
    assert_eq!(kept["freed_segments"], 0);
    let resumed = world.run(&["backup", "web"]).exits(0).text();
    let says = format!("web@0: {unfinished} segments were stored already by a backup that was interrupted");
    assert!(resumed.contains(&says), "{resumed}");
    assert_eq!(world.json(&["gc", "--now", "--keep-unfinished", "0s"])["freed_segments"], 0);
    world.run(&["restore", "web", "out"]).exits(0);
    assert!(world.read("out") == disk);
    // One that is not run again goes when its time is over.
    world.write("other", &noise(2, 200 << 16));
    let mut child = world.command(&["backup", "other", "--jobs", "1", "--compression", "lzma:9"]);
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pack = world.path("R/packs/0000000000000003.pack");
    while fs::metadata(&pack).map_or(0, |found| found.len()) < 20 << 16 {
        assert!(child.try_wait().unwrap().is_none(), "it was done before it could be killed");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(world.json(&["gc", "--now"])["freed_segments"], 0);
    assert!(
        world.json(&["gc", "--now", "--keep-unfinished", "0s"])["freed_segments"].as_u64().unwrap() >= 15
    );
    world.run(&["check", "--read-data"]).exits(0);
    // The repository's own time for it.
    let settings = fs::read_to_string(world.path("R/ekko.toml")).unwrap();
    fs::write(world.path("R/ekko.toml"), settings + "keep_unfinished = \"2 fortnights\"\n").unwrap();
    world.run(&["gc", "--now"]).exits(2).says("keep_unfinished is no span of time");
}

#[test]
fn a_backup_that_is_being_restored_by_another_process_is_not_collected() {
    let world = World::new();
    world.init_small();
    let disk = noise(1, 64 << 16);
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    // A restore to a pipe that nobody reads yet waits in its midst.
    let mut restore = world.command(&["restore", "web", "-", "--jobs", "1"]);
    let mut restore = restore.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stream = restore.stdout.take().unwrap();
    let mut bytes = vec![0; 1 << 16];
    stream.read_exact(&mut bytes).unwrap();
    world.run(&["delete", "web@all"]).exits(0);
    let kept = world.json(&["gc", "--now"]);
    assert_eq!((&kept["freed_segments"], &kept["purged_backups"]), (&0.into(), &0.into()));
    stream.read_to_end(&mut bytes).unwrap();
    assert!(bytes == disk);
    assert!(restore.wait().unwrap().success());
    let done = world.json(&["gc", "--now"]);
    assert_eq!((&done["freed_segments"], &done["purged_backups"]), (&64.into(), &1.into()));
    // The leases of a process that was killed keep nothing.
    world.run(&["backup", "web"]).exits(0);
    let mut restore = world.command(&["restore", "web", "-"]);
    let mut restore = restore.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    restore.stdout.as_mut().unwrap().read_exact(&mut bytes[..1 << 16]).unwrap();
    restore.kill().unwrap();
    restore.wait().unwrap();
    world.run(&["delete", "web@all"]).exits(0);
    assert_eq!(world.json(&["gc", "--now"])["freed_segments"], 64);
    assert_eq!(fs::read_dir(world.path("R/leases")).unwrap().count(), 0);
    std::io::sink().write_all(&bytes).unwrap();
}

#[test]
fn what_was_freed_stays_freed_though_the_record_of_it_is_lost() {
    // Where it is a hole, and in a copy that has zeros instead.
    for sparse in ["always", "never"] {
        freed_stays_freed(sparse);
    }
}

fn freed_stays_freed(sparse: &str) {
    let world = World::new();
    let days = three_days(&world);
    world.run(&["delete", "--gc", "web@0", "web@1"]).exits(0);
    // The newest pack holds the dead records, and nothing else.
    let packs = fs::read_dir(world.path("R/packs")).unwrap().map(|entry| entry.unwrap().path());
    fs::remove_file(packs.max().unwrap()).unwrap();
    let mut copy = std::process::Command::new("cp");
    copy.args(["-a", &format!("--sparse={sparse}"), "R/packs", "copy"]).current_dir(world.path("."));
    assert!(copy.status().unwrap().success());
    fs::remove_dir_all(world.path("R/packs")).unwrap();
    fs::rename(world.path("copy"), world.path("R/packs")).unwrap();
    fs::remove_dir_all(world.path("R/index")).unwrap();
    world.write("web", &days[0]);
    let backup = world.json(&["backup", "web"]);
    assert_eq!(backup["backups"][0]["new_segments"], 5, "{sparse}: nothing is taken for stored that is gone");
    for (name, day) in [("web@2", &days[2]), ("web@3", &days[0])] {
        world.run(&["restore", name, "out", "--force"]).exits(0);
        assert!(world.read("out") == *day, "{name}");
    }
}

#[test]
fn an_index_that_is_wrong_about_a_place_frees_nothing_that_lives() {
    let world = World::new();
    let days = three_days(&world);
    let root = world.path("R");
    let options = ekko::repository::OpenOptions::default();
    let told = ekko::progress::Silent;
    let writer = ekko::repository::RepositoryWriter::open(&root, &options, &told).unwrap();
    let (sets, _) = writer.repository().backupsets().unwrap();
    let manifest = |day: usize| writer.repository().manifest(&sets[0], &sets[0].backups[day]).unwrap();
    let at = |day: usize, place: u32| manifest(day).lookup(ekko::segment::SegmentIndex(place)).unwrap().key;
    // The first day's last segment, which nobody else has, is said to lie where a living one does.
    let (dying, living) = (at(0, 15), at(2, 0));
    let mut place = None;
    writer
        .repository()
        .catalog()
        .unwrap()
        .for_each_segment(|pack, entry| {
            if entry.key == living {
                place = Some(ekko::store::SegmentEntry::new(pack, entry));
            }
        })
        .unwrap();
    let from = writer.store().require(dying).unwrap().place();
    writer.store().apply(vec![ekko::store::Change::Move(dying, place.unwrap(), from)]).unwrap();
    writer.close().unwrap();
    world.run(&["delete", "--gc", "web@0"]).exits(0).says("where another segment lies");
    for (name, day) in [("web@1", &days[1]), ("web@2", &days[2])] {
        world.run(&["restore", name, "out", "--force"]).exits(0);
        assert!(world.read("out") == *day, "{name}");
    }
    assert_eq!(world.json(&["check", "--read-data"])["index"], "agrees");
}

#[test]
fn zeros_that_a_copy_of_the_repository_has_as_holes_are_not_taken_for_what_was_freed() {
    let world = World::new();
    world.init_small();
    // Stored as it is, so that the zeros in it are zeros in the pack; the second record begins inside a block.
    let mut disk = noise(1, 4 << 16);
    for segment in 0..4 {
        disk[(segment << 16) + 100..(segment << 16) + 40_000].fill(0);
    }
    world.write("web", &disk);
    world.run(&["backup", "web", "--compression", "none"]).exits(0);
    let packs = world.path("R/packs");
    let mut copy = std::process::Command::new("cp");
    copy.args(["-a", "--sparse=always", "R/packs", "sparse"]).current_dir(world.path("."));
    assert!(copy.status().unwrap().success());
    let before = packs_bytes(&world);
    fs::remove_dir_all(&packs).unwrap();
    fs::rename(world.path("sparse"), &packs).unwrap();
    assert!(packs_bytes(&world) + 100_000 < before);
    fs::remove_dir_all(world.path("R/index")).unwrap();
    let backup = world.json(&["backup", "web"]);
    assert_eq!(backup["backups"][0]["unchanged_segments"], 4);
    world.run(&["gc", "--now"]).exits(0);
    world.run(&["check", "--read-data"]).exits(0);
    world.run(&["restore", "web@0", "out"]).exits(0);
    assert!(world.read("out") == disk);
}

/// `cp -al` makes a copy of hard links: one pack of two has another name.
#[test]
fn a_pack_with_several_names_is_left_alone_and_named_and_the_rest_is_collected() {
    let world = World::new();
    world.init_small();
    let disks = [noise(1, 8 << 16), noise(2, 8 << 16)];
    for (name, disk) in ["a", "b"].into_iter().zip(&disks) {
        // Half of each stays.
        world.write("disk", disk);
        world.run(&["backup", &format!("{name}=disk")]).exits(0);
        world.write("disk", &disk[..4 << 16]);
        world.run(&["backup", &format!("{name}=disk")]).exits(3).says("shrank");
    }
    let pack = |number: u32| world.path(&format!("R/packs/{number:016}.pack"));
    let held: Vec<_> = (1..=2).map(pack).collect();
    fs::hard_link(&held[0], world.path("copy")).unwrap();
    let copied = world.read("copy");
    let room = |path: &std::path::Path| fs::metadata(path).unwrap().blocks();
    let before = [room(&held[0]), room(&held[1])];
    world.run(&["delete", "a@0", "b@0"]).exits(0);
    for round in 0..2 {
        world.run(&["gc", "--now"]).exits(3).says("0000000000000001.pack").says("hard links");
        assert!(world.read("copy") == copied, "round {round}");
        assert_eq!(room(&held[0]), before[0], "round {round}");
        assert!(room(&held[1]) + 400 < before[1], "round {round}: the rest of the collection goes on");
        world.run(&["check", "--read-data"]).exits(0);
    }
    // A backup that follows, and a new index, take nothing of it for living.
    world.write("disk", &disks[1]);
    world.run(&["backup", "c=disk"]).exits(0);
    world.run(&["rebuild"]).exits(0);
    world.run(&["gc", "--now"]).exits(3).says("hard links");
    fs::remove_file(world.path("copy")).unwrap();
    world.run(&["gc", "--now"]).exits(0);
    assert!(room(&held[0]) + 400 < before[0], "it is given back once the other name is gone");
    world.run(&["check", "--read-data"]).exits(0);
    for (backup, disk) in [("a", &disks[0][..4 << 16]), ("c", &disks[1][..])] {
        world.run(&["restore", "--force", backup, "out"]).exits(0);
        assert!(world.read("out") == disk, "{backup}");
    }
}
