//! Hostile repositories and files.

use std::fs;
use std::path::{Path, PathBuf};

use ekko::manifest::{ManifestReader, ManifestWriter};
use ekko::storage::OsStorage;
use rusqlite::Connection;
use toml::{Table, Value};

use super::{Said, evil, evil_name};
use crate::harness::{World, noise};

const CHECKSUM: &str = "# BLAKE3 of all before this line: ";

/// Changes a file of which the last line has the BLAKE3 of the others.
fn change_sealed(path: &Path, change: impl FnOnce(&mut Table)) {
    let text = fs::read_to_string(path).unwrap();
    let mut table: Table = text.split(CHECKSUM).next().unwrap().parse().unwrap();
    change(&mut table);
    let text = table.to_string();
    fs::write(path, format!("{text}{CHECKSUM}{}\n", blake3::hash(text.as_bytes()))).unwrap();
}

/// The folder of the only backupset of a name.
fn set_of(world: &World, name: &str) -> PathBuf {
    let list = world.json(&["list", name]);
    world.path("R/manifests").join(list["backups"][0]["backupset"].as_str().unwrap())
}

/// Replaces the first backup of a set by one with other attributes.
fn change_attributes(set: &Path, attributes: &[(&str, &str)]) {
    let path = set.join("0");
    let old = ManifestReader::read(&path).unwrap();
    let mut info = old.info().clone();
    for (key, value) in attributes {
        info.attributes.retain(|(other, _)| other != key);
        info.attributes.push(((*key).to_owned(), value.as_bytes().to_vec()));
    }
    let new = set.join("new");
    let mut writer = ManifestWriter::create(&OsStorage, &new, info).unwrap();
    old.segments().for_each(|(index, segment)| writer.push(index, &segment).unwrap());
    let fingerprint = writer.finish().unwrap().fingerprint.to_string();
    fs::rename(new, path).unwrap();
    change_sealed(&set.join("set.toml"), |table| {
        table["backup"][0]["manifest"] = fingerprint.into();
    });
}

/// Runs all commands that read, and the others as far as they change nothing.
fn all_commands(world: &World, said: &mut Said) {
    for arguments in [
        &["list"][..],
        &["list", "web"],
        &["show", "web@0"],
        &["stats"],
        &["status"],
        &["check", "--read-data"],
        &["verify", "web@0", "disk"],
        &["diff", "web@0", "web@1"],
        &["delete", "--dry-run", "web@0"],
        &["forget", "--keep-last", "1", "--dry-run"],
        &["gc", "--dry-run"],
        &["manifest", "info", "web@0"],
        &["manifest", "dump", "web@0"],
        &["restore", "web@0", "out", "--force"],
        &["protect", "web@0"],
        &["undelete", "web@7"],
        &["backup", "web=disk"],
        &["token", "list"],
    ] {
        said.hear_both(world, arguments);
    }
}

fn two_backups() -> World {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 300_000));
    world.run(&["backup", "web=disk"]).exits(0);
    world.run(&["backup", "--tag", "second", "web=disk"]).exits(0);
    world
}

#[test]
fn no_field_of_a_backup_reaches_a_terminal_as_it_is() {
    let world = two_backups();
    let set = set_of(&world, "web");
    let attributes = [
        (evil("key"), evil("value")),
        ("in_use".to_owned(), evil("user")),
        ("host".to_owned(), evil("host")),
        ("format".to_owned(), evil("format")),
        ("cbt.id".to_owned(), evil("tracking")),
    ];
    let attributes: Vec<_> = attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    change_attributes(&set, &attributes);
    change_sealed(&set.join("set.toml"), |table| {
        let backup = table["backup"][0].as_table_mut().unwrap();
        backup.insert("tags".to_owned(), Value::Array(vec![evil("tag").into(), evil("word").into()]));
        backup.insert("note".to_owned(), evil("note").into());
        backup.insert("suspect".to_owned(), evil("suspicion").into());
    });
    world.run(&["token", "create", "--project", "blue", "--role", "backup", "--note", "x"]).exits(0);
    change_sealed(&world.path("R/tokens.toml"), |table| {
        table["token"][0]["note"] = evil("token").into();
    });
    let mut said = Said::default();
    all_commands(&world, &mut said);
    for label in ["key", "value", "user", "host", "tracking", "tag", "word", "note", "suspicion", "token"] {
        said.assert_held(label);
    }
}

#[test]
fn what_damaged_files_hold_reaches_no_terminal_as_it_is() {
    for field in ["name", "created", "backupset", "format", "backup"] {
        let world = two_backups();
        let label = format!("set-{field}");
        change_sealed(&set_of(&world, "web").join("set.toml"), |table| {
            table.insert(field.to_owned(), evil(&label).into());
        });
        let mut said = Said::default();
        all_commands(&world, &mut said);
        assert!(said.0.contains("set.toml"), "{field}: {}", said.0);
    }
    for field in ["manifest", "timestamp", "protected_until", "unknown"] {
        let world = two_backups();
        change_sealed(&set_of(&world, "web").join("set.toml"), |table| {
            let backup = table["backup"][0].as_table_mut().unwrap();
            backup.insert(field.to_owned(), evil("field").into());
            backup.insert(evil("unknown"), "x".into());
        });
        all_commands(&world, &mut Said::default());
    }
    let world = two_backups();
    world.write("R/ekko.toml", format!("format = 1\nid = {}\n", Value::from(evil("id"))).as_bytes());
    all_commands(&world, &mut Said::default());
    let world = two_backups();
    change_sealed(&set_of(&world, "web").join("set.toml"), |table| {
        table.insert(evil("unknown"), "x".into());
    });
    all_commands(&world, &mut Said::default());
}

#[test]
fn names_in_the_archive_of_a_machine_reach_no_terminal_as_they_are() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 70_000));
    world.write("domain.xml", b"<domain/>");
    let arguments = ["backup", "--machine", "m", "m/a=disk", "--attach", "domain.xml"];
    world.run(&arguments).exits(0);
    let archive = world.path("archive");
    world.run(&["restore", "m@0", archive.to_str().unwrap()]).exits(0);
    let archive = fs::read(archive).unwrap();
    let mut said = Said::default();
    for (label, change) in [
        ("disk-format", ("\"raw\"", serde_json::to_string(&evil("disk-format")).unwrap())),
        ("disk-name", ("\"m/a\"", serde_json::to_string(&evil("disk-name")).unwrap())),
        ("moment-time", ("\"time\": \"2", serde_json::to_string(&evil("\"time\": \"moment-time")).unwrap())),
        ("file-name", ("domain.xml", evil_name("file-name").chars().take(60).collect())),
    ] {
        let mut changed = Vec::new();
        let mut builder = tar::Builder::new(&mut changed);
        for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut text).unwrap();
            let text = String::from_utf8(text).unwrap().replace(change.0, &change.1);
            let mut header = tar::Header::new_ustar();
            header.set_size(text.len() as u64);
            header.set_entry_type(tar::EntryType::Regular);
            // Written by hand: the library refuses what this test is about.
            let path = path.replace(change.0, &change.1);
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, text.as_bytes()).unwrap();
        }
        builder.finish().unwrap();
        drop(builder);
        let name = format!("x{label}");
        world.write(&name, &changed);
        world.run(&["backup", &name]).exits(0);
        change_attributes(&set_of(&world, &name), &[("kind", "machine")]);
        let backup = format!("{name}@0");
        for arguments in [
            &["show", &backup][..],
            &["restore", "--machine", &backup, "out"],
            &["delete", "--machine", &backup, "--dry-run"],
            &["manifest", "info", &backup],
        ] {
            said.hear_both(&world, arguments);
        }
    }
    said.assert_held("disk-format");
}

#[test]
fn what_foreign_manifests_and_images_say_reaches_no_terminal_as_it_is() {
    let world = World::new();
    world.init_small();
    let original = format!("{}/tests/data/original/manifest.sqlite", env!("CARGO_MANIFEST_DIR"));
    let mut said = Said::default();
    let tables = Connection::open(&original).unwrap();
    let mut columns = tables
        .prepare(
            "SELECT m.name, p.name FROM sqlite_schema m, pragma_table_info(m.name) p WHERE m.type = 'table'",
        )
        .unwrap();
    let columns = columns.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let columns: Vec<(String, String)> = columns.map(Result::unwrap).collect();
    assert!(columns.len() > 8, "{columns:?}");
    for (table, column) in columns {
        fs::copy(&original, world.path("m.sqlite")).unwrap();
        let database = Connection::open(world.path("m.sqlite")).unwrap();
        // What a constraint refuses cannot be in a file either.
        let _ = database.execute(&format!("UPDATE {table} SET \"{column}\" = ?1"), [evil(&column)]);
        drop(database);
        said.hear_both(
            &world,
            &["manifest", "import", "m.sqlite", "--name", "old", "--output", "m.ekko", "--force"],
        );
    }
    let qcow2 = |at: usize, name: &str| {
        let mut image = vec![0; 1 << 16];
        image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
        image[8..16].copy_from_slice(&(at as u64).to_be_bytes());
        image[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        image[20..24].copy_from_slice(&16u32.to_be_bytes());
        image[24..32].copy_from_slice(&(1u64 << 20).to_be_bytes());
        image[36..40].copy_from_slice(&1u32.to_be_bytes());
        image[40..48].copy_from_slice(&(1u64 << 16).to_be_bytes());
        image[at..at + name.len()].copy_from_slice(name.as_bytes());
        image
    };
    world.write("disk.qcow2", &qcow2(512, &evil("backing")));
    said.hear_both(&world, &["backup", "--format", "qcow2", "q=disk.qcow2"]);
    said.hear_both(&world, &["backup", "q=disk.qcow2"]);
    said.assert_held("backing");
    for (file, bytes) in [
        ("list.json", format!("[{{\"offset\": {:?}}}]", evil("offset"))),
        ("list.txt", evil("list")),
        ("list.xml", format!("<superblock {}=\"1\">", evil("xml"))),
    ] {
        world.write(file, bytes.as_bytes());
        world.write("disk", &noise(1, 70_000));
        said.hear_both(&world, &["backup", "--cbt", file, "web=disk"]);
    }
}
