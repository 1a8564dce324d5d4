//! Few open files, few threads, sources of odd names.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::harness::{World, noise, ran};

/// A user that runs nothing else.
const NOBODY: u32 = 65_534;

#[test]
fn more_sources_than_open_files_are_backed_up() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 4096));
    let sources: Vec<_> = (0..120).map(|number| format!("n{number}=disk")).collect();
    let ekko = env!("CARGO_BIN_EXE_ekko");
    let script = format!("ulimit -n 64; exec {ekko} -r R backup {}", sources.join(" "));
    let mut shell = Command::new("sh");
    ran(shell.args(["-c", &script]).current_dir(world.path("")).output().unwrap()).exits(0);
    assert_eq!(world.json(&["list"])["backups"].as_array().unwrap().len(), 120);
    // The disks of a machine are open at one moment.
    let sources: Vec<_> = (0..120).map(|number| format!("m/d{number}=disk")).collect();
    let script = format!("ulimit -n 64; exec {ekko} -r R backup --machine m {}", sources.join(" "));
    let mut shell = Command::new("sh");
    let ended = ran(shell.args(["-c", &script]).current_dir(world.path("")).output().unwrap()).exits(1);
    ended.says(
        "its 120 disks are read at one moment and need up to 424 open files, and this process may have 64",
    );
    // A soft limit is raised.
    let script = script.replace("ulimit -n 64", "ulimit -S -n 64");
    let mut shell = Command::new("sh");
    ran(shell.args(["-c", &script]).current_dir(world.path("")).output().unwrap()).exits(0);
}

#[test]
fn too_little_memory_is_told_before_anything_is_done() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 4096));
    let ekko = env!("CARGO_BIN_EXE_ekko");
    for (kib, code) in [(200_000, 1), (4_000_000, 0)] {
        let script = format!("ulimit -v {kib}; exec {ekko} -r R backup --jobs 4 disk");
        let mut shell = Command::new("sh");
        let ended =
            ran(shell.args(["-c", &script]).current_dir(world.path("")).output().unwrap()).exits(code);
        assert_eq!(
            ended.stderr.contains("cannot back up: 4 threads need about"),
            code == 1,
            "{}",
            ended.stderr
        );
        world.run(&["status"]).exits(3 * code);
    }
}

#[test]
fn a_source_whose_path_is_not_utf_8_is_backed_up_under_a_name() {
    let world = World::new();
    world.init_small();
    let path = OsStr::from_bytes(b"bad\xff.raw");
    fs::write(world.path("").join(path), noise(1, 4096)).unwrap();
    let named = [b"web=".as_slice(), path.as_bytes()].concat();
    let mut command = world.command(&["--json", "backup"]);
    ran(command.arg(OsStr::from_bytes(&named)).output().unwrap()).exits(0);
    assert_eq!(world.run(&["restore", "web", "-"]).exits(0).stdout, noise(1, 4096));
    let mut command = world.command(&["backup"]);
    ran(command.arg(path).output().unwrap()).exits(2).says("the file name is not UTF-8; use NAME=");
}

#[test]
fn a_space_instead_of_an_equals_sign_and_a_missing_source_back_nothing_up() {
    let world = World::new();
    world.init_small();
    fs::create_dir(world.path("disks")).unwrap();
    world.write("disks/web.raw", &noise(1, 4096));
    world.run(&["backup", "web", "disks/web.raw"]).exits(2).says("did you mean web=disks/web.raw?");
    world
        .run(&["backup", "web", "disks/web.raw", "db", "disks"])
        .exits(2)
        .says("did you mean web=disks/web.raw?");
    for source in ["web=", "="] {
        world.run(&["backup", source]).exits(2).says("the source is missing");
    }
    assert!(world.json(&["list"])["backups"].as_array().unwrap().is_empty());
    // A disk that is missing beside others keeps none of them from being backed up.
    world.run(&["backup", "web", "db=disks/web.raw"]).exits(3).says("web was not backed up");
    world.run(&["backup", "web", "disks/web.raw", "disks/web.raw/db"]).exits(3).says("web was not backed up");
}

/// A process may have no thread but its first. Whatever needs one says so in a line; whatever does not is done.
#[test]
fn no_command_panics_for_lack_of_threads() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 40 << 16));
    world.run(&["backup", "web=disk"]).exits(0);
    world.write("other", &noise(2, 40 << 16));
    let everybody = |path: &str| {
        let all = Command::new("chmod").args(["-R", "a+rwX"]).arg(world.path(path)).status();
        assert!(all.unwrap().success());
    };
    everybody("");
    fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    let commands = [
        "backup web=other",
        "verify web other",
        "check --read-data",
        "restore web out",
        "diff web web",
        "gc",
        "benchmark other",
        "rebuild",
        "list",
    ];
    for command in commands {
        let mut shell = Command::new("prlimit");
        shell.args(["--nproc=1:1", env!("CARGO_BIN_EXE_ekko"), "-r", "R"]).args(command.split(' '));
        shell.current_dir(world.path(""));
        // Root may have as many threads as it likes.
        if rustix::process::getuid().is_root() {
            shell.uid(NOBODY).gid(NOBODY);
        }
        let ended = ran(shell.output().unwrap());
        assert!([0, 1, 3].contains(&ended.code), "{command}: {} {}", ended.code, ended.stderr);
        if command == "rebuild" {
            assert!(ended.stderr.contains("cannot start threads: "), "{}", ended.stderr);
        }
        assert!(!ended.stderr.contains("panicked"), "{command}: {}", ended.stderr);
    }
    world.run(&["check"]).exits(0);
}
