//! Manifests as files: generated, compared, damaged.

use std::fs;

use crate::harness::{World, keys, noise};

/// What `--json diff` prints, as text.
fn diff(world: &World, older: &str, newer: &str) -> Vec<(u64, u64, String)> {
    let rows = world.json(&["diff", older, newer]);
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| {
        assert_eq!(keys(row), ["exists", "length", "offset"]);
        // Text, as `rbd diff --format json` has it.
        let exists = row["exists"].as_str().unwrap().to_owned();
        (row["offset"].as_u64().unwrap(), row["length"].as_u64().unwrap(), exists)
    })
    .collect()
}

#[test]
fn a_diff_tells_another_tool_what_changed() {
    let world = World::new();
    world.init_small();
    let mut disk = [noise(1, 6 << 16), vec![0; 2 << 16]].concat();
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    disk[1 << 16] ^= 1;
    disk[(2 << 16) + 5] ^= 1;
    disk[3 << 16..4 << 16].fill(0);
    disk[(7 << 16) + 9] = 1;
    // Grown by zeros, which do not differ, and by a short last segment.
    disk.extend(vec![0; 2 << 16]);
    disk.extend([5; 100]);
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    let yes = |offset: u64, length: u64| (offset, length, "true".to_owned());
    let no = |offset: u64, length: u64| (offset, length, "false".to_owned());
    let expected = [yes(1 << 16, 2 << 16), no(3 << 16, 1 << 16), yes(7 << 16, 1 << 16), yes(10 << 16, 100)];
    assert_eq!(diff(&world, "web@0", "web@1"), expected);
    assert_eq!(diff(&world, "web@1", "web"), []);
    // Back: the same ranges, cut at the end of the smaller disk; what became data is zero again.
    assert_eq!(diff(&world, "web@1", "web@0"), [yes(1 << 16, 3 << 16), no(7 << 16, 1 << 16)]);
    let text = world.run(&["diff", "web@0", "web@1"]).exits(0).text();
    assert!(text.contains("192.1 KiB hold other data, 64.0 KiB became zero"), "{text}");
    assert!(text.contains("the disk had 524288 bytes and has 655460"), "{text}");
    // A file and a backup.
    let path = world.json(&["show", "web@0"])["manifest"].as_str().unwrap().to_owned();
    fs::copy(world.path(&path), world.path("day0")).unwrap();
    assert_eq!(diff(&world, "./day0", "web@1"), expected);
    world.run(&["manifest", "generate", "--backupsize", "1", "large"]).exits(0);
    world.run(&["diff", "./day0", "./large"]).exits(2).says("cannot be compared");
    world.run(&["diff", "web@0", "web@9"]).exits(1).says("no backup web@9");
}

#[test]
fn a_generated_manifest_has_every_segment() {
    let world = World::new();
    let document = world.json(&["manifest", "generate", "--backupsize", "64", "file", "--seed", "7"]);
    assert_eq!(keys(&document), ["bytes", "file", "runs", "seed", "segments", "size_of_disk"]);
    assert_eq!((&document["segments"], &document["seed"]), (&(16 << 10).into(), &7.into()));
    let dump = world.run(&["manifest", "dump", "./file"]).exits(0).text();
    assert_eq!(dump.lines().count(), 16 << 10, "the original lost the last one");
    world.run(&["manifest", "generate", "--backupsize", "64", "file"]).exits(2).says("it exists");
    world.run(&["manifest", "generate", "--backupsize", "64", "same", "--seed", "7"]).exits(0);
    assert_eq!(world.read("file"), world.read("same"));
    let fragmented =
        ["--backupsize", "64", "file", "--force", "--fragmented", "10", "--segment-size", "1MiB"];
    let document = world.json(&[&["manifest", "generate"], &fragmented[..]].concat());
    let (segments, runs) = (64 << 10, document["runs"].as_u64().unwrap());
    assert_eq!(document["segments"], segments);
    assert!(runs > segments * 9 / 100 && runs < segments * 11 / 100, "{runs}");
    assert!(document["bytes"].as_u64().unwrap() <= segments * 22);
    world.run(&["manifest", "generate", "--backupsize", "99999999999999999", "huge"]).exits(2);
    world
        .run(&["manifest", "generate", "--backupsize", "16777216", "huge"])
        .exits(2)
        .says("too many segments");
    world.run(&["manifest", "generate", "--backupsize", "1", "x", "--fragmented", "101"]).exits(2);
    assert!(!world.path("huge").exists() && !world.path("x").exists() && !world.path("R").exists());
}

#[test]
fn no_command_gives_an_answer_from_a_damaged_manifest_file() {
    let world = World::new();
    world.run(&["manifest", "generate", "--backupsize", "1", "good", "--fragmented", "50"]).exits(0);
    let whole = world.read("good");
    assert!(whole.len() > 4096);
    let refused = |bytes: &[u8]| {
        world.write("bad", bytes);
        for arguments in [
            &["manifest", "info", "./bad"][..],
            &["manifest", "dump", "./bad"],
            &["diff", "./good", "./bad"],
            &["diff", "./bad", "./good"],
            &["manifest", "export", "./bad", "out"],
            &["manifest", "export", "./bad", "out", "--format", "osdk"],
            &["manifest", "import", "bad", "--output", "out"],
        ] {
            let ran = world.run(arguments);
            assert!(ran.code == 1 || ran.code == 2, "{arguments:?}: {}", ran.code);
            assert_eq!(ran.stdout, b"", "{arguments:?}");
            assert!(ran.stderr.starts_with("ekko: "), "{arguments:?}: {}", ran.stderr);
            assert!(!world.path("out").exists());
        }
    };
    // Every bit of the first 4,096 bytes and every cut stand in the unit tests of manifests; the commands all
    // open files that way.
    for bit in (0..4096 * 8).step_by(1021) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(&flipped);
    }
    for cut in (0..whole.len()).step_by(whole.len() / 20) {
        refused(&whole[..cut]);
    }
}
