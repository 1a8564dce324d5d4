//! Folders of `manifests` that are gone: every command says so, nothing is freed, and the folder can be put back.

use std::fs;
use std::path::PathBuf;

use crate::harness::{MIB, World, noise};

/// Backs up `w` and `x`. Returns the folder of the backups of `x`.
fn two_disks(world: &World) -> PathBuf {
    world.init_small();
    world.write("w.raw", &noise(1, MIB));
    world.write("x.raw", &noise(2, MIB));
    world.run(&["backup", "w=w.raw"]).exits(0);
    let document = world.json(&["backup", "x=x.raw"]);
    world.path("R/manifests").join(document["backups"][0]["backupset"].as_str().unwrap())
}

/// Expects that `status` names a problem.
fn status_says(world: &World, text: &str) {
    let status = world.run(&["status"]).exits(3).text();
    assert!(status.contains(text), "\"{text}\" is not in: {status}");
}

#[test]
fn a_lost_folder_of_manifests_is_named_and_costs_nothing_until_it_is_back() {
    let world = World::new();
    let folder = two_disks(&world);
    fs::rename(&folder, world.path("elsewhere")).unwrap();
    let lost = format!("cannot find the backups of x: R/manifests/{}", folder.file_name().unwrap().display());
    // Also before any command has opened the repository for changes.
    status_says(&world, &lost);
    let check = world.run(&["check"]).exits(3);
    assert!(check.text().contains(&lost), "{}", check.text());
    world.run(&["check", "--repair"]).exits(3);
    for _ in 0..2 {
        let gc = world.run(&["gc", "--now", "--keep-unfinished", "0s"]).exits(3);
        assert!(gc.text().contains("nothing is freed") && gc.text().contains(&lost), "{}", gc.text());
    }
    world.run(&["list"]).says(&lost);
    world.run(&["rebuild"]).says(&lost);
    world.run(&["gc", "--now", "--keep-unfinished", "0s"]).exits(3);
    // The other disk is backed up. This one is not: its numbers are not known.
    world.run(&["backup", "w=w.raw"]).says(&lost);
    assert_eq!(world.run(&["--json", "list", "w"]).json()["backups"].as_array().unwrap().len(), 2);
    world.run(&["backup", "x=x.raw"]).exits(1).says(&lost);
    status_says(&world, &lost);
    fs::rename(world.path("elsewhere"), &folder).unwrap();
    world.run(&["check", "--read-data"]).exits(0);
    assert_eq!(world.run(&["restore", "x", "-"]).exits(0).stdout, noise(2, MIB));
    assert_eq!(world.json(&["backup", "x=x.raw"])["backups"][0]["backup"], "x@1");
    world.run(&["status"]).exits(0);
    world.run(&["gc", "--now", "--keep-unfinished", "0s"]).exits(0);
    world.run(&["check", "--read-data"]).exits(0);
}

#[test]
fn a_folder_that_was_emptied_is_lost_and_is_given_up_by_one_command() {
    let world = World::new();
    let folder = two_disks(&world);
    for name in fs::read_dir(&folder).unwrap() {
        fs::remove_file(name.unwrap().path()).unwrap();
    }
    status_says(&world, "cannot find the backups of x");
    status_says(&world, "ekko gc --accept-lost");
    world.run(&["gc", "--accept-lost", "--dry-run"]).exits(2);
    let accept = ["gc", "--accept-lost", "--keep-unfinished", "0s"];
    world.run(&accept).exits(0).says("the backups of x").says("are given up");
    world.run(&["status"]).exits(0);
    let before = world.json(&["stats"])["stored_bytes"].as_u64().unwrap();
    // The index counts nothing of it any longer, so its data goes.
    world.run(&["gc", "--keep-unfinished", "0s"]).exits(0);
    let after = world.json(&["stats"])["stored_bytes"].as_u64().unwrap();
    assert!(before > after && after < 3 * MIB as u64 / 2, "{before}, {after}");
    world.run(&["check", "--read-data"]).exits(0);
    assert_eq!(world.run(&["restore", "w", "-"]).exits(0).stdout, noise(1, MIB));
    world.run(&["backup", "x=x.raw"]).exits(0);
}

#[test]
fn a_roster_that_is_gone_or_damaged_is_made_again_and_hides_nothing() {
    let world = World::new();
    let folder = two_disks(&world);
    fs::write(world.path("R/backupsets"), b"damaged").unwrap();
    world.run(&["status"]).exits(0);
    world.run(&["gc"]).exits(0);
    fs::rename(&folder, world.path("elsewhere")).unwrap();
    status_says(&world, "cannot find the backups of x");
    fs::rename(world.path("elsewhere"), &folder).unwrap();
    fs::remove_file(world.path("R/backupsets")).unwrap();
    world.run(&["gc"]).exits(0);
    fs::rename(&folder, world.path("elsewhere")).unwrap();
    status_says(&world, "cannot find the backups of x");
}
