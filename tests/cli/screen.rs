//! What a person sees at a terminal while disks are backed up, and what a program reads.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;

use crate::harness::{Ran, World, noise};

/// Runs a command at a terminal of so many columns. Returns the exit code, and all that came to the terminal.
fn at_terminal(world: &World, columns: u16, arguments: &[&str]) -> (i32, String) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap();
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size).unwrap();
    let slave = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    let stream = || Stdio::from(OwnedFd::from(slave.try_clone().unwrap()));
    let mut child = world.command(arguments).stdout(stream()).stderr(stream()).spawn().unwrap();
    drop(slave);
    let mut screen = Vec::new();
    let mut master = File::from(master);
    let mut part = [0; 4096];
    // The end of a terminal is an error.
    while let Ok(read @ 1..) = master.read(&mut part) {
        screen.extend_from_slice(&part[..read]);
    }
    (child.wait().unwrap().code().unwrap(), String::from_utf8(screen).unwrap())
}

/// The texts that stood in one line of the terminal each, in order: a line of progress is drawn in place of the one before.
fn lines(screen: &str) -> Vec<String> {
    let drawn = screen.split(['\r', '\n']);
    drawn.map(|line| line.replace("\u{1b}[K", "")).filter(|line| !line.is_empty()).collect()
}

#[test]
fn no_line_of_a_backup_of_twenty_disks_is_wrapped_whatever_the_width_of_the_terminal() {
    let world = World::new();
    world.init_small();
    let mut arguments = vec!["backup".to_owned(), "--limit-rate".to_owned(), "1MiB".to_owned()];
    for number in 0..20 {
        let name = format!("machine{number:02}/vda");
        world.write(&format!("disk{number}"), &noise(number, 64 << 10));
        arguments.push(format!("{name}=disk{number}"));
    }
    arguments.push("gone=nowhere".to_owned());
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    for columns in [40, 60, 80, 200] {
        let (code, screen) = at_terminal(&world, columns, &arguments);
        assert_eq!(code, 3, "{screen}");
        let lines = lines(&screen);
        let wide: Vec<_> = lines.iter().filter(|line| line.chars().count() >= usize::from(columns)).collect();
        assert!(wide.is_empty(), "{columns}: {wide:?}");
        let progress: Vec<_> = lines.iter().filter(|line| line.contains('%')).collect();
        assert!(progress.iter().any(|line| line.starts_with("machine")), "{columns}: {lines:?}");
        // Each result when it is there, then the summary, and the failure last.
        let all = lines.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
        let places =
            ["machine00/vda@", "machine19/vda@", "20 disks done in", "1 of 21 disks failed: ekko: gone: "];
        let at = places.map(|text| all.rfind(text).unwrap_or_else(|| panic!("{text}: {all}")));
        assert!(at.is_sorted(), "{all}");
        assert!(all.contains("gone was not backed up"), "{all}");
        assert!(all.ends_with("check the path"), "{screen}");
        let first = all.find("machine00/vda@").unwrap();
        assert!(all[first..].contains('%'), "{columns}: results came at the end only");
    }
}

#[test]
fn programs_read_progress_and_results_as_lines_of_json() {
    let world = World::new();
    world.init_small();
    for (name, seed) in [("a", 1), ("b", 2)] {
        world.write(name, &noise(seed, 1 << 20));
    }
    let slow = ["backup", "--json-progress", "--limit-rate", "1MiB", "a", "b", "gone=nowhere"];
    let ended = world.run(&slow).exits(3);
    let events: Vec<Value> = ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).collect::<Vec<_>>();
    let mut done: Vec<_> = of("done").iter().map(|event| event["backup"].as_str().unwrap()).collect();
    done.sort_unstable();
    assert_eq!(done, ["a@0", "b@0"]);
    assert_eq!(of("failed")[0]["name"], "gone");
    let progress = of("progress");
    assert!(!progress.is_empty());
    for event in progress {
        assert!(event["done_bytes"].as_u64() <= event["total_bytes"].as_u64(), "{event}");
        assert_eq!((&event["disks_total"], event["total_bytes"].as_u64()), (&3.into(), Some(2 << 20)));
    }
}

#[test]
fn every_line_for_programs_is_a_document_whoever_writes_it() {
    let world = World::new();
    world.init_small();
    world.write("a", &noise(1, 1 << 20));
    let events = |ended: &Ran| -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        ended.stderr.lines().map(parse).collect()
    };
    let has = |events: &[Value], key: &str, value: &str| events.iter().any(|event| event[key] == value);
    // The log warns of a record that cannot be written or removed.
    world.run(&["backup", "a=missing"]).exits(1);
    let mut records = fs::read_dir(world.path("R/failures")).unwrap();
    let record = records.next().unwrap().unwrap().path();
    fs::remove_file(&record).unwrap();
    fs::create_dir(&record).unwrap();
    // The log, a command that is run before, and Ekko itself.
    let before = ["--before", "echo guest; echo >&2; echo 'a \"b\"' >&2"];
    let ended = world.run(&[&["backup", "--json-progress"], &before[..], &["a"]].concat()).exits(0);
    let all = events(&ended);
    assert!(has(&all, "event", "log") && has(&all, "event", "done"), "{all:?}");
    assert!(all.iter().any(|event| event["event"] == "log" && event["level"].is_string()), "{all:?}");
    for text in ["guest", "", "a \"b\""] {
        assert!(all.iter().any(|event| event["event"] == "output" && event["text"] == text), "{all:?}");
    }
    // A mistake that is found before anything is read, and a repository that is not there.
    let ended = world.run(&["backup", "--json-progress", "x="]).exits(2);
    assert!(has(&events(&ended), "event", "failure"), "{}", ended.stderr);
    let ended = World::new().run(&["backup", "--json-progress", "x=a"]).exits(10);
    assert!(has(&events(&ended), "event", "failure"), "{}", ended.stderr);
}
