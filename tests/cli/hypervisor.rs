//! What hypervisors have: images that a server of QEMU reads for Ekko, bitmaps and their loss, fleecing images. Tests that need
//! QEMU's tools do nothing where those are not.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{World, noise, ran};

const SEGMENT: usize = 64 << 10;

/// Runs one of QEMU's tools in the world's folder. Says whether it did.
fn qemu(world: &World, program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(world.path("")).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn has_qemu(world: &World) -> bool {
    ["qemu-nbd", "qemu-img", "qemu-io"].iter().all(|program| qemu(world, program, &["--version"]))
}

/// A server of QEMU that exports an image, until it is dropped.
struct Export {
    server: Child,
    uri: String,
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Export {
    fn of(world: &World, image: &str, options: &[&str]) -> Self {
        let socket = world.path(&format!("{image}.sock"));
        let _ = fs::remove_file(&socket);
        let mut command = Command::new("qemu-nbd");
        command.args(["-r", "-t", "-f", "qcow2"]).args(options).arg("-k").arg(&socket).arg(world.path(image));
        let server = command.spawn().unwrap();
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        until("the server listens", || socket.exists());
        Self { server, uri }
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The processes that have a text in their arguments.
fn processes(text: &str) -> Vec<String> {
    let all =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    all.map(|line| String::from_utf8_lossy(&line).into_owned()).filter(|line| line.contains(text)).collect()
}

#[test]
fn a_server_that_ekko_started_ends_with_it_however_it_ends() {
    let world = World::new();
    if !has_qemu(&world) {
        return;
    }
    world.init_small();
    // Larger than what is read before the limit makes it wait.
    world.write("raw", &noise(1, 64 << 20));
    fs::create_dir(world.path("temporary")).unwrap();
    for format in ["vdi", "vmdk"] {
        let image = format!("disk.{format}");
        assert!(qemu(&world, "qemu-img", &["convert", "-f", "raw", "-O", format, "raw", &image]));
        let source = format!("web={image}");
        let backup = ["backup", "--format", format, "--limit-rate", "4MiB", &source];
        let path = world.path(&image).display().to_string();
        // While the server starts, and in the middle of the backup.
        for (signal, wait) in [("TERM", 0), ("KILL", 0), ("TERM", 300), ("KILL", 300)] {
            let mut command = world.command(&backup);
            let mut ekko =
                command.env("TMPDIR", world.path("temporary")).stderr(Stdio::null()).spawn().unwrap();
            until("the server starts", || processes(&path).iter().any(|it| it.starts_with("qemu-nbd")));
            std::thread::sleep(Duration::from_millis(wait));
            let sent = Command::new("kill").args(["-s", signal, &ekko.id().to_string()]).status();
            assert!(sent.unwrap().success());
            assert!(!ekko.wait().unwrap().success());
            until("it has ended", || processes(&path).is_empty());
            // The image is not locked, and nothing is left beside it.
            assert!(
                qemu(&world, "qemu-io", &["-f", format, "-c", "write 0 512", &image]),
                "{format} {signal}"
            );
            assert_eq!(fs::read_dir(world.path("temporary")).unwrap().count(), 0, "{format} {signal}");
        }
    }
}

#[test]
fn temporary_files_may_be_in_a_folder_of_any_name_and_length() {
    let world = World::new();
    if !has_qemu(&world) {
        return;
    }
    world.init_small();
    let disk = noise(1, 3 * SEGMENT);
    world.write("raw", &disk);
    assert!(qemu(&world, "qemu-img", &["convert", "-f", "raw", "-O", "vdi", "raw", "disk.vdi"]));
    let long = ["d", "e"].map(|letter| letter.repeat(100)).join("/");
    for folder in ["a&b", "50%", "a?b#c", "x=y z", &long] {
        let folder = world.path(folder);
        fs::create_dir_all(&folder).unwrap();
        let mut command = world.command(&["backup", "--format", "vdi", "web=disk.vdi"]);
        ran(command.env("TMPDIR", &folder).output().unwrap()).exits(0);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
    assert!(world.run(&["restore", "web", "-"]).exits(0).stdout.starts_with(&disk));
}

#[test]
fn a_container_that_is_read_as_raw_is_warned_of_unless_somebody_says_that_it_is_raw() {
    let world = World::new();
    world.init_small();
    let descriptor = b"# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\n";
    world.write("disk.vmdk", descriptor);
    let said = "disk.vmdk looks like a VMDK image but is read as raw: use --format vmdk, or --format raw to silence this";
    let document = world.run(&["--json", "backup", "web=disk.vmdk"]).exits(0).says(said).json();
    assert_eq!(
        (&document["backups"][0]["format"], &document["backups"][0]["looks_like"]),
        (&"raw".into(), &"vmdk".into())
    );
    assert_eq!(world.json(&["show", "web"])["attributes"]["looks-like"], "vmdk");
    let ran = world.run(&["--json", "backup", "--format", "raw", "web=disk.vmdk"]).exits(0);
    assert!(!ran.stderr.contains("looks like"), "{}", ran.stderr);
    assert!(ran.json()["backups"][0].get("looks_like").is_none());
    assert!(world.json(&["show", "web"])["attributes"].get("looks-like").is_none());
    // One that Ekko cannot read as a disk.
    world.write("disk", &[&b"LUKS\xba\xbe"[..], &noise(1, SEGMENT)].concat());
    world
        .run(&["backup", "disk"])
        .exits(0)
        .says("looks like a LUKS container but is read as raw: use --format raw to");
    world.write("disk", &noise(1, 2 * SEGMENT));
    let ran = world.run(&["backup", "disk"]).exits(0);
    assert!(!ran.stderr.contains("looks like"), "{}", ran.stderr);
}

#[test]
fn a_source_whose_path_is_not_utf8_is_backed_up() {
    let world = World::new();
    world.init_small();
    let name = OsString::from_vec(b"disk-\xff.raw".to_vec());
    let disk = noise(1, SEGMENT + 5);
    fs::write(world.path("").join(&name), &disk).unwrap();
    let back_up = |source: &[u8]| {
        let mut command = world.command(&["backup"]);
        ran(command.arg(OsString::from_vec(source.to_vec())).output().unwrap())
    };
    back_up(b"web=disk-\xff.raw").exits(0);
    assert!(world.run(&["restore", "web", "-"]).exits(0).stdout == disk);
    back_up(b"web=none-\xff").exits(1).says("none-");
    // A name is text.
    back_up(b"./disk-\xff.raw").exits(2).says("NAME=");
    back_up(b"w\xff=disk-\xff.raw").exits(2);
    assert!(Path::new(&world.path("").join(&name)).exists());
}

#[test]
fn without_a_base_or_a_list_the_disk_is_read_in_full_if_somebody_says_so() {
    let world = World::new();
    world.run(&["init"]).exits(0);
    world.write("web", &noise(1, 4 * SEGMENT));
    world.write("list", b"[]");
    world.write("text", b"what changed");
    let with = |list: &'static str, base: &'static str| ["backup", "web", "--cbt", list, "--cbt-base", base];
    world.run(&with("list", "web@0")).exits(1);
    assert_eq!(fs::read_dir(world.path("R/manifests")).unwrap().count(), 0);
    let fallback = |list: &'static str, base: &'static str, why: &str| {
        world.run(&with(list, base)).says(why).says("add --cbt-fallback to read the whole disk");
        let ran = world.run(&[&["--json"], &with(list, base)[..], &["--cbt-fallback"]].concat()).exits(0);
        let ran = ran.says("warning: web is read in full: ");
        let cbt = ran.json()["backups"][0]["cbt"].clone();
        assert!(cbt["full_read"].as_str().unwrap().contains(why), "{cbt}");
        assert_eq!(ran.json()["backups"][0]["read_bytes"], 4 * SEGMENT);
    };
    world
        .run(&[&with("list", "web@0")[..], &["--cbt-fallback"]].concat())
        .exits(0)
        .says("warning: web is read in full");
    // A base that was deleted, one that never was, and of no image.
    world.run(&["delete", "web@0"]).exits(0);
    fallback("list", "web@0", "web@0");
    fallback("list", "web@9", "no backup web@9");
    fallback("list", "other@0", "other");
    // No list, and none that can be read.
    fallback("gone", "web@1", "cannot read gone");
    fallback("text", "web@1", "none of the lists that are known");
    // What cannot be meant is refused all the same.
    world.run(&[&with("list", "web")[..], &["--cbt-fallback"]].concat()).exits(2).says("say its number");
    // No bitmap, since it is no export.
    let bitmap = ["backup", "web", "--bitmap", "b0", "--cbt-base", "web@1"];
    world.run(&bitmap).exits(1).says("has no dirty bitmaps");
    let done = world.json(&[&bitmap[..], &["--cbt-fallback"]].concat());
    assert!(done["backups"][0]["cbt"]["full_read"].as_str().unwrap().contains("has no dirty bitmaps"));
    assert!(done["backups"][0]["cbt"].get("kind").is_none());
    assert!(world.run(&["restore", "web", "-"]).exits(0).stdout == noise(1, 4 * SEGMENT));
}

/// Makes a qcow2 image of 16 MiB that holds no zeros.
fn image(world: &World, name: &str) {
    assert!(qemu(world, "qemu-img", &["create", "-f", "qcow2", name, "16M"]));
    assert!(qemu(world, "qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 16M", name]));
}

fn add_bitmap(world: &World, image: &str) {
    assert!(qemu(world, "qemu-img", &["bitmap", "--add", "-g", "65536", image, "day1"]));
}

#[test]
fn of_a_machine_only_a_disk_without_a_base_or_a_bitmap_is_read_in_full() {
    let world = World::new();
    if !has_qemu(&world) {
        return;
    }
    world.init_small();
    for name in ["a", "b", "c"] {
        image(&world, name);
        add_bitmap(&world, name);
    }
    let bitmap = ["-B", "day1"];
    let exports = [("a", &bitmap[..]), ("b", &[]), ("c", &bitmap)]
        .map(|(name, options)| Export::of(&world, name, options));
    let [a, b, c] = ["a", "b", "c"].map(|name| {
        let export = &exports[["a", "b", "c"].iter().position(|it| *it == name).unwrap()];
        format!("m/{name}={}", export.uri)
    });
    world.run(&["backup", "--machine", "m", &a, &b]).exits(0);
    // Now `b` has lost its bitmap, and `c` is new.
    let tracked = ["--json", "backup", "--machine", "m", "--bitmap", "day1", "--cbt-base", "m@0"];
    let hint = "--cbt-fallback";
    world.run(&[&tracked[1..], &[&a, &b]].concat()).exits(1).says("no dirty bitmap \"day1\"").says(hint);
    world.run(&[&tracked[1..], &[&a, &c]].concat()).exits(1).says("m@0 has no disk m/c").says(hint);
    let ran = world.run(&[&tracked[..], &["--cbt-fallback", &a, &b, &c]].concat()).exits(0);
    let ran = ran.says("m/b is read in full").says("m/c is read in full");
    let why = |disk: usize| ran.json()["backups"][disk]["cbt"]["full_read"].clone();
    assert_eq!(why(0), json!(null));
    assert!(why(1).as_str().unwrap().contains("no dirty bitmap"), "{}", why(1));
    assert!(why(2).as_str().unwrap().contains("m@0 has no disk m/c"), "{}", why(2));
    world.run(&["restore", "--machine", "m@1", "out"]).exits(0);
    for name in ["a", "b", "c"] {
        assert!(world.read(&format!("out/{name}.raw")) == vec![1; 16 << 20]);
    }
}

#[test]
fn a_fleecing_image_that_was_used_before_is_refused() {
    let world = World::new();
    if !has_qemu(&world) {
        return;
    }
    world.init_small();
    image(&world, "disk");
    {
        let export = Export::of(&world, "disk", &[]);
        world.run(&["backup", &format!("web={}", export.uri)]).exits(0);
    }
    add_bitmap(&world, "disk");
    let write =
        |image: &str, what: &str| assert!(qemu(&world, "qemu-io", &["-f", "qcow2", "-c", what, image]));
    write("disk", "write -P 2 3M 256k");
    let expected = || {
        assert!(qemu(&world, "qemu-img", &["convert", "-f", "qcow2", "-O", "raw", "disk", "expected"]));
        world.read("expected")
    };
    let fleece = |what: &str| {
        let _ = fs::remove_file(world.path("fleece"));
        let made = ["create", "-f", "qcow2", "-F", "qcow2", "-b", "disk", "fleece"];
        assert!(qemu(&world, "qemu-img", &made));
        write("fleece", what);
        Export::of(&world, "fleece", &["-A", "-B", "day1"])
    };
    let back_up = |export: &Export| {
        let source = format!("web={}", export.uri);
        world.run(&["backup", "--bitmap", "day1", "--cbt-base", "web@0", "--cbt-fallback", &source])
    };
    // Of the day before: what was there when the guest overwrote it then.
    let export = fleece("write -P 1 3M 64k");
    back_up(&export).exits(1).says("the fleecing image of the export was used before: 1 of 1 blocks");
    drop(export);
    // Of this day: what is there now, in two blocks of a change and in one that did not change.
    let export = fleece("write -P 2 3M 128k");
    back_up(&export).exits(0);
    drop(export);
    assert!(world.run(&["restore", "web@1", "-"]).exits(0).stdout == expected());
}
