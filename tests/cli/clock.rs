//! Clocks that are wrong by thousands of years, and dates that nobody can mean. A library that is loaded before all others takes the
//! place of the clock.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Ran, World, noise, ran};

/// The clock, at a second since 1970 that the environment names.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec = atoll(getenv("TEST_CLOCK"));
    return result;
}
"#;

fn clock(world: &World) -> PathBuf {
    let (source, library) = (world.write("clock.c", CLOCK.as_bytes()), world.path("clock.so"));
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.unwrap().success());
    library
}

#[test]
fn no_clock_and_no_date_makes_a_command_panic() {
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 100_000));
    world.run(&["backup", "web=disk"]).exits(0);
    let library = clock(&world);
    let holds = |arguments: &[&str], ended: &Ran| {
        assert!([0, 1, 2, 3].contains(&ended.code), "{arguments:?}: {} {}", ended.code, ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{arguments:?}: {}", ended.stderr);
    };
    // The years 10,000, 11,476 and 1970.
    for second in ["253402300800", "300000000000", "1"] {
        for arguments in [
            &["backup", "web=disk"][..],
            &["list"],
            &["show", "web"],
            &["status"],
            &["delete", "web@0"],
            &["list", "--deleted"],
            &["gc"],
            &["undelete", "web@0"],
            &["forget", "-n", "--keep-within", "1d", "--keep-daily", "2"],
            &["protect", "web@0", "--until", "2d"],
            &["token", "create", "--project", "blue", "--role", "backup", "--expires", "1d"],
            &["check"],
        ] {
            let mut command = world.command(arguments);
            let ended = ran(command.env("LD_PRELOAD", &library).env("TEST_CLOCK", second).output().unwrap());
            holds(arguments, &ended);
            // A backup is made whatever the clock says; 3 is for the warning that it is before the newest backup or far ahead.
            let made = matches!(ended.code, 0 | 3);
            assert!(arguments[0] != "backup" || made, "{second}: {}", ended.stderr);
        }
    }
    assert_eq!(world.json(&["list"])["backups"].as_array().unwrap().len(), 4);
    world.run(&["check", "--read-data"]).exits(0);
    assert!(world.run(&["restore", "web", "-"]).exits(0).stdout == noise(1, 100_000));
    for date in ["9999-12-31", "10000-01-01", "-9999-01-01", "300000y", "99999999999999999999d", "1e9d"] {
        for (command, option) in [
            (&["protect", "web@0"][..], "--until"),
            (&["list"], "--since"),
            (&["forget", "-n"], "--keep-within"),
            (&["token", "create", "--project", "blue", "--role", "backup"], "--expires"),
            (&["status"], "--max-age"),
        ] {
            let option = format!("{option}={date}");
            let arguments = [command, &[option.as_str()]].concat();
            holds(&arguments, &world.run(&arguments));
        }
    }
}
