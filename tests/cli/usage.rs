use std::fs;
use std::process::Command;

use crate::harness::{World, keys, noise};

const COMMANDS: [&[&str]; 15] = [
    &["init"],
    &["backup"],
    &["restore"],
    &["list"],
    &["show"],
    &["stats"],
    &["rebuild"],
    &["manifest", "dump"],
    &["manifest", "info"],
    &["token", "create"],
    &["token", "list"],
    &["token", "revoke"],
    &["completions"],
    &["man"],
    &[],
];

#[test]
fn the_help_of_every_command_has_an_example() {
    let world = World::new();
    for command in COMMANDS {
        let help = world.run(&[command, &["--help"]].concat()).exits(0).text();
        assert!(help.contains("Example:\n  ekko "), "{command:?}: {help}");
    }
    assert!(world.run(&["--version"]).exits(0).text().starts_with("ekko "));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let world = World::new();
    for arguments in [
        &["frobnicate"][..],
        &["restore", "web"],
        &["init", "--segment-size", "3MiB"],
        &["init", "--segment-size", "32KiB"],
        &["--wait", "soon", "list"],
        &["backup", "--jobs", "0", "x"],
    ] {
        world.run(arguments).exits(2);
    }
}

#[test]
fn the_repository_must_be_named() {
    let world = World::new();
    world.init_small();
    let mut bare = Command::new(env!("CARGO_BIN_EXE_ekko"));
    bare.arg("list").env_remove("EKKO_REPOSITORY");
    crate::harness::ran(bare.output().unwrap()).exits(2).says("EKKO_REPOSITORY");
    crate::harness::ran(bare.env("EKKO_REPOSITORY", world.path("R")).output().unwrap()).exits(0);
    let error = World::new().run(&["--json", "list"]).exits(10).json();
    assert_eq!(keys(&error), ["error"]);
    assert_eq!(keys(&error["error"]), ["kind", "message"]);
    assert_eq!(error["error"]["kind"], "no_repository");
}

#[test]
fn init_makes_a_repository_once_and_never_over_something_else() {
    let world = World::new();
    fs::create_dir(world.path("R")).unwrap();
    let document = world.json(&["init", "--segment-size", "1MiB", "--compression", "zlib:3"]);
    assert_eq!(keys(&document), ["compression", "id", "repository", "segment_size"]);
    assert_eq!((&document["segment_size"], &document["compression"]), (&(1 << 20).into(), &"zlib:3".into()));
    world.run(&["init"]).exits(2).says("already");
    world.write("web", &noise(1, 3 << 20));
    assert_eq!(world.json(&["backup", "web"])["backups"][0]["segments"], 3);
    let other = World::new();
    fs::create_dir(other.path("R")).unwrap();
    other.write("R/photo.jpg", b"");
    other.run(&["init"]).exits(2).says("something else");
    let file = World::new();
    file.write("R", b"");
    file.run(&["init"]).exits(2).says("something else");
}

#[test]
fn texts_with_control_characters_or_too_long_are_refused_before_anything_is_made() {
    let world = World::new();
    world.init_small();
    world.write("web", &noise(1, 1 << 16));
    let long = "x".repeat(65);
    for tag in ["", "a\nb", "\u{1b}[2J", "\u{9b}x", "a b", &long] {
        world.run(&["backup", "web", "--tag", tag]).exits(2).says("as a tag");
    }
    let many = ["--tag", "x"].repeat(17);
    world.run(&[&["backup", "web"][..], &many].concat()).exits(2).says("16 is the most");
    assert_eq!(fs::read_dir(world.path("R/manifests")).unwrap().count(), 0);
    world.run(&[&["backup", "web"][..], &many[..32]].concat()).exits(0);
    world.write("list", b"[]");
    let list = ["backup", "web", "--cbt", "list", "--cbt-base", "web@0", "--cbt-id"];
    world.run(&[&list[..], &["a\u{7}"]].concat()).exits(2).says("tracking of changes");
    let token = ["token", "create", "--project", "blue", "--role", "backup", "--note"];
    for note in ["a\nb", &"x".repeat(257)] {
        world.run(&[&token[..], &[note]].concat()).exits(2).says("as a note");
    }
    world.run(&[&token[..], &[&"x".repeat(256)]].concat()).exits(0);
}

#[test]
fn completions_and_manual_pages_are_written() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.run(&["completions", shell]).exits(0).text().contains("backup"), "{shell}");
    }
    world.run(&["completions", "tcsh"]).exits(2);
    assert!(world.run(&["man"]).exits(0).text().contains(".TH"));
    world.run(&["man", "pages"]).exits(0);
    for page in ["ekko.1", "ekko-backup.1", "ekko-restore.1", "ekko-manifest-dump.1"] {
        assert!(world.path("pages").join(page).exists(), "{page}");
    }
}

#[test]
fn the_quick_start_of_the_readme_works() {
    let root = env!("CARGO_MANIFEST_DIR");
    let readme = fs::read_to_string(format!("{root}/README.md")).unwrap();
    assert!(readme.contains("\nsh tests/quickstart.sh\n") && readme.contains("\ncargo test\n"));
    let mut script = Command::new("sh");
    let output =
        script.arg("tests/quickstart.sh").current_dir(root).env("EKKO", env!("CARGO_BIN_EXE_ekko")).output();
    let ran = crate::harness::ran(output.unwrap()).exits(0);
    assert!(ran.text().ends_with("Both days came back bit for bit.\n"));
}

#[test]
fn help_manual_pages_and_readme_list_the_exit_codes() {
    let world = World::new();
    let help = world.run(&["--help"]).exits(0).text();
    let page = world.run(&["man"]).exits(0).text();
    world.run(&["man", "pages"]).exits(0);
    let pages: Vec<_> =
        std::fs::read_dir(world.path("pages")).unwrap().map(|it| it.unwrap().path()).collect();
    assert!(pages.len() > 25);
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for (code, meaning) in [
        ("0", "Done"),
        ("1", "Failed"),
        ("2", "Wrong usage"),
        ("3", "Done, with problems"),
        ("10", "No such repository"),
        ("11", "In use"),
        ("13", "Refused by the service"),
    ] {
        assert!(help.contains(&format!("  {code:<3} {meaning}")), "{help}");
        let section = format!(".TP\n{code}\n{meaning}");
        assert!(page.contains(".SH \"EXIT STATUS\"") && page.contains(&section), "{page}");
        for page in &pages {
            assert!(std::fs::read_to_string(page).unwrap().contains(&section), "{}", page.display());
        }
        assert!(readme.contains(&format!("| {code} | {meaning}")), "{code}");
    }
}

/// Runs a command whose stdout nobody reads.
fn unread(world: &World, arguments: &[&str]) -> crate::harness::Ran {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = world.command(arguments);
    command.stdout(writer);
    crate::harness::ran(command.output().unwrap())
}

#[test]
fn a_closed_pipe_changes_no_failure_and_no_problem_into_success() {
    let world = World::new();
    world.init_small();
    world.write("web", &crate::harness::noise(1, 1 << 16));
    world.write("other", &crate::harness::noise(2, 1 << 16));
    world.run(&["backup", "web"]).exits(0);
    unread(&world, &["verify", "web", "other"]).exits(3);
    unread(&world, &["status", "--max-age", "0s"]).exits(3);
    unread(&world, &["backup", "web", "gone=nothing"]).exits(3);
    unread(&world, &["forget", "--keep-tag", "typo"]).exits(1);
    unread(&world, &["diff", "web@0", "web@9"]).exits(1);
    // A table is for a person, who saw what they wanted; a document is for a program, which did not get it.
    unread(&world, &["list"]).exits(0);
    unread(&world, &["--json", "list"]).exits(1).says("nobody reads it any longer");
    unread(&world, &["manifest", "dump", "web"]).exits(1).says("nobody reads it any longer");
    unread(&world, &["restore", "web", "-"]).exits(1);
    let pack = std::fs::read_dir(world.path("R/packs")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[9000] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    unread(&world, &["check", "--read-data"]).exits(3);
}

/// Nobody may leave files in a repository that its owner cannot read: root, most of all.
#[test]
fn only_the_owner_of_a_repository_changes_it() {
    const NOBODY: u32 = 65_534;
    let world = World::new();
    world.init_small();
    world.write("web", &crate::harness::noise(1, 1 << 16));
    world.run(&["backup", "web"]).exits(0);
    let files = || {
        fn below(folder: &std::path::Path, all: &mut Vec<std::path::PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                all.push(entry.path());
                if entry.file_type().unwrap().is_dir() {
                    below(&entry.path(), all);
                }
            }
        }
        let mut all = vec![world.path("R")];
        below(&world.path("R"), &mut all);
        all
    };
    let give = |path: &std::path::PathBuf| std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).is_ok();
    if !files().iter().all(give) {
        // Whoever is not root cannot give files away, and cannot harm anybody like this.
        return;
    }
    let before = files();
    for command in [
        &["backup", "web"][..],
        &["delete", "web@0"],
        &["gc"],
        &["rebuild"],
        &["protect", "web@0"],
        &["rename", "web", "www"],
        &["serve"],
        &["token", "create", "--project", "blue", "--role", "backup"],
    ] {
        world.run(command).exits(1).says("it belongs to user nobody").says("sudo -u nobody");
        assert_eq!(files(), before, "{command:?}");
    }
    world.run(&["list"]).exits(0);
    world.run(&["restore", "web", "out"]).exits(0);
    world.run(&["check", "--read-data"]).exits(0);
    let owner = |path: &std::path::PathBuf| std::os::unix::fs::MetadataExt::uid(&path.metadata().unwrap());
    assert!(files().iter().all(|path| owner(path) == NOBODY));
}

#[test]
fn a_wrong_command_gets_the_right_one_as_a_hint() {
    let world = World::new();
    for (arguments, hint) in [
        (&["prune"][..], "\"ekko forget\" deletes old backups by rules"),
        (&["snapshots"], "\"ekko list\" lists backups"),
        (&["mount"], "cannot mount backups"),
        (&["bakup"], "similar subcommand exists: 'backup'"),
        (&["help", "bakup"], "did you mean \"backup\"?"),
        (&["backup", "--dry-run", "web"], "this command has no --dry-run"),
        (&["check", "--read-data", "5"], "write --read-data=5"),
    ] {
        world.run(arguments).exits(2).says(hint);
    }
    let list = |token: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
        command.args(["-r", "http://127.0.0.1:1", "list"]).env("EKKO_TOKEN", token);
        crate::harness::ran(command.output().unwrap())
    };
    list("-----BEGIN CERTIFICATE-----\nMIIB").exits(2).says("EKKO_TOKEN does not hold a token");
}
