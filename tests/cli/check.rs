//! A backup against a disk, and whether every disk has a fresh, whole backup.

use std::fs;

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
    assert_eq!(text.lines().filter(|line| line.contains("is allowed")).count(), 3, "{text}");
    // Without a backup, with a damaged manifest, and with a segment that is gone.
    world.run(&["delete", "mail"]).exits(0);
    let path = world.json(&["show", "db"])["manifest"].as_str().unwrap().to_owned();
    let mut bytes = world.read(&path);
    bytes[150] ^= 1;
    world.write(&path, &bytes);
    let text = world.run(&["status"]).exits(3).text();
    assert!(text.contains("mail: it has no backup") && text.contains("db: manifest"), "{text}");
    assert!(text.contains("1 of 3 names"), "{text}");
    fs::remove_file(world.path("R/packs/0000000000000001.pack")).unwrap();
    let status = world.run(&["--json", "status"]).exits(3).json();
    let web = status["names"].as_array().unwrap().iter().find(|name| name["name"] == "web").unwrap();
    assert_eq!(web["problem"], "2 segments of it are in no pack that can be read");
    world.run(&["status", "--max-age", "soon"]).exits(2);
}
