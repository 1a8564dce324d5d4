//! A disk that is full, of other people's data too: jobs that free space work, and a backup says what to do.

use std::fs;
use std::process::Command;

use crate::harness::{MIB, Ran, World, noise, ran};

/// A repository on a small filesystem in memory, in a mount namespace of its own. `full` runs a command on a full disk, with the
/// reserve in place, and `inodes` one on a disk without inodes.
const PREPARE: &str = r#"
mount -t tmpfs -o size=200m,nr_inodes=3000 none disk
ekko() { "$EKKO" -r disk/R "$@"; }
empty() { rm -rf disk/fill; ekko -q gc >out; test "$(stat -c %b disk/R/reserve)" -ge 131072; }
fill() { head -c 1G /dev/zero >disk/fill 2>out || true; }
full() { empty; fill; test "$(stat -f -c %a disk)" = 0; ekko "$@"; }
inodes() { empty; mkdir disk/fill; seq -f disk/fill/%g 4000 | xargs touch 2>out || true; test "$(stat -f -c %d disk)" = 0; ekko "$@"; }
ekko -q init
"#;

/// Runs a script in such a namespace; nothing if this machine has none.
fn on_small_disk(world: &World, script: &str) -> Option<Ran> {
    let run = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-euc", script]).current_dir(world.path("."));
        command.env_remove("EKKO_REPOSITORY").env("EKKO", env!("CARGO_BIN_EXE_ekko")).output()
    };
    fs::create_dir(world.path("disk")).unwrap();
    if !run("mount -t tmpfs none disk").is_ok_and(|output| output.status.success()) {
        return None;
    }
    Some(ran(run(&format!("{PREPARE}{script}")).unwrap()))
}

#[test]
fn every_job_that_frees_space_works_on_a_full_disk_and_the_reserve_comes_back() {
    let world = World::new();
    world.write("web", &noise(1, MIB));
    let script = r#"
        for name in a b c d; do ekko -q backup $name=web; done
        full -q protect a@0
        full -q unprotect a@0
        full -q delete --yes a@0
        full -q undelete a@0
        full -q rename d e
        full -q delete --yes a@0 b@0
        fill
        test "$(stat -f -c %a disk)" = 0
        ekko -q delete --yes e@0
        fill
        ekko -q gc --now
        full -q forget --keep-last 1 --gc
        inodes -q delete --yes c@0
        inodes -q gc --now
        empty
        ekko check
    "#;
    let Some(ran) = on_small_disk(&world, script) else { return };
    ran.exits(0);
}

#[test]
fn a_backup_on_a_full_disk_says_how_full_it_is_and_what_to_do() {
    let world = World::new();
    world.write("web", &noise(1, MIB));
    let script = r#"
        ekko -q backup web
        full backup web || echo "ends with $?"
        test -e disk/R/reserve
        inodes backup web || echo "ends with $?"
        test -e disk/R/reserve
    "#;
    let Some(ran) = on_small_disk(&world, script) else { return };
    let ran = ran.exits(0).says("cannot change the repository disk/R: its disk is full (0 B free)");
    let ran = ran.says("its disk is full (no inodes are free)").says("run \"ekko gc --now\"");
    assert!(ran.text().ends_with("ends with 1\nends with 1\n"), "{}", ran.text());
}
