//! Signals: a backup with a command that is owed ends in order at the first, everything else at once.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{World, noise};
use crate::machine::{BACKUP, backups, machine, names};

/// How many manifests are being written.
fn backups_in_progress(world: &World) -> usize {
    let sets = fs::read_dir(world.path("R/manifests")).unwrap().map(|it| it.unwrap().path());
    // `0.ID.tmp`.
    let is_manifest = |name: &&String| {
        let number = name.strip_suffix(".tmp").and_then(|it| it.split_once('.'));
        number.is_some_and(|(number, _)| number.parse::<u32>().is_ok())
    };
    sets.filter(|path| path.is_dir()).map(|folder| names(&folder).iter().filter(is_manifest).count()).sum()
}

/// Begins a backup that takes minutes, with a command before and the one after that is given, and waits until it reads.
fn begun(world: &World, after: &str) -> std::process::Child {
    world.write("a", &noise(4, 32 << 20));
    let slow = ["--limit-rate", "1MiB", "--before", "touch begun", "--after", after];
    let mut command = world.command(&[&BACKUP[..], &slow].concat());
    let told = fs::File::create(world.path("told")).unwrap();
    let mut child = command.stdout(Stdio::null()).stderr(told).spawn().unwrap();
    until(|| {
        assert_eq!(child.try_wait().unwrap(), None);
        world.path("begun").exists() && backups_in_progress(world) > 0
    });
    child
}

/// Waits for something; the limit shows that it does not hang.
fn until(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_mins(1));
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn send(signal: &str, child: &std::process::Child) {
    let kill = format!("kill -{signal} {}", child.id());
    assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

#[test]
fn a_signal_ends_a_backup_and_the_command_after_runs() {
    for signal in ["INT", "TERM", "HUP"] {
        let world = machine();
        let mut child = begun(&world, "echo $EKKO_RESULT > result");
        // One that is passed on may come twice.
        send(signal, &child);
        send(signal, &child);
        assert_eq!(child.wait().unwrap().code(), Some(1), "{signal}");
        let told = String::from_utf8(world.read("told")).unwrap();
        assert!(told.contains("stopped before it was done"), "{told}");
        assert_eq!(world.read("result"), b"failed\n", "{signal}");
        assert_eq!(backups(&world), [""; 0]);
        world.run(&BACKUP).exits(0);
    }
}

#[test]
fn a_second_signal_ends_a_backup_at_once() {
    for (first, signal, number) in [("INT", "INT", 2), ("HUP", "TERM", 15)] {
        let world = machine();
        // It hangs, as one may that thaws a guest.
        let wait = "for i in $(seq 600); do test -e go-on && break; sleep 0.1; done";
        let mut child = begun(&world, &format!("touch after; {wait}; touch undone"));
        send(first, &child);
        until(|| world.path("after").exists());
        until(|| String::from_utf8_lossy(&world.read("told")).contains("another signal ends it at once"));
        send("HUP", &child);
        send(signal, &child);
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(number), "{status}");
        // What has begun goes on by itself, and nothing is locked.
        assert!(!world.path("undone").exists());
        world.run(&BACKUP).exits(0);
        world.write("go-on", b"");
        until(|| world.path("undone").exists());
    }
}

#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    let script = "trap '' HUP; exec \"$0\" -r R restore --limit-rate 256KiB web/vda out";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_ekko")]).current_dir(world.path(""));
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    until(|| world.path("out.ekko-partial").exists());
    send("HUP", &child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(world.read("out") == world.read("a"));
}

/// Without a command that is owed nothing keeps the first signal from ending Ekko.
#[test]
fn other_commands_end_at_the_first_signal() {
    let world = machine();
    world.write("a", &noise(4, 32 << 20));
    let slow = ["--limit-rate", "1MiB"];
    for (signal, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("PIPE", 13)] {
        let mut command = world.command(&[&BACKUP[..], &slow].concat());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until(|| backups_in_progress(&world) > 0);
        send(signal, &child);
        let output = child.wait_with_output().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(number));
        let said = String::from_utf8(output.stderr).unwrap();
        let meaning = "0 of 2 disks are backed up; the next backup uses the data that was stored already";
        // An earlier line may say that what the backup before has left is used.
        assert!(said.ends_with(&format!("ekko: stopped by SIG{signal}: {meaning}\n")), "{said}");
        for left in fs::read_dir(world.path("R/manifests")).unwrap().map(|it| it.unwrap().path()) {
            let _ = fs::remove_dir_all(left);
        }
    }
    world.run(&BACKUP).exits(0);
    let restore = ["restore", "--limit-rate", "1MiB", "web/vda", "out"];
    let mut child = world.command(&restore).spawn().unwrap();
    until(|| world.path("out.ekko-partial").exists());
    send("TERM", &child);
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15), "{status}");
    assert!(!world.path("out").exists() && !world.path("out.ekko-partial").exists());
    world.run(&["restore", "web/vda", "out"]).exits(0);
    assert!(world.read("out") == world.read("a"));
}
