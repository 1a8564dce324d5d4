//! What a check or a restore found damaged: no new backup rests on it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::harness::{World, noise};

const SEGMENT: usize = 1 << 16;

/// A repository with a backup `s@0` of four segments. The stored bytes of the third are damaged.
fn damaged() -> (World, Vec<u8>) {
    let world = World::new();
    world.init_small();
    let disk = noise(1, 4 * SEGMENT);
    world.write("disk", &disk);
    world.run(&["backup", "s=disk"]).exits(0);
    let path = world.path("R/packs/0000000000000001.pack");
    let pack = std::fs::read(&path).unwrap();
    let wanted = &disk[2 * SEGMENT..][..64];
    let at = pack.windows(64).position(|window| window == wanted).unwrap();
    let byte = [pack[at + 1000] ^ 1];
    File::options().write(true).open(&path).unwrap().write_all_at(&byte, at as u64 + 1000).unwrap();
    (world, disk)
}

/// Expects that no command takes any backup for damaged, and that every byte of them comes back.
fn is_healed(world: &World, backups: &[&str], disk: &[u8]) {
    for backup in backups {
        assert_eq!(world.run(&["restore", backup, "-"]).exits(0).stdout, disk, "{backup}");
    }
    assert!(!world.run(&["list"]).exits(0).text().contains("damaged"));
    world.run(&["status"]).exits(0);
    // The copy that is damaged is garbage now.
    world.run(&["gc"]).exits(0);
    world.run(&["check", "--read-data"]).exits(0);
    for backup in backups {
        assert_eq!(world.run(&["restore", backup, "-"]).exits(0).stdout, disk, "{backup}");
    }
}

#[test]
fn a_backup_stores_again_what_a_check_found_damaged_and_heals_all_backups() {
    let (world, disk) = damaged();
    world.run(&["check", "--read-data"]).exits(3);
    world.run(&["status"]).exits(3);
    // It is the same disk: nothing has changed since the backup before.
    let backup = world.json(&["backup", "s=disk"]);
    assert_eq!(backup["backups"][0]["new_segments"], 1);
    assert_eq!(backup["backups"][0]["healed_segments"], 1);
    let backup = world.json(&["backup", "s=disk"]);
    assert_eq!(backup["backups"][0]["new_segments"], 0);
    is_healed(&world, &["s@0", "s@1", "s@2"], &disk);
}

#[test]
fn a_backup_of_another_disk_stores_again_what_was_found_damaged() {
    let (world, disk) = damaged();
    world.run(&["check", "--read-data"]).exits(3);
    let backup = world.json(&["backup", "other=disk"]);
    assert_eq!(backup["backups"][0]["healed_segments"], 1);
    is_healed(&world, &["s@0", "other@0"], &disk);
}

#[test]
fn what_a_restore_found_damaged_is_known_to_all_commands_and_healed_by_the_next_backup() {
    for to_stream in [false, true] {
        let (world, disk) = damaged();
        world.run(&["status"]).exits(0);
        let target = if to_stream { "-" } else { "restored" };
        world.run(&["restore", "s@0", target]).exits(3);
        assert!(world.run(&["list", "s"]).text().contains("damaged"));
        world.run(&["status"]).exits(3);
        world.run(&["check"]).exits(3);
        let backup = world.json(&["backup", "s=disk"]);
        assert_eq!(backup["backups"][0]["healed_segments"], 1);
        is_healed(&world, &["s@0", "s@1"], &disk);
    }
}

#[test]
fn a_new_index_and_a_repair_heal_as_well_what_was_found_damaged() {
    let (world, disk) = damaged();
    world.run(&["check", "--read-data"]).exits(3);
    world.run(&["rebuild"]);
    let backup = world.json(&["backup", "s=disk"]);
    assert_eq!(backup["backups"][0]["healed_segments"], 1);
    // The damaged copy goes into quarantine, and the new one stays.
    world.run(&["check", "--read-data", "--repair"]).exits(3);
    is_healed(&world, &["s@0", "s@1"], &disk);
}
