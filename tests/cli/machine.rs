//! Machines: several disks at one moment, what lies beside them, and the commands before and after.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{World, keys, noise};

const SEGMENT: usize = 64 << 10;

/// A world with two disks and two small files of a machine.
pub(crate) fn machine() -> World {
    let world = World::new();
    world.init_small();
    world.write("a", &noise(1, 3 * SEGMENT + 5));
    world.write("b", &[noise(2, SEGMENT), vec![0; SEGMENT], noise(1, SEGMENT)].concat());
    world.write("domain.xml", b"<domain/>");
    world.write("vars.fd", &noise(9, 1000));
    world
}

pub(crate) const BACKUP: [&str; 9] =
    ["backup", "--machine", "web", "web/vda=a", "web/vdb=b", "--attach", "domain.xml", "--attach", "vars.fd"];

pub(crate) fn backups(world: &World) -> Vec<String> {
    let list = world.json(&["list"]);
    let name = |row: &Value| row["backup"].as_str().unwrap().to_owned();
    list["backups"].as_array().unwrap().iter().map(name).collect()
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_machine_comes_back_whole_disks_and_files_from_each_of_its_moments() {
    let world = machine();
    let first = world.json(&BACKUP);
    assert_eq!(keys(&first), ["backups", "failed", "machine"]);
    assert_eq!(keys(&first["machine"]), ["attached", "backup", "backupset", "incremental", "timestamp"]);
    assert_eq!(first["machine"]["backup"], "web@0");
    world.write("a", &noise(3, 2 * SEGMENT));
    world.write("domain.xml", b"<domain id='2'/>");
    let said = world.run(&BACKUP).exits(3).says("web/vda shrank").text();
    assert!(said.ends_with("web@1: 2 disks and 2 attached files at one moment\n"), "{said}");
    assert_eq!(backups(&world), ["web@0", "web@1", "web/vda@0", "web/vda@1", "web/vdb@0", "web/vdb@1"]);
    let list = world.json(&["list"]);
    let times: Vec<_> = list["backups"].as_array().unwrap().iter().map(|row| &row["timestamp"]).collect();
    assert_eq!((times[0], times[0], times[1]), (times[2], times[4], times[3]), "one moment, one time");
    world.run(&["restore", "--machine", "web@0", "day0"]).exits(0);
    world.run(&["restore", "--machine", "web@latest", "day1"]).exits(0);
    for day in ["day0", "day1"] {
        assert_eq!(names(&world.path(day)), ["domain.xml", "machine.json", "vars.fd", "vda.raw", "vdb.raw"]);
        assert_eq!(world.read(&format!("{day}/vdb.raw")), world.read("b"));
        assert_eq!(world.read(&format!("{day}/vars.fd")), noise(9, 1000));
    }
    assert_eq!(world.read("day0/vda.raw"), noise(1, 3 * SEGMENT + 5));
    assert_eq!(world.read("day0/domain.xml"), b"<domain/>");
    assert_eq!(world.read("day1/vda.raw"), noise(3, 2 * SEGMENT));
    assert_eq!(world.read("day1/domain.xml"), b"<domain id='2'/>");
    let description: Value = serde_json::from_slice(&world.read("day1/machine.json")).unwrap();
    assert_eq!((&description["format"], &description["machine"]), (&1.into(), &"web".into()));
    assert_eq!(description["disks"][1]["incremental"], 1);
    // The moment is a backup like others: its disk is an archive that tar reads.
    world.run(&["restore", "web@0", "web.tar"]).exits(0);
    let listed = std::process::Command::new("tar").arg("-tf").arg(world.path("web.tar")).output().unwrap();
    assert_eq!(listed.stdout, b"attached/domain.xml\nattached/vars.fd\nmachine.json\n");
    world.run(&["check", "--read-data"]).exits(0);
}

#[test]
fn show_says_what_a_moment_consists_of_and_a_disk_says_whose_it_is() {
    let world = machine();
    let done = world.json(&BACKUP);
    let shown = world.json(&["show", "web"]);
    assert_eq!(shown["attributes"]["kind"], "machine");
    assert_eq!(keys(&shown["parts"]), ["attached", "disks", "machine"]);
    let disk = &shown["parts"]["disks"][0];
    assert_eq!((&disk["backup"], &disk["file"]), (&"web/vda@0".into(), &"vda.raw".into()));
    assert_eq!(disk["manifest_blake3"], world.json(&["show", "web/vda"])["manifest_blake3"]);
    assert_eq!(shown["parts"]["attached"][1], serde_json::json!({ "name": "vars.fd", "size": 1000 }));
    let own = format!("{}@0", done["machine"]["backupset"].as_str().unwrap());
    assert_eq!(world.json(&["show", "web/vdb"])["attributes"]["machine"], own.as_str());
    let text = world.run(&["show", "web"]).exits(0).text();
    assert!(text.contains("web/vda@0: 192.0 KiB, raw") && text.contains("domain.xml: 9 B"), "{text}");
    lose(&world, "web/vdb");
    let text = world.run(&["show", "web"]).exits(0).text();
    assert!(text.contains("missing: web/vdb ("), "{text}");
}

/// Loses the list of a disk's backups, with their manifests. Returns where it was and where it is.
pub(crate) fn lose(world: &World, name: &str) -> [std::path::PathBuf; 2] {
    let set = world.json(&["show", name])["backupset"].as_str().unwrap().to_owned();
    let places = [world.path(&format!("R/manifests/{set}")), world.path("lost")];
    fs::rename(&places[0], &places[1]).unwrap();
    places
}

#[test]
fn a_moment_that_lost_a_disk_says_which_and_restores_nothing() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    let [place, lost] = lose(&world, "web/vdb");
    world.run(&["restore", "--machine", "web", "out"]).exits(1).says("web/vdb (").says("is not there");
    assert!(!world.path("out").exists());
    fs::rename(lost, place).unwrap();
    world.run(&["restore", "--machine", "web", "out"]).exits(0);
    // What is there is not overwritten unless that was said.
    world.run(&["restore", "--machine", "web", "out"]).exits(2).says("is not empty");
    world.write("out/vda.raw", b"old");
    world.run(&["restore", "--machine", "--force", "web", "out"]).exits(0);
    assert_eq!(world.read("out/vda.raw"), world.read("a"));
    world.run(&["restore", "--machine", "web/vda", "other"]).exits(2).says("leave --machine out");
}

#[test]
fn a_source_that_fails_leaves_nothing_of_the_machine() {
    let world = machine();
    world
        .run(&["backup", "--machine", "web", "web/vda=a", "web/vdb=nowhere"])
        .exits(1)
        .says("web/vdb was not backed up");
    assert_eq!(backups(&world), [""; 0]);
    // One whose tables make no sense.
    world.write("b.qcow2", b"QFI\xfb\0\0\0\x03 no image");
    world.run(&["backup", "--machine", "web", "web/vda=a", "web/vdb=b.qcow2"]).exits(1);
    assert_eq!(backups(&world), [""; 0]);
    world.run(&BACKUP).exits(0);
    assert_eq!(backups(&world), ["web@0", "web/vda@0", "web/vdb@0"]);
}

#[test]
fn names_that_lead_elsewhere_or_are_taken_are_refused_before_anything_is_done() {
    let world = machine();
    fs::create_dir(world.path("sub")).unwrap();
    world.write("sub/domain.xml", b"other");
    world.write("vda.raw", b"x");
    for (arguments, why) in [
        (&["web/vda=a", "db/vdb=b"][..], "name it web/DISK"),
        (&["web=a"], "name it web/DISK"),
        (&["a"], "name it web/DISK"),
        (&["web/../x=a"], "no path"),
        (&["web/a/b=a"], "no path"),
        (&["web/vda=a", "--attach", "domain.xml", "--attach", "sub/domain.xml"], "would be named domain.xml"),
        (&["web/vda=a", "--attach", "vda.raw"], "would be named vda.raw"),
        (&["web/vda=a", "--attach", ".."], "cannot name"),
    ] {
        let before = ["backup", "--machine", "web", "--before", "touch ran"];
        world.run(&[&before, arguments].concat()).exits(2).says(why);
    }
    assert!(!world.path("ran").exists());
    fs::File::create(world.path("large")).unwrap().set_len((64 << 20) + 1).unwrap();
    world.run(&["backup", "--machine", "web", "web/vda=a", "--attach", "large"]).exits(2).says("is the most");
    assert_eq!(backups(&world), [""; 0]);
}

#[test]
fn a_name_is_that_of_a_machine_or_of_a_disk() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    world.run(&["backup", "web=a"]).exits(1).says("names a machine already");
    world.run(&["backup", "db=a"]).exits(0);
    world.run(&["backup", "--machine", "db", "db/vda=a"]).exits(2).says("names a disk already");
}

#[test]
fn delete_takes_a_moment_and_its_disks_and_forget_keeps_them_in_step() {
    let world = machine();
    for _ in 0..3 {
        world.run(&BACKUP).exits(0);
    }
    let plan = world.json(&["delete", "--machine", "web@1", "--dry-run"]);
    let plan = plan["deleted"].as_array().unwrap().iter().map(|row| row["backup"].as_str().unwrap());
    assert_eq!(plan.collect::<Vec<_>>(), ["web/vda@1", "web/vdb@1", "web@1"]);
    assert_eq!(backups(&world).len(), 9);
    world.run(&["protect", "web/vdb@1"]).exits(0);
    world.run(&["delete", "--machine", "web@1"]).exits(2).says("web/vdb@1 is protected: nothing was deleted");
    world.run(&["unprotect", "web/vdb@1"]).exits(0);
    world.run(&["delete", "--machine", "web@1"]).exits(0);
    assert_eq!(backups(&world), ["web@0", "web@2", "web/vda@0", "web/vda@2", "web/vdb@0", "web/vdb@2"]);
    world.run(&["forget", "--keep-last", "1", "--gc"]).exits(0);
    assert_eq!(backups(&world), ["web@2", "web/vda@2", "web/vdb@2"]);
    world.run(&["restore", "--machine", "web", "out"]).exits(0);
    assert_eq!(world.read("out/vdb.raw"), world.read("b"));
    world.run(&["check", "--read-data"]).exits(0);
}

#[test]
fn commands_run_before_the_sources_are_opened_and_after_they_are_closed() {
    let world = machine();
    // The disk and a file beside it are made by the first command, and gone after the second.
    let before = "mv a away; cp away c; echo \"<$EKKO_MACHINE/>\" > made.xml; echo told";
    let after = "rm c; echo \"$EKKO_MACHINE $EKKO_RESULT\" > result; ls -l /proc/$PPID/fd > open";
    let ran = world.run(&[
        "--json",
        "backup",
        "--machine",
        "web",
        "web/vda=c",
        "web/vdb=b",
        "--attach",
        "made.xml",
        "--before",
        before,
        "--after",
        after,
    ]);
    let ran = ran.exits(0).says("told");
    assert_eq!(ran.json()["machine"]["backup"], "web@0", "stdout is for the document alone");
    assert_eq!(world.read("result"), b"web done\n");
    assert!(!world.path("c").exists());
    let open = String::from_utf8(world.read("open")).unwrap();
    assert!(open.contains("/R/"), "the repository is still open: {open}");
    for source in ["c", "b"] {
        assert!(!open.contains(&world.path(source).display().to_string()), "{open}");
    }
    world.run(&["restore", "--machine", "web", "out"]).exits(0);
    assert_eq!(world.read("out/made.xml"), b"<web/>\n");
    assert_eq!(world.read("out/vda.raw"), world.read("away"));
    // Without a machine.
    let after = "echo \"${EKKO_MACHINE-none} $EKKO_RESULT\" > result";
    world.run(&["backup", "away", "--before", "true", "--after", after]).exits(0);
    assert_eq!(world.read("result"), b"none done\n");
}

#[test]
fn if_the_command_before_fails_nothing_is_backed_up_and_the_one_after_runs() {
    let world = machine();
    let after = "echo $EKKO_RESULT > result";
    world
        .run(&[&BACKUP[..], &["--before", "exit 3", "--after", after]].concat())
        .exits(1)
        .says("--before (exit 3) failed: exit status: 3");
    assert_eq!(world.read("result"), b"failed\n");
    assert_eq!(backups(&world), [""; 0]);
    // A source that fails.
    fs::remove_file(world.path("result")).unwrap();
    world.run(&["backup", "--machine", "m", "m/a=nowhere", "--after", after]).exits(1);
    assert_eq!(world.read("result"), b"failed\n");
}

#[test]
fn a_command_after_that_fails_is_told_and_the_backup_exists() {
    let world = machine();
    world.run(&[&BACKUP[..], &["--after", "exit 1"]].concat()).exits(3).says("--after (exit 1) failed");
    assert_eq!(backups(&world), ["web@0", "web/vda@0", "web/vdb@0"]);
}

#[test]
fn a_disk_of_a_machine_that_is_open_for_writing_is_warned_of_and_it_is_written_down() {
    let world = machine();
    let script = format!("exec 3>>'{}'; echo ready; read line", world.path("b").display());
    let mut writer = std::process::Command::new("sh");
    let mut writer =
        writer.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(writer.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
    world.run(&BACKUP).exits(3).says("open for writing by process");
    drop(writer.stdin.take());
    writer.wait().unwrap();
    let attribute = |backup: &str| world.json(&["show", backup])["attributes"]["in-use"].clone();
    assert!(attribute("web/vdb").as_str().unwrap().starts_with("open for writing"));
    assert_eq!(attribute("web/vda"), Value::Null);
}

#[test]
fn a_commit_that_was_cut_short_is_seen_by_readers_and_finished_by_the_next_command() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    let before: Vec<_> = sets(&world).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    // What a crash leaves is made of what was there before, what is there after, and the file between the two.
    world.write("a", &noise(5, SEGMENT));
    world.run(&BACKUP).exits(3).says("web/vda shrank");
    let intent = intent_of(&before);
    for (bytes, path) in &before {
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(backups(&world), ["web@0", "web/vda@0", "web/vdb@0"]);
    fs::write(world.path("R/manifests/together.toml"), &intent).unwrap();
    assert_eq!(backups(&world).len(), 6, "a reader takes them as existing");
    world.run(&["restore", "--machine", "web@1", "out"]).exits(0);
    assert_eq!(world.read("out/vda.raw"), noise(5, SEGMENT));
    world.run(&["check", "--read-data"]).exits(0);
    // Damaged, it is told, nothing is freed, and no manifest goes.
    let path = world.path("R/manifests/together.toml");
    let mut damaged = intent.clone();
    damaged[20] ^= 1;
    for (bytes, path) in &before {
        fs::write(path, bytes).unwrap();
    }
    fs::write(&path, &damaged).unwrap();
    let why = world.run(&["gc", "--now"]).exits(3).text();
    assert!(why.contains("nothing is freed while a list of backups cannot be read"), "{why}");
    assert!(world.run(&["check"]).exits(3).text().contains("together.toml is damaged"));
    world.run(&["backup", "other=b"]).exits(1).says("together.toml");
    fs::write(&path, &intent).unwrap();
    world
        .run(&["gc", "--now"])
        .exits(0)
        .says("an interrupted change of several backup lists was finished (3 lists)");
    assert!(!path.exists());
    assert_eq!(backups(&world).len(), 6);
    world.run(&["check", "--read-data"]).exits(0);
    fs::remove_dir_all(world.path("out")).unwrap();
    world.run(&["restore", "--machine", "web@1", "out"]).exits(0);
}

fn sets(world: &World) -> Vec<std::path::PathBuf> {
    let folders = fs::read_dir(world.path("R/manifests")).unwrap().map(|it| it.unwrap().path());
    folders.filter(|path| path.is_dir()).map(|path| path.join("set.toml")).collect()
}

/// Makes, by `docs/format.md`, the file that stood before the sets were replaced by what they are now.
fn intent_of(before: &[(Vec<u8>, std::path::PathBuf)]) -> Vec<u8> {
    let additions = before.iter().map(|(_, path)| {
        let set = fs::read_to_string(path).unwrap();
        let id = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let record = set.rsplit_once("[[backup]]\n").unwrap().1.split("# BLAKE3").next().unwrap();
        format!("\n[[addition]]\nbackupset = \"{id}\"\n\n[addition.backup]\n{record}")
    });
    let text = format!("format = 1\n{}", additions.collect::<String>());
    let sum = blake3::hash(text.as_bytes()).to_hex();
    format!("{text}# BLAKE3 of all before this line: {sum}\n").into_bytes()
}

/// Runs one of QEMU's programs in the world's folder. Says whether it could.
fn qemu(world: &World, program: &str, arguments: &[&str]) -> bool {
    let mut command = std::process::Command::new(program);
    let ran = command
        .args(arguments)
        .current_dir(world.path("."))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    ran.is_ok_and(|status| status.success())
}

/// Servers of QEMU, which end with the test.
struct Servers(Vec<std::process::Child>);

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Servers {
    /// Exports the two disks, each with its bitmap.
    fn start(world: &World) -> Self {
        let serve = |disk: &str| {
            let socket = world.path(&format!("{disk}.sock"));
            let mut command = std::process::Command::new("qemu-nbd");
            command.args(["-r", "-t", "-f", "qcow2", "-B", "day1", "-k"]).arg(&socket);
            let child = command.arg(world.path(&format!("{disk}.qcow2"))).spawn().unwrap();
            let begun = Instant::now();
            while !socket.exists() {
                assert!(begun.elapsed() < Duration::from_mins(1));
                std::thread::sleep(Duration::from_millis(10));
            }
            child
        };
        Self(vec![serve("x"), serve("y")])
    }
}

#[test]
fn a_machine_is_read_by_the_bitmaps_of_its_disks_since_its_last_moment() {
    let world = machine();
    if !qemu(&world, "qemu-nbd", &["--version"]) || !qemu(&world, "qemu-io", &["--version"]) {
        return;
    }
    let write = |disk: &str, what: &str| qemu(&world, "qemu-io", &["-f", "qcow2", "-c", what, disk]);
    for disk in ["x.qcow2", "y.qcow2"] {
        assert!(qemu(&world, "qemu-img", &["create", "-f", "qcow2", disk, "16M"]));
        assert!(write(disk, "write -P 1 0 16M"));
        assert!(qemu(&world, "qemu-img", &["bitmap", "--add", "-g", "65536", disk, "day1"]));
    }
    let sources = ["x", "y"].map(|disk| {
        format!("web/{disk}=nbd+unix:///?socket={}", world.path(&format!("{disk}.sock")).display())
    });
    let backup = ["--json", "backup", "--machine", "web", &sources[0], &sources[1]];
    {
        let _servers = Servers::start(&world);
        world.run(&backup).exits(0);
    }
    let _ = (fs::remove_file(world.path("x.sock")), fs::remove_file(world.path("y.sock")));
    assert!(write("x.qcow2", "write -P 2 3M 64k") && write("y.qcow2", "write -P 3 5M 128k"));
    let _servers = Servers::start(&world);
    let by_bitmap = [&backup[..], &["--bitmap", "day1", "--cbt-base", "web@0"]].concat();
    let done = world.run(&by_bitmap).exits(0).json();
    for (disk, changed) in [(0, 1), (1, 2)] {
        let disk = &done["backups"][disk];
        assert_eq!(
            (&disk["cbt"]["kind"], &disk["new_segments"]),
            (&"nbd-dirty-bitmap".into(), &1.into()),
            "{disk}"
        );
        assert!(disk["read_bytes"].as_u64().unwrap() <= (changed + 10) * SEGMENT as u64, "{disk}");
    }
    world.run(&["restore", "--machine", "web@1", "out"]).exits(0);
    for (disk, byte, at, length) in [("x", 2, 3 << 20, SEGMENT), ("y", 3, 5 << 20, 2 * SEGMENT)] {
        let mut expected = vec![1; 16 << 20];
        expected[at..at + length].fill(byte);
        assert!(world.read(&format!("out/{disk}.raw")) == expected, "{disk}");
    }
    // The disks' own moment is meant, and no other.
    world.run(&[&backup[..], &["--bitmap", "day1", "--cbt-base", "web@0"]].concat()).exits(1);
    assert_eq!(backups(&world).len(), 6);
}
