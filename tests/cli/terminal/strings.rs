//! Arguments, names of files, variables, and what other programs on this machine say.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{FORGED, Said, evil_name};
use crate::harness::{World, noise};

#[test]
fn no_argument_or_name_of_a_file_reaches_a_terminal_as_it_is() {
    let world = World::new();
    world.init_small();
    let disk = noise(1, 70_000);
    world.write("disk", &disk);
    world.run(&["backup", "web=disk"]).exits(0);
    let mut said = Said::default();
    let there = evil_name("there");
    fs::write(world.path(&there), &disk).unwrap();
    let lacks = evil_name("lacks");
    let argument = evil_name("argument");
    for arguments in [
        &["backup", &format!("web={there}")][..],
        &["backup", &format!("web={lacks}")],
        &["backup", &there],
        &["backup", &format!("{argument}=disk")],
        &["backup", "--tag", &argument, "web=disk"],
        &["backup", "--format", &argument, "web=disk"],
        &["backup", "--cbt", &lacks, "web=disk"],
        &["backup", "--machine", &argument, "web=disk"],
        &["backup", "--machine", "m", "--attach", &there, "m/a=disk"],
        &["backup", "--before", &format!("{argument}; exit 1"), "web=disk"],
        &["backup", "--bitmap", &argument, "web=disk"],
        &["backup", &format!("web=nbd://127.0.0.1:1/{argument}")],
        &["restore", "web@0", &there],
        &["restore", "web@0", &format!("{lacks}/below")],
        &["restore", &argument, "out"],
        &["verify", "web@0", &lacks],
        &["verify", "web@0", &there],
        &["show", &argument],
        &["list", &argument],
        &["delete", &argument],
        &["rename", &argument, "x"],
        &["forget", "--keep-last", &argument],
        &["diff", &there, "web@0"],
        &["manifest", "info", &format!("./{there}")],
        &["manifest", "import", &there],
        &["manifest", "export", "web@0", &format!("{lacks}/x"), "--format", "sqlite"],
        &["token", "create", "--project", &argument, "--role", "backup"],
        &["token", "create", "--project", "blue", "--role", "backup", "--note", &argument],
        &["token", "revoke", &argument],
        &["serve", "--config", &there],
        &["serve", "--listen", &argument],
        &["completions", &argument],
        &["man", &format!("{there}/x")],
        &["benchmark", &lacks],
        &[&argument],
        &["--wait", &argument, "list"],
    ] {
        said.hear_both(&world, arguments);
    }
    said.hear_of(&world, &lacks, &["list"]);
    said.hear_of(&world, &lacks, &["backup", &lacks]);
    said.hear_of(&world, &format!("http://{argument}/"), &["list"]);
    said.hear_command(world.command(&["--help"]).env("EKKO_REPOSITORY", evil_name("variable")));
    said.hear_command(world.command(&["list", "--nothing"]).env("EKKO_REPOSITORY", evil_name("variable")));
    let mut bare = Command::new(env!("CARGO_BIN_EXE_ekko"));
    said.hear_command(bare.arg("list").env("EKKO_REPOSITORY", evil_name("variable")));
    for label in ["there", "lacks", "argument", "variable"] {
        said.assert_held(label);
    }
}

#[test]
fn what_commands_before_and_after_say_is_passed_on_without_what_a_terminal_obeys() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 70_000));
    fs::write(world.path("words"), [evil_name("words\0").as_bytes(), b"\xff\x9b2J no end"].concat()).unwrap();
    let mut said = Said::default();
    // Its lines are its own, so none begins with a forged word here.
    let show = format!("sed s/{FORGED}/x/ words; echo to-stderr >&2; printf 'no \\033[2J end'");
    said.hear_both(&world, &["backup", "--before", &show, "--after", &show, "web=disk"]);
    said.assert_held("words");
    for text in ["to-stderr\n", "no \\u{1b}[2J end\n", "\\u{9f}"] {
        assert!(said.0.contains(text), "{text:?} is not in {}", said.0);
    }
    // All that a command wrote comes, in order, before what follows; and what it left running keeps nobody waiting.
    let lines =
        "i=0; while [ $i -lt 3000 ]; do echo line-$i; i=$((i+1)); done; echo; sleep 600 & echo $! > pid";
    let begun = Instant::now();
    let ran = world.run(&["backup", "--before", lines, "--after", "echo last", "web=disk"]).exits(0);
    let expected = (0..3000).map(|number| format!("line-{number}\n")).collect::<Vec<_>>().concat();
    assert_eq!(ran.stderr, format!("{expected}\nlast\n"));
    assert!(begun.elapsed() < Duration::from_mins(1), "it waits for what the command has left running");
    let left = String::from_utf8(world.read("pid")).unwrap();
    assert!(Command::new("kill").arg(left.trim()).status().unwrap().success());
    let failed = world.run(&["backup", "--before", "printf 1; exit 7", "web=disk"]).exits(1);
    assert!(failed.stderr.starts_with("1\nekko: nothing was backed up") && failed.stderr.contains('7'));
}

#[test]
fn what_a_qemu_nbd_says_reaches_no_terminal_as_it_is() {
    let world = World::new();
    world.init_small();
    world.write("disk.vmdk", &noise(1, 70_000));
    fs::create_dir(world.path("bin")).unwrap();
    world.write("words", evil_name("emulator").replace('\n', " ").as_bytes());
    let words = world.path("words");
    world.write("bin/qemu-nbd", format!("#!/bin/sh\ncat {} >&2\nexit 1\n", words.display()).as_bytes());
    fs::set_permissions(world.path("bin/qemu-nbd"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", world.path("bin").display(), std::env::var("PATH").unwrap());
    let mut said = Said::default();
    for form in ["-vv", "--json"] {
        let arguments = [form, "backup", "--format", "vmdk", "v=disk.vmdk"];
        said.hear_command(world.command(&arguments).env("PATH", &path));
    }
    said.assert_held("emulator");
}

/// A process that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_name_of_a_process_that_uses_a_disk_reaches_no_terminal_as_it_is() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 70_000));
    let name = world.path("us\u{1b}[2J\r\u{9b}x");
    std::os::unix::fs::symlink("/bin/sleep", &name).unwrap();
    // Opened by the process itself: what this process has open, one that another test starts has for a moment as well.
    let mut process = Command::new("sh");
    process.args(["-c", "exec 2>/dev/null >>disk; exec \"$0\" 600"]).arg(&name);
    let process = process.current_dir(world.path(".")).stdin(Stdio::null()).stdout(Stdio::null());
    let running = Running(process.spawn().unwrap());
    let name = format!("/proc/{}/comm", running.0.id());
    while !fs::read(&name).unwrap().starts_with(b"us\x1b") {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut said = Said::default();
    said.hear_both(&world, &["backup", "web=disk"]);
    said.hear_both(&world, &["show", "web@0"]);
    drop(running);
    said.assert_held("(us\\u{1b}[2J");
}
