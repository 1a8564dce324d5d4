//! The rooms of the house: each imports only from those above it, and keeps its own to itself.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms in order. `backup`, `restore` and `check` stand side by side, so none sees another.
const ROOMS: [&[&str]; 15] = [
    &["error", "escape", "time"],
    &["progress"],
    &["pace"],
    &["segment"],
    &["storage"],
    &["image"],
    &["codec"],
    &["manifest"],
    &["store"],
    &["repository"],
    &["backup", "restore", "check"],
    &["exchange", "machine"],
    &["api"],
    &["remote", "service"],
    &["cli"],
];

/// No file is longer, in lines.
const LONGEST: usize = 500;

fn level(room: &str) -> Option<usize> {
    ROOMS.iter().position(|rooms| rooms.contains(&room))
}

/// A source file: its path below `src`, its room and its text without the unit tests.
struct Source {
    path: String,
    room: String,
    text: String,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut files) = (vec![src.clone()], Vec::<PathBuf>::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    let source = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let below = path.strip_prefix(&src).unwrap();
        let room = below.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let is_test = below.file_stem().is_some_and(|stem| stem == "tests");
        Source {
            path: below.display().to_string(),
            room,
            lines: text.lines().count(),
            text: if is_test { String::new() } else { without_tests(&text) },
        }
    };
    files.iter().map(source).collect()
}

/// Cuts unit tests and comments off.
fn without_tests(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Says what is wrong with how a text of `room` names other rooms.
fn wrong_imports(room: &str, text: &str) -> Vec<String> {
    let own = level(room);
    let mut wrong = Vec::new();
    for used in text.split("crate::").skip(1) {
        let name: String =
            used.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
        match (level(&name), own) {
            (Some(theirs), Some(own)) if theirs < own || name == room => {}
            (None, _) => wrong.push(format!("{room} names crate::{name}, which is no room")),
            _ => wrong.push(format!("{room} names {name}, which does not stand above it")),
        }
    }
    if text.contains("super::*") {
        wrong.push(format!("{room} imports super::* outside its tests"));
    }
    wrong
}

fn offenders(sources: &[Source], allowed: &[&str], words: &[&str]) -> Vec<String> {
    let named = |source: &&Source| words.iter().any(|word| source.text.contains(word));
    let foreign =
        sources.iter().filter(|source| !allowed.iter().any(|prefix| source.path.starts_with(prefix)));
    foreign.filter(named).map(|source| source.path.clone()).collect()
}

#[test]
fn every_room_imports_only_from_rooms_above_it() {
    let mut wrong = Vec::new();
    for source in sources() {
        if source.path == "lib.rs" || source.path == "main.rs" {
            continue;
        }
        assert!(level(&source.room).is_some(), "{} is in no known room", source.path);
        wrong.extend(
            wrong_imports(&source.room, &source.text)
                .into_iter()
                .map(|what| format!("{}: {what}", source.path)),
        );
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_rule_about_imports_can_fail() {
    assert!(
        wrong_imports("store", "use crate::segment::SegmentHash;\nuse crate::store::pack::X;").is_empty()
    );
    for (room, text) in [
        ("segment", "use crate::store::Index;"),
        ("backup", "use crate::restore::Target;"),
        ("store", "use crate::*;"),
        ("store", "let x = crate::cli::main();"),
        ("store", "use crate::elsewhere::X;"),
        ("store", "use super::*;"),
    ] {
        assert_eq!(wrong_imports(room, text).len(), 1, "{room}: {text}");
    }
    assert_eq!(without_tests("a // crate::cli\n#[cfg(test)]\nmod tests {\n    use super::*;\n}\n"), "a ");
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let long: Vec<_> =
        sources().into_iter().filter(|source| source.lines > LONGEST).map(|it| it.path).collect();
    assert_eq!(long, Vec::<String>::new());
}

#[test]
fn what_belongs_to_one_room_is_named_in_no_other() {
    let sources = sources();
    let none: Vec<String> = Vec::new();
    assert_eq!(offenders(&sources, &["store/index.rs"], &["sled::"]), none, "sled");
    assert_eq!(
        offenders(
            &sources,
            &["manifest/map.rs", "segment/lanes.rs"],
            &["unsafe {", "unsafe fn", "unsafe impl"]
        ),
        none,
        "unsafe"
    );
    assert_eq!(
        offenders(&sources, &["manifest/foreign/", "manifest/mod.rs"], &["rusqlite", "crc32fast"]),
        none,
        "the original's formats"
    );
    let environment = ["std::env", "env::var", "home_dir"];
    assert_eq!(offenders(&sources, &["cli/", "main.rs"], &environment), none, "the environment");
    assert_eq!(offenders(&sources, &["cli/"], &["clap"]), none, "the command line");
    let json = [
        "cli/",
        "image/cbt/json.rs",
        "backup/changes.rs",
        "machine/moment.rs",
        "manifest/flaws.rs",
        "api/",
        "remote/",
        "service/",
    ];
    assert_eq!(offenders(&sources, &json, &["serde_json"]), none, "JSON");
    assert_eq!(offenders(&sources, &["image/cbt/thin.rs"], &["quick_xml"]), none, "XML");
}

#[test]
fn nothing_reaches_a_terminal_but_through_the_file_that_escapes() {
    let sources = sources();
    let none: Vec<String> = Vec::new();
    let macros = ["println!", "print!(", "eprint", "dbg!"];
    assert_eq!(offenders(&sources, &[], &macros), none, "printing macros");
    let streams = [
        "io::stdout",
        "io::stderr",
        "{stdout",
        "{stderr",
        ", stdout",
        ", stderr",
        "stdout().",
        "stderr().",
        "Stdout",
        "Stderr",
        "rustix::stdio",
        "/dev/std",
        "/dev/tty",
    ];
    // Others choose between the two streams by `Stream`, which is the terminal's.
    let unnamed = |source: &Source| {
        let text = source.text.replace("Stream::Stdout", "").replace("Stream::Stderr", "");
        Source { path: source.path.clone(), room: source.room.clone(), text, lines: source.lines }
    };
    let others: Vec<_> = sources.iter().map(unnamed).collect();
    assert_eq!(offenders(&others, &["cli/terminal.rs"], &streams), none, "stdout and stderr");
    let logs = ["tracing_subscriber::fmt()", "set_hook", "error.print()"];
    assert_eq!(
        offenders(&sources, &["cli/terminal.rs", "cli/context.rs", "cli/mod.rs"], &logs),
        none,
        "the log, panics and clap"
    );
    // A bar writes to the terminal itself: its label is escaped there.
    // Another program inherits our stderr unless it is given another one.
    let programs = ["Command::new(\"", "process::Command"];
    assert_eq!(
        offenders(&sources, &["cli/backup/hooks.rs", "image/served/"], &programs),
        none,
        "other programs"
    );
    let raw = ["terminal::data()", "terminal::program_text("];
    let with_raw = ["cli/restore.rs", "cli/manifest/dump.rs", "cli/completions.rs"];
    assert_eq!(offenders(&sources, &with_raw, &raw), none, "bytes that are not escaped");
}
