//! What a restore does to its target: it never writes to one that somebody uses, and an incomplete file never has its name.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{World, noise, ran};
use crate::machine::{BACKUP, machine, names};

const SEGMENT: usize = 64 << 10;
const SIZE: usize = 8 * SEGMENT;

/// Waits for something; the limit shows that it does not hang.
fn until(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_mins(1));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A world with a backup `web` of a disk without zeros.
fn backed_up() -> World {
    let world = World::new();
    world.init_small();
    world.write("web", &noise(1, SIZE));
    world.run(&["backup", "web"]).exits(0);
    world
}

/// A process that has a file open for writing, until it is dropped.
pub(crate) struct Writer(Child);

impl Writer {
    pub(crate) fn of(path: &Path) -> Self {
        let script = "exec 3<>\"$0\"; echo ready; read end";
        let mut child = Command::new("sh");
        let mut child = child
            .args(["-c", script])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        Self(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What tells a file that was touched from one that was not.
fn state(path: &Path) -> (u64, i64, i64, Vec<u8>) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), fs::read(path).unwrap())
}

/// The files that a restore left beside its target.
fn partials(world: &World) -> Vec<String> {
    names(&world.path("")).into_iter().filter(|name| name.contains(".ekko-partial")).collect()
}

/// Expects each kind of restore to be refused and to touch nothing.
fn refuses(world: &World, target: &str, why: &str) {
    world.write("list", format!("[{{\"offset\":0,\"length\":{SIZE},\"exists\":\"true\"}}]").as_bytes());
    let before = state(&world.path(target));
    let mut kinds = vec![&[][..], &["--in-place"], &["--delta", "list"], &["--format", "qcow2"]];
    // A part of a disk goes over no file anyway.
    if !fs::metadata(world.path(target)).unwrap().is_file() {
        kinds.push(&["--offset", "0"]);
    }
    for kind in kinds {
        let restore = [&["restore", "--force", "web", target], kind].concat();
        let ran = world.run(&restore).exits(11).says(why).says("--target-in-use").says(target);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(state(&world.path(target)) == before, "{kind:?} {}", ran.stderr);
        assert_eq!(partials(world), [""; 0], "{kind:?}");
    }
    let out = ["manifest", "export", "web", target, "--force"];
    world.run(&out).exits(11).says(why).says("--target-in-use");
    assert!(state(&world.path(target)) == before);
}

#[test]
fn a_file_that_another_process_has_open_for_writing_is_not_overwritten() {
    let world = backed_up();
    world.write("vm.raw", &noise(2, SIZE));
    let writer = Writer::of(&world.path("vm.raw"));
    refuses(&world, "vm.raw", &format!("open for writing by process {} (sh)", writer.0.id()));
    // By whichever name.
    fs::hard_link(world.path("vm.raw"), world.path("hard")).unwrap();
    symlink("vm.raw", world.path("soft")).unwrap();
    for name in ["hard", "soft"] {
        world.run(&["restore", "--force", "web", name]).exits(11).says("open for writing");
    }
    world.run(&["restore", "--target-in-use", "web", "vm.raw"]).exits(2);
    assert!(world.read("vm.raw") == noise(2, SIZE));
    world.run(&["restore", "--force", "--target-in-use", "web", "vm.raw"]).exits(0);
    assert!(world.read("vm.raw") == noise(1, SIZE));
    // Whoever has the file open keeps the old disk.
    assert!(world.read("hard") == noise(2, SIZE));
    drop(writer);
    world.run(&["restore", "--force", "web", "hard"]).exits(0);
}

#[test]
fn a_disk_that_qemu_has_open_is_not_overwritten() {
    let world = backed_up();
    world.write("vm.raw", &noise(2, SIZE));
    let socket = world.path("nbd.sock");
    let drive = format!("file={},format=raw,if=virtio", world.path("vm.raw").display());
    let mut server = Command::new("qemu-nbd");
    server.args(["-f", "raw", "-t", "-k"]).arg(&socket).arg(world.path("vm.raw"));
    let mut guest = Command::new("qemu-system-x86_64");
    guest.args([
        "-machine",
        "pc,accel=tcg",
        "-display",
        "none",
        "-nodefaults",
        "-S",
        "-m",
        "32",
        "-drive",
        &drive,
    ]);
    for mut command in [server, guest] {
        // A machine without QEMU has no disks that QEMU has open.
        let Ok(child) = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() else { continue };
        let child = Writer(child);
        let open = |entry: fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|it| it.ends_with("vm.raw"));
        let folder = format!("/proc/{}/fd", child.0.id());
        until(|| fs::read_dir(&folder).unwrap().flatten().any(open));
        // It opens the disk for reading first, to look at it.
        until(|| ekko::image::target_use(&world.path("vm.raw")).is_some());
        refuses(&world, "vm.raw", &format!("open for writing by process {} (qemu-", child.0.id()));
    }
    world.run(&["restore", "--force", "web", "vm.raw"]).exits(0);
}

/// Runs a program that needs root. Returns what it prints, or nothing if it may not.
fn as_root(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// A loop device, and where it is mounted, until it is dropped.
struct Loop {
    device: String,
    mounted: Option<PathBuf>,
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(place) = &self.mounted {
            as_root("umount", &[place.to_str().unwrap()]);
        }
        as_root("losetup", &["-d", &self.device]);
    }
}

#[test]
fn a_file_that_is_attached_or_mounted_and_its_device_are_not_overwritten() {
    let world = backed_up();
    let file = world.path("vm.raw").display().to_string();
    File::create(&file).unwrap().set_len(SIZE as u64 * 4).unwrap();
    // Only root can attach a file, and not in every container.
    let Some(device) = as_root("losetup", &["--find", "--show", &file]) else { return };
    let mut attached = Loop { device: device.clone(), mounted: None };
    refuses(&world, "vm.raw", &format!("attached to {device}"));
    // The device is nobody's yet.
    let to_device = ["restore", "--force", "web", &device];
    world.run(&to_device).exits(0);
    {
        // Also who has the file open that the device is made of.
        let writer = Writer::of(Path::new(&device));
        world.run(&to_device).exits(11).says(&format!("open for writing by process {}", writer.0.id()));
    }
    if as_root("mkfs.ext4", &["-q", &device]).is_some() {
        fs::create_dir(world.path("mount")).unwrap();
        let place = world.path("mount");
        if as_root("mount", &["-o", "ro", &device, place.to_str().unwrap()]).is_some() {
            attached.mounted = Some(place.clone());
            refuses(&world, "vm.raw", &format!("which is mounted on {}", place.display()));
            let before = fs::read(&file).unwrap();
            for kind in [&[][..], &["--in-place"]] {
                let refused = world.run(&[&to_device[..], kind].concat()).exits(11);
                refused.says("mounted on").says("umount").says("--target-in-use");
            }
            assert!(fs::read(&file).unwrap() == before);
        }
    }
    drop(attached);
    let Some(device) = as_root("losetup", &["--find", "--show", "--read-only", &file]) else { return };
    let _attached = Loop { device: device.clone(), mounted: None };
    refuses(&world, "vm.raw", &format!("attached to {device}"));
}

#[test]
fn no_part_of_a_machine_is_written_if_one_of_its_targets_is_in_use() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    fs::create_dir(world.path("out")).unwrap();
    for name in ["vda.raw", "vdb.raw", "domain.xml"] {
        world.write(&format!("out/{name}"), b"old");
    }
    for name in ["vdb.raw", "domain.xml"] {
        let _writer = Writer::of(&world.path(&format!("out/{name}")));
        let ran = world.run(&["restore", "--machine", "--force", "web", "out"]).exits(11);
        ran.says(&format!("out/{name}")).says("open for writing by process");
        assert_eq!(names(&world.path("out")), ["domain.xml", "vda.raw", "vdb.raw"]);
        assert_eq!(world.read("out/vda.raw"), b"old");
    }
    world.run(&["restore", "--machine", "--force", "web", "out"]).exits(0);
    assert_eq!(names(&world.path("out")), ["domain.xml", "machine.json", "vars.fd", "vda.raw", "vdb.raw"]);
}

/// Begins a restore that takes long.
fn begun(world: &World, arguments: &[&str]) -> Child {
    let slow = ["restore", "--limit-rate", "64KiB", "--jobs", "1"];
    let mut command = world.command(&[&slow, arguments].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn send(signal: &str, child: &Child) {
    let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_signal_leaves_nothing_of_a_restore_and_says_so() {
    let world = backed_up();
    world.write("old", &noise(2, SIZE));
    for (signal, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("PIPE", 13)] {
        for (arguments, partial) in [
            (&["web", "new"][..], "new.ekko-partial"),
            (&["--force", "web", "old"], "old.ekko-partial"),
            (&["--offset", "64KiB", "web", "new"], "new.ekko-partial"),
        ] {
            let child = begun(&world, arguments);
            until(|| world.path(partial).exists());
            send(signal, &child);
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.signal(), Some(number), "{said}");
            assert_eq!(said, format!("ekko: stopped by SIG{signal}: the incomplete {partial} was removed\n"));
            assert_eq!(partials(&world), [""; 0]);
            assert!(!world.path("new").exists() && world.read("old") == noise(2, SIZE));
        }
    }
    let child = begun(&world, &["--keep-partial", "web", "new"]);
    until(|| world.path("new.ekko-partial").exists());
    send("TERM", &child);
    let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert_eq!(said, "ekko: stopped by SIGTERM: the incomplete disk is kept as new.ekko-partial\n");
    assert_eq!(fs::metadata(world.path("new.ekko-partial")).unwrap().len(), SIZE as u64);
    world.run(&["restore", "web", "new"]).exits(2).says("new.ekko-partial is in the way");
    fs::remove_file(world.path("new.ekko-partial")).unwrap();
    world.run(&["restore", "web", "new"]).exits(0);
    assert!(world.read("new") == noise(1, SIZE) && partials(&world).is_empty());
}

#[test]
fn a_signal_says_that_what_was_written_in_place_is_incomplete() {
    let world = backed_up();
    world.write("old", &noise(2, SIZE));
    let child = begun(&world, &["--force", "--in-place", "web", "old"]);
    until(|| world.read("old") != noise(2, SIZE));
    send("TERM", &child);
    let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert!(said.contains("old is incomplete: restore it again before you use it"), "{said}");
    world.run(&["restore", "--force", "--in-place", "web", "old"]).exits(0);
    let child = begun(&world, &["web", "-"]);
    std::thread::sleep(Duration::from_millis(200));
    send("INT", &child);
    let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert_eq!(said, "ekko: stopped by SIGINT: stdout is incomplete\n");
}

#[test]
fn a_signal_leaves_nothing_of_a_machine() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    for signal in ["INT", "TERM", "HUP"] {
        let child = begun(&world, &["--machine", "web", "out"]);
        until(|| world.path("out.ekko-partial/vda.raw.ekko-partial").exists());
        send(signal, &child);
        let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        assert_eq!(
            said,
            format!("ekko: stopped by SIG{signal}: the incomplete out.ekko-partial was removed\n")
        );
        assert!(!world.path("out").exists() && partials(&world).is_empty());
    }
    // One that was killed leaves its folder, which the next one removes.
    let mut child = begun(&world, &["--machine", "web", "out"]);
    until(|| world.path("out.ekko-partial/vda.raw.ekko-partial").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(partials(&world), ["out.ekko-partial"]);
    world.run(&["restore", "--machine", "web", "out"]).exits(0);
    assert!(world.path("out/vdb.raw").exists() && partials(&world).is_empty());
}

#[test]
fn what_a_killed_restore_left_is_replaced_and_what_another_one_writes_is_not() {
    let world = backed_up();
    world.write("old", &noise(2, SIZE));
    let mut child = begun(&world, &["--force", "web", "old"]);
    until(|| world.path("old.ekko-partial").exists());
    std::thread::sleep(Duration::from_millis(50));
    world
        .run(&["restore", "--force", "web", "old"])
        .exits(11)
        .says("another restore is writing old.ekko-partial");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(world.read("old") == noise(2, SIZE), "nothing of the old file is touched");
    assert_eq!(partials(&world), ["old.ekko-partial"]);
    world.run(&["restore", "--force", "web", "old"]).exits(0);
    assert!(world.read("old") == noise(1, SIZE) && partials(&world).is_empty());
    // What has this name and is no file stays.
    fs::create_dir(world.path("old.ekko-partial")).unwrap();
    world.run(&["restore", "--force", "web", "old"]).exits(2).says("is in the way");
}

#[test]
fn a_file_that_is_replaced_keeps_its_owner_mode_and_links() {
    let world = backed_up();
    world.write("old", b"old");
    fs::set_permissions(world.path("old"), fs::Permissions::from_mode(0o640)).unwrap();
    // Only root can give a file to somebody.
    let given = std::os::unix::fs::chown(world.path("old"), Some(12345), Some(23456)).is_ok();
    let own = fs::metadata(world.path("old")).unwrap();
    // Not every filesystem has attributes.
    let flags = rustix::fs::XattrFlags::empty();
    let is_labelled = rustix::fs::setxattr(world.path("old"), "user.label", b"web", flags).is_ok();
    symlink("old", world.path("link")).unwrap();
    world.run(&["restore", "--force", "web", "link"]).exits(0);
    assert_eq!(fs::read_link(world.path("link")).unwrap(), Path::new("old"));
    let new = fs::metadata(world.path("old")).unwrap();
    assert_eq!((new.mode() & 0o7777, new.uid(), new.gid()), (0o640, own.uid(), own.gid()));
    assert!(!given || new.uid() == 12345);
    let mut label = [0; 3];
    let length = rustix::fs::getxattr(world.path("old"), "user.label", &mut label);
    assert!(!is_labelled || (length == Ok(3) && label == *b"web"));
    assert!(world.read("old") == noise(1, SIZE));
    symlink("nothing", world.path("dangling")).unwrap();
    world.run(&["restore", "web", "dangling"]).exits(2).says("a symbolic link to a file that does not exist");
    let ran = world.run(&["restore", "web", "nodir/new"]).exits(1);
    assert_eq!(ran.stderr, "ekko: cannot restore to nodir/new: there is no folder nodir; create it first\n");
    assert!(!world.path("nothing").exists());
}

#[test]
fn a_file_that_appears_meanwhile_is_not_replaced_and_the_disk_is_kept() {
    let world = backed_up();
    let slow = ["restore", "--limit-rate", "256KiB", "--jobs", "1"];
    let restore = |arguments: &[&str]| {
        let mut command = world.command(&[&slow, arguments].concat());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let child = restore(&["web", "new"]);
    until(|| world.path("new.ekko-partial").exists());
    world.write("new", b"of somebody else");
    let output = ran(child.wait_with_output().unwrap()).exits(2);
    output.says("new exists").says("the complete disk is kept as new.ekko-partial");
    assert!(world.read("new") == b"of somebody else" && world.read("new.ekko-partial") == noise(1, SIZE));
    // The complete disk stays.
    world.run(&["restore", "--force", "web", "new"]).exits(2).says("new.ekko-partial is in the way");
    assert!(world.read("new.ekko-partial") == noise(1, SIZE));
    fs::remove_file(world.path("new.ekko-partial")).unwrap();
    let child = restore(&["--force", "web", "new"]);
    until(|| world.path("new.ekko-partial").exists());
    let writer = Writer::of(&world.path("new"));
    let output = ran(child.wait_with_output().unwrap()).exits(11);
    output.says("open for writing by process").says("the complete disk is kept as new.ekko-partial");
    drop(writer);
    assert!(world.read("new") == b"of somebody else" && world.read("new.ekko-partial") == noise(1, SIZE));
}

#[test]
fn a_disk_that_does_not_fit_is_refused_and_one_that_fails_leaves_nothing() {
    let world = backed_up();
    fs::create_dir(world.path("small")).unwrap();
    let place = world.path("small");
    // Only root can make a small filesystem.
    let size = format!("size={}k", SIZE / 2 / 1024);
    if as_root("mount", &["-t", "tmpfs", "-o", &size, "none", place.to_str().unwrap()]).is_none() {
        return;
    }
    fs::write(place.join("old"), b"old").unwrap();
    let ran = |arguments: &[&str]| world.run(&[&["restore", "--force", "web"], arguments].concat());
    let refused = ran(&["small/old"]).exits(1);
    let failed = ran(&["small/old", "--ignore-space"]).exits(1);
    let kept = ran(&["small/new", "--ignore-space", "--keep-partial"]).exits(1);
    let state = (fs::read(place.join("old")).unwrap(), names(&place));
    // Of a machine the device is complete, and the file is not.
    world.write("vm.raw", &noise(2, SIZE));
    world.run(&["backup", "--machine", "m", "m/a=vm.raw", "m/b=web"]).exits(0);
    File::create(world.path("device")).unwrap().set_len(SIZE as u64).unwrap();
    let device = as_root("losetup", &["--find", "--show", world.path("device").to_str().unwrap()]);
    if let Some(device) = device {
        let to = format!("a={device}");
        let arguments =
            ["restore", "--machine", "m", "--ignore-space", "--force", "--to", &to, "--to", "b=small/b"];
        let failed = world.run(&arguments).exits(1);
        let _loop = Loop { device: device.clone(), mounted: None };
        failed.says("No space left").says(&format!("restored already: {device}"));
    }
    as_root("umount", &[place.to_str().unwrap()]);
    refused.says("up to 512.0 KiB are needed there and 252.0 KiB are free").says("--ignore-space");
    failed.says("No space left").says("the incomplete").says("old.ekko-partial was removed");
    kept.says("the incomplete disk is kept as small/new.ekko-partial");
    assert_eq!(state, (b"old".to_vec(), vec!["new.ekko-partial".to_owned(), "old".to_owned()]));
}

#[test]
fn a_stream_that_is_not_taken_to_its_end_is_a_failure() {
    let world = backed_up();
    let mut command = world.command(&["restore", "web", "-"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 1000]).unwrap();
    let output = ran(child.wait_with_output().unwrap()).exits(1);
    output.says("the restore to stdout is incomplete: its reader ended after");
    let mut full = File::options().write(true).open("/dev/full").unwrap();
    full.flush().unwrap();
    let mut command = world.command(&["restore", "web", "-"]);
    let output = command.stdout(full).output().unwrap();
    ran(output).exits(1).says("No space left on device");
}

#[test]
fn a_disk_is_not_poured_into_a_terminal() {
    let world = backed_up();
    let ekko = format!("{} -r R restore web -", env!("CARGO_BIN_EXE_ekko"));
    let mut command = Command::new("script");
    command.args(["-qec", &ekko, "/dev/null"]).current_dir(world.path("")).stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cannot restore web@latest to a terminal: redirect stdout"), "{said}");
    assert!(said.len() < 500);
}

#[test]
fn a_restore_without_a_lease_says_what_may_happen() {
    let world = backed_up();
    // No folder for leases can be made where a file is.
    let _ = fs::remove_dir_all(world.path("R/leases"));
    world.write("R/leases", b"");
    let warning = "warning: cannot lease web@0: ";
    let meaning =
        "if somebody deletes it and \"ekko gc\" runs before this restore ends, the restore loses its data";
    world.run(&["restore", "web", "out"]).exits(0).says(warning).says(meaning);
    world.run(&["restore", "web", "-"]).exits(0).says(warning);
    world.run(&["restore", "--force", "--in-place", "web", "out"]).exits(0).says(warning);
    world.run(&["verify", "web", "out"]).exits(0).says("before this verify ends");
    let export = ["manifest", "export", "web", "web.sqlite", "--segments", "flat"];
    let said = world.run(&export).exits(0).says(warning).says("before this export ends").stderr;
    assert!(!said.contains("restore"), "{said}");
}

#[test]
fn a_look_at_a_machine_without_a_lease_speaks_of_no_restore() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    let _ = fs::remove_dir_all(world.path("R/leases"));
    world.write("R/leases", b"");
    let said = world.run(&["show", "web@0"]).exits(0).says("before this command ends").stderr;
    assert!(!said.contains("restore"), "{said}");
}

#[test]
fn the_archive_of_a_machine_goes_over_no_disk() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    world.write("disk", &noise(2, SIZE));
    for arguments in [
        &["--force", "web@0", "disk"][..],
        &["web@0", "disk"],
        &["--force", "--in-place", "web@0", "disk"],
        &["--force", "web@0", "/dev/null"],
        &["--force", "web@0", "nbd://localhost/x"],
        &["--format", "qcow2", "web@0", "new"],
    ] {
        let ran = world.run(&[&["restore"], arguments].concat()).exits(2);
        ran.says("web@0 is a machine").says("--machine");
    }
    assert!(world.read("disk") == noise(2, SIZE) && !world.path("new").exists());
    world.run(&["restore", "web@0", "web.tar"]).exits(0);
}

#[test]
fn the_parts_of_a_machine_are_restored_to_targets_of_their_own() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    let run = |arguments: &[&str]| world.run(&[&["restore", "--machine", "web"], arguments].concat());
    let document = run(&["--json", "--to", "vda=a.raw", "--to", "web/vdb=b.raw"]).exits(0).json();
    assert!(world.read("a.raw") == world.read("a") && world.read("b.raw") == world.read("b"));
    assert_eq!(
        (&document["disks"][1]["target"], &document["target"]),
        (&"b.raw".into(), &serde_json::Value::Null)
    );
    assert_eq!(document["skipped"], serde_json::json!(["domain.xml", "vars.fd"]));
    // The rest goes into the folder.
    run(&["out", "--to", "vdb=b2.raw", "--to", "domain.xml=web.xml", "--to", "machine.json=m.json"]).exits(0);
    assert_eq!(names(&world.path("out")), ["vars.fd", "vda.raw"]);
    assert!(world.read("b2.raw") == world.read("b") && world.read("web.xml") == b"<domain/>");
    assert!(world.path("m.json").exists());
    world.write("old", b"old");
    for (arguments, code, why) in [
        (&["--to", "vda=x"][..], 2, "no target for vdb"),
        (
            &["--to", "vda=x", "--to", "vdc=y"],
            2,
            "has no vdc: it has vda, vdb, domain.xml, vars.fd, machine.json",
        ),
        (&["--to", "vda=x", "--to", "vda=y", "--to", "vdb=z"], 2, "vda has two targets"),
        (&["--to", "vda=x", "--to", "vdb=./x"], 2, "two parts of the machine have the target ./x"),
        (&["--to", "vda=x", "--to", "vdb=old"], 2, "old exists"),
        (&["--to", "vda=x", "--to", "vdb=no/y"], 1, "there is no folder no"),
        (&["--to", "vda=x", "--to", "vdb=y", "--to", "vars.fd=/dev/null", "--force"], 2, "neither a file"),
        (&["--to", "vda=x", "--to", "vdb"], 2, "a target is named as in"),
        (&["-"], 2, "cannot be restored to stdout"),
        (&[], 2, ""),
    ] {
        run(arguments).exits(code).says(why);
        assert!(!world.path("x").exists() && partials(&world).is_empty(), "{arguments:?}");
    }
    world.run(&["restore", "web/vda", "--to", "vda=x"]).exits(2);
    // Both are right once they have their names.
    run(&["--force", "--to", "vda=old", "--to", "vdb=b.raw"]).exits(0);
    assert!(world.read("old") == world.read("a"));
}

#[test]
fn a_qcow2_file_is_what_the_disk_was_and_obeys_the_same_rules() {
    let world = World::new();
    let qemu = |arguments: &[&str]| {
        Command::new("qemu-img").args(arguments).current_dir(world.path("")).output().ok()
    };
    // Without QEMU there is no qcow2.
    if qemu(&["--version"]).is_none() {
        return;
    }
    world.init_small();
    let disk = [noise(1, SEGMENT), vec![0; 300 * SEGMENT], noise(2, 3 * SEGMENT + 5)].concat();
    world.write("disk", &disk);
    world.run(&["backup", "disk"]).exits(0);
    world.run(&["restore", "--format", "qcow2", "disk", "new"]).exits(0);
    let same = |target: &str| {
        let compared = qemu(&["compare", "-f", "raw", "-F", "qcow2", "disk", target]).unwrap();
        assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
        let checked = qemu(&["check", "-f", "qcow2", target]).unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    };
    same("new");
    let blocks = fs::metadata(world.path("new")).unwrap();
    assert!(blocks.blocks() * 512 < 12 * SEGMENT as u64 && blocks.mode() & 0o777 == 0o600);
    assert!(partials(&world).is_empty());
    world.run(&["restore", "--format", "qcow2", "disk", "new"]).exits(2).says("--force");
    // A program that has not ended makes no file that was removed again.
    for _ in 0..5 {
        let child = begun(&world, &["--format", "qcow2", "disk", "early"]);
        until(|| world.path("early.ekko-partial").exists());
        send("TERM", &child);
        child.wait_with_output().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(partials(&world).is_empty());
    }
    world.write("a:b", b"old");
    world.run(&["restore", "--force", "--format", "qcow2", "disk", "a:b"]).exits(0);
    same("./a:b");
    world.run(&["restore", "--format", "qcow2", "disk", "-"]).exits(2).says("name a file");
    world
        .run(&["restore", "--format", "qcow2", "--force", "disk", "nbd://localhost"])
        .exits(2)
        .says("writes a file");
    for signal in ["INT", "TERM", "HUP"] {
        let child = begun(&world, &["--format", "qcow2", "disk", "slow"]);
        until(|| world.path("slow.ekko-partial").exists());
        std::thread::sleep(Duration::from_millis(100));
        send(signal, &child);
        let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        assert_eq!(
            said,
            format!("ekko: stopped by SIG{signal}: the incomplete slow.ekko-partial was removed\n")
        );
        assert!(partials(&world).is_empty() && !world.path("slow").exists());
        // The server ends with the restore.
        let path = world.path("slow.ekko-partial").display().to_string();
        let is_server = |entry: fs::DirEntry| {
            fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&path))
        };
        until(|| !fs::read_dir("/proc").unwrap().flatten().any(is_server));
    }
    let world = machine();
    world.run(&BACKUP).exits(0);
    world.run(&["restore", "--machine", "--format", "qcow2", "web", "out"]).exits(0);
    assert_eq!(
        names(&world.path("out")),
        ["domain.xml", "machine.json", "vars.fd", "vda.qcow2", "vdb.qcow2"]
    );
}
