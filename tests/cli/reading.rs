use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use crate::harness::{MIB, World, hash_list, keys, noise};

#[test]
fn list_show_and_stats_say_what_is_there() {
    let world = World::new();
    world.init_small();
    world.write("web", &noise(1, 3 << 16));
    world.write("db", &[noise(2, 1 << 16), vec![0; 1 << 16]].concat());
    world.run(&["backup", "web", "db"]).exits(0);
    world.run(&["backup", "web"]).exits(0);
    let list = world.json(&["list"]);
    assert_eq!(keys(&list), ["backups"]);
    let rows = list["backups"].as_array().unwrap();
    assert_eq!(
        rows.iter().map(|row| row["backup"].as_str().unwrap()).collect::<Vec<_>>(),
        ["db@0", "web@0", "web@1"]
    );
    let names = [
        "backup",
        "backupset",
        "incremental",
        "name",
        "new_bytes",
        "number",
        "segments",
        "size_of_disk",
        "stored_bytes",
        "timestamp",
        "used_bytes",
    ];
    assert_eq!(keys(&rows[0]), names);
    assert!(rows[0]["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    assert_eq!(world.json(&["list", "web"])["backups"].as_array().unwrap().len(), 2);
    assert!(world.run(&["list"]).exits(0).text().contains("web@1"));
    world.run(&["list", "mail"]).exits(1).says("no disk named \"mail\"");
    let show = world.json(&["show", "db"]);
    assert_eq!((&show["segments"], &show["present_segments"]), (&2.into(), &1.into()));
    assert!(world.run(&["show", "db@0"]).exits(0).text().contains("1 present"));
    world.run(&["show", "db@1"]).exits(1);
    let stats = world.json(&["stats"]);
    let names = [
        "backups",
        "backupsets",
        "disk_bytes",
        "free_bytes",
        "garbage_bytes",
        "names",
        "referenced_bytes",
        "reserve_bytes",
        "segments",
        "stored_bytes",
        "unique_bytes",
    ];
    assert_eq!(keys(&stats), names);
    assert_eq!(
        (&stats["backups"], &stats["backupsets"], &stats["segments"]),
        (&3.into(), &2.into(), &4.into())
    );
    assert_eq!(stats["referenced_bytes"], 7 << 16);
    assert_eq!(stats["unique_bytes"], 4 << 16);
    assert!(world.run(&["stats"]).exits(0).text().contains("3 in 2 backupsets"));
}

#[test]
fn a_manifest_is_read_from_a_backup_and_from_a_file() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    let disk = noise(3, 9 * MIB);
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    let path = world.json(&["show", "web"])["manifest"].as_str().unwrap().to_owned();
    fs::copy(world.path(&path), world.path("manifest-file")).unwrap();
    for source in ["web", "web@0", "./manifest-file", "manifest-file"] {
        assert_eq!(
            world.run(&["manifest", "dump", source]).exits(0).text(),
            hash_list(&disk, 4 * MIB),
            "{source}"
        );
        assert_eq!(world.json(&["manifest", "info", source])["present_segments"], 3, "{source}");
    }
    assert!(world.run(&["manifest", "info", "web"]).exits(0).text().contains("3 present in 1 runs"));
    let dump = world.json(&["manifest", "dump", "web"]);
    assert_eq!(keys(&dump["segments"][0]), ["base", "hash", "incremental", "segment"]);
    world.write("junk", b"no manifest");
    world.run(&["manifest", "dump", "./junk"]).exits(2).says("not an Ekko manifest");
    world.run(&["manifest", "dump", "./gone"]).exits(1).says("gone");
    let mut bytes = world.read("manifest-file");
    bytes[200] ^= 1;
    world.write("manifest-file", &bytes);
    world.run(&["manifest", "dump", "./manifest-file"]).exits(1).says("damaged");
}

#[test]
fn reading_needs_neither_the_index_nor_the_lock() {
    let world = World::new();
    world.init_small();
    let disk = noise(4, 3 << 16);
    world.write("web", &disk);
    world.run(&["backup", "web"]).exits(0);
    fs::remove_dir_all(world.path("R/index")).unwrap();
    let lock = fs::File::options().write(true).open(world.path("R/lock")).unwrap();
    lock.lock().unwrap();
    world.run(&["list"]).exits(0);
    world.run(&["show", "web"]).exits(0);
    world.run(&["stats"]).exits(0);
    world.run(&["manifest", "info", "web"]).exits(0);
    assert_eq!(world.run(&["restore", "web", "-"]).exits(0).stdout, disk);
    world.run(&["backup", "web"]).exits(11).says("in use by process");
    assert!(!world.path("R/index").exists());
}

#[test]
fn a_busy_repository_is_waited_for_if_that_is_asked() {
    let world = World::new();
    world.init_small();
    world.write("web", &noise(5, 1 << 16));
    let mut lock = fs::File::create(world.path("R/lock")).unwrap();
    lock.lock().unwrap();
    writeln!(lock, "4711").unwrap();
    let busy = world.run(&["--json", "backup", "web"]).exits(11).json();
    assert_eq!(busy["error"]["kind"], "busy");
    assert!(busy["error"]["message"].as_str().unwrap().contains("process 4711"));
    let mut command = world.command(&["-v", "-v", "--wait", "60s", "backup", "web"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(lock);
    crate::harness::ran(child.wait_with_output().unwrap()).exits(0);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let world = World::new();
    world.init_small();
    world.write("web", &noise(6, 200 << 16));
    world.run(&["backup", "web"]).exits(0);
    // It is one of a restore: "a_stream_that_is_not_taken_to_its_end_is_a_failure".
    for arguments in [&["manifest", "dump", "web"][..], &["list"]] {
        let mut child =
            world.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = Vec::new();
        BufReader::with_capacity(64, child.stdout.take().unwrap()).read_until(b'\n', &mut line).unwrap();
        let ended = crate::harness::ran(child.wait_with_output().unwrap()).exits(0);
        assert_eq!(ended.stderr, "", "{arguments:?}");
    }
}

#[test]
fn what_a_newer_release_wrote_is_refused_by_its_format() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    world.write("web", &noise(7, 4096));
    world.run(&["backup", "web"]).exits(0);
    let settings = fs::read_to_string(world.path("R/ekko.toml")).unwrap();
    world.write("R/ekko.toml", settings.replace("format = 1", "format = 2\nnew_thing = true").as_bytes());
    for arguments in [&["list"][..], &["backup", "web"], &["restore", "web", "out"]] {
        world.run(arguments).exits(1).says("has format 2").says("use a newer ekko");
    }
    world.write("R/ekko.toml", settings.as_bytes());
    world.run(&["list"]).exits(0);
}

#[test]
fn a_damaged_set_is_a_problem_and_the_others_are_listed() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    world.write("web", &noise(8, 4096));
    world.write("db", &noise(9, 4096));
    world.run(&["backup", "web", "db"]).exits(0);
    let set = world.json(&["list", "web"])["backups"][0]["backupset"].as_str().unwrap().to_owned();
    let path = format!("R/manifests/{set}/set.toml");
    let text = fs::read_to_string(world.path(&path)).unwrap();
    world.write(&path, text.replace("size_of_disk = 4096", "size_of_disk = 4097").as_bytes());
    let list = world.run(&["--json", "list"]).exits(3).says("set.toml is damaged");
    assert_eq!(list.json()["backups"].as_array().unwrap().len(), 1);
    world.run(&["backup", "web"]).exits(1).says("set.toml is damaged");
    assert_eq!(world.run(&["restore", "db", "-"]).exits(0).stdout, noise(9, 4096));
}

#[test]
fn a_list_is_chosen_by_names_patterns_tags_and_time() {
    let world = World::new();
    world.init_small();
    for name in ["web", "web-2", "db"] {
        world.write(name, &noise(1, 1 << 16));
        world.run(&["backup", name, "--tag", "first"]).exits(0);
        world.run(&["backup", name]).exits(0);
    }
    let names = |arguments: &[&str]| {
        let list = world.json(&[&["list"], arguments].concat());
        let rows = list["backups"].as_array().unwrap().clone();
        rows.iter().map(|row| row["backup"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&["web*"]), "web@0 web@1 web-2@0 web-2@1");
    assert_eq!(names(&["db", "web", "--latest"]), "db@1 web@1");
    assert_eq!(names(&["--tag", "first", "web-?"]), "web-2@0");
    assert_eq!(names(&["--latest"]), "db@1 web@1 web-2@1");
    assert_eq!(names(&["--since", "1d", "--latest", "db"]), "db@1");
    assert_eq!(names(&["--since", "2999-01-01"]), "");
    world.run(&["list", "x*"]).exits(1).says("there is no backup of x*");
    world.run(&["list", "--since", "then"]).exits(2);
    world.run(&["protect", "db@0"]).exits(0);
    let text = world.run(&["list", "--utc", "db"]).exits(0).text();
    let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0], ["BACKUP", "AGE", "TIME", "SIZE", "USED", "NEW", "TAGS", "MARKS"]);
    assert!(lines[1].contains(&"first") && lines[1].contains(&"protected"), "{text}");
    assert!(lines[1].iter().any(|word| word.ends_with('Z')), "{text}");
    let empty = World::new();
    empty.init_small();
    assert_eq!(empty.run(&["list"]).exits(0).text(), "no backups\n");
}

#[test]
fn show_says_where_a_backup_came_from_and_what_reading_it_took() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 100_000));
    world.run(&["backup", "web=disk"]).exits(0);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let shown = world.json(&["show", "web"]);
    assert_eq!((&shown["source"], &shown["host"]), (&"disk".into(), &host.trim().into()), "{shown}");
    assert_eq!((&shown["read_bytes"], &shown["new_bytes"]), (&100_000.into(), &100_000.into()), "{shown}");
    assert!(
        shown["duration_seconds"].as_f64().unwrap() >= 0.0 && shown["attributes"].get("source").is_none()
    );
    let text = world.run(&["show", "web"]).exits(0).text();
    for key in ["source", "host", "duration", "read"] {
        assert!(text.lines().any(|line| line.trim_start().starts_with(key)), "{key}: {text}");
    }
    // An unchanged disk is read again and adds nothing.
    world.run(&["backup", "web=disk"]).exits(0);
    let shown = world.json(&["show", "web"]);
    assert_eq!((&shown["read_bytes"], &shown["new_bytes"]), (&100_000.into(), &0.into()), "{shown}");
}

#[test]
fn a_disk_of_which_all_backups_are_deleted_is_known() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 100_000));
    world.run(&["backup", "web=disk", "web2=disk"]).exits(0);
    world.run(&["delete", "web@all"]).exits(0);
    for arguments in
        [&["list", "web"][..], &["show", "web"], &["restore", "web", "out"], &["verify", "web", "disk"]]
    {
        world
            .run(arguments)
            .exits(1)
            .says("all backups of web are deleted; \"ekko list --deleted web\" shows them, and \"ekko undelete web@all\"");
    }
    world.run(&["gc", "--now"]).exits(0);
    world.run(&["show", "web"]).exits(1).says("there is no backup of web in R");
}

#[test]
fn stats_by_name_say_what_each_name_adds_and_what_only_it_needs() {
    let world = World::new();
    world.init_small();
    let (shared, own) = (noise(1, 2 << 16), noise(2, 1 << 16));
    world.write("web", &[&shared[..], &own].concat());
    world.write("db", &shared);
    world.run(&["backup", "--compression", "none", "web"]).exits(0);
    world.run(&["backup", "--compression", "none", "db"]).exits(0);
    world.run(&["backup", "--compression", "none", "db"]).exits(0);
    let stats = world.json(&["stats"]);
    let of = |name: &str, key: &str| {
        let rows = stats["names"].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap()[key].as_u64().unwrap()
    };
    assert_eq!((of("web", "backups"), of("db", "backups")), (1, 2));
    assert_eq!((of("web", "used_bytes"), of("db", "size_of_disk")), (3 << 16, 2 << 16));
    assert_eq!((of("web", "referenced_bytes"), of("db", "referenced_bytes")), (3 << 16, 4 << 16));
    assert!(of("web", "added_bytes") >= 3 << 16 && of("db", "added_bytes") == 0);
    let exclusive = of("web", "exclusive_bytes");
    assert!((1 << 16..2 << 16).contains(&exclusive) && of("db", "exclusive_bytes") == 0, "{stats}");
    assert_eq!(world.json(&["stats", "d*"])["names"].as_array().unwrap().len(), 1);
    let text = world.run(&["stats", "--by-name"]).exits(0).text();
    assert!(text.contains("EXCLUSIVE") && text.lines().count() == 4, "{text}");
    assert!(!world.run(&["stats"]).exits(0).text().contains("EXCLUSIVE"));
    world.run(&["stats", "wbe"]).exits(1).says("no disk named \"wbe\" (did you mean \"web\"?)");
    // Deleting all backups of a name frees what only it needs.
    let freed = world.json(&["delete", "web@all", "--gc"])["gc"]["freed_bytes"].as_u64().unwrap();
    assert!((exclusive..exclusive + 4096).contains(&freed), "{freed} {exclusive}");
    assert_eq!(
        world.json(&["stats"])["names"][0]["exclusive_bytes"].as_u64().unwrap(),
        of("web", "added_bytes") - exclusive
    );
}
