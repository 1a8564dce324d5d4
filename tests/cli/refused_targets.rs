//! Targets that no restore writes to, whatever it was told: paths in a repository, names of other formats, and files of others.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use ekko::progress::Silent;
use ekko::repository::Repository;
use ekko::restore::{RestoreOptions, plan_target, restore_planned};

use crate::harness::{World, noise, ran};
use crate::machine::{BACKUP, machine, names};

const SEGMENT: usize = 64 << 10;
const SIZE: usize = 4 * SEGMENT;

/// A world with a backup `disk` of a disk without zeros.
fn backed_up() -> World {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, SIZE));
    world.run(&["backup", "disk"]).exits(0);
    world
}

/// The names and bytes of all files below a folder, but for those of the index and the leases, which readers change, and the large one.
fn all_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for name in
        names(folder).into_iter().filter(|name| !["index", "leases", "reserve"].contains(&name.as_str()))
    {
        let path = folder.join(&name);
        if path.is_dir() {
            found.extend(all_of(&path));
        } else {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    found
}

#[test]
fn no_restore_and_no_export_writes_into_a_repository() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    world.write("disk", &noise(1, SIZE));
    world.run(&["backup", "disk"]).exits(0);
    let other = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
        ran(command.args(["-r", "S"]).args(arguments).current_dir(world.path("")).output().unwrap())
    };
    other(&["init"]).exits(0);
    symlink("R/packs", world.path("link")).unwrap();
    symlink("R/ekko.toml", world.path("toml")).unwrap();
    world.write("list", format!("[{{\"offset\":0,\"length\":{SIZE},\"exists\":\"true\"}}]").as_bytes());
    let pack = "R/packs/0000000000000001.pack";
    let before = [all_of(&world.path("R")), all_of(&world.path("S"))];
    let arguments: [&[&str]; 19] = [
        &["restore", "disk", "R/new"],
        &["restore", "disk", "R/packs/new"],
        &["restore", "disk", "S/manifests/new"],
        &["restore", "disk", "link/new"],
        &["restore", "--force", "disk", pack],
        &["restore", "--force", "disk", "toml"],
        &["restore", "--force", "--in-place", "disk", pack],
        &["restore", "--force", "--delta", "list", "disk", pack],
        &["restore", "--offset", "0", "disk", "R/part"],
        &["restore", "--format", "qcow2", "disk", "R/new.qcow2"],
        &["restore", "--machine", "web", "R/new"],
        &["restore", "--machine", "web", "--force", "S"],
        &["restore", "--machine", "web", "out", "--to", "vda=R/packs/new"],
        &["restore", "--machine", "web", "out", "--to", "domain.xml=S/new"],
        &["manifest", "export", "disk", "R/new"],
        &["manifest", "export", "--format", "osdk", "--force", "disk", "R/ekko.toml"],
        &["manifest", "export", "disk", "new.sqlite", "--segments", "S/manifests/flat/new"],
        &["manifest", "export", "disk", "new.sqlite", "--segments", "S"],
        &["manifest", "generate", "--backupsize", "1", "R/new"],
    ];
    for arguments in arguments {
        let ran = world.run(arguments).exits(2).says("lies in the repository ");
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!([all_of(&world.path("R")), all_of(&world.path("S"))] == before, "{arguments:?}");
        assert!(!world.path("out").exists() && !world.path("new.sqlite").exists(), "{arguments:?}");
    }
    world.run(&["manifest", "export", "disk", "file"]).exits(0);
    world.run(&["manifest", "import", "file", "--output", "R/new"]).exits(2).says("lies in the repository ");
    assert!(names(&world.path("")).iter().all(|name| !name.contains("partial")));
    // One whose settings are lost can be rescued.
    fs::remove_file(world.path("S/ekko.toml")).unwrap();
    world.run(&["restore", "disk", "S/new"]).exits(2).says("lies in the repository ");
    world.run(&["restore", "disk", "R-new"]).exits(0);
}

#[test]
fn a_raw_disk_gets_the_name_of_another_format_only_if_raw_is_asked_for() {
    let world = backed_up();
    world.write("old.qcow2", b"old");
    symlink("old.qcow2", world.path("link")).unwrap();
    let refused = |arguments: &[&str], hint: &str| {
        let ran = world.run(&[&["restore"], arguments].concat()).exits(2).says(hint);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(world.read("old.qcow2") == b"old" && !world.path("new.qcow2").exists(), "{arguments:?}");
    };
    let both = "add --format qcow2, or --format raw";
    refused(&["disk", "new.qcow2"], both);
    refused(&["--force", "disk", "old.qcow2"], both);
    refused(&["--force", "disk", "link"], both);
    let raw = "add --format raw";
    for name in ["qcow", "vmdk", "vhd", "vhdx", "vdi", "qed", "VMDK"] {
        refused(&["disk", &format!("new.{name}")], raw);
    }
    // Only all of a disk can become qcow2.
    refused(&["--force", "--in-place", "disk", "old.qcow2"], raw);
    refused(&["--offset", "64KiB", "disk", "new.qcow2"], raw);
    for kind in [&["--force", "--in-place"][..], &["--offset", "0"], &["--length", "1"]] {
        refused(&[kind, &["--format", "qcow2", "disk", "new.qcow2"]].concat(), "write raw bytes");
    }
    world.run(&["restore", "--format", "raw", "disk", "new.qcow2"]).exits(0);
    assert!(world.read("new.qcow2") == noise(1, SIZE));
    world.run(&["restore", "--format", "raw", "--force", "disk", "old.qcow2"]).exits(0);
    world.write("old.qcow2", &noise(2, SIZE));
    world.run(&["restore", "--format", "raw", "--force", "--in-place", "disk", "old.qcow2"]).exits(0);
    assert!(world.read("old.qcow2") == noise(1, SIZE));
    // The disks of a machine, whose own names end in .raw; a file that is no disk may have any name.
    let world = machine();
    world.run(&BACKUP).exits(0);
    let to = |vda: &str, xml: &str| {
        let (vda, xml) = (format!("vda={vda}"), format!("domain.xml={xml}"));
        world.run(&["restore", "--machine", "web", "out", "--to", &vda, "--to", &xml])
    };
    to("a.vmdk", "b.qcow2").exits(2).says("a.vmdk").says(raw);
    assert!(!world.path("out").exists() && !world.path("a.vmdk").exists());
    to("a.raw", "b.qcow2").exits(0);
    assert_eq!(names(&world.path("out")), ["machine.json", "vars.fd", "vdb.raw"]);
}

#[test]
fn a_part_of_a_disk_goes_over_no_file_that_exists() {
    let world = backed_up();
    world.write("old", b"old");
    symlink("old", world.path("link")).unwrap();
    for name in ["old", "link"] {
        for part in [&["--offset", "64KiB"][..], &["--length", "64KiB"], &["--offset", "0", "--length", "1"]]
        {
            for force in [&[][..], &["--force"]] {
                let ran = world.run(&[&["restore"], force, part, &["disk", name]].concat()).exits(2);
                assert!(ran.says("name a new file").stderr.lines().count() == 1);
                assert!(world.read("old") == b"old");
            }
        }
    }
    world.run(&["restore", "--offset", "64KiB", "--length", "64KiB", "disk", "new"]).exits(0);
    assert!(world.read("new") == noise(1, SIZE)[SEGMENT..2 * SEGMENT]);
}

#[test]
fn a_temporary_name_that_something_else_has_is_left_alone() {
    let world = machine();
    world.run(&BACKUP).exits(0);
    world.write("old", b"old");
    let disk = noise(1, 3 * SEGMENT + 5);
    for (target, folder) in [("new", false), ("old", false), ("out", true)] {
        let partial = format!("{target}.ekko-partial");
        let restore: &[&str] = if folder {
            &["restore", "--machine", "web", target]
        } else {
            &["restore", "--force", "web/vda", target]
        };
        let file = if folder {
            fs::create_dir(world.path(&partial)).unwrap();
            fs::set_permissions(world.path(&partial), fs::Permissions::from_mode(0o700)).unwrap();
            format!("{partial}/precious")
        } else {
            partial.clone()
        };
        world.write(&file, b"precious");
        fs::set_permissions(world.path(&file), fs::Permissions::from_mode(0o600)).unwrap();
        let ran = world.run(restore).exits(2).says(&partial).says("is in the way").says("move it away");
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(world.read(&file) == b"precious" && world.read("old") == b"old");
        fs::rename(world.path(&partial), world.path("moved")).unwrap();
        world.run(restore).exits(0);
        fs::rename(world.path("moved"), world.path(&format!("moved-{target}"))).unwrap();
        // The mark of what may be removed is gone as well.
        let mode = fs::metadata(world.path(target)).unwrap().permissions().mode();
        assert_eq!(mode & 0o1000, 0, "{mode:o}");
        fs::remove_file(world.path("old")).unwrap();
        world.write("old", b"old");
    }
    assert!(world.read("new") == disk && world.read("out/vda.raw") == disk);
}

#[test]
fn an_incomplete_disk_that_was_kept_stays_until_somebody_moves_it() {
    let world = backed_up();
    let repository = Repository::open(&world.path("R")).unwrap();
    let (sets, _) = repository.backupsets().unwrap();
    let manifest = repository.manifest(&sets[0], &sets[0].backups[0]).unwrap();
    let (target, partial) = (world.path("new"), world.path("new.ekko-partial"));
    for keep_partial in [false, true] {
        let options = RestoreOptions { keep_partial, ..RestoreOptions::default() };
        let plan = plan_target(&manifest, &target, &options).unwrap();
        // It ends before the disk has its name.
        drop(restore_planned(&repository, &manifest, plan, &options, &Silent).unwrap());
        assert_eq!(partial.exists(), keep_partial);
    }
    let restore = ["restore", "--force", "disk", "new"];
    for _ in 0..2 {
        world.run(&restore).exits(2).says("new.ekko-partial is in the way").says("--keep-partial");
        assert!(world.read("new.ekko-partial") == noise(1, SIZE) && !target.exists());
    }
    fs::remove_file(&partial).unwrap();
    world.run(&restore).exits(0);
}
