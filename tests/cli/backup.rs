use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::harness::{MIB, World, hash_list, keys, noise, reference_disk};

#[test]
fn the_hash_list_is_that_of_a_loop_over_the_disk_at_every_size() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    let reference = reference_disk();
    let sizes = [0, 1, 4 * MIB, 4 * MIB + 1, 10 * MIB - 1];
    let disks = sizes.map(|size| noise(1, size));
    for (number, disk) in
        disks.iter().chain([&reference, &vec![0; 8 * MIB], &vec![0; 8 * MIB + 5]]).enumerate()
    {
        let name = format!("d{number}");
        world.write("disk", disk);
        world.run(&["backup", &format!("{name}=disk")]).exits(0);
        assert_eq!(
            world.run(&["manifest", "dump", &name]).exits(0).text(),
            hash_list(disk, 4 * MIB),
            "{name}"
        );
        assert_eq!(&world.run(&["restore", &name, "-"]).exits(0).stdout, disk, "{name}");
    }
}

#[test]
fn a_source_without_a_name_is_named_after_its_file() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    world.write("web.raw", &noise(1, MIB));
    assert_eq!(world.json(&["backup", "web.raw"])["backups"][0]["backup"], "web.raw@0");
}

#[test]
fn json_of_a_backup_has_the_names_that_are_final() {
    let world = World::new();
    world.init_small();
    world.write("web", &[noise(1, 64 << 10), vec![0; 64 << 10], noise(2, 100)].concat());
    let document = world.json(&["backup", "web"]);
    assert_eq!(keys(&document), ["backups", "failed"]);
    let backup = &document["backups"][0];
    let names = [
        "backup",
        "backupset",
        "deduplicated_segments",
        "format",
        "healed_segments",
        "incremental",
        "name",
        "new_bytes",
        "new_segments",
        "read_bytes",
        "resumed_segments",
        "seconds",
        "segments",
        "size_of_disk",
        "stored_bytes",
        "unchanged_segments",
        "used_bytes",
        "zero_segments",
    ];
    assert_eq!(keys(backup), names);
    assert_eq!(
        (&backup["segments"], &backup["zero_segments"], &backup["new_segments"]),
        (&3.into(), &1.into(), &2.into())
    );
    assert_eq!(backup["new_bytes"], (64 << 10) + 100);
}

#[test]
fn the_same_data_is_stored_once_whatever_image_it_is_on() {
    let world = World::new();
    world.init_small();
    world.write("a", &noise(3, 5 << 16));
    world.run(&["backup", "a"]).exits(0);
    let before = world.json(&["stats"]);
    world.write("b", &[noise(9, 0), noise(3, 5 << 16)].concat());
    let second = world.json(&["backup", "b"]);
    assert_eq!(second["backups"][0]["deduplicated_segments"], 5);
    let after = world.json(&["stats"]);
    assert_eq!(before["stored_bytes"], after["stored_bytes"]);
    assert_eq!(after["referenced_bytes"].as_u64().unwrap(), 2 * before["referenced_bytes"].as_u64().unwrap());
    assert_eq!(after["garbage_bytes"], 0);
}

#[test]
fn the_second_backup_of_a_name_is_the_next_of_its_backupset_and_stores_what_changed() {
    let world = World::new();
    world.init_small();
    let mut disk = noise(4, 6 << 16);
    world.write("web", &disk);
    let first = world.json(&["backup", "web"]);
    disk[3 << 16] ^= 1;
    world.write("web", &disk);
    let second = world.json(&["backup", "web"]);
    let (first, second) = (&first["backups"][0], &second["backups"][0]);
    assert_eq!(first["backupset"], second["backupset"]);
    assert_eq!((&second["incremental"], &second["new_segments"]), (&1.into(), &1.into()));
    assert_eq!(second["unchanged_segments"], 5);
}

#[test]
fn one_failed_source_does_not_stop_the_others() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    world.write("good", &noise(5, MIB));
    let ran = world.run(&["--json", "backup", "gone=nothing", "good", "folder=."]).exits(3);
    let document = ran.json();
    assert_eq!(document["backups"][0]["backup"], "good@0");
    assert_eq!(document["failed"].as_array().unwrap().len(), 2);
    assert_eq!(keys(&document["failed"][0]), ["error", "name", "source"]);
    world.run(&["backup", "gone=nothing", "folder=."]).exits(1).says("folder").says("nothing");
}

#[test]
fn sources_that_cannot_be_meant_are_wrong_usage() {
    let world = World::new();
    world.write("a", b"a");
    world.run(&["backup", "x=a", "x=a"]).exits(2).says("given twice");
    world.run(&["backup", "b@d=a"]).exits(2).says("cannot name an image");
    world.run(&["backup"]).exits(2);
    world.run(&["backup", "a", "--compression", "gzip"]).exits(2).says("zstd");
    assert!(!world.path("R").exists(), "a run that does nothing makes no repository");
}

#[test]
fn an_existing_folder_that_is_no_repository_is_left_alone() {
    let world = World::new();
    world.write("a", b"a");
    fs::create_dir(world.path("R")).unwrap();
    world.run(&["backup", "a"]).exits(10).says("empty folder");
    world.write("R/file", b"");
    world.run(&["backup", "a"]).exits(10).says("something else");
    assert_eq!(fs::read_dir(world.path("R")).unwrap().count(), 1);
}

#[test]
fn every_compression_is_restored_from() {
    let world = World::new();
    world.init_small();
    for (number, setting) in (0..).zip(["none", "zlib:1", "lzma:0", "zstd", "zstd:-3"]) {
        let disk = [noise(number, 1000).repeat(200), noise(number, 1 << 16)].concat();
        world.write("disk", &disk);
        let name = format!("d{number}");
        let document = world.json(&["backup", "--compression", setting, &format!("{name}=disk")]);
        let backup = &document["backups"][0];
        assert_eq!(
            backup["stored_bytes"].as_u64() < backup["new_bytes"].as_u64(),
            setting != "none",
            "{setting}"
        );
        assert_eq!(world.run(&["restore", &name, "-"]).exits(0).stdout, disk, "{setting}");
    }
}

#[test]
fn holes_are_not_read() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    let file = fs::File::create(world.path("sparse")).unwrap();
    file.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &noise(6, 8192), 500 << 20).unwrap();
    drop(file);
    let document = world.json(&["backup", "sparse"]);
    let backup = &document["backups"][0];
    let read = backup["read_bytes"].as_u64().unwrap();
    assert!((8192..=64 << 10).contains(&read), "{read} bytes were read");
    assert_eq!((&backup["segments"], &backup["zero_segments"]), (&256.into(), &255.into()));
}

#[test]
fn a_source_that_is_open_for_writing_is_warned_of() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    world.write("live", &noise(7, 4096));
    let mut writer = std::process::Command::new("sh");
    let script = format!("exec 3>>'{}'; echo ready; read line", world.path("live").display());
    let mut writer =
        writer.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(writer.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
    world.run(&["backup", "live"]).exits(3).says("open for writing by process");
    writer.stdin.take().unwrap().write_all(b"\n").unwrap();
    writer.wait().unwrap();
    let after = world.run(&["backup", "live"]).exits(0);
    assert!(!after.stderr.contains("open for writing"), "{}", after.stderr);
    // It is written down.
    let attributes = |backup: &str| world.json(&["show", backup])["attributes"].clone();
    assert!(attributes("live@0")["in-use"].as_str().unwrap().starts_with("open for writing by process"));
    assert_eq!(attributes("live@1").get("in-use"), None);
}

#[test]
fn two_different_segments_with_one_sha1_are_both_kept_on_one_disk_and_on_two() {
    let heads = [&include_bytes!("../data/shattered-1.bin")[..], include_bytes!("../data/shattered-2.bin")];
    let [one, two] = heads.map(|head| [head, &vec![7; (64 << 10) - 320]].concat());
    assert_ne!(one, two);
    let world = World::new();
    world.init_small();
    let both = [one.clone(), two.clone(), one.clone()].concat();
    world.write("both", &both);
    let ran = world.run(&["--json", "backup", "--jobs", "1", "both"]).exits(0).says("two different segments");
    assert_eq!(ran.json()["backups"][0]["new_segments"], 2);
    world.write("one", &one);
    world.write("two", &two);
    let second = world.json(&["backup", "two", "one"]);
    assert_eq!(second["backups"][0]["deduplicated_segments"], 1);
    assert_eq!(second["backups"][1]["deduplicated_segments"], 1);
    for (name, disk) in [("both", &both), ("one", &one), ("two", &two)] {
        assert_eq!(&world.run(&["restore", name, "-"]).exits(0).stdout, disk, "{name}");
        assert_eq!(world.run(&["manifest", "dump", name]).text(), hash_list(disk, 64 << 10));
    }
    fs::remove_dir_all(world.path("R/index")).unwrap();
    let third = world.json(&["backup", "two"]);
    assert_eq!(third["backups"][0]["unchanged_segments"], 1, "the new index knows which twin is which");
}

#[test]
fn a_killed_backup_costs_nothing_and_what_it_stored_is_used_again() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    let kept = noise(8, MIB);
    world.write("kept", &kept);
    world.run(&["backup", "kept"]).exits(0);
    world.write("big", &noise(9, 400 * MIB));
    // A pack gets another name while it is made; it then counts the next time.
    let packs = || fs::read_dir(world.path("R/packs")).unwrap().flatten().flat_map(|pack| pack.metadata());
    let stored = || packs().map(|pack| pack.len()).sum::<u64>();
    let mut reused = 0;
    for round in 0..4_u64 {
        let before = stored();
        let mut command = world.command(&["-q", "backup", "--compression", "none", "big"]);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        // Killed as soon as it has stored some more, or when it is done.
        while child.try_wait().unwrap().is_none() && stored() < before + (80 << 20) + (round << 23) {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(world.run(&["restore", "kept@0", "-"]).exits(0).stdout, kept);
    }
    let document = world.json(&["backup", "big"]);
    let backup = &document["backups"][0];
    for name in ["deduplicated_segments", "unchanged_segments"] {
        reused += backup[name].as_u64().unwrap();
    }
    assert!(reused >= 16, "{document}");
    assert_eq!(world.run(&["restore", "big", "-"]).exits(0).stdout, world.read("big"));
}

#[test]
fn a_full_disk_is_one_clear_line_and_costs_no_backup() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    let kept = noise(1, MIB);
    world.write("kept", &kept);
    world.run(&["backup", "kept"]).exits(0);
    world.write("big", &noise(2, 40 * MIB));
    // A process whose files may not grow beyond 20 MiB gets an error where a full disk gives one.
    let script =
        format!("trap '' XFSZ; ulimit -f 20480; exec {} -r R backup big", env!("CARGO_BIN_EXE_ekko"));
    let mut limited = std::process::Command::new("bash");
    let output = limited.args(["-c", &script]).current_dir(world.path(".")).output().unwrap();
    crate::harness::ran(output).exits(1).says("big was not backed up").says("cannot write R/packs/");
    assert_eq!(world.run(&["restore", "kept", "-"]).exits(0).stdout, kept);
    world.run(&["backup", "big", "kept"]).exits(0);
    assert_eq!(world.run(&["restore", "big", "-"]).exits(0).stdout, world.read("big"));
}

#[test]
fn several_sources_at_once_are_told_of_in_their_order_and_one_that_fails_stops_no_other() {
    let world = World::new();
    world.init_small();
    let shared = noise(1, 20 << 16);
    let disks: Vec<_> = (0..6).map(|seed| [shared.clone(), noise(10 + seed, 70_000)].concat()).collect();
    for (number, disk) in disks.iter().enumerate() {
        world.write(&format!("d{number}"), disk);
    }
    let sources = ["d0", "d1", "gone", "d2", "d3", "d4", "d5"];
    for (at_once, jobs) in [("1", "1"), ("4", "2"), ("6", "8")] {
        let arguments =
            [&["--json", "backup", "--at-once", at_once, "--jobs", jobs], sources.as_slice()].concat();
        let document = world.run(&arguments).exits(3).json();
        let names: Vec<_> =
            document["backups"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["d0", "d1", "d2", "d3", "d4", "d5"]);
        assert_eq!(document["failed"][0]["source"], "gone");
        for (number, disk) in disks.iter().enumerate() {
            assert_eq!(&world.run(&["restore", &format!("d{number}"), "-"]).exits(0).stdout, disk);
        }
    }
    // What they have in common was stored once, whoever came first.
    assert_eq!(world.json(&["stats"])["segments"], 20 + 6 * 2);
}

#[test]
fn what_is_read_directly_or_slowly_is_the_same() {
    let world = World::new();
    world.init_small();
    let disk = [noise(1, 300_000), vec![0; 200_000], noise(2, 100_001)].concat();
    world.write("disk", &disk);
    world.run(&["backup", "plain=disk"]).exits(0);
    let hashes = world.run(&["manifest", "dump", "plain"]).exits(0).text();
    world.run(&["backup", "--limit-rate", "20MiB", "slow=disk"]).exits(0);
    let direct = world.run(&["backup", "--direct", "direct=disk"]);
    // Not every filesystem can; one that cannot says so.
    if direct.code != 0 {
        direct.exits(1).says("leave --direct out");
    } else {
        assert_eq!(world.run(&["manifest", "dump", "direct"]).exits(0).text(), hashes);
    }
    assert_eq!(world.run(&["manifest", "dump", "slow"]).exits(0).text(), hashes);
    world.run(&["restore", "--limit-rate", "20MiB", "slow", "out"]).exits(0);
    assert_eq!(world.read("out"), disk);
    assert_eq!(world.run(&["restore", "--limit-rate", "20MiB", "slow", "-"]).exits(0).stdout, disk);
    world.run(&["backup", "--limit-rate", "0", "disk"]).exits(2).says("a limit is above 0");
}

#[test]
fn a_benchmark_says_how_fast_each_thing_is_and_what_follows() {
    let world = World::new();
    world.init_small();
    world.write("disk", &[noise(1, 1 << 20), vec![0; 1 << 20]].concat());
    let document = world.json(&["benchmark", "--segment-size", "64KiB", "disk"]);
    let rates = &document["bytes_per_second"];
    assert_eq!(keys(rates), ["blake3", "compress", "decompress", "read", "sha1", "write", "zero_test"]);
    assert!(rates.as_object().unwrap().values().all(|rate| rate.as_f64().unwrap() > 0.0));
    assert_eq!(document["data_bytes"], 1 << 20);
    let bound = &document["bound_seconds"];
    assert!(bound["first"].as_f64().unwrap() > bound["again"].as_f64().unwrap());
    let text = world.run(&["benchmark"]).exits(0).text();
    assert!(text.contains("BLAKE3") && text.contains("a first backup"), "{text}");
    world.write("empty", b"");
    world.run(&["benchmark", "empty"]).exits(2).says("has no data");
}

#[test]
fn sources_that_are_not_there_are_named_as_they_were_given_and_leave_nothing() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    for (source, what) in [
        ("x=rbd:vms/none:conf=/nowhere", "cannot open rbd:vms/none:conf=/nowhere: the server "),
        ("x=nbd+unix:///vda?socket=gone", "cannot open nbd+unix:///vda?socket=gone: No such file"),
        ("x=nbds://localhost/vda", "an encrypted link needs certificates: --tls-certificates"),
        ("x=nbd://", "it names no host"),
        ("rbd:vms/web@tuesday", "what is no path needs a name of its own: NAME=rbd:vms/web@tuesday"),
        ("nbd://host/vda", "NAME=nbd://host/vda"),
    ] {
        let ran = world.run(&["backup", source]).says(what);
        assert!([1, 2].contains(&ran.code), "{source}");
    }
    assert_eq!(fs::read_dir(world.path("R/manifests")).unwrap().count(), 0);
    world.write("disk", b"x");
    world
        .run(&["backup", "x=disk", "--bitmap", "b0"])
        .exits(1)
        .says("has no dirty bitmaps: only an NBD export of QEMU has");
    world
        .run(&["backup", "x=disk", "--snapshot", "s"])
        .exits(1)
        .says("an internal snapshot of what is no qcow2 image");
}
