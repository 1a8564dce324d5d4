//! Links, pipes and hard links where Ekko's files and folders belong.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::harness::{World, pipe};

const READERS: [&str; 2] = ["list", "restore"];
const WRITERS: [&str; 4] = ["check", "gc", "backup", "serve"];

/// Where something is in a repository.
type PathIn<'a> = &'a dyn Fn(&World) -> PathBuf;

/// Moves a file or folder of the repository outside and puts a link in its place.
fn moved_and_linked(world: &World, path: &std::path::Path) {
    let outside = world.at("outside").join(path.file_name().unwrap());
    fs::rename(path, &outside).unwrap();
    symlink(outside, path).unwrap();
}

fn all() -> Vec<&'static str> {
    [&READERS[..], &WRITERS[..]].concat()
}

#[test]
fn folders_that_are_links_are_refused_and_nothing_in_them_is_touched() {
    let cases: [(&str, Vec<&str>); 5] = [
        ("packs", vec!["restore", "check", "gc", "backup", "serve"]),
        ("manifests", all()),
        ("index", WRITERS.to_vec()),
        ("leases", vec!["gc"]),
        ("sessions", vec!["serve"]),
    ];
    for (name, refusing) in cases {
        let world = World::new();
        let path = world.store(name);
        let old = SystemTime::now() - Duration::from_hours(240);
        // Names that Ekko gives, and others.
        let lease = "6f0a4c6e-8d3c-4a53-9d9d-2f3b9a0c1d2e@0-6f0a4c6e-8d3c-4a53-9d9d-2f3b9a0c1d2f";
        for name in
            ["letter", "letter.tmp", "0000000000000099.pack.tmp", "together.toml.tmp", lease, &lease[..36]]
        {
            fs::write(path.join(name), "theirs").unwrap();
            File::options().write(true).open(path.join(name)).unwrap().set_modified(old).unwrap();
        }
        for year in ["2021", "2022"] {
            fs::create_dir(path.join(year)).unwrap();
            fs::write(path.join(year).join("photo"), "theirs").unwrap();
        }
        moved_and_linked(&world, &path);
        world.refuse(name, &refusing, name);
    }
}

#[test]
fn files_that_are_links_are_refused_and_not_written_through() {
    let cases: [(&str, Vec<&str>); 7] = [
        ("lock", WRITERS.to_vec()),
        ("reserve", vec!["backup"]),
        ("state", WRITERS.to_vec()),
        ("ekko.toml", [&all()[..], &["token"]].concat()),
        ("tokens.toml", vec!["token"]),
        ("packs/0000000000000001.pack", vec!["restore", "check", "gc", "backup", "serve"]),
        ("manifests/together.toml", vec!["list", "check", "backup"]),
    ];
    for (name, refusing) in cases {
        let world = World::new();
        let path = world.store(name);
        if !path.exists() || name == "lock" || name == "reserve" {
            fs::write(&path, "theirs\n").unwrap();
        }
        moved_and_linked(&world, &path);
        world.refuse(name, &refusing, path.file_name().unwrap().to_str().unwrap());
    }
}

#[test]
fn a_list_of_backups_and_a_manifest_that_are_links_are_refused() {
    for (file, refusing) in
        [("set.toml", vec!["list", "restore", "check", "backup"]), ("1", vec!["restore", "check"])]
    {
        let world = World::new();
        let path = world.set("web").join(file);
        moved_and_linked(&world, &path);
        world.refuse(file, &refusing, path.file_name().unwrap().to_str().unwrap());
    }
    let world = World::new();
    let set = world.set("web");
    moved_and_linked(&world, &set);
    world.refuse(
        "a set",
        &["list", "restore", "check", "backup"],
        set.file_name().unwrap().to_str().unwrap(),
    );
}

/// The folder of the index that is in use.
fn index(world: &World) -> PathBuf {
    fs::read_dir(world.store("index")).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn an_index_that_leads_elsewhere_is_not_handed_to_sled() {
    for name in ["", "db", "conf", "blobs"] {
        let world = World::new();
        let path = if name.is_empty() { index(&world) } else { index(&world).join(name) };
        moved_and_linked(&world, &path);
        world.refuse(&format!("index/{name}"), &[], "");
        // Another one is made; what leads elsewhere stays for its owner to look at.
        let said = world.run(&["check"]).text;
        assert!(said.contains("no problems were found"), "{said}");
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    }
}

#[test]
fn the_socket_of_somebody_else_is_not_spoken_to() {
    let world = World::new();
    let listener = UnixListener::bind(world.at("outside/docker.sock")).unwrap();
    listener.set_nonblocking(true).unwrap();
    symlink(world.at("outside/docker.sock"), world.store("ekko.sock")).unwrap();
    // A list and a restore read the repository themselves.
    world.refuse("ekko.sock", &WRITERS, "ekko.sock");
    assert!(listener.accept().is_err(), "nobody has connected");
}

#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let set = |world: &World| world.set("web");
    let cases: [(PathIn<'_>, Vec<&str>); 10] = [
        (&|world| set(world).join("set.toml"), vec!["list", "restore", "check", "backup"]),
        (&|world| set(world).join("1"), vec!["restore", "check"]),
        (&|world| world.pack(), vec!["restore", "check", "gc", "backup", "serve"]),
        (&|world| world.store("lock"), WRITERS.to_vec()),
        (&|world| world.store("state"), WRITERS.to_vec()),
        (&|world| world.store("ekko.toml"), all()),
        (&|world| world.store("reserve"), vec!["backup"]),
        (&|world| world.store("tokens.toml"), vec!["token"]),
        (&|world| index(world).join("db"), Vec::new()),
        (&|world| index(world).join("conf"), Vec::new()),
    ];
    for (path, refusing) in cases {
        let world = World::new();
        let path = path(&world);
        let _ = fs::remove_file(&path);
        pipe(&path);
        let name = path.file_name().unwrap().to_str().unwrap();
        world.refuse(&format!("a pipe as {name}"), &refusing, name);
    }
}

#[test]
fn pipes_among_leases_and_sessions_hold_nobody_up() {
    let world = World::new();
    let id = "6f0a4c6e-8d3c-4a53-9d9d-2f3b9a0c1d2e";
    pipe(&world.store("leases").join(format!("{id}@0-{id}")));
    pipe(&world.store("leases/letter"));
    pipe(&world.store("sessions").join(id));
    world.refuse("pipes", &["gc"], "leases");
}

#[test]
fn a_file_with_another_name_is_not_written_to() {
    for (name, refusing) in [
        ("lock", WRITERS.to_vec()),
        ("state", WRITERS.to_vec()),
        ("reserve", vec!["backup"]),
        // The deleted backup's segments cannot be given back.
        ("packs/0000000000000001.pack", vec!["gc"]),
    ] {
        let world = World::new();
        let outside = world.at("outside/file");
        if name == "reserve" {
            fs::write(&outside, "theirs").unwrap();
        } else {
            fs::copy(world.store(name), &outside).unwrap();
        }
        fs::remove_file(world.store(name)).unwrap();
        fs::hard_link(&outside, world.store(name)).unwrap();
        world.refuse(&format!("{name}, a hard link"), &refusing, "hard links");
    }
}
