//! Disks with unreadable sectors: a server of QEMU that injects errors. The tests do nothing where QEMU's tools are not.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{World, noise};

const SEGMENT: usize = 64 << 10;
const SECTOR: usize = 512;

/// A server that exports the file `disk` and cannot read some of its sectors, until it is dropped.
pub(crate) struct Worn {
    server: Child,
    pub(crate) uri: String,
}

impl Drop for Worn {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

pub(crate) fn has_qemu() -> bool {
    let version = Command::new("qemu-nbd").arg("--version").stdout(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

impl Worn {
    pub(crate) fn new(world: &World, sectors: &[usize]) -> Self {
        Self::started(world, &["-r"], &[("read", sectors)])
    }

    /// One that can be written, but for some sectors; others, or the same ones, cannot be read.
    pub(crate) fn writable(world: &World, unreadable: &[usize], unwritable: &[usize]) -> Self {
        Self::started(
            world,
            &["--cache=none", "-e", "4"],
            &[("read", unreadable), ("write", unwritable), ("write-zeroes", unwritable)],
        )
    }

    fn started(world: &World, arguments: &[&str], faults: &[(&str, &[usize])]) -> Self {
        let socket = world.path("socket");
        let _ = fs::remove_file(&socket);
        let disk = world.path("disk");
        let mut options = format!(
            "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={}",
            disk.display()
        );
        let faults =
            faults.iter().flat_map(|(task, sectors)| sectors.iter().map(move |sector| (task, sector)));
        for (number, (task, sector)) in faults.enumerate() {
            let rule = format!("file.inject-error.{number}");
            let rule = [".event=none", &format!(".iotype={task}"), ".errno=5", &format!(".sector={sector}")]
                .map(|setting| format!(",{rule}{setting}"));
            options.push_str(&rule.concat());
        }
        let mut command = Command::new("qemu-nbd");
        command.args(arguments).args(["-t", "--image-opts", &options, "-k"]).arg(&socket);
        let server = command.stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { server, uri: format!("nbd+unix:///?socket={}", socket.display()) }
    }

    fn source(&self) -> String {
        format!("web={}", self.uri)
    }
}

fn range(sector: usize, sectors: usize) -> Value {
    json!({ "offset": sector * SECTOR, "length": sectors * SECTOR })
}

/// The disk with zeros in place of some sectors.
fn with_zeros(disk: &[u8], sectors: &[usize]) -> Vec<u8> {
    let mut disk = disk.to_owned();
    for sector in sectors {
        disk[sector * SECTOR..(sector + 1) * SECTOR].fill(0);
    }
    disk
}

#[test]
fn a_disk_with_bad_sectors_is_backed_up_around_them_if_that_is_asked() {
    let world = World::new();
    if !has_qemu() {
        return;
    }
    world.init_small();
    let disk = noise(1, 40 * SEGMENT);
    world.write("disk", &disk);
    let bad = [3, 4, 2000, 5119];
    let worn = Worn::new(&world, &bad);
    let hint = "--skip-bad-sectors";
    world.run(&["backup", &worn.source()]).exits(1).says("input/output error on the server").says(hint);
    assert_eq!(world.json(&["list"])["backups"], json!([]));
    let ended = world.run(&["-q", "--json", "backup", hint, &worn.source()]).exits(3);
    let ended = ended.says("2.0 KiB of web in 3 ranges cannot be read and are zeros in this backup").json();
    let ranges = json!([range(3, 2), range(2000, 1), range(5119, 1)]);
    assert_eq!(ended["backups"][0]["unreadable"], ranges);
    assert!(world.run(&["restore", "web", "-"]).exits(0).stdout == with_zeros(&disk, &bad));
    // Everything lists them.
    let show = world.json(&["show", "web"]);
    assert_eq!(show["unreadable"], ranges);
    assert_eq!(world.json(&["list"])["backups"][0]["unreadable_bytes"], 4 * SECTOR);
    let text = world.run(&["show", "web"]).exits(0).text();
    assert!(text.contains("1.0 KiB at 1.5 KiB (byte 1536): zeros in this backup"), "{text}");
    let text = world.run(&["list"]).exits(0).text();
    assert!(text.contains("web@0 has zeros in place of 2.0 KiB that could not be read"), "{text}");
    // The comparison goes on past them.
    let same = world.run(&["--json", "verify", "web", &worn.uri]).exits(3).json();
    assert_eq!(
        (&same["unreadable"], &same["never_read"], &same["differing"]),
        (&ranges, &ranges, &json!([]))
    );
    let text = world.run(&["verify", "web", &worn.uri]).exits(3).text();
    assert!(text.contains("cannot be read; every segment without them is what web@0 holds"), "{text}");
    let differs = world.run(&["--json", "verify", "web", "disk"]).exits(3).json();
    assert_eq!(differs["differing"].as_array().unwrap().len(), 3);
    assert_eq!((differs.get("unreadable"), &differs["never_read"]), (None, &ranges));
    // A disk that gives everything again loses the mark.
    world.run(&["backup", "web=disk"]).exits(0);
    let show = world.json(&["show", "web"]);
    assert_eq!((show.get("unreadable"), show["attributes"].get("unreadable")), (None, None));
    world.run(&["verify", "web", "disk"]).exits(0);
}

#[test]
fn sectors_that_could_not_be_read_are_read_again_although_a_list_does_not_name_them() {
    let world = World::new();
    if !has_qemu() {
        return;
    }
    world.init_small();
    let mut disk = noise(2, 40 * SEGMENT);
    world.write("disk", &disk);
    let worn = Worn::new(&world, &[600, 4000]);
    world.run(&["backup", "--skip-bad-sectors", &worn.source()]).exits(3);
    // Another segment changes, and only that is in the list.
    disk[20 * SEGMENT..21 * SEGMENT].fill(7);
    fs::write(world.path("disk"), &disk).unwrap();
    let list = json!([{ "offset": 20 * SEGMENT, "length": SEGMENT, "exists": "true" }]);
    world.write("list", list.to_string().as_bytes());
    drop(worn);
    let worn = Worn::new(&world, &[4000]);
    let tracked = ["--cbt", "list", "--cbt-base", "web@0", "--cbt-audit", "1", "--skip-bad-sectors"];
    world.run(&[&["backup"], &tracked[..], &[&worn.source()]].concat()).exits(3);
    // One came back; the other is marked still.
    assert_eq!(world.json(&["show", "web"])["unreadable"], json!([range(4000, 1)]));
    assert!(world.run(&["restore", "web", "-"]).exits(0).stdout == with_zeros(&disk, &[4000]));
    world.write("list", b"[]");
    let tracked = ["--cbt", "list", "--cbt-base", "web@1", "--cbt-audit", "1"];
    let done = world.json(&[&["backup"], &tracked[..], &["web=disk"]].concat());
    assert!(done["backups"][0]["cbt"].get("full_read").is_none(), "{done}");
    assert_eq!(world.json(&["show", "web"]).get("unreadable"), None);
    assert!(world.run(&["restore", "web", "-"]).exits(0).stdout == disk);
}

#[test]
fn a_list_of_changes_is_not_wrong_because_an_audited_segment_cannot_be_read() {
    let world = World::new();
    if !has_qemu() {
        return;
    }
    world.init_small();
    let mut disk = [noise(4, 30 * SEGMENT), vec![0; 10 * SEGMENT]].concat();
    world.write("disk", &disk);
    world.run(&["backup", "web=disk"]).exits(0);
    disk[20 * SEGMENT..21 * SEGMENT].fill(7);
    fs::write(world.path("disk"), &disk).unwrap();
    let list = json!([{ "offset": 20 * SEGMENT, "length": SEGMENT, "exists": "true" }]);
    world.write("list", list.to_string().as_bytes());
    // One in a segment that has data and one in a segment of zeros, both audited; and one in the segment that changed.
    let worn = Worn::new(&world, &[600, 35 * 128 + 7, 20 * 128]);
    let tracked = [
        "--json",
        "backup",
        "--cbt",
        "list",
        "--cbt-base",
        "web@0",
        "--cbt-audit",
        "100",
        "--skip-bad-sectors",
    ];
    let ran = world.run(&[&tracked[..], &[&worn.source()]].concat()).exits(3);
    let ran = ran.says("1024 bytes of web cannot be read; this backup has there what the backup before has");
    let done = ran.json();
    assert_eq!(done["backups"][0]["cbt"].get("full_read"), None, "{done}");
    // What the backup before has is no flaw.
    assert_eq!(done["backups"][0]["unreadable"], json!([range(20 * 128, 1)]));
    assert!(world.run(&["restore", "web", "-"]).exits(0).stdout == with_zeros(&disk, &[20 * 128]));
    let shown = world.json(&["show", "web@0"]);
    assert_eq!(shown.get("suspect"), None, "{shown}");
    world.run(&["check", "--read-data"]).exits(0);
    // A list that is wrong about another segment is found out all the same, and the disk is read in full.
    disk[3 * SEGMENT] ^= 1;
    fs::write(world.path("disk"), &disk).unwrap();
    world.write("list", b"[]");
    let tracked = [
        "--json",
        "backup",
        "--cbt",
        "list",
        "--cbt-base",
        "web@1",
        "--cbt-audit",
        "100",
        "--skip-bad-sectors",
    ];
    let done = world.run(&[&tracked[..], &[&worn.source()]].concat()).exits(3).json();
    assert!(done["backups"][0]["cbt"]["full_read"].as_str().unwrap().contains("segment 3"), "{done}");
    assert_eq!(done["backups"][0]["unreadable"].as_array().unwrap().len(), 3);
}

/// A file of which QEMU cannot read one sector, until this is dropped; and a device that is attached to it, for root.
struct WornFile {
    server: Child,
    file: std::path::PathBuf,
    device: Option<String>,
}

impl Drop for WornFile {
    fn drop(&mut self) {
        if let Some(device) = &self.device {
            let _ = Command::new("losetup").args(["-d", device]).status();
        }
        // It unmounts the file.
        let _ = Command::new("kill").arg(self.server.id().to_string()).status();
        let _ = self.server.wait();
    }
}

impl WornFile {
    /// Nothing where QEMU cannot make one.
    fn new(world: &World, sector: usize) -> Option<Self> {
        let (disk, file) = (world.path("disk"), world.write("worn", b""));
        let node = format!(
            "driver=raw,node-name=d,file.driver=blkdebug,file.image.filename={},file.image.driver=file,\
             file.inject-error.0.event=none,file.inject-error.0.errno=5,\
             file.inject-error.0.iotype=read,file.inject-error.0.sector={sector}",
            disk.display()
        );
        let export = format!("type=fuse,id=e,node-name=d,mountpoint={},writable=off", file.display());
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &node, "--export", &export]).stderr(Stdio::null());
        let mut server = command.spawn().ok()?;
        let begun = Instant::now();
        while fs::metadata(&file).unwrap().len() == 0 {
            if server.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "the file is not served");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut losetup = Command::new("losetup");
        let attached = losetup.args(["-f", "--show", "--direct-io=on"]).arg(&file).output();
        let device = attached.ok().filter(|attached| attached.status.success());
        let device = device.map(|attached| String::from_utf8(attached.stdout).unwrap().trim().to_owned());
        Some(Self { server, file, device })
    }
}

#[test]
fn no_good_sector_beside_a_bad_one_is_given_up_of_a_file_or_a_device() {
    let world = World::new();
    let disk = noise(3, 40 * SEGMENT);
    world.write("disk", &disk);
    let Some(worn) = WornFile::new(&world, 3001) else { return };
    world.init_small();
    let ranges = json!([range(3001, 1)]);
    for (name, source) in [("file", Some(worn.file.display().to_string())), ("device", worn.device.clone())] {
        let Some(source) = source else { continue };
        let pair = format!("{name}={source}");
        let ended = world.run(&["--json", "backup", "--skip-bad-sectors", &pair]).exits(3).json();
        assert_eq!(ended["backups"][0]["unreadable"], ranges, "{name}");
        assert!(world.run(&["restore", name, "-"]).exits(0).stdout == with_zeros(&disk, &[3001]));
        let compared = world.run(&["--json", "verify", name, &source]).exits(3).json();
        assert_eq!((&compared["unreadable"], &compared["differing"]), (&ranges, &json!([])), "{name}");
    }
}
