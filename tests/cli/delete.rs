//! Backups go, come back, and are kept by policies.

use std::fs;

use serde_json::Value;

use crate::harness::{World, keys, noise};

/// What a stored segment of 64 KiB of noise takes of a pack: a header, and whole sectors.
const RECORD: u64 = (64 << 10) + 512;

/// Four days of a disk of four segments: one of them changes each day, and goes back on the last.
fn days(world: &World) -> Vec<Vec<u8>> {
    let first = noise(1, 4 << 16);
    let mut disks = vec![first.clone()];
    for day in 1..4 {
        let mut disk = first.clone();
        if day < 3 {
            disk[..1 << 16].copy_from_slice(&noise(10 + day, 1 << 16));
        }
        disks.push(disk);
    }
    for disk in &disks {
        world.write("web", disk);
        world.run(&["backup", "web"]).exits(0);
    }
    disks
}

fn names(world: &World) -> Vec<String> {
    let list = world.json(&["list"]);
    list["backups"].as_array().unwrap().iter().map(|row| row["backup"].as_str().unwrap().to_owned()).collect()
}

fn backups(rows: &Value) -> Vec<&str> {
    rows.as_array().unwrap().iter().map(|row| row["backup"].as_str().unwrap()).collect()
}

#[test]
fn a_backup_goes_from_the_middle_of_a_chain_and_comes_back() {
    let world = World::new();
    world.init_small();
    let disks = days(&world);
    // Each of the days between brought one segment; the first segment of the first day is the last day's too.
    let plan = world.json(&["delete", "web@1", "--dry-run"]);
    assert_eq!(keys(&plan), ["deleted", "dry_run", "freed_bytes", "keep_deleted_seconds"]);
    assert_eq!(keys(&plan["deleted"][0]), ["backup", "backupset", "incremental", "number", "timestamp"]);
    assert_eq!((&plan["freed_bytes"], &plan["dry_run"]), (&RECORD.into(), &true.into()));
    assert_eq!(world.json(&["delete", "-n", "web@0"])["freed_bytes"], 0);
    assert_eq!(world.json(&["delete", "-n", "web@1", "web@2", "web@1"])["freed_bytes"], 2 * RECORD);
    assert_eq!(world.json(&["delete", "-n", "web@0", "web@1", "web@2", "web@3"])["freed_bytes"], 6 * RECORD);
    assert_eq!(names(&world).len(), 4, "a dry run changes nothing");
    let ran = world.run(&["delete", "web@1"]).exits(0).says("only they need 64.5 KiB");
    assert!(ran.text().contains("\"ekko undelete web@1\" restores it for 24 h"), "{}", ran.text());
    assert_eq!(names(&world), ["web@0", "web@2", "web@3"]);
    assert_eq!(world.json(&["stats"])["garbage_bytes"], 1 << 16);
    world
        .run(&["restore", "web@1", "x"])
        .exits(1)
        .says("web@1 was deleted; \"ekko undelete web@1\" restores it");
    world.run(&["delete", "web@1"]).exits(1).says("web@1 was deleted");
    world.run(&["rebuild"]).exits(0);
    world.run(&["undelete", "web"]).exits(0);
    for (day, disk) in disks.iter().enumerate() {
        assert_eq!(world.run(&["restore", &format!("web@{day}"), "-"]).exits(0).stdout, *disk);
    }
    world.run(&["undelete", "web@1"]).exits(0);
    // The last ones: the next backup is compared with what is left, and numbers are never given twice.
    world.run(&["delete", "web@2", "web@3"]).exits(0);
    world.run(&["undelete", "web"]).exits(2).says("web is not an exact address");
    let next = &world.json(&["backup", "web"])["backups"][0];
    assert_eq!((&next["backup"], &next["unchanged_segments"]), (&"web@4".into(), &3.into()));
    world.run(&["delete", "web@0", "web@1", "web@4"]).exits(0);
    assert_eq!(names(&world), Vec::<String>::new());
    let next = &world.json(&["backup", "web"])["backups"][0];
    assert_eq!((&next["backup"], &next["deduplicated_segments"]), (&"web@5".into(), &4.into()));
}

#[test]
fn a_protected_backup_is_not_deleted_by_anything() {
    let world = World::new();
    world.init_small();
    days(&world);
    world.run(&["protect", "web@1"]).exits(0);
    world.run(&["protect", "web@2", "--until", "2999-01-01"]).exits(0);
    world.run(&["protect", "web@0", "--until", "1999-01-01T12:00:00Z"]).exits(2).says("in the past");
    for (backup, until) in [("web@1", "2999-01-01"), ("web@2", "2998-12-31")] {
        let sooner = ["protect", backup, "--until", until];
        world.run(&sooner).exits(2).says("add --shorten");
        assert_eq!(world.json(&["show", backup])["protected"], true);
    }
    world.run(&["protect", "web@2", "--until", "2998-12-31", "--shorten"]).exits(0).text();
    world.run(&["protect", "web@2", "--until", "2999-01-01"]).exits(0);
    assert_eq!(world.json(&["show", "web@1"])["protected"], true);
    assert_eq!(world.json(&["show", "web@0"])["protected"], false);
    for backup in ["web@1", "web@2"] {
        world.run(&["delete", "web@0", backup]).exits(2).says("is protected");
    }
    assert_eq!(names(&world).len(), 4, "of several nothing goes if one may not");
    let plan = world.json(&["forget", "--keep-last", "1"]);
    assert_eq!(backups(&plan["deleted"]), ["web@0"]);
    assert_eq!(plan["kept"][0]["reasons"], serde_json::json!(["protected"]));
    world.run(&["unprotect", "web@1"]).exits(0);
    world.run(&["delete", "web@1"]).exits(0);
    world.run(&["protect", "web@1"]).exits(1);
    world.run(&["protect", "web@2", "--until", "soon"]).exits(2);
}

#[test]
fn a_policy_says_what_is_kept_and_why_before_anything_goes() {
    let world = World::new();
    world.init_small();
    world.write("web", &noise(1, 1 << 16));
    world.write("db", &noise(2, 1 << 16));
    for round in 0..3 {
        let tag = format!("round-{round}");
        world.run(&["backup", "web", "db", "--tag", &tag, "--tag", "all"]).exits(0);
    }
    assert_eq!(world.json(&["show", "web@1"])["tags"], serde_json::json!(["round-1", "all"]));
    world.run(&["forget"]).exits(2).says("nothing would be kept");
    world.run(&["forget", "--keep-last", "0"]).exits(2);
    world.run(&["forget", "--keep-last", "some"]).exits(2);
    world.run(&["forget", "mail", "--keep-last", "1"]).exits(1).says("no disk named \"mail\"");
    let plan = world.json(&["forget", "--keep-last", "1", "--keep-tag", "round-0", "--dry-run"]);
    assert_eq!(backups(&plan["deleted"]), ["db@1", "web@1"]);
    assert_eq!(backups(&plan["kept"]), ["db@0", "db@2", "web@0", "web@2"]);
    assert_eq!(plan["kept"][0]["reasons"], serde_json::json!(["tag"]));
    assert_eq!(names(&world).len(), 6);
    world
        .run(&["forget", "web", "--keep-last", "1"])
        .exits(0)
        .says("web@2")
        .says("last")
        .says("only they need 0 B");
    assert_eq!(names(&world), ["db@0", "db@1", "db@2", "web@2"]);
    world.run(&["forget", "--keep-within", "2d"]).exits(0);
    assert_eq!(names(&world).len(), 4);
    world.run(&["forget", "--keep-daily", "unlimited"]).exits(0);
    // All of one day: the newest, and the oldest as long as more could be kept.
    assert_eq!(names(&world), ["db@0", "db@2", "web@2"]);
}

#[test]
fn a_name_is_given_to_all_backups_of_a_disk() {
    let world = World::new();
    world.init_small();
    let disks = days(&world);
    world.run(&["restore", "--force", "--over", "web", "web@0", "web"]).exits(0);
    world.run(&["backup", "web"]).exits(0);
    world.write("db", &noise(2, 1 << 16));
    world.run(&["backup", "db"]).exits(0);
    world.run(&["rename", "web", "db"]).exits(2).says("db is or was the name of other backups");
    world.run(&["rename", "mail", "post"]).exits(1).says("no disk named \"mail\"");
    world.run(&["rename", "web", "shop"]).exits(0);
    world.run(&["show", "web"]).exits(1);
    assert_eq!(world.json(&["show", "shop"])["name"], "shop");
    assert_eq!(world.json(&["list", "shop"])["backups"].as_array().unwrap().len(), 5);
    assert_eq!(world.run(&["restore", "shop", "-"]).exits(0).stdout, disks[0]);
    fs::rename(world.path("web"), world.path("shop")).unwrap();
    assert_eq!(world.json(&["backup", "shop"])["backups"][0]["unchanged_segments"], 4);
    assert_eq!(names(&world).len(), 7);
}

#[test]
fn a_deletion_beside_a_damaged_manifest_leaves_counts_that_are_right() {
    let world = World::new();
    world.init_small();
    let disks = days(&world);
    let path = world.json(&["show", "web@1"])["manifest"].as_str().unwrap().to_owned();
    let whole = world.read(&path);
    fs::remove_file(world.path(&path)).unwrap();
    // What becomes free cannot be known, and the counts are made anew from what can be read.
    assert_eq!(world.json(&["delete", "-n", "web@2"])["freed_bytes"], Value::Null);
    world.run(&["delete", "web@2"]).exits(3).says("cannot tell how much space").says("is not counted");
    world.write(&path, &whole);
    world.run(&["undelete", "web@2"]).exits(0);
    for (day, disk) in disks.iter().enumerate() {
        assert_eq!(world.run(&["restore", &format!("web@{day}"), "-"]).exits(0).stdout, *disk);
    }
    assert_eq!(world.json(&["delete", "-n", "web@1", "web@2"])["freed_bytes"], 2 * RECORD);
    // The damaged one itself can go.
    fs::remove_file(world.path(&path)).unwrap();
    world.run(&["delete", "web@1"]).exits(0).says("the index was rebuilt");
    assert_eq!(names(&world), ["web@0", "web@2", "web@3"]);
    world.run(&["undelete", "web@1"]).exits(1);
    assert_eq!(world.json(&["delete", "-n", "web@2"])["freed_bytes"], RECORD);
    world.run(&["backup", "web"]).exits(0);
}

#[test]
fn a_policy_that_keeps_nothing_of_a_name_deletes_nothing_of_it() {
    let world = World::new();
    world.init_small();
    let images: Vec<String> = (0..10).map(|number| format!("vm{number}")).collect();
    for image in &images {
        world.write(image, &noise(1, 1 << 16));
    }
    let backup: Vec<&str> = ["backup"].into_iter().chain(images.iter().map(String::as_str)).collect();
    world.run(&backup).exits(0);
    world.run(&[&backup[..], &["--tag", "gold"]].concat()).exits(0);
    world.run(&backup).exits(0);
    // A protected backup is not one that the rules keep.
    world.run(&["protect", "vm3@0"]).exits(0);
    let all = names(&world);
    let typo = ["forget", "--keep-tag", "glod"];
    world.run(&typo).exits(1).says("nothing of vm0 is deleted").says("add --allow-empty");
    world.run(&["forget", "--keep-tag", "glod", "--keep-last", "0", "--gc"]).exits(1);
    let plan = world.run(&[&["--json"], &typo[..]].concat()).exits(1).json();
    assert_eq!(plan["refused"].as_array().unwrap().len(), 10);
    assert_eq!((plan["deleted"].as_array().unwrap().len(), names(&world)), (0, all));
    world.run(&["unprotect", "vm3@0"]).exits(0);
    // The rules fit the names that have the tag. Their newest backup stays as well.
    world.write("other", &noise(2, 1 << 16));
    world.run(&["backup", "other"]).exits(0);
    let plan = world.run(&["--json", "forget", "--keep-tag", "gold"]).exits(3).json();
    assert_eq!(plan["refused"], serde_json::json!(["other"]));
    assert_eq!(plan["deleted"].as_array().unwrap().len(), 10);
    assert_eq!(names(&world).len(), 21);
    world.run(&["forget", "other", "--keep-tag", "gold", "--allow-empty"]).exits(0);
    assert_eq!(names(&world).len(), 20);
}

#[test]
fn what_is_deleted_is_named_exactly() {
    let world = World::new();
    world.init_small();
    days(&world);
    for text in ["web", "web@latest"] {
        world
            .run(&["delete", text])
            .exits(2)
            .says("name one backup (web@7), several (web@3-7) or all of them (web@all)");
        world.run(&["delete", "--dry-run", text]).exits(2);
    }
    world.run(&["delete", "wbe@0"]).exits(1).says("did you mean \"web\"?");
    world.run(&["delete", "web@7-8"]).exits(1).says("there is no backup web@7-8");
    world.run(&["delete", "web@2-1"]).exits(2);
    assert_eq!(names(&world).len(), 4, "nothing was deleted");
    // What is there of a range goes, and the same command again does nothing.
    let text = world.run(&["delete", "web@1-2", "web@2-9"]).exits(0).text();
    assert!(text.contains("deleted 3 backups\n"), "{text}");
    assert_eq!(names(&world), ["web@0"]);
    world.run(&["delete", "web@1-2"]).exits(1).says("web@1-2 was deleted");
    world.run(&["backup", "web"]).exits(0);
    world.run(&["delete", "web@1-3"]).exits(1);
    assert_eq!(names(&world), ["web@0", "web@4"]);
    world.run(&["protect", "web@4"]).exits(0);
    world.run(&["delete", "web@all"]).exits(2).says("web@4 is protected: nothing was deleted");
    world.run(&["unprotect", "web@4"]).exits(0);
    world.run(&["delete", "web@all"]).exits(0);
    assert!(world.run(&["undelete", "web@1-3"]).exits(0).text().contains("web@1 was undeleted"));
    assert_eq!(names(&world), ["web@1", "web@2", "web@3"]);
    // The same command again changes nothing.
    let text = world.run(&["undelete", "web@1-3"]).exits(0).text();
    assert!(text.contains("web@1 is not deleted") && !text.contains("was undeleted"), "{text}");
    assert_eq!(names(&world), ["web@1", "web@2", "web@3"]);
    world.run(&["undelete", "web@all"]).exits(0);
    assert_eq!(names(&world).len(), 5);
    let set = world.json(&["show", "web@2"])["backupset"].as_str().unwrap().to_owned();
    world.run(&["delete", &format!("{}@0-1", &set[..8])]).exits(0);
    assert_eq!(names(&world), ["web@2", "web@3", "web@4"]);
    world.run(&["check"]).exits(0);
}

#[test]
fn a_deleted_backup_comes_back_until_its_period_is_over() {
    let world = World::new();
    world.init_small();
    let disks = days(&world);
    world.run(&["delete", "web@1-2"]).exits(0);
    let rows = world.json(&["list", "--deleted"])["backups"].clone();
    assert_eq!(backups(&rows), ["web@1", "web@2"]);
    let time = |key: &str| rows[0][key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let period = time("deleted_until").duration_since(time("deleted")).as_secs();
    assert!((86_300..=86_460).contains(&period), "{period}");
    let text = world.run(&["list", "--deleted"]).exits(0).text();
    assert!(text.contains("UNDELETE UNTIL") && text.contains("web@2"), "{text}");
    // A segment that an unfinished backup left is garbage, and goes; what deleted backups need stays.
    let plan = world.json(&["gc", "--dry-run"]);
    assert_eq!((&plan["kept_backups"], &plan["kept_bytes"]), (&2.into(), &(2 * RECORD).into()));
    let text = world.run(&["gc"]).exits(0).text();
    for part in ["nothing to free", "2 deleted backups hold 129.0 KiB until", "\"ekko gc --now\" frees this"]
    {
        assert!(text.contains(part), "{text}");
    }
    world.run(&["rebuild"]).exits(0);
    world.run(&["gc"]).exits(0);
    world.run(&["undelete", "web@1"]).exits(0);
    assert_eq!(world.run(&["restore", "web@1", "-"]).exits(0).stdout, disks[1]);
    assert_eq!(world.json(&["gc", "--now"])["purged_backups"], 1);
    world.run(&["undelete", "web@2"]).exits(1).says("there is no deleted backup web@2");
    world.run(&["delete", "web@1"]).exits(0);
    let settings = String::from_utf8(world.read("R/ekko.toml")).unwrap();
    world.write("R/ekko.toml", format!("{settings}keep_deleted = \"0s\"\n").as_bytes());
    assert_eq!(world.json(&["gc"])["purged_backups"], 1);
    world.run(&["check", "--read-data"]).exits(0);
}

/// A date that is wrong, for a program that asks for it.
fn at(world: &World, seconds: i64, arguments: &[&str]) -> crate::harness::Ran {
    let library = world.path("date.so");
    if !library.exists() {
        let source = r#"
            #define _GNU_SOURCE
            #include <dlfcn.h>
            #include <stdlib.h>
            #include <time.h>
            int clock_gettime(clockid_t id, struct timespec *t) {
                int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
                int done = real(id, t);
                if (id == CLOCK_REALTIME) t->tv_sec += atol(getenv("DATE_OFF_BY"));
                return done;
            }
        "#;
        let source = world.write("date.c", source.as_bytes());
        let built = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .args(["-ldl"])
            .status();
        assert!(built.unwrap().success());
    }
    let mut command = world.command(arguments);
    command.env("LD_PRELOAD", &library).env("DATE_OFF_BY", seconds.to_string());
    crate::harness::ran(command.output().unwrap())
}

#[test]
fn a_wrong_date_ends_no_period_early() {
    const YEAR: i64 = 365 * 86_400;
    let world = World::new();
    world.init_small();
    days(&world);
    world.run(&["delete", "web@1"]).exits(0);
    assert!(at(&world, 10 * YEAR, &["gc"]).exits(0).text().contains("1 deleted backup holds"));
    at(&world, -10 * YEAR, &["delete", "web@2"]).exits(0);
    let late = at(&world, 10 * YEAR, &["--json", "list", "--deleted"]).exits(0).json();
    assert_eq!(backups(&late["backups"]), ["web@1", "web@2"]);
    assert_eq!(late["backups"][0]["deleted_until"].as_str().unwrap()[..3], *"203");
    assert!(world.run(&["gc"]).exits(0).text().contains("2 deleted backups hold"));
    // What counts the time is gone: periods begin anew.
    fs::remove_file(world.path("R/clock")).unwrap();
    assert!(at(&world, 10 * YEAR, &["gc"]).exits(0).text().contains("2 deleted backups hold"));
    world.run(&["undelete", "web@all"]).exits(0);
    assert_eq!(names(&world).len(), 4);
}
