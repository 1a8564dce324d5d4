//! What no rule of a policy may overlook: flawed backups, disks that shrank, and deletions that can be undone.

use std::fs;
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};

use crate::harness::{World, noise};
use crate::machine::backups;

const SEGMENT: usize = 64 << 10;

fn deleted(plan: &Value) -> Vec<&str> {
    plan["deleted"].as_array().unwrap().iter().map(|row| row["backup"].as_str().unwrap()).collect()
}

fn kept<'a>(plan: &'a Value, backup: &str) -> &'a Value {
    plan["kept"].as_array().unwrap().iter().find(|row| row["backup"] == backup).unwrap()
}

/// Damages the segment that was stored last.
fn damage_newest_segment(world: &World) {
    let repository = ekko::repository::Repository::open(&world.path("R")).unwrap();
    let mut last: Option<(std::path::PathBuf, u64)> = None;
    let each = |number: ekko::store::pack::PackNumber, entry: &ekko::store::pack::ContentsEntry| {
        last = last.take().max(Some((world.path("R/packs").join(number.file_name()), entry.offset + 256)));
    };
    assert!(repository.catalog().unwrap().for_each_segment(each).unwrap().is_empty());
    let (path, offset) = last.unwrap();
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn a_damaged_backup_takes_no_place_of_a_rule() {
    let world = World::new();
    world.init_small();
    let first = noise(1, 2 * SEGMENT);
    world.write("web", &first);
    world.run(&["backup", "web"]).exits(0);
    world.write("web", &[noise(1, SEGMENT), noise(2, SEGMENT)].concat());
    world.run(&["backup", "web"]).exits(0);
    damage_newest_segment(&world);
    world.run(&["check", "--read-data"]).exits(3);
    let said = world.run(&["forget", "--keep-last", "1"]).exits(0).says("last (damaged: takes no place)");
    assert!(said.text().contains("deleted 0 backups"), "{}", said.text());
    let plan = world.json(&["forget", "--keep-last", "1", "--gc"]);
    assert_eq!((deleted(&plan), &kept(&plan, "web@1")["flaw"]), (Vec::new(), &json!("damaged")));
    assert_eq!(kept(&plan, "web@0")["reasons"], json!(["last"]));
    assert_eq!(world.run(&["restore", "web@0", "-"]).exits(0).stdout, first);
    // An intact one makes room.
    world.write("web", &noise(3, 2 * SEGMENT));
    world.run(&["backup", "web"]).exits(0);
    assert_eq!(deleted(&world.json(&["forget", "--keep-last", "1"])), ["web@0", "web@1"]);
    // A manifest that is gone is damage, too.
    world.write("web", &noise(4, 2 * SEGMENT));
    world.run(&["backup", "web"]).exits(0);
    fs::remove_file(world.json(&["show", "web"])["manifest"].as_str().map(|path| world.path(path)).unwrap())
        .unwrap();
    let plan = world.run(&["--json", "forget", "--keep-last", "1"]).json();
    assert_eq!(deleted(&plan), [""; 0]);
    assert!(backups(&world).contains(&"web@2".to_owned()));
}

#[test]
fn a_disk_that_shrank_is_told_of_until_its_larger_backups_are_gone() {
    let world = World::new();
    world.init_small();
    for (size, code) in [(4, 0), (4, 0), (0, 3), (0, 0)] {
        world.write("web", &noise(1, size * SEGMENT));
        world.run(&["backup", "web"]).exits(code);
    }
    world.write("db", &noise(2, 3 * SEGMENT));
    world.run(&["backup", "db"]).exits(0);
    world.write("db", &noise(2, SEGMENT));
    world.run(&["backup", "db"]).exits(3);
    world.run(&["backup", "db"]).exits(0);
    for round in 0..2 {
        let text = world.run(&["status"]).exits(3).text();
        for said in [
            "web: its newest backup has 0 bytes, and the disk of web@1 had 262144",
            "db: its newest backup has 65536 bytes, and the disk of db@0 had 196608",
        ] {
            assert!(text.contains(said), "{text}");
        }
        let rows = world.json(&["list"])["backups"].clone();
        let smaller = rows.as_array().unwrap().iter().filter(|row| row["smaller"] == true);
        let smaller: Vec<_> = smaller.map(|row| row["backup"].as_str().unwrap()).collect();
        if round == 0 {
            assert_eq!(smaller, ["db@1", "db@2", "web@2", "web@3"]);
            let plan = world.json(&["forget", "--keep-last", "1", "--gc"]);
            assert_eq!(deleted(&plan), ["db@1", "web@0", "web@2"]);
            assert_eq!(kept(&plan, "web@1")["reasons"], json!(["last"]));
            assert_eq!(kept(&plan, "web@3")["flaw"], json!("empty"));
            assert_eq!(kept(&plan, "db@0")["reasons"], json!(["larger than the newest"]));
        } else {
            assert_eq!(smaller, ["db@2", "web@3"]);
        }
    }
    assert_eq!(world.run(&["restore", "web@1", "-"]).exits(0).stdout, noise(1, 4 * SEGMENT));
    world.run(&["delete", "web@1", "db@0"]).exits(0);
    world.run(&["status"]).exits(0);
}

#[test]
fn a_policy_that_refuses_a_name_ends_no_period() {
    let world = World::new();
    world.init_small();
    world.write("web", &noise(1, SEGMENT));
    for _ in 0..2 {
        world.run(&["backup", "web"]).exits(0);
    }
    let said = world.run(&["delete", "--yes", "web@0"]).exits(0).text();
    assert!(said.contains("for 24 h, unless a collection with --now or --gc runs"), "{said}");
    for json in [false, true] {
        let arguments = ["--json", "forget", "--keep-tag", "typo", "--gc"];
        let ran = world.run(&arguments[usize::from(!json)..]).exits(1).says("no space was freed");
        assert!(!ran.text().contains("can no longer be undeleted"), "{}", ran.text());
    }
    world.run(&["undelete", "web@0"]).exits(0);
    // Some names are refused, others are not.
    world.run(&["backup", "web", "--tag", "gold"]).exits(0);
    world.run(&["backup", "db=web"]).exits(0);
    world.run(&["forget", "--keep-tag", "gold", "--gc"]).exits(3).says("no space was freed");
    world.run(&["undelete", "web@0"]).exits(0);
    world.run(&["forget", "web", "--keep-tag", "gold", "--gc"]).exits(0);
    world.run(&["undelete", "web@0"]).exits(1);
}
