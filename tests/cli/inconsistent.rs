//! Sources that change while they are read: the backup is marked, in every output, and the exit code is 3.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Ran, World, noise, ran};

const SEGMENT: usize = 64 << 10;

/// The segments of the disk: three pieces are read of it, one after the other.
const SEGMENTS: usize = 384;
/// Has the disk be read for about two seconds.
const SLOW: [&str; 2] = ["--limit-rate", "8MiB"];

fn until(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_mins(1));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Backs up and does something while the backup reads the file `disk`.
fn backup_while(world: &World, arguments: &[&str], change: impl FnOnce()) -> Ran {
    let disk = fs::canonicalize(world.path("disk")).unwrap();
    let mut command = world.command(arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let is_open = || {
        let open = fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| path == disk)
    };
    until(is_open);
    // The manifest is begun after the source was looked at for the first time.
    until(|| {
        let sets = fs::read_dir(world.path("R/manifests")).unwrap().flatten();
        let mut names = sets.flat_map(|set| fs::read_dir(set.path()).into_iter().flatten().flatten());
        names.any(|name| {
            name.file_name().to_string_lossy().ends_with(".tmp") && name.file_name() != "newborn.tmp"
        })
    });
    change();
    ran(child.wait_with_output().unwrap())
}

/// A process that has a file open for writing until this is dropped.
struct Holder(Child);

impl Holder {
    fn of(path: &std::path::Path) -> Self {
        let script = format!("exec 3<>'{}'; echo ready; read line", path.display());
        let mut sh = Command::new("sh");
        let mut child =
            sh.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn disk(world: &World) {
    world.init_small();
    world.write("disk", &noise(1, SEGMENTS * SEGMENT));
}

/// Expects the mark in every output of the newest backup of `web`.
fn is_marked(world: &World, why: &str) {
    let status = world.run(&["--json", "status"]).exits(3).json();
    let problem = status["names"][0]["problem"].as_str().unwrap();
    assert!(problem.starts_with("its newest backup is inconsistent: ") && problem.contains(why), "{problem}");
    let show = world.json(&["show", "web"]);
    assert!(show["inconsistent"].as_str().unwrap().contains(why), "{show}");
    assert!(show["attributes"]["inconsistent"].as_str().unwrap().contains(why), "{show}");
    let list = world.json(&["list"]);
    let row = list["backups"].as_array().unwrap().last().unwrap().clone();
    assert!(row["inconsistent"].as_str().unwrap().contains(why), "{row}");
    let restore = world.json(&["restore", "--force", "web", "restored"]);
    assert!(restore["inconsistent"].as_str().unwrap().contains(why), "{restore}");
    let text = world.run(&["list"]).exits(0).text();
    let line = format!("{} is inconsistent: it ", row["backup"].as_str().unwrap());
    assert!(text.contains(&line), "{text}");
    assert_eq!(world.run(&["show", "web"]).exits(0).text().matches(why).count(), 1);
}

#[test]
fn a_file_that_changes_while_it_is_read_makes_an_inconsistent_backup() {
    let world = World::new();
    disk(&world);
    let path = world.path("disk");
    let open = || fs::OpenOptions::new().write(true).open(&path).unwrap();
    let write = || open().write_all_at(b"changed", 5).unwrap();
    let grow = || open().set_len(((SEGMENTS + 1) * SEGMENT) as u64).unwrap();
    let touch = || fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let cases: [(&str, &dyn Fn()); 3] =
        [("written to", &write), ("grew from 25165824 to 25231360 bytes", &grow), ("was changed", &touch)];
    for (why, change) in cases {
        let backup = [&["-q", "--json", "backup", "web=disk"][..], &SLOW].concat();
        // Quiet hides no warning.
        let ended =
            backup_while(&world, &backup, change).exits(3).says("this backup of web is inconsistent: it ");
        assert!(ended.json()["backups"][0]["inconsistent"].as_str().unwrap().contains(why), "{why}");
        is_marked(&world, why);
        let ended = world.run(&["--json", "backup", "web=disk"]).exits(0).json();
        assert_eq!(ended["backups"][0].get("inconsistent"), None);
        assert_eq!(world.json(&["show", "web"]).get("inconsistent"), None);
        assert_eq!(world.json(&["restore", "--force", "web", "restored"]).get("inconsistent"), None);
    }
    let text = world.run(&["list"]).exits(0).text();
    assert_eq!(text.matches("is inconsistent").count(), cases.len(), "{text}");
}

#[test]
fn a_file_that_is_opened_for_writing_while_it_is_read_makes_an_inconsistent_backup() {
    let world = World::new();
    disk(&world);
    let mut holder = None;
    let backup = [&["-q", "backup", "web=disk"][..], &SLOW].concat();
    let open = || holder = Some(Holder::of(&world.path("disk")));
    backup_while(&world, &backup, open).exits(3).says("open for writing by process");
    is_marked(&world, "open for writing by process");
    // It was open before the backup began as well.
    let json = world.run(&["-q", "--json", "backup", "web=disk"]).exits(3).json();
    let done = &json["backups"][0];
    for key in ["in_use", "inconsistent"] {
        assert!(done[key].as_str().unwrap().contains("open for writing by process"), "{done}");
    }
    drop(holder);
    world.run(&["backup", "web=disk"]).exits(0);
}

#[test]
fn a_source_that_a_command_keeps_still_may_be_open_but_not_change() {
    let world = World::new();
    disk(&world);
    let _holder = Holder::of(&world.path("disk"));
    let still = [&["backup", "web=disk", "--before", "true"][..], &SLOW].concat();
    world.run(&still).exits(0).says("is open for writing by process");
    assert_eq!(world.json(&["show", "web"]).get("inconsistent"), None);
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).open(world.path("disk")).unwrap();
        file.write_all(b"thawed").unwrap();
    };
    backup_while(&world, &still, write).exits(3).says("it was written to while it was read");
    is_marked(&world, "written to");
}

#[test]
fn a_disk_of_a_machine_that_changes_marks_that_disk() {
    let world = World::new();
    disk(&world);
    world.write("other", &noise(2, SEGMENT));
    let backup = [&["backup", "--machine", "m", "m/a=disk", "m/b=other"][..], &SLOW].concat();
    let write = || {
        let file = fs::OpenOptions::new().write(true).open(world.path("disk")).unwrap();
        file.write_all_at(b"changed", 5).unwrap();
    };
    backup_while(&world, &backup, write).exits(3).says("this backup of m/a is inconsistent");
    let list = world.json(&["list"]);
    let marked: Vec<_> = list["backups"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row.get("inconsistent").is_some())
        .map(|row| row["backup"].as_str().unwrap())
        .collect();
    assert_eq!(marked, ["m/a@0"]);
    let restore = world.json(&["restore", "--machine", "m", "restored"]);
    let flaws = restore["disks"].as_array().unwrap().iter().map(|disk| disk.get("inconsistent").is_some());
    assert_eq!(flaws.collect::<Vec<_>>(), [true, false]);
    // The archive of the moment is no disk: it may be smaller than the one before.
    world.write("note", &noise(3, 5 * SEGMENT));
    let backup = ["backup", "--machine", "m", "m/a=disk", "m/b=other"];
    world.run(&[&backup[..], &["--attach", "note"]].concat()).exits(0);
    let ended = world.run(&backup).exits(0);
    assert!(!ended.stderr.contains("shrank"), "{}", ended.stderr);
}

#[test]
fn a_qcow2_image_that_changes_is_seen_through_its_whole_chain() {
    let world = World::new();
    world.init_small();
    let run = |arguments: &[&str]| {
        let mut command = Command::new("qemu-img");
        let command = command.args(arguments).current_dir(world.path("")).stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !run(&["--version"]) {
        return;
    }
    world.write("raw", &noise(3, SEGMENTS * SEGMENT));
    assert!(run(&["convert", "-O", "qcow2", "raw", "base"]));
    assert!(run(&["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "disk"]));
    let backup = [&["backup", "web=disk", "--format", "qcow2"][..], &SLOW].concat();
    let touch = || {
        let file = fs::OpenOptions::new().write(true).open(world.path("base")).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    };
    backup_while(&world, &backup, touch).exits(3).says("written to while it was read");
}

#[test]
fn a_disk_that_shrank_since_the_backup_before_is_told_with_both_sizes() {
    let world = World::new();
    disk(&world);
    world.run(&["backup", "web=disk"]).exits(0);
    for (size, says) in
        [(3 * SEGMENT, "from 24.0 MiB (25165824 bytes) to 192.0 KiB (196608 bytes)"), (0, "to 0 B (0 bytes)")]
    {
        world.write("disk", &noise(1, size));
        let ended = world.run(&["-q", "--json", "backup", "web=disk"]).exits(3).says(says).json();
        let was: Value = if size == 0 { (3 * SEGMENT).into() } else { (SEGMENTS * SEGMENT).into() };
        assert_eq!(ended["backups"][0]["shrank_from"], was);
        world.run(&["backup", "web=disk"]).exits(0);
    }
}
