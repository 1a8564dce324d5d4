use std::fs;

use crate::harness::{World, copy_folder, index_files, noise};

/// After some harm to the index: listing and restoring are right, and so is the next backup, which says in one
/// line whether the index was rebuilt.
fn check_after(world: &World, what: &str, rebuilt: bool) {
    let disk = world.read("web");
    world.run(&["list"]).exits(0);
    assert_eq!(world.run(&["restore", "web", "-"]).exits(0).stdout, disk, "{what}");
    let ran = world.run(&["--json", "backup", "web"]).exits(0);
    assert_eq!(
        ran.stderr.matches("the index was rebuilt").count(),
        usize::from(rebuilt),
        "{what}: {}",
        ran.stderr
    );
    let backup = &ran.json()["backups"][0];
    assert_eq!(backup["new_segments"], 0, "{what}");
    assert_eq!(backup["unchanged_segments"], 4, "{what}");
    assert_eq!(world.run(&["restore", "web", "-"]).exits(0).stdout, disk, "{what}");
}

fn world() -> World {
    let world = World::new();
    world.init_small();
    world.write("web", &noise(1, 4 << 16));
    world.run(&["backup", "web"]).exits(0);
    world
}

#[test]
fn an_index_that_nothing_happened_to_is_believed() {
    check_after(&world(), "nothing", false);
}

#[test]
fn a_missing_index_is_rebuilt_and_it_is_said_in_one_line() {
    let world = world();
    fs::remove_dir_all(world.path("R/index")).unwrap();
    check_after(&world, "removed", true);
}

#[test]
fn a_flipped_bit_anywhere_in_the_index_is_seen() {
    let world = world();
    for number in 0..index_files(&world).len() {
        for step in 0..7 {
            let path = &index_files(&world)[number];
            let mut bytes = fs::read(path).unwrap();
            let at = bytes.len() * step / 7;
            bytes[at] ^= 1 << step;
            fs::write(path, bytes).unwrap();
            check_after(&world, &format!("a bit at {at} of {}", path.display()), true);
        }
    }
}

#[test]
fn an_index_that_was_cut_short_is_rebuilt() {
    let world = world();
    for number in 0..index_files(&world).len() {
        for part in 0..3 {
            let path = &index_files(&world)[number];
            let length = path.metadata().unwrap().len() * part / 3;
            fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
            check_after(&world, &format!("{} cut at {length}", path.display()), true);
        }
    }
}

#[test]
fn an_older_copy_of_the_index_is_not_believed() {
    let world = world();
    copy_folder(&world.path("R/index"), &world.path("old"));
    world.write("db", &noise(2, 4 << 16));
    world.run(&["backup", "db"]).exits(0);
    fs::remove_dir_all(world.path("R/index")).unwrap();
    copy_folder(&world.path("old"), &world.path("R/index"));
    check_after(&world, "an older copy", true);
    assert_eq!(world.run(&["restore", "db", "-"]).exits(0).stdout, noise(2, 4 << 16));
}

#[test]
fn rebuild_makes_the_index_anew_on_demand() {
    let world = world();
    world.run(&["rebuild"]).exits(0).says("rebuilt with 4 segments");
    assert_eq!(world.json(&["rebuild"])["rebuilt"], true);
    check_after(&world, "rebuilt", false);
}
