//! Restores that write into a disk which holds data: into a file, a device or an export.

use std::fs;
use std::ops::Range;
use std::path::Path;

use ekko::error::ErrorKind;
use ekko::manifest::ManifestReader;
use ekko::pace::Pace;
use ekko::progress::{Progress, Silent};
use ekko::repository::Repository;
use ekko::restore::{
    DamagedSegment, InPlaceRanges, PartialFolder, PreparedSegments, RestoreError, RestoreOptions,
    SegmentSink, SegmentSupply, plan_in_place, plan_target, restore_from, restore_in_place, restore_planned,
};
use serde_json::{Value, json};

use crate::bad_sectors::{Worn, has_qemu};
use crate::harness::{World, noise};
use crate::targets::Writer;

const SEGMENT: usize = 64 << 10;
const SECTOR: usize = 512;
const IN_PLACE: [&str; 4] = ["--json", "restore", "--force", "--in-place"];

/// Makes a backup of a disk, and then changes the disk: in the segment of the sector 600, and in another segment.
fn changed_after_its_backup() -> (World, Vec<u8>) {
    let world = World::new();
    world.init_small();
    let disk = [noise(1, 30 * SEGMENT), vec![0; 5 * SEGMENT], noise(2, 5 * SEGMENT)].concat();
    world.write("disk", &disk);
    world.run(&["backup", "web=disk"]).exits(0);
    let mut changed = disk.clone();
    for sector in [520, 600, 2560, 32 * 128] {
        changed[sector * SECTOR..(sector + 1) * SECTOR].fill(7);
    }
    world.write("disk", &changed);
    (world, disk)
}

fn range(sector: usize, sectors: usize) -> Value {
    json!([{ "offset": sector * SECTOR, "length": sectors * SECTOR }])
}

#[test]
fn a_segment_of_the_target_that_cannot_be_read_is_restored_in_place() {
    if !has_qemu() {
        return;
    }
    let (world, disk) = changed_after_its_backup();
    let worn = Worn::writable(&world, &[600], &[]);
    let restore = [&IN_PLACE[..], &["web", &worn.uri]].concat();
    let ran = world.run(&restore).exits(0).says("512 B at 300.0 KiB");
    assert_eq!(ran.json()["complete"], true);
    assert!(world.read("disk") == disk);
}

#[test]
fn a_sector_of_the_target_that_cannot_be_written_makes_a_restore_in_place_incomplete() {
    if !has_qemu() {
        return;
    }
    let (world, disk) = changed_after_its_backup();
    let mut expected = disk;
    expected[600 * SECTOR..601 * SECTOR].fill(7);
    expected[32 * 128 * SECTOR..(32 * 128 + 1) * SECTOR].fill(7);
    // In a segment that is zero in the backup as well.
    let bad = [600, 32 * 128];
    let worn = Worn::writable(&world, &bad, &bad);
    let ran = world.run(&[&IN_PLACE[..], &["web", &worn.uri]].concat()).exits(3).json();
    let unwritten: Vec<Value> = bad.iter().map(|sector| range(*sector, 1)[0].clone()).collect();
    assert_eq!((&ran["complete"], &ran["incomplete"]), (&false.into(), &Value::from(unwritten)));
    assert!(world.read("disk") == expected);
    let ran = world.run(&["restore", "--force", "--in-place", "web", &worn.uri]).exits(3);
    let text = ran.text();
    assert!(text.contains("INCOMPLETE: ") && text.contains("512 B at 300.0 KiB"), "{text}");
    assert!(text.ends_with(" could not be written\n"), "{text}");
}

/// Returns the repository and the only backup in it.
fn only_backup(world: &World) -> (Repository, ManifestReader) {
    let repository = Repository::open(&world.path("R")).unwrap();
    let (sets, _) = repository.backupsets().unwrap();
    let manifest = repository.manifest(&sets[0], &sets[0].backups[0]).unwrap();
    (repository, manifest)
}

#[test]
fn a_disk_that_somebody_opens_while_it_is_compared_is_not_overwritten() {
    let (world, disk) = changed_after_its_backup();
    let before = world.read("disk");
    let (repository, manifest) = only_backup(&world);
    let target = world.path("disk");
    let differing = std::iter::once(0..disk.len() as u64).collect();
    let all = InPlaceRanges { differing, unreadable: Vec::new() };
    for target_in_use in [false, true] {
        let options = RestoreOptions { force: true, target_in_use, ..RestoreOptions::default() };
        let plan = plan_in_place(&manifest, &target, &options).unwrap();
        // The comparison takes hours. Meanwhile somebody starts the machine.
        let _writer = Writer::of(&target);
        let restored = restore_in_place(&repository, &manifest, plan, &all, &options, &Silent);
        if target_in_use {
            restored.unwrap();
            assert!(world.read("disk") == disk);
        } else {
            let error = restored.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy);
            assert!(error.to_string().contains("open for writing by process"), "{error}");
            assert!(error.to_string().contains("nothing was written"), "{error}");
            assert!(world.read("disk") == before);
        }
    }
}

/// A service that sent the manifest, and whose link is cut before it sends a segment.
struct Cut;

impl SegmentSupply for Cut {
    fn prepare<'a>(
        &'a self,
        _: &'a ManifestReader,
        _: Vec<Range<u32>>,
        _: &dyn Progress,
    ) -> Result<Box<dyn PreparedSegments + 'a>, RestoreError> {
        Ok(Box::new(Self))
    }
}

impl PreparedSegments for Cut {
    fn fetch(
        self: Box<Self>,
        _: &dyn SegmentSink,
        _: &Pace,
        _: &dyn Progress,
    ) -> Result<Vec<DamagedSegment>, RestoreError> {
        Err(RestoreError::Sink { what: "the link is cut".to_owned() })
    }
}

#[test]
fn nothing_of_a_target_is_overwritten_before_the_first_segment_has_come() {
    if !has_qemu() {
        return;
    }
    let (world, _) = changed_after_its_backup();
    let old = noise(9, 40 * SEGMENT);
    world.write("disk", &old);
    let export = Worn::writable(&world, &[], &[]);
    let (_, manifest) = only_backup(&world);
    let options = RestoreOptions { force: true, ..RestoreOptions::default() };
    let target = Path::new(&export.uri);
    let error = restore_from(&Cut, &manifest, target, &options, &Silent).unwrap_err().to_string();
    assert_eq!(error, "the link is cut; nothing was written");
    assert!(world.read("disk") == old);
    // Nor if every segment is lost. What is in the way is an export, or a file that would be replaced.
    fs::remove_dir_all(world.path("R/packs")).unwrap();
    fs::create_dir(world.path("R/packs")).unwrap();
    world.write("file", &old);
    for (target, restore) in [("disk", export.uri.as_str()), ("file", "file")] {
        let ran = world.run(&["restore", "--force", "web", restore]).exits(1);
        assert!(ran.stderr.contains("none of the 35 segments"), "{}", ran.stderr);
        assert!(ran.stderr.contains("ekko check"), "{}", ran.stderr);
        assert!(world.read(target) == old, "{target}");
    }
}

#[test]
fn a_restore_names_the_ranges_that_its_backup_could_not_read_and_keeps_them_in_place() {
    if !has_qemu() {
        return;
    }
    let world = World::new();
    world.init_small();
    let disk = noise(1, 10 * SEGMENT);
    world.write("disk", &disk);
    let worn = Worn::new(&world, &[600]);
    world.run(&["backup", "--skip-bad-sectors", &format!("web={}", worn.uri)]).exits(3);
    let source = format!("vm/vda={}", worn.uri);
    world.run(&["backup", "--skip-bad-sectors", "--machine", "vm", &source]).exits(3);
    drop(worn);
    let ranges = range(600, 1);
    // A new file has zeros there.
    let ran = world.run(&["--json", "restore", "web", "new"]).exits(0).json();
    assert_eq!((&ran["never_read"], &ran["complete"]), (&ranges, &true.into()));
    let ran = world.run(&["restore", "--force", "web", "new"]).exits(0);
    let ran = ran.says("warning: web@0 has zeros in place of 512 B that could not be read");
    assert!(ran.text().contains("zeros: 512 B at 300.0 KiB"), "{}", ran.text());
    world.run(&["restore", "web", "-"]).exits(0).says("zeros: 512 B at 300.0 KiB");
    let ran = world.run(&["--json", "restore", "web", "part", "--length", "256KiB"]).exits(0).json();
    assert_eq!(ran.get("never_read"), None, "they are not in this part");
    // So has the disk of a machine.
    let ran = world.run(&["restore", "--machine", "vm", "vm"]).exits(0);
    let ran = ran.says("warning: vm/vda@0 has zeros in place of 512 B that could not be read");
    assert!(ran.text().contains("zeros: 512 B at 300.0 KiB"), "{}", ran.text());
    let ran = world.json(&["restore", "--force", "--machine", "vm", "vm"]);
    assert_eq!((&ran["disks"][0]["never_read"], &ran["complete"]), (&ranges, &true.into()));
    // The disk that gives these bytes again keeps them.
    let mut changed = disk.clone();
    changed[590 * SECTOR..595 * SECTOR].fill(7);
    world.write("disk", &changed);
    let ran = world.run(&[&IN_PLACE[..], &["web", "disk"]].concat()).exits(0).json();
    assert_eq!(ran["never_read"], ranges);
    assert!(world.read("disk") == disk);
    let ran = world.run(&["restore", "--force", "--in-place", "web", "disk"]).exits(0);
    assert!(ran.text().contains("left as they were: 512 B at 300.0 KiB"), "{}", ran.text());
    assert!(world.read("disk") == disk);
}

#[test]
fn only_what_a_restore_has_written_itself_gets_the_name_of_its_target() {
    let (world, disk) = changed_after_its_backup();
    let (repository, manifest) = only_backup(&world);
    let (target, partial) = (world.path("new"), world.path("new.ekko-partial"));
    let options = RestoreOptions { force: true, ..RestoreOptions::default() };
    for exists in [false, true] {
        if exists {
            world.write("new", b"old");
        }
        let plan = plan_target(&manifest, &target, &options).unwrap();
        let restored = restore_planned(&repository, &manifest, plan, &options, &Silent).unwrap();
        // Somebody removes the temporary file, and another restore makes its own.
        fs::remove_file(&partial).unwrap();
        fs::write(&partial, b"another restore").unwrap();
        let error = restored.publish().unwrap_err().to_string();
        assert!(error.starts_with("cannot restore to ") && error.contains("restore it again"), "{error}");
        assert_eq!(fs::read(&partial).unwrap(), b"another restore");
        assert_eq!(fs::read(&target).ok(), exists.then(|| b"old".to_vec()));
        // Nor is anything removed that is not its own.
        fs::remove_file(&partial).unwrap();
        let plan = plan_target(&manifest, &target, &options).unwrap();
        let restored = restore_planned(&repository, &manifest, plan, &options, &Silent).unwrap();
        fs::remove_file(&partial).unwrap();
        fs::write(&partial, b"another restore").unwrap();
        drop(restored);
        assert_eq!(fs::read(&partial).unwrap(), b"another restore");
        fs::remove_file(&partial).unwrap();
    }
    // A folder of a machine.
    let folder = PartialFolder::create(&world.path("machine"), &options).unwrap();
    fs::remove_dir(folder.path()).unwrap();
    fs::create_dir(folder.path()).unwrap();
    let error = folder.publish(true).unwrap_err().to_string();
    assert!(error.contains("restore it again"), "{error}");
    assert!(world.path("machine.ekko-partial").exists() && !world.path("machine").exists());
    fs::remove_file(&target).unwrap();
    world.run(&["restore", "web", "new"]).exits(0);
    assert!(world.read("new") == disk);
}
