//! Disks whose last backup failed, or whose newest backup has flaws: "ekko status" knows them.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Ran, World, noise};

fn row(ran: &Ran, name: &str) -> Value {
    let document = ran.json();
    let rows = document["names"].as_array().unwrap();
    rows.iter().find(|row| row["name"] == name).unwrap_or(&Value::Null).clone()
}

#[test]
fn a_first_backup_that_failed_is_in_the_status_until_one_succeeds_or_it_is_retired() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 1 << 16));
    world.run(&["backup", "good=disk", "web=gone", "tpyo=gone"]).exits(3);
    for name in ["web", "tpyo"] {
        let text = world.run(&["status"]).exits(3).text();
        let line = text.lines().find(|line| line.starts_with(&format!("{name}: "))).unwrap();
        assert!(line.contains("no backup; the attempt of 20"), "{line}");
        assert!(line.contains(" failed: cannot open image gone: "), "{line}");
        assert!(line.ends_with(&format!("\"ekko retire {name}\" removes it from the status")), "{line}");
    }
    let found = row(&world.run(&["--json", "status"]).exits(3), "web");
    assert_eq!(
        (&found["ok"], &found["backup"], &found["problem"]),
        (&false.into(), &Value::Null, &"no backup".into())
    );
    assert!(found["failure"]["time"].is_string() && found["failure"]["reason"].is_string(), "{found}");
    world.run(&["backup", "web=disk"]).exits(0);
    let ran = world.run(&["--json", "status"]).exits(3);
    assert_eq!(
        (row(&ran, "web")["ok"].clone(), row(&ran, "web").get("failure").is_some()),
        (true.into(), false)
    );
    assert_eq!(row(&ran, "tpyo")["ok"], false);
    world.run(&["retire", "tpyo"]).exits(0);
    world.run(&["status"]).exits(0);
    world.run(&["retire", "tpyo"]).exits(1).says("no disk named \"tpyo\"");
}

#[test]
fn a_failure_after_an_intact_backup_is_a_problem_until_a_backup_succeeds() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 1 << 16));
    world.run(&["backup", "web=disk", "db=disk"]).exits(0);
    world.run(&["backup", "web=gone"]).exits(1);
    let text = world.run(&["status"]).exits(3).text();
    let line = text.lines().find(|line| line.starts_with("web: ")).unwrap();
    assert!(
        line.contains("its newest backup is intact, but a later attempt failed; the attempt of 20"),
        "{line}"
    );
    assert!(text.contains("PROBLEM: 1 of 2 disks"), "{text}");
    let text = world.run(&["status", "--max-age", "0s"]).exits(3).text();
    let line = text.lines().find(|line| line.starts_with("web: ")).unwrap();
    assert!(line.contains(" old (limit 0 s); the attempt of 20") && !line.contains("retire"), "{line}");
    world.run(&["backup", "web=disk"]).exits(0);
    world.run(&["status"]).exits(0);
    // What was deleted, or has another name, is not expected.
    world.run(&["backup", "web=gone"]).exits(1);
    world.run(&["delete", "web@all"]).exits(0);
    assert_eq!(row(&world.run(&["--json", "status"]).exits(0), "web"), Value::Null);
    world.run(&["backup", "db=gone"]).exits(1);
    world.run(&["rename", "db", "sql"]).exits(0);
    let ran = world.run(&["--json", "status"]).exits(0);
    assert_eq!(ran.json()["names"].as_array().unwrap().len(), 1);
    // A disk that is backed up although it was retired is expected again.
    world.run(&["retire", "sql"]).exits(0);
    assert_eq!(row(&world.run(&["--json", "status"]).exits(3), "sql"), Value::Null);
    world.run(&["backup", "sql=gone"]).exits(1);
    assert_eq!(row(&world.run(&["--json", "status"]).exits(3), "sql")["ok"], false);
}

#[test]
fn the_failure_of_a_disk_stays_while_any_backup_of_its_name_is_left() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 1 << 16));
    world.run(&["backup", "web=disk"]).exits(0);
    // Later backups are in a backupset of their own.
    world.run(&["restore", "--over", "web", "web@0", "over"]).exits(0);
    world.run(&["backup", "web=disk"]).exits(0);
    world.run(&["backup", "web=gone"]).exits(1);
    world.run(&["delete", "web@0"]).exits(0);
    assert!(row(&world.run(&["--json", "status"]).exits(3), "web")["failure"].is_object());
}

#[test]
fn a_note_that_outlives_the_first_backup_says_nothing() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 256 << 16));
    let mut child = world.command(&["-q", "backup", "--limit-rate", "8MiB", "web=disk"]).spawn().unwrap();
    let begun = Instant::now();
    let note = loop {
        assert!(begun.elapsed() < Duration::from_mins(1), "the backup does not begin");
        let record = std::fs::read_dir(world.path("R/failures")).ok().and_then(|mut names| names.next());
        if let Some(path) =
            record.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_none())
        {
            break (std::fs::read(&path).unwrap(), path);
        }
    };
    assert!(child.wait().unwrap().success());
    assert!(!note.1.exists());
    // A power loss brings it back.
    std::fs::write(&note.1, &note.0).unwrap();
    let ran = world.run(&["--json", "status"]).exits(0);
    assert_eq!(
        (row(&ran, "web")["ok"].clone(), row(&ran, "web").get("failure").is_some()),
        (true.into(), false)
    );
}

#[test]
fn records_of_failures_that_cannot_be_read_stop_nothing() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 1 << 16));
    world.write("R/failures", b"");
    world.run(&["backup", "web=disk"]).exits(3).says("failures");
    let text = world.run(&["status"]).exits(3).text();
    assert!(text.contains("cannot read the records of failed backups"), "{text}");
    world.run(&["restore", "web", "-"]).exits(0);
}

#[test]
fn a_first_backup_that_is_killed_is_in_the_status() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 512 << 16));
    let mut child = world.command(&["-q", "backup", "--limit-rate", "1MiB", "web=disk"]).spawn().unwrap();
    let begun = Instant::now();
    let attempt = || {
        let ran = world.run(&["--json", "status"]);
        let found = row(&ran, "web");
        (found != Value::Null).then_some((ran.code, found))
    };
    let (code, found) = loop {
        assert!(begun.elapsed() < Duration::from_mins(1), "the backup does not begin");
        if let Some(found) = attempt() {
            break found;
        }
    };
    assert_eq!((code, found["failure"].get("reason")), (3, None), "{found}");
    child.kill().unwrap();
    child.wait().unwrap();
    world.write("other", &noise(2, 1 << 16));
    // Whoever opens the repository undoes what the backup left, and not that it was begun.
    world.run(&["backup", "other"]).exits(0);
    let text = world.run(&["status"]).exits(3).text();
    assert!(text.contains("web: no backup; the attempt of 20"), "{text}");
    assert!(text.contains(" is running, or was interrupted; "), "{text}");
    world.run(&["backup", "web=other"]).exits(0);
    world.run(&["status"]).exits(0);
}

#[test]
fn all_disks_of_a_call_that_fails_as_a_whole_are_in_the_status() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 1 << 16));
    world.run(&["backup", "web=disk", "db=disk", "--before", "false"]).exits(1);
    let text = world.run(&["status"]).exits(3).text();
    for name in ["web", "db"] {
        assert!(text.contains(&format!("{name}: no backup; ")), "{text}");
    }
    assert!(text.contains("--before (false) failed"), "{text}");
    world.run(&["backup", "web=disk", "db=disk"]).exits(0);
    world.run(&["backup", "--machine", "shop", "shop/vda=disk", "shop/vdb=gone"]).exits(1);
    let text = world.run(&["status"]).exits(3).text();
    for name in ["shop", "shop/vdb"] {
        assert!(text.contains(&format!("{name}: no backup; ")), "{text}");
    }
    world.run(&["backup", "--machine", "shop", "shop/vda=disk", "shop/vdb=disk"]).exits(0);
    world.run(&["status"]).exits(0);
    // A wrong command line is no attempt.
    world.run(&["backup", "one=disk", "one=disk"]).exits(2);
    world.run(&["status"]).exits(0);
}

#[test]
fn a_status_that_expects_no_disk_or_cannot_read_a_list_is_a_problem() {
    let world = World::new();
    world.init_small();
    let text = world.run(&["status"]).exits(3).text();
    assert!(
        text.contains("PROBLEM: no disk is expected to have backups in R: is that the right repository?"),
        "{text}"
    );
    world.write("disk", &noise(1, 1 << 16));
    world.run(&["backup", "web=disk", "db=disk"]).exits(0);
    let set = world.json(&["show", "db"])["backupset"].as_str().unwrap().to_owned();
    let list = format!("R/manifests/{set}/set.toml");
    let mut bytes = world.read(&list);
    bytes[30] ^= 1;
    world.write(&list, &bytes);
    let ran = world.run(&["--json", "status"]).exits(3).json();
    assert_eq!(
        (ran["names"].as_array().unwrap().len(), ran["problems"].as_array().unwrap().len()),
        (1, 1),
        "{ran}"
    );
    let text = world.run(&["status"]).exits(3).text();
    assert!(
        text.contains("set.toml") && text.contains("PROBLEM: 0 of 1 disk, and disks may be missing here"),
        "{text}"
    );
}
