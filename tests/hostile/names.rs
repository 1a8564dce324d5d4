//! Names that Ekko does not give.

use std::fs;

use crate::harness::World;

#[test]
fn a_backupset_has_one_name_and_is_counted_once() {
    let world = World::new();
    let set = world.set("web");
    let capitals = set.with_file_name(set.file_name().unwrap().to_str().unwrap().to_uppercase());
    fs::create_dir(&capitals).unwrap();
    for entry in fs::read_dir(&set).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), capitals.join(entry.file_name())).unwrap();
    }
    for _ in 0..2 {
        // No second list of it is read, and no reference is counted twice.
        assert_eq!(world.run(&["list"]).text.matches("web@1").count(), 1);
        let said = world.run(&["check"]);
        said.refuses(capitals.file_name().unwrap().to_str().unwrap(), "check");
        assert!(!said.text.contains("refcount"), "{said:?}");
    }
    assert!(capitals.join("set.toml").exists());
}

#[test]
fn what_has_a_name_that_ekko_does_not_give_stays() {
    let world = World::new();
    let theirs = [
        world.store("packs/letter.tmp"),
        world.store("packs/7.pack"),
        world.store("packs/7.pack.tmp"),
        world.store("manifests/letter.tmp"),
        world.set("web").join("letter.tmp"),
        world.set("web").join("007"),
        world.set("web").join("+9"),
        world.store("leases/letter"),
        world.store("sessions/letter"),
        world.store("index/02021"),
        world.store("index/letter"),
    ];
    for path in &theirs {
        fs::write(path, "theirs").unwrap();
    }
    // A number, and not an index.
    fs::create_dir(world.store("index/2021")).unwrap();
    let photo = world.store("index/2021/photo");
    fs::write(&photo, "theirs").unwrap();
    let ours = [world.store("packs/0000000000000099.pack.tmp"), world.set("web").join("7.tmp")];
    for path in &ours {
        fs::write(path, "half").unwrap();
    }
    for command in ["check", "gc", "backup", "serve", "rebuild"] {
        let ran = world.try_command(command);
        assert!(ran.code.is_some(), "{command}: {ran:?}");
    }
    for path in theirs.iter().chain([&photo]) {
        assert_eq!(fs::read(path).unwrap(), b"theirs", "{}", path.display());
    }
    assert!(ours.iter().all(|path| !path.exists()), "what a crash left is removed");
    let said = world.run(&["check"]);
    said.refuses("7.pack", "check");
}
