//! A machine's moment and the backups of its disks stay together, whatever is deleted, undeleted or forgotten.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{World, noise};
use crate::machine::{BACKUP, backups, lose, machine};

/// Backs up one disk of the machine alone.
fn back_up_vda(world: &World) {
    world.run(&["backup", "web/vda=a"]).exits(0);
}

/// Returns why each backup is kept.
fn reasons(plan: &Value) -> Vec<String> {
    let kept = plan["kept"].as_array().unwrap().iter();
    let text = |row: &Value| {
        let reasons: Vec<_> =
            row["reasons"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        format!("{}: {}", row["backup"].as_str().unwrap(), reasons.join(", "))
    };
    kept.map(text).collect()
}

fn deleted(plan: &Value) -> Vec<&str> {
    plan["deleted"].as_array().unwrap().iter().map(|row| row["backup"].as_str().unwrap()).collect()
}

/// Expects a moment to come back as the disks are now.
fn comes_back(world: &World, moment: &str) {
    let folder = moment.replace('@', "-");
    world.run(&["restore", "--machine", moment, &folder]).exits(0);
    for (disk, file) in [("a", "vda.raw"), ("b", "vdb.raw")] {
        assert_eq!(world.read(&format!("{folder}/{file}")), world.read(disk), "{moment} {file}");
    }
    fs::remove_dir_all(world.path(&folder)).unwrap();
}

#[test]
fn a_policy_keeps_the_disks_of_a_protected_moment() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    world.run(&["protect", "web@0"]).exits(0);
    let first = world.read("a");
    world.write("a", &noise(7, first.len()));
    world.run(&BACKUP).exits(0);
    let plan = world.json(&["forget", "--keep-last", "1", "--gc"]);
    assert_eq!(deleted(&plan), [""; 0]);
    let why = reasons(&plan);
    for kept in [
        "web@0: protected",
        "web/vda@0: part of web@0",
        "web/vdb@0: part of web@0",
        "web/vda@1: last, part of web@1",
    ] {
        assert!(why.iter().any(|it| it == kept), "{kept}: {why:?}");
    }
    comes_back(&world, "web@1");
    world.write("a", &first);
    comes_back(&world, "web@0");
    world.run(&["status"]).exits(0);
    // Without its protection the moment goes, and its disks with it.
    world.run(&["unprotect", "web@0"]).exits(0);
    let plan = world.json(&["forget", "--keep-last", "1"]);
    assert_eq!(deleted(&plan), ["web@0", "web/vda@0", "web/vdb@0"]);
}

#[test]
fn a_policy_keeps_the_disks_of_the_moment_that_it_keeps() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    back_up_vda(&world);
    for rule in ["--keep-daily", "--keep-last"] {
        let plan = world.json(&["forget", rule, "1", "--gc"]);
        assert_eq!(deleted(&plan), [""; 0], "{rule}");
    }
    // A policy for the disk alone leaves the moment alone.
    let plan = world.json(&["forget", "web/vda", "--keep-last", "1"]);
    assert_eq!(reasons(&plan), ["web/vda@0: part of web@0", "web/vda@1: last"]);
    comes_back(&world, "web@0");
    world.run(&["check", "--read-data"]).exits(0);
}

#[test]
fn a_policy_for_a_machine_takes_the_disks_of_the_moments_that_go() {
    let world = machine();
    for _ in 0..3 {
        world.run(&BACKUP).exits(0);
    }
    back_up_vda(&world);
    world.run(&["protect", "web/vdb@0"]).exits(0);
    let plan = world.json(&["forget", "web", "--keep-last", "1"]);
    assert_eq!(deleted(&plan), ["web@0", "web@1", "web/vda@0", "web/vda@1", "web/vdb@1"]);
    assert_eq!(reasons(&plan), ["web@2: last", "web/vdb@0: protected"]);
    comes_back(&world, "web@2");
    world.run(&["undelete", "web@0"]).exits(0);
    comes_back(&world, "web@0");
}

#[test]
fn a_disk_of_a_moment_is_deleted_with_the_moment_or_not_at_all() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    world.run(&BACKUP).exits(0);
    for arguments in
        [&["web/vda@0"][..], &["web/vda@all"], &["web/vda@0", "web/vdb@0"], &["--gc", "web/vdb@1"]]
    {
        world
            .run(&[&["delete", "--yes"], arguments].concat())
            .exits(2)
            .says("is a moment of a machine and consists of it; \"ekko delete --machine web@");
    }
    assert_eq!(backups(&world).len(), 6);
    // All of them are named.
    world.run(&["delete", "web/vda@0", "web@0", "web/vdb@0"]).exits(0);
    assert_eq!(backups(&world), ["web@1", "web/vda@1", "web/vdb@1"]);
    world.run(&["delete", "--machine", "web/vda@1"]).exits(2).says("leave --machine out");
    world.run(&["delete", "--machine", "web@1"]).exits(0);
    assert_eq!(backups(&world), [""; 0]);
    // The moment brings its disks with it, and goes without them if that is asked for.
    let undeleted = world.json(&["undelete", "web@0"]);
    assert_eq!(undeleted["undeleted"].as_array().unwrap().len(), 3);
    comes_back(&world, "web@0");
    world.run(&["delete", "web@0"]).exits(0);
    assert_eq!(backups(&world), ["web/vda@0", "web/vdb@0"]);
    world.run(&["delete", "web/vda@0"]).exits(0);
    world.run(&["undelete", "web@0"]).exits(0);
    comes_back(&world, "web@0");
    world.run(&["check", "--read-data"]).exits(0);
}

#[test]
fn a_moment_without_a_disk_is_told_of_by_every_command() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    let [place, lost] = lose(&world, "web/vdb");
    let row = world.run(&["--json", "list", "web"]).exits(3).json()["backups"][0].clone();
    assert_eq!(row["incomplete"], json!(true));
    assert!(world.run(&["list", "web"]).exits(3).text().contains("incomplete"));
    let status = world.run(&["status"]).exits(3).text();
    assert!(status.contains("web: its newest backup lacks the backup of a disk: "), "{status}");
    let checked = world.run(&["check"]).exits(3).text();
    assert!(checked.contains("web@0 lacks the backup of a disk: "), "{checked}");
    fs::rename(lost, place).unwrap();
    world.run(&["status"]).exits(0);
    assert!(!world.run(&["list", "web"]).exits(0).text().contains("incomplete"));
    // Once the disk is given up, the moment still says what it lacks.
    lose(&world, "web/vdb");
    world.run(&["gc", "--accept-lost"]).exits(0);
    assert_eq!(world.json(&["list", "web"])["backups"][0]["incomplete"], json!(true));
    world.run(&["status"]).exits(3);
}
