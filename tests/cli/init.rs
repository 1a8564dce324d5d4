//! Creating repositories: once, completely, and never by mistake.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::harness::{World, noise, ran};

/// The names in the world's folder, hidden ones too.
fn names(world: &World) -> Vec<String> {
    let entries = fs::read_dir(world.path(".")).unwrap();
    let mut names: Vec<_> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn no_command_but_init_creates_a_repository() {
    let world = World::new();
    world.write("web", &noise(1, 1 << 16));
    for command in [
        &["backup", "web"][..],
        &["backup", "--machine", "m", "m/web=web", "--before", "true"],
        &["manifest", "import", "web", "--segments", ".", "--name", "web"],
        &["list"],
        &["gc"],
        &["serve"],
        &["rebuild"],
        &["token", "create", "--project", "blue", "--role", "backup"],
    ] {
        let code = world.run(command).code;
        assert!([2, 10].contains(&code), "{command:?}: {code}");
        assert_eq!(names(&world), ["web"], "{command:?}");
    }
    world.run(&["backup", "web"]).exits(10).says("ekko init");
}

#[test]
fn a_mistyped_address_never_becomes_a_folder() {
    let world = World::new();
    world.write("web", &noise(1, 1 << 16));
    let at = |address: &str, command: &[&str]| {
        let mut ekko = Command::new(env!("CARGO_BIN_EXE_ekko"));
        ran(ekko.args(["-r", address]).args(command).current_dir(world.path(".")).output().unwrap())
    };
    for (address, right) in [
        ("s3:bucket", "https://HOST:6800"),
        ("backup.example.org:6800", "https://backup.example.org:6800"),
        ("https:backup.example.org", "https://backup.example.org"),
        ("root@backup:/srv/store", "https://backup:6800"),
    ] {
        for command in [&["init"][..], &["backup", "web"], &["list"]] {
            at(address, command).exits(2).says(right);
        }
    }
    assert_eq!(names(&world), ["web"]);
    at("./s3:bucket", &["init"]).exits(0);
    at("./s3:bucket", &["backup", "web"]).exits(0);
}

#[test]
fn of_several_calls_of_init_at_once_exactly_one_creates_the_repository() {
    for folder_exists in [false, true] {
        let world = World::new();
        if folder_exists {
            fs::create_dir(world.path("R")).unwrap();
        }
        let started: Vec<_> = (0..6)
            .map(|_| {
                let mut command = world.command(&["--json", "init"]);
                command
                    .stdout(std::process::Stdio::piped())
                    .stderr(std::process::Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let ended: Vec<_> = started.into_iter().map(|it| ran(it.wait_with_output().unwrap())).collect();
        let (created, others): (Vec<_>, Vec<_>) = ended.into_iter().partition(|ran| ran.code == 0);
        assert_eq!((created.len(), others.len()), (1, 5));
        for other in others {
            assert!(other.exits(2).text().contains("already"));
        }
        assert_eq!(names(&world), ["R"]);
        let id = created[0].json()["id"].as_str().unwrap().to_owned();
        assert!(fs::read_to_string(world.path("R/ekko.toml")).unwrap().contains(&id));
        world.write("web", &noise(1, 1 << 16));
        world.run(&["backup", "web"]).exits(0);
    }
}

#[test]
fn a_folder_that_is_missing_above_the_repository_is_named() {
    let world = World::new();
    let mut ekko = Command::new(env!("CARGO_BIN_EXE_ekko"));
    let output = ekko.args(["-r", "none/store", "init"]).current_dir(world.path(".")).output().unwrap();
    let said = ran(output).exits(1).says("cannot list none: No such file").stderr;
    assert!(!said.contains(".ekko-init") && !said.contains("WARN"), "{said}");
}

#[test]
fn an_interrupted_init_is_reported_and_completed() {
    let world = World::new();
    world.write("web", &noise(1, 1 << 16));
    fs::create_dir_all(world.path("R/packs")).unwrap();
    world.write("R/reserve", b"");
    for command in [&["backup", "web"][..], &["list"], &["check"]] {
        world.run(command).exits(10).says("run \"ekko init\" again");
    }
    world.run(&["init"]).exits(0);
    world.run(&["backup", "web"]).exits(0);
}

#[test]
fn what_a_killed_init_left_is_removed_by_the_next_one_beside_it() {
    let world = World::new();
    let left = |number: u32| format!(".ekko-init-{number:032x}");
    // The first one was killed before the rename, the second one earlier.
    for number in 0..6 {
        world.run(&["init"]).exits(0);
        fs::rename(world.path("R"), world.path(&left(number))).unwrap();
    }
    fs::remove_file(world.path(&left(1)).join("ekko.toml")).unwrap();
    // One runs, one has only just begun, and one holds something that no `init` makes.
    let lock = fs::File::options().write(true).open(world.path(&left(2)).join("lock")).unwrap();
    lock.lock().unwrap();
    fs::write(world.path(&left(4)).join("mine"), b"mine").unwrap();
    fs::write(world.path(&left(5)).join("packs/0000000000000001.pack"), b"a pack").unwrap();
    fs::create_dir(world.path(".ekko-init-mine")).unwrap();
    let kept: Vec<_> = [2, 3, 4, 5].into_iter().map(left).collect();
    let old = SystemTime::now() - Duration::from_hours(2);
    for number in [0, 1, 2, 4, 5] {
        fs::File::open(world.path(&left(number))).unwrap().set_modified(old).unwrap();
    }
    fs::File::open(world.path(".ekko-init-mine")).unwrap().set_modified(old).unwrap();
    let before = |number: u32| {
        let entries = fs::read_dir(world.path(&left(number))).unwrap();
        entries.count()
    };
    let counts = [4, 5].map(before);
    world.run(&["init"]).exits(0);
    let mut expected = kept.clone();
    expected.extend([".ekko-init-mine".to_owned(), "R".to_owned()]);
    assert_eq!(names(&world), expected);
    assert_eq!([4, 5].map(before), counts, "nothing of a folder is removed that is not all of an init");
}

#[test]
fn a_repository_with_data_that_lost_its_settings_is_not_created_again() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    world.write("web", &noise(1, 1 << 16));
    world.run(&["backup", "web"]).exits(0);
    fs::rename(world.path("R/ekko.toml"), world.path("ekko.toml")).unwrap();
    world.run(&["list"]).exits(10).says("something else");
    world.run(&["init"]).exits(2).says("something else");
    fs::rename(world.path("ekko.toml"), world.path("R/ekko.toml")).unwrap();
    assert_eq!(world.run(&["restore", "web", "-"]).exits(0).stdout, noise(1, 1 << 16));
}

#[test]
fn init_refuses_a_path_below_a_mount_point_where_nothing_is_mounted() {
    let unshare = |script: &str, world: &World| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-euc", script]).current_dir(world.path("."));
        command.env("EKKO", env!("CARGO_BIN_EXE_ekko")).output()
    };
    let world = World::new();
    fs::create_dir(world.path("disk")).unwrap();
    let point = world.path("disk").canonicalize().unwrap();
    world.write("fstab", format!("/dev/sdz1 {} ext4 defaults 0 2\n", point.display()).as_bytes());
    let prepare = "mount --bind fstab /etc/fstab";
    if !unshare(prepare, &world).is_ok_and(|output| output.status.success()) {
        // No namespaces here, or no /etc/fstab: the unit tests of `cli/mounts.rs` cover the rules.
        return;
    }
    let run = |script: &str| ran(unshare(&format!("{prepare}; {script}"), &world).unwrap());
    let refused = run("exec \"$EKKO\" -r disk/store init").exits(2);
    assert!(refused.stderr.contains("run \"mount"), "{}", refused.stderr);
    assert_eq!(fs::read_dir(&point).unwrap().count(), 0);
    world.write("web", b"a disk");
    run("exec \"$EKKO\" -r disk/store backup web").exits(10).says("nothing is mounted there");
    run("mount -t tmpfs none disk; \"$EKKO\" -r disk/store init; \"$EKKO\" -r disk/store backup web")
        .exits(0);
}

#[test]
fn no_repository_is_created_inside_another_one() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    std::os::unix::fs::symlink(world.path("R/packs"), world.path("link")).unwrap();
    fs::create_dir(world.path("R/packs/empty")).unwrap();
    for path in ["R/new", "R/packs/new", "link/new", "R/packs/empty", "R/../R/new"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
        command.args(["-r", path, "init"]).current_dir(world.path(".")).env_remove("EKKO_REPOSITORY");
        ran(command.output().unwrap()).exits(2).says("lies in the repository").says("choose a path outside");
    }
    fs::remove_dir(world.path("R/packs/empty")).unwrap();
    world.run(&["check"]).exits(0);
}

#[test]
fn a_mistake_in_the_defaults_stops_changes_and_no_restore() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    world.write("web", &noise(1, 1 << 16));
    world.run(&["backup", "web"]).exits(0);
    let settings = fs::read_to_string(world.path("R/ekko.toml")).unwrap();
    for (mistake, says) in
        [("keep_delted = \"2d\"", "keep_delted"), ("keep_deleted = \"two\"", "keep_deleted")]
    {
        fs::write(world.path("R/ekko.toml"), format!("{settings}{mistake}\n")).unwrap();
        for change in [&["backup", "web"][..], &["delete", "--yes", "web@0"], &["gc"]] {
            world.run(change).exits(2).says(says);
        }
        let restored = world.run(&["restore", "web", "-"]).exits(0).says("warning:").says(says);
        assert_eq!(restored.stdout, noise(1, 1 << 16));
        for read in [&["list"][..], &["check"]] {
            world.run(read).exits(0).says(says);
        }
    }
    // Outside of the defaults it may be what a newer release wrote.
    fs::write(world.path("R/ekko.toml"), format!("secret = true\n{settings}")).unwrap();
    world.run(&["restore", "web", "-"]).exits(2).says("secret");
    fs::write(world.path("R/ekko.toml"), settings).unwrap();
    world.run(&["backup", "web"]).exits(0);
}
